//! One drain after the other: read, check, store, delete, and compare with the TPM.

use std::{
    collections::VecDeque,
    num::NonZeroU64,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ima_log::{Bank, Digest, Extend, Format, ParseError, Record, Records, Replay};
use imastage_source::{Hold, Part, Source, SourceError};
use imastage_store::{Note, Store, StoreError};

use crate::{
    align::{Alignment, Question, align},
    wire::Verdict,
};

/// Reads PCR 10 of the bank that is compared.
pub type ReadPcr = Box<dyn FnMut() -> Result<Digest, String> + Send>;

/// How records leave the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Stage all (`A`), store them, delete what was staged (`D`).
    Stage,
    /// Read the current list, store it, delete the first N.
    DeleteN,
}

/// Drains one list into one store.
pub struct Drainer {
    source: Box<dyn Source>,
    store: Store,
    flavour: Flavour,
    /// The bank in which store and TPM are compared.
    bank: Bank,
    read_pcr: Option<ReadPcr>,
    /// How many of the list's first records are stored already; `None` until that is known.
    stored_in_list: Option<u64>,
    verdict: Verdict,
    tpm: Option<Digest>,
    /// PCR 10 after each of the last stored records: the TPM may be a little behind the list.
    recent: VecDeque<(u64, Digest)>,
}

/// What one drain did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Records that are stored now and were not before.
    pub stored: u64,
    /// Records that were in the list and in the store already.
    pub already_stored: u64,
    /// Records deleted from the list.
    pub deleted: u64,
    /// Their bytes (sha1 form).
    pub deleted_bytes: u64,
    /// The longest time the list's files were held at once.
    pub held: Duration,
}

/// Why a drain failed. Unless it says otherwise nothing was deleted, and the next drain begins
/// where this one did.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// The list could not be held, read or shortened.
    #[error("{0}")]
    Source(#[from] SourceError),
    /// The records could not be stored.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// What was read is no list.
    #[error("the list cannot be read ({0}); nothing was deleted")]
    Unreadable(ParseError),
    /// Equal records kept being added while the list's place in the store was looked for.
    #[error(
        "the list has records that are equal to stored ones, and more are added all the time: \
         which of them are stored already cannot be told yet; nothing was deleted"
    )]
    NoPlace,
    /// The TPM did not answer.
    #[error("TPM: {0}")]
    Tpm(String),
}

impl Round {
    fn add(&mut self, other: Round) {
        self.stored += other.stored;
        self.already_stored += other.already_stored;
        self.deleted += other.deleted;
        self.deleted_bytes += other.deleted_bytes;
        self.held = self.held.max(other.held);
    }
}

impl Drainer {
    /// Drains `source` into `store`, which has an epoch. `read_pcr` reads PCR 10 of `bank`;
    /// `verdict` is what is known of the epoch.
    pub fn new(
        source: Box<dyn Source>,
        store: Store,
        flavour: Flavour,
        bank: Bank,
        read_pcr: Option<ReadPcr>,
        verdict: Verdict,
    ) -> Drainer {
        Drainer {
            source,
            store,
            flavour,
            bank,
            read_pcr,
            stored_in_list: None,
            verdict,
            tpm: None,
            recent: VecDeque::new(),
        }
    }

    /// Drains once: everything that was in the list when this was called is stored when it
    /// returns.
    ///
    /// # Errors
    /// [`DrainError`]; what was not stored is still in the list.
    pub fn drain(&mut self) -> Result<Round, DrainError> {
        let result = self.try_drain();
        if result.is_err() {
            // Whether the list was shortened may be unknown now. Find out before going on.
            self.store.rollback();
            self.stored_in_list = None;
        }
        result
    }

