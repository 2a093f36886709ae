//! Holds the rules of the layout in `src/lib.rs`: imports run one way, SQL stands in its two places, files stay short.

use std::fs;
use std::iter::Peekable;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree, token_stream::IntoIter};

/// Each module with those that it may import. What is not listed here may import nothing of ours.
const MAY_IMPORT: [(&str, &[&str]); 20] = [
    ("main", &["cli"]),
    (
        "cli",
        &[
            "config",
            "dispatch",
            "observe",
            "queue",
            "ledger",
            "relay",
            "telemetry",
            "translate",
            "retry",
            "decode",
            "outcome",
            "mail",
            "secret",
            "visible",
            "panics",
            "open_files",
        ],
    ),
    // It fills the settings of its neighbours; nothing but `cli` imports it.
    (
        "config",
        &[
            "dispatch",
            "observe",
            "queue",
            "ledger",
            "relay",
            "translate",
            "retry",
            "outcome",
            "mail",
            "secret",
            "visible",
        ],
    ),
    (
        "dispatch",
        &[
            "telemetry",
            "queue",
            "ledger",
            "relay",
            "translate",
            "retry",
            "outcome",
            "mail",
            "failpoint",
            "panics",
            "open_files",
        ],
    ),
    (
        "observe",
        &[
            "telemetry",
            "queue",
            "ledger",
            "relay",
            "translate",
            "retry",
            "outcome",
            "mail",
            "visible",
            "failpoint",
            "open_files",
        ],
    ),
    // Plain data of a running dispatcher: dispatch fills it, observe shows it.
    ("telemetry", &["outcome", "mail"]),
    ("queue", &["outcome", "mail", "secret", "failpoint", "open_files"]),
    ("ledger", &["outcome", "mail", "failpoint"]),
    ("relay", &["outcome", "mail", "secret", "visible", "failpoint", "open_files"]),
    ("translate", &["decode", "outcome", "mail", "visible"]),
    ("retry", &["outcome", "mail"]),
    ("decode", &["outcome", "mail"]),
    ("outcome", &["mail"]),
    ("mail", &[]),
    ("secret", &[]),
    ("visible", &[]),
    ("failpoint", &[]),
    ("panics", &[]),
    ("open_files", &[]),
    ("lib", &[]),
];

const MAY_HOLD_SQL: [&str; 2] = ["queue", "ledger"];
/// Lines of a file: one concept fits into it.
const LONGEST_FILE: usize = 600;

#[test]
fn imports_run_one_way() {
    check(breaches_of_layers);
}

#[test]
fn sql_stands_in_queue_and_ledger_only() {
    check(breaches_of_sql);
}

#[test]
fn no_file_is_longer_than_600_lines() {
    check(|_, source| {
        let lines = source.lines().count();
        if lines > LONGEST_FILE { vec![format!("has {lines} lines, {LONGEST_FILE} are the most")] } else { vec![] }
    });
}

#[test]
fn a_forbidden_import_is_seen_in_every_form() {
    let breaches = |source| breaches_of_layers(Path::new("relay/session.rs"), source).join("\n");
    for forbidden in [
        "use crate::queue;",
        "use crate::queue::Claim as Right;",
        "pub use crate::{mail::{Mail, Envelope}, outcome, queue::{self, Claim}};",
        "use {std::fmt, crate::queue::Claim};",
        "fn f(_: crate::queue::Claim) {}",
        "fn f() { tokio::select! { row = crate::queue::next() => row } }",
        "use super::super::queue;",
        "mod tests { use super::super::super::queue::Claim; }",
    ] {
        assert_eq!(breaches(forbidden), "`relay` must not import `queue`", "{forbidden}");
    }
    for allowed in [
        "use crate::mail::{self, Mail}; use crate::{outcome::Attempt, relay::Settings}; use super::queue;",
        "mod tests { use super::super::queue; }",
        "/// Not [`crate::queue`].\nfn f() { g(\"crate::queue\") } // crate::queue",
    ] {
        assert_eq!(breaches(allowed), "", "{allowed}");
    }
    let in_main = breaches_of_layers(Path::new("main.rs"), "use mailqueue::{cli, config::Config};");
    assert_eq!(in_main, ["`main` must not import `config`"]);
    let unlisted = breaches_of_layers(Path::new("extra.rs"), "use crate::mail;");
    assert_eq!(unlisted, ["`extra` has no place in the layers: list it in tests/suite/layers.rs"]);
}

#[test]
fn sql_in_the_wrong_place_is_seen() {
    let breaches = |source| breaches_of_sql(Path::new("cli/list.rs"), source);
    assert_eq!(breaches("use sqlx::Row;"), ["uses `sqlx`"]);
    assert_eq!(breaches("fn f() { g(\"DELETE FROM mail_queue\") }").len(), 1);
    assert_eq!(breaches("/// SELECT 1, by sqlx\nfn f() { g(\"Select a queue\") }"), [""; 0]);
    assert_eq!(breaches_of_sql(Path::new("queue/db/mysql.rs"), "use sqlx::Row;"), [""; 0]);
}

