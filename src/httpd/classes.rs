//! Which modules work in a frontend and which in a pool's processes.
//!
//! Runs in: seed (takes frontend modules out), parent (takes PHP out of threaded frontends).  Trusts: nothing.
//! Owns: the written list of classes.  Never: runs while threads exist.

use super::{config, dispositions, hooks, RequestRec};
use crate::settings::{ModuleRole, PoolTree};
use once_cell::sync::OnceCell;

/// Modules whose work belongs to the client's connection or to the whole server. A module that is not listed works in
/// the pools' processes; `PoolModuleRole` overrides.
const FRONTEND: &[&str] = &[
    // MPMs
    "event.c",
    "worker.c",
    "prefork.c",
    // the client's connection
    "mod_ssl.c",
    "mod_tls.c",
    "mod_gnutls.c",
    "mod_nss.c",
    "mod_md.c",
    "mod_http2.c",
    "mod_reqtimeout.c",
    "mod_remoteip.c",
    // logs, scoreboard, service manager
    "mod_log_config.c",
    "mod_log_forensic.c",
    "mod_log_slow.c",
    "mod_log_sql.c",
    "mod_log_sql_dbi.c",
    "mod_log_sql_mysql.c",
    "mod_log_sql_ssl.c",
    "mod_logio.c",
    "mod_systemd.c",
    "mod_dnssd.c",
    "mod_status.c",
    "mod_unique_id.c",
    "mod_heartbeat.c",
    "mod_heartmonitor.c",
    "mod_watchdog.c",
    // shared memory and daemons of the whole server
    "mod_proxy_balancer.c",
    "mod_proxy_hcheck.c",
    "mod_lbmethod_heartbeat.c",
    "mod_slotmem_shm.c",
    "mod_socache_shmcb.c",
    "mod_fcgid.c",
    "mod_cgid.c",
    "mod_wsgi.c",
    "mod_jk.c",
    "mod_mono.c",
    "mod_passenger.c",
    "mod_upload_progress.c",
    "mod_cache.c",
];

/// Modules that serve both: they keep their hooks everywhere.
const BOTH: &[&str] = &["core.c", "http_core.c", "mod_so.c", "mod_unixd.c", "mod_pool.c"];

/// Workers die of a request where these have another class.
const IN_EVERY_PROCESS: &[&str] = &["core.c", "http_core.c", "mod_pool.c"];
const IN_FRONTENDS_ONLY: &[&str] = &["event.c", "worker.c", "prefork.c", "mod_log_config.c"];

/// The class that no `PoolModuleRole` can change.
pub fn fixed_role(module: &str) -> Option<ModuleRole> {
    if IN_EVERY_PROCESS.contains(&module) {
        Some(ModuleRole::Both)
    } else if IN_FRONTENDS_ONLY.contains(&module) {
        Some(ModuleRole::Frontend)
    } else {
        None
    }
}

/// The class of a module, by its source file name.
pub fn role(module: &str, tree: &PoolTree) -> ModuleRole {
    tree.module_role(module).unwrap_or(if BOTH.contains(&module) {
        ModuleRole::Both
    } else if FRONTEND.contains(&module) {
        ModuleRole::Frontend
    } else {
        ModuleRole::Worker
    })
}

/// In a seed: takes every frontend module out of every hook, but for `KEPT_IN_SEED` and the checks.
pub fn silence_frontend_modules(tree: &PoolTree) {
    silence(tree, dispositions::CHECKS);
}

/// When the modules have started: takes every frontend module out of the checks, too. The core counts these hooks at its
/// start (`ap_setup_auth_internal`): where more are registered than those that declare that their answer hangs on the
/// configuration alone, it asks again for each redirect and subrequest. With fewer it would skip checks that stock httpd makes.
pub fn silence_checks_of_frontends(tree: &PoolTree) {
    silence(tree, &[]);
}

