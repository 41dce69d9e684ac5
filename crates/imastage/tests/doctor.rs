//! `imastage doctor`: on this machine, on sandboxes, and on machines made of files.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs::{self, File, Permissions},
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use imastage_source::{Holders, Sight};
use serde_json::Value;

#[allow(dead_code)]
mod common;

use common::{Answer, Machine, Running, corpus, finding, findings, imastage, says, wait_until};

/// A machine made of files.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Tree {
        Tree(tempfile::tempdir().unwrap())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join("root").join(path)
    }

    fn file(&self, path: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// A file of the list, with its mode.
    fn list(&self, name: &str, content: impl AsRef<[u8]>, mode: u32) {
        let path = self.file(&format!("sys/kernel/security/ima/{name}"), content);
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    /// What a kernel shows of itself, and PCR 10 as it was captured.
    fn kernel(&self, release: &str, cmdline: &str, config: &str, pcrs: &str) {
        self.file("proc/sys/kernel/osrelease", format!("{release}\n"));
        self.file("proc/cmdline", cmdline);
        self.file(&format!("boot/config-{release}"), config);
        self.file("proc/uptime", "864000.00 1.00\n");
        self.file("proc/self/status", "Uid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff\n");
        let mount = "27 23 0:7 / /sys/kernel/security rw,nosuid - securityfs securityfs rw\n";
        self.file("proc/self/mountinfo", mount);
        self.file("sys/kernel/kexec_loaded", "0\n");
        self.file("dev/tpmrm0", "");
        self.file("dev/fuse", "");
        for line in pcrs.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [bank, pcr, value] = words[..] else { panic!("{line}") };
            self.file(&format!("sys/class/tpm/tpm0/pcr-{bank}/{pcr}"), format!("{value}\n"));
        }
    }

    /// Debian's 6.1, as it was captured.
    fn debian_6_1() -> Tree {
        let tree = Tree::new();
        let captured = |name| fs::read(corpus(&format!("debian-6.1/{name}"))).unwrap();
        let text = |name| String::from_utf8(captured(name)).unwrap();
        let config = "CONFIG_IMA=y\n# CONFIG_IMA_KEXEC is not set\n";
        tree.kernel("6.1.0-56-amd64", &text("cmdline"), config, &text("pcrs"));
        tree.list("binary_runtime_measurements", captured("binary"), 0o440);
        tree
    }

    fn doctor(&self) -> Answer {
        let (root, state) = (self.path(""), self.0.path().join("state"));
        let (root, state) = (root.to_str().unwrap(), state.to_str().unwrap());
        imastage(&["--json", "doctor", "--root", root, "--state", state, "--view", "/v"])
    }
}

#[test]
fn this_machine_is_examined() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let answer = imastage(&["--json", "doctor", "--state", state]);
    let report = answer.json();
    let has_list = Path::new("/sys/kernel/security/ima/binary_runtime_measurements").exists();
    let is_fine = findings(&report, "kernel.ima")[0]["severity"] == "ok";
    assert_eq!(is_fine, has_list, "{report:#}");
    let problems = report["problems"].as_u64().unwrap();
    assert_eq!(answer.code == 1, problems > 0, "{report:#}");

    let answer = imastage(&["doctor", "--state", state]);
    let is_line = |line: &&str| !line.starts_with("              ");
    for line in answer.text().lines().filter(is_line) {
        assert!(line.chars().count() <= 80 || !line.trim().contains(' '), "{line}");
    }
}

