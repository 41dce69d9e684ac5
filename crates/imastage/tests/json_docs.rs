//! `docs/json.md` against the program: members, types and examples.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

use std::{collections::BTreeMap, fs};

#[allow(dead_code)]
mod common;

use common::{command, corpus, imastage};
use ima_log::{Bank, Format, Records};
use imastage_store::{EpochId, Store};
use serde_json::{Deserializer, Value};
use tempfile::tempdir;

/// The tables and examples of the document, by the first name in backticks of their heading.
#[derive(Default)]
struct Docs(BTreeMap<String, Section>);

#[derive(Default)]
struct Section {
    members: Vec<Member>,
    examples: Vec<Example>,
}

/// A row of a table.
struct Member {
    path: Vec<String>,
    kind: String,
    always: bool,
}

/// A command line and its output.
struct Example {
    /// Whether the command needs nothing but the corpus.
    runs: bool,
    command: String,
    output: String,
}

impl Docs {
    fn read() -> Docs {
        let mut docs = Docs::default();
        let mut section = docs.0.entry(String::new()).or_default();
        let mut lines = include_str!("../../../docs/json.md").lines();
        while let Some(line) = lines.next() {
            if line.starts_with('#') {
                let name = line.split('`').nth(1).unwrap_or_default();
                section = docs.0.entry(name.to_owned()).or_default();
            } else if line.starts_with("| `") {
                let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
                let [name, kind, _, present] = cells[..] else { panic!("four columns: {line}") };
                let path = name.trim_matches('`').split('.').map(|name| name.replace("[]", ""));
                let (path, kind) = (path.collect(), kind.to_owned());
                section.members.push(Member { path, kind, always: present == "always" });
            } else if let Some(kind) = line.strip_prefix("```") {
                let block = lines.by_ref().take_while(|line| !line.starts_with("```"));
                let block = block.collect::<Vec<_>>().join("\n").replace("\\\n", "");
                let (command, output) = block.split_once('\n').unwrap();
                section.examples.push(Example {
                    runs: kind == "console",
                    command: command.strip_prefix("$ ").unwrap().to_owned(),
                    output: output.to_owned(),
                });
            }
        }
        docs
    }

    fn examples(&self) -> Vec<(&str, &Example)> {
        let of = |section| move |example| (section, example);
        self.0.iter().flat_map(|(name, section)| section.examples.iter().map(of(&**name))).collect()
    }

    /// Checks what a command prints, or its exit code; returns it without texts, which may change.
    fn answer(&self, section: &str, value: &Value) -> Value {
        match value {
            Value::Number(_) => value.clone(),
            // An event log.
            Value::Array(elements) => elements.iter().map(|e| self.answer(section, e)).collect(),
            error if error.get("error").is_some() => self.object("error", &[], error),
            // The test of docs/openapi.yaml checks the other members.
            status if section == "imastage status" => {
                let check = |name: &&str| self.object(name, &[], &status[name]);
                ["verdict", "since_start"].iter().map(check).collect()
            }
            _ => self.object(section, &[], value),
        }
    }

    /// Checks the object at `path` of a section.
    fn object(&self, section: &str, path: &[String], value: &Value) -> Value {
        let object = value.as_object().unwrap_or_else(|| panic!("{section}: no object: {value}"));
        let of_path = |member: &&Member| member.path[..member.path.len() - 1] == *path;
        let mut members: Vec<_> = self.0[section].members.iter().filter(of_path).collect();
        assert!(!members.is_empty(), "{section}: {path:?}: no members are documented: {value}");
        members.sort_by_key(|member| member.is_placeholder());
        for member in members.iter().filter(|m| m.always && !m.is_placeholder()) {
            assert!(object.contains_key(member.name()), "{section}: {:?}: {value}", member.path);
        }
        let check = |(name, value): (&String, &Value)| {
            let member = members.iter().find(|m| m.is_placeholder() || m.name() == name);
            let undocumented = || panic!("{section}: {path:?}: {name} is not documented: {value}");
            let member = member.unwrap_or_else(undocumented);
            (name.clone(), self.member(section, member, value))
        };
        object.iter().map(check).collect()
    }