/// Runs a rule over every file below `src/`, and fails with all breaches and their files.
fn check(rule: impl Fn(&Path, &str) -> Vec<String>) {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    for path in files(&src) {
        let file = path.strip_prefix(&src).unwrap();
        let source = fs::read_to_string(&path).unwrap();
        found.extend(rule(file, &source).into_iter().map(|breach| format!("src/{}: {breach}", file.display())));
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

pub fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn breaches_of_layers(file: &Path, source: &str) -> Vec<String> {
    let module = modules(file);
    let top = module.first().map_or("lib", String::as_str);
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == top) else {
        return vec![format!("`{top}` has no place in the layers: list it in tests/suite/layers.rs")];
    };
    let mut imported = Vec::new();
    let depth = if top == "main" { 0 } else { module.len() };
    collect_imports(source.parse().expect("Rust"), depth, &mut imported);
    imported.sort();
    imported.dedup();
    imported.retain(|name| name != top && MAY_IMPORT.iter().any(|(known, _)| known == name));
    imported.retain(|name| !allowed.contains(&name.as_str()));
    imported.iter().map(|name| format!("`{top}` must not import `{name}`")).collect()
}

/// `queue/db/mysql.rs` is `["queue", "db", "mysql"]`.
pub fn modules(file: &Path) -> Vec<String> {
    let names = file.with_extension("");
    let names = names.iter().map(|name| name.to_str().expect("UTF-8").to_owned());
    names.filter(|name| name != "mod" && name != "lib").collect()
}

/// Finds the first name behind every path to the crate's root, in imports and elsewhere, macro calls included. `depth`
/// is how many `super::` lead to the root.
fn collect_imports(tokens: TokenStream, depth: usize, found: &mut Vec<String>) {
    let mut tokens = tokens.into_iter().peekable();
    let mut in_module = false;
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == '#' => skip_attribute(&mut tokens),
            TokenTree::Ident(ident) if ident == "mod" => in_module = true,
            TokenTree::Ident(ident) if ident == "crate" || ident == "mailqueue" => first_names(&mut tokens, found),
            TokenTree::Ident(ident) if ident == "super" => {
                let mut steps = 1;
                while steps < depth && follows(&mut tokens.clone(), "super") {
                    follows(&mut tokens, "super");
                    steps += 1;
                }
                if steps == depth {
                    first_names(&mut tokens, found);
                }
            }
            TokenTree::Group(group) => {
                let inner = in_module && group.delimiter() == Delimiter::Brace;
                collect_imports(group.stream(), depth + usize::from(inner), found);
                in_module = false;
            }
            TokenTree::Punct(punct) if punct.as_char() == ';' => in_module = false,
            _ => {}
        }
    }
}

/// Behind `crate`: `::name`, or `::{name…, name…}`.
fn first_names(tokens: &mut Peekable<IntoIter>, found: &mut Vec<String>) {
    if !colons(tokens) {
        return;
    }
    match tokens.peek() {
        Some(TokenTree::Ident(ident)) => found.push(ident.to_string()),
        Some(TokenTree::Group(group)) => {
            let mut at_start = true;
            for token in group.stream() {
                if let TokenTree::Ident(ident) = &token
                    && at_start
                {
                    found.push(ident.to_string());
                }
                at_start = matches!(&token, TokenTree::Punct(punct) if punct.as_char() == ',');
            }
        }
        _ => {}
    }
}

fn follows(tokens: &mut Peekable<IntoIter>, name: &str) -> bool {
    colons(tokens) && tokens.next_if(|token| matches!(token, TokenTree::Ident(ident) if ident == name)).is_some()
}

fn colons(tokens: &mut Peekable<IntoIter>) -> bool {
    let mut colon = || tokens.next_if(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ':')).is_some();
    colon() && colon()
}

/// Doc comments are attributes too.
fn skip_attribute(tokens: &mut Peekable<IntoIter>) {
    tokens.next_if(|token| matches!(token, TokenTree::Punct(punct) if punct.as_char() == '!'));
    tokens.next_if(|token| matches!(token, TokenTree::Group(_)));
}

fn breaches_of_sql(file: &Path, source: &str) -> Vec<String> {
    let module = modules(file);
    let mut found = Vec::new();
    if !module.first().is_some_and(|top| MAY_HOLD_SQL.contains(&top.as_str())) {
        collect_sql(source.parse().expect("Rust"), &mut found);
    }
    found
}

fn collect_sql(tokens: TokenStream, found: &mut Vec<String>) {
    const STATEMENTS: [&str; 6] = ["SELECT ", "INSERT ", "UPDATE ", "DELETE FROM ", "CREATE TABLE ", "PRAGMA "];
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == '#' => skip_attribute(&mut tokens),
            TokenTree::Ident(ident) if ident == "sqlx" => found.push("uses `sqlx`".to_owned()),
            TokenTree::Literal(literal) => {
                let literal = literal.to_string();
                if STATEMENTS.iter().any(|statement| literal.contains(statement)) {
                    found.push(format!("holds SQL: {literal}"));
                }
            }
            TokenTree::Group(group) => collect_sql(group.stream(), found),
            _ => {}
        }
    }
}
