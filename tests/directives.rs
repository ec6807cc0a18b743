//! `docs/directives.md` and the command table in `c_shim/pool_commands.c` say the same: names, contexts, descriptions,
//! number of arguments; and so does the list of what may stand in a `<ServerPool>` block.

use mod_pool::settings::BLOCK_DIRECTIVES;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[derive(Debug, PartialEq, Eq)]
struct Directive {
    context: String,
    description: String,
    /// The fewest and the most.
    arguments: (usize, usize),
}

fn source(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The entries between `AP_INIT_` and `),`; those of other modules, whose help says so, and those that
/// every MPM has are left out.
fn command_table(c: &str) -> BTreeMap<String, Directive> {
    let contexts: BTreeMap<&str, &str> = c.lines().filter_map(defined_context).collect();
    let entries = c.split("AP_INIT_").skip(1);
    let entries = entries.map(|entry| entry.split("\"),").next().expect("an entry ends"));
    let mut table = BTreeMap::new();
    for entry in entries {
        let (kind, rest) = entry.split_once('(').expect("a macro with arguments");
        let parts: Vec<&str> = rest.splitn(5, ',').map(str::trim).collect();
        let [name, handler, _data, place, help] = parts[..] else { panic!("five parts: {entry}") };
        let help = help.trim_start_matches('"');
        if help.starts_with("see ") || handler.starts_with("pool_entry_mpm_") {
            continue;
        }
        let context = contexts.get(place).unwrap_or_else(|| panic!("{place} has no #define with a comment"));
        let directive = Directive {
            context: (*context).to_owned(),
            description: help.to_owned(),
            arguments: match kind {
                "RAW_ARGS" | "TAKE1" | "FLAG" => (1, 1),
                "TAKE2" => (2, 2),
                "TAKE12" => (1, 2),
                _ => panic!("{kind} is new here"),
            },
        };
        let before = table.insert(name.trim_matches('"').to_owned(), directive);
        assert_eq!(before, None, "{name} is listed twice");
    }
    table
}

/// `#define IN_X FLAGS /* words */`.
fn defined_context(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("#define ")?.split_once(' ')?;
    let words = rest.split_once("/*")?.1.trim_end().strip_suffix("*/")?;
    name.starts_with("IN_").then_some((name, words.trim()))
}

/// The sections that open with `## ` and hold a table of Description, Syntax, Default and Context.
fn manual(text: &str) -> BTreeMap<String, (Directive, String)> {
    let mut table = BTreeMap::new();
    for section in text.split("\n## ").skip(1) {
        let (title, body) = section.split_once('\n').expect("a title and a body");
        let field = |name: &str| {
            let opening = format!("| {name} | ");
            let line = body.lines().find_map(|line| line.strip_prefix(&opening));
            let line = line.unwrap_or_else(|| panic!("{title} has no {name}"));
            line.strip_suffix(" |").unwrap_or_else(|| panic!("{title}: {name} does not end")).to_owned()
        };
        assert!(!field("Default").is_empty(), "{title} has no default");
        let prose = body.rsplit("|\n\n").next().unwrap_or_default();
        assert!(prose.trim().len() > 40, "{title} has no meaning");
        let syntax = field("Syntax").trim_matches('`').to_owned();
        let directive =
            Directive { context: field("Context"), description: field("Description"), arguments: arguments(&syntax) };
        let title = title.trim().replace('\\', "").trim_end_matches('>').to_owned();
        assert!(syntax.starts_with(&title), "{title}: its syntax is {syntax}");
        table.insert(title, (directive, syntax));
    }
    table
}

/// How many arguments a line such as `PoolEnv name [value]` shows.
fn arguments(syntax: &str) -> (usize, usize) {
    let words = syntax.split(" ...").next().unwrap_or_default().split(' ').skip(1);
    let (optional, needed): (Vec<&str>, Vec<&str>) = words.partition(|word| word.starts_with('['));
    (needed.len(), needed.len() + optional.len())
}

/// The table says a little more for those who ask `httpd -L`.
fn describes(table: &str, manual: &str) -> bool {
    table.starts_with(manual) && !table[manual.len()..].starts_with(char::is_alphanumeric)
}

#[test]
fn manual_and_command_table_agree() {
    let table = command_table(&source("c_shim/pool_commands.c"));
    let manual = manual(&source("docs/directives.md"));
    let names: Vec<_> = table.keys().collect();
    assert_eq!(names, manual.keys().collect::<Vec<_>>(), "left: the command table, right: the manual");
    for (name, (said, _)) in &manual {
        let done = &table[name];
        assert_eq!(done.context, said.context, "context of {name}");
        assert_eq!(done.arguments, said.arguments, "arguments of {name}");
        assert!(describes(&done.description, &said.description), "{name}: {done:?} {said:?}");
    }
}

#[test]
fn the_manual_lists_its_contents() {
    let text = source("docs/directives.md");
    for name in manual(&text).keys() {
        let plain = name.trim_start_matches('<');
        let anchor = format!("](#{})", plain.to_lowercase());
        assert!(text.contains(&anchor), "{name} is not in the contents");
    }
}

#[test]
fn a_block_takes_what_the_table_says() {
    let table = command_table(&source("c_shim/pool_commands.c"));
    let in_block = |directive: &Directive| directive.context.contains("server pool");
    let mut named: Vec<&str> = table.iter().filter(|(_, d)| in_block(d)).map(|(name, _)| name.as_str()).collect();
    let mut taken = BLOCK_DIRECTIVES.to_vec();
    named.sort_unstable();
    taken.sort_unstable();
    assert_eq!(named, taken);
}

/// The defaults that the manual tells are those of the code.
#[test]
fn the_manual_tells_the_defaults() {
    use mod_pool::settings as s;
    let text = source("docs/directives.md");
    let defaults = [
        ("PoolMinSpare", s::DEFAULT_MIN_SPARE.to_string()),
        ("PoolIdleTimeout", format!("{}s", s::DEFAULT_IDLE_TIMEOUT.as_secs())),
        ("PoolMaxRequestsPerProcess", s::DEFAULT_MAX_REQUESTS.to_string()),
        ("PoolQueueTimeout", format!("{}s", s::DEFAULT_QUEUE_TIMEOUT.as_secs())),
        ("PoolKillGrace", format!("{}s", s::DEFAULT_KILL_GRACE.as_secs())),
        ("PoolQueueLimit", s::DEFAULT_QUEUE_LIMIT.to_string()),
        ("PoolMaxParked", s::DEFAULT_MAX_PARKED.to_string()),
    ];
    for (name, value) in defaults {
        let section = text.split(&format!("\n## {name}\n")).nth(1).expect("the directive has a section");
        let section = section.split("\n## ").next().unwrap_or_default();
        assert!(section.contains(&format!("| Default | `{value}` |")), "{name} {value}");
    }
    let caps = format!("`{}`; for a pool `{}`", s::DEFAULT_ROOT_MAX_PROCESSES, s::DEFAULT_POOL_MAX_PROCESSES);
    assert!(text.contains(&caps), "{caps}");
}
