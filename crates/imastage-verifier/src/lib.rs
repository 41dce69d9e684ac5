//! Appraisal of evidence: quote and records to a verdict and a resume token.
//!
//! The verifier's side of remote attestation (RFC 9334). It shares no state with the attested
//! machine and treats every byte from there as hostile:
//!
//! - [`UnverifiedQuote::verify`] verifies bytes with a trusted [`PublicKey`] and the verifier's nonce,
//!   and returns a [`VerifiedQuote`];
//! - [`Appraiser`] finds the records of the measurement list that the quote covers, or the reason that
//!   there are none; [`Requirements`] are the PCRs and banks that the quote must cover;
//! - [`Token`] is the verifier's state, with which the next round needs only newer records;
//! - [`PcrValues`] are the values of other quoted PCRs, from files of common tools.
//!
//! ```no_run
//! use ima_log::{Bank, Format, Records};
//! use imastage_verifier::{Appraiser, PcrValues, PublicKey, Requirements, UnverifiedQuote};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = PublicKey::from_bytes(&std::fs::read("ak.pub.pem")?)?;
//! let (message, signature) = (std::fs::read("quote.msg")?, std::fs::read("quote.sig")?);
//! let quote = UnverifiedQuote { message: &message, signature: &signature };
//! let quote = quote.verify(&key, b"the nonce I gave")?;
//!
//! let requirements = Requirements::default();
//! let mut appraiser = Appraiser::new(quote, PcrValues::default(), None, requirements)?;
//! for record in Records::new(&std::fs::read("binary")?, Format::native(Bank::Sha1)) {
//!     appraiser.push(&record?);
//! }
//! let appraisal = appraiser.finish();
//! match appraisal.reason {
//!     None => println!("{} records are proven", appraisal.records),
//!     Some(reason) => println!("{reason}"),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Sources: TPM 2.0 Library Part 2 (`TPMS_ATTEST`, `TPMT_SIGNATURE`) and Part 3 (`TPM2_Quote`).
#![cfg_attr(doctest, doc = include_str!("../README.md"))]
#![forbid(unsafe_code)]

mod appraise;
mod boot;
mod error;
mod key;
mod kind;
mod pcrs;
mod quote;
mod requirements;
mod target;
mod token;

pub use appraise::{Appraisal, Appraiser, Unprotected, Verdict};
pub use boot::BootAggregate;
pub use error::{AppraisalError, Moved, Reason, ValuesGiven};
pub use key::{KeyError, PublicKey};
pub use pcrs::{LineProblem, PcrFileError, PcrHint, PcrValues};
pub use quote::{ClockInfo, PcrSelection, QuoteError, UnverifiedQuote, VerifiedQuote};
pub use requirements::Requirements;
pub use token::{Token, TokenError};
