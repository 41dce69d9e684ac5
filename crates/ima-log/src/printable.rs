//! Shows names and other foreign text on a terminal or in a log without control characters.

use core::fmt;

/// Text that others wrote, for a terminal or a log: displayed with everything escaped that would not
/// be shown as a character of its own.
///
/// Escaped are control characters (C0, DEL and C1, so ESC, tabs and line breaks, too), Unicode's line
/// and paragraph separators, characters that change the direction of writing, and those that have no
/// width or are otherwise not seen (`Default_Ignorable_Code_Point` of the Unicode Character
/// Database). `\n`, `\r` and `\t` are written as in C, other ASCII controls as `\x1b`, characters as
/// `\u{202e}`, bytes that are not UTF-8 as `\xff`. A backslash stays what it is, so that text which is
/// escaped twice does not change; the original bytes cannot be recovered from it.
///
/// Displaying it allocates nothing.
///
/// ```
/// use ima_log::Printable;
///
/// assert_eq!(Printable::new(b"/usr/bin/\xffa\x1b[31m\n").to_string(), r"/usr/bin/\xffa\x1b[31m\n");
/// assert_eq!(Printable::new("a\nb").keep_line_breaks().to_string(), "a\nb");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Printable<'a> {
    text: &'a [u8],
    line_breaks: bool,
    json: bool,
}

impl<'a> Printable<'a> {
    /// Text or bytes to be displayed in one line.
    pub fn new<T: AsRef<[u8]> + ?Sized>(text: &'a T) -> Printable<'a> {
        Printable { text: text.as_ref(), line_breaks: false, json: false }
    }

    /// Newlines stay what they are, for text of more than one line; its author can begin
    /// a line with any text.
    #[must_use]
    pub fn keep_line_breaks(mut self) -> Printable<'a> {
        self.line_breaks = true;
        self
    }

    /// The text is JSON: what is escaped is written as JSON does it (`\u202e`, RFC 8259 section 7), so
    /// that it means the same. Outside of strings JSON has nothing to escape but line breaks.
    #[must_use]
    pub fn in_json(mut self) -> Printable<'a> {
        self.json = true;
        self
    }
}

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.text.utf8_chunks() {
            let mut rest = chunk.valid();
            let hidden = |c: char| is_hidden(c) && !(self.line_breaks && c == '\n');
            while let Some((at, c)) = rest.char_indices().find(|(_, c)| hidden(*c)) {
                let (plain, tail) = rest.split_at(at);
                f.write_str(plain)?;
                if self.json {
                    escape_json(c, f)?
                } else {
                    escape(c, f)?
                }
                rest = tail.strip_prefix(c).unwrap_or_default();
            }
            f.write_str(rest)?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

fn escape_json(c: char, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(f, "\\u{unit:04x}"))
}

fn escape(c: char, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match c {
        '\n' => f.write_str("\\n"),
        '\r' => f.write_str("\\r"),
        '\t' => f.write_str("\\t"),
        '\0'..='\x7f' => write!(f, "\\x{:02x}", u32::from(c)),
        _ => write!(f, "\\u{{{:x}}}", u32::from(c)),
    }
}

/// Whether a terminal would obey it, or show nothing that is its own.
fn is_hidden(c: char) -> bool {
    match c {
        ' '..='~' => false,
        _ if c.is_control() => true,
        // Line and paragraph separator; interlinear annotation.
        '\u{2028}' | '\u{2029}' | '\u{fff9}'..='\u{fffb}' => true,
        // Default_Ignorable_Code_Point, DerivedCoreProperties.txt of Unicode 16.
        '\u{ad}'
        | '\u{34f}'
        | '\u{61c}'
        | '\u{115f}'..='\u{1160}'
        | '\u{17b4}'..='\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}'
        | '\u{ffa0}'
        | '\u{fff0}'..='\u{fff8}'
        | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}' => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{format, string::ToString};
    use proptest::prelude::*;

    #[test]
    fn finding_09_a_terminal_is_told_nothing_by_foreign_text() {
        for (text, shown) in [
            (&b"/usr/bin/true"[..], "/usr/bin/true"),
            ("/grün/文書 \u{1f600}".as_bytes(), "/grün/文書 \u{1f600}"),
            (b"a\rb\x1b[2K\x1b[32mpass\x07\x7f", r"a\rb\x1b[2K\x1b[32mpass\x07\x7f"),
            (b"a\nb\tc\0", r"a\nb\tc\x00"),
            // C1: as a character, and as a byte, which some terminals take for CSI.
            ("\u{9b}31m".as_bytes(), r"\u{9b}31m"),
            (b"\x9b31m", r"\x9b31m"),
            (
                "a\u{202e}b\u{2066}c\u{200b}d\u{feff}".as_bytes(),
                r"a\u{202e}b\u{2066}c\u{200b}d\u{feff}",
            ),
            ("a\u{2028}b\u{85}".as_bytes(), r"a\u{2028}b\u{85}"),
            // UTF-8 that is cut short, too long, or of a surrogate.
            (b"\xe2\x80", r"\xe2\x80"),
            (b"\xc0\x9b", r"\xc0\x9b"),
            (b"\xed\xa0\x80", r"\xed\xa0\x80"),
            (br"C:\x1b", r"C:\x1b"),
            (b"", ""),
        ] {
            assert_eq!(Printable::new(text).to_string(), shown, "{}", text.escape_ascii());
        }
        let lines = Printable::new("a\n\x1b\r\n").keep_line_breaks();
        assert_eq!(lines.to_string(), "a\n\\x1b\\r\n");
        let json = Printable::new("{\"\u{9b}\u{e0001}\":1}\n").in_json().keep_line_breaks();
        assert_eq!(json.to_string(), "{\"\\u009b\\udb40\\udc01\":1}\n");
    }

    proptest! {
        #[test]
        fn nothing_hidden_is_left(bytes in proptest::collection::vec(any::<u8>(), 0..60), text in any::<alloc::string::String>()) {
            for text in [&bytes[..], text.as_bytes()] {
                let once = format!("{}", Printable::new(text));
                prop_assert!(!once.chars().any(is_hidden));
                prop_assert_eq!(format!("{}", Printable::new(&once)), once);
            }
        }
    }
}
