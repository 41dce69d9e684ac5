//! `imastage run`: what its users and those who attacked it found, by the number of the finding.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs::{self, File},
    num::NonZeroU64,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use imastage_sandbox::control::{Answer, Command as Ask, Status, ask};
use imastage_source::{Source, SourceProcess, service_of};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

#[allow(dead_code)]
mod common;

use common::{Machine, Running, command, imastage};

/// What never comes is not waited for for ever.
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is_so() {
        assert!(since.elapsed() < Duration::from_secs(120), "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A machine of which only what is asked for is measured.
fn machine(extra: &[&str]) -> Option<Machine> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        eprintln!("SKIPPED: /dev/fuse: {error}");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("ima");
    let args = ["--json", "sandbox", "--mount", mount.to_str().unwrap(), "--no-watch"];
    let sandbox = Running::start(&[&args[..], extra].concat());
    Some(Machine { sandbox, dir })
}

fn sandbox_status(mount: &str) -> Status {
    match ask(Path::new(mount), &Ask::Status, &mut |_| {}).unwrap() {
        Answer::Status(status) => status,
        other => panic!("{other:?}"),
    }
}

fn measure(machine: &Machine, prefix: &str, count: usize) {
    let paths = machine.files(prefix, count);
    ask(Path::new(&machine.mount()), &Ask::Measure { paths }, &mut |_| {}).unwrap();
}

/// A service of a machine, and what it says about itself.
struct Service {
    running: Running,
    pid: u32,
}

fn start(machine: &Machine, extra: &[&str]) -> Service {
    let (mount, state) = (machine.mount(), machine.state());
    let args = ["--json", "run", "--source", &mount, "--state", &state, "--every", "20"];
    let running = Running::start(&[&args[..], extra].concat());
    Service { running, pid: status(&state)["pid"].as_u64().unwrap() as u32 }
}

fn status(state: &str) -> Value {
    imastage(&["--json", "status", "--state", state]).json()
}

/// The process that has the list of a service open.
fn list_process(service: u32) -> Option<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|process| process.file_name().to_str()?.parse().ok());
    pids.find(|pid| {
        let is = |key: &str, value: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            text.lines().any(|line| line.strip_prefix(key).is_some_and(|v| v.trim() == value))
        };
        is("PPid:", &service.to_string()) && is("Name:", "imastage-source")
    })
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

/// The descriptors of a process that lead to a file of the list.
fn list_files(pid: u32) -> Vec<PathBuf> {
    let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let files = open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    files
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.contains("_runtime_measurements") || name == "ima_trim_log"
        })
        .collect()
}

#[test]
fn issue_10_the_service_has_no_list_file_open_while_it_drains_and_starts_programs() {
    for dialect in ["7.2", "v4", "trim"] {
        let Some(machine) = machine(&["--dialect", dialect]) else { return };
        let told = machine.path("told");
        let alert = format!("echo x >>{told}");
        let service = start(&machine, &["--drain-at", "1", "--alert", &alert]);
        let list = list_process(service.pid).unwrap();
        let over = AtomicBool::new(false);
        let seen = thread::scope(|scope| {
            let scan = scope.spawn(|| {
                let mut seen = 0;
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(list_files(service.pid), Vec::<PathBuf>::new(), "{dialect}");
                    seen += list_files(list).len();
                }
                seen
            });
            for round in 0..40 {
                measure(&machine, &format!("{dialect}-{round}"), 20);
            }
            // Somebody else takes records: the verdict changes, and the command runs.
            let stolen = steal(&machine.mount(), dialect);
            measure(&machine, "after", 3);
            if stolen {
                wait_until("the command runs", || Path::new(&told).exists());
            }
            over.store(true, Ordering::Relaxed);
            scan.join().unwrap()
        });
        // It can fail: there is a process that has them open now and then.
        eprintln!("{dialect}: the list's process was seen with {seen} of its files open");
        assert_eq!(service.running.stop(), 0);
    }
}

