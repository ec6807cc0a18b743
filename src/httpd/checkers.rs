//! Access checks of modules that otherwise work in the frontends: mod_fcgid's and mod_wsgi's.
//!
//! Their directives stand in `<Directory>` and `.htaccess`, which only a worker walks. So their checks stay in the
//! worker's hooks (`classes::KEPT_IN_SEED`), and the module starts there when the first request needs it: mod_wsgi's
//! Python in this process, as in a child of stock httpd; mod_fcgid's process manager as a child of this process, in its
//! session, with which it ends. Who has no such directive pays nothing.
//!
//! Runs in: seed (adopts the functions), worker (starts the modules).  Trusts: both modules.
//! Owns: the functions, and the directory of mod_fcgid's sockets.  Never: starts a module that has not been asked for.

use super::{classes, conftree, dispositions, hooks, ServerRec};
use crate::apr::pool::bytes;
use crate::apr::AprPool;
use crate::ffi;
use crate::settings::{ModuleRole, PoolTree};
use crate::sys::{file, heritage, title};
use once_cell::sync::OnceCell;
use std::cell::{OnceCell as Once, RefCell};
use std::ffi::{c_int, c_void, CStr};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr;

/// A module that starts on demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checker {
    Fcgid,
    Wsgi,
}

type PostConfig = unsafe extern "C" fn(
    *mut ffi::apr_pool_t,
    *mut ffi::apr_pool_t,
    *mut ffi::apr_pool_t,
    *mut ffi::server_rec,
) -> c_int;
type ChildInit = unsafe extern "C" fn(*mut ffi::apr_pool_t, *mut ffi::server_rec);

/// How a module starts.
#[derive(Debug, Clone, Copy)]
struct Start {
    post_config: Option<PostConfig>,
    child_init: Option<ChildInit>,
}

static FCGID: OnceCell<Start> = OnceCell::new();
static WSGI: OnceCell<Start> = OnceCell::new();

/// Directives that have mod_wsgi load a script while Python starts.
const IMPORTS: [&[u8]; 3] = [b"WSGIImportScript", b"WSGIScriptAlias", b"WSGIScriptAliasMatch"];

/// What a worker starts modules with.
#[derive(Debug)]
struct Ready {
    life: AprPool<'static>,
    main: ServerRec<'static>,
    fcgid: Once<Result<(), String>>,
    wsgi: Once<Result<(), String>>,
    sockets: RefCell<Option<PathBuf>>,
}

thread_local! {
    static READY: Once<Ready> = const { Once::new() };
}

impl Checker {
    fn module(self) -> &'static str {
        match self {
            Self::Fcgid => "mod_fcgid.c",
            Self::Wsgi => "mod_wsgi.c",
        }
    }

    fn functions(self) -> &'static OnceCell<Start> {
        match self {
            Self::Fcgid => &FCGID,
            Self::Wsgi => &WSGI,
        }
    }
}

/// In a seed, before the frontends' modules are silenced: keeps the functions that start those two.
pub fn adopt(tree: &PoolTree) {
    for checker in [Checker::Fcgid, Checker::Wsgi] {
        let module = checker.module();
        if classes::role(module, tree) != ModuleRole::Frontend {
            continue;
        }
        // mod_wsgi has one more function in this hook, at another place, about what its daemons count.
        let post_config = hooks::post_config.function_at(module, ffi::APR_HOOK_MIDDLE.cast_signed());
        // SAFETY: what is registered in these arrays has these types (http_config.h).
        let start = unsafe {
            Start {
                post_config: post_config.map(|f| std::mem::transmute::<*const c_void, PostConfig>(f)),
                child_init: hooks::child_init
                    .function_of(module)
                    .map(|f| std::mem::transmute::<*const c_void, ChildInit>(f)),
            }
        };
        checker.functions().get_or_init(|| start);
    }
}

