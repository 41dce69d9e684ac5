//! The drain loop and the local API.
