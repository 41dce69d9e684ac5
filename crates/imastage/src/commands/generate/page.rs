//! The manual page of a command: what clap knows of it, and the sections of [`texts`].

use std::io;

use clap::{Arg, ArgAction, ArgGroup, Command};
use clap_mangen::{
    Man,
    roff::{Inline, Roff, bold, italic, roman},
};

use super::texts::{self, Entry, Texts};
use crate::examples;

/// The manual that pages belong to, in their header.
pub const MANUAL: &str = "imastage manual";
/// The date of a page: none, so that the same source makes the same page. Without the quotes the next
/// argument of `.TH` would be the date.
pub const NO_DATE: &str = "\"\"";

/// What a page is called, without its section: `imastage-store-check`.
pub fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

/// The page of a command that was built.
pub fn page(command: &Command) -> io::Result<Vec<u8>> {
    let name = name(command);
    let man = Man::new(command.clone()).title(name.to_uppercase()).source(source(command));
    let man = man.date(NO_DATE).manual(MANUAL);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    synopsis(command).to_writer(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }

    let Texts { refuted, files, environment, see_also } = texts::of(name);
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    entries(&mut roff, &texts::exit_status(refuted));
    roff.control("SH", ["FILES"]);
    entries(&mut roff, &files);
    roff.control("SH", ["ENVIRONMENT"]);
    entries(&mut roff, &environment);
    roff.control("SH", ["EXAMPLES"]);
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    for (what, line) in examples::parse(&help) {
        example(&mut roff, what, &line);
    }
    others(&mut roff, &see_also);
    roff.to_writer(&mut page)?;
    man.render_version_section(&mut page)?;
    Ok(page)
}

/// What stands in a page's footer.
pub fn source(command: &Command) -> String {
    format!("imastage {}", command.get_version().unwrap_or_default())
}

/// Terms and what is said of each.
pub fn entries<T: AsRef<str>>(roff: &mut Roff, entries: &[Entry<T>]) {
    for (term, text) in entries {
        roff.control("TP", []);
        roff.text([bold(*term)]);
        roff.text([roman(text.as_ref())]);
    }
}

/// Lines as they stand, below what they do.
pub fn example(roff: &mut Roff, what: &str, lines: &str) {
    roff.control("PP", []);
    roff.text([roman(format!("{what}:"))]);
    roff.control("PP", []);
    roff.control("RS", ["4"]);
    roff.control("nf", []);
    for line in lines.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff.control("RE", []);
}

/// The section of other pages, each with its section: `imastage(1)`.
pub fn others(roff: &mut Roff, pages: &[String]) {
    roff.control("SH", ["SEE ALSO"]);
    let mut line = Vec::new();
    for page in pages {
        if !line.is_empty() {
            line.push(roman(", "));
        }
        match page.split_once('(') {
            Some((name, section)) => line.extend([bold(name), roman(format!("({section}"))]),
            None => line.push(roman(page)),
        }
    }
    roff.text(line);
}

/// As clap_mangen's, with the values of options.
fn synopsis(command: &Command) -> Roff {
    let mut roff = Roff::new();
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    roff.control("SH", ["SYNOPSIS"]);
    let mut line = vec![bold(name)];
    let groups: Vec<_> = command.get_groups().filter(|group| group.is_required_set()).collect();
    for group in &groups {
        let members = group
            .get_args()
            .filter_map(|id| command.get_arguments().find(|argument| argument.get_id() == id));
        let mut open = " {";
        for member in members {
            line.push(roman(open));
            line.extend(argument(member));
            open = " | ";
        }
        // It is asked of a group that is being built.
        let is_multiple = ArgGroup::clone(group).is_multiple();
        line.push(roman(if is_multiple { "}..." } else { "}" }));
    }
    let is_in_group = |argument: &Arg| {
        groups.iter().any(|group| group.get_args().any(|id| id == argument.get_id()))
    };
    let is_shown = |argument: &&Arg| {
        let is_about = matches!(
            argument.get_action(),
            ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
        );
        !argument.is_hide_set() && !is_about && !is_in_group(argument)
    };
    let (positionals, options): (Vec<_>, Vec<_>) =
        command.get_arguments().filter(is_shown).partition(|argument| argument.is_positional());
    for shown in options.into_iter().chain(positionals) {
        let is_required = shown.is_required_set();
        line.push(roman(if is_required { " " } else { " [" }));
        line.extend(argument(shown));
        line.push(roman(if is_required { "" } else { "]" }));
    }
    if command.has_subcommands() && command.is_subcommand_required_set() {
        line.extend([roman(" "), italic("COMMAND")]);
        roff.text(line);
    } else {
        roff.text(line);
        if command.has_subcommands() {
            roff.control("br", []);
            roff.text([bold(name), roman(" "), italic("COMMAND")]);
        }
    }
    roff
}

/// An option with its value, or a positional argument.
fn argument(argument: &Arg) -> Vec<Inline> {
    let mut text = Vec::new();
    if let Some(long) = argument.get_long() {
        text.push(bold(format!("--{long}")));
    }
    let values = argument.get_num_args().unwrap_or_default();
    if values.takes_values() {
        let (before, after) = match (argument.is_positional(), values.min_values()) {
            (true, _) => ("", ""),
            (false, 0) => (" [", "]"),
            (false, _) => (" ", ""),
        };
        let names = argument.get_value_names().map(|names| names.join(" "));
        let names = names.unwrap_or_else(|| argument.get_id().to_string());
        let is_list = matches!(argument.get_action(), ArgAction::Append);
        let more = if is_list && !names.ends_with("...") { "..." } else { "" };
        text.extend([roman(before), italic(names), roman(after), roman(more)]);
    }
    text
}
