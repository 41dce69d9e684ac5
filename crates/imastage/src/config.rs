//! The configuration file of `imastage run`. Its keys are the command's options, so that both mean the
//! same, are checked by the same code and cannot drift apart; what the command line says, wins.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use toml::de::{DeTable, DeValue};

use crate::{Cli, commands::run::args::Args};

/// Why a command line, or the file that it names, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The command line. Asking for help is one of these.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The file cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A line of the file.
    #[error("{}:{line}: {why}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The first line has number 1.
        line: usize,
        /// What is wrong, key included.
        why: String,
    },
}

/// The values of the options of `imastage run`, by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, Vec<OsString>>);

impl Settings {
    /// The keys whose values differ.
    pub fn changed(&self, other: &Settings) -> BTreeSet<String> {
        let keys = self.0.keys().chain(other.0.keys());
        keys.filter(|key| self.0.get(*key) != other.0.get(*key)).cloned().collect()
    }

    /// Takes the values of `keys` from others.
    pub fn adopt(&mut self, other: &Settings, keys: &[&str]) {
        for key in keys {
            match other.0.get(*key) {
                Some(values) => self.0.insert((*key).to_owned(), values.clone()),
                None => self.0.remove(*key),
            };
        }
    }
}

/// Parses a command line, program name first, together with the configuration file that it names.
///
/// # Errors
/// [`LoadError`].
pub fn load(argv: Vec<OsString>) -> Result<(Cli, Settings), LoadError> {
    let matches = parse(argv)?;
    let settings = match matches.subcommand() {
        Some((RUN, run)) => settings(run),
        _ => Settings::default(),
    };
    Ok((Cli::from_arg_matches(&matches)?, settings))
}

/// What `imastage run` would be told by a configuration file alone.
///
/// # Errors
/// [`LoadError`].
pub fn load_run(path: &Path) -> Result<Args, LoadError> {
    let matches = parse(vec!["imastage".into(), RUN.into(), "--config".into(), path.into()])?;
    let run = matches.subcommand().map(|(_, run)| run).unwrap_or(&matches);
    Ok(Args::from_arg_matches(run)?)
}

/// A command line together with the file that it names.
fn parse(mut argv: Vec<OsString>) -> Result<ArgMatches, LoadError> {
    if let Some((path, given)) = named_file(&argv) {
        let text = read(&path).map_err(|error| LoadError::Read { path: path.clone(), error })?;
        argv.extend(File { path: &path, text: &text }.arguments(&given)?);
    }
    Ok(Cli::command().try_get_matches_from(argv)?)
}

const RUN: &str = "run";
/// The option that names the file.
const CONFIG: &str = "config";
/// What is said each time anew, and not in a file.
pub const NOT_KEYS: &[&str] = &[CONFIG, "check", "adopt"];

/// The file that `imastage run` is given, and what else it is given. Whether all of that can be
/// used is not asked yet: an option may need one that is in the file.
fn named_file(argv: &[OsString]) -> Option<(PathBuf, ArgMatches)> {
    let mut matches = Cli::command().ignore_errors(true).try_get_matches_from(argv).ok()?;
    let (name, run) = matches.remove_subcommand()?;
    if name != RUN {
        return None;
    }
    let path = run.try_get_one::<PathBuf>(CONFIG).ok().flatten().cloned()?;
    Some((path, run))
}

