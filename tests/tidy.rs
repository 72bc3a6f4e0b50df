//! Rules of the source tree that no compiler checks: which folder may use which, where `unsafe` and `tiny_http` may
//! stand, how long a file may be, and which words comments do without.
//!
//! Where a rule has exceptions they are a list with their reasons. The lists only shrink: an exception that is no longer
//! needed fails the test as well, so that it is deleted. The parser below understands `use` as rustfmt prints it, and paths that
//! begin with `crate::` or `super::` in code; it knows nothing of macros or of strings that contain such paths.

#![allow(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Most lines of a file under `src`, its unit tests included.
const MAX_LINES: usize = 400;

/// What a folder (or a file directly under `src`) may use beside itself: each entry allows the module and what is in it.
/// `service` may use everything. `engine` means the waist, `src/engine/mod.rs`: see [`WAIST`].
const ARROWS: &[(&str, &[&str])] = &[
    (
        "admin",
        &[
            "crew",
            "dispatch::request",
            "dispatch::router",
            "http",
            "lifecycle::phase",
            "observe",
            "clock",
            "sync",
            "sys",
            "text",
        ],
    ),
    ("cookbook", &[]),
    ("packaging", &[]),
    ("files", &["dispatch::request", "http"]),
    ("observe", &["crew", "engine", "http::head", "lifecycle::phase", "clock", "sync", "text"]),
    ("lifecycle", &["crew", "engine", "clock", "sync", "sys", "text"]),
    ("dispatch", &["crew::pool", "crew::stop", "engine", "http", "observe", "clock", "sync", "text"]),
    ("engine", &["http", "listen", "clock", "sync", "sys", "text"]),
    ("http", &["crew::stop", "clock", "sync", "text"]),
    ("crew", &["clock", "sync", "sys::children", "sys::signals", "text"]),
    ("listen", &["clock", "sync", "sys", "text"]),
    ("sys", &[]),
    ("clock", &[]),
    ("sync", &[]),
    ("text", &[]),
];

/// The one file of `engine/` that the rest may use.
const WAIST: &str = "src/engine/mod.rs";

/// Files outside `src/engine/` that may name `tiny_http`.
const TINY_HTTP: &[(&str, &str)] = &[
    ("src/lib.rs", "the front page names the engines"),
    ("src/bin/allout/args/options.rs", "the help names the target of its log"),
    ("src/bin/allout/logging/mod.rs", "the filter of its log"),
    ("src/sys/mod.rs", "the path of the other file with `unsafe`"),
];

/// Files outside `src/sys/` that may contain `unsafe`.
const UNSAFE: &[(&str, &str)] =
    &[("src/engine/tiny_http/unread_body.rs", "overwrites a count inside tiny_http's reader")];

/// Words that hide what a sentence is about.
const VAGUE_WORDS: [&str; 7] = ["whoever", "somebody", "nobody", "anybody", "lest", "for want of", "those who"];

/// Most lines of `src` and README with one of [`VAGUE_WORDS`]: lower it when there are fewer.
const MAX_VAGUE_LINES: usize = 10;

/// One source file.
struct Source {
    /// From the root of the repository: `src/crew/mod.rs`.
    path: String,
    text: String,
    /// Without comments, and without the unit tests at its end.
    code: String,
    /// The modules that lead to it: `["crew"]`.
    module: Vec<String>,
}

impl Source {
    fn is_binary(&self) -> bool {
        self.path.starts_with("src/bin/")
    }

    /// The folder under `src`, or the name of a file directly there: what [`ARROWS`] has rows for.
    fn unit(&self) -> &str {
        self.module.first().map_or("", String::as_str)
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap_or_else(|error| panic!("{}: {error}", folder.display())).path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    collect(&root().join("src"), &mut paths);
    paths.sort();
    paths.iter().map(|path| source(path)).collect()
}

fn source(path: &Path) -> Source {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let path = path.strip_prefix(root()).expect("it is below the root").to_str().expect("a plain name").to_owned();
    let inside = path.strip_prefix("src/").and_then(|path| path.strip_suffix(".rs")).expect("a source");
    let inside = inside.strip_prefix("bin/allout/").unwrap_or(inside);
    let mut module: Vec<String> = inside.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main")) {
        module.pop();
    }
    Source { code: code_of(&text), path, text, module }
}

