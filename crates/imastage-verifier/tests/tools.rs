//! With the real parts: tpm2-tools judge the corpus too, and swtpm makes the quotes it lacks.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use common::*;
use ima_log::{Bank, Digest, Extend, Record, RecordBuf};
use imastage_verifier::{
    Appraisal, Appraiser, Moved, PcrValues, PublicKey, Reason, Requirements, Token,
    UnverifiedQuote, ValuesGiven, VerifiedQuote,
};
use tempfile::TempDir;

/// swtpm's banks.
const BANKS: [Bank; 4] = [Bank::Sha1, Bank::Sha256, Bank::Sha384, Bank::Sha512];

/// Whether all `programs` are installed; says so if not.
fn installed(programs: &[&str]) -> bool {
    let missing =
        programs.iter().find(|program| Command::new(program).arg("--version").output().is_err());
    if let Some(program) = missing {
        eprintln!(
            "SKIPPED, nothing was tested: {program} is not installed (make test installs it)"
        );
    }
    missing.is_none()
}

#[test]
fn tpm2_checkquote_judges_alike() {
    if !installed(&["tpm2_checkquote"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let accepted = |message: &Path, folder: &str, (name, key_file): (&str, &str)| {
        Command::new("tpm2_checkquote")
            .args(["-q", &hex::encode(NONCE)])
            .args(["-u".as_ref(), corpus(&format!("{folder}/{key_file}")).as_os_str()])
            .args(["-m".as_ref(), message.as_os_str()])
            .args(["-s".as_ref(), corpus(&format!("{folder}/{name}.sig")).as_os_str()])
            .args(["-f".as_ref(), corpus(&format!("{folder}/{name}.pcrs")).as_os_str()])
            .output()
            .unwrap()
            .status
            .success()
    };
    for (folder, name) in [("legacy-ima", QUOTES[0]), ("signed", QUOTES[1]), ("signed", QUOTES[2])]
    {
        let message = corpus(&format!("{folder}/{}.msg", name.0));
        quote(folder, name);
        assert!(accepted(&message, folder, name), "{folder} {name:?}");

        let mut altered = fs::read(&message).unwrap();
        *altered.last_mut().unwrap() ^= 1;
        let signature = read(&format!("{folder}/{}.sig", name.0));
        verify(&altered, &signature, &key(&format!("{folder}/{}", name.1))).unwrap_err();
        let path = dir.path().join("altered");
        fs::write(&path, altered).unwrap();
        assert!(!accepted(&path, folder, name), "{folder} {name:?}");
    }
}

#[test]
fn rounds_with_every_kind_of_key() {
    if !installed(&["swtpm", "tpm2_quote"]) {
        return;
    }
    // In the owner hierarchy the TPM hides its counters behind a secret of the key's.
    for (hierarchy, algorithm) in [
        ("e", "rsa2048:rsapss-sha256:null"),
        ("o", "rsa2048:rsapss-sha512:null"),
        ("e", "rsa2048:rsassa-sha384:null"),
        ("e", "rsa3072:rsassa-sha512:null"),
        ("o", "ecc256:ecdsa-sha256:null"),
        ("e", "ecc256:ecdsa-sha512:null"),
        ("e", "ecc384:ecdsa-sha384:null"),
        ("e", "ecc384:ecdsa-sha256:null"),
    ] {
        let mut tpm = Tpm::start();
        let key = tpm.create_key(hierarchy, algorithm);
        let list: Vec<RecordBuf> = (0..9u8)
            .map(|i| match i {
                4 => RecordBuf::ima_ng_violation(10, Bank::Sha256, b"/v"),
                _ => RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[&[i]]), &[b'a' + i]),
            })
            .collect();
        let list: Vec<Record<'_>> = list.iter().map(RecordBuf::record).collect();

        // Nothing measured yet, so nothing is proven.
        let (quote, _) = tpm.quote(&key, "sha384:10");
        let none = appraise(quote, PcrValues::default(), None, &list);
        let never = Reason::NeverExtended { pcr: 10, kernel_had_none: false };
        assert_eq!((none.reason, none.token), (Some(never), None), "{algorithm}");
        tpm.extend(&list[..5]);
        let (quote, values) = tpm.quote(&key, "sha384:10");
        let first = appraise(quote, values, None, &list);
        assert_eq!((first.reason, first.records, first.excess), (None, 5, 4), "{algorithm}");

        let selection = "sha1:10+sha256:0,10+sha384:10+sha512:10";
        let (quote, values) = tpm.quote(&key, selection);
        let token = check_banks(quote, values, &list, None);
        tpm.extend(&list[5..7]);
        let (quote, values) = tpm.quote(&key, selection);
        let token = check_banks(quote, values, &list[5..], Some(&token));
        assert_eq!((token.next(), token.rounds(), token.violations()), (7, 2, 1));

        // Shutdown with the state kept, then Startup(CLEAR): a TPM Restart. The PCRs are zero.
        tpm.tool("tpm2_shutdown", &[]);
        tpm.restart();
        let (quote, values) = tpm.quote(&key, selection);
        let restarted = appraise(quote, values, Some(&token), &list[7..]);
        let expected = Reason::NoMatch {
            pcr: 10,
            unknown: vec![],
            replayed: 2,
            from: 7,
            moved: Moved::Yes,
            restarts: 1,
            given: ValuesGiven::Proven,
        };
        assert_eq!(restarted.reason, Some(expected), "{algorithm}");

        // Startup(CLEAR) without that: a TPM Reset.
        tpm.restart();
        let (quote, values) = tpm.quote(&key, selection);
        let reset = appraise(quote, values, Some(&token), &list[7..]);
        assert!(matches!(reset.reason, Some(Reason::Reset { .. })), "{:?}", reset.reason);
    }
}

