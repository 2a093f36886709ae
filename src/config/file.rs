//! What stands in the file, before anything is checked: the sections and keys, each with its place.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problem;

/// A key that may be absent.
pub type Key<T> = Option<Spanned<T>>;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    pub poll_interval: Key<String>,
    pub state_dir: Key<String>,
    pub lease: Key<String>,
    pub ledger_keep: Key<String>,
    pub max_in_flight_bytes: Key<String>,
    #[serde(default)]
    pub queue: Vec<Spanned<Queue>>,
    pub relay: Key<Relay>,
    #[serde(default)]
    pub message: Message,
    #[serde(default)]
    pub retry: Retry,
    #[serde(default)]
    pub log: Log,
    #[serde(default)]
    pub monitor: Monitor,
    #[serde(default)]
    pub notify: Notify,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    pub name: Key<String>,
    pub database: Key<String>,
    pub password_file: Key<String>,
    pub table: Key<String>,
    pub weight: Key<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relay {
    pub host: Key<String>,
    pub port: Key<i64>,
    pub tls: Key<String>,
    pub ca_file: Key<String>,
    pub username: Key<String>,
    pub password_file: Key<String>,
    pub auth: Key<String>,
    pub token_command: Key<Vec<String>>,
    pub helo: Key<String>,
    pub connections: Key<i64>,
    pub messages_per_connection: Key<i64>,
    pub recipients_per_message: Key<i64>,
    pub pipelining: Key<String>,
    pub rate: Key<String>,
    pub on_unknown: Key<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    pub envelope_from: Key<String>,
    pub default_from: Key<String>,
    pub max_size: Key<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retry {
    pub initial: Key<String>,
    pub maximum: Key<String>,
    pub expire: Key<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub format: Key<String>,
    pub level: Key<String>,
    pub addresses: Key<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Monitor {
    pub listen: Key<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Notify {
    pub to: Key<String>,
}

impl File {
    pub fn parse(text: &str) -> Result<Self, Problem> {
        toml::from_str(text).map_err(|error| explain(text, &error))
    }
}

/// Says what the parser found in words for a person. The parser's own text is not shown as it is: it quotes values, and
/// a value can be a password.
fn explain(text: &str, error: &toml::de::Error) -> Problem {
    let span = error.span().unwrap_or(0..0);
    let mut key = path_to(text, &span);
    let message = error.message();
    let (what, remedy) = if message.starts_with("unknown field") {
        // Names stand in backquotes: the unknown one first, then those that exist.
        let mut names = message.split('`').skip(1).step_by(2);
        let unknown = names.next().unwrap_or_default();
        let known: Vec<&str> = names.collect();
        ("there is no such key".to_owned(), suggest(unknown, &known))
    } else if message.starts_with("duplicate key") {
        // Such a file has no tree in which the key's path could be looked up.
        key = text.get(span.clone()).unwrap_or_default().to_owned();
        ("this key stands here twice".to_owned(), "keep one of them".to_owned())
    } else if let Some((_, expected)) =
        message.split_once(", expected ").filter(|_| message.starts_with("invalid type"))
    {
        match expected {
            "a string" => ("this is no text".to_owned(), "put the value in quotes".to_owned()),
            "i64" => ("this is no whole number".to_owned(), "write digits without quotes".to_owned()),
            "a sequence" if key.ends_with("_command") => (
                "this is no list".to_owned(),
                "write a program and its arguments, as in [\"/usr/bin/token\", \"smtp\"]".to_owned(),
            ),
            "a sequence" => ("there can be several of these".to_owned(), format!("write [[{key}]] above its keys")),
            _ => ("this is no section".to_owned(), format!("write [{key}] on a line of its own above its keys")),
        }
    } else {
        (format!("this is not TOML: {message}"), "correct this line or the one above it".to_owned())
    };
    Problem { at: Some(span.start), key, what, remedy }
}

fn suggest(unknown: &str, known: &[&str]) -> String {
    let nearest =
        known.iter().map(|name| (strsim::jaro_winkler(unknown, name), *name)).max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, name)) if likeness > 0.8 => format!("did you mean `{name}`?"),
        _ => format!("the keys here are {}", known.join(", ")),
    }
}

/// The dotted path of the key at `span`, which is that of the key itself or of its value; empty where there is none.
fn path_to(text: &str, span: &Range<usize>) -> String {
    let Ok(document) = DeTable::parse(text) else { return String::new() };
    let mut path = Vec::new();
    descend(document.get_ref(), span, &mut path);
    path.join(".")
}

fn descend(table: &DeTable<'_>, span: &Range<usize>, path: &mut Vec<String>) -> bool {
    for (key, value) in table {
        path.push(key.get_ref().to_string());
        if key.span() == *span || value.span() == *span {
            return true;
        }
        let tables: Vec<&DeTable<'_>> = match value.get_ref() {
            DeValue::Table(inner) => vec![inner],
            DeValue::Array(items) => items.iter().filter_map(|item| item.get_ref().as_table()).collect(),
            _ => Vec::new(),
        };
        if tables.into_iter().any(|inner| descend(inner, span, path)) {
            return true;
        }
        path.pop();
    }
    false
}
