//! The tags of log lines: each is used at one place and explained in docs/pitfalls.md.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const DOCUMENT: &str = include_str!("../docs/pitfalls.md");

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("the sources are there") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The tags in a text: POOL and three digits.
fn tags(text: &str) -> impl Iterator<Item = &str> {
    text.match_indices("POOL").filter_map(move |(at, _)| {
        let tag = text.get(at..at + 7)?;
        tag[4..].bytes().all(|b| b.is_ascii_digit()).then_some(tag)
    })
}

#[test]
fn each_tag_is_used_once_and_explained() {
    let mut files = Vec::new();
    rust_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("readable");
        for tag in tags(&text) {
            places.entry(tag.to_owned()).or_default().push(file.display().to_string());
        }
    }
    assert!(!places.is_empty());
    for (tag, places) in &places {
        assert_eq!(places.len(), 1, "{tag} is used at several places: {places:?}");
        assert!(tags(DOCUMENT).any(|t| t == tag), "docs/pitfalls.md does not explain {tag}");
    }
    for tag in tags(DOCUMENT) {
        assert!(places.contains_key(tag), "docs/pitfalls.md explains {tag}, which nobody logs");
    }
}