/// Deletes what is in the list before the service does; whether that succeeded.
fn steal(mount: &str, dialect: &str) -> bool {
    use std::io::{Read, Write};
    if dialect == "trim" {
        return false;
    }
    let staged = format!("{mount}/binary_runtime_measurements_staged");
    for round in 0..2000 {
        let name = format!("{mount}/../stolen-{round}");
        fs::write(&name, &name).unwrap();
        let Ok(mut file) = File::options().read(true).write(true).open(&staged) else { continue };
        let paths = vec![PathBuf::from(&name)];
        ask(Path::new(mount), &Ask::Measure { paths }, &mut |_| {}).unwrap();
        let mut bytes = Vec::new();
        let taken = file.write_all(b"A\n").and_then(|()| file.read_to_end(&mut bytes));
        std::io::Seek::rewind(&mut file).unwrap();
        if taken.is_ok_and(|length| length > 0) && file.write_all(b"D\n").is_ok() {
            return true;
        }
    }
    false
}

#[test]
fn issue_10_programs_are_started_while_the_list_is_drained_on_a_kernel_that_loses_its_books() {
    let Some(machine) = machine(&["--hazard", "lock-books"]) else { return };
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (mount, state) = (machine.mount(), machine.state());
    let args = ["source-process", "--state", &state, "--source", &mount];
    let mut child = command(&args)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut source = SourceProcess::connect(ours).unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    assert!(std::process::Command::new("true").status().unwrap().success());
                }
            });
        }
        let mut drained = 0;
        for round in 0..200 {
            measure(&machine, &round.to_string(), 2);
            let mut read = Vec::new();
            let batch = source.take(&mut |bytes| read.extend_from_slice(bytes)).unwrap().unwrap();
            let format = ima_log::Format::native(ima_log::Bank::Sha1);
            let records = ima_log::Records::new(&read, format).count() as u64;
            batch.delete(NonZeroU64::new(records).unwrap()).unwrap();
            drained += records;
        }
        over.store(true, Ordering::Relaxed);
        assert_eq!(drained, 401);
    });
    drop(source);
    assert!(child.wait().unwrap().success());
}

#[test]
fn issue_10_a_service_without_its_list_stores_what_it_has_and_ends() {
    let Some(machine) = machine(&[]) else { return };
    let state = machine.state();
    let log = machine.path("log");
    let (mount, out) = (machine.mount(), File::create(&log).unwrap());
    let args = ["run", "--source", &mount, "--state", &state, "--every", "20"];
    let mut running = Running::of(command(&args).stderr(out));
    running.wait_until_ready();
    let pid = status(&state)["pid"].as_u64().unwrap() as u32;
    measure(&machine, "a", 30);
    wait_until("all is stored", || status(&state)["records"] == 31);
    let list = list_process(pid).unwrap();
    kill(list);
    assert_eq!(running.wait(), 3);
    let log = fs::read_to_string(&log).unwrap();
    assert!(log.contains(&format!("(pid {list}) signal: 9")), "{log}");
    assert!(log.contains("start the service again"), "{log}");
    assert_eq!(status(&state)["records"], 31);
    // And so it continues.
    measure(&machine, "b", 5);
    let service = start(&machine, &[]);
    wait_until("all is stored", || status(&state)["records"] == 36);
    assert_eq!(status(&state)["verdict"]["state"], "consistent");
    assert_eq!(service.running.stop(), 0);
}

#[test]
fn issue_10_a_service_that_is_killed_leaves_nothing_that_has_the_list() {
    let Some(machine) = machine(&[]) else { return };
    let view = machine.path("view");
    for _ in 0..3 {
        let service = start(&machine, &["--view", &view]);
        let list = list_process(service.pid).unwrap();
        assert_eq!(
            service_of(Path::new(&machine.mount())).map(|found| found.pid),
            Some(service.pid)
        );
        service.running.kill();
        wait_until("the list's process ends", || !Path::new(&format!("/proc/{list}")).exists());
        assert_eq!(service_of(Path::new(&machine.mount())), None);
    }
    // In peace the view is gone with it.
    let service = start(&machine, &["--view", &view]);
    assert!(Path::new(&view).join("ascii_runtime_measurements").exists());
    assert_eq!(service.running.stop(), 0);
    assert_eq!(fs::read_dir(&view).unwrap().count(), 0);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&view), "{mounts}");
}

