//! The rules of the layers, as a test over `src/`: who may import whom, where unsafe code may stand, what each file says
//! of itself. `docs/architecture.md` has the reasons. The second half feeds the checks code that breaks each rule.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What each module may import from this crate. A module that is not in the table may not exist.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("ffi", &[]),
    ("apr", &["ffi"]),
    // Its `config` turns directives into settings: those are below it, and pure.
    ("httpd", &["ffi", "apr", "sys", "settings", "policy"]),
    ("sys", &[]),
    ("wire", &[]),
    ("policy", &["wire"]),
    ("settings", &["wire", "policy"]),
    // Root, and exec'd without httpd's configuration: it knows the kernel and the pure layers only.
    ("controller", &["sys", "wire", "policy", "settings"]),
    ("seed", BELOW_ROLES),
    ("zygote", BELOW_ROLES),
    ("worker", BELOW_ROLES),
    ("parent", BELOW_ROLES),
    ("frontend", BELOW_ROLES),
    ("mpm", BELOW_ROLES),
    ("report", BELOW_ROLES),
    (
        "entry",
        &[
            "ffi",
            "apr",
            "httpd",
            "sys",
            "wire",
            "policy",
            "settings",
            "controller",
            "seed",
            "zygote",
            "worker",
            "parent",
            "frontend",
            "mpm",
            "report",
        ],
    ),
];
const BELOW_ROLES: &[&str] = &["ffi", "apr", "httpd", "sys", "wire", "policy", "settings"];

/// Where `unsafe` may stand.
const MAY_BE_UNSAFE: &[&str] = &["ffi", "apr", "httpd", "sys", "entry"];
/// Decided without I/O and without unsafe code: their `mod.rs` says so to the compiler.
const PURE: &[&str] = &["wire", "policy", "settings"];
/// C calls in at `entry`, and at these, where the function belongs to a structure made beside it.
const CALLBACK_FILES: &[&str] = &[
    "src/apr/pool.rs",
    "src/httpd/mpm/connection.rs",
    "src/httpd/mpm/modules.rs",
    "src/httpd/mpm/threads.rs",
    "src/sys/heritage.rs",
    "src/sys/image.rs",
];
/// What the first comment of a file tells.
const FACTS: &[&str] = &["Runs in", "Trusts", "Owns", "Never"];
const MOST_LINES: usize = 800;

// ===== Reading Rust, as far as these rules need it =====

/// A word, a lifetime, `::`, or one character of punctuation; strings and comments are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    text: String,
    line: usize,
}

/// Code as tokens, and per line (from 0) whether it has code, and its comment.
#[derive(Debug, Default)]
struct Source {
    tokens: Vec<Token>,
    code: Vec<String>,
    comments: Vec<String>,
}

/// Splits a file. Strings become the token `""` so that what they hold is never taken for code.
fn read(text: &str) -> Source {
    let chars: Vec<char> = text.chars().collect();
    let lines = text.lines().count() + 1;
    let mut source =
        Source { tokens: Vec::new(), code: vec![String::new(); lines], comments: vec![String::new(); lines] };
    let (mut at, mut line) = (0, 0);
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    while at < chars.len() {
        let c = chars[at];
        let next = chars.get(at + 1).copied().unwrap_or('\0');
        let start = at;
        if c == '\n' {
            line += 1;
            at += 1;
        } else if c.is_whitespace() {
            source.code[line].push(' ');
            at += 1;
        } else if c == '/' && next == '/' {
            while at < chars.len() && chars[at] != '\n' {
                source.comments[line].push(chars[at]);
                at += 1;
            }
        } else if c == '/' && next == '*' {
            let mut depth = 0;
            while at < chars.len() {
                match (chars[at], chars.get(at + 1)) {
                    ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
                    ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
                    ('\n', _) => (line, at) = (line + 1, at + 1),
                    (other, _) => {
                        source.comments[line].push(other);
                        at += 1;
                    }
                }
                if depth == 0 {
                    break;
                }
            }
        } else if let Some(end) = string_end(&chars, at) {
            source.tokens.push(Token { text: "\"\"".into(), line });
            source.code[line].push_str("\"\"");
            line += chars[at..end].iter().filter(|c| **c == '\n').count();
            at = end;
        } else if c == '\'' {
            // A character, or a lifetime.
            at += 1;
            if next == '\\' {
                at += 2;
                while at < chars.len() && chars[at] != '\'' {
                    at += 1;
                }
                at += 1;
            } else if chars.get(at + 1) == Some(&'\'') {
                at += 2;
            }
            source.code[line].push('\'');
        } else if is_word(c) {
            while at < chars.len() && is_word(chars[at]) {
                at += 1;
            }
            let word: String = chars[start..at].iter().collect();
            source.code[line].push_str(&word);
            source.tokens.push(Token { text: word, line });
        } else {
            at += if c == ':' && next == ':' { 2 } else { 1 };
            let text: String = chars[start..at].iter().collect();
            source.code[line].push_str(&text);
            source.tokens.push(Token { text, line });
        }
    }
    source
}

