//! What root reads in /proc of processes that tenants own, see the table in docs/security.md.

use std::path::Path;

/// These take no lock that such a process can keep. `cmdline`, `environ`, `maps`, `smaps`, `mem` and `auxv` do: they read
/// the memory of the process, or take its `mmap_lock`, and wait for a page of a FUSE of his.
const HARMLESS: [&str; 4] = ["/proc/{pid}/status", "/proc/{pid}/stat", "/proc/{parent}/task", "/proc/PID/status"];

fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(std::fs::read_to_string(&path).expect("a source file"));
        }
    }
}

/// The paths below /proc in a line of code, but for those of the process itself and the kernel's own settings.
fn of_others(line: &str) -> impl Iterator<Item = &str> {
    let code = line.split("//").next().unwrap_or_default();
    let paths = code.match_indices("/proc/").map(|(at, _)| &code[at..]);
    let paths =
        paths.map(|path| path.split(|c: char| c == '"' || c == '\\' || c.is_whitespace()).next().unwrap_or(path));
    paths.filter(|path| !path.starts_with("/proc/self/") && !path.starts_with("/proc/sys/"))
}

#[test]
fn nothing_in_proc_that_waits_for_its_process_is_read() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let read: Vec<&str> = files.iter().flat_map(|text| text.lines()).flat_map(of_others).collect();
    for harmless in HARMLESS {
        assert!(read.contains(&harmless), "{harmless} is not read any more: {read:?}");
    }
    for path in read {
        assert!(HARMLESS.contains(&path), "{path} may wait for its process");
    }
}