/// Other TPMs than swtpm salt with as much as fits.
#[test]
fn rsapss_with_any_salt() {
    if !installed(&["openssl"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl").args(args).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    };
    let message = read("signed/quote.msg");
    fs::write(dir.path().join("msg"), &message).unwrap();
    openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "key"]);
    openssl(&["pkey", "-in", "key", "-pubout", "-out", "pem"]);
    let key = fs::read_to_string(dir.path().join("pem")).unwrap();
    let key = PublicKey::from_pem(&key).unwrap();
    for salt in ["max", "digest", "0"] {
        let salt_len = format!("rsa_pss_saltlen:{salt}");
        let pss = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", &salt_len];
        openssl(
            &[&["dgst", "-sha256", "-sign", "key", "-out", "sig"], &pss[..], &["msg"]].concat(),
        );
        let signature = fs::read(dir.path().join("sig")).unwrap();
        // TPM_ALG_RSAPSS, TPM_ALG_SHA256, size, signature.
        let signature = [&[0, 0x16, 0, 0x0b, 1, 0], &signature[..]].concat();
        verify(&message, &signature, &key).unwrap();
    }
}

#[test]
fn a_quote_without_pcr_10_proves_nothing() {
    if !installed(&["swtpm", "tpm2_quote"]) {
        return;
    }
    let tpm = Tpm::start();
    let key = tpm.create_key("e", "ecc256:ecdsa-sha256:null");
    let (quote, values) = tpm.quote(&key, "sha256:0,9,11");
    for values in [values, PcrValues::default()] {
        let record = RecordBuf::ima_ng(10, &Bank::Sha256.hash(&[]), b"/a");
        let mut values = values;
        // PCR 0 is needed whatever else is refused.
        if values.get(Bank::Sha256, 0).is_none() {
            let zero = format!("sha256 0 {}", Digest::zero(Bank::Sha256));
            values = PcrValues::parse_text(&zero, None).unwrap();
        }
        let appraisal = appraise(quote.clone(), values, None, &[record.record()]);
        let quoted = [0, 9, 11].into_iter().collect();
        let expected = Reason::PcrNotQuoted { pcr: 10, quoted, bank: Bank::Sha256 };
        assert_eq!(appraisal.reason, Some(expected));
    }
}

