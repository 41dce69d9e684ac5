//! A mounted sandbox's files, through the file system.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
    thread,
};

use ima_log::{Bank, Format, ListReplay, PcrTarget, Records};
use imastage_sandbox::{
    Config, Sandbox, TpmChoice,
    control::{Command as Ask, ask},
    tpm_of,
};
use imastage_tpm::{PcrSelection, Tpm};

use crate::mounted::{CURRENT, EBUSY, EEXIST, EINVAL, ENOENT, Mounted, STAGED, raw, wait_until};

#[test]
fn directory_matches_securityfs() {
    let Some(mounted) = Mounted::new(TpmChoice::None) else { return };
    let mut names: Vec<String> = fs::read_dir(mounted.mount())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "ascii_runtime_measurements",
            "ascii_runtime_measurements_sha1",
            "ascii_runtime_measurements_sha1_staged",
            "ascii_runtime_measurements_staged",
            "binary_runtime_measurements",
            "binary_runtime_measurements_sha1",
            "binary_runtime_measurements_sha1_staged",
            "binary_runtime_measurements_staged",
            "runtime_measurements_count",
            "violations",
        ]
    );
    let link = fs::read_link(mounted.file(STAGED)).unwrap();
    assert_eq!(link, Path::new("binary_runtime_measurements_sha1_staged"));
    let meta = fs::metadata(mounted.file(STAGED)).unwrap();
    assert!(meta.file_type().is_file() && !meta.file_type().is_fifo());
    assert_eq!((meta.permissions().mode() & 0o7777, meta.size()), (0o660, 0));
    let count = fs::metadata(mounted.file("violations")).unwrap();
    assert_eq!(count.permissions().mode() & 0o7777, 0o440);
    assert_eq!(fs::read_to_string(mounted.file("violations")).unwrap(), "0\n");
    assert_eq!(tpm_of(&mounted.mount()), None);

    let group = 12345;
    std::os::unix::fs::chown(mounted.file(CURRENT), None, Some(group)).unwrap_or_else(|error| {
        // Only root may change a file's group to any group.
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    });
    assert_eq!(fs::remove_file(mounted.file("violations")).map_err(raw), Err(1));
}

#[test]
fn stage_delete_and_refusals_match_the_kernel() {
    let Some(mounted) = Mounted::new(TpmChoice::None) else { return };
    assert!(mounted.records(CURRENT).contains(&"boot_aggregate".to_owned()));
    let ours = |name: &str| -> Vec<String> {
        let all = mounted.records(name);
        all.into_iter().filter(|name| name.starts_with("test-")).collect()
    };
    mounted.add(&["test-a", "test-b"]);
    assert_eq!(mounted.request(STAGED, "D\n"), Err(ENOENT));
    mounted.request(STAGED, "A\n").unwrap();
    assert_eq!(mounted.request(STAGED, "A\n"), Err(EEXIST));
    assert_eq!(ours(STAGED), ["test-a", "test-b"]);
    assert!(ours(CURRENT).is_empty());
    mounted.add(&["test-c"]);
    assert_eq!(ours(STAGED), ["test-a", "test-b"]);
    assert_eq!(ours(CURRENT), ["test-c"]);
    mounted.request(STAGED, "D\n").unwrap();
    assert!(mounted.records(STAGED).is_empty());
    assert_eq!(ours(CURRENT), ["test-c"]);

    assert_eq!(mounted.request(CURRENT, "1000000\n"), Err(ENOENT));
    let count = mounted.count();
    mounted.request(CURRENT, &format!("{count}\n")).unwrap();
    assert!(ours(CURRENT).is_empty());
    for (file, request) in [
        (CURRENT, "A\n"),
        (CURRENT, "0\n"),
        (CURRENT, "5"),
        (STAGED, "5\n"),
        (STAGED, "A"),
        (STAGED, "a\n"),
    ] {
        assert_eq!(mounted.request(file, request), Err(EINVAL), "{request:?} on {file}");
    }
    // An unchanged file is not recorded again.
    assert_eq!(mounted.measure(&[mounted.dir.path().join("test-a")]).known, 1);
}

#[test]
fn open_files_are_one_writer_or_many_readers() {
    let Some(mounted) = Mounted::new(TpmChoice::None) else { return };
    let read = |name: &str| File::open(mounted.file(name)).map_err(raw);
    let write =
        |name: &str| File::options().read(true).write(true).open(mounted.file(name)).map_err(raw);
    let reader = read(CURRENT).unwrap();
    let other = read(STAGED).unwrap();
    assert_eq!(write(STAGED).err(), Some(EBUSY));
    drop(reader);
    assert_eq!(write(STAGED).err(), Some(EBUSY));
    drop(other);

    let mut writer = write(STAGED).unwrap();
    assert_eq!(read(CURRENT).err(), Some(EBUSY));
    // This thread may open more files for writing; other threads may not.
    let second = write(CURRENT).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| assert_eq!(write(CURRENT).err(), Some(EBUSY)));
    });
    drop(second);
    assert_eq!(read(CURRENT).err(), Some(EBUSY));

    // A transaction on one descriptor.
    mounted.add(&["test-x"]);
    writer.write_all(b"A\n").unwrap();
    let mut bytes = Vec::new();
    writer.read_to_end(&mut bytes).unwrap();
    assert!(String::from_utf8_lossy(&bytes).contains("test-x"));
    writer.rewind().unwrap();
    let mut again = Vec::new();
    writer.read_to_end(&mut again).unwrap();
    assert_eq!(again, bytes);
    writer.write_all(b"D\n").unwrap();
    drop(writer);
    read(CURRENT).unwrap();
}

