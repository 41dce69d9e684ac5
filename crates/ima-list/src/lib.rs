//! The IMA measurement list: append, stage, delete.
