//! The corpus as a verifier gets it.
#![allow(dead_code)] // each test program uses its part

use std::{fs, io::Read, path::PathBuf};

use ima_log::{Bank, Format, Record, Records};
use imastage_verifier::{
    Appraisal, Appraiser, PcrValues, PublicKey, QuoteError, Requirements, Token, UnverifiedQuote,
    VerifiedQuote,
};

/// Every folder with quotes.
pub const FOLDERS: [&str; 9] = [
    "debian-6.1",
    "debian-6.12-violations",
    "lab-6.12-awkward",
    "violations",
    "signed",
    "legacy-ima",
    "kexec/1-before",
    "kexec/2-after",
    "big-20k",
];

/// Every quote of a folder, and the file of the key that signed it.
pub const QUOTES: [(&str, &str); 3] =
    [("quote", "ak.pub.pem"), ("quote_ecc", "akecc.pub.pem"), ("quote_multi", "ak.pub.pem")];

pub const NONCE: [u8; 8] = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];

pub fn corpus(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus").join(path)
}

pub fn read(path: &str) -> Vec<u8> {
    let path = corpus(path);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn number(path: &str) -> u64 {
    String::from_utf8(read(path)).unwrap().trim().parse().unwrap()
}

/// The list in the sha1 form.
pub fn list(folder: &str) -> Vec<u8> {
    if folder != "big-20k" {
        return read(&format!("{folder}/binary"));
    }
    let mut list = Vec::new();
    flate2::read::GzDecoder::new(&read("big-20k/binary.gz")[..]).read_to_end(&mut list).unwrap();
    list
}

pub fn records(list: &[u8]) -> Vec<Record<'_>> {
    Records::new(list, Format::native(Bank::Sha1)).map(Result::unwrap).collect()
}

pub fn key(path: &str) -> PublicKey {
    PublicKey::from_pem(&String::from_utf8(read(path)).unwrap()).unwrap()
}

pub fn verify(
    message: &[u8],
    signature: &[u8],
    key: &PublicKey,
) -> Result<VerifiedQuote, QuoteError> {
    UnverifiedQuote { message, signature }.verify(key, &NONCE)
}

/// The quote, verified with the key beside it.
pub fn quote(folder: &str, (name, key_file): (&str, &str)) -> VerifiedQuote {
    let part = |part| read(&format!("{folder}/{name}.{part}"));
    verify(&part("msg"), &part("sig"), &key(&format!("{folder}/{key_file}"))).unwrap()
}

/// The PCR file that tpm2_quote wrote beside the quote.
pub fn quoted_pcrs(folder: &str, (name, _): (&str, &str)) -> PcrValues {
    PcrValues::parse(&read(&format!("{folder}/{name}.pcrs")), None).unwrap()
}

/// The folder's PCR values as text, without those of PCR 10.
pub fn other_pcrs(folder: &str) -> PcrValues {
    let text = String::from_utf8(read(&format!("{folder}/pcrs"))).unwrap();
    let others: Vec<&str> =
        text.lines().filter(|line| line.split_whitespace().nth(1) != Some("10")).collect();
    PcrValues::parse_text(&others.join("\n"), None).unwrap()
}

pub fn appraise(
    quote: VerifiedQuote,
    pcrs: PcrValues,
    token: Option<&Token>,
    records: &[Record<'_>],
) -> Appraisal {
    appraise_requiring(Requirements::default(), quote, pcrs, token, records)
}

pub fn appraise_requiring(
    requirements: Requirements,
    quote: VerifiedQuote,
    pcrs: PcrValues,
    token: Option<&Token>,
    records: &[Record<'_>],
) -> Appraisal {
    let mut appraiser = Appraiser::new(quote, pcrs, token, requirements).unwrap();
    for record in records {
        appraiser.push(record);
    }
    appraiser.finish()
}
