//! `imastage log`: what the running service gives, shown as `imastage show` shows a list.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use imastage_sandbox::control::{Answer, Command as Ask, ask};

#[allow(dead_code)]
mod common;

use common::{Machine, Running, imastage};

fn measure(machine: &Machine, prefix: &str, count: usize) {
    let paths = machine.files(prefix, count);
    match ask(machine.mount().as_ref(), &Ask::Measure { paths }, &mut |_| {}).unwrap() {
        Answer::Done(measured) => assert_eq!(measured.added, count as u64),
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_shows_what_show_shows_and_what_comes() {
    let Some(machine) = Machine::start() else { return };
    let (mount, state) = (machine.mount(), machine.state());
    // Drained only when asked to.
    let service = Running::start(&[
        "--json",
        "run",
        "--source",
        &mount,
        "--state",
        &state,
        "--every",
        "3600000",
        "--drain-at",
        "1000000",
    ]);
    measure(&machine, "first", 40);
    let answer = imastage(&["attest", "--state", &state, "--out", &machine.path("evidence")]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    for shape in [
        &["--as", "ascii"][..],
        &["--as", "binary", "--bank", "sha256"],
        &["--as", "json", "--from", "5", "--count", "7"],
        &["--as", "cel-cbor", "--path", "**/first-1*"],
        &["--as", "details", "--template", "ima-ng", "--from", "30"],
        &["--pcr", "11"],
        &["--count", "0"],
    ] {
        let log = imastage(&[&["log", "--state", &state], shape].concat());
        let show = imastage(&[&["show"], shape, &[&*state]].concat());
        assert_eq!((log.code, show.code), (0, 0), "{shape:?}: {}{}", log.stderr, show.stderr);
        assert!(log.stdout == show.stdout, "{shape:?}");
    }
    // Who follows has the list drained, and is given what comes.
    let path = "**/second-*";
    let args = ["log", "--state", &state, "--follow", "--as", "json", "--path", path, "--count"];
    let follow = std::thread::spawn({
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        move || {
            let args: Vec<&str> = args.iter().map(String::as_str).chain(["5"]).collect();
            imastage(&args)
        }
    });
    measure(&machine, "second", 5);
    // However the two met: there is another drain.
    let answer = imastage(&["attest", "--state", &state, "--out", &machine.path("evidence")]);
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let follow = follow.join().unwrap();
    assert_eq!((follow.code, follow.text().lines().count()), (0, 5), "{}", follow.text());

    let answer = imastage(&["log", "--state", &state, "--from", "1000000"]);
    assert_eq!(answer.code, 2, "{}", answer.stderr);
    assert_eq!(service.stop(), 0);
    let answer = imastage(&["log", "--state", &state]);
    assert_eq!(answer.code, 3, "{}", answer.stderr);
}
