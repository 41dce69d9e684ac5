//! `imastage demo`: drives the other commands through the life of a machine.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use ima_log::{Bank, Format, Records};
use serde_json::{Value, json};

use crate::{
    commands::run::fuse_is_there,
    exit::{Fail, Failure, Outcome},
    output::{Output, Tone},
};

mod program;
mod summary;

use program::{Answer, Program, Running};

/// Demonstrate attestation end to end: measure, drain, attest, crash, resume, and two tampering
/// scenarios. Runs the other commands; ends after less than 30 s.
#[derive(clap::Args)]
#[command(after_help = crate::examples::DEMO)]
pub struct Args {
    /// Measure at most N files from /usr.
    #[arg(long, value_name = "N", default_value_t = 12_000)]
    files: usize,
    /// Keep the list in the service's process, as without FUSE. The demonstration then neither
    /// kills the service, which would end the list, nor deletes records by another process.
    #[arg(long)]
    no_fuse: bool,
    /// Use DIR and keep it, instead of a directory that is removed at the end.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Everything happens below one directory. The verifiers' directories stand for other machines:
/// they hold a key they trust and the token of their last round, nothing of the attested machine.
struct Scene<'a> {
    program: Program,
    out: &'a Output,
    since: Instant,
    /// Whether the list is behind a mount, in a process of its own.
    mounted: bool,
    rounds: [AtomicU64; 2],
    mount: PathBuf,
    state: PathBuf,
    evidence: PathBuf,
    verifiers: [PathBuf; 2],
}

/// Runs `imastage demo`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let temporary;
    let dir = match &args.dir {
        Some(dir) => {
            fs::create_dir_all(dir).input(dir.display())?;
            dir.as_path()
        }
        None => {
            temporary = tempfile::tempdir().environment("temporary directory")?;
            temporary.path()
        }
    };
    let mounted = !args.no_fuse && fuse_is_there().is_ok();
    let scene = Scene {
        program: Program::this()?,
        out,
        since: Instant::now(),
        mounted,
        rounds: Default::default(),
        // A service keeps its own list there.
        mount: if mounted { dir.join("ima") } else { dir.join("state/ima") },
        state: dir.join("state"),
        evidence: dir.join("evidence"),
        verifiers: [dir.join("verifier-a"), dir.join("verifier-b")],
    };
    let files = files(args.files);
    scene.play(&files)
}

