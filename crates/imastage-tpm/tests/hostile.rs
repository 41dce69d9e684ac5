//! Whatever a TPM answers is an error or an answer, never a crash, and never without end.
#![allow(clippy::unwrap_used)]

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    thread,
};

use ima_log::Bank;
use imastage_tpm::{Endpoint, KeyKind, PcrSelection, SharedTpm, Swtpm, Tpm};
use proptest::prelude::*;
use tempfile::tempdir;

const SELECTION: [PcrSelection; 2] = [
    PcrSelection { bank: Bank::Sha256, pcrs: 0xfff },
    PcrSelection { bank: Bank::Sha1, pcrs: 1 << 10 },
];

/// Everything there is to ask, until the connection is broken.
fn use_it(mut tpm: Tpm) {
    let _ = tpm.banks();
    let _ = tpm.clock();
    let _ = tpm.pcr_extend(10, &[Bank::Sha256.hash(&[])]);
    let _ = tpm.pcr_values(&SELECTION);
    if let Ok(key) = tpm.attestation_key(KeyKind::EccP256) {
        let _ = tpm.quote(&key, b"nonce", &SELECTION);
        let _ = tpm.flush(key);
    }
}

/// A TPM whose side of the connection is `answer`, called for each command until it says `false`.
fn with_tpm(using: fn(Tpm), mut answer: impl FnMut(&[u8], &mut UnixStream) -> bool) {
    let dir = tempdir().unwrap();
    let path: PathBuf = dir.path().join("sock");
    let listener = UnixListener::bind(&path).unwrap();
    let asking = thread::spawn(move || using(Tpm::connect(&Endpoint::Unix(path)).unwrap()));
    let mut stream = listener.accept().unwrap().0;
    let mut command = [0; 4096];
    loop {
        match stream.read(&mut command) {
            Ok(len @ 1..) if answer(&command[..len], &mut stream) => {}
            _ => break,
        }
    }
    drop(stream);
    asking.join().unwrap();
}

fn framed(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
    let size = 10 + body.len() as u32;
    [&tag.to_be_bytes()[..], &size.to_be_bytes(), &code.to_be_bytes(), body].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_answer(
        tag in prop_oneof![Just(0x8001u16), Just(0x8002), any::<u16>()],
        code in prop_oneof![4 => Just(0u32), 1 => any::<u32>()],
        body in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>()], 0..300),
    ) {
        let mut left = 40;
        with_tpm(use_it, |_, stream| {
            left -= 1;
            left > 0 && stream.write_all(&framed(tag, code, &body)).is_ok()
        });
    }
}

/// It never had enough of them.
#[test]
fn a_pcr_that_was_not_asked_for() {
    let counter_and_selection = [0, 0, 0, 1, 0, 0, 0, 1, 0, 0x0b, 3, 0x20, 0, 0];
    let values = [&[0, 0, 0, 1, 0, 32][..], &[0xaa; 32]].concat();
    let answer = framed(0x8001, 0, &[&counter_and_selection[..], &values].concat());
    let ask = |mut tpm: Tpm| {
        let error = tpm.pcr_read(Bank::Sha256, 10).unwrap_err().to_string();
        assert!(error.contains("TPM2_PCR_Read") && error.contains("not asked for"), "{error}");
        assert!(tpm.pcr_read(Bank::Sha256, 5).unwrap().as_bytes() == [0xaa; 32]);
    };
    with_tpm(ask, |_, stream| stream.write_all(&answer).is_ok());
}

/// Answers of a real TPM in which one byte is another.
#[test]
fn any_byte_of_a_real_answer() {
    let dir = tempdir().unwrap();
    let (_swtpm, tpm) = Swtpm::start(&dir.path().join("state")).unwrap();
    let path = dir.path().join("tpm.sock");
    let serving = SharedTpm::new(tpm).serve(UnixListener::bind(&path).unwrap()).unwrap();
    let connect = || UnixStream::connect(&path).unwrap();

    // How many answers there are, and how long each is.
    let mut lengths = Vec::new();
    let mut real = connect();
    with_tpm(use_it, |command, stream| {
        let response = relay(&mut real, command);
        lengths.push(response.len());
        stream.write_all(&response).is_ok()
    });
    assert!(lengths.len() >= 8 && lengths.iter().all(|len| *len >= 10), "{lengths:?}");

    let places =
        lengths.iter().enumerate().flat_map(|(which, len)| (0..*len).map(move |at| (which, at)));
    for (n, (which, at)) in places.enumerate() {
        let mut real = connect();
        let mut answered = 0;
        with_tpm(use_it, |command, stream| {
            let mut response = relay(&mut real, command);
            if answered == which {
                response[at] ^= [0x01, 0x80, 0xff, 0x04][n % 4];
            }
            answered += 1;
            // With another size field there may be bytes to wait for that never come.
            stream.write_all(&response).is_ok() && (answered <= which || !(2..6).contains(&at))
        });
        // What was loaded is flushed before the connection is closed.
        real.shutdown(Shutdown::Write).unwrap();
        assert_eq!(real.read(&mut [0]).unwrap(), 0);
    }
    serving.stop();
}

fn relay(real: &mut UnixStream, command: &[u8]) -> Vec<u8> {
    real.write_all(command).unwrap();
    let mut response = vec![0; 4096];
    let len = real.read(&mut response).unwrap();
    response.truncate(len);
    response
}
