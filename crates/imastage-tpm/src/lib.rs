//! TPM: PCR read and extend, attestation key, quote; swtpm.