#[test]
fn debian_6_1_is_followed_and_pads_banks() {
    let tree = Tree::debian_6_1();
    let answer = tree.doctor();
    let report = answer.json();
    assert_eq!(answer.code, 0, "{report:#}");
    says(finding(&report, "kernel.ima", "ok"), "found", "6.1.0-56-amd64");
    says(finding(&report, "kernel.dialect", "warning"), "found", "follow only");
    says(finding(&report, "kernel.policy", "ok"), "found", "ima_policy=tcb");
    let view = finding(&report, "kernel.policy.view", "warning");
    says(view, "found", "the policy tcb");
    let line = view["lines"][0].as_str().unwrap();
    says(finding(&report, "kernel.kexec", "note"), "found", "no CONFIG_IMA_KEXEC");
    says(finding(&report, "list.records", "ok"), "found", "461 records");
    says(finding(&report, "list.padded", "note"), "found", "sha384, sha512");
    finding(&report, "list.replay", "ok");
    // 461 records with four digests each: 720 bytes.
    says(finding(&report, "kernel.memory", "note"), "found", "331.9 kB");
    assert!(findings(&report, "agents.keylime").is_empty());

    let reads = "measure func=FILE_CHECK mask=^MAY_READ euid=0";
    tree.file("etc/ima/ima-policy", format!("{reads}\n"));
    says(finding(&tree.doctor().json(), "kernel.policy.view", "warning"), "found", "/etc/ima");
    tree.file("etc/ima/ima-policy", format!("{line}\n{reads}\n"));
    assert!(findings(&tree.doctor().json(), "kernel.policy.view").is_empty());
}

#[test]
fn what_is_wrong_with_a_list_is_told() {
    let tree = Tree::debian_6_1();
    let list = fs::read(corpus("debian-6.1/binary")).unwrap();

    // In the last record's name, before the zero byte after it and the length of no signature.
    let mut altered = list.clone();
    altered[list.len() - 6] ^= 1;
    tree.list("binary_runtime_measurements", &altered, 0o440);
    let report = tree.doctor().json();
    says(finding(&report, "list.digests", "problem"), "found", "record 460");
    says(finding(&report, "list.replay", "problem"), "found", "though it begins");

    tree.list("binary_runtime_measurements", &list[..list.len() - 3], 0o440);
    let report = tree.doctor().json();
    says(finding(&report, "list.parse", "problem"), "found", "record 460");

    tree.list("binary_runtime_measurements", b"", 0o440);
    let report = tree.doctor().json();
    says(finding(&report, "list.replay", "problem"), "found", "empty");

    // A bank that nothing is extended in says nothing of the others.
    tree.list("binary_runtime_measurements", &list, 0o440);
    tree.file("sys/class/tpm/tpm0/pcr-sha384/10", "0".repeat(96));
    let answer = tree.doctor();
    let report = answer.json();
    says(finding(&report, "tpm.unextended", "warning"), "found", "sha384");
    finding(&report, "list.replay", "ok");
    assert_eq!(answer.code, 0);
    tree.file("sys/class/tpm/tpm0/pcr-sha384/10", "1".repeat(96));
    let report = tree.doctor().json();
    says(finding(&report, "list.replay", "problem"), "found", "other banks");
}

#[test]
fn linux_7_2_says_how_much_a_deletion_frees() {
    let tree = Tree::new();
    let captured = |name: &str| {
        fs::read(corpus(&format!("staging/batches-n-pending/t2_batch2_plus_current_{name}")))
            .unwrap()
    };
    let pcrs = String::from_utf8(captured("pcrs")).unwrap();
    let config = "CONFIG_IMA=y\nCONFIG_IMA_STAGING=y\nCONFIG_IMA_KEXEC=y\n";
    tree.kernel("7.2.0", "ima_policy=tcb\n", config, &pcrs);
    for bank in ["", "_sha1", "_sha256", "_sha384", "_sha512"] {
        let current = captured("binary_sha1_current");
        tree.list(&format!("binary_runtime_measurements{bank}"), current, 0o660);
        let staged = captured("binary_sha1_staged");
        tree.list(&format!("binary_runtime_measurements{bank}_staged"), staged, 0o660);
    }
    let answer = tree.doctor();
    let report = answer.json();
    // The first batch was deleted before, and nothing is stored.
    assert_eq!(answer.code, 1);
    says(finding(&report, "list.replay", "problem"), "found", "leading records are missing");
    says(finding(&report, "kernel.dialect", "ok"), "found", "7.2");
    says(finding(&report, "list.staged", "note"), "found", "a batch is staged");
    says(finding(&report, "list.banks", "ok"), "found", "sha1 sha256 sha384 sha512");
    // 55 records: 80 bytes of 720 each.
    says(finding(&report, "kernel.memory", "warning"), "found", "4.4 kB of 39.6 kB");

    tree.file("proc/cmdline", "ima_policy=tcb ima_flush_htable ima_hash=sha1\n");
    let report = tree.doctor().json();
    says(finding(&report, "kernel.memory", "ok"), "found", "all of about 39.6 kB");
    says(finding(&report, "kernel.flush", "note"), "found", "delete N is refused");
    finding(&report, "kernel.hash", "warning");

    // Without the option, but writable anyway.
    for path in fs::read_dir(tree.path("sys/kernel/security/ima")).unwrap() {
        let path = path.unwrap().path();
        if path.to_str().unwrap().ends_with("_staged") {
            fs::remove_file(path).unwrap();
        }
    }
    let report = tree.doctor().json();
    says(finding(&report, "kernel.dialect", "warning"), "found", "not staged");
}

