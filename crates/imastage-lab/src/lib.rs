//! The lab: real kernels with IMA and a virtual TPM, in QEMU without hardware virtualisation.
//!
//! A [`Machine`] is one guest. Its init is this crate's own program, which performs requests of the
//! host from a virtio-serial port ([`wire`]). A [`scenario`] is ordinary code on the host, and
//! evidence from the guest is verified on the host.
#![deny(unsafe_code)]

mod ask;
mod built;
mod cpio;
mod debian;
mod error;
pub mod guest;
mod initramfs;
mod kernel;
mod lab;
mod machine;
mod process;
pub mod scenario;
pub mod wire;

pub use ask::{Measured, Snapshot};
pub use error::LabError;
pub use initramfs::Programs;
pub use kernel::{KERNELS, Kernel, KernelName};
pub use lab::{LIST, Lab};
pub use machine::{INTERRUPTED, Machine, Plan, Ran, Tpm, shell};
