//! The kernel's boot parameters and policy, and their consequences for the list.

use imastage_source::Dialect;

use crate::{
    finding::{
        Finding,
        Severity::{Note, Ok as Fine, Problem, Warning},
        bytes, count,
    },
    kernel::Kernel,
    list::List,
    machine::{Machine, Options},
};

/// Irrelevant for a list that is not the kernel's.
pub(crate) fn examine(
    machine: &Machine,
    kernel: &Kernel,
    list: Option<&List>,
    findings: &mut Vec<Finding>,
) {
    let Some(options) = &kernel.options else { return };
    measuring(machine, options, list, findings);
    own_reads(machine, options, findings);
    byte_order(options, findings);
    hashing(options, findings);
    templates(options, list, findings);
    if let Some(list) = list {
        memory(kernel, options, list, findings);
    }
}

fn measuring(
    machine: &Machine,
    options: &Options,
    list: Option<&List>,
    findings: &mut Vec<Finding>,
) {
    let check = "kernel.policy";
    let given = match options.value("ima_policy") {
        Some(policy) => Some(format!("ima_policy={policy}")),
        None if options.has("ima_tcb") => Some("ima_tcb".to_owned()),
        // systemd loads it (systemd-executor(1), IMA).
        None if machine.path("/etc/ima/ima-policy").exists() => {
            Some("/etc/ima/ima-policy".to_owned())
        }
        None => None,
    };
    let is_bare = list.is_some_and(|list| list.records <= 1);
    findings.push(match given {
        Some(given) => Finding::new(check, Fine, format!("the policy is from {given}")),
        None if is_bare => Finding::new(check, Warning, "IMA measures nothing: there is no policy")
            .why("the list holds no more than boot_aggregate, and says nothing about this machine")
            .fix("boot with a policy, or have systemd load /etc/ima/ima-policy:")
            .lines(["ima_policy=tcb".to_owned()]),
        None => Finding::new(check, Note, "the policy is not from the command line")
            .why("something loads it later, and nothing that ran before is measured"),
    });
}

/// Rules that measure reads of the view, or of the store on a disk (seen on 6.1 and 6.12).
fn own_reads(machine: &Machine, options: &Options, findings: &mut Vec<Finding>) {
    // It replaces the policy of the command line.
    let loaded = machine.text("/etc/ima/ima-policy").ok();
    let built_in = options.value("ima_policy").unwrap_or_default();
    let is_measured = match &loaded {
        Some(rules) => measures_fuse(rules),
        None => options.has("ima_tcb") || built_in.split(['|', ' ']).any(|name| name == "tcb"),
    };
    if !is_measured {
        return;
    }
    let found = match loaded {
        Some(_) => "/etc/ima/ima-policy measures what is read from FUSE",
        None => "the policy tcb measures what is read from FUSE",
    };
    let finding = Finding::new("kernel.policy.view", Warning, found)
        .why(
            "each time root opens a file of the view the kernel reads all of it and adds a record; \
             the store on a disk is measured, too",
        )
        .fix(
            "have a policy of your own (/etc/ima/ima-policy) begin with these, the second with the \
             UUID of the file system of the state directory, if that has one of its own; what is \
             executed from there is measured all the same:",
        )
        .lines([
            format!("dont_measure func=FILE_CHECK fsmagic={FUSE}"),
            "dont_measure func=FILE_CHECK fsuuid=UUID".to_owned(),
        ]);
    findings.push(finding);
}

/// FUSE_SUPER_MAGIC.
const FUSE: &str = "0x65735546";

