//! The kernel: IMA, the way in which records leave its list, and its configuration.

use imastage_source::{DeleteMode, Dialect, SourceError};

use crate::{
    finding::{
        Finding,
        Severity::{Note, Ok as Fine, Problem, Unknown, Warning},
    },
    machine::{Config, Machine, Options},
};

/// The properties of the kernel that other checks need.
pub(crate) struct Kernel {
    /// The way in which records leave its list.
    pub(crate) dialect: Dialect,
    /// Whether records can be deleted: in a dialect, or only by N (Linux 7.2 without
    /// CONFIG_IMA_STAGING).
    pub(crate) can_delete: bool,
    /// Its command line, if it is a kernel's list and can be read.
    pub(crate) options: Option<Options>,
    /// Its configuration, if it is a kernel's list and can be read.
    pub(crate) config: Option<Config>,
}

/// `None` if there is no list.
pub(crate) fn examine(machine: &Machine, findings: &mut Vec<Finding>) -> Option<Kernel> {
    let check = "kernel.ima";
    let config = machine.is_kernel.then(|| machine.config()).flatten();
    let dir = &machine.source;
    let shown = machine.name(dir);
    let dialect = match Dialect::of(dir) {
        Ok(dialect) => dialect,
        Err(SourceError::Missing { .. }) if machine.is_kernel => {
            findings.push(without_ima(machine, config.as_ref()));
            return None;
        }
        Err(SourceError::DeadMount { .. }) => {
            let found = format!("{} is a FUSE mount whose server is gone", shown.display());
            let finding = Finding::new(check, Problem, found)
                .why("there is no list to drain: a sandbox was killed, and its list ended with it")
                .fix("start the sandbox again, which takes the directory over, or unmount it:")
                .lines([format!("umount -l {}", shown.display())]);
            findings.push(finding);
            return None;
        }
        Err(SourceError::Missing { .. }) => {
            let found = format!("there is no measurement list in {}", shown.display());
            let finding = Finding::new(check, Problem, found)
                .why("there is nothing to drain")
                .fix("give --source the directory with binary_runtime_measurements in it");
            findings.push(finding);
            return None;
        }
        Err(error) => {
            let finding = Finding::new(check, Unknown, error.to_string())
                .why("whether there is a list, and how records leave it, is in its files' modes")
                .fix("run as root (the permission to enter that directory is missing)");
            findings.push(finding);
            return None;
        }
    };
    // If the dialect does not show it.
    let takes_n = || imastage_source::open(dir, Some(DeleteMode::FirstN)).is_ok();
    let can_delete = dialect != Dialect::Follow || takes_n();
    let options = machine.is_kernel.then(|| machine.options().ok()).flatten();
    let kernel = Kernel { dialect, can_delete, options, config };
    let whose = if machine.is_kernel {
        match machine.release() {
            Some(release) => format!("Linux {release}"),
            None => "the kernel".to_owned(),
        }
    } else {
        "no kernel's list (a sandbox?)".to_owned()
    };
    findings.push(Finding::new(
        check,
        Fine,
        format!("{whose}: IMA's files in {}", shown.display()),
    ));
    findings.push(shortening(&kernel));
    if let Some(config) = &kernel.config {
        findings.push(build(config));
        if !config.is_set("IMA_READ_POLICY") {
            let found = "the policy cannot be read back (CONFIG_IMA_READ_POLICY is not set)";
            let why = "what the kernel measures can only be told from the list";
            findings.push(Finding::new("kernel.config", Note, found).why(why));
        }
    } else if machine.is_kernel {
        let found = "how the kernel was built cannot be read";
        let release = machine.release().unwrap_or_else(|| "RELEASE".into());
        let why = format!(
            "neither /boot/config-{release} nor /proc/config.gz can be read; what depends on \
             CONFIG_IMA_KEXEC and CONFIG_IMA_DISABLE_HTABLE is guessed (both off)"
        );
        findings.push(Finding::new("kernel.config", Note, found).why(why));
    }
    if machine.is_kernel {
        kexec(machine, &kernel, findings);
        securityfs_is_writable(machine, &kernel, findings);
        guards(machine, findings);
    }
    Some(kernel)
}

fn shortening(kernel: &Kernel) -> Finding {
    let check = "kernel.dialect";
    match kernel.dialect {
        Dialect::Linux72 => {
            Finding::new(check, Fine, "dialect 7.2: stage, read, delete staged; or delete N")
        }
        Dialect::V4 => Finding::new(check, Note, "dialect v4: A, D and N, all on the staged files")
            .why("this is the interface as it was proposed, not that of Linux 7.2")
            .fix("nothing: it is drained all the same; other tools may not know it"),
        Dialect::Trim => {
            Finding::new(check, Note, "dialect trim: T:N on ima_trim_log, nothing is staged")
                .why("this interface was proposed and not merged")
                .fix("nothing: it is drained all the same; other tools may not know it")
        }
        Dialect::Follow if kernel.can_delete => Finding::new(
            check,
            Warning,
            "records can be deleted (N) but not staged (no A, no D)",
        )
        .why(
            "Linux 7.2 without CONFIG_IMA_STAGING; the list is only followed unless N is \
                     asked for, and then reading and deleting are two steps, between which someone \
                     else can delete the same records",
        )
        .fix(
            "build the kernel with CONFIG_IMA_STAGING=y; or run with --delete-mode first-n and \
                     let nobody else delete",
        ),
        Dialect::Follow => {
            Finding::new(check, Warning, "this kernel cannot delete records: follow only")
                .why(
                    "everything is kept, shown and attested as elsewhere, but the kernel's memory \
                     is not freed and its list grows until the next boot",
                )
                .fix("Linux 7.2 or later, built with CONFIG_IMA_STAGING=y, can")
        }
    }
}

