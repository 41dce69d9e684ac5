//! `imastage show`: writes records in one of several forms.

mod details;
mod filter;

use std::{
    fs::File,
    io::{self, IsTerminal, Seek, Write},
    path::PathBuf,
};

use clap::ValueEnum;
use ima_log::{Bank, Printable, Record, cel, json};

use crate::{
    exit::{Fail, Failure, Outcome},
    input::List,
    output::Output,
};

/// Show records: byte for byte as in the kernel's file of a bank, or in other forms.
///
/// On a terminal control characters in names are escaped; a pipe or a file gets the bytes
/// unchanged.
#[derive(clap::Args)]
#[command(after_help = crate::examples::SHOW)]
pub struct Args {
    #[command(flatten)]
    shape: Shape,
    /// A measurement list (binary, ASCII, JSON lines or CEL, also in a gzip file), `-`, or a state
    /// directory.
    list: PathBuf,
}

/// Which records are shown, and how.
#[derive(clap::Args)]
pub struct Shape {
    /// The form [default: ascii; json with --json].
    #[arg(long = "as", value_name = "FORM")]
    form: Option<Form>,
    /// The bank whose digests are shown [default: sha1]: sha1, sha256, sha384, sha512 or sm3. An
    /// event log always has the list's own bank; this adds others [default: sha256].
    #[arg(long = "bank", value_name = "ALG")]
    banks: Vec<Bank>,
    #[command(flatten)]
    filter: filter::Filter,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// As `ascii_runtime_measurements`.
    Ascii,
    /// As `binary_runtime_measurements`.
    Binary,
    /// The content of each record in words: digests, signatures, critical data of kexec, keys.
    Details,
    /// One JSON object a line.
    Json,
    /// A TCG Canonical Event Log in JSON.
    CelJson,
    /// A TCG Canonical Event Log in CBOR.
    CelCbor,
    /// A TCG Canonical Event Log in TLV.
    CelTlv,
}

/// Writes records in one form.
enum Writer {
    Kernel {
        form: Form,
        bank: Bank,
    },
    Cel(cel::Writer),
    /// The log begins with the number of its records, so those wait in a file.
    CelCbor {
        writer: cel::Writer,
        records: u64,
        spool: io::BufWriter<File>,
    },
}

/// Runs `imastage show`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    args.shape.show(|| List::open(&args.list), out)
}

impl Shape {
    /// Writes the records of a list that are to be shown to standard output.
    pub fn show(
        self,
        open: impl FnOnce() -> Result<List, Failure>,
        out: &Output,
    ) -> Result<Outcome, Failure> {
        let form = self.form.unwrap_or(if out.is_json() { Form::Json } else { Form::Ascii });
        let stdout = io::stdout();
        if matches!(form, Form::Binary | Form::CelCbor | Form::CelTlv) && stdout.is_terminal() {
            let why = "binary records are not for a terminal; redirect the output";
            return Err(Failure::input(why));
        }
        let list = open()?;
        let follows = list.follows();
        let terminal = stdout.is_terminal();
        let mut stdout = io::BufWriter::with_capacity(256 << 10, stdout.lock());
        let mut writer = Writer::begin(form, &self.banks, &mut stdout)?;
        let mut buffer = Vec::new();
        let any = self.filter.each(list, |index, record| {
            buffer.clear();
            writer.record(index, record, &mut buffer).environment("output")?;
            let written = match terminal {
                true => write_printable(form, &buffer, &mut stdout),
                false => stdout.write_all(&buffer),
            };
            written.environment("output")?;
            // Whoever waits for records wants to see them when they come.
            if follows { stdout.flush().environment("output") } else { Ok(()) }
        })?;
        writer.end(&mut stdout).and_then(|()| stdout.flush()).environment("output")?;
        if let (false, Some(why)) = (any, self.filter.nothing()) {
            out.note(why);
        }
        Ok(Outcome::Fine)
    }
}

