//! The drain: read, check, store, delete, and compare with the TPM.
//!
//! [`schedule`] decides when to drain; [`drainer`] drains once. [`place`] and [`align`] find out which of
//! the list's records are stored already, [`compare`] and [`banks`] compare what is stored with the TPM.

pub(crate) mod align;
pub(crate) mod anchor;
pub(crate) mod banks;
pub(crate) mod compare;
pub(crate) mod describe;
pub(crate) mod drainer;
pub(crate) mod epoch;
pub(crate) mod last_compared;
pub(crate) mod place;
pub(crate) mod round;
pub(crate) mod schedule;
