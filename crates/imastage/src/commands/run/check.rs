//! `imastage run --check`: what would be done, and what would be in the way.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use imastage_client::Client;
use imastage_source::{DeleteMode, Dialect, ListService, Source, SourceError};
use imastage_store::{Reader, StoreError};
use imastage_tpm::{Endpoint, Tpm};
use rustix::fs::Access;
use serde::Serialize;

use super::{
    Args, List, fuse_is_there,
    process::{self, refusal},
    tpm_of,
};
use crate::{
    exit::{Failure, Outcome},
    output::Output,
};

/// The answer.
#[derive(Serialize)]
struct Plan {
    source: String,
    /// How records would leave the list; `None` if that cannot be told.
    dialect: Option<String>,
    /// Whether records would be deleted.
    deletes: Option<bool>,
    /// How many there are now.
    in_list: Option<u64>,
    state: PathBuf,
    /// How many are stored.
    stored: u64,
    tpm: Option<String>,
    view: Option<PathBuf>,
    /// What is worth knowing and in nobody's way.
    notes: Vec<String>,
    /// Why it would not start.
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct Problem {
    /// The exit code there would be.
    code: u8,
    text: String,
}

/// Looks at everything that `imastage run` would use, and changes nothing.
pub(super) fn run(
    args: &Args,
    list: &List,
    state: &Path,
    chosen: Option<Option<Endpoint>>,
    out: &Output,
) -> Result<Outcome, Failure> {
    let mut plan = Plan {
        source: String::new(),
        dialect: None,
        deletes: None,
        in_list: None,
        state: state.to_owned(),
        stored: 0,
        tpm: None,
        view: args.view.clone(),
        notes: Vec::new(),
        problems: Vec::new(),
    };
    let tpm = match list {
        List::Directory(dir) => {
            plan.source = dir.display().to_string();
            plan.look_at_list(dir, args.delete_mode.map(DeleteMode::from));
            chosen.unwrap_or_else(|| tpm_of(dir))
        }
        List::Embedded | List::InProcess => {
            plan.source = "an embedded list, not this machine's".to_owned();
            plan.dialect = Some(Dialect::Linux72.to_string());
            chosen.flatten()
        }
    };
    plan.look_at_state(state);
    if let Some(endpoint) = &tpm {
        plan.look_at_tpm(endpoint);
    }
    if let Some(view) = &args.view {
        plan.look_at_view(view);
    }
    out.answer(&plan, plan.text())?;
    let Some(code) = plan.problems.iter().map(|problem| problem.code).min() else {
        return Ok(Outcome::Fine);
    };
    let count = match plan.problems.len() {
        1 => "a problem".to_owned(),
        count => format!("{count} problems"),
    };
    let texts: Vec<_> = plan.problems.into_iter().map(|problem| problem.text).collect();
    let text = format!("it would not start, for {count}: {}", texts.join("; "));
    Err(if code == 2 { Failure::input(text) } else { Failure::environment(text) })
}

impl Plan {
    fn fail(&mut self, failure: &Failure) {
        self.problems.push(Problem { code: failure.code(), text: failure.text() });
    }

    fn look_at_list(&mut self, dir: &Path, mode: Option<DeleteMode>) {
        if let Err(failure) = process::refuse_to_hold(dir) {
            self.fail(&failure);
        }
        let mut source = match imastage_source::open(dir, mode) {
            Ok(source) => source,
            Err(error) => return self.fail(&refusal(error)),
        };
        self.dialect = Some(source.dialect().to_string());
        let deletes = source.dialect() != Dialect::Follow;
        self.deletes = Some(deletes);
        match source.count() {
            Ok(count) => self.in_list = Some(count),
            Err(error) => self.fail(&refusal(error)),
        }
        self.look(source.as_mut());
        if !deletes {
            return;
        }
        if matches!(process::has_admin(), Ok(false)) {
            self.fail(&Failure::environment(format!(
                "{}: deleting needs the capability CAP_SYS_ADMIN; run as root, give the service that \
                 capability, or use --delete-mode none",
                dir.display()
            )));
        }
        if let Some(ListService { pid, state }) = imastage_source::service_of(dir) {
            let error = SourceError::Served { path: dir.to_owned(), pid: Some(pid), state };
            self.fail(&refusal(error));
        }
    }