/// The text without comments and without the unit tests, which stand at the end of a file.
fn code_of(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let mut code = String::new();
    for line in text[..end].lines() {
        let line = if line.trim_start().starts_with("//") { "" } else { line };
        code.push_str(line.split(" // ").next().unwrap_or_default());
        code.push('\n');
    }
    code
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether the text has these words, not as a part of longer ones.
fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// Every path that begins with `crate::` or `super::`, braces expanded, from the root of the crate.
fn paths_used(source: &Source) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in source.code.match_indices(start) {
            let before = source.code[..at].chars().next_back();
            if before.is_some_and(|c| is_word(c) || c == ':' || c == '$') {
                continue;
            }
            let mut prefix = Vec::new();
            if start == "super::" {
                prefix.clone_from(&source.module);
                prefix.pop();
            }
            expand(&source.code[at + start.len()..], &prefix, &mut paths);
        }
    }
    paths
}

/// Expands one tree of a `use`; returns what follows it.
fn expand<'a>(mut rest: &'a str, prefix: &[String], paths: &mut Vec<Vec<String>>) -> &'a str {
    let mut path = prefix.to_vec();
    loop {
        rest = rest.trim_start();
        if let Some(inside) = rest.strip_prefix('{') {
            rest = inside;
            loop {
                rest = expand(rest, &path, paths).trim_start();
                rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
                if let Some(after) = rest.strip_prefix('}') {
                    return after;
                }
                assert!(!rest.is_empty(), "a brace is not closed after {path:?}");
            }
        }
        let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        match &rest[..length] {
            "" | "self" => {}
            name => path.push(name.to_owned()),
        }
        // `*`, and whatever else a path cannot have, ends it.
        rest = if length == 0 { rest.strip_prefix('*').unwrap_or(rest) } else { &rest[length..] };
        match rest.strip_prefix("::") {
            Some(more) => rest = more,
            None => break,
        }
    }
    if let Some(alias) = rest.strip_prefix(" as ") {
        rest = &alias[alias.find(|c| !is_word(c)).unwrap_or(alias.len())..];
    }
    paths.push(path);
    rest
}

/// The file that has what a path names: the one of its longest beginning that is a module.
fn file_of<'a>(path: &[String], binary: bool, sources: &'a [Source]) -> Option<&'a Source> {
    (0..=path.len()).rev().find_map(|length| {
        sources.iter().find(|source| source.is_binary() == binary && source.module == path[..length])
    })
}

/// Compares violations with the exceptions: a new one is a failure, and so is an exception that is no longer needed.
fn settle(rule: &str, found: &BTreeSet<String>, allowed: &BTreeSet<String>) {
    let new: Vec<_> = found.difference(allowed).collect();
    let stale: Vec<_> = allowed.difference(found).collect();
    assert!(new.is_empty(), "{rule}: {new:#?}");
    assert!(stale.is_empty(), "{rule}: exceptions that are no longer needed, to be deleted: {stale:#?}");
}

fn names(list: &[(&str, &str)]) -> BTreeSet<String> {
    list.iter().map(|(file, _)| (*file).to_owned()).collect()
}

#[test]
fn tiny_http_is_named_in_its_engine_only() {
    let found = sources().into_iter().filter(|source| !source.path.starts_with("src/engine/"));
    let found = found.filter(|source| source.text.contains("tiny_http")).map(|source| source.path).collect();
    settle("tiny_http is named outside src/engine/", &found, &names(TINY_HTTP));
}

#[test]
fn unsafe_code_is_in_sys_only() {
    let found = sources().into_iter().filter(|source| !source.path.starts_with("src/sys/"));
    let found = found.filter(|source| has_word(&source.code, "unsafe")).map(|source| source.path).collect();
    settle("unsafe outside src/sys/", &found, &names(UNSAFE));
}

#[test]
fn files_are_short() {
    let found = sources().into_iter().filter(|source| source.text.lines().count() > MAX_LINES);
    let found = found.map(|source| source.path).collect();
    settle(&format!("more than {MAX_LINES} lines"), &found, &BTreeSet::new());
}

/// Clippy counts the lines of functions; this keeps its limit, and forbids exceptions.
#[test]
fn functions_are_short() {
    let limit = fs::read_to_string(root().join("clippy.toml")).expect("clippy.toml is there");
    assert!(limit.lines().any(|line| line == "too-many-lines-threshold = 70"), "{limit}");
    let mut paths = Vec::new();
    collect(&root().join("src"), &mut paths);
    collect(&root().join("tests"), &mut paths);
    let lint = concat!("too_many", "_lines");
    let found: Vec<_> =
        paths.into_iter().filter(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(lint))).collect();
    assert!(found.is_empty(), "exceptions from clippy::{lint}: {found:?}");
}

