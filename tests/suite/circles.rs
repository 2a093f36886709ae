//! Holds two rules of the layout: imports of files form no circle, and functions stay short.
//!
//! An edge leads from a file to each file that defines a name it uses, whatever way the name is written: by `crate::`,
//! `super::`, a `use`, a name that a parent imports or hands on. A parent that only hands a name on with `pub use` does not
//! use it. Tests inside a file are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use crate::layers::{files, modules};

/// Lines of a function: it fits on a screen.
const LONGEST_FUNCTION: usize = 70;

/// The names of a file, as the paths to them are written.
#[derive(Default)]
struct Source {
    /// Modules that it declares.
    children: BTreeSet<String>,
    /// Each imported name with the path behind it.
    imports: BTreeMap<String, Vec<String>>,
    /// Paths that it uses.
    paths: BTreeSet<Vec<String>>,
}

#[test]
fn imports_of_files_form_no_circle() {
    let circles = circles(&sources());
    assert!(circles.is_empty(), "\n{}", circles.join("\n"));
}

#[test]
fn no_function_is_longer_than_70_lines() {
    let mut found = Vec::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for path in files(&src) {
        let source: TokenStream = fs::read_to_string(&path).unwrap().parse().expect("Rust");
        let mut functions = Vec::new();
        collect_functions(source, &mut functions);
        let long = functions.into_iter().filter(|(_, lines)| *lines > LONGEST_FUNCTION);
        found.extend(long.map(|(name, lines)| format!("{}: `{name}` has {lines} lines", path.display())));
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn a_circle_is_seen_in_every_form() {
    let circle = |files: &[(&str, &str)]| {
        let sources = files.iter().map(|(file, source)| (modules(Path::new(file)), read(source.parse().unwrap())));
        circles(&sources.collect())
    };
    let between = |one: &str, other: &str| circle(&[("a.rs", "mod b; mod c;"), ("a/b.rs", one), ("a/c.rs", other)]);
    let seen = ["a::b -> a::c -> a::b"];
    assert_eq!(between("use super::c::C;", "use super::b::B;"), seen);
    assert_eq!(between("fn f() { super::c::f() }", "use crate::a::{self, b::{B, D as E}};"), seen);
    assert_eq!(between("fn f() { tokio::select! { x = super::c::f() => x } }", "fn f(_: super::b::B) {}"), seen);
    assert_eq!(between("use super::c; fn f() { c::f() }", "pub use crate::a::b::B;"), seen);
    assert_eq!(between("use super::c::C;", "mod tests { use super::super::b::B; }"), seen);
    assert_eq!(between("use super::c::C;", "#[cfg(test)] mod tests { use super::super::b::B; }"), [""; 0]);
    assert_eq!(between("use super::c::C;", "/// [`super::b::B`]\nfn f() { g(\"super::b\") }"), [""; 0]);
    let parent = |parent: &str, child: &str| circle(&[("a.rs", parent), ("a/b.rs", child)]);
    assert_eq!(parent("mod b; struct S; fn f() { b::f() }", "use super::S;"), ["a -> a::b -> a"]);
    assert_eq!(parent("mod b; struct S; use b::f;", "use super::S;"), ["a -> a::b -> a"]);
    assert_eq!(parent("mod b; struct S; pub use b::f;", "use super::S;"), [""; 0]);
    assert_eq!(parent("mod b; fn f() { b::f() }", "use std::fmt;"), [""; 0]);
    let through =
        [("a.rs", "mod b; mod c; pub use b::B;"), ("a/b.rs", "use super::c::C;"), ("a/c.rs", "use super::B;")];
    assert_eq!(circle(&through), seen);
}

#[test]
fn the_length_of_a_function_is_seen() {
    let mut functions = Vec::new();
    collect_functions("impl A {\n fn a() {\n }\n mod m { fn b() {} }\n}".parse().unwrap(), &mut functions);
    assert_eq!(functions, [("a".to_owned(), 2), ("b".to_owned(), 1)]);
}

fn sources() -> BTreeMap<Vec<String>, Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let source = |path: std::path::PathBuf| {
        let module = modules(path.strip_prefix(&src).unwrap());
        (module, read(fs::read_to_string(&path).unwrap().parse().expect("Rust")))
    };
    files(&src).into_iter().map(source).collect()
}

/// The circles among files, each as one way around.
fn circles(sources: &BTreeMap<Vec<String>, Source>) -> Vec<String> {
    let edges: BTreeMap<&Vec<String>, BTreeSet<&Vec<String>>> = sources
        .iter()
        .map(|(module, source)| {
            let used = source.paths.iter().filter_map(|path| definer(sources, module, path, 0));
            (module, used.filter(|used| *used != module).collect())
        })
        .collect();
    let mut found = Vec::new();
    let mut told = BTreeSet::new();
    for start in edges.keys() {
        if told.contains(start) {
            continue;
        }
        if let Some(way) = way_back(&edges, start) {
            told.extend(way.iter().copied());
            let names = way.iter().map(|module| if module.is_empty() { "lib".to_owned() } else { module.join("::") });
            found.push(names.collect::<Vec<_>>().join(" -> "));
        }
    }
    found
}

/// The shortest way from a module to itself.
fn way_back<'a>(
    edges: &BTreeMap<&'a Vec<String>, BTreeSet<&'a Vec<String>>>,
    start: &'a Vec<String>,
) -> Option<Vec<&'a Vec<String>>> {
    let mut ways = std::collections::VecDeque::from([vec![start]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        for next in &edges[way.last()?] {
            let way = || way.iter().copied().chain([*next]).collect::<Vec<_>>();
            if *next == start {
                return Some(way());
            }
            if seen.insert(*next) {
                ways.push_back(way());
            }
        }
    }
    None
}

