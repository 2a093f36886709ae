//! Characters that a person does not see, or that change what is seen around them. A low layer; does no I/O.
//!
//! Text from a row, a smarthost or a file goes to people only with such characters escaped: a terminal obeys control
//! characters, direction marks turn a line around, and two addresses can differ in a zero-width blank alone.

use std::borrow::Cow;

use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory};
use icu_properties::{CodePointMapData, CodePointSetData};

/// True for control and format characters (Unicode categories Cc and Cf: zero-width, direction and tag characters,
/// soft hyphens), for line and paragraph separators (Zl, Zp), and for what Unicode calls default-ignorable besides:
/// variation selectors and fillers without a glyph (UAX #44, Default_Ignorable_Code_Point). Blanks with a width are seen.
pub fn is_hidden(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    matches!(
        CodePointMapData::<GeneralCategory>::new().get(c),
        GeneralCategory::Control
            | GeneralCategory::Format
            | GeneralCategory::LineSeparator
            | GeneralCategory::ParagraphSeparator
    ) || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
}

/// The text on one line, with hidden characters as Rust writes them: `\u{200b}`, `\n`.
pub fn escaped(text: &str) -> Cow<'_, str> {
    replaced(text, is_hidden, |c, out| out.extend(c.escape_default()))
}

/// The same for text that is JSON already: `\u200b`, and two surrogates where the character needs them (RFC 8259 §7).
/// Outside of strings JSON has no such characters but line ends, which stay.
pub fn escaped_json(text: &str) -> Cow<'_, str> {
    let hidden = |c| c != '\n' && is_hidden(c);
    replaced(text, hidden, |c, out| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    })
}

/// Replaces the characters that `which` names; copies nothing where there are none.
pub fn replaced(text: &str, which: impl Fn(char) -> bool, with: impl Fn(char, &mut String)) -> Cow<'_, str> {
    let Some(first) = text.find(&which) else { return text.into() };
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(&text[..first]);
    for c in text[first..].chars() {
        if which(c) { with(c, &mut out) } else { out.push(c) }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_reader_does_not_see_is_hidden_and_what_he_sees_is_not() {
        for c in "\0\t\n\u{1b}\u{7f}\u{9b}\u{ad}\u{34f}\u{61c}\u{115f}\u{180e}\u{200b}\u{200d}\u{200e}\u{200f}\u{2028}\
            \u{2029}\u{202a}\u{202e}\u{2060}\u{2066}\u{2069}\u{3164}\u{fe00}\u{fe0f}\u{feff}\u{ffa0}\u{fffb}\u{1d173}\
            \u{e0001}\u{e0041}\u{e0100}"
            .chars()
        {
            assert!(is_hidden(c), "{}", c.escape_unicode());
        }
        for c in " aÄß€中\u{301}\u{a0}\u{202f}\u{3000}\u{fffd}\u{e000}😀".chars() {
            assert!(!is_hidden(c), "{}", c.escape_unicode());
        }
    }

    #[test]
    fn escapes_are_those_of_the_form_that_they_stand_in() {
        assert_eq!(escaped("a\u{200b}b\n\u{1b}[31m\u{e0041}ü"), "a\\u{200b}b\\n\\u{1b}[31m\\u{e0041}ü");
        let text = "a\u{200b}b\u{7f}\u{e0041}ü\u{2028}";
        let json = serde_json::to_string(text).expect("JSON");
        let shown = escaped_json(&json);
        assert_eq!(shown, "\"a\\u200bb\\u007f\\udb40\\udc41ü\\u2028\"");
        assert_eq!(serde_json::from_str::<String>(&shown).expect("JSON"), text);
        assert!(matches!(escaped("plain"), Cow::Borrowed("plain")));
    }
}
