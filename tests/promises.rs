//! The table of promises in docs/security.md: each row names tests, and each of these is there.

use std::path::Path;

const DOCUMENT: &str = include_str!("../docs/security.md");
const TABLE: &str = "## Promises and their tests";
const PROMISES: &str = "## What a tenant cannot do";

fn section(title: &str) -> &'static str {
    let at = DOCUMENT.find(&format!("\n{title}\n")).unwrap_or_else(|| panic!("docs/security.md has no {title}"));
    let behind = &DOCUMENT[at + 1 + title.len()..];
    &behind[..behind.find("\n## ").unwrap_or(behind.len())]
}

/// The two cells of each row.
fn rows() -> Vec<(&'static str, &'static str)> {
    let rows = section(TABLE).lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "));
    rows.filter(|(promise, _)| !promise.starts_with("promise")).collect()
}

/// What stands in backquotes and has `::` in it: file and test.
fn named(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split('`').skip(1).step_by(2).filter_map(|code| code.split_once("::"))
}

fn is_there(file: &str, test: &str) -> bool {
    let read = |file| std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap_or_default();
    let text = read(file);
    if file.ends_with(".py") {
        return match test.split_once("::") {
            Some((class, test)) => {
                let of_class = text.split(&format!("\nclass {class}:\n")).nth(1).unwrap_or_default();
                let end = of_class.find("\nclass ").unwrap_or(of_class.len());
                of_class[..end].contains(&format!("\n    def {test}("))
            }
            None => text.contains(&format!("\ndef {test}(")),
        };
    }
    if file.starts_with("tests/controller/") {
        // Named in the list for `tests!`, too.
        let listed = text.lines().any(|line| line.trim() == format!("{test},"));
        return listed && text.contains(&format!("fn {test}("));
    }
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.windows(2).any(|two| two[0] == "#[test]" && two[1].starts_with(&format!("fn {test}()")))
}

#[test]
fn each_promise_names_tests_that_exist() {
    let rows = rows();
    assert!(rows.len() > 20, "{} rows", rows.len());
    for (promise, tests) in rows {
        assert!(named(tests).next().is_some(), "no test holds: {promise}");
    }
    for (file, test) in named(DOCUMENT).filter(|(file, _)| file.contains('/')) {
        assert!(is_there(file, test), "docs/security.md names {file}::{test}, which is not there");
    }
}

#[test]
fn each_thing_that_a_tenant_cannot_do_is_a_promise() {
    let promises: Vec<&str> = rows().into_iter().map(|(promise, _)| promise).collect();
    let titles: Vec<&str> =
        section(PROMISES).split("\n- **").skip(1).filter_map(|item| item.split(".**").next()).collect();
    assert!(titles.len() >= 12, "{titles:?}");
    for title in titles {
        assert!(promises.iter().any(|p| p.starts_with(title)), "no row begins with: {title}");
    }
}

#[test]
fn a_test_that_is_not_there_is_found_out() {
    assert!(is_there("tests/promises.rs", "a_test_that_is_not_there_is_found_out"));
    assert!(!is_there("tests/promises.rs", "is_there") && !is_there("tests/promises.rs", "nothing"));
    assert!(!is_there("tests/missing.rs", "a_test_that_is_not_there_is_found_out"));
}