/// The module that defines what a path names, written in `module`.
fn definer<'a>(
    sources: &'a BTreeMap<Vec<String>, Source>,
    module: &[String],
    path: &[String],
    depth: usize,
) -> Option<&'a Vec<String>> {
    if depth > 10 {
        return None;
    }
    let mut at = module.to_vec();
    let mut rest = path;
    match rest.first()?.as_str() {
        "crate" | "mailqueue" => {
            at.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {}
        first => {
            let source = sources.get(module)?;
            if !source.children.contains(first) {
                let import = source.imports.get(first)?;
                return definer(sources, module, &[import, &rest[1..]].concat(), depth + 1);
            }
        }
    }
    while rest.first().is_some_and(|first| first == "super") {
        at.pop();
        rest = &rest[1..];
    }
    while let Some(first) = rest.first() {
        let child = [&at[..], std::slice::from_ref(first)].concat();
        if !sources.contains_key(&child) {
            break;
        }
        at = child;
        rest = &rest[1..];
    }
    let (here, source) = sources.get_key_value(&at)?;
    match rest.first().and_then(|first| source.imports.get(first)) {
        // Imported or handed on: another module defines it, if it is ours at all.
        Some(import) if at != module => definer(sources, &at, &[import, &rest[1..]].concat(), depth + 1),
        _ => Some(here),
    }
}

fn read(tokens: TokenStream) -> Source {
    let mut source = Source::default();
    collect(tokens, 0, &mut source);
    source
}

