//! Whether the frontend maps a pool's request to another server (`ProxyPass` above all), in the order of stock httpd.
//!
//! The worker does all mapping of a pool's request, so nothing has to be done for most. What mod_proxy maps stays in
//! the frontend; but stock httpd asks mod_rewrite before it, and a rule that refuses, redirects or rewrites comes first.
//! So the frontend asks the modules in their order, on the request itself. When another one than those of
//! `STAYS` takes the request, or none does, the request is put back to what it was, and the worker asks them all again.
//! A server's rule with `[P]` stays where it leads to what a worker cannot speak to (TLS, WebSocket, a balancer).
//!
//! Runs in: frontend, the thread that has the request; parent, for the check of the configuration.
//! Trusts: httpd, and the modules of the lists below.
//! Owns: the lists; the trial that runs on this thread.
//! Never: runs a module that may run a tenant's code; leaves anything of a trial in a request that goes to a pool.

use super::{classes, config, conftree, hooks, image, RequestRec, ServerRec};
use crate::apr::Table;
use crate::ffi;
use crate::settings::{words, ModuleRole, PoolTree};
use once_cell::sync::OnceCell;
use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

/// What these map stays in the frontend.
const STAYS: [&str; 4] = ["mod_proxy.c", "mod_proxy_express.c", "mod_wsgi.c", "mod_jk.c"];
/// Of these, those with backends of their own: daemons, frontends, servlet containers.
const WITH_BACKENDS: [&str; 2] = ["mod_wsgi.c", "mod_jk.c"];
/// Asked before those, where stock httpd does. Their translate_name follows the server's configuration and runs nothing
/// of a tenant's.
const ASKED: [&str; 4] = ["mod_rewrite.c", "mod_alias.c", "mod_userdir.c", "mod_vhost_alias.c"];
/// Their translate_name maps nothing: a log line, or a file that was opened at the start.
const MAPS_NOTHING: [&str; 2] = ["mod_log_debug.c", "mod_file_cache.c"];
/// Asked by httpd around all of this.
const OURS: [&str; 2] = ["mod_pool.c", "core.c"];
/// Their translate_name does something only where this directive says so.
const BY_DIRECTIVE: [(&str, &str); 2] = [("mod_lua.c", "LuaHookTranslateName"), ("mod_perl.c", "PerlTransHandler")];

/// Sections whose `RewriteRule`s are no server's, and are followed after the mapping.
const OF_DIRECTORIES: [&str; 11] = [
    "<Directory",
    "<DirectoryMatch",
    "<Location",
    "<LocationMatch",
    "<Files",
    "<FilesMatch",
    "<If",
    "<ElseIf",
    "<Else",
    "<Proxy",
    "<ProxyMatch",
];
const PROXIES: [&str; 3] = ["ProxyPass", "ProxyPassMatch", "ProxyExpressEnable"];
const REWRITES: [&str; 1] = ["RewriteRule"];
const ALIASES: [&str; 11] = [
    "Alias",
    "AliasMatch",
    "ScriptAlias",
    "ScriptAliasMatch",
    "Redirect",
    "RedirectMatch",
    "RedirectTemp",
    "RedirectPermanent",
    "UserDir",
    "VirtualDocumentRoot",
    "VirtualScriptAlias",
];
/// What has those map something.
const BACKENDS: [&str; 7] =
    ["WSGIScriptAlias", "WSGIScriptAliasMatch", "JkMount", "JkMountCopy", "JkMountFile", "JkAutoAlias", "JkUnMount"];

type Function = unsafe extern "C" fn(*mut ffi::request_rec) -> c_int;

/// Who goes on with a request that a pool is assigned to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapped {
    /// This process: the answer of translate_name.
    Frontend(c_int),
    Pool,
}

/// What is done with a module's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// It is the frontend's.
    Stays,
    /// The worker will come to the same answer.
    Asked,
}

struct Step {
    function: Function,
    part: Part,
}

