//! The rules of ARCHITECTURE.md that a program can check: who may know whom, how long a file may be, and that the
//! text names what is there. Needs no BPF: it reads the sources, it does not compile them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A module folder of `tracer-user/src` and the folders it may name. Every folder may name itself.
const MAY_KNOW: [(&str, &[&str]); 15] = [
    ("model", &[]),
    ("io", &["model"]),
    ("journal", &["model", "io"]),
    ("target", &["model", "io"]),
    ("apply", &["model", "io", "journal", "target"]),
    ("restore", &["model", "io", "journal", "target", "apply"]),
    ("files", &["model", "io", "journal", "restore", "tree"]),
    ("capture", &["model", "io"]),
    ("collect", &["model", "io", "capture"]),
    ("origin", &["model", "io", "capture"]),
    ("tree", &["model", "io", "journal"]),
    ("filemap", &["model", "io", "tree"]),
    (
        "service",
        &[
            "model", "io", "journal", "target", "apply", "restore", "files", "capture", "collect", "origin",
            "tree",
        ],
    ),
    // Reads what the control sockets tell and what journals hold, and can't so much as name what captures or applies.
    ("web", &["model", "io", "journal", "service"]),
    (
        "cli",
        &[
            "model", "io", "journal", "target", "apply", "restore", "files", "capture", "collect", "origin",
            "tree", "filemap", "service", "web",
        ],
    ),
];

/// Crates that only some folders may name.
const CRATE_HOMES: [(&str, &[&str]); 9] = [
    ("aya", &["capture"]),
    ("aya_log", &["capture"]),
    ("btf_rs", &["capture"]),
    ("tracer_common", &["capture"]),
    // The edges: the control socket and HTTP.
    ("tokio", &["service", "web"]),
    ("hyper", &["web"]),
    ("hyper_util", &["web"]),
    ("prometheus_client", &["web"]),
    ("ratatui", &["cli"]),
];

/// Lines of a source file without its tests. About 400 is plenty; what is longer is printed.
const LINES_MAX: usize = 500;
const LINES_WANTED: usize = 400;