#[test]
fn issue_10_only_the_process_that_has_the_list_may_administer_the_system() {
    if !is_root() {
        return eprintln!("SKIPPED: only root has capabilities to lose");
    }
    let Some(machine) = machine(&[]) else { return };
    let view = machine.path("view");
    let service = start(&machine, &["--view", &view]);
    let has_admin = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap() >> 21 & 1 == 1
    };
    let list = list_process(service.pid).unwrap();
    let status = fs::read_to_string(format!("/proc/{list}/status")).unwrap();
    assert!(status.contains("Threads:\t1\n"), "{status}");
    assert!(has_admin(&status), "{status}");
    // Meanwhile the view is read and a quote is made.
    fs::read(Path::new(&view).join("ascii_runtime_measurements")).unwrap();
    let threads = fs::read_dir(format!("/proc/{}/task", service.pid)).unwrap();
    let mut seen = 0;
    for thread in threads.flatten() {
        let Ok(status) = fs::read_to_string(thread.path().join("status")) else { continue };
        assert!(!has_admin(&status), "{status}");
        seen += 1;
    }
    assert!(seen > 3, "{seen}");
    assert_eq!(service.running.stop(), 0);
}

#[test]
fn users_01_one_list_has_one_service_that_deletes() {
    for dialect in ["7.2", "v4", "trim"] {
        let Some(machine) = machine(&["--dialect", dialect]) else { return };
        let (mount, state, other) = (machine.mount(), machine.state(), machine.path("other"));
        let service = start(&machine, &[]);
        measure(&machine, "a", 20);
        // By another path, and with another state directory.
        let link = machine.path("link");
        std::os::unix::fs::symlink(&mount, &link).unwrap();
        for source in [&mount, &link] {
            let answer = imastage(&["run", "--source", source, "--state", &other]);
            assert_eq!(answer.code, 3, "{}", answer.stderr);
            let expected =
                format!("another service (pid {}), state directory {state:?},", service.pid);
            assert!(answer.stderr.contains(&expected), "{}", answer.stderr);
            assert!(answer.stderr.contains("stop it, or follow"), "{}", answer.stderr);
            let check = imastage(&["run", "--check", "--source", source, "--state", &other]);
            assert_eq!(check.code, 3);
            assert!(check.stderr.contains(&expected), "{}", check.stderr);
        }
        let status = status(&state);
        assert_eq!(status["verdict"]["state"], "consistent", "{status}");
        // One that only follows is welcome.
        let args = ["run", "--source", &mount, "--state", &other, "--delete-mode", "none"];
        let follower = Running::start(&args);
        assert_eq!(service.running.stop(), 0);
        assert_eq!(follower.stop(), 0);
        // And when it is gone another one may delete.
        let service = start(&machine, &[]);
        assert_eq!(service.running.stop(), 0);
    }
}

