//! Attestation of a guest to the host: credential activation, quotes, tokens.

use ima_log::{Bank, Format, Records};
use imastage_tpm::{Credential, PublicArea};
use imastage_verifier::{
    Appraisal, Appraiser, PcrValues, PublicKey, Requirements, Token, UnverifiedQuote, Verdict,
};

use crate::{
    error::{LabError, must},
    kernel::Kernel,
    lab::Lab,
    machine::{Machine, Plan},
    scenario::{report::Report, service::Service},
    wire::{Answer, Ask, Files},
};

const STATE: &str = "/run/state";
const ROUNDS: usize = 4;

/// A guest attests to the host, which knows only its endorsement key.
pub fn attest(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let mut machine = lab.boot(kernel, &Plan::default())?;
    let key = enrolled(&mut machine)?;
    let service = Service::start(&mut machine, STATE, &[])?;
    machine.keep_measuring(Files { dir: "/a".to_owned(), first: 0, count: 100_000, size: 50 })?;
    let mut token: Option<Token> = None;
    let mut steps = Vec::new();
    for round in 0..ROUNDS {
        // Each round has a new record, even if the background thread is slow.
        machine.measure(Files { dir: format!("/b{round}"), first: 0, count: 1, size: 50 })?;
        let nonce = fresh()?;
        let from = token.as_ref().map_or(0, Token::next);
        let evidence = Evidence::from_guest(&mut machine, &nonce, from)?;
        let appraisal = evidence.appraise(&key, &nonce, token.as_ref())?;
        must(appraisal.verdict == Verdict::Pass, || {
            format!("round {round}: {}", appraisal.reason.map_or(String::new(), |r| r.to_string()))
        })?;
        steps.push(format!("{}+{}", appraisal.records, appraisal.excess));
        must(appraisal.records > from, || format!("round {round} verified no new record"))?;

        evidence.refuted_when_altered(&key, &nonce, token.as_ref())?;
        let other = evidence.quote().verify(&key, &fresh()?);
        must(other.is_err(), || "a quote over another nonce was accepted".to_owned())?;
        token = appraisal.token;
    }
    report.saw("records verified + later ones, by round", steps.join(", "));
    let measured = machine.stop_measuring()?;
    report.saw("measured in the background", measured.count);
    service.stop(&mut machine)?;
    machine.power_off()
}

/// Enrols the guest: activates a credential, which proves that the attestation key is in the TPM of
/// the endorsement key. Returns the attestation key.
fn enrolled(machine: &mut Machine) -> Result<PublicKey, LabError> {
    let (answer, _) = machine.ask(&Ask::Identify, &[])?;
    let Answer::Identity { endorsement, attestation } = answer else {
        return Err(LabError::Refuted(format!("expected the TPM's keys, got {answer:?}")));
    };
    let bad = |error: &dyn std::fmt::Display| LabError::Refuted(error.to_string());
    // In production, from the manufacturer's certificate or an inventory.
    let endorsement = PublicArea::from_bytes(&endorsement).map_err(|error| bad(&error))?;
    let attestation = PublicArea::from_bytes(&attestation).map_err(|error| bad(&error))?;
    let secret = fresh()?;
    let credential =
        Credential::make(&endorsement, &attestation, &secret).map_err(|error| bad(&error))?;
    let Credential { blob, seed } = credential;
    let (_, activated) = machine.ask(&Ask::Activate { blob, seed }, &[])?;
    must(activated == secret, || "credential activation returned another secret".to_owned())?;
    let pem = attestation.attestation_pem().map_err(|error| bad(&error))?;
    PublicKey::from_pem(&pem).map_err(|error| bad(&error))
}

struct Evidence {
    message: Vec<u8>,
    signature: Vec<u8>,
    list: Vec<u8>,
}

impl Evidence {
    fn from_guest(machine: &mut Machine, nonce: &[u8], from: u64) -> Result<Evidence, LabError> {
        const OUT: &str = "/run/evidence";
        let (nonce, from) = (hex::encode(nonce), from.to_string());
        let mut args = vec!["attest", "--state", STATE, "--nonce", &nonce, "--from", &from];
        args.extend(["--bank", "sha256", "--bank", "sha1", "--bank", "sha384", "--out", OUT]);
        let (code, said) = machine.imastage(&args)?;
        must(code == 0, || format!("attest: {said}"))?;
        Ok(Evidence {
            message: machine.read(&format!("{OUT}/quote.msg"))?,
            signature: machine.read(&format!("{OUT}/quote.sig"))?,
            list: machine.read(&format!("{OUT}/list"))?,
        })
    }

    fn quote(&self) -> UnverifiedQuote<'_> {
        UnverifiedQuote { message: &self.message, signature: &self.signature }
    }

    fn appraise(
        &self,
        key: &PublicKey,
        nonce: &[u8],
        token: Option<&Token>,
    ) -> Result<Appraisal, LabError> {
        let bad = |error: &dyn std::fmt::Display| LabError::Refuted(error.to_string());
        let quote = self.quote().verify(key, nonce).map_err(|error| bad(&error))?;
        let requirements = Requirements::default();
        let appraiser = Appraiser::new(quote, PcrValues::default(), token, requirements);
        let mut appraiser = appraiser.map_err(|error| bad(&error))?;
        for record in Records::new(&self.list, Format::native(Bank::Sha1)) {
            appraiser.push(&record.map_err(|error| bad(&error))?);
        }
        Ok(appraiser.finish())
    }

    /// Checks that the evidence is refuted after a bit flip in the first record's template data.
    fn refuted_when_altered(
        &self,
        key: &PublicKey,
        nonce: &[u8],
        token: Option<&Token>,
    ) -> Result<(), LabError> {
        let first = Records::new(&self.list, Format::native(Bank::Sha1)).next();
        let Some(Ok(first)) = first else {
            return Err(LabError::Refuted("the list has no valid first record".to_owned()));
        };
        let mut list = self.list.clone();
        if let Some(byte) = list.get_mut(first.as_bytes().len() - 1) {
            *byte ^= 1;
        }
        let altered =
            Evidence { message: self.message.clone(), signature: self.signature.clone(), list };
        // A parse error is a refutation, too.
        let fails = altered
            .appraise(key, nonce, token)
            .is_ok_and(|appraisal| appraisal.verdict == Verdict::Pass);
        must(!fails, || "an altered record was accepted".to_owned())
    }
}

fn fresh() -> Result<Vec<u8>, LabError> {
    let mut nonce = vec![0; 20];
    getrandom::fill(&mut nonce).map_err(|error| LabError::Refuted(error.to_string()))?;
    Ok(nonce)
}
