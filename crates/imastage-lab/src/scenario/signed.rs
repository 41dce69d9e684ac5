//! Signed files, and the machine's disk, which keeps their signatures.

use std::{fs, path::Path, process::Command};

use ima_log::{Bank, SigningKey, VerifyError};
use p256::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};

use crate::{
    error::{Doing, LabError, must},
    kernel::Kernel,
    lab::Lab,
    machine::{Machine, Plan},
    process::{find, run},
    scenario::{
        replays::{parsed, replay},
        report::Report,
    },
    wire::Ask,
};

const FILES: usize = 5;

/// Files signed on the host with a fresh key; one is altered afterwards.
pub fn signed(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<(), LabError> {
    let dir = tempfile::tempdir().doing("temporary directory")?;
    let disk = dir.path().join("disk");
    make_disk(&disk, 32)?;
    let key = make_key(dir.path())?;
    let mut machine = lab.boot(kernel, &Plan { disk: Some(disk), ..Plan::default() })?;
    // An initramfs has no extended attributes.
    mount_disk(&mut machine, "/disk")?;
    for number in 0..FILES {
        let content = format!("signed content {number}");
        let signature = sign(dir.path(), content.as_bytes())?;
        let path = format!("/disk/signed-{number}");
        machine.write(path.as_bytes(), 0o644, content.as_bytes())?;
        if number == 0 {
            machine.write(path.as_bytes(), 0o644, b"altered")?;
        }
        let name = "security.ima".to_owned();
        machine.done(&Ask::SetAttribute { path: path.clone(), name }, &signature)?;
        machine.read(&path)?;
    }
    let snapshot = machine.snapshot()?;
    replay(&snapshot)?;
    let keys = [key];
    let mut right = 0;
    for record in parsed(snapshot.list(), Bank::Sha1)? {
        let name = record.event_name().unwrap_or_default();
        let Some(name) = name.strip_prefix(b"/disk/signed-") else { continue };
        match (name, record.verify_signature(&keys)) {
            (b"0", Err(VerifyError::Wrong(_))) => {}
            (b"0", other) => {
                return Err(LabError::Refuted(format!(
                    "the altered file: expected a wrong signature, found {other:?}"
                )));
            }
            (_, Ok(_)) => right += 1,
            (_, Err(error)) => return Err(LabError::Refuted(error.to_string())),
        }
    }
    must(right == FILES - 1, || format!("expected {} valid signatures, found {right}", FILES - 1))?;
    report.saw("valid signatures", right);
    machine.power_off()
}

/// Creates an empty ext4 file system on a raw disk of `size` MiB.
pub fn make_disk(path: &Path, size: u32) -> Result<(), LabError> {
    let mkfs = find("mkfs.ext4", "e2fsprogs")?;
    run(Command::new(mkfs).args(["-q", "-F"]).arg(path).arg(format!("{size}M"))).map(drop)
}

/// Mounts the machine's disk.
pub fn mount_disk(machine: &mut Machine, target: &str) -> Result<(), LabError> {
    let (source, kind) = ("/dev/vda".to_owned(), "ext4".to_owned());
    machine.done(&Ask::Mount { source, target: target.to_owned(), kind }, &[])
}

/// Generates a P-256 key: writes the private key to `key.pem`, returns the public key.
fn make_key(dir: &Path) -> Result<SigningKey, LabError> {
    let bad = |error: String| LabError::Refuted(format!("generating the signing key: {error}"));
    let key = loop {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| bad(error.to_string()))?;
        // All but one in 2^32 numbers are valid keys.
        if let Ok(key) = p256::SecretKey::from_slice(&secret) {
            break key;
        }
    };
    let private = key.to_pkcs8_pem(LineEnding::LF).map_err(|error| bad(error.to_string()))?;
    fs::write(dir.join("key.pem"), private.as_bytes()).at(dir)?;
    let public = key.public_key().to_public_key_pem(LineEnding::LF);
    let public = public.map_err(|error| bad(error.to_string()))?;
    SigningKey::parse(public.as_bytes()).map_err(|error| bad(error.to_string()))
}

/// Signs a file with evmctl; returns the value for security.ima.
fn sign(dir: &Path, content: &[u8]) -> Result<Vec<u8>, LabError> {
    let file = dir.join("file");
    fs::write(&file, content).at(&file)?;
    let mut evmctl = Command::new(find("evmctl", "ima-evm-utils")?);
    evmctl.args(["ima_sign", "--sigfile", "--hashalgo", "sha256", "--key"]);
    run(evmctl.arg(dir.join("key.pem")).arg(&file))?;
    let signature = dir.join("file.sig");
    fs::read(&signature).at(&signature)
}