#[test]
fn a_machine_in_a_bad_way() {
    let tree = Tree::debian_6_1();
    let list = fs::read(corpus("debian-6.1/binary")).unwrap();
    tree.list("binary_runtime_measurements", list, 0o660);
    tree.file("sys/kernel/kexec_loaded", "1\n");
    tree.file("proc/self/status", "Uid:\t0\t0\t0\t0\nCapEff:\t0000000000000400\n");
    let mount = "27 23 0:7 / /sys/kernel/security ro - securityfs securityfs rw\n";
    tree.file("proc/self/mountinfo", mount);
    tree.file("sys/kernel/security/lockdown", "none [integrity] confidentiality\n");
    fs::remove_file(tree.path("dev/fuse")).unwrap();
    let report = tree.doctor().json();
    says(finding(&report, "kernel.kexec", "problem"), "why", "CONFIG_IMA_KEXEC is off");
    says(finding(&report, "kernel.securityfs", "problem"), "lines", "remount,rw");
    says(finding(&report, "access.capability", "problem"), "found", "CAP_SYS_ADMIN");
    says(finding(&report, "access.fuse", "warning"), "found", "/dev/fuse");
    says(finding(&report, "kernel.guards", "note"), "found", "lockdown is integrity");
    assert_eq!(report["findings"][0]["severity"], "problem");

    fs::remove_dir_all(tree.path("sys/kernel/security/ima")).unwrap();
    says(finding(&tree.doctor().json(), "kernel.ima", "problem"), "found", "no ima directory");
    tree.file("proc/self/mountinfo", "");
    says(finding(&tree.doctor().json(), "kernel.ima", "problem"), "found", "not mounted");
    tree.file("boot/config-6.1.0-56-amd64", "# CONFIG_IMA is not set\n");
    says(finding(&tree.doctor().json(), "kernel.ima", "problem"), "found", "has no IMA");
}