/// The translate_name functions that count, in the order of httpd.
fn steps(tree: &PoolTree) -> &'static [Step] {
    static STEPS: OnceCell<Vec<Step>> = OnceCell::new();
    STEPS.get_or_init(|| {
        let part = |module: &str| match tree.module_role(module) {
            _ if OURS.contains(&module) => None,
            _ if STAYS.contains(&module) => Some(Part::Stays),
            _ if ASKED.contains(&module) => Some(Part::Asked),
            // The administrator's word, see `check`. One that works in frontends only is asked by nobody else.
            Some(ModuleRole::Frontend) => Some(Part::Stays),
            Some(ModuleRole::Both) => Some(Part::Asked),
            _ => None,
        };
        let all = hooks::translate_name.in_order();
        let found = all.iter().filter_map(|(module, function)| Some((part(module)?, *function)));
        let mut steps: Vec<Step> = found
            .map(|(part, function)| {
                // SAFETY: what is registered in this array takes a request and returns an int (http_request.h).
                let function = unsafe { std::mem::transmute::<*const c_void, Function>(function) };
                Step { function, part }
            })
            .collect();
        let last = steps.iter().rposition(|s| s.part != Part::Asked).map_or(0, |at| at + 1);
        steps.truncate(last);
        steps
    })
}

/// Asks the modules for the mapping of a request that a pool is assigned to, or that is the pool `default`'s.
pub fn ask(r: RequestRec<'_>) -> Mapped {
    let tree = config::pool_tree(r.server());
    let steps = steps(tree);
    let Some(last) = steps.iter().rposition(|step| step.part == Part::Stays) else { return Mapped::Pool };
    let order_counts = order_counts(r.server());
    let mut trial = None;
    for step in &steps[..=last] {
        if step.part == Part::Asked && !order_counts {
            continue;
        }
        if step.part == Part::Asked && trial.is_none() {
            trial = Some(Trial::begin(r));
        }
        // SAFETY: a live request, in the hook and at the place where httpd would call this function.
        let answer = unsafe { (step.function)(r.as_ptr()) };
        if answer == ffi::HOOK_DECLINED && !trial.as_ref().is_some_and(Trial::looked_ahead) {
            continue;
        }
        // A pool's page cannot be looked at from here. The worker can; there ProxyPass follows, too.
        let looked_ahead = trial.as_ref().is_some_and(Trial::looked_ahead);
        if !looked_ahead && (step.part == Part::Stays || classes::backend_of_frontends(r, tree).is_some()) {
            return Mapped::Frontend(answer);
        }
        break;
    }
    if let Some(trial) = trial {
        trial.undo();
    }
    Mapped::Pool
}

// ===== The request as it was =====

thread_local! {
    /// The request that this thread asks the modules about.
    static ON_TRIAL: Cell<Option<NonNull<ffi::request_rec>>> = const { Cell::new(None) };
    /// A rule asked for a subrequest to a pool.
    static LOOKED_AHEAD: Cell<bool> = const { Cell::new(false) };
}

/// A subrequest by which a rule of a request on trial looks ahead (`%{LA-U:...}`, `-F`): where it leads to a pool, or to a
/// tenant's file, the frontend cannot tell what comes of it. To be refused; the trial then ends.
pub fn refuses_look_ahead(r: RequestRec<'_>) -> bool {
    let Some(on_trial) = ON_TRIAL.get() else { return false };
    // SAFETY: the chain of a live request: each request lives longer than its subrequests.
    let mut above = unsafe { (*r.as_ptr()).main };
    while !above.is_null() && above != on_trial.as_ptr() {
        // SAFETY: as before.
        above = unsafe { (*above).main };
    }
    if !above.is_null() {
        LOOKED_AHEAD.set(true);
    }
    !above.is_null()
}

/// What the modules may change of a request, as it was before they were asked.
struct Trial<'r> {
    r: RequestRec<'r>,
    fields: Fields,
    /// The live table, and a copy of what was in it.
    tables: [Option<(Table<'r>, Table<'r>)>; 7],
}

