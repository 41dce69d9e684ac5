//! What verifying costs beside the bare hash calls it cannot do without.
//! `cargo bench -p imastage-verifier`
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    fs,
    hint::black_box,
    io::Read,
    path::Path,
    time::{Duration, Instant},
};

use ima_log::{Bank, Digest, Format, Record, Records};
use imastage_verifier::{Appraiser, PcrValues, PublicKey, Requirements, UnverifiedQuote, Verdict};

const NONCE: [u8; 8] = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];

fn best(mut run: impl FnMut()) -> Duration {
    (0..15)
        .map(|_| {
            let since = Instant::now();
            run();
            since.elapsed()
        })
        .min()
        .unwrap_or_default()
}

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus/big-20k");
    let read = |name: &str| fs::read(folder.join(name)).unwrap();
    let mut list = Vec::new();
    flate2::read::GzDecoder::new(&read("binary.gz")[..]).read_to_end(&mut list).unwrap();
    let records: Vec<Record<'_>> =
        Records::new(&list, Format::native(Bank::Sha1)).map(Result::unwrap).collect();
    let key = PublicKey::from_pem(&String::from_utf8(read("akecc.pub.pem")).unwrap()).unwrap();
    let (message, signature) = (read("quote_ecc.msg"), read("quote_ecc.sig"));

    let hashes = best(|| {
        let mut pcr = Digest::zero(Bank::Sha256);
        for record in &records {
            black_box(Bank::Sha1.hash(&[record.template_data()]));
            let digest = Bank::Sha256.hash(&[record.template_data()]);
            pcr = Bank::Sha256.hash(&[pcr.as_bytes(), digest.as_bytes()]);
        }
        black_box(pcr);
    });
    let whole = best(|| {
        let quote = UnverifiedQuote { message: &message, signature: &signature };
        let quote = quote.verify(&key, &NONCE).unwrap();
        let mut appraiser =
            Appraiser::new(quote, PcrValues::default(), None, Requirements::default()).unwrap();
        for record in Records::new(&list, Format::native(Bank::Sha1)) {
            appraiser.push(&record.unwrap());
        }
        assert_eq!(appraiser.finish().verdict, Verdict::Pass);
    });
    let per_second = |time: Duration| records.len() as f64 / time.as_secs_f64();
    println!("{} records, sha256, P-256 quote", records.len());
    println!(
        "bare hash calls (sha1 and sha256 digest, extend) {:>12.0} records/s",
        per_second(hashes)
    );
    println!(
        "parse, check, replay and verify                  {:>12.0} records/s",
        per_second(whole)
    );
    println!(
        "ratio                                            {:>12.2}",
        hashes.as_secs_f64() / whole.as_secs_f64()
    );
}