/// In a worker, before its first request. `life` ends with the process.
pub fn ready(life: AprPool<'static>, main: ServerRec<'static>) {
    let sockets = RefCell::default();
    READY.with(|ready| {
        ready.get_or_init(|| Ready { life, main, fcgid: Once::new(), wsgi: Once::new(), sockets });
    });
}

/// Starts the module, once in the life of this process. `lease` is hidden from its children. An error is the reason why
/// there is no such module here: the check cannot be made.
pub fn start(checker: Checker, lease: BorrowedFd<'_>) -> Result<(), String> {
    // Of another class it has started with this process, or is not loaded.
    let Some(functions) = checker.functions().get().copied() else { return Ok(()) };
    READY.with(|ready| {
        let Some(ready) = ready.get() else { return Err("this process is no worker".to_owned()) };
        match checker {
            Checker::Fcgid => ready.fcgid.get_or_init(|| ready.fcgid(functions, lease)).clone(),
            Checker::Wsgi => ready.wsgi.get_or_init(|| ready.wsgi(functions)).clone(),
        }
    })
}

/// When the worker has ended all that runs in its pool: removes what it made.
pub fn finish() {
    let sockets = READY.with(|ready| ready.get().and_then(|ready| ready.sockets.borrow_mut().take()));
    if let Some(directory) = sockets {
        let _ = std::fs::remove_dir_all(directory);
    }
}

impl Ready {
    /// Both of httpd's passes, then what its child does.
    fn run(&self, start: Start) -> Result<(), String> {
        let (life, main) = (self.life.as_ptr(), self.main.as_ptr());
        for _ in 0..2 {
            // SAFETY: called as httpd calls it, with pools that live as long as this process, on its one thread.
            let rc = start.post_config.map_or(0, |f| unsafe { f(life, life, life, main) });
            if rc != ffi::HOOK_OK && rc != ffi::HOOK_DECLINED {
                return Err("its start-up failed; the lines before this one say why".to_owned());
            }
        }
        if let Some(child_init) = start.child_init {
            // SAFETY: as above, once.
            unsafe { child_init(life, main) };
        }
        Ok(())
    }

    fn apply(&self, module: &CStr, directive: &CStr, value: &[u8]) -> Result<(), String> {
        // SAFETY: live pool and server, strings that end; the functions are the modules' own for these directives.
        let message = unsafe {
            let (life, main) = (self.life.as_ptr(), self.main.as_ptr());
            let value = self.life.copy(value);
            bytes(ffi::pool_shim_apply_directive(life, main, module.as_ptr(), directive.as_ptr(), value))
        };
        if message.is_empty() {
            Ok(())
        } else {
            Err(format!("{}: {}", directive.to_string_lossy(), String::from_utf8_lossy(message)))
        }
    }

    /// Its directories are `User`'s, so it gets one of its own; its locks are this process's and its manager's alone.
    fn fcgid(&self, start: Start, lease: BorrowedFd<'_>) -> Result<(), String> {
        let directory =
            file::private_directory("mod_pool-fcgid-").map_err(|e| format!("a directory for sockets: {e}"))?;
        *self.sockets.borrow_mut() = Some(directory.clone());
        self.apply(c"mod_fcgid.c", c"FcgidIPCDir", directory.as_os_str().as_bytes())?;
        self.apply(c"mod_fcgid.c", c"FcgidProcessTableFile", directory.join("table").as_os_str().as_bytes())?;
        self.apply(c"core.c", c"Mutex", b"pthread fcgid-pipe fcgid-proctbl")?;
        // Its manager is forked and not executed: it must not hold the other end of what the frontend reads.
        heritage::hide(lease).map_err(|e| e.to_string())?;
        // Set-user-ID programs have no effect here, and the manager would end where they are asked for.
        // SAFETY: httpd's record, written on this process's one thread.
        unsafe { ffi::ap_unixd_config.suexec_enabled = 0 };
        title::during("mod_pool: process manager of mod_fcgid", || self.run(start))
    }