/// `inside` counts the modules in the file around these tokens.
fn collect(tokens: TokenStream, inside: usize, source: &mut Source) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    let mut is_test = false;
    let mut is_public = false;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Punct(punct) if punct.as_char() == '#' => {
                at += 1 + usize::from(matches!(&tokens.get(at + 1), Some(TokenTree::Punct(p)) if p.as_char() == '!'));
                is_test |= matches!(&tokens.get(at), Some(TokenTree::Group(group)) if group.stream().to_string() == "cfg (test)");
            }
            TokenTree::Ident(ident) if ident == "pub" => {
                is_public = true;
                at += usize::from(matches!(&tokens.get(at + 1), Some(TokenTree::Group(_))));
            }
            TokenTree::Ident(ident) if ident == "mod" => {
                at += 2;
                match &tokens.get(at) {
                    Some(TokenTree::Group(_)) if is_test => {}
                    Some(TokenTree::Group(group)) => collect(group.stream(), inside + 1, source),
                    _ => drop(source.children.insert(tokens[at - 1].to_string())),
                }
                (is_test, is_public) = (false, false);
            }
            TokenTree::Ident(ident) if ident == "use" => {
                let end = (at..tokens.len()).find(|end| is_punct(&tokens[*end], ';')).unwrap_or(tokens.len());
                let mut imported = Vec::new();
                expand(&tokens[at + 1..end], Vec::new(), &mut imported);
                for (name, path) in imported {
                    let Some(path) = outside(path, inside) else { continue };
                    if !(is_public && is_child(source, &path)) {
                        source.paths.insert(path.clone());
                    }
                    source.imports.insert(name, path);
                }
                at = end;
                (is_test, is_public) = (false, false);
            }
            TokenTree::Ident(_) => {
                let mut path = vec![tokens[at].to_string()];
                while at + 3 < tokens.len() && is_punct(&tokens[at + 1], ':') && is_punct(&tokens[at + 2], ':') {
                    let TokenTree::Ident(next) = &tokens[at + 3] else { break };
                    path.push(next.to_string());
                    at += 3;
                }
                let is_path = path.len() > 1 || is_import(source, &path[0]);
                source.paths.extend(outside(path, inside).filter(|_| is_path));
            }
            TokenTree::Group(group) => collect_group(group, inside, source, &mut is_test),
            _ => {}
        }
        at += 1;
    }
}

fn collect_group(group: &Group, inside: usize, source: &mut Source, is_test: &mut bool) {
    if !(*is_test && group.delimiter() == Delimiter::Brace) {
        collect(group.stream(), inside, source);
    }
    *is_test &= group.delimiter() != Delimiter::Brace;
}

fn is_import(source: &Source, name: &str) -> bool {
    source.imports.contains_key(name)
}

fn is_child(source: &Source, path: &[String]) -> bool {
    let first = if path[0] == "self" { path.get(1) } else { path.first() };
    first.is_some_and(|first| source.children.contains(first))
}

/// The path as it would be written outside of `inside` modules of the file; `None` if it leads to something inside of them.
fn outside(path: Vec<String>, inside: usize) -> Option<Vec<String>> {
    let supers = path.iter().take_while(|name| *name == "super").count();
    match supers.checked_sub(inside) {
        _ if inside == 0 || path[0] == "crate" || path[0] == "mailqueue" => Some(path),
        Some(0) => Some([&["self".to_owned()], &path[inside..]].concat()),
        Some(_) => Some(path[inside..].to_vec()),
        None => None,
    }
}

/// Each name that a `use` imports, with its path.
fn expand(tokens: &[TokenTree], mut path: Vec<String>, found: &mut Vec<(String, Vec<String>)>) {
    let mut name = None;
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Ident(ident) if ident == "as" => {
                name = tokens.get(at + 1).map(ToString::to_string);
                at += 1;
            }
            TokenTree::Ident(ident) => path.push(ident.to_string()),
            TokenTree::Group(group) => {
                let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
                tokens.split(|token| is_punct(token, ',')).for_each(|one| expand(one, path.clone(), found));
                return;
            }
            _ => {}
        }
        at += 1;
    }
    if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
        path.pop();
    }
    if let Some(last) = path.last().cloned() {
        found.push((name.unwrap_or(last), path));
    }
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

/// Each function with a body, with its lines from `fn` to the closing brace.
fn collect_functions(tokens: TokenStream, found: &mut Vec<(String, usize)>) {
    let mut begun: Option<(usize, String)> = None;
    let mut after_fn = false;
    for token in tokens {
        match &token {
            TokenTree::Ident(ident) if after_fn => {
                begun = Some((ident.span().start().line, ident.to_string()));
                after_fn = false;
            }
            TokenTree::Ident(ident) if ident == "fn" => after_fn = true,
            TokenTree::Group(group) => {
                if group.delimiter() == Delimiter::Brace
                    && let Some((line, name)) = begun.take()
                {
                    found.push((name, group.span_close().end().line - line + 1));
                }
                collect_functions(group.stream(), found);
            }
            TokenTree::Punct(punct) => {
                after_fn = false;
                if punct.as_char() == ';' {
                    begun = None;
                }
            }
            TokenTree::Literal(_) | TokenTree::Ident(_) => after_fn = false,
        }
    }
}
