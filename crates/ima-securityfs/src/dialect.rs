//! The dialects of the interface, one for each kind of kernel.

use core::{fmt, str::FromStr};

/// How a kernel lets its list be shortened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// As in Linux 7.2: `A` and `D` on the staged files, `N` on the others.
    #[default]
    Linux72,
    /// As the fourth version of the patches had it: `A`, `D` and `N` on the staged files, and only
    /// at the beginning of a file.
    V4,
    /// The other patches, which stage nothing: `T:N` on a file of its own, where `T` must be the
    /// number of records that were trimmed before. What those patches get wrong is mended here:
    /// see [`crate::Request::parse`] and [`crate::OpenLock`].
    Trim,
}

/// Not the name of a [`Dialect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownDialect;

impl Dialect {
    /// All there are.
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
        f.write_str("there is no such dialect; there are 7.2, v4 and trim")
    }
}

impl core::error::Error for UnknownDialect {}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::string::ToString;

    #[test]
    fn dialects_are_called_by_their_names() {
        for dialect in Dialect::ALL {
            assert_eq!(dialect.to_string().parse(), Ok(dialect));
        }
        assert_eq!("7.3".parse::<Dialect>(), Err(UnknownDialect));
    }
}
