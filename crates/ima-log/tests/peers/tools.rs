//! Other people's tools that replay a list, and records for them.
#![allow(dead_code, reason = "the test and the benchmark use different parts")]

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use ima_log::{Bank, Digest, Endian};

/// What evmctl says.
pub struct Evmctl {
    /// Whether it exited with 0: all banks match, in a prefix of the list.
    pub fine: bool,
    /// What it printed.
    pub said: String,
    /// How long it ran.
    pub time: Duration,
}

/// What keylime's verifier says.
#[derive(Debug)]
pub struct Keylime {
    /// The value the whole list leads to.
    pub value: String,
    /// How many records lead to the value given.
    pub records: u64,
    /// The kinds of failure.
    pub failures: Vec<String>,
    /// How long it took, without the interpreter's start.
    pub time: Duration,
}

/// Lets evmctl (ima-evm-utils) match a binary list in the sha1 form with PCR values.
/// `None`, and a loud word, if it is not installed.
pub fn evmctl(list: &[u8], pcrs: &[(u32, Digest)], more: &[&str]) -> Option<Evmctl> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list");
    fs::write(&path, list).unwrap();
    let mut command = Command::new("evmctl");
    command.arg("ima_measurement").args(more);
    for bank in Bank::ALL {
        let given: Vec<_> = pcrs.iter().filter(|(_, value)| value.bank() == bank).collect();
        if given.is_empty() {
            continue;
        }
        // evmctl wants all 24.
        let line = |index| {
            let value = given.iter().find(|(given, _)| *given == index);
            format!("PCR-{index:02}: {}\n", value.map_or(Digest::zero(bank), |(_, value)| *value))
        };
        let file = dir.path().join(bank.name());
        fs::write(&file, (0..24).map(line).collect::<String>()).unwrap();
        command.arg("--pcrs").arg(format!("{bank},{}", file.display()));
    }
    let start = Instant::now();
    let Ok(output) = command.arg(&path).output() else {
        eprintln!("SKIPPED: no evmctl here; install ima-evm-utils");
        return None;
    };
    let said = [output.stdout, output.stderr].map(|out| String::from_utf8_lossy(&out).into_owned());
    Some(Evmctl { fine: output.status.success(), said: said.concat(), time: start.elapsed() })
}

/// Lets keylime's verifier match each ASCII list in the sha1 form with a value of PCR 10. `None`,
/// and a loud word, if it is not installed.
pub fn keylime(lists: &[(Vec<u8>, Digest)]) -> Option<Vec<Keylime>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("../../target/peers/bin/python");
    if !python.exists() {
        eprintln!("SKIPPED: no keylime here; run scripts/install-keylime");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(python);
    command.arg(root.join("tests/peers/replay_with_keylime.py"));
    for (i, (list, pcr)) in lists.iter().enumerate() {
        let path = dir.path().join(i.to_string());
        fs::write(&path, list).unwrap();
        command.arg(path).arg(pcr.bank().name()).arg(pcr.to_string());
    }
    let output = command.output().unwrap();
    let said: Vec<Keylime> = String::from_utf8_lossy(&output.stdout).lines().map(answer).collect();
    assert!(said.len() == lists.len(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(said)
}

fn answer(line: &str) -> Keylime {
    let said: serde_json::Value = serde_json::from_str(line).unwrap();
    let failures = said["failures"].as_array().unwrap();
    Keylime {
        value: said["value"].as_str().unwrap().to_owned(),
        records: said["records"].as_u64().unwrap(),
        failures: failures.iter().map(|id| id.as_str().unwrap().to_owned()).collect(),
        time: Duration::from_secs_f64(said["seconds"].as_f64().unwrap()),
    }
}

/// The `i`th record of a list that is the same on every machine: names as a distribution has them,
/// every file digest its own.
pub fn ima_ng(i: u64) -> Vec<u8> {
    let file = Bank::Sha256.hash(&[&i.to_le_bytes()]);
    let name = format!("/usr/lib/x86_64-linux-gnu/package-{}/file-{i}.so", i % 100);
    fields(10, "ima-ng", &[&d_ng(&file), &n_ng(name.as_bytes())], false)
}

/// A record of a template whose fields follow their lengths.
pub fn fields(pcr: u32, template: &str, fields: &[&[u8]], violation: bool) -> Vec<u8> {
    let mut data = Vec::new();
    for field in fields {
        data.extend(len(field));
        data.extend_from_slice(field);
    }
    let digest = if violation { Digest::zero(Bank::Sha1) } else { Bank::Sha1.hash(&[&data]) };
    let pcr = Endian::native().bytes(pcr);
    let name = template.as_bytes();
    [&pcr, digest.as_bytes(), &len(name), name, &len(&data), &data].concat()
}

/// A record of template `ima`, whose name must have at most 255 bytes.
pub fn ima(pcr: u32, file: &Digest, name: &[u8]) -> Vec<u8> {
    let padding = vec![0; 256 - name.len()];
    let digest = Bank::Sha1.hash(&[file.as_bytes(), name, &padding]);
    let pcr = Endian::native().bytes(pcr);
    [&pcr, digest.as_bytes(), &len(b"ima"), b"ima", file.as_bytes(), &len(name), name].concat()
}

/// Field `d-ng`.
pub fn d_ng(digest: &Digest) -> Vec<u8> {
    [digest.bank().name().as_bytes(), b":\0", digest.as_bytes()].concat()
}

/// Field `n-ng`.
pub fn n_ng(name: &[u8]) -> Vec<u8> {
    [name, b"\0"].concat()
}

fn len(bytes: &[u8]) -> [u8; 4] {
    Endian::native().bytes(bytes.len() as u32)
}
