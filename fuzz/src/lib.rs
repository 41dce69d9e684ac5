//! Entry points for hostile input: each takes any bytes, and panics only where something is wrong.
//!
//! A new one is a function here, its line in [`TARGETS`], a folder of inputs in `corpus/` and three
//! lines in `fuzz_targets/` and `Cargo.toml`. `make fuzz` runs them all; `cargo test` here runs
//! what is in `corpus/`.
#![forbid(unsafe_code)]

mod evidence;
mod exported;
mod list;

pub use evidence::{key, pcrs, quote, token};
pub use exported::{ascii_in, cel_cbor, cel_json, cel_tlv, json};
pub use list::{ascii, binary, decoder, kexec, replay, signature};

/// An entry point.
pub type Target = fn(&[u8]);

/// All of them, by the name of their folder in `corpus/`.
pub const TARGETS: [(&str, Target); 15] = [
    ("ascii", ascii),
    ("ascii_in", ascii_in),
    ("binary", binary),
    ("cel_cbor", cel_cbor),
    ("cel_json", cel_json),
    ("cel_tlv", cel_tlv),
    ("decoder", decoder),
    ("json", json),
    ("kexec", kexec),
    ("key", key),
    ("pcrs", pcrs),
    ("quote", quote),
    ("replay", replay),
    ("signature", signature),
    ("token", token),
];