impl Scene<'_> {
    fn play(&self, files: &[PathBuf]) -> Result<Outcome, Failure> {
        let mut sandbox = if self.mounted { Some(self.start_sandbox()?) } else { None };
        let mut service = self.start_service("stage")?;
        self.enrol()?;

        // A good day: all at once. Files are measured, the list is drained, two verifiers ask.
        self.say(format!("measuring {} files of /usr while all else goes on", files.len()))?;
        let quarter = files.len().div_ceil(4).max(1);
        let begin = Instant::now();
        let measuring_done = AtomicBool::new(false);
        let mut added = 0;
        thread::scope(|scope| -> Result<(), Failure> {
            let rounds = [
                scope.spawn(|| self.keep_verifying(0, Duration::ZERO, &measuring_done)),
                scope.spawn(|| self.keep_verifying(1, Duration::from_millis(700), &measuring_done)),
            ];
            let played = (|| -> Result<(), Failure> {
                for (part, files) in files.chunks(quarter).enumerate() {
                    match part {
                        // With the service the list would go.
                        _ if !self.mounted => {}
                        1 => {
                            let measuring = scope.spawn(|| self.measure(files));
                            thread::sleep(Duration::from_millis(40));
                            service.kill()?;
                            self.say("the service is killed (SIGKILL) while it works")?;
                            added += join(measuring)?;
                            service = self.start_service("stage")?;
                            continue;
                        }
                        2 => {
                            service.stop()?;
                            service = self.start_service("first-n")?;
                        }
                        _ => {}
                    }
                    added += self.measure(files)?;
                }
                Ok(())
            })();
            measuring_done.store(true, Ordering::Relaxed);
            for round in rounds {
                join(round)?;
            }
            played
        })?;
        let measured_in = begin.elapsed();

        // What everybody says at the end of it.
        let last = [self.verify(0)?, self.verify(1)?];
        let good = summary::of(self, &last, added, measured_in)?;
        self.print_summary(&good)?;

        let altered = self.alter_a_record(&mut service)?;
        let missing = match &mut sandbox {
            None => json!({ "as_expected": true, "skipped": "the list has no files" }),
            Some(sandbox) => {
                let missing = self.delete_behind_its_back(&mut service)?;
                service.stop()?;
                sandbox.stop()?;
                missing
            }
        };

        let took = self.since.elapsed();
        let as_expected = good["as_expected"] == true
            && altered["as_expected"] == true
            && missing["as_expected"] == true;
        let answer = json!({
            "good_day": good, "altered_record": altered, "deleted_records": missing,
            "as_expected": as_expected, "seconds": took.as_secs_f64(),
        });
        let verdict = if as_expected {
            self.out.paint(Tone::Good, "everything as it should be")
        } else {
            self.out.paint(Tone::Bad, "something is not as it should be; see above")
        };
        self.out.answer(&answer, format!("\n{verdict}, in {:.1} s", took.as_secs_f64()))?;
        Ok(if as_expected { Outcome::Fine } else { Outcome::EvidenceSaysNo })
    }

    fn start_sandbox(&self) -> Result<Running, Failure> {
        let sandbox = self.program.start(&["sandbox", "--mount", path(&self.mount)?])?;
        let programs = match sandbox.greeting["watching_programs"] == true {
            true => "and every program that is executed",
            false => "(without root, programs are not watched as they are executed)",
        };
        self.say(format!(
            "a measurement list behind FUSE, extending PCR 10 of an swtpm with files {programs}"
        ))?;
        Ok(sandbox)
    }

    fn start_service(&self, mode: &str) -> Result<Running, Failure> {
        let state = path(&self.state)?;
        let source = if self.mounted { path(&self.mount)? } else { "in-process" };
        let options = ["--source", source, "--state", state, "--delete-mode", mode];
        let service = self.program.start(&[&["run", "--every", "100"], &options[..]].concat())?;
        let stored = &service.greeting["records"];
        let what = if self.mounted { "drains it" } else { "drains a list in its own process" };
        self.say(format!("the service {what} (delete mode {mode}), {stored} records stored"))?;
        Ok(service)
    }

    /// What an administrator does once: gives the verifiers the machine's attestation key.
    fn enrol(&self) -> Result<(), Failure> {
        let answer = self.program.ask(&["attest", "--state", path(&self.state)?, "--key"])?;
        let key = answer.json["key"].as_str().unwrap_or_default();
        for verifier in &self.verifiers {
            fs::create_dir_all(verifier).environment(verifier.display())?;
            fs::write(verifier.join("trusted.pem"), key).environment(verifier.display())?;
        }
        Ok(())
    }

    /// Gives the number of records added.
    fn measure(&self, files: &[PathBuf]) -> Result<u64, Failure> {
        let mut added = 0;
        for some in files.chunks(500) {
            let mut args = vec!["sandbox", "measure", "--mount", path(&self.mount)?];
            for file in some {
                args.push(path(file)?);
            }
            let answer = self.program.ask(&args)?;
            added += answer.json["added"].as_u64().unwrap_or_default();
        }
        Ok(added)
    }

    /// Verifies round after round, as a verifier with its own pace does. A service that is down
    /// for a moment is asked again.
    fn keep_verifying(
        &self,
        verifier: usize,
        pause: Duration,
        done: &AtomicBool,
    ) -> Result<(), Failure> {
        while !done.load(Ordering::Relaxed) {
            let answer = self.verify(verifier)?;
            if answer.code == 1 {
                self.say(format!("verifier {}: {}", name(verifier), answer.json["reason"]))?;
            }
            thread::sleep(pause + Duration::from_millis(100));
        }
        Ok(())
    }

    fn verify(&self, verifier: usize) -> Result<Answer, Failure> {
        let dir = &self.verifiers[verifier];
        self.rounds[verifier].fetch_add(1, Ordering::Relaxed);
        self.program.try_ask(&[
            "verify",
            "--state",
            path(&self.state)?,
            "--key",
            path(&dir.join("trusted.pem"))?,
            "--token",
            path(&dir.join("token.json"))?,
        ])
    }

    /// One bit of a stored record flips while the service is down.
    fn alter_a_record(&self, service: &mut Running) -> Result<Value, Failure> {
        self.say(
            self.out.paint(Tone::Strong, "a bad day: one byte of a stored record is altered"),
        )?;
        let (state, evidence) = (path(&self.state)?, path(&self.evidence)?);
        let made = self.program.ask(&["attest", "--state", state, "--out", evidence])?;
        service.stop()?;
        let segment = first_segment(&self.state)?;
        let mut bytes = fs::read(&segment).environment(segment.display())?;
        let (index, at) = middle_digest(&bytes)?;
        bytes[at] ^= 1;
        fs::write(&segment, &bytes).environment(segment.display())?;

        let status = self.program.try_ask(&["status", "--state", state])?;
        let evidence = |name: &str| self.evidence.join(name);
        let verified = self.program.try_ask(&[
            "verify",
            "--quote",
            path(&evidence("quote.msg"))?,
            "--signature",
            path(&evidence("quote.sig"))?,
            "--key",
            path(&self.verifiers[0].join("trusted.pem"))?,
            "--nonce",
            made.json["nonce"].as_str().unwrap_or_default(),
            state,
        ])?;
        bytes[at] ^= 1;
        fs::write(&segment, &bytes).environment(segment.display())?;

        let report = json!({
            "record": index,
            "byte": at,
            "status": status.json["problems"],
            "verify": verified.json,
            "as_expected": status.code == 1 && verified.code == 1,
        });
        self.say(format!("status: {}", first_text(&status.json["problems"])))?;
        self.say(format!("verify: {}", verdict_of(&verified.json)))?;
        Ok(report)
    }

    /// Someone else deletes records that nobody stored.
    fn delete_behind_its_back(&self, service: &mut Running) -> Result<Value, Failure> {
        self.say(self.out.paint(
            Tone::Strong,
            "another bad day: two records are deleted behind the service's back",
        ))?;
        let new = self.mount.with_file_name("new-files");
        fs::create_dir_all(&new).environment(new.display())?;
        for i in 0..5 {
            let file = new.join(format!("file-{i}"));
            fs::write(&file, format!("{i}")).environment(file.display())?;
        }
        self.program.ask(&["sandbox", "measure", "--mount", path(&self.mount)?, path(&new)?])?;
        let list = self.mount.join("binary_runtime_measurements");
        fs::write(&list, "2\n").environment(list.display())?;

        *service = self.start_service("stage")?;
        let verified = self.verify(0)?;
        let status = self.program.try_ask(&["status", "--state", path(&self.state)?])?;
        let report = json!({
            "status": status.json["verdict"],
            "verify": verified.json,
            "as_expected": status.code == 1 && verified.code == 1,
        });
        let between = &status.json["verdict"];
        self.say(format!(
            "status: {} between index {} and index {}",
            between["state"], between["after"], between["before"]
        ))?;
        self.say(format!("verify: {}", verdict_of(&verified.json)))?;
        Ok(report)
    }

    /// Says what happens, with the time; nothing if the answer is to be JSON.
    fn say(&self, what: impl std::fmt::Display) -> Result<(), Failure> {
        if self.out.is_json() {
            return Ok(());
        }
        let time = format!("{:5.1} s", self.since.elapsed().as_secs_f64());
        self.out.line(format!("{}  {what}", self.out.paint(Tone::Dim, time)))
    }

    fn print_summary(&self, good: &Value) -> Result<(), Failure> {
        if self.out.is_json() { Ok(()) } else { self.out.line(summary::text(good, self.out)) }
    }
}