#[test]
fn users_01_nothing_is_deleted_by_a_service_that_cannot_start() {
    let Some(machine) = machine(&[]) else { return };
    measure(&machine, "a", 20);
    let (mount, state) = (machine.mount(), machine.state());
    let before = sandbox_status(&mount);
    let full = machine.path("files");
    let file = machine.path("file");
    fs::write(&file, "x").unwrap();
    let foreign = machine.path("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(format!("{foreign}/format"), "something else\n").unwrap();
    let below = format!("{file}/view");
    let no_tpm = format!("unix:{}", machine.path("no-tpm.sock"));
    let settings: [(&[&str], i32, &str); 9] = [
        (&["--view", &full], 3, "there are files in it"),
        (&["--view", &file], 3, "not a directory"),
        (&["--view", &below], 3, &below),
        (&["--state", &file], 3, &file),
        (&["--state", &foreign], 3, "not a state directory"),
        (&["--tpm", &no_tpm], 3, "no-tpm.sock"),
        (&["--tpm", "nonsense:x:y"], 2, "--tpm"),
        (&["--group", "no-such-group"], 2, "there is no such group"),
        (&["--every", "0"], 2, "--every"),
    ];
    for (setting, code, why) in settings {
        let mut args = vec!["run", "--source", &mount];
        if setting[0] != "--state" {
            args.extend(["--state", &state]);
        }
        let answer = imastage(&[&args[..], setting].concat());
        assert_eq!(answer.code, code, "{setting:?} {}", answer.stderr);
        assert!(answer.stderr.contains(why), "{setting:?} {}", answer.stderr);
        let after = sandbox_status(&mount);
        let counts = |status: &Status| (status.current, status.staged, status.trimmed);
        assert_eq!(counts(&after), counts(&before), "{setting:?}");
        let check = imastage(&[&args[..], setting, &["--check"]].concat());
        // A directory that is no store is unusable input where it is only looked at.
        assert!([2, 3].contains(&check.code), "{setting:?} {}", check.text());
        assert!(check.stderr.contains(why), "{setting:?} {}", check.stderr);
    }
    // It was not for anything else.
    let service = start(&machine, &[]);
    wait_until("it drains", || sandbox_status(&mount).current == 0);
    assert_eq!(service.running.stop(), 0);
}

#[test]
fn users_04_a_list_is_followed_without_privileges_and_nothing_is_deleted() {
    if !is_root() {
        return eprintln!("SKIPPED: only root has capabilities to lose");
    }
    let unprivileged = |args: &[&str]| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--bounding-set=-sys_admin", "--inh-caps=-all"]);
        command.arg(env!("CARGO_BIN_EXE_imastage")).args(args).env_remove("RUST_LOG");
        command
    };
    for dialect in ["7.2", "v4", "trim"] {
        let Some(machine) = machine(&["--dialect", dialect]) else { return };
        let (mount, state) = (machine.mount(), machine.state());
        measure(&machine, "a", 20);
        let run = ["run", "--source", &mount, "--state", &state, "--every", "20"];
        let refused = unprivileged(&run).output().unwrap();
        assert_eq!(refused.status.code(), Some(3));
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(text.contains("CAP_SYS_ADMIN") && text.contains("--delete-mode none"), "{text}");
        assert_eq!(sandbox_status(&mount).current, 21);

        let follow = [&run[..], &["--delete-mode", "none"]].concat();
        let mut service = Running::of(&mut unprivileged(&follow));
        service.wait_until_ready();
        measure(&machine, "b", 30);
        wait_until("all is stored", || status(&state)["records"] == 51);
        let now = status(&state);
        assert_eq!(now["verdict"]["state"], "consistent", "{now}");
        assert_eq!(now["since_start"]["deleted"], 0);
        assert_eq!(now["since_start"]["dialect"], "follow");
        let after = sandbox_status(&mount);
        assert_eq!((after.current, after.staged, after.trimmed), (51, 0, 0));
        // Others may hold the list for writing: nothing is kept open.
        if dialect != "trim" {
            let staged = format!("{mount}/binary_runtime_measurements_staged");
            wait_until("it can be opened for writing", || {
                File::options().write(true).open(&staged).is_ok()
            });
        }
        assert_eq!(service.stop(), 0);
        // From there one continues with deleting.
        let service = start(&machine, &[]);
        wait_until("it drains", || sandbox_status(&mount).current <= 1);
        let now = status(&state);
        assert_eq!((&now["records"], &now["verdict"]["state"]), (&51.into(), &"consistent".into()));
        assert_eq!(service.running.stop(), 0);
    }
}

