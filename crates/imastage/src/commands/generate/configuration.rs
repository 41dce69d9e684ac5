//! imastage.toml(5): the manual page of the configuration file, made from the options of
//! `imastage run`.

use std::io;

use clap::{Arg, Command};
use clap_mangen::roff::{Roff, bold, italic, roman};

use super::{page, texts};
use crate::{commands::run::args::RELOADED, config};

/// A configuration for a machine with agents; its lines are those of the packaged file.
const EXAMPLE: &str = r#"source = "/sys/kernel/security/ima"
state = "/var/lib/imastage"
keep-epochs = 10
view = "/run/imastage/ima"
view-group = "imastage"
every = 500
alert = "logger --priority auth.alert imastage: $IMASTAGE_STATE"
"#;

/// The page.
pub fn page(command: &Command) -> io::Result<Vec<u8>> {
    let mut roff = Roff::new();
    let source = page::source(command);
    roff.control("TH", ["IMASTAGE.TOML", "5", page::NO_DATE, &source, page::MANUAL]);
    roff.control("SH", ["NAME"]);
    roff.text([roman("imastage.toml - the configuration file of imastage run")]);
    roff.control("SH", ["SYNOPSIS"]);
    roff.text([italic("/etc/imastage/imastage.toml")]);
    roff.control("br", []);
    roff.text([bold("imastage run --config"), roman(" "), italic("FILE")]);
    roff.control("SH", ["DESCRIPTION"]);
    for paragraph in texts::CONFIGURATION {
        roff.control("PP", []);
        roff.text([roman(*paragraph)]);
    }
    let others = config::NOT_KEYS.join(", ");
    roff.control("PP", []);
    roff.text([roman(format!(
        "Options that are not keys: {others}, and those that every command has."
    ))]);

    // A key is in one of the two parts, whatever RELOADED holds.
    let options: Vec<_> = config::run_keys(command).collect();
    let (on_reload, at_start): (Vec<_>, Vec<_>) =
        options.into_iter().partition(|(key, _)| RELOADED.contains(key));
    roff.control("SH", ["KEYS READ AT START"]);
    roff.text([roman("A new value takes effect when the service is started again.")]);
    for (key, option) in at_start {
        describe(&mut roff, key, option);
    }
    roff.control("SH", ["KEYS READ AT START AND ON RELOAD"]);
    roff.text([roman("A new value takes effect when the service receives SIGHUP.")]);
    for (key, option) in on_reload {
        describe(&mut roff, key, option);
    }

    roff.control("SH", ["FILES"]);
    page::entries(&mut roff, &[texts::CONFIGURATION_FILE]);
    roff.control("SH", ["ENVIRONMENT"]);
    page::entries(&mut roff, texts::ALERT);
    roff.control("SH", ["EXAMPLES"]);
    page::example(&mut roff, "A machine whose agents read the view", EXAMPLE);
    page::example(&mut roff, "Apply a change", "systemctl reload imastage");
    let others = ["imastage(1)", "imastage-run(1)", "imastage-doctor(1)", "systemctl(1)"];
    page::others(&mut roff, &others.map(ToOwned::to_owned));
    let mut page = Vec::new();
    roff.to_writer(&mut page)?;
    Ok(page)
}

fn describe(roff: &mut Roff, key: &str, option: &Arg) {
    roff.control("TP", []);
    let mut head = vec![bold(key), roman(" = ")];
    match option.get_value_names() {
        Some(names) if option.get_action().takes_values() => head.push(italic(names.join(" "))),
        _ => head.push(roman("true|false")),
    }
    let defaults = option.get_default_values().iter().map(|value| value.to_string_lossy());
    let defaults = defaults.collect::<Vec<_>>().join(",");
    if option.get_action().takes_values() && !defaults.is_empty() {
        head.push(roman(format!(" [default: {defaults}]")));
    }
    roff.text(head);
    let help = option.get_long_help().or_else(|| option.get_help());
    roff.text([roman(help.map(ToString::to_string).unwrap_or_default())]);
    let values = option.get_possible_values();
    if !option.get_action().takes_values() || values.is_empty() {
        return;
    }
    roff.control("RS", []);
    for value in values.iter().filter(|value| !value.is_hide_set()) {
        roff.control("TP", []);
        roff.text([roman("\""), bold(value.get_name()), roman("\"")]);
        roff.text([roman(value.get_help().map(ToString::to_string).unwrap_or_default())]);
    }
    roff.control("RE", []);
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::Cli;

    #[test]
    fn the_page_has_every_key_once_in_its_part() {
        let page = String::from_utf8(page(&Cli::command()).unwrap()).unwrap();
        let parts: Vec<_> = page.split("\n.SH ").collect();
        let part = |name: &str| parts.iter().find(|part| part.starts_with(name)).unwrap();
        let (at_start, on_reload) =
            (part("\"KEYS READ AT START\"\n"), part("\"KEYS READ AT START AND ON RELOAD\"\n"));
        let command = Cli::command();
        let keys: Vec<_> = config::run_keys(&command).map(|(key, _)| key).collect();
        assert!(keys.contains(&"source") && keys.contains(&"every"), "{keys:?}");
        assert!(!keys.contains(&"config") && !keys.contains(&"log-level"), "{keys:?}");
        for key in keys {
            let heading = format!("\\fB{}\\fR = ", key.replace('-', "\\-"));
            let (this, other) = match RELOADED.contains(&key) {
                true => (on_reload, at_start),
                false => (at_start, on_reload),
            };
            assert_eq!(this.matches(&heading).count(), 1, "{key}: {page}");
            assert!(!other.contains(&heading), "{key}");
        }
    }

    #[test]
    fn the_example_is_the_packaged_file_and_can_be_used() {
        let packaged = include_str!("../../../../../packaging/imastage.toml");
        for line in EXAMPLE.lines() {
            let is_there = |packaged: &str| packaged.strip_prefix('#').unwrap_or(packaged) == line;
            assert!(packaged.lines().any(is_there), "{line}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        // The group exists only where the package is installed.
        std::fs::write(file.path(), EXAMPLE.replace("\"imastage\"", "0")).unwrap();
        config::load_run(file.path()).unwrap();
    }
}
