//! The examples in the help of each command, which its manual page shows as well. A line that begins
//! with `#` says what the command line below it does.

pub const IMASTAGE: &str = "\
Examples:
  # See on this machine what the program does
  imastage demo
  # Find out whether this machine is ready
  imastage doctor
  # Store the kernel's records and delete them from kernel memory, as root
  imastage run --source /sys/kernel/security/ima
  # Ask the running service for its status
  imastage status";

pub const RUN: &str = "\
Examples:
  # Try the service with a list and a TPM of its own
  imastage run --source embedded --state /tmp/imastage
  # Check what the service would do with the kernel's list, and what prevents it
  imastage run --source /sys/kernel/security/ima --check
  # Run as the packaged service does
  imastage run --config /etc/imastage/imastage.toml";

pub const ATTEST: &str = "\
Examples:
  # Give the verifier the attestation key of this machine, once
  imastage attest --key >machine.pem
  # Get evidence over the nonce of the verifier
  imastage attest --nonce 2f4d8a6be01793c5d2f4d8a6be01793c --out evidence
  # Get evidence with the records from record 20462 on
  imastage attest --nonce 2f4d8a6be01793c5d2f4d8a6be01793c --from 20462 --out evidence";

pub const VERIFY: &str = "\
Examples:
  # Ask the service on this machine, and continue where the last round ended
  imastage verify --state /var/lib/imastage --key machine.pem --token machine.token
  # Verify evidence in files
  imastage verify --quote evidence/quote.msg --signature evidence/quote.sig \\
      --key machine.pem --nonce 2f4d8a6be01793c5d2f4d8a6be01793c evidence/list
  # Require that boot_aggregate is compared as well
  imastage verify --state /var/lib/imastage --key machine.pem --pcr 0-9";

pub const STATUS: &str = "\
Examples:
  # Ask the service
  imastage status
  # Ask it every 5 seconds
  imastage status --watch 5
  # Get the number of stored records
  imastage --json status | jq .records";

pub const DOCTOR: &str = "\
Examples:
  # Examine this machine
  imastage doctor
  # Examine the places that the packaged service uses
  imastage doctor --config /etc/imastage/imastage.toml
  # Examine another directory of the list's files
  imastage doctor --source /tmp/ima --state /tmp/imastage";

pub const REPLAY: &str = "\
Examples:
  # Print the PCR values that the kernel's list leads to
  imastage replay /sys/kernel/security/ima/binary_runtime_measurements
  # Compare them with the PCRs of the TPM
  tpm2_pcrread >pcrs && imastage replay --pcrs pcrs /var/lib/imastage
  # Only PCR 10 of bank sha256
  imastage replay --bank sha256 --pcr 10 list.gz";

pub const SHOW: &str = "\
Examples:
  # Kernel modules, in words
  imastage show --path '*.ko' --as details /var/lib/imastage
  # Violations below a directory, one JSON object a line
  imastage show --violations --path /usr/lib/ --as json list.gz
  # As the kernel's ascii_runtime_measurements_sha256
  imastage show --bank sha256 /var/lib/imastage
  # Records 1000 to 1009
  imastage show --from 1000 --count 10 /var/lib/imastage";

pub const LOG: &str = "\
Examples:
  # Show programs as they are measured
  imastage log --follow --path '/usr/bin/*'
  # Write the records from record 20462 on to a file, as the kernel's binary list
  imastage log --from 20462 --as binary >records";

pub const CHECK: &str = "\
Examples:
  # Check every digest
  imastage check /var/lib/imastage
  # Also verify the signature of every file, and list the files without one
  imastage check --key ima_x509.der --unsigned /var/lib/imastage
  # Also check boot_aggregate
  tpm2_pcrread >pcrs && imastage check --pcrs pcrs /var/lib/imastage";

pub const DIFF: &str = "\
Examples:
  # Compare two copies of a list
  imastage diff before after.gz
  # Compare what is stored with the list of another machine
  ssh machine cat /sys/kernel/security/ima/binary_runtime_measurements \\
      | imastage diff stored -";

pub const STORE: &str = "\
Examples:
  # Read and check all that is stored
  imastage store check
  # Compress closed epochs
  imastage store pack";