#[test]
fn users_04_a_configuration_is_checked_and_nothing_is_changed() {
    let Some(machine) = machine(&[]) else { return };
    measure(&machine, "a", 4);
    let (mount, state, view) = (machine.mount(), machine.state(), machine.path("view"));
    let config = machine.path("imastage.toml");
    fs::write(&config, format!("source = {mount:?}\nstate = {state:?}\nview = {view:?}\n"))
        .unwrap();
    let check = ["--json", "run", "--check", "--config", &config];
    let answer = imastage(&check);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let plan = answer.json();
    assert_eq!((&plan["dialect"], &plan["deletes"]), (&"7.2".into(), &true.into()), "{plan}");
    assert_eq!((&plan["in_list"], &plan["stored"]), (&5.into(), &0.into()), "{plan}");
    assert_eq!(plan["problems"], serde_json::json!([]));
    assert!(!Path::new(&state).exists() && !Path::new(&view).exists());
    assert_eq!(sandbox_status(&mount).current, 5);
    let answer = imastage(&check[1..]);
    assert!(answer.text().contains("it would start"), "{}", answer.text());
    let answer = imastage(&[&check[..], &["--delete-mode", "none"]].concat());
    assert_eq!(answer.json()["deletes"], false);

    // Beside the service that runs there: that is in the way.
    let running = Running::start(&["run", "--config", &config]);
    let answer = imastage(&check);
    assert_eq!(answer.code, 3);
    let problems = answer.json()["problems"].to_string();
    for why in ["another service (pid", "locked by another service", "there are files in it"] {
        assert!(problems.contains(why), "{why}: {problems}");
    }
    assert_eq!(running.stop(), 0);
    let answer = imastage(&check);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    assert_eq!(answer.json()["stored"], 5);
    let answer = imastage(&["run", "--check", "--source", "/nonexistent", "--state", &state]);
    assert_eq!(answer.code, 3);
    assert!(answer.stderr.contains("not found"), "{}", answer.stderr);
}

#[test]
fn users_20_an_error_is_told_once_and_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    let answer = imastage(&["sandbox", "--mount", file, "--tpm", "none"]);
    assert_eq!(answer.code, 3);
    assert!(answer.stderr.contains("this is not a directory; give"), "{}", answer.stderr);

    let config = dir.path().join("imastage.toml");
    fs::write(&config, "every = 5\n[a]\nb = 1\n").unwrap();
    let config = config.to_str().unwrap();
    let answer = imastage(&["run", "--config", config]);
    assert_eq!(answer.code, 2);
    assert!(answer.stderr.contains(":2: [a]: there are no sections"), "{}", answer.stderr);

    // Each of these was said twice.
    let Some(machine) = machine(&[]) else { return };
    let (mount, state) = (machine.mount(), machine.state());
    let service = start(&machine, &[]);
    let full = machine.path("foreign");
    fs::create_dir(&full).unwrap();
    fs::write(format!("{full}/format"), "something else\n").unwrap();
    for (args, once) in [
        (["run", "--source", "in-process", "--state", &state], "locked by process"),
        (["run", "--source", &mount, "--state", &full], "not a state directory"),
    ] {
        let answer = imastage(&[&args[..], &["--tpm", "none", "--delete-mode", "none"]].concat());
        assert_eq!(answer.stderr.matches(once).count(), 1, "{}", answer.stderr);
        assert_eq!(answer.code, 3, "{}", answer.stderr);
    }
    assert_eq!(service.running.stop(), 0);
}

#[test]
fn users_22_a_list_of_its_own_is_not_kept_where_a_machine_s_is() {
    let answer = imastage(&["--json", "run", "--check"]);
    let ima = Path::new("/sys/kernel/security/ima/binary_runtime_measurements");
    if ima.exists() {
        assert_eq!(answer.code, 2);
        assert!(answer.stderr.contains("--source /sys/kernel/security/ima"), "{}", answer.stderr);
        return;
    }
    let plan = answer.json();
    assert!(plan["state"].as_str().unwrap().ends_with("/imastage-embedded"), "{plan}");
    assert_eq!(plan["source"], "an embedded list, not this machine's");
    let list = imastage(&["--json", "run", "--check", "--source", "/nonexistent"]).json();
    assert!(list["state"].as_str().unwrap().ends_with("/imastage"), "{list}");

    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let state = state.to_str().unwrap();
    let args = ["run", "--source", "in-process", "--tpm", "none", "--state", state];
    let mut child = command(&args).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
    assert!(line.contains("an embedded list, not this machine's"), "{line}");
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}
