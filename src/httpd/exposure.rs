//! `AssignServerPool none` over what a tenant can write: the frontends would follow his `.htaccess`, SSI, CGI and links.
//!
//! Runs in: parent, while the configuration is checked.  Trusts: httpd's tree of directives.  Owns: nothing.
//! Never: looks into a directory that a tenant can write: what it finds of one is reason enough.

use super::conftree::{self, Node};
use crate::settings::{self, PoolTree, ServerPool};
use crate::sys::look::{look, Kind, Look};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// How deep below a directory that is served, and at how many names in all, it is looked for one of a tenant's.
const DEPTH: u32 = 3;
const MOST_NAMES: u32 = 2000;
const MOST_LINKS: u32 = 10;

const ALIASES: [&str; 4] = ["Alias", "ScriptAlias", "AliasMatch", "ScriptAliasMatch"];

/// A directive that leads URLs of a virtual host (or of all) to a directory.
struct Mapping {
    host: Option<(Vec<u8>, u32)>,
    /// The URL in front; `None` for a pattern.
    url: Option<String>,
    directory: PathBuf,
}

/// Warnings: whole sentences.
pub fn check(tree: &PoolTree, frontend_uid: u32) -> Vec<String> {
    let mut roots: Vec<Mapping> = Vec::new();
    let mut aliases: Vec<Mapping> = Vec::new();
    let mut assigned = Vec::new();
    conftree::each(|node| {
        let is = |names: &[&str]| names.iter().any(|n| node.name.eq_ignore_ascii_case(n.as_bytes()));
        let host = || node.virtual_host().map(|(file, line)| (file.to_vec(), line));
        if is(&["DocumentRoot"]) {
            if let [directory, ..] = &words(node.args)[..] {
                roots.push(Mapping { host: host(), url: Some(String::new()), directory: absolute(directory) });
            }
        } else if is(&ALIASES) {
            if let [url, directory] = &words(node.args)[..] {
                let pattern = node.name.to_ascii_lowercase().ends_with(b"match");
                // Up to the first name that is part of a pattern.
                let directory = if pattern { directory.split('$').next().unwrap_or("") } else { directory };
                let url = (!pattern).then(|| url.trim_end_matches('/').to_owned());
                aliases.push(Mapping { host: host(), url, directory: absolute(directory) });
            }
        } else if is(&["AssignServerPool"]) {
            if let [none] = &words(node.args)[..] {
                if none.eq_ignore_ascii_case("none") {
                    let (file, line) = node.place();
                    let place = format!("{}:{line}", String::from_utf8_lossy(file));
                    assigned.push((host(), location(*node), place));
                }
            }
        }
    });
    let search = Search { tree, frontend_uid };
    let mut warnings = Vec::new();
    for (host, location, place) in assigned {
        let concerned = |m: &&Mapping| host.is_none() || m.host.is_none() || m.host == host;
        // A virtual host without a DocumentRoot has that of the server.
        let own = roots.iter().any(|m| m.host == host);
        let of_host = roots.iter().filter(concerned).filter(|m| host.is_none() || !own || m.host == host);
        let mut left = MOST_NAMES;
        let found = directories(of_host, aliases.iter().filter(concerned), location.as_deref())
            .into_iter()
            .find_map(|directory| search.exposed(&directory, &mut left));
        if let Some((path, whose)) = found {
            warnings.push(format!(
                "AssignServerPool none at {place}: leads to {}, which {whose} can write: the frontends, as User, follow \
                 the .htaccess files, SSI, CGI programs and links there; say AssignServerPool none static if plain files \
                 are all that is wanted, or lead the URL elsewhere (Alias \"/url\" \"/nowhere\")",
                path.display()
            ));
        }
    }
    warnings
}

/// Where URLs below this one (all of them for `None`) may lead.
fn directories<'m>(
    roots: impl Iterator<Item = &'m Mapping>,
    aliases: impl Iterator<Item = &'m Mapping>,
    location: Option<&str>,
) -> Vec<PathBuf> {
    let Some(location) = location.map(|l| l.trim_end_matches('/')).filter(|l| !l.is_empty()) else {
        return roots.chain(aliases).map(|m| m.directory.clone()).collect();
    };
    let below = |path: &str, front: &str| {
        path.strip_prefix(front).filter(|rest| rest.is_empty() || rest.starts_with('/')).map(str::to_owned)
    };
    let joined = |m: &Mapping, rest: &str| m.directory.join(rest.trim_start_matches('/'));
    let mut found = Vec::new();
    let mut covered = false;
    for alias in aliases {
        let Some(url) = &alias.url else { continue };
        if let Some(rest) = below(location, url) {
            // mod_alias takes the first that fits.
            if !covered {
                found.push(joined(alias, &rest));
            }
            covered = true;
        } else if below(url, location).is_some() {
            found.push(alias.directory.clone());
        }
    }
    if !covered {
        found.extend(roots.map(|m| joined(m, location)));
    }
    found
}

