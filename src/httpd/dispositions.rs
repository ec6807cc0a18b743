//! What becomes of each hook of a frontend module for a request that a pool serves.
//!
//! httpd would run these hooks between translate_name and the end of the response. In the frontend that request leaves
//! httpd's order in translate_name, and in the worker the module is silenced (`classes`). So each hook needs a decision;
//! one that decides over access and has none is refused when the configuration is checked.
//!
//! Runs in: parent and seed, when the configuration is checked.  Trusts: httpd's hook arrays.  Owns: the table.
//! Never: lets a check pass that nobody makes.

use super::{classes, hooks};
use crate::apr::pool::bytes;
use crate::ffi;
use crate::settings::{Findings, ModuleRole, PoolTree};
use crate::sys::image;
use std::ffi::{c_void, CStr, CString};
use std::path::PathBuf;
use std::ptr;

/// Who makes up for a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// The frontend calls it, or httpd does there in any case.
    Frontend,
    /// It runs in the worker, or this module's own function does in its place.
    Worker,
    /// A request that needs it is refused with an error, and the log says why.
    Refused,
    /// It does nothing for a pool's request, and docs/pitfalls.md says so.
    Documented,
    /// The same, and whoever loads the module is told when the configuration is checked.
    Lost,
}

use Disposition::{Documented, Frontend, Lost, Worker};

/// Module, hook, decision. Handlers are in `classes::SERVED_BY`: they are refused. `authn_provider` and `authz_provider`
/// stand for what a module has registered for `AuthBasicProvider` and the like, and for `Require`.
const TABLE: &[(&str, &str, Disposition)] = &[
    // `frontend_tls::check_access`, and `worker::access_checker` for <Directory> and .htaccess.
    ("mod_ssl.c", "access_checker", Worker),
    ("mod_ssl.c", "check_user_id", Frontend),
    // SSLOptions +StrictRequire: `classes::KEPT_IN_SEED`.
    ("mod_ssl.c", "auth_checker", Worker),
    // `frontend_tls::variables`, `worker::export_variables`.
    ("mod_ssl.c", "fixups", Worker),
    ("mod_ssl.c", "expr_lookup", Worker),
    ("mod_ssl.c", "authz_provider", Worker),
    // `hand_over`; `worker::export_http2`.
    ("mod_http2.c", "fixups", Frontend),
    ("mod_logio.c", "insert_filter", Frontend),
    // `classes::KEPT_IN_SEED` and `checkers`.
    ("mod_fcgid.c", "access_checker", Worker),
    ("mod_fcgid.c", "check_user_id", Worker),
    ("mod_fcgid.c", "auth_checker", Worker),
    ("mod_wsgi.c", "access_checker", Worker),
    ("mod_wsgi.c", "authn_provider", Worker),
    ("mod_wsgi.c", "authz_provider", Worker),
    // `mapping`.
    ("mod_wsgi.c", "translate_name", Frontend),
    ("mod_jk.c", "translate_name", Frontend),
    // It keeps the core from looking for a file of what it has mapped.
    ("mod_jk.c", "map_to_storage", Frontend),
    ("mod_upload_progress.c", "fixups", Lost),
    ("mod_upload_progress.c", "handler", Lost),
    ("mod_passenger.c", "map_to_storage", Lost),
    ("mod_passenger.c", "fixups", Lost),
    ("mod_passenger.c", "handler", Lost),
    ("mod_cache.c", "handler", Documented),
    ("mod_cache.c", "insert_error_filter", Documented),
    // It reads the variables of its own health checks, which are made in httpd's own processes.
    ("mod_proxy_hcheck.c", "expr_lookup", Frontend),
];

/// Modules beside which no pool works, and why.
const NEVER: &[(&str, &str)] = &[(
    "mpm_itk.c",
    "under it a frontend becomes another user before it serves, and cannot reach pools; do not load it: <ServerPool> and \
     AssignServerPool take the place of AssignUserID",
)];

/// The hooks that need a decision. Those before translate_name, and log_transaction, httpd runs in the frontend.
const HOOKS: &[hooks::Hook] = &[
    hooks::translate_name,
    hooks::map_to_storage,
    hooks::header_parser,
    hooks::access_checker,
    hooks::access_checker_ex,
    hooks::check_user_id,
    hooks::note_auth_failure,
    hooks::auth_checker,
    hooks::type_checker,
    hooks::fixups,
    hooks::insert_filter,
    hooks::insert_error_filter,
    hooks::handler,
    hooks::expr_lookup,
];

/// Those of them that decide over access.
pub const CHECKS: &[&str] = &["access_checker", "access_checker_ex", "check_user_id", "auth_checker"];

/// Groups and versions of providers that decide over access, and their row's name in the table.
const PROVIDERS: &[(&CStr, &str)] = &[(c"authn", "authn_provider"), (c"authz", "authz_provider")];

fn disposition(module: &str, hook: &str) -> Option<Disposition> {
    let row = TABLE.iter().find(|(m, h, _)| *m == module && *h == hook);
    row.map(|(.., disposition)| *disposition)
        .or_else(|| (hook == "handler" && classes::serves_in_frontends(module)).then_some(Disposition::Refused))
}

