//! Access to a sandbox's sockets, and the permissions with which it reads files.

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use imastage_sandbox::{
    TpmChoice,
    control::{Answer, Command as Ask},
};

use crate::mounted::{CURRENT, Mounted};

const HELPER: &str = "IMASTAGE_TEST_UMASK";

/// Runs in a separate process, because a umask belongs to the whole process.
#[test]
fn finding_11_only_the_owner_reaches_the_sockets_whatever_the_umask() {
    if std::env::var_os(HELPER).is_some() {
        let Some(mounted) = Mounted::new(TpmChoice::Swtpm) else { return };
        let run_dir = fs::read_link(mounted.file(".imastage-sandbox")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(&run_dir), 0o700);
        for socket in ["control.sock", "tpm.sock"] {
            assert_eq!(mode(&run_dir.join(socket)), 0o600, "{socket}");
        }
        assert!(matches!(mounted.ask(&Ask::Status), Ok(Answer::Status(_))));
        if rustix::process::geteuid().is_root() {
            let nobody = Command::new("setpriv")
                .args(["--reuid=65534", "--regid=65534", "--clear-groups", "ls"])
                .arg(&run_dir)
                .stderr(Stdio::null())
                .status();
            assert!(!nobody.unwrap().success());
        }
        return;
    }
    for umask in ["0", "022", "0777"] {
        let name = "access::finding_11_only_the_owner_reaches_the_sockets_whatever_the_umask";
        let output = Command::new("/bin/sh")
            .args(["-c", "umask $1; shift; exec \"$@\"", "sh", umask])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name])
            // Tests with a umask of 0777 cannot make a directory that they may enter.
            .env(HELPER, umask)
            .env("TMPDIR", "/tmp")
            .output()
            .unwrap();
        if umask == "0777" && !rustix::process::geteuid().is_root() {
            continue;
        }
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "umask {umask}: {said}");
    }
}

#[test]
fn finding_11_client_opens_the_list_to_replay() {
    let Some(mounted) = Mounted::new(TpmChoice::None) else { return };
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/corpus/debian-6.1/binary");
    let replay = Ask::Replay { path: path.into(), rate: None };
    // A path without content reads no file.
    let socket = mounted.file(".imastage-sandbox").join("control.sock");
    let mut stream = UnixStream::connect(socket).unwrap();
    writeln!(stream, "{}", serde_json::to_string(&replay).unwrap()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("not a binary measurement list"), "{answer}");
    assert_eq!(mounted.records(CURRENT), ["boot_aggregate"]);

    let Answer::Done(done) = mounted.ask(&replay).unwrap() else { panic!() };
    assert!(done.added > 100, "{done:?}");
    // The client reports a list that it cannot read.
    let error = mounted.ask(&Ask::Replay { path: "/".into(), rate: None }).unwrap_err();
    assert!(error.to_string().starts_with("/: "), "{error}");
}

/// The answer arrives while most of the file is not yet sent.
#[test]
fn malformed_list_is_refused_before_it_is_sent_completely() {
    let Some(mounted) = Mounted::new(TpmChoice::None) else { return };
    let path = mounted.dir.path().join("noise");
    let file = fs::File::create(&path).unwrap();
    file.set_len(1 << 40).unwrap();
    let (said, heard) = mpsc::channel();
    thread::scope(|scope| {
        let mounted = &mounted;
        scope.spawn(move || {
            let answer = mounted.ask(&Ask::Replay { path, rate: None });
            said.send(answer.unwrap_err().to_string()).unwrap();
        });
        let error = heard.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(error.contains("not a binary measurement list"), "{error}");
    });
}
