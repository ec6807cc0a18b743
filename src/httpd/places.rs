//! Paths of directives that httpd's own user can write, or has open, and a pool's user has not: the pool's modules get
//! places of the pool's own instead.
//!
//! Runs in: seed (what is needed), zygote as the pool's user (what it gets), wherever the configuration is checked.
//! Trusts: httpd, its modules' tables of commands.  Owns: the list of such directives.
//! Never: opens a path as root; runs where threads are.

use super::command::lossy;
use super::{conftree, ServerRec};
use crate::apr::pool::bytes;
use crate::apr::AprPool;
use crate::ffi;
use crate::settings::{DirectiveAt, Place};
use crate::sys::{place, privileges};
use std::ffi::{c_char, c_int, CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr;

/// Below `DefaultRuntimeDir`.
const BASE: &CStr = c"mod_pool";

/// What a pool needs instead of what a directive says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// A directory of its own in any case: who else writes there takes part in what is kept there.
    Directory,
    /// A directory of its own where its user cannot write in the one that is named.
    WhereUnwritable,
    /// A directory of its own for lock files, where the mechanism has such.
    LockFiles,
    /// A directory of its own for a file of shared memory: the one that is named is the frontends'.
    SharedMemory,
    /// The file opened once more: what was open when the user changed is /dev/null.
    Reopened,
}

/// mod_security counts requests of an address or a session in `SecDataDir`; where it cannot, its rules let everything
/// pass.
const DIRECTIVES: [(&CStr, Need); 6] = [
    (c"SecDataDir", Need::Directory),
    (c"SecTmpDir", Need::WhereUnwritable),
    (c"SecUploadDir", Need::WhereUnwritable),
    (c"SecGeoLookupDb", Need::Reopened),
    (c"Mutex", Need::LockFiles),
    (c"LDAPSharedCacheFile", Need::SharedMemory),
];

/// Mechanisms of `Mutex` that open a file by name (util_mutex.c).
const WITH_FILES: [&[u8]; 3] = [b"file", b"flock", b"fcntl"];

/// The directory in which each pool has its own, and the names of those that this configuration needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    pub base: PathBuf,
    pub leaves: Vec<&'static str>,
    /// In the order of `DIRECTIVES`: where each stands in httpd's tree.
    nodes: [Vec<*mut ffi::ap_directive_t>; DIRECTIVES.len()],
}

impl Places {
    fn path(&self, pool: &str, uid: u32, leaf: &str) -> PathBuf {
        place::path(&self.base, pool, uid, leaf)
    }
}

fn needs(directive: &ffi::ap_directive_t, need: Need) -> bool {
    // SAFETY: null or a string that lives as long as the node.
    let arguments = unsafe { bytes(directive.args) };
    match need {
        Need::LockFiles => mechanism(arguments).is_some(),
        Need::WhereUnwritable => !word(arguments).eq_ignore_ascii_case(b"none"),
        Need::Directory | Need::SharedMemory => true,
        Need::Reopened => false,
    }
}

/// The first word of a directive's arguments, which may be quoted.
fn word(arguments: &[u8]) -> &[u8] {
    let arguments = arguments.trim_ascii_start();
    match arguments.first() {
        Some(quote @ (b'"' | b'\'')) => arguments[1..].split(|b| b == quote).next().unwrap_or_default(),
        _ => arguments.split(u8::is_ascii_whitespace).next().unwrap_or_default(),
    }
}

/// Of `Mutex file:DIR NAME ...`: the mechanism, if it opens files, and what stands behind its word.
fn mechanism(arguments: &[u8]) -> Option<(&'static [u8], &[u8])> {
    let arguments = arguments.trim_ascii_start();
    let first = word(arguments);
    let name = first.split(|b| *b == b':').next().unwrap_or_default();
    let found = WITH_FILES.iter().find(|known| name.eq_ignore_ascii_case(known))?;
    let quotes = if matches!(arguments.first(), Some(b'"' | b'\'')) { 2 } else { 0 };
    Some((found, arguments.get(first.len() + quotes..).unwrap_or_default().trim_ascii()))
}

