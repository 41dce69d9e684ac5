//! The doors of the measurement list: file names, who may open what, request grammar, errno.