#[test]
fn shell_script_can_stage_and_delete() {
    let Some(mounted) = Mounted::new(TpmChoice::None) else { return };
    mounted.add(&["test-shell"]);
    let script = r#"
        cd "$1"
        exec 3<>ascii_runtime_measurements_staged
        echo A >&3 && cat <&3 && echo D >&3
        exec 3>&-
        cat ascii_runtime_measurements_sha1_staged
        echo 1 >binary_runtime_measurements 2>/dev/null || cat runtime_measurements_count"#;
    let output =
        Command::new("sh").args(["-e", "-c", script, "sh"]).arg(mounted.mount()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.starts_with("10 ") && text.contains(" ima-ng sha256:"), "{text}");
    assert_eq!(text.matches("test-shell").count(), 1, "{text}");
}

#[test]
fn every_record_extends_the_tpm_in_list_order() {
    let Some(mounted) = Mounted::new(TpmChoice::Swtpm) else { return };
    let endpoint = tpm_of(&mounted.mount()).unwrap();
    assert_eq!(mounted.sandbox.as_ref().unwrap().tpm_endpoint(), Some(&endpoint));
    let mut tpm = Tpm::connect(&endpoint).unwrap();
    // Concurrent measurements: their order is arbitrary, but equal in list and TPM.
    thread::scope(|scope| {
        for thread in 0..4 {
            let mounted = &mounted;
            scope.spawn(move || {
                for i in 0..50 {
                    mounted.add(&[&format!("test-{thread}-{i}")]);
                }
            });
        }
    });
    let banks = tpm.banks().unwrap();
    assert_eq!(banks.len(), 4);
    // One read of all banks, so that the values belong to one moment.
    let selection: Vec<_> =
        banks.iter().map(|bank| PcrSelection { bank: *bank, pcrs: 1 << 10 }).collect();
    let pcrs = tpm.pcr_values(&selection).unwrap();
    let list = fs::read(mounted.file(CURRENT)).unwrap();
    let mut search = ListReplay::new(banks.iter().copied());
    let targets = pcrs.iter().map(|(_, pcr, value)| PcrTarget { pcr: *pcr, value: *value });
    search.look_for(&targets.collect::<Vec<_>>());
    for record in Records::new(&list, Format::native(Bank::Sha1)) {
        search.push(&record.unwrap());
    }
    // The list is read after the PCRs, so it is never behind them.
    assert!(search.agreement().is_some_and(|prefix| prefix.from >= 201), "{search:?}");

    // Each bank has its files.
    let sha256 = fs::read(mounted.file("binary_runtime_measurements_sha256")).unwrap();
    let mut computed = Vec::new();
    for record in Records::new(&list, Format::native(Bank::Sha1)) {
        record.unwrap().write_binary(Bank::Sha256, &mut computed);
    }
    assert!(sha256.starts_with(&computed));
    let ascii = fs::read(mounted.file("ascii_runtime_measurements_sha512")).unwrap();
    assert!(ascii.len() > list.len());
}

#[test]
fn executed_programs_are_measured_as_root() {
    let Some(mounted) = Mounted::with(TpmChoice::None, |c| c.watch = true) else { return };
    if let Err(why) = mounted.sandbox.as_ref().unwrap().watches_programs() {
        assert!(!rustix::process::geteuid().is_root() || why.contains("fanotify"), "{why}");
        eprintln!("SKIPPED: {why}");
        return;
    }
    let program = mounted.dir.path().join("test-program");
    fs::copy("/bin/true", &program).unwrap();
    // A fork in another thread can have the copy open for writing for a moment.
    let mut ended = None;
    wait_until("the program can be executed", || match Command::new(&program).status() {
        Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => false,
        status => {
            ended = Some(status.unwrap());
            true
        }
    });
    assert!(ended.unwrap().success());
    wait_until("the program is measured", || {
        mounted.records(CURRENT).iter().any(|name| name == "test-program")
    });
}

#[test]
fn stop_unmounts_and_start_refuses_a_directory_that_is_not_empty() {
    let Some(mut mounted) = Mounted::new(TpmChoice::None) else { return };
    mounted.sandbox.take().unwrap().stop();
    assert!(fs::read_dir(mounted.mount()).unwrap().next().is_none());
    fs::write(mounted.file("something"), "").unwrap();
    let config = Config::new(mounted.mount(), TpmChoice::None);
    let error = Sandbox::start(&config).err().unwrap().to_string();
    assert!(error.contains("give an empty directory"), "{error}");
    let error = ask(&mounted.mount(), &Ask::Status, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("no sandbox answers"), "{error}");
}