pub const STORE_CHECK: &str = "\
Examples:
  # Read and check all epochs of the default state directory
  imastage store check
  # Only epoch 3 of another state directory
  imastage store check --epoch 3 --state /srv/imastage";

pub const STORE_REPAIR: &str = "\
Examples:
  # Say what a repair would do
  imastage store repair --dry-run
  # Repair, while no service runs
  systemctl stop imastage && imastage store repair";

pub const STORE_EXPORT: &str = "\
Examples:
  # Write the latest epoch to a new directory
  imastage store export /tmp/records
  # Write epoch 3 with the files of banks sha1 and sha256
  imastage store export --epoch 3 --bank sha256 /tmp/records";

pub const STORE_PACK: &str = "\
Examples:
  # Compress closed epochs of the default state directory
  imastage store pack
  # Of another one
  imastage store pack --state /srv/imastage";

pub const STORE_PRUNE: &str = "\
Examples:
  # Say what would be removed if 10 closed epochs were kept
  imastage store prune --keep-epochs 10 --dry-run
  # Keep at most 2 GiB, and nothing that was closed more than a year ago
  imastage store prune --max-bytes 2G --max-age 52w";

pub const SANDBOX: &str = "\
Examples:
  # Mount a list with the files of Linux 7.2 and a software TPM
  imastage sandbox --mount /tmp/ima
  # Measure files, from another terminal
  imastage sandbox measure --mount /tmp/ima /usr/bin
  # The interface of version 4 of the patches, without a TPM
  imastage sandbox --mount /tmp/ima --dialect v4 --tpm none";

pub const SANDBOX_MEASURE: &str = "\
Examples:
  # Measure all files below a directory
  imastage sandbox measure --mount /tmp/ima /usr/bin
  # Extend PCR 11 with a file
  imastage sandbox measure --mount /tmp/ima --pcr 11 /etc/hostname";

pub const SANDBOX_VIOLATION: &str = "\
Examples:
  # Add two violations
  imastage sandbox violation --mount /tmp/ima /var/log/wtmp /var/log/lastlog";

pub const SANDBOX_CRITICAL_DATA: &str = "\
Examples:
  # Measure the contents of a file as data
  imastage sandbox critical-data --mount /tmp/ima selinux-state /tmp/state
  # Measure standard input
  echo enforcing=1 | imastage sandbox critical-data --mount /tmp/ima selinux-state";

pub const SANDBOX_REPLAY: &str = "\
Examples:
  # Add the records of a machine's list
  imastage sandbox replay --mount /tmp/ima list
  # At most 1000 records a second
  imastage sandbox replay --mount /tmp/ima --rate 1000 list";

pub const SANDBOX_SUSPEND: &str = "\
Examples:
  # Stop measuring, as before a kexec
  imastage sandbox suspend --mount /tmp/ima
  # Also write the records for the next kernel
  imastage sandbox suspend --mount /tmp/ima --dump";

pub const SANDBOX_KEXEC: &str = "\
Examples:
  # Carry all records over to the next kernel
  imastage sandbox kexec --mount /tmp/ima
  # Continue with a kernel that takes no records over
  imastage sandbox kexec --mount /tmp/ima --forget";

pub const SANDBOX_REBOOT: &str = "\
Examples:
  # Begin with an empty list and a reset TPM
  imastage sandbox reboot --mount /tmp/ima";

pub const SANDBOX_STATUS: &str = "\
Examples:
  # Print the state of the list
  imastage sandbox status --mount /tmp/ima
  # As JSON
  imastage --json sandbox status --mount /tmp/ima";

pub const CONFORMANCE: &str = "\
Examples:
  # List the groups of cases
  imastage conformance --list
  # Test a sandbox, whose records are deleted
  imastage conformance /tmp/ima
  # Test only the requests in every state
  imastage conformance --rule 1.4 /tmp/ima
  # Test the kernel of a machine that nobody attests
  imastage conformance --destructive /sys/kernel/security/ima";

pub const DEMO: &str = "\
Examples:
  # Show the whole life with up to 12,000 files
  imastage demo
  # Without FUSE, with fewer files, and keep all that is written
  imastage demo --no-fuse --files 500 --dir /tmp/demo";

pub const GENERATE: &str = "\
Examples:
  # Write all manual pages to a directory that exists
  imastage generate man /tmp/man
  # Write completions for bash
  imastage generate completions bash >/etc/bash_completion.d/imastage";

