//! The ASCII form of a list, written and read.

mod decode;
mod error;
mod line;
mod write;

pub use decode::AsciiDecoder;
pub use error::{AsciiError, AsciiErrorKind};
#[cfg(feature = "json")]
pub(crate) use write::{decimal, hex};
