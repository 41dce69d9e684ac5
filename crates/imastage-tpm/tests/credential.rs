//! Credentials made here and read by a real TPM: swtpm.
#![allow(clippy::unwrap_used, clippy::panic)]

use imastage_tpm::{Credential, CredentialError, KeyKind, PublicArea, Swtpm, Tpm, TpmError};
use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

fn start() -> (TempDir, Swtpm, Tpm) {
    let dir = tempdir().unwrap();
    let (swtpm, tpm) = Swtpm::start(&dir.path().join("state")).unwrap();
    (dir, swtpm, tpm)
}

#[test]
fn only_the_tpm_with_both_keys_reads_the_secret() {
    let (_dir, _swtpm, mut tpm) = start();
    let (_other_dir, _other_swtpm, mut other) = start();
    for kind in [KeyKind::EccP256, KeyKind::Rsa2048] {
        let endorsement = tpm.endorsement_key(kind).unwrap();
        let attestation = tpm.attestation_key(KeyKind::EccP256).unwrap();
        let theirs = other.attestation_key(KeyKind::EccP256).unwrap();
        // As they come over a wire.
        let area = |area: &PublicArea| PublicArea::from_bytes(&area.to_bytes()).unwrap();
        let ek = area(endorsement.public_area());
        for secret in [&[7; 32][..], b"s"] {
            let ak = area(attestation.public_area());
            assert_eq!(ak.attestation_pem().unwrap(), attestation.public_pem());
            let credential = Credential::make(&ek, &ak, secret).unwrap();
            let read = tpm.activate_credential(&endorsement, &attestation, &credential).unwrap();
            assert_eq!(read, secret, "{kind:?}");
        }
        // A key of another TPM; then a blob and a seed that were altered.
        let ak = area(theirs.public_area());
        let foreign = Credential::make(&ek, &ak, b"secret").unwrap();
        let mut blob = Credential::make(&ek, attestation.public_area(), b"secret").unwrap();
        let mut seed = blob.clone();
        *blob.blob.last_mut().unwrap() ^= 1;
        *seed.seed.last_mut().unwrap() ^= 1;
        for credential in [foreign, blob, seed] {
            let refused = tpm.activate_credential(&endorsement, &attestation, &credential);
            assert!(matches!(refused, Err(TpmError::Refused { .. })), "{refused:?}");
        }
        tpm.flush_endorsement_key(endorsement).unwrap();
        tpm.flush(attestation).unwrap();
        other.flush(theirs).unwrap();
    }
    // Sessions do not pile up, used or not: swtpm has room for three.
    let endorsement = tpm.endorsement_key(KeyKind::EccP256).unwrap();
    let attestation = tpm.attestation_key(KeyKind::EccP256).unwrap();
    let credential =
        Credential::make(endorsement.public_area(), attestation.public_area(), b"x").unwrap();
    for _ in 0..5 {
        tpm.activate_credential(&endorsement, &attestation, &credential).unwrap();
    }
}

#[test]
fn keys_that_are_something_else_are_refused() {
    let (_dir, _swtpm, mut tpm) = start();
    let endorsement = tpm.endorsement_key(KeyKind::EccP256).unwrap();
    let attestation = tpm.attestation_key(KeyKind::EccP256).unwrap();
    let (ek, ak) = (endorsement.public_area(), attestation.public_area());
    let refused = Credential::make(ak, ak, b"x").unwrap_err();
    assert!(matches!(refused, CredentialError::NotEndorsement(_)), "{refused}");
    let refused = Credential::make(ek, ek, b"x").unwrap_err();
    assert!(matches!(refused, CredentialError::NotAttestation(_)), "{refused}");
    // One that signs whatever it is given: the attribute `restricted` (bit 16) is missing.
    let mut bytes = ak.to_bytes();
    bytes[5] &= !1;
    let unrestricted = PublicArea::from_bytes(&bytes).unwrap();
    let refused = Credential::make(ek, &unrestricted, b"x").unwrap_err();
    assert!(matches!(refused, CredentialError::NotAttestation(_)), "{refused}");
    for secret in [&[][..], &[0; 33]] {
        let refused = Credential::make(ek, ak, secret).unwrap_err();
        assert_eq!(refused, CredentialError::Length(secret.len()));
    }
}

proptest! {
    #[test]
    fn no_public_area_panics(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
        rsa in any::<bool>(),
    ) {
        if let [a, b, c, d, ..] = &mut bytes[..] {
            (*a, *b, *c, *d) = (0, if rsa { 1 } else { 0x23 }, 0, 0x0b);
        }
        if let Ok(area) = PublicArea::from_bytes(&bytes) {
            prop_assert_eq!(area.to_bytes(), bytes);
            prop_assert!(Credential::make(&area, &area, b"x").is_err());
        }
    }
}