#[test]
fn folders_use_only_what_is_below_them() {
    let sources = sources();
    let mut found = BTreeSet::new();
    for source in sources.iter().filter(|source| !source.is_binary() && !matches!(source.unit(), "" | "service")) {
        let row = ARROWS.iter().find(|(unit, _)| *unit == source.unit());
        let (_, allowed) = row.unwrap_or_else(|| panic!("{}: no row in ARROWS", source.path));
        for path in paths_used(source) {
            let target = path.join("::");
            let is_in = |module: &str| {
                target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            };
            let file = file_of(&path, false, &sources).map_or("", |file| file.path.as_str());
            let within = path.first().is_some_and(|unit| unit == source.unit());
            let engines = [source.path.as_str(), file].map(engine_of);
            let passes_waist = !within && file.starts_with("src/engine/") && file != WAIST;
            let crosses_engines = engines[0].is_some() && engines[1].is_some() && engines[0] != engines[1];
            if !(within || allowed.iter().any(|module| is_in(module))) || passes_waist || crosses_engines {
                found.insert(format!("{} uses {target}", source.path));
            }
        }
    }
    assert!(found.is_empty(), "not among the arrows: {found:#?}");
}

/// The engine that a file is a part of, if it is part of one.
fn engine_of(path: &str) -> Option<&str> {
    path.strip_prefix("src/engine/")?.split_once('/').map(|(engine, _)| engine)
}

/// For each file those that it uses.
fn graph(sources: &[Source]) -> BTreeMap<&str, BTreeSet<&str>> {
    let uses = |source: &Source| {
        let files = paths_used(source).into_iter();
        let files = files.filter_map(|path| file_of(&path, source.is_binary(), sources)).map(|file| file.path.as_str());
        // lib.rs only names what others have.
        files.filter(|file| *file != source.path && *file != "src/lib.rs").collect()
    };
    sources.iter().filter(|source| source.path != "src/lib.rs").map(|s| (s.path.as_str(), uses(s))).collect()
}

/// Whether uses lead from one file to the other.
fn leads_to<'a>(graph: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &'a str, to: &str) -> bool {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(file) = next.pop() {
        if file == to {
            return true;
        }
        if seen.insert(file) {
            next.extend(graph.get(file).into_iter().flatten());
        }
    }
    false
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let sources = sources();
    let graph = graph(&sources);
    let mut found = BTreeSet::new();
    for (from, uses) in &graph {
        found.extend(uses.iter().filter(|to| leads_to(&graph, to, from)).map(|to| format!("{from} uses {to}")));
    }
    assert!(found.is_empty(), "uses that are part of a cycle: {found:#?}");
}

#[test]
fn comments_name_what_they_are_about() {
    let readme = fs::read_to_string(root().join("README.md")).expect("the README is there");
    let texts = sources().into_iter().map(|source| (source.path, source.text));
    let mut found = Vec::new();
    for (path, text) in texts.chain([("README.md".to_owned(), readme)]) {
        for (number, line) in text.lines().enumerate() {
            let line = line.to_lowercase();
            if VAGUE_WORDS.iter().any(|word| has_word(&line, word)) {
                found.push(format!("{path}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    let count = found.len();
    assert!(count <= MAX_VAGUE_LINES, "{count} lines with {VAGUE_WORDS:?}, of at most {MAX_VAGUE_LINES}:\n{found:#?}");
}

/// The parser itself.
#[test]
fn paths_are_found_in_uses_and_in_code() {
    let text = "use crate::a::{self, B, c::{D, E as F}};\nuse super::g;\n// crate::no\nfn f(x: crate::h::I<u8>) {}\n\
                use crate::j::*;\n#[cfg(test)]\nmod tests {\n    use crate::no;\n}\n";
    let module = vec!["x".to_owned(), "y".to_owned()];
    let source = Source { path: String::new(), text: String::new(), code: code_of(text), module };
    let mut paths: Vec<_> = paths_used(&source).iter().map(|path| path.join("::")).collect();
    paths.sort();
    assert_eq!(paths, ["a", "a::B", "a::c::D", "a::c::E", "h::I", "j", "x::g"]);
    assert!(has_word("allow(unsafe)", "unsafe") && !has_word("unsafe_code", "unsafe"));
}