    fn look(&mut self, source: &mut dyn Source) {
        match source.look().map(drop) {
            Ok(()) => {}
            // It will be free again.
            Err(error @ SourceError::Busy { .. }) => self.notes.push(error.to_string()),
            Err(error) => self.fail(&refusal(error)),
        }
    }

    fn look_at_state(&mut self, state: &Path) {
        let is_empty = match fs::read_dir(state) {
            Ok(mut entries) => entries.next().is_none(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => {
                let why = format!("{}: {error}", state.display());
                return self.fail(&Failure::environment(why));
            }
        };
        if !is_empty {
            match Reader::open(state) {
                Ok(reader) => self.stored = reader.len(),
                // There is none yet: it would be made, beside whatever else is there.
                Err(StoreError::NotAStore { .. }) if !state.join("format").exists() => {}
                Err(error @ StoreError::NotAStore { .. }) => self.fail(&Failure::input(error)),
                Err(error) => self.fail(&Failure::environment(error)),
            }
        }
        let service = Client::of_state(state).ok().and_then(|client| client.status().ok());
        if let Some(pid) = service.and_then(|status| status.pid) {
            self.fail(&Failure::environment(format!(
                "{}: locked by another service (pid {pid}); only one service may use a state directory",
                state.display()
            )));
        }
        self.look_whether_it_can_be_made(state);
    }

    fn look_at_tpm(&mut self, endpoint: &Endpoint) {
        self.tpm = Some(endpoint.to_string());
        if let Err(error) = Tpm::connect(endpoint).and_then(|mut tpm| tpm.banks()) {
            self.fail(&Failure::environment(format!(
                "TPM {endpoint}: {error}; --tpm names another one, or `none`"
            )));
        }
    }

    fn look_at_view(&mut self, view: &Path) {
        if let Err(why) = fuse_is_there() {
            self.fail(&Failure::environment(format!("view: {why}")));
        }
        if imastage_mount::is_dead(view) {
            let shown = view.display();
            self.notes.push(format!(
                "{shown}: a FUSE mount whose server is gone; it is unmounted, and the view mounted anew"
            ));
            return;
        }
        let why = match fs::read_dir(view).map(|mut entries| entries.next().is_none()) {
            Ok(true) => None,
            Ok(false) => Some("there are files in it; give an empty directory".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                Some("this is not a directory; give an empty directory".to_owned())
            }
            Err(error) => Some(error.to_string()),
        };
        match why {
            Some(why) => {
                self.fail(&Failure::environment(format!("view: {}: {why}", view.display())));
            }
            None => self.look_whether_it_can_be_made(view),
        }
    }

    /// Whether a directory is there and can be written, or can be made.
    fn look_whether_it_can_be_made(&mut self, dir: &Path) {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let Some(there) = dir.ancestors().find(|dir| dir.symlink_metadata().is_ok()) else {
            return;
        };
        let why = match fs::metadata(there) {
            Ok(found) if found.is_dir() => {
                let access = Access::WRITE_OK | Access::EXEC_OK;
                rustix::fs::access(there, access).err().map(|error| error.to_string())
            }
            Ok(_) => Some("this is not a directory".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = why {
            let what = if there == dir { String::new() } else { format!("{}: ", dir.display()) };
            let text = format!("{what}{} cannot be written: {why}", there.display());
            self.fail(&Failure::environment(text));
        }
    }

    fn text(&self) -> String {
        let what = match (&self.dialect, self.deletes) {
            (_, Some(false)) => "would be followed; nothing would be deleted".to_owned(),
            (Some(dialect), _) => format!("would be drained ({dialect})"),
            (None, _) => "cannot be used".to_owned(),
        };
        let mut lines = vec![format!("list: {} {what}", self.source)];
        if let Some(count) = self.in_list {
            lines.push(format!("records in the list: {count}"));
        }
        lines.push(format!("state: {}, {} records stored", self.state.display(), self.stored));
        let tpm = self.tpm.as_deref().unwrap_or("none, or the list's own");
        lines.push(format!("TPM: {tpm}"));
        if let Some(view) = &self.view {
            lines.push(format!("view: {}", view.display()));
        }
        lines.extend(self.notes.iter().map(|note| format!("note: {note}")));
        lines.extend(self.problems.iter().map(|problem| format!("problem: {}", problem.text)));
        if self.problems.is_empty() {
            lines.push("it would start".to_owned());
        }
        lines.join("\n")
    }
}