    fn wsgi(&self, start: Start) -> Result<(), String> {
        if let Some(line) = script_of_all() {
            return Err(format!(
                "{line} is loaded into every process with Python, and so would be into those of every pool; give it a \
                 process-group"
            ));
        }
        // With a scoreboard mod_wsgi starts the daemons of the whole server; without one it leaves that for later.
        // SAFETY: httpd's variable, on this process's one thread; put back below.
        let scoreboard = unsafe { ffi::ap_scoreboard_image };
        // SAFETY: as above.
        unsafe { ffi::ap_scoreboard_image = ptr::null_mut() };
        let result = self.run(start);
        // SAFETY: as above.
        unsafe { ffi::ap_scoreboard_image = scoreboard };
        result
    }
}

/// A directive that has mod_wsgi load a script outside of its daemons.
fn script_of_all() -> Option<String> {
    let mut found = None;
    conftree::each_directive(|name, arguments| {
        let words = || arguments.split(u8::is_ascii_whitespace).map(|w| w.strip_prefix(b"\"").unwrap_or(w));
        let group = words().find_map(|word| word.strip_prefix(b"process-group="));
        let embedded = group.is_some_and(|g| matches!(g.strip_suffix(b"\"").unwrap_or(g), b"" | b"%{GLOBAL}"));
        if found.is_none() && embedded && IMPORTS.iter().any(|n| n.eq_ignore_ascii_case(name)) {
            found = Some(format!("{} {}", String::from_utf8_lossy(name), String::from_utf8_lossy(arguments)));
        }
    });
    found
}

/// What mod_wsgi has registered for `AuthBasicProvider wsgi`, `AuthDigestProvider wsgi` and `Require wsgi-group`, before
/// [`stand_in`] took the names.
#[derive(Clone, Copy, Default)]
pub struct Providers {
    pub authn: Option<&'static ffi::authn_provider>,
    pub authz: Option<&'static ffi::authz_provider>,
}

impl std::fmt::Debug for Providers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Providers {{ authn: {}, authz: {} }}", self.authn.is_some(), self.authz.is_some())
    }
}

static PROVIDERS: OnceCell<Providers> = OnceCell::new();

/// In a seed, before directives are handled: gives mod_wsgi's names to records that start it first.
pub fn stand_in(pconf: AprPool<'_>, authn: &'static ffi::authn_provider, authz: &'static ffi::authz_provider) {
    const AUTHN: &CStr = c"authn";
    const AUTHZ: &CStr = c"authz";
    if hooks::module_index(c"mod_wsgi.c") < 0 {
        return;
    }
    let found = Providers {
        // SAFETY: records of these groups have these types, and live as long as their module.
        authn: dispositions::lookup_provider(AUTHN, c"wsgi").map(|p| unsafe { &*p.cast() }),
        // SAFETY: as above.
        authz: dispositions::lookup_provider(AUTHZ, c"wsgi-group").map(|p| unsafe { &*p.cast() }),
    };
    PROVIDERS.get_or_init(|| found);
    let records: [(&CStr, &CStr, *const c_void, bool); 2] = [
        (AUTHN, c"wsgi", ptr::from_ref(authn).cast(), found.authn.is_some()),
        (AUTHZ, c"wsgi-group", ptr::from_ref(authz).cast(), found.authz.is_some()),
    ];
    for (group, name, record, _) in records.into_iter().filter(|(.., there)| *there) {
        // SAFETY: names and records are static; a provider registered again replaces the first.
        unsafe {
            let version = c"0".as_ptr();
            ffi::ap_register_provider(pconf.as_ptr(), group.as_ptr(), name.as_ptr(), version, record);
        }
    }
}

/// mod_wsgi's own.
pub fn providers() -> Providers {
    PROVIDERS.get().copied().unwrap_or_default()
}