/// Writes a record to a terminal. A line of the kernel's form is one line, whatever names do.
fn write_printable(form: Form, record: &[u8], out: &mut impl Write) -> io::Result<()> {
    match form {
        Form::Ascii => {
            let line = record.strip_suffix(b"\n").unwrap_or(record);
            writeln!(out, "{}", Printable::new(line))
        }
        Form::Json | Form::CelJson => {
            write!(out, "{}", Printable::new(record).keep_line_breaks().in_json())
        }
        _ => write!(out, "{}", Printable::new(record).keep_line_breaks()),
    }
}

impl Writer {
    fn begin(form: Form, banks: &[Bank], out: &mut impl Write) -> Result<Writer, Failure> {
        let more = if banks.is_empty() { &[Bank::Sha256] } else { banks };
        match form {
            Form::CelJson | Form::CelTlv => {
                let encoding = match form {
                    Form::CelTlv => cel::Encoding::Tlv,
                    _ => cel::Encoding::Json,
                };
                let (mut writer, mut head) = (cel::Writer::new(encoding, more), vec![]);
                writer.begin(None, &mut head);
                out.write_all(&head).environment("output")?;
                Ok(Writer::Cel(writer))
            }
            Form::CelCbor => {
                let spool = tempfile::tempfile().environment("temporary file")?;
                let spool = io::BufWriter::with_capacity(256 << 10, spool);
                let writer = cel::Writer::new(cel::Encoding::Cbor, more);
                Ok(Writer::CelCbor { writer, records: 0, spool })
            }
            _ => match banks {
                [] => Ok(Writer::Kernel { form, bank: Bank::Sha1 }),
                [bank] => Ok(Writer::Kernel { form, bank: *bank }),
                _ => Err(Failure::input("only an event log shows the digests of several banks")),
            },
        }
    }

    /// Puts what is to be written now into the buffer.
    fn record(&mut self, index: u64, record: &Record<'_>, buffer: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Writer::Kernel { form: Form::Ascii, bank } => record.write_ascii(*bank, buffer),
            Writer::Kernel { form: Form::Binary, bank } => record.write_binary(*bank, buffer),
            Writer::Kernel { form: Form::Details, bank } => {
                details::write(record, index, *bank, buffer);
            }
            Writer::Kernel { bank, .. } => json::write_record(record, index, *bank, buffer),
            Writer::Cel(writer) => writer.record(record, buffer),
            Writer::CelCbor { writer, records, spool } => {
                writer.record(record, buffer);
                *records += 1;
                spool.write_all(buffer)?;
                buffer.clear();
            }
        }
        Ok(())
    }

    fn end(self, out: &mut impl Write) -> io::Result<()> {
        let mut buffer = Vec::new();
        match self {
            Writer::Kernel { .. } => {}
            Writer::Cel(writer) => writer.end(&mut buffer),
            Writer::CelCbor { mut writer, records, spool } => {
                writer.begin(Some(records), &mut buffer);
                out.write_all(&buffer)?;
                let mut spool = spool.into_inner().map_err(io::IntoInnerError::into_error)?;
                spool.rewind()?;
                io::copy(&mut spool, out)?;
                return Ok(());
            }
        }
        out.write_all(&buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finding_09_a_terminal_gets_one_line_for_a_record() {
        let shown = |form, record: &[u8]| {
            let mut shown = Vec::new();
            write_printable(form, record, &mut shown).unwrap();
            String::from_utf8(shown).unwrap()
        };
        let line = b"10 ab ima-ng sha1:00 /a\x1b[2K\n\xff\n";
        assert_eq!(shown(Form::Ascii, line), "10 ab ima-ng sha1:00 /a\\x1b[2K\\n\\xff\n");
        let json = "{\"n-ng\":\"\u{202e}\"}\n".as_bytes();
        assert_eq!(shown(Form::Json, json), "{\"n-ng\":\"\\u202e\"}\n");
    }
}
