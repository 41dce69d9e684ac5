//! What the service's commands say of machines that people have reported, and of mistakes.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{
    fs,
    time::{Duration, Instant},
};

#[allow(dead_code)]
mod common;

use common::{Answer, Machine, Running, imastage};

/// A machine whose sandbox was given these options.
fn machine(options: &[&str]) -> Option<Machine> {
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/fuse") {
        eprintln!("SKIPPED: /dev/fuse: {error}");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path().join("ima");
    let mut args = vec!["--json", "sandbox", "--mount", mount.to_str().unwrap(), "--no-watch"];
    args.extend(options);
    Some(Machine { sandbox: Running::start(&args), dir })
}

fn measure(machine: &Machine, prefix: &str, count: usize) {
    let mount = machine.mount();
    let files = machine.files(prefix, count);
    let mut args = vec!["--json", "sandbox", "measure", "--mount", &mount];
    args.extend(files.iter().map(|path| path.to_str().unwrap()));
    let answer = imastage(&args);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
}

fn service(machine: &Machine, state: &str) -> Running {
    let mount = machine.mount();
    Running::start(&["--json", "run", "--source", &mount, "--state", state, "--every", "50"])
}

/// The status, once it ends with this exit code and says this first.
#[track_caller]
fn status(state: &str, code: i32, first: &str) -> Answer {
    let since = Instant::now();
    loop {
        let answer = imastage(&["status", "--state", state]);
        let line = answer.text().lines().next().unwrap_or_default();
        if answer.code == code && line.contains(first) {
            return answer;
        }
        let limit = Duration::from_secs(90);
        assert!(since.elapsed() < limit, "{}: {}{}", answer.code, answer.text(), answer.stderr);
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn case_17_a_tpm_that_the_kernel_never_extended_is_named_everywhere() {
    let Some(machine) = machine(&["--tpm-late"]) else { return };
    measure(&machine, "first", 2);
    let (mount, state) = (machine.mount(), machine.state());
    let doctor = imastage(&["doctor", "--source", &mount, "--state", &state]);
    assert_eq!(doctor.code, 1, "{}", doctor.text());
    let words: Vec<&str> = doctor.text().split_whitespace().collect();
    let said = words.join(" ");
    assert!(said.contains("the kernel does not extend this TPM: PCR 10 is zero in every bank"));
    assert!(said.contains("CONFIG_IMA_INIT_LATE_SYNC"), "{said}");
    assert!(!said.lines().any(|line| line.starts_with("ready")), "{said}");
    let running = service(&machine, &state);
    let first = "the kernel does not extend this TPM: PCR 10 is zero in every bank";
    let answer = status(&state, 1, first);
    assert!(answer.text().contains("3 records stored"), "{}", answer.text());
    measure(&machine, "second", 2);
    let answer = status(&state, 1, "there are 5 records");
    assert!(answer.text().contains(", 0 deleted"), "{}", answer.text());
    assert_eq!(running.stop(), 0);
}

#[test]
fn case_03_a_kernel_that_measures_into_pcr_11_is_compared_there() {
    let Some(machine) = machine(&["--pcr", "11"]) else { return };
    measure(&machine, "first", 3);
    let (mount, state) = (machine.mount(), machine.state());
    let doctor = imastage(&["doctor", "--source", &mount, "--state", &state]);
    assert!(doctor.text().contains("the list replays to PCR 11 in sha1"), "{}", doctor.text());
    let running = service(&machine, &state);
    let first = "consistent with the TPM: 4 records replay to PCR 11 in sha1, sha256";
    let short = status(&state, 0, first);
    assert!(!short.text().contains("replayed"), "{}", short.text());
    let all = imastage(&["status", "-v", "--state", &state]);
    assert!(all.text().contains("PCR 11 sha256") && !all.text().contains("PCR 10"));
    let doctor = imastage(&["doctor", "--source", &mount, "--state", &state]);
    let said = doctor.text();
    assert!(said.contains("PCR 11 behind the 4 records stored"), "{said}");
    assert_eq!(running.stop(), 0);
}

#[test]
fn users_01_a_second_state_directory_ends_with_3_and_deletes_nothing() {
    let Some(machine) = machine(&[]) else { return };
    let (state, other) = (machine.state(), machine.path("other"));
    measure(&machine, "first", 3);
    let running = service(&machine, &state);
    status(&state, 0, "consistent");
    assert_eq!(running.stop(), 0);
    measure(&machine, "second", 4);
    let mount = machine.mount();
    let refused = Running::spawn(&["--json", "run", "--source", &mount, "--state", &other]);
    assert_eq!(refused.wait(), 3);
    let list = fs::read_to_string(mount + "/ascii_runtime_measurements").unwrap();
    assert_eq!(list.lines().filter(|line| line.contains("second-")).count(), 4, "{list}");
    let running = service(&machine, &state);
    status(&state, 0, "consistent with the TPM: 8 records");
    assert_eq!(running.stop(), 0);
}

#[test]
fn users_02_a_restored_file_is_consistent_again() {
    let Some(machine) = Machine::start() else { return };
    let state = machine.state();
    measure(&machine, "first", 20);
    let running = service(&machine, &state);
    status(&state, 0, "consistent");
    assert_eq!(running.stop(), 0);
    let epoch = format!("{state}/epochs/0001");
    let segment = fs::read_dir(epoch).unwrap().map(|entry| entry.unwrap().path());
    let segment = segment.filter(|path| path.extension().is_some_and(|end| end == "ima"));
    let segment = segment.min().unwrap();
    let whole = fs::read(&segment).unwrap();
    let mut altered = whole.clone();
    altered[1240] ^= 1;
    fs::write(&segment, altered).unwrap();
    let running = service(&machine, &state);
    let answer = status(&state, 1, "the store is damaged");
    assert!(!answer.text().contains("someone else deleted"), "{}", answer.text());
    assert_eq!(running.stop(), 0);
    status(&state, 1, "the store is damaged");
    fs::write(&segment, whole).unwrap();
    let running = service(&machine, &state);
    status(&state, 0, "consistent");
    assert_eq!(running.stop(), 0);
    status(&state, 3, "no service is running");
}

#[test]
fn users_13_no_service_is_an_exit_code_of_its_own() {
    let Some(machine) = Machine::start() else { return };
    let state = machine.state();
    let running = service(&machine, &state);
    status(&state, 0, "consistent");
    running.kill();
    let answer = status(&state, 3, "no service is running");
    assert!(answer.text().contains("epoch 1:"), "{}", answer.text());
}

#[test]
fn users_23_a_reset_under_the_service_ends_it_and_the_next_one_begins_an_epoch() {
    let Some(machine) = Machine::start() else { return };
    let state = machine.state();
    let running = service(&machine, &state);
    status(&state, 0, "consistent");
    let answer = imastage(&["sandbox", "reboot", "--mount", &machine.mount()]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    measure(&machine, "new", 3);
    assert_eq!(running.wait(), 3);
    let running = service(&machine, &state);
    let answer = status(&state, 0, "consistent");
    assert!(answer.text().contains("epoch 2:"), "{}", answer.text());
    assert_eq!(running.stop(), 0);
}