/// For a place between quotes (`ap_getword_conf`).
fn quoted(text: &[u8]) -> Vec<u8> {
    let escaped = |b: &u8| if matches!(b, b'"' | b'\\') { vec![b'\\', *b] } else { vec![*b] };
    text.iter().flat_map(escaped).collect()
}

/// What the configuration that was read needs. Without root a pool's user is httpd's own, which can write where httpd can:
/// no directory.
pub fn needed(pconf: AprPool<'_>) -> Places {
    let is_root = privileges::effective_uid() == 0;
    let mut places = Places { base: base(pconf), leaves: Vec::new(), nodes: Default::default() };
    for ((name, need), nodes) in DIRECTIVES.into_iter().zip(&mut places.nodes) {
        let text = name.to_str().unwrap_or_default();
        conftree::each_named(text, |node| {
            nodes.push(ptr::from_ref(node).cast_mut());
            if is_root && needs(node, need) && !places.leaves.contains(&text) {
                places.leaves.push(text);
            }
        });
    }
    places
}

fn base(pconf: AprPool<'_>) -> PathBuf {
    // SAFETY: a NUL-terminated name; the answer lives as long as the pool, or is null.
    let path = unsafe { bytes(ffi::ap_runtime_dir_relative(pconf.as_ptr(), BASE.as_ptr())) };
    PathBuf::from(OsStr::from_bytes(path))
}

/// Whether root can make what is needed: else the directive that needs it, and why not.
pub fn check(pconf: AprPool<'_>) -> Result<(), (DirectiveAt, String)> {
    let places = needed(pconf);
    let Some(first) = places.leaves.first() else { return Ok(()) };
    place::check(&places.base).map_err(|e| {
        let nowhere = DirectiveAt { name: (*first).to_owned(), value: String::new(), place: Place::default() };
        (conftree::find(&[first]).unwrap_or(nowhere), e.to_string())
    })
}

/// Tells the modules of this process where the pool's own places are, which were made, and has them open again what they
/// had open. Before they start; as the pool's user.
pub fn give(
    main: ServerRec<'_>,
    pconf: AprPool<'_>,
    ptemp: AprPool<'_>,
    places: &Places,
    (pool, uid): (&str, u32),
) -> Result<(), String> {
    for ((name, need), nodes) in DIRECTIVES.into_iter().zip(&places.nodes).filter(|(_, nodes)| !nodes.is_empty()) {
        let text = name.to_str().unwrap_or_default();
        let own = places.path(pool, uid, text);
        let own = own.as_os_str().as_bytes();
        let Some((command, module)) = command(name) else { continue };
        let is_given = places.leaves.contains(&text);
        if !is_given && need != Need::Reopened {
            continue;
        }
        let is_reachable = CString::new(own).is_ok_and(|path| {
            // SAFETY: a NUL-terminated name.
            unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) == 0 }
        });
        if is_given && !is_reachable {
            return Err(format!(
                "{text}: the pool's user cannot reach the directory that was made for it, {}: {}",
                String::from_utf8_lossy(own),
                std::io::Error::last_os_error()
            ));
        }
        let call = |server, node, value: &[u8]| {
            let called = call(main, server, (pconf, ptemp), (command, module), node, value);
            called.map_err(|what| format!("{text} {}: {what}", String::from_utf8_lossy(value)))
        };
        match need {
            Need::Directory => {
                for server in main.iter() {
                    call(server, nodes[0], own)?;
                }
            }
            Need::WhereUnwritable => {
                if nodes.iter().any(|node| is_unwritable(pconf, *node)) {
                    for server in main.iter() {
                        call(server, nodes[0], own)?;
                    }
                }
            }
            Need::SharedMemory => call(main, nodes[0], &[own, b"/shared"].concat())?,
            // Each virtual host has the main server's.
            Need::Reopened => {
                for &node in nodes {
                    // SAFETY: a node of httpd's tree; its arguments are null or a string.
                    let value = unsafe { bytes((*node).args) };
                    call(main, node, word(value))?;
                }
            }
            Need::LockFiles => {
                for &node in nodes {
                    // SAFETY: a node of httpd's tree; its arguments are null or a string.
                    let value = unsafe { bytes((*node).args) };
                    if let Some((mechanism, rest)) = mechanism(value) {
                        call(main, node, &[b"\"", mechanism, b":", &quoted(own), b"\" ", rest].concat())?;
                    }
                }
            }
        }
    }
    Ok(())
}