/// Appraises with values that tell PCR 10 and with values that do not, and gives the token.
fn check_banks(
    quote: VerifiedQuote,
    values: PcrValues,
    list: &[Record<'_>],
    token: Option<&Token>,
) -> Token {
    let pcr0 = values.get(Bank::Sha256, 0).unwrap();
    let only = PcrValues::parse_text(&format!("sha256 0 {pcr0}"), None).unwrap();
    let appraisals: Vec<Appraisal> = [values, only]
        .into_iter()
        .map(|values| {
            let requirements = Requirements::default();
            let mut appraiser = Appraiser::new(quote.clone(), values, token, requirements).unwrap();
            list.iter().for_each(|record| appraiser.push(record));
            appraiser.finish()
        })
        .collect();
    assert_eq!(appraisals[0], appraisals[1]);
    assert_eq!(appraisals[0].reason, None);
    let extends: Vec<(Bank, Extend)> =
        appraisals[0].banks.iter().map(|state| (state.bank(), state.extend_kind())).collect();
    let expected =
        [Extend::Own, Extend::Own, Extend::Sha1Padded, Extend::Own].into_iter().enumerate();
    assert_eq!(extends, expected.map(|(n, extend)| (BANKS[n], extend)).collect::<Vec<_>>());
    appraisals[0].token.clone().unwrap()
}

/// A swtpm with the banks sha1, sha256, sha384 and sha512, of which records extend sha384 with
/// zero-padded SHA-1.
struct Tpm {
    dir: TempDir,
    process: Child,
}

struct Key {
    hierarchy: String,
    algorithm: String,
    public: PublicKey,
}

impl Tpm {
    fn start() -> Tpm {
        let dir = tempfile::tempdir().unwrap();
        let process = Tpm::spawn(dir.path());
        Tpm { dir, process }
    }

    /// Ends the TPM without Shutdown, and starts it with Startup(CLEAR).
    fn restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let _ = fs::remove_file(self.dir.path().join("socket"));
        self.process = Tpm::spawn(self.dir.path());
    }

    fn spawn(dir: &Path) -> Child {
        let path = |name: &str| dir.join(name).display().to_string();
        let mut process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", dir.display())])
            .args(["--server", &format!("type=unixio,path={}", path("socket"))])
            .args(["--ctrl", &format!("type=unixio,path={}", path("socket.ctrl"))])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while !dir.join("socket").exists() {
            assert_eq!(process.try_wait().unwrap(), None, "swtpm ended");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        process
    }

    fn tool(&self, tool: &str, args: &[&str]) {
        let output = Command::new(tool)
            .args(args)
            .current_dir(self.dir.path())
            .env("TPM2TOOLS_TCTI", format!("swtpm:path={}", self.file("socket").display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{tool} {args:?}: {output:?}");
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Primary keys come from the hierarchy's seed: the same each time.
    fn create_key(&self, hierarchy: &str, algorithm: &str) -> Key {
        self.load_key(hierarchy, algorithm);
        self.tool("tpm2_readpublic", &["-Q", "-c", "ak.ctx", "-f", "pem", "-o", "ak.pem"]);
        self.tool("tpm2_flushcontext", &["-t"]);
        let pem = fs::read_to_string(self.file("ak.pem")).unwrap();
        Key {
            hierarchy: hierarchy.to_owned(),
            algorithm: algorithm.to_owned(),
            public: PublicKey::from_pem(&pem).unwrap(),
        }
    }

    fn load_key(&self, hierarchy: &str, algorithm: &str) {
        let attributes =
            "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign|noda";
        self.tool(
            "tpm2_createprimary",
            &["-Q", "-C", hierarchy, "-G", algorithm, "-a", attributes, "-c", "ak.ctx"],
        );
        self.tool("tpm2_flushcontext", &["-t"]);
    }

    fn quote(&self, key: &Key, selection: &str) -> (VerifiedQuote, PcrValues) {
        self.load_key(&key.hierarchy, &key.algorithm);
        let scheme = key.algorithm.split(':').nth(1).unwrap();
        let (scheme, hash) = scheme.split_once('-').unwrap();
        self.tool(
            "tpm2_quote",
            &[
                "-Q",
                "-c",
                "ak.ctx",
                "-l",
                selection,
                "--scheme",
                scheme,
                "-g",
                hash,
                "-q",
                &hex::encode(NONCE), //
                "-m",
                "msg",
                "-s",
                "sig",
                "-o",
                "pcrs",
            ],
        );
        self.tool("tpm2_flushcontext", &["-t"]);
        let read = |name| fs::read(self.file(name)).unwrap();
        let (message, signature) = (read("msg"), read("sig"));
        let quote = UnverifiedQuote { message: &message, signature: &signature };
        let quote = quote.verify(&key.public, &NONCE).unwrap();
        (quote, PcrValues::parse(&read("pcrs"), None).unwrap())
    }

    fn extend(&self, records: &[Record<'_>]) {
        for record in records {
            let banks = BANKS.map(|bank| {
                let extend = match bank {
                    Bank::Sha384 => Extend::Sha1Padded,
                    _ => Extend::Own,
                };
                let value: Digest = extend.value(bank, record);
                format!("{bank}={value}")
            });
            self.tool("tpm2_pcrextend", &[&format!("10:{}", banks.join(","))]);
        }
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