macro_rules! fields {
    ($($name:ident: $kind:ty;)*) => {
        struct Fields { $($name: $kind),* }

        impl Fields {
            fn of(r: RequestRec<'_>) -> Self {
                // SAFETY: the request is live.
                let rec = unsafe { &*r.as_ptr() };
                Fields { $($name: rec.$name),* }
            }

            fn put_back(&self, r: RequestRec<'_>) {
                // SAFETY: the request is live, and nobody else uses it. Strings are in its pool still.
                let rec = unsafe { &mut *r.as_ptr() };
                $(rec.$name = self.$name;)*
            }
        }
    };
}

fields! {
    uri: *mut std::ffi::c_char;
    filename: *mut std::ffi::c_char;
    canonical_filename: *mut std::ffi::c_char;
    path_info: *mut std::ffi::c_char;
    args: *mut std::ffi::c_char;
    handler: *const std::ffi::c_char;
    status_line: *const std::ffi::c_char;
    status: c_int;
    proxyreq: c_int;
    no_cache: c_int;
    no_local_copy: c_int;
    finfo: ffi::apr_finfo_t;
}

impl<'r> Trial<'r> {
    fn begin(r: RequestRec<'r>) -> Self {
        let top = r.top();
        let kept = |table: Table<'r>| Some((table, table.copy_to(r.pool())));
        // mod_rewrite sets cookies of a subrequest on the request that it belongs to.
        let of_top = |table: Table<'r>| if r.is_subrequest() { kept(table) } else { None };
        let tables = [
            kept(r.notes()),
            kept(r.subprocess_env()),
            kept(r.headers_out()),
            kept(r.err_headers_out()),
            of_top(top.notes()),
            of_top(top.err_headers_out()),
            of_top(top.subprocess_env()),
        ];
        ON_TRIAL.set(NonNull::new(r.as_ptr()));
        LOOKED_AHEAD.set(false);
        Trial { r, fields: Fields::of(r), tables }
    }

    fn looked_ahead(&self) -> bool {
        LOOKED_AHEAD.get()
    }

    /// All that stays is that a rule with `[END]` was met: that holds for the redirects of this request, as it does in
    /// stock httpd.
    fn undo(self) {
        self.fields.put_back(self.r);
        for (live, copy) in self.tables.iter().flatten() {
            live.become_copy_of(*copy);
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        ON_TRIAL.set(None);
    }
}

// ===== What the configuration says =====

#[derive(Debug, Clone, Copy, Default)]
struct Facts {
    /// Something may be mapped to another server.
    proxies: bool,
    rewrites: bool,
    aliases: bool,
    backends: bool,
    /// `AssignServerPool` names a pool.
    assigns: bool,
}

impl Facts {
    fn with(self, other: Facts) -> Facts {
        Facts {
            proxies: self.proxies | other.proxies,
            rewrites: self.rewrites | other.rewrites,
            aliases: self.aliases | other.aliases,
            backends: self.backends | other.backends,
            assigns: self.assigns | other.assigns,
        }
    }

    fn see(&mut self, node: &conftree::Node<'_>) {
        let is = |names: &[&str]| names.iter().any(|n| node.name.eq_ignore_ascii_case(n.as_bytes()));
        let rewrites = is(&REWRITES) && !node.is_in(&OF_DIRECTORIES);
        self.proxies |= is(&PROXIES) || (rewrites && may_proxy(node.args));
        self.rewrites |= rewrites;
        self.aliases |= is(&ALIASES);
        self.backends |= is(&BACKENDS);
        let is_none = || words(node.args).first().is_some_and(|word| word.eq_ignore_ascii_case(b"none"));
        self.assigns |= is(&["AssignServerPool"]) && !is_none();
    }
}

/// A `RewriteRule` that may have the flag `P`.
fn may_proxy(args: &[u8]) -> bool {
    let words = args.split(|b| b"[], \t\"'".contains(b));
    words.into_iter().any(|w| w.eq_ignore_ascii_case(b"P") || w.eq_ignore_ascii_case(b"proxy"))
}

/// For each server of the configuration, in the order of httpd's list, its address and what may hold for it. What stands
/// outside of virtual hosts may hold in each.
fn facts(main: ServerRec<'_>) -> Vec<(usize, Facts)> {
    let mut outside = Facts::default();
    let mut hosts: HashMap<(Vec<u8>, u32), Facts> = HashMap::new();
    conftree::each(|node| match node.virtual_host() {
        None => outside.see(node),
        Some((file, line)) => hosts.entry((file.to_vec(), line)).or_default().see(node),
    });
    // Directives that Perl code made are not in the tree.
    if hooks::module_index(c"mod_perl.c") >= 0 {
        outside.rewrites = true;
        outside.aliases = true;
    }
    let of = |s: ServerRec<'_>| {
        let (file, line) = s.defined_at();
        hosts.get(&(file.to_vec(), line)).map_or(outside, |own| outside.with(*own))
    };
    main.iter().map(|s| (s.key(), of(s))).collect()
}

