//! Independent clients of the interface: evmctl, keylime.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
};

use ima_log::{Bank, IMA_PCR};
use imastage_sandbox::{TpmChoice, tpm_of};
use imastage_tpm::Tpm;

use crate::mounted::{CURRENT, EBUSY, Mounted, STAGED};

#[test]
fn evmctl_verifies_the_list() {
    if Command::new("evmctl").arg("--version").output().is_err() {
        eprintln!("SKIPPED: evmctl is missing (apt-get install ima-evm-utils)");
        return;
    }
    let Some(mounted) = Mounted::new(TpmChoice::Swtpm) else { return };
    let mut tpm = Tpm::connect(&tpm_of(&mounted.mount()).unwrap()).unwrap();
    let mut agrees = || {
        let mut command = Command::new("evmctl");
        command.args(["ima_measurement", "--pcrs"]);
        let pcrs = mounted.dir.path().join("pcrs");
        let lines: String = (0..24)
            .map(|pcr| format!("PCR-{pcr:02}: {}\n", tpm.pcr_read(Bank::Sha256, pcr).unwrap()))
            .collect();
        fs::write(&pcrs, lines).unwrap();
        command.arg(format!("sha256,{}", pcrs.display())).arg(mounted.file(CURRENT));
        command.output().unwrap().status.success()
    };
    mounted.add(&["a", "b"]);
    assert!(agrees());
    // The deleted record is missing.
    mounted.request(CURRENT, "1\n").unwrap();
    assert!(!agrees());
}

/// keylime with a permanently open list.
struct Keylime {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Keylime {
    /// `None`, with a message, if keylime is not installed.
    fn start(list: &Path) -> Option<Keylime> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join("../../target/peers/bin/python");
        if !python.exists() {
            eprintln!("SKIPPED: keylime is missing; run scripts/install-keylime");
            return None;
        }
        let mut child = Command::new(python)
            .arg(root.join("tests/sandbox/attest_with_keylime.py"))
            .arg(list)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        Some(Keylime { child, answers })
    }

    /// One round: the number of verified records, and the failures.
    fn attest(&mut self, pcr: &str) -> (u64, Vec<String>) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{pcr}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
        let failures = answer["failures"].as_array().unwrap();
        let failures = failures.iter().map(|id| id.as_str().unwrap().to_owned()).collect();
        (answer["records"].as_u64().unwrap(), failures)
    }
}

impl Drop for Keylime {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn keylime_verifies_new_records_and_blocks_staging() {
    let Some(mounted) = Mounted::new(TpmChoice::Swtpm) else { return };
    let list = mounted.file("ascii_runtime_measurements");
    let Some(mut keylime) = Keylime::start(&list) else { return };
    let mut tpm = Tpm::connect(&tpm_of(&mounted.mount()).unwrap()).unwrap();
    let mut pcr = || tpm.pcr_read(Bank::Sha256, IMA_PCR).unwrap().to_string();
    for round in 1..=3u64 {
        mounted.add(&[&format!("a{round}"), &format!("b{round}")]);
        assert_eq!(keylime.attest(&pcr()), (1 + 2 * round, vec![]));
    }
    // An agent that keeps the list open blocks staging.
    assert_eq!(mounted.request(STAGED, "A\n"), Err(EBUSY));
    drop(keylime);
    mounted.request(STAGED, "A\n").unwrap();
    mounted.request(STAGED, "D\n").unwrap();
    // An agent that starts now cannot verify the list.
    mounted.add(&["late"]);
    let Some(mut keylime) = Keylime::start(&list) else { return };
    let (_, failures) = keylime.attest(&pcr());
    assert_eq!(failures, ["ima.pcr_mismatch"]);
}