    /// Whether TPM and store agree.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// PCR 10 as the TPM had it last.
    pub fn tpm_pcr(&self) -> Option<Digest> {
        self.tpm
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    fn try_drain(&mut self) -> Result<Round, DrainError> {
        if self.stored_in_list.is_none() {
            self.find_place()?;
        }
        // Whatever the TPM was extended with by now is in the store or in the list.
        let pcr = self.pcr()?;
        let begin = self.store.len();
        let mut agreed = self.agreed(pcr);
        let mut round = Round::default();
        // Records that were staged before are older than all others, whoever staged them. When
        // they are gone, all that was in the list at the beginning is still to be taken.
        loop {
            if self.flavour == Flavour::DeleteN && !self.is_staged()? {
                round.add(self.drain_current(pcr, &mut agreed)?);
                break;
            }
            let (staged, were_pending) = self.drain_staged(pcr, &mut agreed)?;
            round.add(staged);
            if !were_pending {
                break;
            }
        }
        self.judge(pcr, agreed, begin)?;
        Ok(round)
    }

    /// Also tells whether the records had been staged before.
    fn drain_staged(
        &mut self,
        pcr: Option<Digest>,
        agreed: &mut Option<u64>,
    ) -> Result<(Round, bool), DrainError> {
        let since = Instant::now();
        let mut hold = self.source.hold(Part::Staged)?;
        let were_pending = match hold.stage() {
            Ok(()) => false,
            Err(SourceError::Pending) => true,
            Err(SourceError::Nothing(_)) => return Ok((Round::default(), false)),
            Err(error) => return Err(error.into()),
        };
        let bytes = read_all(&mut *hold)?;
        let records = parse(&bytes)?;
        let skip = self.stored_in_list.unwrap_or(0).min(records.len() as u64);
        keep(&mut self.store, &records[skip as usize..], self.bank, pcr, agreed, &mut self.recent)?;
        match hold.delete_staged() {
            Ok(()) | Err(SourceError::NoMemory) => {}
            Err(error) => return Err(error.into()),
        }
        drop(hold);
        self.stored_in_list = self.stored_in_list.map(|stored| stored - skip);
        Ok((round(&records, &bytes, skip, since), were_pending))
    }

    fn drain_current(
        &mut self,
        pcr: Option<Digest>,
        agreed: &mut Option<u64>,
    ) -> Result<Round, DrainError> {
        let since = Instant::now();
        let mut hold = self.source.hold(Part::Current)?;
        let bytes = read_all(&mut *hold)?;
        let records = parse(&bytes)?;
        let Some(count) = NonZeroU64::new(records.len() as u64) else {
            return Ok(Round::default());
        };
        let skip = self.stored_in_list.unwrap_or(0).min(count.get());
        keep(&mut self.store, &records[skip as usize..], self.bank, pcr, agreed, &mut self.recent)?;
        hold.delete_first(count)?;
        drop(hold);
        self.stored_in_list = Some(0);
        Ok(round(&records, &bytes, skip, since))
    }

    /// Finds out how many of the list's first records are stored already, without deleting any.
    fn find_place(&mut self) -> Result<(), DrainError> {
        const TRIES: u32 = 5;
        const WAIT: Duration = Duration::from_millis(50);
        for attempt in 1..=TRIES {
            let staged = self.fixed_part()?;
            let before = self.read(Part::Current)?;
            // A list's last record may be in it a moment before the PCR is extended with it; then
            // no answer fits, and all is asked again.
            let pcr = self.pcr()?;
            let current = self.read(Part::Current)?;
            let before_pcr = parse(&staged)?.len() + parse(&before)?.len();
            let bytes = [staged, current].concat();
            let list = parse(&bytes)?;
            let running = self.store.running(self.bank).unwrap_or(Digest::zero(self.bank));
            let answer = align(&Question {
                tail: &self.store.tail(list.len())?,
                running: Replay::resume(running, Extend::Own),
                list: &list,
                before_pcr,
                pcr,
            });
            let stored = match answer {
                Alignment::Continues { stored, .. } => stored,
                Alignment::Parted { .. } | Alignment::Ambiguous if attempt < TRIES => {
                    std::thread::sleep(WAIT);
                    continue;
                }
                // The drain that follows will say so.
                Alignment::Parted { stored } => stored,
                Alignment::Ambiguous => return Err(DrainError::NoPlace),
            };
            tracing::info!(stored, in_list = list.len(), "found the list's place in the store");
            self.stored_in_list = Some(stored as u64);
            return Ok(());
        }
        Ok(())
    }

    /// The part of the list that nothing is added to any more.
    fn fixed_part(&mut self) -> Result<Vec<u8>, DrainError> {
        if self.flavour == Flavour::DeleteN && !self.is_staged()? {
            return Ok(Vec::new());
        }
        let mut hold = self.source.hold(Part::Staged)?;
        match hold.stage() {
            Ok(()) | Err(SourceError::Pending) => Ok(read_all(&mut *hold)?),
            Err(SourceError::Nothing(_)) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    fn is_staged(&mut self) -> Result<bool, DrainError> {
        match self.read(Part::Staged) {
            Ok(bytes) => Ok(!bytes.is_empty()),
            // A kernel that cannot stage has nothing staged.
            Err(SourceError::Missing { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn read(&mut self, part: Part) -> Result<Vec<u8>, SourceError> {
        let mut bytes = Vec::new();
        self.source.read(part, &mut |chunk| bytes.extend_from_slice(chunk))?;
        Ok(bytes)
    }

    fn pcr(&mut self) -> Result<Option<Digest>, DrainError> {
        match &mut self.read_pcr {
            None => Ok(None),
            Some(read) => {
                let pcr = read().map_err(DrainError::Tpm)?;
                self.tpm = Some(pcr);
                Ok(Some(pcr))
            }
        }
    }

    /// How many of the stored records lead to `pcr`, if it is all or almost all of them.
    fn agreed(&self, pcr: Option<Digest>) -> Option<u64> {
        let pcr = pcr?;
        if self.store.running(self.bank) == Some(pcr) {
            return Some(self.store.len());
        }
        self.recent.iter().rev().find(|(_, value)| *value == pcr).map(|(at, _)| *at)
    }

    /// Decides whether TPM and store agree, from the PCR that was read before the drain.
    /// `begin` is how many records were stored before it.
    fn judge(
        &mut self,
        pcr: Option<Digest>,
        agreed: Option<u64>,
        begin: u64,
    ) -> Result<(), DrainError> {
        if pcr.is_none() || matches!(self.verdict, Verdict::Parted { .. }) {
            // Once something is missing, no later PCR of this epoch can be reached.
            return Ok(());
        }
        let Some(records) = agreed else {
            // A list loses records only at its beginning: what is missing is missing where this
            // drain's records follow what was stored, or where earlier ones did since the TPM
            // last agreed.
            let from = match self.verdict {
                Verdict::InStep { records } => records,
                _ => begin,
            };
            return self.part(from.checked_sub(1), begin);
        };
        // When nothing is measured at the moment, this reaches the last record.
        let now = self.pcr()?;
        let records = self.agreed(now).unwrap_or(records).max(records);
        self.verdict = Verdict::InStep { records };
        Ok(())
    }

    /// Notes, for good, that TPM and store parted.
    fn part(&mut self, after: Option<u64>, before: u64) -> Result<(), DrainError> {
        self.verdict = Verdict::Parted { after, before };
        let text = "the TPM's PCR 10 is not reached: records are missing here, or it was extended \
                    without a record";
        let after_text = after.map_or("the beginning".to_owned(), |index| format!("index {index}"));
        tracing::error!("between {after_text} and index {before}: {text}");
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.store.note(&Note { index: before, after, time, text: text.to_owned() })?;
        Ok(())
    }
}

fn read_all(hold: &mut dyn Hold) -> Result<Vec<u8>, SourceError> {
    let mut bytes = Vec::new();
    hold.read(&mut |chunk| bytes.extend_from_slice(chunk))?;
    Ok(bytes)
}

/// Parses a whole list. The store checks the digests.
fn parse(bytes: &[u8]) -> Result<Vec<Record<'_>>, DrainError> {
    Records::new(bytes, Format::native(Bank::Sha1))
        .collect::<Result<_, _>>()
        .map_err(DrainError::Unreadable)
}

/// Appends `records` and makes them durable, comparing with `pcr` on the way.
fn keep(
    store: &mut Store,
    records: &[Record<'_>],
    bank: Bank,
    pcr: Option<Digest>,
    agreed: &mut Option<u64>,
    recent: &mut VecDeque<(u64, Digest)>,
) -> Result<(), StoreError> {
    /// More records than can be between list and PCR at one moment.
    const RECENT: usize = 64;
    for record in records {
        store.append(record)?;
        if let Some(value) = store.running(bank) {
            if pcr == Some(value) {
                *agreed = Some(store.len());
            }
            if recent.len() == RECENT {
                recent.pop_front();
            }
            recent.push_back((store.len(), value));
        }
    }
    store.commit()
}

fn round(records: &[Record<'_>], bytes: &[u8], skipped: u64, since: Instant) -> Round {
    let deleted = records.len() as u64;
    Round {
        stored: deleted - skipped,
        already_stored: skipped,
        deleted,
        deleted_bytes: bytes.len() as u64,
        held: since.elapsed(),
    }
}