fn silence(tree: &PoolTree, not_yet: &[&'static str]) {
    for module in hooks::loaded_modules() {
        if role(&module, tree) == ModuleRole::Frontend {
            let kept = KEPT_IN_SEED.iter().filter(|(m, _)| *m == module).map(|(_, h)| *h);
            let except: Vec<&str> = kept.chain(not_yet.iter().copied()).collect();
            hooks::silence(&module, &except);
        }
    }
}

/// Hooks of modules that work in a pool's process, but have run in the frontend for this request already: what they
/// made of it came with the request (fields, environment). mod_setenvif is not among them: it counts its calls, takes the
/// first for the server's rules, and those do no harm twice.
const DONE_BY_FRONTEND: &[(&str, hooks::Hook)] = &[
    // `RequestHeader ... early`: running again would add a field twice.
    ("mod_headers.c", hooks::post_read_request),
];

/// Hooks that a module of the frontends keeps in a seed: module, hook. mod_ssl's access checker is right for requests
/// without TLS, and the worker asks it for those; its auth_checker asks for a note of the former (`StrictRequire`). The
/// checks of mod_fcgid and mod_wsgi decline where none of their directives applies; where one does, `checkers` starts the
/// module first. The core's network filter asks mod_logio to count the bytes of every connection, those to the backends
/// of mod_proxy too, and it needs its record for that.
const KEPT_IN_SEED: &[(&str, &str)] = &[
    ("mod_ssl.c", "access_checker"),
    ("mod_ssl.c", "auth_checker"),
    ("mod_fcgid.c", "access_checker"),
    ("mod_fcgid.c", "check_user_id"),
    ("mod_fcgid.c", "auth_checker"),
    ("mod_wsgi.c", "access_checker"),
    ("mod_logio.c", "pre_connection"),
];

/// Of modules that work in pools, those whose loggers run in the frontend, too: what phase 1 has begun there ends there.
const LOG_IN_BOTH: &[&str] = &["mod_security2.c"];

/// In a frontend, for a request that a worker has had: the loggers that have not run there.
pub fn run_loggers_of_frontends(r: RequestRec<'_>) {
    static LOGGERS: OnceCell<Vec<hooks::OfRequest>> = OnceCell::new();
    let tree = config::pool_tree(r.server());
    let here = |module: &str| {
        module != "mod_pool.c" && (LOG_IN_BOTH.contains(&module) || role(module, tree) != ModuleRole::Worker)
    };
    // SAFETY: the hook passes a request (http_protocol.h).
    hooks::run_all(LOGGERS.get_or_init(|| unsafe { hooks::log_transaction.of_request(here) }), r);
}

/// In a worker, before its first request: takes out what must not happen twice to a request.
pub fn silence_what_frontends_did() {
    for (module, hook) in DONE_BY_FRONTEND {
        hook.retain(|m| m != *module);
    }
}

/// Handlers, and the modules that serve them. Where these were taken out, httpd would send the script's own text.
const SERVED_BY: &[(&str, &[&str])] = &[
    ("cgi-script", &["mod_cgid.c", "mod_cgi.c"]),
    ("application/x-httpd-cgi", &["mod_cgid.c", "mod_cgi.c"]),
    ("fcgid-script", &["mod_fcgid.c"]),
    ("wsgi-script", &["mod_wsgi.c"]),
    ("wsgi-handler", &["mod_wsgi.c"]),
    ("jakarta-servlet", &["mod_jk.c"]),
    ("mono", &["mod_mono.c"]),
    ("application/x-asp-net", &["mod_mono.c"]),
    ("server-status", &["mod_status.c"]),
    ("balancer-manager", &["mod_proxy_balancer.c"]),
    ("heartbeat", &["mod_heartmonitor.c"]),
    ("http2-status", &["mod_http2.c"]),
    ("md-status", &["mod_md.c"]),
];

/// The module serves handlers that a pool refuses by [`left_to_frontends`].
pub fn serves_in_frontends(module: &str) -> bool {
    SERVED_BY.iter().any(|(_, modules)| modules.contains(&module))
}

/// In a worker: the loaded module that would serve this handler, when it was taken out here and no other serves it.
pub fn left_to_frontends(handler: &[u8]) -> Option<&'static str> {
    let (_, modules) = SERVED_BY.iter().find(|(name, _)| name.as_bytes() == handler)?;
    let serving = hooks::handler.modules();
    if modules.iter().any(|m| serving.iter().any(|s| s == m)) {
        return None;
    }
    let loaded = hooks::loaded_modules();
    modules.iter().copied().find(|m| loaded.iter().any(|l| l == m))
}

/// A handler that is named for a whole location and that a frontend alone has a use for. What the name of a file decides
/// is not known where requests are handed to pools.
pub fn is_for_frontends(handler: &[u8]) -> bool {
    const ALSO: [&[u8]; 2] = [b"server-info", b"ldap-status"];
    let scripts = |name: &str| ["cgi-script", "application/x-httpd-cgi"].contains(&name);
    handler.starts_with(b"proxy:")
        || ALSO.contains(&handler)
        || SERVED_BY.iter().any(|(name, _)| name.as_bytes() == handler && !scripts(name))
}

/// In a worker: the scheme of a backend that mod_proxy cannot speak to from here. TLS is mod_ssl's, which starts in the
/// frontends only; a WebSocket needs the client's own connection.
pub fn unreachable_backend(r: RequestRec<'_>) -> Option<&'static str> {
    unreachable(r, || hooks::handler.modules().iter().any(|m| m == "mod_proxy_balancer.c"))
}

/// In a frontend: the same, of a backend that a worker could not speak to.
pub fn backend_of_frontends(r: RequestRec<'_>, tree: &PoolTree) -> Option<&'static str> {
    unreachable(r, || role("mod_proxy_balancer.c", tree) != ModuleRole::Frontend)
}

fn unreachable(r: RequestRec<'_>, has_balancers: impl Fn() -> bool) -> Option<&'static str> {
    let target = r.filename().strip_prefix(b"proxy:").filter(|_| r.is_proxied())?;
    let socket = target.starts_with(b"unix:").then(|| memchr::memchr(b'|', target)).flatten();
    let url = socket.map_or(target, |at| &target[at + 1..]);
    let scheme = ["https", "wss", "h2", "ws", "balancer"].into_iter().find(|scheme| {
        url.get(..scheme.len()).is_some_and(|s| s.eq_ignore_ascii_case(scheme.as_bytes()))
            && url.get(scheme.len()..).is_some_and(|rest| rest.starts_with(b"://"))
    })?;
    let possible = match scheme {
        // Without a wish to upgrade it is a request like others.
        "ws" => r.headers_in().get(c"Upgrade").is_none(),
        "balancer" => has_balancers(),
        _ => false,
    };
    (!possible).then_some(scheme)
}

/// PHP, which must not run where there are threads.
pub const PHP_MODULES: &[&str] = &["mod_php.c", "mod_php7.c", "mod_php5.c"];

/// In a threaded httpd's parent: PHP neither starts nor serves in the frontends.
pub fn silence_php() {
    for module in PHP_MODULES {
        for hook in [hooks::post_config, hooks::child_init, hooks::handler] {
            hook.retain(|m| m != *module);
        }
    }
}

/// A PHP module is loaded.
pub fn php_is_loaded() -> bool {
    hooks::loaded_modules().iter().any(|m| PHP_MODULES.contains(&m.as_str()))
}

/// A handler name by which PHP is asked for.
pub fn is_php_handler(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 3] = [b"application/x-httpd-php", b"application/x-httpd-php-source", b"php-script"];
    NAMES.contains(&name)
}
