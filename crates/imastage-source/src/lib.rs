//! The kernel's measurement list as a client sees it.
