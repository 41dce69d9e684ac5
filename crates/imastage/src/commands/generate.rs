//! `imastage generate`: manual pages and shell completions.

mod configuration;
mod page;
mod texts;

use std::{fs, io, path::PathBuf};

use clap::{CommandFactory, Subcommand};
use clap_complete::Shell;

use crate::{
    Cli,
    exit::{Fail, Failure, Outcome},
};

/// Write manual pages and shell completions, for packages.
#[derive(clap::Args)]
#[command(after_help = crate::examples::GENERATE)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One manual page for each subcommand and one for the configuration file, into a directory that
    /// exists.
    #[command(after_help = crate::examples::GENERATE_MAN)]
    Man {
        /// The directory.
        dir: PathBuf,
    },
    /// Completions, to standard output.
    #[command(after_help = crate::examples::GENERATE_COMPLETIONS)]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Runs `imastage generate`.
pub fn run(args: &Args) -> Result<Outcome, Failure> {
    let mut command = Cli::command();
    match &args.what {
        What::Man { dir } => {
            for (name, page) in pages(command).environment("manual pages")? {
                let path = dir.join(name);
                fs::write(&path, page).environment(path.display())?;
            }
        }
        What::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut command, "imastage", &mut script);
            io::Write::write_all(&mut io::stdout(), &script).environment("standard output")?;
        }
    }
    Ok(Outcome::Fine)
}

/// The name and the text of every manual page.
fn pages(command: clap::Command) -> io::Result<Vec<(String, Vec<u8>)>> {
    let configuration = configuration::page(&command)?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = vec![("imastage.toml.5".to_owned(), configuration)];
    add_pages(&command, &mut pages)?;
    Ok(pages)
}

fn add_pages(command: &clap::Command, pages: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    pages.push((format!("{}.1", page::name(command)), page::page(command)?));
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        add_pages(inner, pages)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// The lines of a page's section.
    fn section<'a>(page: &'a str, name: &str) -> Vec<&'a str> {
        let heading = format!(".SH {name}");
        let lines = page.lines().skip_while(|line| line.replace('"', "") != heading);
        let lines = lines.skip(1).take_while(|line| !line.starts_with(".SH "));
        // Each part of a page begins with the definition of an apostrophe.
        lines.filter(|line| !line.contains(".ds Aq")).collect()
    }

    fn all() -> BTreeMap<String, String> {
        let pages = pages(Cli::command()).unwrap().into_iter();
        pages.map(|(name, page)| (name, String::from_utf8(page).unwrap())).collect()
    }

    #[test]
    fn every_page_has_its_sections_and_refers_to_pages_that_exist() {
        let pages = all();
        assert!(pages.len() > 25 && pages.contains_key("imastage-store-check.1"), "{pages:?}");
        for (name, page) in &pages {
            let sections: &[&str] = match name.ends_with(".5") {
                true => &["DESCRIPTION", "KEYS READ AT START"],
                false => &["EXIT STATUS"],
            };
            let all = ["NAME", "SYNOPSIS", "FILES", "ENVIRONMENT", "EXAMPLES", "SEE ALSO"];
            for heading in all.iter().chain(sections) {
                assert!(!section(page, heading).is_empty(), "{name}: {heading}: {page}");
            }
            for other in section(page, "SEE ALSO").join(" ").split([' ', ',']) {
                let other = other.replace("\\-", "-").replace("\\fB", "").replace("\\fR", "");
                if let Some(of_ours) = other.strip_suffix(')')
                    && of_ours.starts_with("imastage")
                {
                    assert!(pages.contains_key(&of_ours.replace('(', ".")), "{name}: {other}");
                }
            }
        }
    }

    #[test]
    fn pages_show_values_in_the_synopsis_and_the_examples_of_the_help() {
        let pages = all();
        let synopsis = section(&pages["imastage-show.1"], "SYNOPSIS").join("\n");
        assert!(synopsis.contains("\\fB\\-\\-path\\fR \\fIGLOB\\fR"), "{synopsis}");
        assert!(synopsis.contains("\\fILIST\\fR"), "{synopsis}");
        let synopsis = section(&pages["imastage-status.1"], "SYNOPSIS").join("\n");
        assert!(synopsis.contains("\\fB\\-\\-watch\\fR [\\fISECONDS\\fR]"), "{synopsis}");
        let synopsis = section(&pages["imastage-store-prune.1"], "SYNOPSIS").join("\n");
        assert!(synopsis.contains("{\\fB\\-\\-keep\\-epochs\\fR \\fIN\\fR | "), "{synopsis}");
        let examples = section(&pages["imastage-diff.1"], "EXAMPLES").join("\n");
        assert!(examples.contains("imastage diff before after.gz"), "{examples}");
        assert!(!pages["imastage-diff.1"].contains(".SH EXTRA"));
        let synopsis = section(&pages["imastage-sandbox.1"], "SYNOPSIS").join("\n");
        assert!(synopsis.contains("\\fIBANK,...\\fR]"), "{synopsis}");
        assert!(synopsis.contains("\\fINAME\\fR...]"), "{synopsis}");
        assert!(synopsis.ends_with("\\fBimastage sandbox\\fR \\fICOMMAND\\fR"), "{synopsis}");
        for page in ["imastage.1", "imastage-store-check.1", "imastage.toml.5"] {
            let footer =
                format!(" \"\" \"imastage {}\" \"imastage manual\"", env!("CARGO_PKG_VERSION"));
            let title = pages[page].lines().find(|line| line.starts_with(".TH ")).unwrap();
            assert!(title.ends_with(&footer), "{title}");
        }
    }
}