/// The reason that the kernel's list does not exist.
fn without_ima(machine: &Machine, config: Option<&Config>) -> Finding {
    let finding = |found: &str| Finding::new("kernel.ima", Problem, found);
    let stand_in = "or use a list in user space: imastage run --source embedded";
    if let Some(config) = config.filter(|config| !config.is_set("IMA")) {
        return finding("this kernel has no IMA")
            .why(format!("CONFIG_IMA is not set in {}: nothing is measured", config.path.display()))
            .fix(format!("boot a kernel built with CONFIG_IMA=y, {stand_in}"));
    }
    let is_mounted = machine.mounts().iter().any(|mount| mount.kind == "securityfs");
    if !is_mounted {
        return finding("securityfs is not mounted")
            .why("the kernel shows the measurement list there and nowhere else")
            .fix("mount it (systemd does so by itself, if the kernel has it):")
            .lines(["mount -t securityfs securityfs /sys/kernel/security".to_owned()]);
    }
    finding("securityfs is mounted, but there is no ima directory in it")
        .why("IMA is not built into this kernel, or it failed to start: see dmesg")
        .fix(format!("boot a kernel built with CONFIG_IMA=y, {stand_in}"))
}

fn build(config: &Config) -> Finding {
    const NAMES: [&str; 5] =
        ["IMA_STAGING", "IMA_KEXEC", "IMA_DISABLE_HTABLE", "IMA_READ_POLICY", "IMA_WRITE_POLICY"];
    let set = |name: &&str| format!("{name}={}", if config.is_set(name) { 'y' } else { 'n' });
    let settings: Vec<String> = NAMES.iter().map(set).collect();
    let found = format!("{}: {}", config.path.display(), settings.join(" "));
    Finding::new("kernel.config", Fine, found)
}

fn kexec(machine: &Machine, kernel: &Kernel, findings: &mut Vec<Finding>) {
    let carries = kernel.config.as_ref().is_some_and(|config| config.is_set("IMA_KEXEC"));
    let check = "kernel.kexec";
    match machine.value("/sys/kernel/kexec_loaded").as_deref() {
        Some("1") if !carries => findings.push(
            Finding::new(
                check,
                Problem,
                "a kernel is loaded for kexec, and this one hands no records over",
            )
            .why(
                "CONFIG_IMA_KEXEC is off, so records that are not drained when the kexec happens \
                 are lost while PCR 10 goes on: the machine cannot be verified before the next TPM \
                 reset",
            )
            .fix("unload it and reboot through the firmware instead:")
            .lines(["kexec -u".to_owned()]),
        ),
        Some("1") => findings.push(
            Finding::new(check, Warning, "a kernel is loaded for kexec")
                .why(
                    "the room for records was measured when it was loaded: if the list outgrows \
                     it, its end is lost, and records deleted before are not handed over",
                )
                .fix("keep the service running up to the kexec; load the kernel right before"),
        ),
        Some(_) if !carries => findings.push(
            Finding::new(check, Note, "a kexec would hand no records over (no CONFIG_IMA_KEXEC)")
                .why("PCR 10 would go on, and only what is stored here by then could explain it")
                .fix("reboot through the firmware, or stop the service last before a kexec"),
        ),
        _ => {}
    }
}

fn securityfs_is_writable(machine: &Machine, kernel: &Kernel, findings: &mut Vec<Finding>) {
    let mounts = machine.mounts();
    let Some(mount) = mounts.iter().rfind(|mount| mount.kind == "securityfs") else { return };
    if mount.is_read_only && kernel.can_delete {
        let found = format!("{} is mounted read-only", mount.point.display());
        let finding = Finding::new("kernel.securityfs", Problem, found)
            .why("requests to stage and delete records are written to its files")
            .fix("mount it writable:")
            .lines([format!("mount -o remount,rw {}", mount.point.display())]);
        findings.push(finding);
    }
}

/// Security modules that can deny the service access to the files.
fn guards(machine: &Machine, findings: &mut Vec<Finding>) {
    let mut guards = Vec::new();
    match machine.value("/sys/fs/selinux/enforce").as_deref() {
        Some("1") => guards.push("SELinux enforces".to_owned()),
        Some(_) => guards.push("SELinux is permissive".to_owned()),
        None => {}
    }
    if machine.value("/sys/module/apparmor/parameters/enabled").as_deref() == Some("Y") {
        guards.push("AppArmor is on".to_owned());
    }
    // The current mode is in brackets.
    let lockdown = machine.text("/sys/kernel/security/lockdown").unwrap_or_default();
    if let Some(mode) = lockdown.split(['[', ']']).nth(1).filter(|mode| *mode != "none") {
        guards.push(format!("lockdown is {mode}"));
    }
    if !guards.is_empty() {
        let finding = Finding::new("kernel.guards", Note, guards.join("; "))
            .why("if opening a file is refused though the permissions are right, look there first");
        findings.push(finding);
    }
}