/// The URL of the innermost `<Location>` around the directive; `None` where there is none, or a pattern.
fn location(node: Node<'_>) -> Option<String> {
    let section = node.sections().find(|s| {
        ["<Location", "<LocationMatch", "<If", "<ElseIf", "<Else"]
            .iter()
            .any(|n| s.name.eq_ignore_ascii_case(n.as_bytes()))
    })?;
    if !section.name.eq_ignore_ascii_case(b"<Location") {
        return None;
    }
    let args = section.args.strip_suffix(b">").unwrap_or(section.args);
    match &words(args)[..] {
        [path] if path.starts_with('/') && !path.contains(['*', '?', '[']) => Some(path.clone()),
        _ => None,
    }
}

/// Arguments as httpd splits them.
fn words(args: &[u8]) -> Vec<String> {
    settings::words(args).iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn absolute(path: &str) -> PathBuf {
    // SAFETY: httpd's variable, null or a string, written while the configuration is read, on this thread.
    let root = unsafe { crate::apr::pool::bytes(crate::ffi::ap_server_root) };
    Path::new(OsStr::from_bytes(root)).join(path)
}

struct Search<'t> {
    tree: &'t PoolTree,
    frontend_uid: u32,
}

impl Search<'_> {
    /// The first name on the way to this directory, or below it, that a tenant can change, and who that is.
    fn exposed(&self, directory: &Path, left: &mut u32) -> Option<(PathBuf, String)> {
        let (place, at) = match self.way(directory, MOST_LINKS) {
            Way::Tenants(path, whose) => return Some((path, whose)),
            Way::Ends => return None,
            Way::Leads(place, at) => (place, at),
        };
        (at.kind == Kind::Directory).then(|| self.below(&place, DEPTH, left))?
    }

    /// Goes from `/` to the directory, through links of root's, and stops at what a tenant can write.
    fn way(&self, directory: &Path, links: u32) -> Way {
        let mut at = PathBuf::from("/");
        let Ok(mut seen) = look(&at) else { return Way::Ends };
        let names: Vec<&OsStr> = directory
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name),
                Component::ParentDir => Some(OsStr::new("..")),
                _ => None,
            })
            .collect();
        for (n, name) in names.iter().enumerate() {
            if *name == ".." {
                at.pop();
                continue;
            }
            at.push(name);
            match look(&at) {
                Ok(found) => seen = found,
                Err(_) => return Way::Ends,
            }
            let last = n + 1 == names.len();
            if let Some(whose) = self.writer(&seen, last) {
                return Way::Tenants(at, whose);
            }
            if seen.kind == Kind::Link {
                let Ok(target) = fs::read_link(&at) else { return Way::Ends };
                if links == 0 {
                    return Way::Ends;
                }
                at.pop();
                let rest: PathBuf = names[n + 1..].iter().collect();
                return self.way(&at.join(target).join(rest), links - 1);
            }
        }
        Way::Leads(at, seen)
    }

    fn below(&self, directory: &Path, depth: u32, left: &mut u32) -> Option<(PathBuf, String)> {
        let mut names: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(directory).ok()?.flatten() {
            if *left == 0 {
                break;
            }
            *left -= 1;
            names.push(entry.path());
        }
        names.sort();
        for path in names {
            let Ok(seen) = look(&path) else { continue };
            if let Some(whose) = self.writer(&seen, true) {
                return Some((path, whose));
            }
            let found = match seen.kind {
                Kind::Directory if depth > 0 => self.below(&path, depth - 1, left),
                Kind::Link => match self.way(&path, MOST_LINKS) {
                    Way::Tenants(path, whose) => Some((path, whose)),
                    _ => None,
                },
                _ => None,
            };
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Which tenant can change what is there. In a directory above with the sticky bit nobody can change another's.
    fn writer(&self, seen: &Look, served: bool) -> Option<String> {
        let tenants = || self.tree.pools().iter().filter_map(|pool| Some((pool, pool.user.as_ref()?)));
        let named = |pool: &ServerPool| format!("pool {}", pool.name);
        if let Some((pool, _)) = tenants().find(|(_, user)| user.uid == seen.uid && user.uid != self.frontend_uid) {
            return Some(named(pool));
        }
        if seen.kind == Kind::Link {
            return None;
        }
        if seen.mode & 0o020 != 0 {
            if let Some((pool, _)) = tenants().find(|(_, u)| u.gid == seen.gid && u.uid != self.frontend_uid) {
                return Some(named(pool));
            }
        }
        let kept = seen.mode & 0o1000 != 0 && !served;
        (seen.mode & 0o002 != 0 && !kept).then(|| "everybody".to_owned())
    }
}

enum Way {
    Tenants(PathBuf, String),
    Leads(PathBuf, Look),
    /// At a name that is not there.
    Ends,
}
