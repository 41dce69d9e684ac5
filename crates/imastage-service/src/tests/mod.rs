//! Tests of the crate as a whole that need its internals.

mod survival;