fn read(path: &Path) -> io::Result<String> {
    const LONGEST: u64 = 1 << 20;
    let mut text = String::new();
    // A device has no length that could be looked at before.
    let length = std::fs::File::open(path)?.take(LONGEST + 1).read_to_string(&mut text)?;
    if length as u64 > LONGEST {
        let error = format!("a configuration has at most {LONGEST} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, error));
    }
    Ok(text)
}

/// The keys of the configuration, each with the option of `imastage run` that it stands for.
pub fn run_keys(command: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    command.find_subcommand(RUN).into_iter().flat_map(keys)
}

/// The options that are keys, too.
fn keys(run: &Command) -> impl Iterator<Item = (&str, &Arg)> {
    let keys = run
        .get_arguments()
        .filter(|arg| !arg.is_hide_set() && !NOT_KEYS.contains(&arg.get_id().as_str()));
    keys.filter_map(|arg| Some((arg.get_long()?, arg)))
}

fn settings(run: &ArgMatches) -> Settings {
    let command = Cli::command();
    let values = run_keys(&command).filter_map(|(key, arg)| {
        let values = run.try_get_raw(arg.get_id().as_str()).ok().flatten()?;
        Some((key.to_owned(), values.map(ToOwned::to_owned).collect()))
    });
    Settings(values.collect())
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    /// The file's keys as arguments, without those that are `given` on the command line.
    fn arguments(&self, given: &ArgMatches) -> Result<Vec<OsString>, LoadError> {
        let table = DeTable::parse(self.text).map_err(|error| {
            self.line(error.span().map_or(0, |span| span.start), error.message().to_owned())
        })?;
        let command = Cli::command();
        let options: BTreeMap<&str, &Arg> = run_keys(&command).collect();
        let mut arguments = Vec::new();
        for (key, value) in table.get_ref() {
            let at = key.span().start;
            let key = key.get_ref().as_ref();
            let Some(arg) = options.get(key) else {
                if self.is_section(at) {
                    return Err(self.line(at, section(key)));
                }
                return Err(self.line(at, unknown(key, &options)));
            };
            let values = texts(key, arg, value.get_ref());
            for value in values.map_err(|why| self.line(at, format!("{key}: {why}")))? {
                check(&value).map_err(|why| self.line(at, format!("{key}: {why}")))?;
                let source = given.value_source(arg.get_id().as_str());
                if source != Some(ValueSource::CommandLine) {
                    arguments.push(value.into());
                }
            }
        }
        Ok(arguments)
    }

    /// Whether the key at this place is a section's name.
    fn is_section(&self, at: usize) -> bool {
        let before = self.text.get(..at).unwrap_or_default();
        before.trim_end_matches([' ', '\t']).ends_with('[')
    }

    fn line(&self, offset: usize, why: String) -> LoadError {
        let before = self.text.as_bytes().get(..offset).unwrap_or_default();
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        LoadError::Line { path: self.path.to_owned(), line, why }
    }
}

fn section(name: &str) -> String {
    format!("[{name}]: there are no sections; write keys without one, such as `every = 500`")
}

/// What clap would say of an option that does not exist.
fn unknown(key: &str, options: &BTreeMap<&str, &Arg>) -> String {
    let error = parse_alone(&format!("--{key}=")).err();
    let suggested = error.as_ref().and_then(|error| error.get(ContextKind::SuggestedArg));
    let nearest = match suggested {
        Some(ContextValue::String(option)) => option.strip_prefix("--"),
        _ => None,
    };
    match nearest.filter(|nearest| options.contains_key(nearest)) {
        Some(nearest) => format!("{key}: there is no such key; the nearest is {nearest}"),
        None => {
            let keys: Vec<_> = options.keys().copied().collect();
            format!("{key}: there is no such key; there are {}", keys.join(", "))
        }
    }
}

/// A key's value as arguments.
fn texts(key: &str, arg: &Arg, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
    match value {
        DeValue::Boolean(is_set) if is_flag => {
            Ok(if *is_set { vec![format!("--{key}")] } else { Vec::new() })
        }
        _ if is_flag => Err("expected true or false".to_owned()),
        DeValue::String(text) => Ok(vec![format!("--{key}={text}")]),
        DeValue::Integer(number) => {
            let number = i64::from_str_radix(number.as_str(), number.radix());
            let number = number.map_err(|error| error.to_string())?;
            Ok(vec![format!("--{key}={number}")])
        }
        DeValue::Array(values) if matches!(arg.get_action(), ArgAction::Append) => {
            let texts = values.iter().map(|value| texts(key, arg, value.get_ref()));
            Ok(texts.collect::<Result<Vec<_>, _>>()?.concat())
        }
        other => Err(format!("expected a string or a number, found {}", kind(other))),
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// Whether an argument can be used, whatever stands beside it.
fn check(argument: &str) -> Result<(), String> {
    match parse_alone(argument) {
        Err(error) => match error.kind() {
            // What it needs, or excludes, is seen when all is there.
            ErrorKind::MissingRequiredArgument | ErrorKind::ArgumentConflict => Ok(()),
            _ => {
                let text = error.to_string();
                let text = text.strip_prefix("error: ").unwrap_or(&text);
                // Usage follows, of a command line that nobody has written.
                let reason = text.split("\n\n").next().unwrap_or_default();
                Err(reason.split_whitespace().collect::<Vec<_>>().join(" "))
            }
        },
        Ok(_) => Ok(()),
    }
}

fn parse_alone(argument: &str) -> Result<ArgMatches, clap::Error> {
    Cli::command().try_get_matches_from(["imastage", RUN, argument])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command as Chosen, commands::run::args::RELOADED};

    fn load_text(text: &str, arguments: &[&str]) -> Result<(Cli, Settings), String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().to_str().unwrap();
        let mut argv = vec!["imastage", "run", "--config", path];
        argv.extend(arguments);
        let argv = argv.into_iter().map(OsString::from).collect();
        load(argv).map_err(|error| error.to_string().replace(path, "FILE"))
    }

    fn value(settings: &Settings, key: &str) -> Vec<String> {
        let values = settings.0.get(key).into_iter().flatten();
        values.map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_file_counts_and_the_command_line_wins() {
        let text = "every = 1_000\nstate = '/a b'\n";
        let (cli, settings) = load_text(text, &[]).unwrap();
        assert!(matches!(cli.command, Chosen::Run(_)));
        assert_eq!(value(&settings, "every"), ["1000"]);
        assert_eq!(value(&settings, "state"), ["/a b"]);
        let (_, settings) = load_text(text, &["--every", "7"]).unwrap();
        assert_eq!(value(&settings, "every"), ["7"]);
        assert_eq!(value(&settings, "state"), ["/a b"]);
    }

    #[test]
    fn an_option_may_need_one_that_is_in_the_file() {
        assert!(load_text("view = '/v'\n", &["--view-group", "0"]).is_ok());
        assert!(load_text("view-group = 0\n", &["--view", "/v"]).is_ok());
        let error = load_text("view-group = 0\n", &[]).err().unwrap();
        assert!(error.contains("--view <DIR>"), "{error}");
    }

    #[test]
    fn what_cannot_be_used_is_named_with_its_line() {
        let cases = [
            ("# a\n\nevry = 1\n", "FILE:3: evry: there is no such key; the nearest is every"),
            (
                "view_group = 1\n",
                "FILE:1: view_group: there is no such key; the nearest is view-group",
            ),
            ("zzz = 1\n", "FILE:1: zzz: there is no such key; there are "),
            ("config = '/x'\n", "FILE:1: config: there is no such key; "),
            ("json = true\n", "FILE:1: json: there is no such key; "),
            ("log-level = 'info'\n", "FILE:1: log-level: there is no such key; "),
            ("help = true\n", "FILE:1: help: there is no such key; "),
            (
                "every = 0\n",
                "FILE:1: every: invalid value '0' for '--every <MS>': 0 is not in 1..=",
            ),
            ("every = -1\n", "FILE:1: every: invalid value '-1'"),
            (
                "\nevery = 1.5\n",
                "FILE:2: every: expected a string or a number, found a number with",
            ),
            ("every = true\n", "FILE:1: every: expected a string or a number, found true or false"),
            ("[run]\nevery = 1\n", "FILE:1: [run]: there are no sections; write keys without"),
            ("every = 1\n[ a ]\n", "FILE:2: [a]: there are no sections; "),
            ("every = 1\n[[a]]\n", "FILE:2: [a]: there are no sections; "),
            ("[a.b]\nevery = 1\n", "FILE:1: [a]: there are no sections; "),
            ("evry = { a = 1 }\n", "FILE:1: evry: there is no such key; the nearest is every"),
            ("check = true\n", "FILE:1: check: there is no such key; "),
            ("adopt = true\n", "FILE:1: adopt: there is no such key; "),
            ("'' = 1\n", "FILE:1: : there is no such key"),
            ("'-' = 1\n", "FILE:1: -: there is no such key"),
            ("'every=1' = 1\n", "FILE:1: every=1: there is no such key"),
            ("\"\\u0000\" = 1\n", "FILE:1: \0: there is no such key"),
            ("every = [1]\n", "FILE:1: every: expected a string or a number, found an array"),
            ("every = '''a\nb'''\n", "FILE:1: every: invalid value 'a b' for '--every <MS>': "),
            ("every = 1\nevery = 2\n", "FILE:2: duplicate key"),
            ("every = 1\nstate = \n", "FILE:2: "),
            (
                "delete-mode = 'x'\n",
                "FILE:1: delete-mode: invalid value 'x' for '--delete-mode <MODE>' [possible values: stage, ",
            ),
        ];
        for (text, expected) in cases {
            let error = load_text(text, &[]).err().unwrap();
            assert!(error.starts_with(expected), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{text:?}: {error}");
        }
        let (_, settings) = load_text("", &[]).unwrap();
        assert_eq!(value(&settings, "every"), ["500"]);
    }

    #[test]
    fn a_file_that_is_not_there_or_has_no_end_is_named() {
        let argv = ["imastage", "run", "--config", "/nowhere/x.toml"].map(OsString::from);
        let error = load(argv.into()).err().unwrap().to_string();
        assert!(error.starts_with("/nowhere/x.toml: "), "{error}");
        let argv = ["imastage", "run", "--config", "/dev/zero"].map(OsString::from);
        let error = load(argv.into()).err().unwrap().to_string();
        assert_eq!(error, "/dev/zero: a configuration has at most 1048576 bytes");
    }

    #[test]
    fn what_changed_is_known() {
        let (_, a) = load_text("every = 1\n", &[]).unwrap();
        let (_, b) = load_text("every = 2\nstate = '/s'\n", &[]).unwrap();
        assert_eq!(a.changed(&b), BTreeSet::from(["every".to_owned(), "state".to_owned()]));
        assert_eq!(a.changed(&a), BTreeSet::new());
    }

    /// The packaged file has every key once, in the part that says truly whether a reload changes
    /// it, and can be used as it is and with every key set.
    #[test]
    fn the_packaged_file_has_every_key() {
        // The group exists only where the package is installed.
        let text = include_str!("../../../packaging/imastage.toml").replace("\"imastage\"", "0");
        load_text(&text, &[]).unwrap();
        let (start, reload) = text.split_once("# --- Changed by a reload ---").unwrap();
        let mut all = String::new();
        let mut documented = |part: &str| -> BTreeSet<String> {
            let mut keys = BTreeSet::new();
            for line in part.lines() {
                let line = line.strip_prefix('#').unwrap_or(line);
                let Some((key, _)) = line.split_once(" = ") else { continue };
                if !line.starts_with(' ') && !key.contains(' ') {
                    assert!(keys.insert(key.to_owned()), "{key} stands there twice");
                    all.push_str(line);
                    all.push('\n');
                }
            }
            keys
        };
        let (at_start, at_reload) = (documented(start), documented(reload));
        let command = Cli::command();
        let known: BTreeSet<_> = run_keys(&command).map(|(key, _)| key.to_owned()).collect();
        let reloaded: BTreeSet<_> = RELOADED.iter().map(|key| (*key).to_owned()).collect();
        assert_eq!(at_reload, reloaded, "what packaging/imastage.toml says a reload changes");
        let expected: BTreeSet<_> = known.difference(&reloaded).cloned().collect();
        assert_eq!(
            at_start, expected,
            "the other options of `imastage run` in packaging/imastage.toml"
        );
        load_text(&all, &[]).unwrap();
    }
}
