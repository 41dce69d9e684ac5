//! File signatures of the corpus, and signatures that OpenSSL makes here.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use ima_log::{
    Bank, DigestType, EvmSig, Format, KeyError, KeyId, RecordBuf, RecordBuilder, Records,
    SignatureError, SignatureKind, SigningKey, VerifyError,
};

fn corpus(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus").join(path);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn key(path: &str) -> SigningKey {
    SigningKey::parse(&corpus(path)).unwrap()
}

/// How many records each of the keys signed, and how many signatures are refused.
fn count(keys: &[SigningKey]) -> (Vec<usize>, usize) {
    let list = corpus("signed/binary");
    let (mut signed, mut refused) = (vec![0; keys.len()], 0);
    for record in Records::new(&list, Format::native(Bank::Sha1)) {
        match record.unwrap().verify_signature(keys) {
            Ok(key) => signed[keys.iter().position(|other| other.id() == key.id()).unwrap()] += 1,
            Err(VerifyError::Unsigned) => {}
            Err(VerifyError::UnknownKey(_)) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    (signed, refused)
}

#[test]
fn every_signature_of_the_corpus_is_by_its_key() {
    let (rsa, ec) = (key("signed/ima_pub.pem"), key("signed/ima_ec_pub.pem"));
    let certificate = key("signed/ima_x509.der");
    assert_eq!(rsa.id().to_string(), "839b9866");
    assert_eq!(certificate.id(), rsa.id());
    assert_eq!(count(&[rsa.clone(), ec.clone()]), (vec![30, 10], 0));
    assert_eq!(count(&[certificate]), (vec![30], 10));
    assert_eq!(count(&[ec]), (vec![10], 30));
    assert_eq!(count(&[]), (vec![], 40));
}

#[test]
fn a_bit_changed_in_digest_or_signature_is_noticed() {
    let keys = [key("signed/ima_pub.pem"), key("signed/ima_ec_pub.pem")];
    let list = corpus("signed/binary");
    let records = Records::new(&list, Format::native(Bank::Sha1)).map(|record| record.unwrap());
    let mut signed: Vec<_> = records.filter(|record| record.signature().is_some()).collect();
    signed.dedup_by_key(|record| record.signature().unwrap().unwrap().bytes.len());
    assert!(signed.len() >= 2);
    for record in signed {
        let fields: Vec<_> = record.fields().map(|field| field.bytes).collect();
        let rebuilt = |digest: &[u8], signature: &[u8]| {
            let fields = [digest, fields[1], signature];
            let record = RecordBuilder::new(10).record("ima-sig", &fields).unwrap();
            record.record().verify_signature(&keys).map(SigningKey::id)
        };
        assert!(rebuilt(fields[0], fields[2]).is_ok());
        // ECDSA signs as many bits of the digest as the curve has: 256 of these SHA-512 ones.
        for at in 8..8 + 32 {
            let mut digest = fields[0].to_vec();
            digest[at] ^= 1;
            assert!(matches!(rebuilt(&digest, fields[2]), Err(VerifyError::Wrong(_))));
        }
        for at in 0..fields[2].len() {
            let mut signature = fields[2].to_vec();
            signature[at] ^= 1;
            assert!(rebuilt(fields[0], &signature).is_err(), "byte {at}");
        }
    }
}

#[test]
fn what_is_no_key_is_told() {
    let pem = corpus("signed/ima_pub.pem");
    assert!(matches!(SigningKey::parse(b""), Err(KeyError::Key(_))));
    assert!(matches!(SigningKey::parse(&pem[..pem.len() / 2]), Err(KeyError::Pem(_))));
    let der = corpus("signed/ima_x509.der");
    for len in 0..der.len() {
        assert!(SigningKey::parse(&der[..len]).is_err(), "{len}");
    }
}

#[test]
fn what_cannot_be_verified_is_told_why() {
    let keys = [key("signed/ima_pub.pem")];
    let verify = |record: RecordBuf| record.record().verify_signature(&keys).map(SigningKey::id);
    let builder = RecordBuilder::new(10);
    let digest = Bank::Sha256.hash(&[]);
    let header = |kind: u8, version: u8, hash: u8| {
        [kind, version, hash, 0x83, 0x9b, 0x98, 0x66, 0, 1, 7].to_vec()
    };
    let sig = |signature: Vec<u8>| verify(builder.ima_sig(&digest, b"f", &signature).unwrap());
    assert_eq!(sig(vec![]), Err(VerifyError::Unsigned));
    assert_eq!(
        sig(vec![3; 12]),
        Err(VerifyError::Signature(SignatureError::Length { claimed: 0x0303, found: 3 }))
    );
    assert_eq!(sig(header(5, 2, 4)), Err(VerifyError::Evm));
    assert_eq!(sig(header(6, 2, 4)), Err(VerifyError::VerityVersion));
    assert_eq!(sig(header(3, 2, 77)), Err(VerifyError::Hash(77)));
    assert_eq!(sig(header(3, 2, 4)), Err(VerifyError::Wrong(keys[0].id())));
    for (kind, version, hash) in [(3, 2, 6), (6, 3, 4)] {
        assert!(matches!(sig(header(kind, version, hash)), Err(VerifyError::OtherDigest { .. })));
    }
    let evm = EvmSig { signature: &header(5, 2, 4), ..EvmSig::default() };
    assert_eq!(verify(builder.evm_sig(&digest, b"f", &evm).unwrap()), Err(VerifyError::Evm));
}

/// Runs `openssl` in `dir`.
fn openssl(dir: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn every_version_hash_and_type_of_key_that_openssl_signs_with() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (name, generate) in [
        ("rsa", "RSA -pkeyopt rsa_keygen_bits:2048"),
        ("p256", "EC -pkeyopt ec_paramgen_curve:P-256"),
        ("p384", "EC -pkeyopt ec_paramgen_curve:P-384"),
    ] {
        openssl(dir, &format!("genpkey -out {name} -algorithm {generate}"));
        openssl(dir, &format!("pkey -in {name} -pubout -out {name}.pub"));
        openssl(
            dir,
            &format!(
                "req -new -x509 -key {name} -subj /CN=test -out {name}.pem \
                      -addext subjectKeyIdentifier=0102030405060708"
            ),
        );
        let key = SigningKey::parse(&fs::read(dir.join(format!("{name}.pub"))).unwrap()).unwrap();
        let pem = fs::read(dir.join(format!("{name}.pem"))).unwrap();
        let certificate = SigningKey::parse(&pem).unwrap();
        assert_eq!(certificate.id(), KeyId([5, 6, 7, 8]));
        assert!(certificate.has_id(key.id()));

        for (bank, number) in
            [(Bank::Sha1, 2), (Bank::Sha256, 4), (Bank::Sha384, 5), (Bank::Sha512, 6)]
        {
            let file = bank.hash(&[b"content"]);
            for (kind, version) in
                [(SignatureKind::Ima, 2), (SignatureKind::Ima, 3), (SignatureKind::Verity, 3)]
            {
                let signed = match version {
                    2 => file,
                    _ => bank.hash(&[&[kind.byte(), number], file.as_bytes()]),
                };
                fs::write(dir.join("digest"), signed.as_bytes()).unwrap();
                openssl(
                    dir,
                    &format!(
                        "pkeyutl -sign -inkey {name} -in digest -out sig \
                              -pkeyopt digest:{bank}"
                    ),
                );
                let signature = fs::read(dir.join("sig")).unwrap();
                let len = (signature.len() as u16).to_be_bytes();
                let attribute = |id: KeyId| {
                    let head = [kind.byte(), version, number];
                    [&head[..], &id.0, &len, &signature].concat()
                };
                let digest_type = match kind {
                    SignatureKind::Verity => DigestType::Verity,
                    _ => DigestType::Ima,
                };
                let verify = |id: KeyId, file: &ima_log::Digest, keys: &[SigningKey]| {
                    RecordBuilder::new(10)
                        .ima_sigv2(digest_type, file, b"/f", &attribute(id))
                        .unwrap()
                        .record()
                        .verify_signature(keys)
                        .map(SigningKey::id)
                };
                let what = format!("{name} {bank} {kind:?} version {version}");
                let keys = [certificate.clone(), key.clone()];
                assert_eq!(verify(key.id(), &file, &keys[1..]), Ok(key.id()), "{what}");
                assert_eq!(verify(key.id(), &file, &keys), Ok(certificate.id()), "{what}");
                let by_certificate = verify(certificate.id(), &file, &keys);
                assert_eq!(by_certificate, Ok(certificate.id()), "{what}");
                let other = bank.hash(&[b"other"]);
                assert!(matches!(verify(key.id(), &other, &keys), Err(VerifyError::Wrong(_))));
                assert_eq!(
                    verify(certificate.id(), &file, &keys[1..]),
                    Err(VerifyError::UnknownKey(certificate.id()))
                );
            }
        }
    }
}
