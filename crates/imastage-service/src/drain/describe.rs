//! The part of a service's status about the store and the comparison with the TPM.

use ima_log::{Bank, IMA_PCR, PcrTarget};
use imastage_client::wire::{self, BankStatus, PcrStatus, Status, Verdict};

use crate::drain::drainer::Drainer;

/// Updates the part of the status that the drainer knows.
pub(crate) fn describe(status: &mut Status, drainer: &Drainer) {
    let (store, comparison) = (drainer.store(), drainer.comparison());
    status.verdict = match comparison.verdict() {
        // Stored records have to be read before they are reported.
        Verdict::Consistent { .. } | Verdict::Lagging { .. } if comparison.is_resumed() => {
            Verdict::Unchecked
        }
        verdict => verdict.clone(),
    };
    status.epoch = store.epoch().map_or(0, |epoch| epoch.number);
    status.records = store.len();
    status.bytes = store.bytes();
    let replay = comparison.replay();
    let pcr = replay.pcr();
    let kept = Bank::ALL.into_iter().filter_map(|bank| {
        let replayed = store.running(bank)?.to_string();
        Some((bank.to_string(), BankStatus { pcr, replayed, ..BankStatus::default() }))
    });
    let compared = replay.banks().iter().map(|bank| {
        let bank = bank.bank();
        let has = |pcr: u32| {
            let is_it = |target: &&PcrTarget| target.pcr == pcr && target.value.bank() == bank;
            comparison.tpm().iter().find(is_it).map(|target| target.value.to_string())
        };
        let led_to = |pcr| replay.value(bank, pcr).map_or(String::new(), |value| value.to_string());
        let own = pcr.unwrap_or(IMA_PCR);
        let others = replay.named().iter().filter(|pcr| *pcr != own);
        let pcrs = [own].into_iter().chain(others);
        let pcrs = pcrs.map(|pcr| PcrStatus { pcr, replayed: led_to(pcr), tpm: has(pcr) });
        let status = BankStatus {
            pcr,
            replayed: led_to(own),
            tpm: has(own),
            extended_with: replay.extend_kind(bank),
            pcrs: pcrs.collect(),
        };
        (bank.to_string(), status)
    });
    status.banks = kept.chain(compared).collect();
}

pub(crate) fn holder(holder: &imastage_source::Holder) -> wire::Holder {
    let imastage_source::Holder { pid, name, fd, path } = holder.clone();
    wire::Holder { pid, name, fd, path }
}
