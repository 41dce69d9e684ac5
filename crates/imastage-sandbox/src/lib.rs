//! IMA in user space: the embedded list behind a FUSE securityfs.
