mod filter;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use clap::ValueEnum;
use ima_log::{Bank, Field, FieldKind, Record};
use serde_json::{Map, Value, json};

use crate::{
    exit::{Fail, Failure, Outcome},
    input::List,
    output::Output,
};

/// Show records, byte for byte as the kernel's file of a bank holds them.
#[derive(clap::Args)]
pub struct Args {
    /// The form [default: ascii; json with --json].
    #[arg(long = "as", value_name = "FORM")]
    form: Option<Form>,
    /// The bank whose file is shown: sha1, sha256, sha384 or sha512.
    #[arg(long, value_name = "ALG", default_value = "sha1")]
    bank: Bank,
    #[command(flatten)]
    filter: filter::Filter,
    /// A measurement list (binary, JSON lines or CEL), `-`, or a state directory.
    list: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// As `ascii_runtime_measurements`.
    Ascii,
    /// As `binary_runtime_measurements`.
    Binary,
    /// One JSON object a line.
    Json,
}

/// Runs `imastage show`.
pub fn run(args: Args, out: &Output) -> Result<Outcome, Failure> {
    let form = args.form.unwrap_or(if out.is_json() { Form::Json } else { Form::Ascii });
    let stdout = io::stdout();
    if form == Form::Binary && stdout.is_terminal() {
        return Err(Failure::input("binary records are not for a terminal; redirect the output"));
    }
    let mut writer = io::BufWriter::with_capacity(256 << 10, stdout.lock());
    let mut buffer = Vec::new();
    args.filter.each(List::open(&args.list)?, |index, record| {
        buffer.clear();
        match form {
            Form::Ascii => record.write_ascii(args.bank, &mut buffer),
            Form::Binary => record.write_binary(args.bank, &mut buffer),
            Form::Json => {
                let value = json(index, record, args.bank);
                serde_json::to_writer(&mut buffer, &value).environment("JSON")?;
                buffer.push(b'\n');
            }
        }
        writer.write_all(&buffer).environment("standard output")
    })?;
    writer.flush().environment("standard output")?;
    Ok(Outcome::Fine)
}

/// A record as JSON: `index`, `pcr`, `digest` (of `bank`), `template`, `violation`, and `fields`
/// by their ids in order. Text that is not UTF-8 is given as `{"hex": …}`.
fn json(index: u64, record: &Record<'_>, bank: Bank) -> Value {
    let digest = if bank == record.format().bank {
        record.printed_digest()
    } else {
        record.template_digest(bank)
    };
    let fields: Vec<Value> = record
        .fields()
        .map(|field| {
            let id = field.kind.map_or("unknown", FieldKind::id);
            let mut object = Map::new();
            object.insert(id.to_owned(), field_json(&field));
            Value::Object(object)
        })
        .collect();
    json!({
        "index": index,
        "pcr": record.pcr(),
        "digest": digest.to_string(),
        "template": record.template().name(),
        "violation": record.is_violation(),
        "fields": fields,
    })
}

fn field_json(field: &Field<'_>) -> Value {
    let hex = || Value::from(hex::encode(field.bytes));
    match field.kind {
        Some(FieldKind::N | FieldKind::NNg | FieldKind::XattrNames) => {
            let text = field.bytes.strip_suffix(&[0]).unwrap_or(field.bytes);
            match std::str::from_utf8(text) {
                Ok(text) => Value::from(text),
                Err(_) => json!({ "hex": hex::encode(text) }),
            }
        }
        Some(FieldKind::DNg | FieldKind::DNgV2 | FieldKind::DModsig) => {
            let nul = field.bytes.iter().position(|byte| *byte == 0);
            match nul.map(|nul| (std::str::from_utf8(&field.bytes[..nul]), nul + 1)) {
                Some((Ok(prefix), rest)) => {
                    Value::from(format!("{prefix}{}", hex::encode(&field.bytes[rest..])))
                }
                _ => hex(),
            }
        }
        _ => hex(),
    }
}