pub const GENERATE_MAN: &str = "\
Examples:
  # Write all manual pages to a directory that exists
  mkdir /tmp/man && imastage generate man /tmp/man";

pub const GENERATE_COMPLETIONS: &str = "\
Examples:
  # Write completions for fish
  imastage generate completions fish >~/.config/fish/completions/imastage.fish";

/// The examples of a help text: what each does, and its command line, which may have several lines.
pub fn parse(help: &str) -> Vec<(&str, String)> {
    let mut examples: Vec<(&str, String)> = Vec::new();
    for line in help.lines().skip(1) {
        let line = line.strip_prefix("  ").unwrap_or(line);
        match (line.strip_prefix("# "), examples.last_mut()) {
            (Some(what), _) => examples.push((what, String::new())),
            (None, Some((_, command))) => {
                if !command.is_empty() {
                    command.push('\n');
                }
                command.push_str(line);
            }
            (None, None) => {}
        }
    }
    examples
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory as _};

    use super::*;
    use crate::Cli;

    /// The words of the commands in a shell's command line, without redirections.
    fn commands(line: &str) -> Vec<Vec<String>> {
        let mut commands = vec![Vec::new()];
        let (mut word, mut quoted) = (None::<String>, false);
        let mut characters = line.chars().chain([' ']);
        while let Some(character) = characters.next() {
            match character {
                '\'' => {
                    quoted = !quoted;
                    word.get_or_insert_default();
                }
                '\\' if !quoted => assert_eq!(characters.next(), Some('\n'), "{line}"),
                ' ' | '\n' if !quoted => match word.take().as_deref() {
                    Some("|" | "&&") => commands.push(Vec::new()),
                    Some(word) if word.starts_with('>') => {}
                    Some(word) => commands.last_mut().unwrap().push(word.to_owned()),
                    None => {}
                },
                '"' | '$' | ';' | '`' => panic!("{line}: this test cannot read {character}"),
                character => word.get_or_insert_default().push(character),
            }
        }
        assert!(!quoted, "{line}");
        commands
    }

    /// The subcommands that a command line names.
    fn path(matches: &clap::ArgMatches) -> Vec<String> {
        match matches.subcommand() {
            Some((name, matches)) => [vec![name.to_owned()], path(matches)].concat(),
            None => Vec::new(),
        }
    }

    fn check(command: &Command, at: &[String]) -> usize {
        let help = command.get_after_help().map(ToString::to_string);
        let help = help.unwrap_or_else(|| panic!("{at:?} has no examples"));
        assert!(help.starts_with("Examples:\n"), "{help}");
        let examples = parse(&help);
        assert!(!examples.is_empty(), "{at:?}");
        for (what, line) in &examples {
            assert!(what.len() <= 90 && line.lines().all(|line| line.len() <= 90), "{line}");
            let commands = commands(line);
            let ours: Vec<_> = commands.iter().filter(|words| words[0] == "imastage").collect();
            assert!(!ours.is_empty(), "{line}");
            for words in ours {
                let matches = Cli::command().try_get_matches_from(words);
                let matches = matches.unwrap_or_else(|error| panic!("{line}: {error}"));
                assert!(path(&matches).starts_with(at), "{line} is no example of {at:?}");
            }
        }
        // Only other processes of imastage start these.
        const INTERNAL: [&str; 2] = ["conformance-helper", "source-process"];
        let inner = command.get_subcommands().filter(|inner| !INTERNAL.contains(&inner.get_name()));
        let inner = inner.map(|inner| check(inner, &[at, &[inner.get_name().to_owned()]].concat()));
        examples.len() + inner.sum::<usize>()
    }

    #[test]
    fn every_command_has_examples_that_it_understands() {
        assert!(check(&Cli::command(), &[]) > 60);
    }

    #[test]
    fn command_lines_are_read_as_a_shell_does() {
        let line = "a >x && imastage b '*.ko c' \\\n    d | e";
        assert_eq!(commands(line), [vec!["a"], vec!["imastage", "b", "*.ko c", "d"], vec!["e"]]);
        let examples = parse("Examples:\n  # One\n  a \\\n      b\n  # Two\n  c");
        assert_eq!(examples, [("One", "a \\\n    b".to_owned()), ("Two", "c".to_owned())]);
    }
}
