//! The dialects of the interface, one per kind of kernel.

use core::{fmt, str::FromStr};

/// The requests by which a kernel deletes records of its list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// As in Linux 7.2: `A` and `D` on the staged files, `N` on the others.
    #[default]
    Linux72,
    /// As in version 4 of the staging patches: `A`, `D` and `N` on the staged files, and only at
    /// file position 0.
    V4,
    /// As in the trim patches, which have no staging: `T:N` on a separate file, where `T` must be
    /// the number of records trimmed before. Bugs of those patches are not reproduced: see
    /// [`crate::Request::parse`] and [`crate::OpenLock`].
    Trim,
}

/// The name is not that of a [`Dialect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownDialect;

impl Dialect {
    /// All dialects.
    pub const ALL: [Dialect; 3] = [Dialect::Linux72, Dialect::V4, Dialect::Trim];

    /// Whether the list has a staged part.
    pub const fn stages(self) -> bool {
        !matches!(self, Dialect::Trim)
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dialect::Linux72 => "7.2",
            Dialect::V4 => "v4",
            Dialect::Trim => "trim",
        })
    }
}

impl FromStr for Dialect {
    type Err = UnknownDialect;

    fn from_str(name: &str) -> Result<Dialect, UnknownDialect> {
        match name {
            "7.2" => Ok(Dialect::Linux72),
            "v4" => Ok(Dialect::V4),
            "trim" => Ok(Dialect::Trim),
            _ => Err(UnknownDialect),
        }
    }
}

impl fmt::Display for UnknownDialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown dialect; use 7.2, v4 or trim")
    }
}

impl core::error::Error for UnknownDialect {}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::string::ToString;

    #[test]
    fn dialect_names_round_trip() {
        for dialect in Dialect::ALL {
            assert_eq!(dialect.to_string().parse(), Ok(dialect));
        }
        assert_eq!("7.3".parse::<Dialect>(), Err(UnknownDialect));
    }
}