fn is_unwritable(pconf: AprPool<'_>, node: *mut ffi::ap_directive_t) -> bool {
    // SAFETY: a node of httpd's tree; its arguments are null or a string.
    let named = word(unsafe { bytes((*node).args) });
    if named.eq_ignore_ascii_case(b"none") {
        return false;
    }
    // SAFETY: the pool is live, the name is NUL-terminated; the answer is null or lives as long as the pool.
    let path = unsafe { bytes(ffi::ap_server_root_relative(pconf.as_ptr(), pconf.copy(named))) };
    let Ok(path) = CString::new(path) else { return true };
    // SAFETY: a NUL-terminated name.
    unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) != 0 }
}

type Command = (*const ffi::command_rec, *const ffi::module);

/// The command of a loaded module.
fn command(name: &CStr) -> Option<Command> {
    // SAFETY: the head of httpd's list of modules, which changes only between two readings of the configuration.
    let mut module = unsafe { ffi::ap_top_module };
    // SAFETY: the name is NUL-terminated; httpd writes the module that has the command.
    let found = unsafe { ffi::ap_find_command_in_modules(name.as_ptr(), &raw mut module) };
    (!found.is_null()).then_some((found, module.cast_const()))
}

/// Calls a command's function as httpd does for a line of the main server's, with the record of `server`.
fn call(
    main: ServerRec<'_>,
    server: ServerRec<'_>,
    (pconf, ptemp): (AprPool<'_>, AprPool<'_>),
    (command, module): Command,
    node: *mut ffi::ap_directive_t,
    value: &[u8],
) -> Result<(), String> {
    // SAFETY: a command of a loaded module (see `command`).
    let record = unsafe { &*command };
    // SAFETY: all zero is a valid cmd_parms: null pointers and numbers.
    let mut parms: ffi::cmd_parms = unsafe { std::mem::zeroed() };
    parms.override_ = (ffi::OR_ALL | ffi::RSRC_CONF) as c_int;
    parms.limited = -1;
    parms.directive = node;
    parms.pool = pconf.as_ptr();
    parms.temp_pool = ptemp.as_ptr();
    parms.server = main.as_ptr();
    parms.cmd = command;
    // SAFETY: the server is live, and has a vector of default directory records.
    parms.context = unsafe { (*server.as_ptr()).lookup_defaults };
    // SAFETY: the vector is live, the module is loaded.
    let config = unsafe { ffi::ap_get_module_config(parms.context, module) };
    let value = pconf.copy(value).cast_const();
    // SAFETY: which member of the union is set is what args_how says; the function gets what httpd would give it.
    let answer: *const c_char = unsafe {
        match record.args_how {
            ffi::cmd_how_TAKE1 => record.func.take1.map(|f| f(&raw mut parms, config, value)),
            ffi::cmd_how_RAW_ARGS => record.func.raw_args.map(|f| f(&raw mut parms, config, value)),
            _ => None,
        }
    }
    .ok_or("this module takes other arguments")?;
    if answer.is_null() {
        return Ok(());
    }
    // SAFETY: not null, so a NUL-terminated text.
    Err(lossy(unsafe { CStr::from_ptr(answer) }))
}