#[test]
fn agents_are_told_what_to_write_where() {
    let tree = Tree::debian_6_1();
    tree.file("etc/keylime/agent.conf", "[agent]\nuuid = \"x\"\nima_ml_path = \"default\"\n");
    let keylime =
        |severity: &str| finding(&tree.doctor().json(), "agents.keylime", severity).clone();
    let told = keylime("note");
    says(&told, "fix", "/etc/keylime/agent.conf");
    assert_eq!(told["lines"][0], "ima_ml_path = \"/v/ascii_runtime_measurements\"");

    // A drop-in wins over that, a unit's environment over both.
    let right = "[agent]\nima_ml_path = \"/v/ascii_runtime_measurements\"\n";
    tree.file("etc/keylime/agent.conf.d/imastage.conf", right);
    keylime("ok");
    let drop_in = "etc/systemd/system/keylime_agent.service.d/list.conf";
    let wrong = "/sys/kernel/security/ima/ascii_runtime_measurements";
    tree.file(drop_in, format!("[Service]\nEnvironment=KEYLIME_AGENT_IMA_ML_PATH={wrong}\n"));
    let told = keylime("note");
    says(&told, "fix", drop_in);
    let line = "Environment=KEYLIME_AGENT_IMA_ML_PATH=/v/ascii_runtime_measurements";
    assert_eq!(told["lines"][0], line);
    assert!(findings(&tree.doctor().json(), "agents.configuration").is_empty());

    let dir = "/sys/kernel/security/ima";
    let fapi = format!("{{\n  \"ima_log_file\": \"{dir}/binary_runtime_measurements\",\n}}\n");
    tree.file("etc/tpm2-tss/fapi-config.json", fapi);
    let unit = format!("# {dir}/x\nExecStart=/bin/client -ifi {dir}/binary_runtime_measurements\n");
    tree.file("etc/systemd/system/attest.service", unit);
    // Where deleting is possible, all of that is a problem.
    let list = fs::read(corpus("debian-6.1/binary")).unwrap();
    tree.list("binary_runtime_measurements", list, 0o660);
    let report = tree.doctor().json();
    let told = findings(&report, "agents.configuration");
    assert_eq!(told.len(), 2, "{report:#}");
    assert!(told.iter().all(|finding| finding["severity"] == "problem"));
    let lines: Vec<&str> = told.iter().map(|told| told["lines"][0].as_str().unwrap()).collect();
    let expected = [
        "\"ima_log_file\": \"/v/binary_runtime_measurements\",",
        "ExecStart=/bin/client -ifi /v/binary_runtime_measurements",
    ];
    assert_eq!(lines, expected);
    says(told[0], "found", "tpm2-tss (FAPI) reads");
    says(
        told[1],
        "found",
        "IBM ACS reads the kernel's list (/etc/systemd/system/attest.service:2)",
    );
}

/// A sandbox of each dialect: whole, kept open, shortened by someone, shortened by the service.
#[test]
fn sandboxes_of_all_dialects() {
    for dialect in ["7.2", "v4", "trim"] {
        if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
            eprintln!("SKIPPED: /dev/fuse: {error}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("ima");
        let sandbox = Running::start(&[
            "--json",
            "sandbox",
            "--no-watch",
            "--dialect",
            dialect,
            "--mount",
            mount.to_str().unwrap(),
        ]);
        let machine = Machine { sandbox, dir };
        let doctor = || {
            let (source, state) = (machine.mount(), machine.state());
            imastage(&["--json", "doctor", "--source", &source, "--state", &state])
        };
        let answer = doctor();
        let report = answer.json();
        assert_eq!(answer.code, 0, "{report:#}");
        let severity = if dialect == "7.2" { "ok" } else { "note" };
        says(finding(&report, "kernel.dialect", severity), "found", &format!("dialect {dialect}"));
        finding(&report, "list.replay", "ok");
        let sight = Holders::find(Path::new(&machine.mount())).sight;
        let severity = if sight == Sight::Complete { "ok" } else { "note" };
        finding(&report, "agents.holders", severity);

        let list = mount_file(&machine, "binary_runtime_measurements");
        let mut open = File::open(list).unwrap();
        let answer = doctor();
        let report = answer.json();
        assert_eq!(answer.code, 1);
        let me = format!("pid {}", std::process::id());
        says(finding(&report, "agents.holders", "problem"), "found", &me);
        let mut bytes = Vec::new();
        open.read_to_end(&mut bytes).unwrap();
        drop(open);

        delete_all(&machine, dialect);
        let report = doctor().json();
        finding(&report, "list.replay", "problem");
    }
}

/// What no service would do: deletes and stores nothing.
fn delete_all(machine: &Machine, dialect: &str) {
    let (name, requests): (_, &[&str]) = match dialect {
        "trim" => ("ima_trim_log", &["0:1\n"]),
        _ => ("binary_runtime_measurements_staged", &["A\n", "D\n"]),
    };
    let path = mount_file(machine, name);
    // FUSE hears of a close a moment later.
    let mut opened = None;
    wait_until("the list is free", || match File::options().write(true).open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => false,
        file => {
            opened = Some(file.unwrap());
            true
        }
    });
    let mut file = opened.unwrap();
    for request in requests {
        file.write_all(request.as_bytes()).unwrap();
    }
}

