//! What there is to show at the end of a good day.

use std::{fmt::Write as _, sync::atomic::Ordering, time::Duration};

use serde_json::{Value, json};

use super::{Answer, Scene, name, path};
use crate::{
    exit::Failure,
    output::{Output, Tone},
};

/// Asks everyone, and compares what they say.
pub fn of(
    scene: &Scene<'_>,
    verified: &[Answer; 2],
    added: u64,
    measured_in: Duration,
) -> Result<Value, Failure> {
    let (mount, state) = (path(&scene.mount)?, path(&scene.state)?);
    // Programs that are executed meanwhile add to all of it: each figure is at most what the next is.
    let before = scene.program.ask(&["sandbox", "status", "--mount", mount])?.json;
    let service = scene.program.try_ask(&["status", "--state", state])?;
    let replayed = scene.program.ask(&["replay", state])?.json;
    let sandbox = scene.program.ask(&["sandbox", "status", "--mount", mount])?.json;

    let number = |of: &Value, key: &str| of[key].as_u64().unwrap_or_default();
    let in_list = |of: &Value| number(of, "current") + number(of, "staged");
    let (stored, total) = (number(&service.json, "records"), number(&sandbox, "total"));
    let verdicts: Vec<&Value> = verified.iter().map(|answer| &answer.json).collect();
    // What was measured is stored or still in the list: nothing lost, nothing twice.
    let all = number(&replayed, "records");
    let complete =
        number(&before, "total") <= stored + in_list(&before) && stored <= all && all <= total;
    let as_expected =
        complete && service.code == 0 && verified.iter().all(|answer| answer.code == 0);
    Ok(json!({
        "measured": total,
        "measured_on_request": added,
        "measured_per_second": added as f64 / measured_in.as_secs_f64(),
        "staged": sandbox["staged"],
        "current": sandbox["current"],
        "deleted": total - in_list(&sandbox).min(total),
        "freed_bytes": sandbox["freed_bytes"],
        "stored": stored,
        "stored_bytes": service.json["bytes"],
        "verdict": service.json["verdict"],
        "verifiers": verdicts,
        "rounds": scene.rounds.iter().map(|n| n.load(Ordering::Relaxed)).collect::<Vec<_>>(),
        "banks": service.json["banks"],
        "replayed": replayed["banks"],
        "as_expected": as_expected,
    }))
}

/// The same in words.
pub fn text(good: &Value, out: &Output) -> String {
    let number = |key: &str| good[key].as_u64().unwrap_or_default();
    let mut text = out.paint(Tone::Strong, "at the end of a good day");
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "\n  measured            {} records ({:.0} files a second, hashing and TPM included)\n  \
         stored              {} records, {} bytes\n  \
         deleted             {} records, {} bytes let go\n  \
         still in the list   {} current, {} staged",
        number("measured"),
        good["measured_per_second"].as_f64().unwrap_or_default(),
        number("stored"),
        number("stored_bytes"),
        number("deleted"),
        number("freed_bytes"),
        number("current"),
        number("staged"),
    );
    for (at, verdict) in good["verifiers"].as_array().into_iter().flatten().enumerate() {
        let _ = write!(
            text,
            "\n  verifier {}          {}: the first {} records verified in {} rounds (the last from \
             index {}), {} after the quote",
            name(at),
            verdict["verdict"].as_str().unwrap_or("?"),
            verdict["records"],
            good["rounds"][at],
            verdict["from"],
            verdict["excess"],
        );
    }
    for (bank, replayed) in good["replayed"].as_object().into_iter().flatten() {
        if let Some(tpm) = good["banks"][bank]["tpm"].as_str() {
            let same = tpm == replayed["pcr"].as_str().unwrap_or_default();
            let words = if same {
                out.paint(Tone::Good, "the same")
            } else {
                out.paint(Tone::Dim, "records came in between")
            };
            let _ = write!(
                text,
                "\n  PCR 10 {bank:<7}      {tpm} (TPM)\n                      {} (replay): {words}",
                replayed["pcr"].as_str().unwrap_or_default()
            );
        }
    }
    text
}