/// Where the string that begins here ends; `None` when none begins here.
fn string_end(chars: &[char], start: usize) -> Option<usize> {
    let mut at = start;
    // A prefix counts only where a word begins.
    if start > 0 && (chars[start - 1].is_alphanumeric() || chars[start - 1] == '_') && chars[start] != '"' {
        return None;
    }
    if matches!(chars.get(at), Some('b' | 'c')) {
        at += 1;
    }
    let raw = chars.get(at) == Some(&'r');
    if raw {
        at += 1;
    }
    let hashes = chars[at..].iter().take_while(|c| raw && **c == '#').count();
    at += hashes;
    if chars.get(at) != Some(&'"') {
        return None;
    }
    at += 1;
    while at < chars.len() {
        match chars[at] {
            '\\' if !raw => at += 2,
            '"' if chars[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes => {
                return Some(at + 1 + hashes);
            }
            _ => at += 1,
        }
    }
    Some(chars.len())
}

/// The crate's modules a file names, by `crate::` or by climbing with `super::`, with the line.
fn imports(path: &str, tokens: &[Token]) -> Vec<(String, usize)> {
    let module = module_of(path);
    let text = |at: usize| tokens.get(at).map_or("", |t: &Token| t.text.as_str());
    let mut found = Vec::new();
    // Modules written inside the file: `super` climbs out of them first. Holds the depth of braces they began at.
    let (mut depth, mut inline) = (0usize, Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        match text(at) {
            "mod" if text(at + 2) == "{" => inline.push(depth),
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                if inline.last() == Some(&depth) {
                    inline.pop();
                }
            }
            "crate" if text(at + 1) == "::" => {
                at += 2;
                roots(tokens, &mut at, &mut found);
                continue;
            }
            "super" if text(at + 1) == "::" => {
                let mut climbed = 0;
                while text(at) == "super" && text(at + 1) == "::" {
                    climbed += 1;
                    at += 2;
                }
                if climbed >= module.len() + inline.len() {
                    roots(tokens, &mut at, &mut found);
                }
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// The first words of a path, or of each path in a group: `a::b` gives a, `{a, b::{c, d}}` gives a and b.
fn roots(tokens: &[Token], at: &mut usize, found: &mut Vec<(String, usize)>) {
    let Some(first) = tokens.get(*at) else { return };
    if first.text != "{" {
        found.push((first.text.clone(), first.line));
        *at += 1;
        return;
    }
    let (mut depth, mut expect) = (0, false);
    while let Some(token) = tokens.get(*at) {
        *at += 1;
        match token.text.as_str() {
            "{" => {
                depth += 1;
                expect = depth == 1;
            }
            "}" => {
                depth -= 1;
                if depth == 0 {
                    return;
                }
            }
            "," => expect = depth == 1,
            word if expect => {
                found.push((word.to_owned(), token.line));
                expect = false;
            }
            _ => {}
        }
    }
}

/// `src/wire/codec.rs` is the module `wire::codec`, `src/wire/mod.rs` is `wire`, `src/lib.rs` is the crate.
fn module_of(path: &str) -> Vec<String> {
    let inner = path.strip_prefix("src/").unwrap_or(path).trim_end_matches(".rs");
    inner.split('/').filter(|part| !matches!(*part, "mod" | "lib")).map(str::to_owned).collect()
}

/// A file of unit tests: it runs in no process of the server.
fn is_tests(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// Is a line above, up to where its statement begins, or the line itself, commented with SAFETY?
fn has_safety_comment(source: &Source, line: usize) -> bool {
    if source.comments[line].contains("SAFETY:") {
        return true;
    }
    let mut above = line;
    while above > 0 {
        above -= 1;
        let code = source.code[above].trim();
        if source.comments[above].contains("SAFETY:") {
            return true;
        }
        let ended = code.is_empty() && source.comments[above].is_empty();
        if ended || code.ends_with([';', '{', '}']) {
            return false;
        }
    }
    false
}

// ===== The rules =====

/// What is wrong with one file. `gated` are the modules that exist only with the `httpd` feature.
fn check(path: &str, text: &str, gated: &BTreeSet<String>) -> Vec<String> {
    let source = read(text);
    let mut wrong = Vec::new();
    let mut report = |line: usize, what: String| wrong.push(format!("{path}:{}: {what}", line + 1));
    let tokens = &source.tokens;
    let word = |at: usize| tokens.get(at).map_or("", |t: &Token| t.text.as_str());

    if text.lines().count() > MOST_LINES {
        report(0, format!("more than {MOST_LINES} lines: divide it"));
    }
    let header: String = text
        .lines()
        .take_while(|line| line.starts_with("//!") || line.starts_with("#![") || line.trim().is_empty())
        .filter(|line| line.starts_with("//!"))
        .collect::<Vec<_>>()
        .join("\n");
    if header.is_empty() {
        report(0, "no //! header at the top".into());
    }
    let Some(layer) = module_of(path).first().cloned() else {
        // The crate's root only lists the layers.
        return wrong;
    };
    if !header.is_empty() && !is_tests(path) {
        for fact in FACTS.iter().filter(|fact| !header.contains(&format!("{fact}:"))) {
            report(0, format!("the //! header has no '{fact}:'"));
        }
    }

    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == layer) else {
        report(0, format!("'{layer}' is in no layer: add it to MAY_IMPORT and to docs/architecture.md"));
        return wrong;
    };
    for (module, line) in imports(path, tokens) {
        if module != layer && !allowed.contains(&module.as_str()) {
            report(line, format!("'{layer}' may not import '{module}'"));
        }
    }

    if PURE.contains(&layer.as_str())
        && path == format!("src/{layer}/mod.rs")
        && !text.contains("\n#![forbid(unsafe_code)]")
    {
        report(0, "a pure module opens with #![forbid(unsafe_code)]".into());
    }
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "unsafe" if !MAY_BE_UNSAFE.contains(&layer.as_str()) => {
                report(token.line, format!("'unsafe' in '{layer}'"));
            }
            "unsafe" if matches!(word(at + 1), "{" | "impl") && !has_safety_comment(&source, token.line) => {
                report(token.line, "no SAFETY: comment just above this unsafe".into());
            }
            // `extern "C" fn name`: a definition. Without a name it is a type, in a block it is a declaration.
            "extern"
                if word(at + 1) == "\"\""
                    && word(at + 2) == "fn"
                    && word(at + 3) != "("
                    && layer != "entry"
                    && !CALLBACK_FILES.contains(&path) =>
            {
                report(token.line, "an extern \"C\" function is defined in 'entry' or in a callback file".into());
            }
            "nix" if word(at + 1) == "::" && layer != "sys" => {
                report(token.line, "'nix' is used inside 'sys' only".into());
            }
            "test" if at >= 2 && word(at - 1) == "[" && word(at - 2) == "#" && gated.contains(&layer) => {
                report(
                    token.line,
                    "a test here never runs: without httpd it is not compiled, with it it does not link".into(),
                );
            }
            _ => {}
        }
    }
    wrong
}

/// The modules that lib.rs compiles with the `httpd` feature only.
fn gated_modules(lib: &str) -> BTreeSet<String> {
    let mut gated = BTreeSet::new();
    let mut pending = false;
    for line in lib.lines().map(str::trim) {
        if line.starts_with("#[cfg(") {
            pending = line.contains("feature = \"httpd\"") && !line.contains("not(feature");
        } else if let (true, Some(name)) = (pending, line.trim_start_matches("pub ").strip_prefix("mod ")) {
            gated.insert(name.trim_end_matches([';', ' ', '{']).to_owned());
            pending = false;
        }
    }
    gated
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(directory).expect("src is readable");
    for entry in entries.map(|entry| entry.expect("src is readable").path()) {
        if entry.is_dir() {
            rust_files(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

#[test]
fn sources_keep_the_rules() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&top.join("src"), &mut files);
    files.sort();
    assert!(files.len() > 5, "only {} files found", files.len());
    let gated = gated_modules(&std::fs::read_to_string(top.join("src/lib.rs")).expect("src/lib.rs is readable"));

    let mut wrong = String::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("sources are UTF-8");
        let path = file.strip_prefix(top).expect("under the top").to_string_lossy().into_owned();
        for line in check(&path, &text, &gated) {
            let _ = writeln!(wrong, "{line}");
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

// ===== The checks catch what they are for =====

/// What a good file begins with.
const HEADER: &str = "//! Does a thing.\n//!\n//! Runs in: x.  Trusts: x.  Owns: x.  Never: x.\n";

fn gated() -> BTreeSet<String> {
    gated_modules(
        "#[cfg(feature = \"httpd\")]\npub mod httpd;\npub mod sys;\n#[cfg(feature = \"httpd\")]\nmod entry;\n",
    )
}

#[track_caller]
fn accepts(path: &str, code: &str) {
    let wrong = check(path, &format!("{HEADER}{code}\n"), &gated());
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[track_caller]
fn refuses(path: &str, code: &str, line: usize, because: &str) {
    let wrong = check(path, &format!("{HEADER}{code}\n"), &gated());
    // The header has three lines.
    let place = format!("{path}:{}: ", line + 3);
    assert!(
        wrong.iter().any(|w| w.starts_with(&place) && w.contains(because)),
        "expected '{place}...{because}' in {wrong:?}"
    );
}

#[test]
fn imports_go_downwards_only() {
    accepts("src/httpd/log.rs", "use crate::apr::pool;\nuse crate::ffi;");
    accepts("src/controller/loop.rs", "use crate::{policy::Action, sys::{self, poll}, wire};");
    accepts("src/worker/mod.rs", "fn f() { crate::httpd::log::line(); }");
    accepts("src/entry/mod.rs", "use crate::{controller, frontend, worker};");
    refuses("src/apr/pool.rs", "use crate::httpd::RequestRec;", 1, "'apr' may not import 'httpd'");
    refuses("src/sys/fd.rs", "use crate::wire::control;", 1, "'sys' may not import 'wire'");
    refuses("src/wire/codec.rs", "\nuse crate::sys;", 2, "'wire' may not import 'sys'");
    refuses("src/wire/codec.rs", "fn f() { crate::policy::step() }", 1, "'wire' may not import 'policy'");
    refuses("src/settings/mod.rs", "use crate::entry;", 1, "'settings' may not import 'entry'");
    refuses("src/policy/mod.rs", "macro_rules! m { () => { $crate::controller::f() } }", 1, "'controller'");
}

#[test]
fn roles_never_import_one_another() {
    refuses("src/frontend/mod.rs", "use crate::worker::Exchange;", 1, "'frontend' may not import 'worker'");
    refuses("src/seed/mod.rs", "use crate::zygote;", 1, "'seed' may not import 'zygote'");
    refuses("src/mpm/mod.rs", "use crate::frontend;", 1, "'mpm' may not import 'frontend'");
}

#[test]
fn the_controller_knows_no_httpd() {
    for module in ["ffi", "apr", "httpd"] {
        let because = format!("'controller' may not import '{module}'");
        refuses("src/controller/mod.rs", &format!("use crate::{module};"), 1, &because);
    }
}

#[test]
fn imports_in_groups_globs_and_by_super_are_seen() {
    refuses("src/seed/mod.rs", "use crate::{\n    wire::{self, codec},\n    worker::x,\n};", 3, "'worker'");
    refuses("src/wire/frame.rs", "use crate::*;", 1, "'wire' may not import '*'");
    refuses("src/wire.rs", "use super::sys;", 1, "'wire' may not import 'sys'");
    refuses("src/wire/codec.rs", "use super::super::{sys, wire};", 1, "'wire' may not import 'sys'");
    refuses("src/wire/codec.rs", "mod tests {\n use super::super::super::sys;\n}", 2, "'wire' may not import 'sys'");
    accepts("src/wire/codec.rs", "mod tests {\n use super::super::control;\n use super::*;\n}");
    accepts("src/wire/codec.rs", "use super::control;");
    accepts("src/wire/codec.rs", "mod tests { fn f() {} }\nuse super::control;");
}

#[test]
fn comments_and_strings_are_not_code() {
    accepts("src/wire/codec.rs", "// use crate::sys; unsafe { }\n/* crate::sys /* unsafe */ */");
    accepts(
        "src/wire/codec.rs",
        r##"const A: &str = "crate::sys \" unsafe"; const B: &str = r#"unsafe " crate::sys"#;"##,
    );
    accepts("src/wire/codec.rs", "const A: char = '\"'; const B: char = '\\''; const C: &str = \"unsafe\";");
    accepts("src/wire/codec.rs", "fn f<'a>(x: &'a str) -> &'a str { x }\n// unsafe");
    refuses("src/wire/codec.rs", "const A: &[u8] = b\"x\\\\\"; use crate::sys;", 1, "'sys'");
    refuses("src/wire/codec.rs", "const A: &str = \"\n\n\";\nuse crate::sys;", 4, "'sys'");
}

#[test]
fn unsafe_stands_in_its_layers_and_is_explained() {
    accepts("src/sys/fd.rs", "// SAFETY: the fd is ours.\nlet n = unsafe { read(fd) };");
    accepts("src/sys/fd.rs", "// SAFETY: the fd is ours.\nlet n = check(\n    fd,\n    unsafe { read(fd) },\n);");
    accepts(
        "src/apr/pool.rs",
        "// SAFETY: no interior state,\n// and one thread.\n#[allow(x)]\nunsafe impl Send for P {}",
    );
    accepts(
        "src/sys/fd.rs",
        "/// Closes.\n///\n/// # Safety\n///\n/// The fd is the caller's.\npub unsafe fn close(fd: i32) {}",
    );
    refuses("src/worker/mod.rs", "// SAFETY: x.\nunsafe { f() };", 2, "'unsafe' in 'worker'");
    refuses("src/policy/mod.rs", "unsafe fn f() {}", 1, "'unsafe' in 'policy'");
    refuses("src/sys/fd.rs", "let n = unsafe { read(fd) };", 1, "no SAFETY");
    refuses("src/sys/fd.rs", "// SAFETY: x.\nlet a = unsafe { f() };\nlet b = unsafe { f() };", 3, "no SAFETY");
    refuses("src/sys/fd.rs", "// SAFETY: x.\n\nlet a = unsafe { f() };", 3, "no SAFETY");
    refuses("src/sys/fd.rs", "// SAFETY: x.\nfn f() {\n    unsafe { g() }\n}", 3, "no SAFETY");
    refuses("src/sys/fd.rs", "// It is safe.\nunsafe impl Send for P {}", 2, "no SAFETY");
}

#[test]
fn pure_modules_forbid_unsafe() {
    accepts("src/wire/mod.rs", "\n#![forbid(unsafe_code)]\n\npub mod codec;");
    accepts("src/wire/codec.rs", "pub fn f() {}");
    let wrong = check("src/wire/mod.rs", &format!("{HEADER}pub mod codec;\n"), &gated());
    assert!(wrong.iter().any(|w| w.contains("forbid(unsafe_code)")), "{wrong:?}");
}

#[test]
fn c_calls_in_at_entry_only() {
    accepts("src/entry/hooks.rs", "pub unsafe extern \"C\" fn pool_entry_child_init(p: *mut P) {}");
    accepts("src/apr/pool.rs", "extern \"C\" fn destroy(p: *mut c_void) {}");
    accepts(
        "src/httpd/hooks.rs",
        "type Getter = unsafe extern \"C\" fn() -> *mut A;\nextern \"C\" {\n    fn shim();\n}",
    );
    refuses("src/httpd/hooks.rs", "unsafe extern \"C\" fn handler() {}", 1, "extern \"C\"");
    refuses("src/worker/mod.rs", "pub extern \"C\" fn filter() {}", 1, "extern \"C\"");
}

#[test]
fn nix_stays_inside_sys() {
    accepts("src/sys/fork.rs", "use nix::unistd::fork;");
    refuses("src/controller/mod.rs", "use nix::unistd::Pid;", 1, "'nix'");
}

#[test]
fn tests_that_would_never_run_are_refused() {
    accepts("src/sys/fd.rs", "#[cfg(test)]\nmod tests {\n    #[test]\n    fn t() {}\n}");
    refuses("src/httpd/log.rs", "mod tests {\n    #[test]\n    fn t() {}\n}", 2, "never runs");
    refuses("src/entry/mod.rs", "#[test]\nfn t() {}", 1, "never runs");
}

#[test]
fn files_tell_what_they_are_and_stay_short() {
    let none = BTreeSet::new();
    let says = |path: &str, text: &str, what: &str| {
        let wrong = check(path, text, &none);
        assert!(wrong.iter().any(|w| w.contains(what)), "expected '{what}' in {wrong:?}");
    };
    says("src/sys/fd.rs", "use std::io;\n", "no //! header");
    says("src/sys/fd.rs", "//! Runs in: x.  Trusts: x.  Owns: x.\n", "no 'Never:'");
    says("src/sys/fd.rs", "//! Fds.\n\nfn f() {}\n//! Runs in: Trusts: Owns: Never:\n", "no 'Runs in:'");
    says("src/sys/fd.rs", &format!("{HEADER}{}", "\n".repeat(MOST_LINES)), "more than 800 lines");
    says("src/sys/tests.rs", "use super::*;\n", "no //! header");
    assert!(check("src/sys/tests/fd.rs", "//! Fds are closed.\n", &none).is_empty());
    says("src/helpers/mod.rs", HEADER, "'helpers' is in no layer");
    says("src/lib.rs", "pub mod wire;\n", "no //! header");
    assert!(check("src/lib.rs", "//! The crate.\npub mod wire;\n", &none).is_empty());
}