/// Whether the first of these rules (Documentation/ABI/testing/ima_policy) that is about any file
/// that is read, or about those of FUSE, measures it. If a rule measures only for some readers,
/// root is assumed to be one of them.
fn measures_fuse(rules: &str) -> bool {
    for rule in rules.lines().map(str::trim).filter(|rule| !rule.starts_with('#')) {
        let value = |name: &str| {
            rule.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let about_reading = matches!(value("func"), None | Some("FILE_CHECK" | "PATH_CHECK"));
        // A rule about other file systems, by any property.
        let elsewhere = value("fsmagic").is_some_and(|magic| !magic.eq_ignore_ascii_case(FUSE))
            || value("fsname").is_some_and(|name| name != "fuse")
            || rule.contains(" fsuuid=")
            || rule.contains(" obj_");
        if !about_reading || elsewhere {
            continue;
        }
        let mut words = rule.split_whitespace();
        let action = words.next();
        let is_for_all = words.all(|word| {
            ["func=", "mask=", "fsmagic=", "fsname="].iter().any(|name| word.starts_with(name))
        });
        match action {
            Some("measure") => return true,
            Some("dont_measure") if is_for_all => return false,
            _ => {}
        }
    }
    false
}

fn byte_order(options: &Options, findings: &mut Vec<Finding>) {
    if !options.has("ima_canonical_fmt") {
        return;
    }
    let check = "kernel.byte-order";
    findings.push(if cfg!(target_endian = "big") {
        Finding::new(check, Problem, "ima_canonical_fmt: this kernel's list is little-endian")
            .why("the service reads lists in the byte order of its own machine, which is the other")
            .fix("boot without ima_canonical_fmt")
    } else {
        Finding::new(check, Note, "ima_canonical_fmt changes nothing on this machine")
            .why("its list is little-endian either way")
    });
}

fn hashing(options: &Options, findings: &mut Vec<Finding>) {
    let check = "kernel.hash";
    if let Some(hash @ ("sha1" | "md5")) = options.value("ima_hash") {
        let finding = Finding::new(check, Warning, format!("files are measured with {hash}"))
            .why("another file with the same digest can be made")
            .fix("boot with a stronger one:")
            .lines(["ima_hash=sha256".to_owned()]);
        findings.push(finding);
    }
}

/// Templates that agents and verifiers of others do not read (seen with keylime's 7.14).
fn templates(options: &Options, list: Option<&List>, findings: &mut Vec<Finding>) {
    const KNOWN: [&str; 4] = ["ima", "ima-ng", "ima-sig", "ima-buf"];
    let check = "kernel.template";
    let option = options.value("ima_template").map(ToOwned::to_owned);
    let seen = list.map(|list| list.templates.clone()).unwrap_or_default();
    let mut names: Vec<String> = option.into_iter().chain(seen).collect();
    names.sort();
    names.dedup();
    if names.iter().any(|name| name == "ima") {
        let finding = Finding::new(check, Warning, "records are in the template `ima`")
            .why("it holds SHA-1 or MD5 only, cuts long names, and is not handed over by kexec")
            .fix("boot with another one:")
            .lines(["ima_template=ima-sig".to_owned()]);
        findings.push(finding);
    }
    names.retain(|name| !KNOWN.contains(&name.as_str()));
    if !names.is_empty() {
        let found = format!("records are in {}", names.join(", "));
        let finding = Finding::new(check, Note, found)
            .why("keylime's verifier does not read that template, and fails on the list")
            .fix("if keylime verifies this machine, boot with one that it reads:")
            .lines(["ima_template=ima-sig".to_owned()]);
        findings.push(finding);
    }
}

fn memory(kernel: &Kernel, options: &Options, list: &List, findings: &mut Vec<Finding>) {
    let check = "kernel.memory";
    let per_record = per_record(digests(list));
    let held = list.records * per_record;
    let has_table =
        !kernel.config.as_ref().is_some_and(|config| config.is_set("IMA_DISABLE_HTABLE"));
    let flush = options.has("ima_flush_htable");
    let records = count(list.records, "record");
    let held_text = format!("the kernel holds about {} for {records}", bytes(held));
    if !kernel.can_delete {
        let finding = Finding::new(check, Note, held_text)
            .why("this kernel cannot delete records: none of it is freed before the next boot");
        findings.push(finding);
        return;
    }
    // The trim patches free only the records' data, with every option.
    let flushes = flush && kernel.dialect != Dialect::Trim;
    if has_table && !flushes {
        let freed = list.records * FREED;
        let found = format!("deleting {records} frees about {} of {}", bytes(freed), bytes(held));
        let finding = Finding::new(check, Warning, found)
            .why(format!(
                "the kernel keeps the digests to know what it has measured: of about {per_record} \
                 bytes a record {FREED} are freed"
            ))
            .fix("to free all of it (delete N is refused then, A and D are not), boot with:")
            .lines(["ima_flush_htable".to_owned()]);
        findings.push(finding);
        return;
    }
    let found = format!("deleting {records} frees all of about {}", bytes(held));
    findings.push(Finding::new(check, Fine, found));
    if flush && has_table {
        let finding = Finding::new("kernel.flush", Note, "ima_flush_htable: delete N is refused")
            .why("the kernel forgets what it has measured at each D, and measures it again")
            .fix("drain by staging, which is the default; leave --delete-mode first-n alone");
        findings.push(finding);
    }
}

/// Bytes of template data that deleting a record frees while its digests stay (measured with the
/// patches of Linux 7.2 and ima-ng records, with two and with four banks).
const FREED: u64 = 80;

/// Bytes of kernel memory that a record takes: two of its structures (64 each), its template data,
/// and a slab object for its digests, 66 bytes each. Gives the 400 bytes that were measured with
/// two digests and the 720 with four.
fn per_record(digests: u64) -> u64 {
    const SLABS: [u64; 8] = [64, 96, 128, 192, 256, 512, 1024, 2048];
    let needed = 66 * digests;
    let slab = SLABS.into_iter().find(|slab| *slab >= needed).unwrap_or(needed);
    64 + 64 + FREED + slab
}

/// How many digests the kernel keeps of a record: the TPM's banks, and SHA-1 in any case.
fn digests(list: &List) -> u64 {
    let banks = list.pcrs.iter().map(|pcr| pcr.bank().name().to_owned());
    let mut names: Vec<String> = banks.chain(list.banks.iter().cloned()).collect();
    names.push("sha1".to_owned());
    names.sort();
    names.dedup();
    names.len() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_about_fuse_counts() {
        let reads = "measure func=FILE_CHECK mask=^MAY_READ euid=0\n";
        let left_out = "dont_measure func=FILE_CHECK fsmagic=0x65735546\n";
        let others = "# measure\n\ndont_measure fsmagic=0x9fa0\ndont_measure fsuuid=a-b\n\
                      measure func=BPRM_CHECK mask=MAY_EXEC\nappraise fowner=0\n";
        assert!(!measures_fuse(others));
        assert!(measures_fuse(&format!("{others}{reads}")));
        assert!(measures_fuse(&format!("{reads}{left_out}")));
        assert!(!measures_fuse(&format!("{others}{left_out}{reads}")));
        assert!(!measures_fuse(&format!("dont_measure fsname=fuse\n{reads}")));
        assert!(measures_fuse("measure mask=MAY_READ uid=0"));
        assert!(measures_fuse(&format!("dont_measure fowner=5\ndont_measure obj_type=a\n{reads}")));
    }

    #[test]
    fn memory_is_what_was_measured() {
        assert_eq!(per_record(2), 400);
        assert_eq!(per_record(4), 720);
    }
}