/// What frontend modules would have done for a pool's requests, and nobody does.
pub fn check(tree: &PoolTree) -> Findings {
    let mut findings = Findings::default();
    if tree.is_empty() {
        return findings;
    }
    let modules = hooks::loaded_modules();
    let never = NEVER.iter().filter(|(module, _)| modules.iter().any(|m| m == module));
    findings.errors.extend(never.map(|(module, why)| format!("{module}: {why}")));
    let lost = |module: &String| classes::role(module, tree) == ModuleRole::Frontend;
    let providers = providers();
    for module in modules.iter().filter(|m| lost(m)) {
        let of_module = |hook: &&hooks::Hook| hook.modules().iter().any(|m| m == module);
        let undecided = |hook: &&str| matches!(disposition(module, hook), None | Some(Lost));
        let mut names: Vec<&str> = HOOKS.iter().filter(of_module).map(|h| h.name).filter(undecided).collect();
        let file = file_of_module(module);
        let own = providers.iter().filter(|(code, ..)| file.is_some() && *code == file);
        names.extend(own.map(|(_, kind, _)| *kind).filter(undecided));
        names.dedup();
        let (checks, others): (Vec<&str>, Vec<&str>) =
            names.into_iter().partition(|n| CHECKS.contains(n) || PROVIDERS.iter().any(|(_, kind)| kind == n));
        if !checks.is_empty() {
            findings.errors.push(format!(
                "PoolModuleRole {module} frontend: this module decides over access ({}), and nothing of it would run for \
                 requests that a server pool serves; write PoolModuleRole {module} worker, or do not load it",
                checks.join(", ")
            ));
        }
        if !others.is_empty() && tree.module_role(module).is_none() {
            findings.warnings.push(format!(
                "{module} works in the frontends only: its hooks {} do not run for requests that a server pool serves",
                others.join(", ")
            ));
        } else if !others.is_empty() {
            findings.warnings.push(format!(
                "PoolModuleRole {module} frontend: its hooks {} do not run for requests that a server pool serves; \
                 write PoolModuleRole {module} worker if they are to",
                others.join(", ")
            ));
        }
    }
    findings
}

fn record_of(module: &str) -> Option<*mut ffi::module> {
    let name = CString::new(module).ok()?;
    // SAFETY: the name is NUL-terminated; the answer is null or a live module record.
    let record = unsafe { ffi::ap_find_linked_module(name.as_ptr()) };
    (!record.is_null()).then_some(record)
}

/// The shared object that a module came from; `None` for one that is linked into httpd, with which it shares it.
fn file_of_module(module: &str) -> Option<PathBuf> {
    let file = image::file_of(record_of(module)?.addr())?;
    (Some(&file) != record_of("core.c").and_then(|core| image::file_of(core.addr())).as_ref()).then_some(file)
}

/// Every provider that decides over access: the shared object of its code, its kind, its name.
fn providers() -> Vec<(Option<PathBuf>, &'static str, String)> {
    let mut found = Vec::new();
    for (group, kind) in PROVIDERS {
        for name in names_of_providers(group) {
            let Ok(text) = CString::new(name.clone()) else { continue };
            let provider = lookup_provider(group, &text);
            if let Some(provider) = provider {
                // SAFETY: both kinds of record begin with two pointers to functions (mod_auth.h).
                let functions = unsafe { std::slice::from_raw_parts(provider.cast::<*const c_void>(), 2) };
                let code = functions.iter().find(|f| !f.is_null()).and_then(|f| image::file_of(f.addr()));
                found.push((code, *kind, String::from_utf8_lossy(&name).into_owned()));
            }
        }
    }
    found
}

/// The provider of this name; version 0 is the only one there is.
pub fn lookup_provider(group: &CStr, name: &CStr) -> Option<*const c_void> {
    // SAFETY: three strings; the answer is null or what a module has registered.
    let provider = unsafe { ffi::ap_lookup_provider(group.as_ptr(), name.as_ptr(), c"0".as_ptr()) };
    (!provider.is_null()).then_some(provider.cast_const())
}

fn names_of_providers(group: &CStr) -> Vec<Vec<u8>> {
    let mut pool = ptr::null_mut();
    // SAFETY: a pool for the list alone, destroyed below; out of memory ends the process.
    unsafe { ffi::apr_pool_create_ex(&raw mut pool, ptr::null_mut(), None, ptr::null_mut()) };
    // SAFETY: a live pool and two strings; the array has entries of this type.
    let names = unsafe {
        let array = &*ffi::ap_list_provider_names(pool, group.as_ptr(), c"0".as_ptr());
        let n = usize::try_from(array.nelts).unwrap_or(0);
        let entry = |i| array.elts.cast::<ffi::ap_list_provider_names_t>().add(i).read();
        (0..n).map(|i| bytes(entry(i).provider_name).to_vec()).collect()
    };
    // SAFETY: made above, and nothing of it is used any more.
    unsafe { ffi::apr_pool_destroy(pool) };
    names
}