    fn member(&self, section: &str, member: &Member, value: &Value) -> Value {
        let kind = match member.kind.strip_suffix(" or null") {
            Some(_) if value.is_null() => return Value::Null,
            Some(kind) => kind,
            None => &member.kind,
        };
        let Some(of) = kind.strip_prefix("array of ") else {
            return self.value(section, member, kind, value);
        };
        let of = of.trim_end_matches('s');
        let elements = value.as_array().unwrap_or_else(|| panic!("{section}: no array: {value}"));
        elements.iter().map(|element| self.value(section, member, of, element)).collect()
    }

    fn value(&self, section: &str, member: &Member, kind: &str, value: &Value) -> Value {
        let fits = match kind {
            "string" | "text" => value.is_string(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "object, see openapi.yaml" => value.is_object(),
            "array, see records-json.md" => value.is_array(),
            "object" => return self.object(section, &member.path, value),
            other => return self.object(other.trim_matches('`'), &[], value),
        };
        assert!(fits, "{section}: {:?}: expected {kind}, found {value}", member.path);
        if kind == "text" { Value::from("text") } else { value.clone() }
    }

    /// Runs a command in the corpus, and checks all that it prints.
    fn check(&self, section: &str, args: &str, code: i32) {
        let (printed, found) = run(args);
        assert_eq!(found, code, "{args}: {printed:?}");
        printed.iter().for_each(|value| drop(self.answer(section, value)));
        let last = printed.last().unwrap_or_else(|| panic!("{args}: no output"));
        assert_eq!(last.get("error").is_some(), code > 1, "{args}: {printed:?}");
    }
}

impl Member {
    fn name(&self) -> &str {
        self.path.last().unwrap()
    }

