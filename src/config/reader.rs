//! Takes values out of the raw form, checks each, and collects what is wrong instead of stopping at the first.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;

use super::file::Key;
use super::problem::Problem;
use crate::dispatch::Rate;
use crate::mail::Address;
use crate::{secret, translate};

#[derive(Debug, Default)]
pub struct Reader {
    pub problems: Vec<Problem>,
}

/// Why a value does not do, and the remedy.
pub type Objection = (String, String);

impl Reader {
    pub fn blame(&mut self, at: Option<usize>, key: &str, what: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(Problem { at, key: key.to_owned(), what: what.into(), remedy: remedy.into() });
    }

    /// The checked value, or the default: where the key is absent, and where a problem was noted.
    pub fn value<T>(
        &mut self,
        key: &str,
        raw: &Key<String>,
        default: T,
        check: impl FnOnce(&str) -> Result<T, Objection>,
    ) -> T {
        self.optional(key, raw, check).unwrap_or(default)
    }

    /// The checked value, `None` where the key is absent.
    pub fn optional<T>(
        &mut self,
        key: &str,
        raw: &Key<String>,
        check: impl FnOnce(&str) -> Result<T, Objection>,
    ) -> Option<T> {
        let raw = raw.as_ref()?;
        let checked = match secret::expand(raw.get_ref()) {
            Ok(text) => check(&text),
            Err(error) => Err(two_halves(&error.to_string())),
        };
        match checked {
            Ok(value) => Some(value),
            Err((what, remedy)) => {
                self.blame(Some(place(raw)), key, what, remedy);
                None
            }
        }
    }

    /// The checked value of a key that must be there. `section` is where its section begins.
    pub fn required<T>(
        &mut self,
        key: &str,
        section: Option<usize>,
        raw: &Key<String>,
        example: &str,
        check: impl FnOnce(&str) -> Result<T, Objection>,
    ) -> Option<T> {
        if raw.is_none() {
            let name = key.rsplit('.').next().unwrap_or(key);
            self.blame(section, key, "this key is missing", format!("write {name} = \"{example}\""));
        }
        self.optional(key, raw, check)
    }

    /// A program and its arguments.
    pub fn command(&mut self, key: &str, raw: &Spanned<Vec<String>>) -> Option<Vec<String>> {
        let expanded: Result<Vec<String>, _> = raw.get_ref().iter().map(|word| secret::expand(word)).collect();
        let (what, remedy) = match expanded {
            Ok(words) if words.first().is_some_and(|program| !program.is_empty()) => return Some(words),
            Ok(_) => {
                ("there is no program".to_owned(), "write it first, as in [\"/usr/bin/token\", \"smtp\"]".to_owned())
            }
            Err(error) => two_halves(&error.to_string()),
        };
        self.blame(Some(place(raw)), key, what, remedy);
        None
    }

    pub fn number(&mut self, key: &str, raw: &Key<i64>, default: u32, range: RangeInclusive<u32>) -> u32 {
        let Some(raw) = raw else { return default };
        match u32::try_from(*raw.get_ref()) {
            Ok(number) if range.contains(&number) => number,
            _ => {
                let what = format!("{} is outside {} to {}", raw.get_ref(), range.start(), range.end());
                self.blame(Some(place(raw)), key, what, format!("the default is {default}"));
                default
            }
        }
    }
}

/// Where a value stands.
pub fn place<T>(raw: &Spanned<T>) -> usize {
    raw.span().start
}

/// Splits an error of ours, `WHAT: REMEDY`.
pub fn two_halves(text: &str) -> Objection {
    let (what, remedy) = text.split_once(": ").unwrap_or((text, "correct it"));
    (what.to_owned(), remedy.to_owned())
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

/// `60s`, `15m`, `5d`, `1h 30m`; longer than nothing.
pub fn duration(text: &str) -> Result<Duration, Objection> {
    let remedy = || "write a number with a unit, as in 60s, 15m, 4h or 5d".to_owned();
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err((format!("{} is no time at all", quoted(text)), remedy())),
        Ok(duration) if duration > Duration::from_secs(100 * 366 * 86_400) => {
            Err((format!("{} is more than a hundred years", quoted(text)), remedy()))
        }
        Ok(duration) => Ok(duration),
        Err(_) => Err((format!("{} is no duration", quoted(text)), remedy())),
    }
}

/// `64MB`, `500 kB`, `1GiB`, in bytes; `MB` is a million bytes, `MiB` 1,048,576.
pub fn size(text: &str) -> Result<u64, Objection> {
    let objection =
        || (format!("{} is no size", quoted(text)), "write a number with a unit, as in 64MB or 64MiB".to_owned());
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(objection()),
    };
    let number: u64 = digits.parse().map_err(|_| objection())?;
    match number.checked_mul(factor) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(objection()),
    }
}

/// A mail address, read as those in rows are. It stands in every mail of its kind, so that a local part which a smarthost
/// without SMTPUTF8 (RFC 6531) could not take is refused at once.
pub fn address(text: &str) -> Result<Address, Objection> {
    let address = translate::address(text).map_err(|why| {
        (
            format!("{} is no mail address ({why})", quoted(text)),
            "write it without name and brackets, as in a@example.org".to_owned(),
        )
    })?;
    if !address.user().is_ascii() {
        return Err((
            format!("{} has letters before its @ that not every mail server takes", quoted(text)),
            "write one with ASCII letters there, as in a@example.org".to_owned(),
        ));
    }
    Ok(address)
}

/// One of a few words.
pub fn choice<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, Objection> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        (format!("{} is not known here", quoted(text)), format!("write one of {}", known.join(", ")))
    })
}

/// Any text that has something in it. Control characters mean something to the commands that carry it.
pub fn text(text: &str) -> Result<String, Objection> {
    match text.trim() {
        text if text.contains(char::is_control) => {
            Err(("this has a control character in it".to_owned(), "take it out".to_owned()))
        }
        "" => Err(("this is empty".to_owned(), "fill it in, or take the line out".to_owned())),
        text => Ok(text.to_owned()),
    }
}

/// What names a queue in ids such as `newsletter/1234`.
pub fn queue_name(text: &str) -> Result<String, Objection> {
    // A leading hyphen would make it an option of `mailqueue pause`.
    let fits = !text.is_empty()
        && !text.starts_with('-')
        && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
    match text {
        "relay" => Err((
            "\"relay\" cannot name a queue".to_owned(),
            "take another name: `mailqueue pause relay` stops the relay".to_owned(),
        )),
        _ if fits => Ok(text.to_owned()),
        _ => Err((
            format!("{} cannot name a queue", quoted(text)),
            "write small letters, digits, - and _ only, and no - in front".to_owned(),
        )),
    }
}

/// `600/min`: how many mails in how much time.
pub fn rate(text: &str) -> Result<Rate, Objection> {
    let objection =
        || (format!("{} is no rate", quoted(text)), "write mails per time, as in 600/min, 10/s or 5000/h".into());
    let (number, unit) = text.split_once('/').ok_or_else(objection)?;
    let per = match unit.trim() {
        "s" | "sec" | "second" => 1,
        "m" | "min" | "minute" => 60,
        "h" | "hour" => 3_600,
        _ => return Err(objection()),
    };
    match number.trim().parse() {
        Ok(mails) if mails > 0 => Ok(Rate { mails, per: Duration::from_secs(per) }),
        _ => Err(objection()),
    }
}
