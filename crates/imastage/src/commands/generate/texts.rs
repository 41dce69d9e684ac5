//! What manual pages say beyond the help of a command: exit status, files, environment, other pages.

/// A term and what is said of it.
pub type Entry<T = &'static str> = (&'static str, T);

/// The texts of one page.
pub struct Texts {
    /// What exit status 1 says; `None` if the command never has it.
    pub refuted: Option<&'static str>,
    pub files: Vec<Entry>,
    pub environment: Vec<Entry>,
    pub see_also: Vec<String>,
}

/// The paragraphs that describe the configuration file.
pub const CONFIGURATION: &[&str] = &[
    "The file is in TOML. Its keys are the options of imastage run without the leading hyphens; an \
     option on the command line takes precedence over the key. There are no sections. The file has at \
     most 1 MiB.",
    "A value is a string or a number; an option without a value is true or false. An unknown key and \
     an invalid value are errors: the service does not start, and the message names the line and the \
     nearest key.",
    "No file is read unless the command line names it; the packaged service is started with \
     --config /etc/imastage/imastage.toml. SIGHUP (systemctl reload imastage) makes the service read \
     the file again. If the file is then invalid, the service logs the error and keeps its \
     configuration.",
];

/// The packaged configuration.
pub const CONFIGURATION_FILE: Entry =
    ("/etc/imastage/imastage.toml", "The configuration of the packaged service.");

/// What the alert command finds in its environment.
pub const ALERT: &[Entry] = &[
    (
        "IMASTAGE_STATE",
        "Set for the command of the option alert: the name of the worst state of the service.",
    ),
    (
        "IMASTAGE_VERDICT",
        "Set for the command of the option alert: the name of the verdict of the last comparison \
         with the TPM.",
    ),
    (
        "IMASTAGE_STATUS",
        "Set for the command of the option alert: the status as imastage --json status prints it.",
    ),
];

const EVERY_COMMAND: &[Entry] = &[
    (
        "RUST_LOG",
        "Which messages are logged to standard error if --log-level is absent: error, warn, info, \
         debug or trace, or directives such as warn,imastage_service=debug. Warnings and errors if it \
         is not set.",
    ),
    ("NO_COLOR", "If set and not empty, nothing is printed in colour."),
    (
        "JOURNAL_STREAM",
        "Set by systemd(1). If it names standard error, each line of the log begins with its priority \
         for the journal, and has no time.",
    ),
];

const STATE_HOME: &[Entry] = &[
    (
        "XDG_STATE_HOME",
        "Where the default state directory is, unless the user is root. ~/.local/state if it is not \
         set or empty.",
    ),
    ("HOME", "The home directory, unless XDG_STATE_HOME is set."),
];

const RUNTIME_DIR: Entry = (
    "XDG_RUNTIME_DIR",
    "Where a sandbox keeps its sockets. /run for root and the directory for temporary files for \
     others if it is not set or empty.",
);

const TMPDIR: Entry = ("TMPDIR", "The directory for temporary files; /tmp if it is not set.");

const SERVICE_MANAGER: &[Entry] = &[
    (
        "NOTIFY_SOCKET",
        "The socket of the service manager, which is told when the service is ready, reloads and \
         shuts down (sd_notify(3)).",
    ),
    (
        "WATCHDOG_USEC, WATCHDOG_PID",
        "The time in microseconds within which the service manager expects a sign that the list is \
         drained, and the process that it expects it from (sd_watchdog_enabled(3)).",
    ),
];

const STATE: &[Entry] = &[
    ("/var/lib/imastage", "The default state directory if the user is root."),
    ("~/.local/state/imastage", "The default state directory of other users."),
    (
        "/var/lib/imastage-embedded, ~/.local/state/imastage-embedded",
        "The default state directory of a list that is not this machine's. Commands other than run use \
         it if the one above does not exist.",
    ),
];

const SOCKET: Entry =
    ("api.sock", "In the state directory: the socket on which the service answers requests.");

const EPOCHS: Entry = (
    "epochs/",
    "In the state directory: the stored records, one directory an epoch (docs/store-format.md).",
);

const KERNEL_LIST: Entry = (
    "/sys/kernel/security/ima",
    "The directory with the files of the kernel's measurement list; the list itself is \
     binary_runtime_measurements and ascii_runtime_measurements in it.",
);

const VIEW: Entry = ("/run/imastage/ima", "Where the packaged service mounts its view.");

const TPM: Entry = ("/dev/tpmrm0", "The TPM, unless another one is given.");

const FUSE: Entry = ("/dev/fuse", "The device through which file systems are served.");

/// The exit status of a command, and what each value says.
pub fn exit_status(refuted: Option<&'static str>) -> Vec<Entry> {
    let mut entries = vec![("0", "Success.")];
    entries.extend(refuted.map(|refuted| ("1", refuted)));
    entries.extend([
        ("2", "The command line is wrong, or the input cannot be used."),
        (
            "3",
            "The environment does not permit it: no TPM, no permission, a list or a state directory \
             in use, no service that answers.",
        ),
    ]);
    entries
}

