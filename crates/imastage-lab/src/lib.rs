//! The lab: real kernels with IMA and a virtual TPM, in QEMU without hardware virtualisation.
//!
//! A [`Machine`] is one guest. Its first process is this crate's own program, which does what the host
//! asks over a virtio-serial port ([`wire`]); so a [`scenario`] is ordinary code on the host, and
//! verdicts are made where the evidence arrives, across the border of the machine.
#![deny(unsafe_code)]

mod ask;
mod cpio;
mod debian;
mod error;
pub mod guest;
mod initramfs;
mod kernel;
mod lab;
mod machine;
mod own_kernel;
mod process;
pub mod scenario;
pub mod wire;

pub use ask::{Measured, Snapshot};
pub use error::LabError;
pub use initramfs::Programs;
pub use kernel::{KERNELS, Kernel, KernelName, OWN};
pub use lab::Lab;
pub use machine::{INTERRUPTED, Machine, Plan, Ran, Tpm, shell};