/// Regular files of /usr that can be read, programs first, none so large that hashing it would
/// hold up the show.
fn files(most: usize) -> Vec<PathBuf> {
    const LARGEST: u64 = 2 << 20;
    ["/usr/bin", "/usr/sbin", "/usr/lib", "/usr/share"]
        .into_iter()
        .flat_map(|dir| walkdir::WalkDir::new(dir).sort_by_file_name())
        .flatten()
        .filter(|entry| entry.file_type().is_file())
        .filter(|entry| entry.metadata().is_ok_and(|meta| meta.len() <= LARGEST))
        .map(walkdir::DirEntry::into_path)
        .filter(|path| path.to_str().is_some())
        .take(most)
        .collect()
}

/// The middle record of a list, and the last byte of its file digest.
fn middle_digest(list: &[u8]) -> Result<(usize, usize), Failure> {
    let records: Result<Vec<_>, _> = Records::new(list, Format::native(Bank::Sha1)).collect();
    let records = records.input("stored records")?;
    let index = records.len() / 2;
    let before: usize = records[..index].iter().map(|record| record.as_bytes().len()).sum();
    let Some((record, field)) =
        records.get(index).and_then(|record| Some((record, record.fields().next()?)))
    else {
        return Err(Failure::environment("nothing was stored"));
    };
    let data = before + record.as_bytes().len() - record.template_data().len();
    Ok((index, data + 4 + field.bytes.len() - 1))
}

fn first_segment(state: &Path) -> Result<PathBuf, Failure> {
    let mut segments: Vec<PathBuf> = walkdir::WalkDir::new(state)
        .into_iter()
        .flatten()
        .map(walkdir::DirEntry::into_path)
        .filter(|path| path.extension().is_some_and(|extension| extension == "ima"))
        .collect();
    segments.sort();
    segments.into_iter().next().ok_or_else(|| Failure::environment("nothing was stored"))
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, Result<T, Failure>>) -> Result<T, Failure> {
    thread.join().map_err(|_| Failure::environment("a part of the demonstration broke off"))?
}

fn path(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| Failure::input(format!("{}: not UTF-8", path.display())))
}

fn name(verifier: usize) -> char {
    if verifier == 0 { 'A' } else { 'B' }
}

fn verdict_of(verified: &Value) -> String {
    match verified["reason"].as_str() {
        Some(reason) => format!("{}: {reason}", verified["verdict"].as_str().unwrap_or("?")),
        None => verified.to_string(),
    }
}

fn first_text(problems: &Value) -> String {
    problems[0].as_str().unwrap_or("no problem found").to_owned()
}