/// The texts of a command's page, which is named as `imastage-store-check`.
pub fn of(page: &str) -> Texts {
    let mut names = page.split('-').skip(1);
    let command = names.next().unwrap_or_default();
    Texts {
        refuted: refuted(page),
        files: files(command),
        environment: environment(command),
        see_also: see_also(page, command),
    }
}

fn refuted(page: &str) -> Option<&'static str> {
    Some(match page {
        "imastage" => "The evidence was understood and does not hold.",
        "imastage-verify" => "The verdict is not pass.",
        "imastage-status" => {
            "Records are missing, altered or damaged, or the TPM does not prove them."
        }
        "imastage-doctor" => "The examination found a problem.",
        "imastage-replay" => {
            "With --pcrs: a PCR that records name does not have the value that they lead to, or was \
             never extended."
        }
        "imastage-check" => {
            "A digest, a signature, a template or a boot_aggregate is wrong, or cannot be accepted."
        }
        "imastage-diff" => "The lists differ.",
        "imastage-store" => "Stored records are damaged.",
        "imastage-store-check" => "Something is damaged.",
        "imastage-store-repair" => "Damage is left that can only be repaired from a backup.",
        "imastage-store-export" => {
            "The files were written, but their records do not lead to the stored PCR value."
        }
        "imastage-store-pack" => "An epoch is damaged and was not compressed.",
        "imastage-conformance" => "A case failed.",
        "imastage-demo" => "A step did not end as expected.",
        _ => return None,
    })
}

fn files(command: &str) -> Vec<Entry> {
    match command {
        "" => [&[CONFIGURATION_FILE], STATE, &[KERNEL_LIST, VIEW, TPM]].concat(),
        "run" => {
            [&[CONFIGURATION_FILE], STATE, &[SOCKET, EPOCHS, KERNEL_LIST, VIEW, TPM, FUSE]].concat()
        }
        "doctor" => [&[CONFIGURATION_FILE], STATE, &[KERNEL_LIST, VIEW, TPM]].concat(),
        "attest" | "status" | "log" => [STATE, &[SOCKET]].concat(),
        "verify" => vec![SOCKET],
        "store" => [STATE, &[EPOCHS]].concat(),
        "sandbox" => vec![
            ("control.sock", "In the run directory of a sandbox: where it takes requests."),
            FUSE,
        ],
        "demo" => vec![("/usr", "The files that are measured."), FUSE],
        _ => vec![KERNEL_LIST],
    }
}

fn environment(command: &str) -> Vec<Entry> {
    let own = match command {
        "run" => [SERVICE_MANAGER, ALERT, STATE_HOME, &[RUNTIME_DIR]].concat(),
        "attest" | "status" | "doctor" | "store" => STATE_HOME.to_vec(),
        "log" => [STATE_HOME, &[TMPDIR]].concat(),
        "show" | "conformance" => vec![TMPDIR],
        "sandbox" | "demo" => vec![RUNTIME_DIR, TMPDIR],
        _ => Vec::new(),
    };
    [own.as_slice(), EVERY_COMMAND].concat()
}

/// The pages above this one, and those of the same subject.
fn see_also(page: &str, command: &str) -> Vec<String> {
    let related: &[&str] = match page {
        "imastage" => &[
            "imastage.toml(5)",
            "evmctl(1)",
            "tpm2_quote(1)",
            "tpm2_pcrread(1)",
            "Documentation/security/IMA-templates.rst in the sources of Linux",
        ],
        "imastage-run" => &[
            "imastage.toml(5)",
            "imastage-status(1)",
            "imastage-doctor(1)",
            "imastage-store(1)",
            "sd_notify(3)",
        ],
        "imastage-attest" => &["imastage-verify(1)", "imastage-run(1)", "tpm2_quote(1)"],
        "imastage-verify" => {
            &["imastage-attest(1)", "imastage-check(1)", "tpm2_quote(1)", "tpm2_checkquote(1)"]
        }
        "imastage-status" => &["imastage-run(1)", "imastage-doctor(1)", "imastage-store(1)"],
        "imastage-doctor" => &["imastage-run(1)", "imastage.toml(5)"],
        "imastage-replay" => {
            &["imastage-verify(1)", "imastage-check(1)", "tpm2_pcrread(1)", "evmctl(1)"]
        }
        "imastage-show" => &["imastage-log(1)", "imastage-check(1)"],
        "imastage-log" => &["imastage-show(1)", "imastage-run(1)"],
        "imastage-check" => &["imastage-verify(1)", "imastage-replay(1)", "evmctl(1)"],
        "imastage-diff" => &["imastage-show(1)", "imastage-check(1)"],
        "imastage-store" => &["imastage-run(1)", "imastage-show(1)"],
        "imastage-sandbox" => &["imastage-conformance(1)", "imastage-run(1)", "swtpm(8)"],
        "imastage-conformance" => &["imastage-sandbox(1)"],
        "imastage-demo" => &["imastage-run(1)", "imastage-attest(1)", "imastage-verify(1)"],
        _ => &[],
    };
    let mut pages = Vec::new();
    if page != "imastage" {
        pages.push("imastage(1)".to_owned());
        let parent = format!("imastage-{command}");
        if page != parent {
            pages.push(format!("{parent}(1)"));
        }
    }
    pages.extend(related.iter().map(|page| (*page).to_owned()));
    pages
}
