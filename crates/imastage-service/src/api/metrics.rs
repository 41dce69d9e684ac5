//! `GET /metrics`, in Prometheus' text format 0.0.4.

use std::{
    fmt::{self, Write as _},
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use axum::{extract, http::header, response::IntoResponse};
use imastage_client::{
    health::{Level, State},
    wire::{Activity, Status, Verdict},
};

use crate::{durations::Durations, handle::Shared, metrics::Counted, pulse::Pulse};

/// Answers `GET /metrics`.
pub(crate) async fn show(extract::State(shared): extract::State<Arc<Shared>>) -> impl IntoResponse {
    let status = shared.status().clone();
    let counted = shared.metrics.counted().clone();
    let mut text = Text(render(&status, &counted, &shared.pulse));
    text.gauge(
        "imastage_view_failed",
        "Whether the view was unmounted by somebody else: agents that read its files find none.",
        u64::from(shared.view_failed()),
    );
    let Text(text) = text;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

fn render(status: &Status, counted: &Counted, pulse: &Pulse) -> String {
    let Activity { source, dialect, .. } = &status.since_start;
    let activity = &status.since_start;
    let mut text = Text(String::new());
    text.one(
        "imastage_build_info",
        "Which imastage answers.",
        &[(&[("version", env!("CARGO_PKG_VERSION"))], 1)],
    );
    text.one(
        "imastage_list_info",
        "The list that is drained, and the dialect found there.",
        &[(&[("source", source), ("dialect", dialect)], 1)],
    );
    let states = State::ALL.map(|state| {
        let holds = match state {
            State::Ok => status.health.state == State::Ok,
            _ => status.health.conditions.iter().any(|condition| condition.state == state),
        };
        ([("state", state.name())], u64::from(holds))
    });
    let states: Vec<_> = states.iter().map(|(labels, value)| (labels.as_slice(), *value)).collect();
    text.one("imastage_health", "1 for each state that holds, as in `imastage status`.", &states);
    text.gauge(
        "imastage_healthy",
        "Whether nothing is wrong: `imastage status` would end with exit code 0.",
        u64::from(status.health.level() == Level::Fine),
    );
    let verdicts = Verdict::NAMES.map(|name| {
        let is_this = u64::from(name == status.verdict.name());
        ([("verdict", name)], is_this)
    });
    let verdicts: Vec<_> =
        verdicts.iter().map(|(labels, value)| (labels.as_slice(), *value)).collect();
    text.one("imastage_verdict", "Current verdict: 1 for the active state, else 0.", &verdicts);
    text.gauge(
        "imastage_problems",
        "Things that are wrong with what is stored.",
        status.problems.len() as u64,
    );
    text.gauge("imastage_epoch", "The epoch's number in the state directory.", status.epoch);
    text.gauge("imastage_stored_records", "Records stored of this epoch.", status.records);
    text.gauge(
        "imastage_stored_bytes",
        "Bytes of the records stored of this epoch, in the binary sha1 form.",
        status.bytes,
    );
    text.gauge(
        "imastage_list_records",
        "Records in the list when they were last counted: the lag, or while drains fail, all that \
         cannot be deleted.",
        pulse.records(),
    );
    text.counter("imastage_drains_total", "Drains that found records.", activity.drains);
    text.counter(
        "imastage_failed_drains_total",
        "Drains that failed, or did not delete what they stored.",
        counted.failed,
    );
    text.counter("imastage_drained_records_total", "Records drained.", activity.stored);
    text.counter(
        "imastage_deleted_records_total",
        "Records deleted from the list.",
        activity.deleted,
    );
    text.counter(
        "imastage_freed_bytes_total",
        "Bytes of the records deleted from the list, in the binary sha1 form.",
        activity.deleted_bytes,
    );
    text.counter(
        "imastage_busy_total",
        "How often others were using the list when it was to be drained (EBUSY).",
        activity.busy,
    );
    text.gauge(
        "imastage_busy_holders",
        "Descriptors on the list's files that kept the last drain from it.",
        activity.holders.len() as u64,
    );
    let holders = activity
        .holders
        .iter()
        .map(|holder| [holder.name.clone(), holder.pid.to_string(), holder.fd.to_string()]);
    let holders: Vec<_> = holders.collect();
    let holders: Vec<_> = holders
        .iter()
        .map(|[name, pid, fd]| [("name", name.as_str()), ("pid", pid), ("fd", fd)])
        .collect();
    let holders: Vec<_> = holders.iter().map(|labels| (labels.as_slice(), 1)).collect();
    text.one("imastage_busy_holder", "Each of them.", &holders);
    text.gauge(
        "imastage_drain_failing",
        "Whether the last drain failed, or did not delete what it stored.",
        u64::from(activity.last_error.is_some()),
    );
    text.gauge(
        "imastage_tpm_failing",
        "Whether the TPM did not tell its PCRs at the last drain.",
        u64::from(activity.tpm_error.is_some()),
    );
    let last = counted.last.and_then(|last| last.duration_since(UNIX_EPOCH).ok());
    text.gauge(
        "imastage_last_drain_timestamp_seconds",
        "When the list was last drained to its end; 0 if it was not.",
        last.unwrap_or(Duration::ZERO).as_secs(),
    );
    text.histogram(
        "imastage_drain_duration_seconds",
        "How long drains took that found records.",
        &counted.drains,
    );
    text.histogram(
        "imastage_hold_duration_seconds",
        "How long the list's files were held, each time.",
        &counted.holds,
    );
    text.0
}

type Labels<'a> = &'a [(&'a str, &'a str)];

struct Text(String);

impl Text {
    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.one(name, help, &[(&[], value)]);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, help, "counter");
        self.sample(name, "", &[], value);
    }

    /// A gauge with any number of samples.
    fn one(&mut self, name: &str, help: &str, samples: &[(Labels<'_>, u64)]) {
        self.head(name, help, "gauge");
        for (labels, value) in samples {
            self.sample(name, "", labels, value);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, durations: &Durations) {
        self.head(name, help, "histogram");
        // From 64 microseconds to 33 seconds.
        for doubling in 6..=25 {
            let bound = Duration::from_micros(1 << doubling).as_secs_f64().to_string();
            let count = durations.shorter_than_power_of_two_us(doubling);
            self.sample(name, "_bucket", &[("le", &bound)], count);
        }
        self.sample(name, "_bucket", &[("le", "+Inf")], durations.total());
        self.sample(name, "_sum", &[], durations.sum().as_secs_f64());
        self.sample(name, "_count", &[], durations.total());
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: Labels<'_>, value: impl fmt::Display) {
        let labels = labels.iter().map(|(label, value)| {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            format!("{label}=\"{value}\"")
        });
        let labels = labels.collect::<Vec<_>>().join(",");
        let labels = if labels.is_empty() { labels } else { format!("{{{labels}}}") };
        let _ = writeln!(self.0, "{name}{suffix}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, path::PathBuf};

    use imastage_client::{health::Health, wire::Holder};

    use super::*;
    use crate::{drain::round::Round, metrics::Metrics};

    /// One sample: its name, its labels, its value.
    type Sample = (String, BTreeMap<String, String>, f64);

    /// The format as its documentation describes it: HELP, TYPE, then that metric's samples.
    fn parse(text: &str) -> BTreeMap<String, (String, Vec<Sample>)> {
        let mut metrics = BTreeMap::new();
        let mut current = String::new();
        let mut helped = String::new();
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').unwrap();
                assert!(!help.is_empty() && !metrics.contains_key(name), "{line}");
                helped = name.to_owned();
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(name, helped);
                assert!(["gauge", "counter", "histogram"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                current = name.to_owned();
                metrics.insert(current.clone(), (kind.to_owned(), Vec::new()));
            } else {
                let (head, value) = line.rsplit_once(' ').unwrap();
                let value = value.parse().unwrap();
                let (name, labels) = match head.split_once('{') {
                    Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}').unwrap())),
                    None => (head, BTreeMap::new()),
                };
                let (kind, samples) = metrics.get_mut(&current).unwrap();
                let suffix = name.strip_prefix(current.as_str()).unwrap();
                let suffixes: &[&str] = match kind.as_str() {
                    "histogram" => &["_bucket", "_sum", "_count"],
                    _ => &[""],
                };
                assert!(suffixes.contains(&suffix), "{line}");
                samples.push((name.to_owned(), labels, value));
            }
        }
        metrics
    }

    fn parse_labels(mut text: &str) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        while let Some((name, rest)) = text.split_once("=\"") {
            let mut value = String::new();
            let mut chars = rest.char_indices();
            let end = loop {
                match chars.next().unwrap() {
                    (_, '\\') => value.push(match chars.next().unwrap().1 {
                        'n' => '\n',
                        other => other,
                    }),
                    (at, '"') => break at,
                    (_, other) => value.push(other),
                }
            };
            labels.insert(name.trim_start_matches(',').to_owned(), value);
            text = &rest[end + 1..];
        }
        labels
    }

    fn status(verdict: Verdict) -> Status {
        Status {
            health: Default::default(),
            verdict,
            problems: vec!["a".into(), "b".into()],
            pid: Some(1),
            epoch: 3,
            records: 70,
            bytes: 9000,
            banks: BTreeMap::new(),
            since_start: Activity {
                source: "/a \"b\"\\\n".into(),
                stored: 50,
                deleted_bytes: 8000,
                busy: 2,
                holders: vec![Holder {
                    pid: 42,
                    name: "tail".into(),
                    fd: 3,
                    path: PathBuf::from("/x"),
                }],
                ..Activity::default()
            },
        }
    }

    #[test]
    fn what_is_said_can_be_parsed_and_is_right() {
        let metrics = Metrics::default();
        let round = Round {
            stored: 50,
            took: Duration::from_millis(7),
            holds: vec![Duration::from_micros(100), Duration::from_millis(3)],
            ..Round::default()
        };
        assert_eq!(metrics.drained(&round, false)[2], 3000);
        metrics.drained(&Round::default(), true);
        let verdict = Verdict::Consistent { records: 70 };
        let text = render(&status(verdict), &metrics.counted(), &Pulse::default());
        let parsed = parse(&text);
        let value = |name: &str| match parsed[name].1.as_slice() {
            [(_, _, value)] => *value,
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(value("imastage_stored_records"), 70.0);
        assert_eq!(value("imastage_drained_records_total"), 50.0);
        assert_eq!(value("imastage_freed_bytes_total"), 8000.0);
        assert_eq!(value("imastage_problems"), 2.0);
        assert_eq!(value("imastage_busy_total"), 2.0);
        assert_eq!(value("imastage_failed_drains_total"), 1.0);
        assert!(value("imastage_last_drain_timestamp_seconds") > 1e9);
        assert_eq!(parsed["imastage_list_info"].1[0].1["source"], "/a \"b\"\\\n");
        let holder = &parsed["imastage_busy_holder"].1[0].1;
        assert_eq!((holder["pid"].as_str(), holder["name"].as_str()), ("42", "tail"));

        let holds = &parsed["imastage_hold_duration_seconds"].1;
        let bucket = |le: &str| {
            let mut found = holds
                .iter()
                .filter(|(_, labels, _)| labels.get("le").is_some_and(|bound| bound == le));
            found.next().unwrap().2
        };
        assert_eq!(
            [bucket("0.000064"), bucket("0.000128"), bucket("0.004096"), bucket("+Inf")],
            [0.0, 1.0, 2.0, 2.0]
        );
        let mut bounds = holds.iter().filter_map(|(_, labels, count)| {
            Some((labels.get("le")?.parse::<f64>().unwrap(), *count))
        });
        let mut last = bounds.next().unwrap();
        for (bound, count) in bounds {
            assert!(bound > last.0 && count >= last.1, "{bound} {count}");
            last = (bound, count);
        }
        let sum = holds.iter().find(|(name, ..)| name.ends_with("_sum")).unwrap().2;
        assert!((sum - 0.0031).abs() < 1e-9, "{sum}");
    }

    #[test]
    fn every_state_that_holds_is_shown() {
        let mut status = status(Verdict::Unchecked);
        status.since_start.drained = Some(1);
        status.since_start.tpm_error = Some("gone".into());
        status.health = Health::of(&status, 1);
        let parsed = parse(&render(&status, &Counted::default(), &Pulse::default()));
        let samples = &parsed["imastage_health"].1;
        assert_eq!(samples.len(), State::ALL.len());
        let hold: Vec<_> = samples
            .iter()
            .filter(|(_, _, value)| *value == 1.0)
            .map(|(_, labels, _)| labels["state"].as_str())
            .collect();
        assert_eq!(hold, ["damaged", "cannot-compare"]);
        assert_eq!(parsed["imastage_healthy"].1[0].2, 0.0);
    }

    #[test]
    fn one_verdict_is_true() {
        let verdicts = [
            Verdict::Unchecked,
            Verdict::Consistent { records: 1 },
            Verdict::Lagging { records: 1, waiting: 1 },
            Verdict::Altered { index: 1, why: String::new() },
            Verdict::Damaged { why: String::new() },
            Verdict::NotExtended { why: String::new() },
        ];
        for verdict in verdicts {
            let name = verdict.name();
            let text = render(&status(verdict), &Counted::default(), &Pulse::default());
            let samples = &parse(&text)["imastage_verdict"].1;
            assert_eq!(samples.len(), Verdict::NAMES.len());
            for (_, labels, value) in samples {
                assert_eq!(*value, f64::from(u8::from(labels["verdict"] == name)), "{name}");
            }
        }
    }
}