#[test]
fn every_folder_names_only_what_is_left_of_it() {
    let mut wrong = Vec::new();
    for source in library() {
        let Some(folder) = source.folder.clone() else { continue };
        let allowed = may_know(&folder);
        for name in crate_paths(&source.tokens) {
            if MAY_KNOW.iter().any(|(folder, _)| *folder == name)
                && name != folder
                && !allowed.contains(&&*name)
            {
                wrong.push(format!("{}: {folder} names crate::{name}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "import rules are broken:\n{}", wrong.join("\n"));
}

#[test]
fn crates_stay_where_they_belong() {
    let mut wrong = Vec::new();
    for source in library() {
        for (name, homes) in CRATE_HOMES {
            let at_home = source.folder.as_deref().is_some_and(|folder| homes.contains(&folder));
            if !at_home && names_crate(&source.tokens, name) {
                wrong.push(format!("{}: {name} is for {homes:?} only", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_rules_speak_of_every_folder_and_of_no_other() {
    let ruled: BTreeSet<String> = MAY_KNOW.iter().map(|(folder, _)| (*folder).to_owned()).collect();
    assert_eq!(ruled, folders(), "a new folder needs a rule here and a paragraph in ARCHITECTURE.md");
    for (folder, allowed) in MAY_KNOW {
        for known in allowed {
            assert!(!may_know(known).contains(&folder), "{folder} and {known} may know each other");
        }
    }
}

#[test]
fn no_file_is_too_long_or_named_for_nothing() {
    let mut wrong = Vec::new();
    for source in library() {
        let name = source.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if ["utils.rs", "util.rs", "helpers.rs", "manager.rs"].contains(&name) {
            wrong.push(format!("{}: a file is named for what it holds", source.path.display()));
        }
        if source.is_test {
            continue;
        }
        let lines = lines_without_tests(&source.text);
        if lines > LINES_MAX {
            wrong.push(format!("{}: {lines} lines, more than {LINES_MAX}", source.path.display()));
        } else if lines > LINES_WANTED {
            println!("{}: {lines} lines, more than the wanted {LINES_WANTED}", source.path.display());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_code_map_names_every_folder_and_crate() {
    let text = architecture();
    let mut missing: Vec<String> = folders().into_iter().map(|folder| format!("`{folder}/`")).collect();
    for crate_dir in
        ["tracer-common", "tracer-ebpf", "tracer-build", "tracer-user", "xtask", "tests", "vm-tests", "fuzz"]
    {
        missing.push(format!("`{crate_dir}/`"));
    }
    missing.retain(|heading| !text.contains(heading.as_str()));
    assert!(missing.is_empty(), "ARCHITECTURE.md does not name {missing:?}");
}

#[test]
fn files_and_tests_that_the_text_names_exist() {
    let known: Vec<PathBuf> = ["", "tracer-user/src"].iter().map(|dir| repository().join(dir)).collect();
    let tests = all_functions();
    let mut missing = Vec::new();
    for name in in_backticks(&architecture()) {
        let is_file =
            [".rs", ".md", ".sh", ".toml"].iter().any(|end| name.ends_with(end)) && name.contains('/');
        let words = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        // What reads like a sentence is the name of a test.
        let is_test = words && name.matches('_').count() >= 3;
        if is_file && !known.iter().any(|dir| dir.join(&name).exists()) || is_test && !tests.contains(&name) {
            missing.push(name);
        }
    }
    assert!(missing.is_empty(), "ARCHITECTURE.md names what is not there: {missing:?}");
}

#[test]
fn paths_are_found_however_they_are_written() {
    let text = r##"
        //! crate::no1
        use crate::{a, b::{c, d as e}, f as g};
        use crate :: h;
        /* crate::no2 /* nested crate::no3 */ still */
        fn x<'a>(c: char) -> &'a str { let _ = ('"', b'\'', "crate::no4 \" crate::no5", r#"crate::no6 " "#); crate::i::J }
        macro_rules! m { () => { $crate::k::l!() } }
        use super::super::n::o;
    "##;
    let found: BTreeSet<String> = crate_paths(&tokens(text)).into_iter().collect();
    let wanted = ["a", "b", "f", "h", "i", "k", "n"].map(str::to_owned);
    assert_eq!(found, BTreeSet::from(wanted));
    let uses = tokens("use aya::maps::Map; fn f() { m::tokio::x(); self.aya_log(); }");
    assert!(names_crate(&uses, "aya") && !names_crate(&uses, "tokio") && !names_crate(&uses, "aya_log"));
    assert!(names_crate(&tokens("use {serde::X, aya::Y};"), "aya"));
}

#[test]
fn tests_at_the_end_of_a_file_do_not_count_as_its_lines() {
    assert_eq!(lines_without_tests("fn a() {}\n\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n"), 2);
    assert_eq!(lines_without_tests("#[cfg(test)]\nmod tests;\nfn a() {}\n"), 3);
}

fn may_know(folder: &str) -> &'static [&'static str] {
    MAY_KNOW.iter().find(|(name, _)| *name == folder).map_or(&[], |(_, allowed)| allowed)
}

struct Source {
    /// Relative to `src`.
    path: PathBuf,
    /// `None` for lib.rs and main.rs.
    folder: Option<String>,
    is_test: bool,
    text: String,
    tokens: Vec<String>,
}

fn library() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    assert!(files.len() > 50, "the sources are not where they were: {}", root.display());
    let read = |file: PathBuf| {
        let text = read(&file);
        let path = file.strip_prefix(&root).expect("it was found below src").to_owned();
        let mut parts = path.iter().filter_map(|part| part.to_str());
        let first = parts.next().map(str::to_owned);
        let folder = first.filter(|name| !name.ends_with(".rs"));
        // Whole files of tests and what tests are made of, by the names in use here.
        let is_test = path.iter().any(|part| {
            part.to_str().is_some_and(|part| part == "tests" || part == "tests.rs" || part == "faulty.rs")
        });
        let tokens = tokens(&text);
        Source { path, folder, is_test, text, tokens }
    };
    files.into_iter().map(read).collect()
}

fn folders() -> BTreeSet<String> {
    library().into_iter().filter_map(|source| source.folder).collect()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn architecture() -> String {
    read(&repository().join("ARCHITECTURE.md"))
}

fn all_functions() -> BTreeSet<String> {
    let mut files = Vec::new();
    for dir in ["tracer-user", "tracer-build", "tests", "xtask"] {
        for below in ["src", "tests"] {
            rust_files(&repository().join(dir).join(below), &mut files);
        }
    }
    let text: String = files.iter().map(|file| read(file)).collect();
    let words: Vec<&str> =
        text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty()).collect();
    words.windows(2).filter(|pair| pair[0] == "fn").map(|pair| pair[1].to_owned()).collect()
}

fn in_backticks(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Without a `#[cfg(test)] mod … { … }` that the file ends with.
fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let tests = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{'));
    tests.unwrap_or(lines.len())
}

/// The first names of all paths that start at the root of the crate: `crate::NAME`, in a group too, `$crate::NAME`, and
/// `super::super::NAME`, which may lead there.
fn crate_paths(tokens: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let at = |index: usize| tokens.get(index).map(String::as_str);
    for start in 0..tokens.len() {
        let root = match (at(start), at(start + 1), at(start + 2), at(start + 3)) {
            (Some("crate"), Some("::"), ..) => start + 2,
            (Some("super"), Some("::"), Some("super"), Some("::")) => start + 4,
            _ => continue,
        };
        if at(root) == Some("{") {
            found.extend(group(tokens, root));
        } else {
            found.extend(at(root).map(str::to_owned));
        }
    }
    found
}

/// The first name of each item of the group that opens at `open`.
fn group(tokens: &[String], open: usize) -> Vec<String> {
    let mut found = Vec::new();
    let mut depth = 0;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && (token == "{" || token == ",") {
            found.extend(tokens.get(index + 1).filter(|next| *next != "}").cloned());
        }
    }
    found
}

/// Whether a path or a `use` begins with the crate `name`.
fn names_crate(tokens: &[String], name: &str) -> bool {
    tokens.iter().enumerate().any(|(index, token)| {
        let before = index.checked_sub(1).map(|before| tokens[before].as_str());
        let after = tokens.get(index + 1).map(String::as_str);
        token == name && (after == Some("::") || before == Some("use")) && !matches!(before, Some("::" | "."))
    })
}

/// Names, `::` and single characters; no comments, strings or numbers' inner parts.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        match chars[i] {
            '/' if at(i + 1) == '/' => i += chars[i..].iter().take_while(|c| **c != '\n').count(),
            '/' if at(i + 1) == '*' => i = after_block_comment(&chars, i),
            '"' => i = after_string(&chars, i),
            // A lifetime is no character: it has no quote after its first letter.
            '\'' if at(i + 1) == '\\' => i = after_escaped_char(&chars, i),
            '\'' if at(i + 2) == '\'' => i += 3,
            ':' if at(i + 1) == ':' => {
                tokens.push("::".to_owned());
                i += 2;
            }
            'r' if at(i + 1) == '"' || at(i + 1) == '#' && matches!(at(i + 2), '"' | '#') => {
                i = after_raw_string(&chars, i + 1);
            }
            'b' if at(i + 1) == 'r' && matches!(at(i + 2), '"' | '#') => i = after_raw_string(&chars, i + 2),
            c if is_word(c) => {
                let word: String = chars[i..].iter().take_while(|c| is_word(**c)).collect();
                i += word.chars().count();
                // b"…", b'…' and c"…": the quote comes next and is skipped as such.
                tokens.push(word);
            }
            c => {
                if !c.is_whitespace() {
                    tokens.push(c.to_string());
                }
                i += 1;
            }
        }
    }
    tokens
}

fn after_block_comment(chars: &[char], start: usize) -> usize {
    let mut depth = 0;
    let mut i = start;
    while i + 1 < chars.len() {
        match (chars[i], chars[i + 1]) {
            ('/', '*') => (depth, i) = (depth + 1, i + 2),
            ('*', '/') if depth == 1 => return i + 2,
            ('*', '/') => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
    }
    chars.len()
}

fn after_string(chars: &[char], open: usize) -> usize {
    let mut i = open + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

fn after_escaped_char(chars: &[char], open: usize) -> usize {
    // The character after the backslash may be a quote itself.
    let close = chars.iter().skip(open + 3).position(|c| *c == '\'');
    close.map_or(chars.len(), |close| open + 3 + close + 1)
}

/// `start` is at the first `#` or the quote.
fn after_raw_string(chars: &[char], start: usize) -> usize {
    let hashes = chars[start..].iter().take_while(|c| **c == '#').count();
    let mut i = start + hashes + 1;
    while i < chars.len() {
        let closes =
            chars[i] == '"' && chars[i + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
        if closes {
            return i + 1 + hashes;
        }
        i += 1;
    }
    i
}

/// Kept so that a folder's whole list can be seen: `cargo test --test architecture -- --nocapture who`.
#[test]
fn who_names_whom() {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in library() {
        let Some(folder) = source.folder else { continue };
        let mut names = crate_paths(&source.tokens);
        names.retain(|name| *name != folder);
        known.entry(folder).or_default().extend(names);
    }
    assert!(known["journal"].is_disjoint(&BTreeSet::from(["target".to_owned()])));
    assert!(known["target"].is_disjoint(&BTreeSet::from(["journal".to_owned()])));
    for (folder, names) in known {
        println!("{folder}: {names:?}");
    }
}