fn mount_file(machine: &Machine, name: &str) -> PathBuf {
    Path::new(&machine.mount()).join(name)
}

#[test]
fn a_list_goes_on_behind_what_is_stored() {
    let Some(machine) = Machine::start() else { return };
    let doctor = || {
        let (source, state) = (machine.mount(), machine.state());
        imastage(&["--json", "doctor", "--source", &source, "--state", &state])
    };
    let measure = |prefix| {
        let (mount, files) = (machine.mount(), machine.files(prefix, 20));
        let mut args = vec!["sandbox", "measure", "--mount", &mount];
        args.extend(files.iter().map(|file| file.to_str().unwrap()));
        assert_eq!(imastage(&args).code, 0);
    };
    measure("first");
    let (source, state) = (machine.mount(), machine.state());
    let service = Running::start(&["--json", "run", "--source", &source, "--state", &state]);
    let report = doctor().json();
    says(finding(&report, "state.service", "ok"), "found", "a service runs");
    assert_eq!(service.stop(), 0);

    measure("second");
    let answer = doctor();
    let report = answer.json();
    assert_eq!(answer.code, 0, "{report:#}");
    says(finding(&report, "list.replay", "ok"), "found", "stored");
    says(finding(&report, "state.store", "ok"), "found", "all whole");

    delete_all(&machine, "7.2");
    let report = doctor().json();
    finding(&report, "list.replay", "problem");

    // A byte of a stored record.
    let segment = Path::new(&machine.state()).join("epochs/0001/00000000000000000000.ima");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[100] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let report = doctor().json();
    says(findings(&report, "state.store")[0], "severity", "problem");
}

#[test]
fn the_service_itself_is_no_holder() {
    let tree = Tree::debian_6_1();
    tree.list("runtime_measurements_count", "461\n", 0o440);
    let (source, state) = (tree.path("sys/kernel/security/ima"), tree.path("state"));
    let (source, state) = (source.to_str().unwrap(), state.to_str().unwrap());
    let run = ["--json", "run", "--tpm", "none", "--source", source, "--state", state];
    let service = Running::start(&run);
    let status = || imastage(&["--json", "status", "--state", state]).json();
    wait_until("the list is stored", || status()["records"] == 461);
    let pid = format!("pid {}", status()["pid"]);
    let report = imastage(&["--json", "doctor", "--source", source, "--state", state]).json();
    says(finding(&report, "state.service", "ok"), "found", &pid);
    // Other lists on the same device may well be open.
    let holders = findings(&report, "agents.holders")[0]["found"].to_string();
    assert!(!holders.contains(&pid), "{holders}");
    assert_eq!(service.stop(), 0);
}

/// Someone who may not look is told what is missing, and gets the exit code for that.
#[test]
fn without_permission_it_says_which() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become someone else");
        return;
    }
    let Some(machine) = Machine::start() else { return };
    let empty = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(empty.path(), Some(65534), Some(65534)).unwrap();
    let doctor = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_imastage"));
        command.args(["--json", "doctor", "--source", &machine.mount(), "--state"]);
        command.arg(empty.path());
        command.uid(65534).gid(65534).output()
    };
    let look = |check: &str| {
        let output = match doctor() {
            Err(error) => return eprintln!("SKIPPED: the program is not for everybody: {error}"),
            Ok(output) => output,
        };
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        says(finding(&report, check, "unknown"), "fix", "run as root");
    };
    fs::set_permissions(machine.dir.path(), Permissions::from_mode(0o700)).unwrap();
    look("kernel.ima");
    fs::set_permissions(machine.dir.path(), Permissions::from_mode(0o755)).unwrap();
    look("list.records");
}