    /// Whether it stands for any name, as BANK does.
    fn is_placeholder(&self) -> bool {
        self.name().bytes().all(|byte| byte.is_ascii_uppercase())
    }
}

fn values(text: &str) -> Vec<Value> {
    let values = Deserializer::from_str(text).into_iter().collect::<Result<_, _>>();
    values.unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// What a command prints on both streams, and its exit code.
fn run(args: &str) -> (Vec<Value>, i32) {
    let args: Vec<&str> = ["--json"].into_iter().chain(args.split_whitespace()).collect();
    let output = command(&args).current_dir(corpus("")).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (values(&text), output.status.code().unwrap())
}

#[test]
fn examples_agree_with_the_tables() {
    let docs = Docs::read();
    for (section, example) in docs.examples() {
        for value in values(&example.output) {
            docs.answer(section, &value);
        }
    }
}

#[test]
fn examples_on_the_corpus_are_what_the_program_prints() {
    let docs = Docs::read();
    let examples = docs.examples().into_iter().filter(|(_, example)| example.runs);
    for (section, Example { command, output, .. }) in examples {
        let args = command.strip_prefix("imastage --json ").unwrap();
        let (mut printed, code) = run(args.trim_end_matches("; echo $?"));
        printed.push(code.into());
        let success = if args.ends_with("; echo $?") { "" } else { "\n0" };
        let stable = |values: &[Value]| -> Vec<Value> {
            values.iter().map(|value| docs.answer(section, value)).collect()
        };
        assert_eq!(stable(&printed), stable(&values(&format!("{output}{success}"))), "{args}");
    }
}

#[test]
fn answers_about_lists_and_quotes_are_documented() {
    let docs = Docs::read();
    for (command, args, code) in [
        ("check", "--key signed/ima_pub.pem --unsigned signed/binary", 1),
        ("check", "--key signed/ima_pub.pem cases/14-details-leave-fields-out/list", 1),
        ("check", "--pcrs kexec/1-before/pcrs debian-6.1/binary", 1),
        ("diff", "legacy-ima/binary legacy-ima/ascii", 0),
        ("diff", "kexec/2-after/binary kexec/1-before/binary", 1),
        ("replay", "debian-6.12-violations/binary", 0),
        ("replay", "--pcrs legacy-ima/pcrs debian-6.1/binary", 1),
        ("replay", "--pcrs cases/01-zero-pcr10-pass/quote.pcrs cases/01-zero-pcr10-pass/list", 1),
        ("show", "lab-6.12-awkward/binary", 0),
        ("show", "--bank sha256 cases/p1-template-zoo/list-sha1", 0),
        ("show --as cel-json", "--bank sha384 --bank sha512 violations/binary", 0),
    ] {
        docs.check(&format!("imastage {command}"), &format!("{command} {args}"), code);
    }
    // An altered record.
    let dir = tempdir().unwrap();
    let (list, altered) = (corpus("violations/binary"), dir.path().join("altered"));
    let mut bytes = fs::read(&list).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&altered, bytes).unwrap();
    let altered = altered.to_str().unwrap();
    docs.check("imastage check", &format!("check {altered}"), 1);
    docs.check("imastage diff", &format!("diff {list} {altered}"), 1);
}

#[test]
fn errors_are_documented() {
    let docs = Docs::read();
    for (args, code) in [
        ("show cases", 2),
        ("check --key ima_pub.pem signed/binary", 2),
        ("diff - -", 2),
        ("log --state no-such-directory", 3),
        ("status --state no-such-directory", 2),
        ("attest --state no-such-directory --key", 3),
        ("store check --state no-such-directory", 2),
        ("conformance no-such-directory", 3),
        ("sandbox status --mount no-such-directory", 3),
    ] {
        docs.check("error", args, code);
    }
}

#[test]
fn answers_about_stored_records_are_documented() {
    let docs = Docs::read();
    let dir = tempdir().unwrap();
    let state = dir.path().join("state");
    let mut store = Store::open(&state).unwrap();
    let id = |boot: &str| EpochId { boot_id: boot.to_owned(), ..EpochId::default() };
    store.begin_epoch(id("a"), &[Bank::Sha1, Bank::Sha256]).unwrap();
    let list = fs::read(corpus("debian-6.1/binary")).unwrap();
    for record in Records::new(&list, Format::native(Bank::Sha1)) {
        store.append(&record.unwrap()).unwrap();
    }
    store.commit().unwrap();
    store.begin_epoch(id("b"), &[Bank::Sha1]).unwrap();
    drop(store);
    let flip = |file: &str, at: usize| {
        let path = state.join("epochs/0001").join(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let state = state.to_str().unwrap();
    let check = |command: &str, args: &str, code| {
        let args = format!("{command} --state {state} {args}");
        docs.check(&format!("imastage {command}"), &args, code);
    };
    check("store check", "", 0);
    check("store prune", "--keep-epochs 0 --dry-run", 0);
    check("store export", &format!("--epoch 1 {}", dir.path().join("export").display()), 0);
    flip("commits", 4);
    check("store check", "", 1);
    check("store repair", "", 0);
    flip("00000000000000000000.ima", 70);
    check("store repair", "", 1);
    check("store pack", "", 1);
    check("status", "", 3);
    check("doctor", "--source cases --tpm none", 1);
    check("run --check", "--source cases --tpm none", 3);
}

#[test]
fn every_command_has_a_section() {
    let docs = include_str!("../../../docs/json.md");
    for parent in ["", " store", " sandbox"] {
        let help = imastage(&format!("{parent} --help").split_whitespace().collect::<Vec<_>>());
        let commands =
            help.text().split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
        // Descriptions are indented further than names.
        let names = commands.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
        for name in names.filter(|name| !["", "help"].contains(name)) {
            assert!(docs.contains(&format!("`imastage{parent} {name}")), "imastage{parent} {name}");
        }
    }
}