/// Whether a module of [`ASKED`] may come before what the frontend maps, in this virtual host.
fn order_counts(s: ServerRec<'_>) -> bool {
    static SERVERS: OnceCell<Vec<usize>> = OnceCell::new();
    let servers = SERVERS.get_or_init(|| {
        // SAFETY: httpd's main server of the running configuration.
        let main = unsafe { ServerRec::from_raw(ffi::ap_server_conf) };
        let counts = |f: &Facts| (f.proxies && f.rewrites) || (f.backends && (f.rewrites || f.aliases));
        let mut keys: Vec<usize> = facts(main).iter().filter(|(_, f)| counts(f)).map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys
    });
    servers.binary_search(&s.key()).is_ok()
}

/// What cannot be asked before `ProxyPass`: whole sentences for the administrator, as errors.
pub fn check(main: ServerRec<'_>, tree: &PoolTree) -> Vec<String> {
    if tree.is_empty() || image::is_defined(c"POOL_SEED") {
        return Vec::new();
    }
    let unassigned = tree.unassigned().is_some();
    let facts = facts(main);
    let proxies = facts.iter().any(|(_, f)| f.proxies && (f.assigns || unassigned));
    let backends = facts.iter().any(|(_, f)| f.backends && (f.assigns || unassigned));
    let ends =
        |module: &str| STAYS.contains(&module) && if WITH_BACKENDS.contains(&module) { backends } else { proxies };
    let all = hooks::translate_name.modules();
    let Some(last) = all.iter().rposition(|m| ends(m)) else { return Vec::new() };
    let mut errors = Vec::new();
    for module in &all[..last] {
        let name = module.as_str();
        let known = [&STAYS[..], &ASKED, &MAPS_NOTHING, &OURS].iter().any(|list| list.contains(&name))
            || tree.module_role(name).is_some();
        let directive = BY_DIRECTIVE.iter().find(|(m, _)| *m == name).map(|(_, directive)| *directive);
        let at = directive.and_then(|d| conftree::find(&[d]));
        if known || (directive.is_some() && at.is_none()) {
            continue;
        }
        let what = match at {
            Some(at) => format!("{} {} at {}", at.name, at.value, at.place),
            None => format!("the translate_name function of {name}"),
        };
        let text = format!(
            "{what}: comes before ProxyPass and RewriteRule with [P] in httpd, and the frontends do not know what it does: \
             what it refuses, these would let through; say PoolModuleRole {name} frontend, and it is asked there, or PoolModuleRole \
             {name} worker, and it is not asked about what ProxyPass maps"
        );
        if !errors.contains(&text) {
            errors.push(text);
        }
    }
    errors
}

impl<'r> RequestRec<'r> {
    /// The request that a subrequest of a subrequest belongs to in the end.
    fn top(self) -> RequestRec<'r> {
        let mut at = self.as_ptr();
        loop {
            // SAFETY: the chain of a live request: each lives longer than its subrequests.
            let above = unsafe { (*at).main };
            if above.is_null() {
                // SAFETY: as before; this thread has them all.
                return unsafe { RequestRec::from_raw(at) };
            }
            at = above;
        }
    }
}
