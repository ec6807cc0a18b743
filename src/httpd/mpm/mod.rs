//! httpd as its MPM sees it: the MPM's own hooks, retained data, listeners, scoreboard, connections, threads.
//!
//! Runs in: parent and frontend, where mod_pool is the MPM.  Trusts: httpd.  Owns: the MPM's settings.
//! Never: knows a role, decides a policy.

pub mod connection;
pub mod listen;
pub mod modules;
pub mod process;
pub mod retained;
pub mod score;
pub mod threads;
pub mod transaction;

use super::command::{Command, Handled, Refused};
use super::image;
use super::log::{self, Level};
use crate::apr::pool::bytes;
use crate::ffi;
use crate::settings::{MpmLimits, MpmSettings, ScoreboardSize};
use once_cell::sync::OnceCell;
use std::ffi::{c_char, c_int, CStr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What `apache2 -V` shows.
pub const NAME: &CStr = c"pool";

static IS_OURS: AtomicBool = AtomicBool::new(false);
static SETTINGS: Mutex<Option<MpmSettings>> = Mutex::new(None);
static FITTED: Mutex<Option<MpmLimits>> = Mutex::new(None);
static SCOREBOARD: OnceCell<ScoreboardSize> = OnceCell::new();

/// While httpd loads this module: without an MPM that was loaded before, this module is it. Returns whether it is.
pub fn adopt() -> bool {
    let ours = loaded_mpm().is_empty();
    IS_OURS.store(ours, Ordering::Relaxed);
    ours
}

/// mod_pool is the MPM of this httpd.
pub fn is_ours() -> bool {
    IS_OURS.load(Ordering::Relaxed)
}

/// The name of the MPM that has registered itself; empty if none has.
pub fn loaded_mpm() -> String {
    // SAFETY: asks the hook's functions, each of which returns null or a string constant.
    String::from_utf8_lossy(unsafe { bytes(ffi::ap_show_mpm()) }).into_owned()
}

fn lock<T>(mutex: &'static Mutex<T>) -> MutexGuard<'static, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A configuration is about to be read: everything is at its default again.
pub fn reset_settings() {
    *lock(&SETTINGS) = Some(MpmSettings::default());
    // SAFETY: httpd's main thread, which alone reads the configuration; both only write defaults of httpd's own.
    unsafe {
        ffi::ap_listen_pre_config();
        ffi::ap_extended_status = 0;
    }
}

/// The settings are complete: fits them, and tells what was changed.
pub fn fit_settings() {
    let settings = lock(&SETTINGS).unwrap_or_default();
    let (fitted, told) = settings.fit(SCOREBOARD.get().copied());
    let _ = SCOREBOARD.set(fitted.scoreboard());
    *lock(&FITTED) = Some(fitted);
    for text in told {
        if image::is_dry_pass() {
            log::startup(Level::Warning, text);
        } else if retained::loads() > 2 {
            log::main_server(Level::Warning, format!("POOL201: {text}"));
        }
    }
}

/// The settings in force; defaults before [`fit_settings`].
pub fn limits() -> MpmLimits {
    lock(&FITTED).unwrap_or_else(|| MpmSettings::default().fit(None).0)
}

/// `-X`, `-D ONE_PROCESS` or `-D DEBUG`: one frontend, in the parent's own process.
pub fn is_one_process() -> bool {
    image::is_defined(c"ONE_PROCESS") || image::is_defined(c"DEBUG")
}

/// Whether a module other than this one has the directive.
fn has_other_owner(directive: &CStr) -> bool {
    // SAFETY: httpd's list of modules; it changes only between two readings of the configuration.
    let mut at = unsafe { ffi::ap_top_module };
    // SAFETY: null or a live module record.
    while let Some(module) = unsafe { at.as_ref() } {
        // SAFETY: a module's commands are null or a table that a null name ends; the name is NUL-terminated.
        let found =
            !module.cmds.is_null() && unsafe { !ffi::ap_find_command(directive.as_ptr(), module.cmds).is_null() };
        // SAFETY: the name of a module is static data of it.
        if found && unsafe { bytes(module.name) } != b"mod_pool.c" {
            return true;
        }
        at = module.next;
    }
    false
}

/// A directive that every MPM has: ours, if mod_pool is the MPM; else another module's, or unknown.
fn if_ours(command: &Command<'_>) -> Result<(), Refused> {
    if is_ours() {
        return Ok(());
    }
    let name = std::ffi::CString::new(command.name()).unwrap_or_default();
    if has_other_owner(&name) {
        return Err(Refused::ByHttpd(ffi::DECLINE_CMD.as_ptr().cast()));
    }
    Err(format!(
        "Invalid command '{}', perhaps misspelled or defined by a module not included in the server configuration",
        command.name()
    )
    .into())
}

/// `StartServers` and the like: one number, in the server config.
pub fn number_directive(command: &Command<'_>, value: &CStr) -> Handled {
    if_ours(command)?;
    command.check_context(ffi::GLOBAL_ONLY)?;
    let (name, value) = (command.name(), value.to_string_lossy());
    let set = lock(&SETTINGS).get_or_insert_with(MpmSettings::default).set(&name, &value);
    set.map_err(|what| Refused::Said(format!("{name} {value}: {what}")))
}

/// A handler of httpd's for one argument.
type HttpdHandler = unsafe extern "C" fn(*mut ffi::cmd_parms, *mut std::ffi::c_void, *const c_char) -> *const c_char;

/// `ListenBacklog` and the like: httpd has a handler for them, which every MPM lists.
pub fn httpd_directive(command: &Command<'_>, value: &CStr) -> Handled {
    if_ours(command)?;
    let handler: HttpdHandler = match command.name().to_ascii_lowercase().as_str() {
        "listenbacklog" => ffi::ap_set_listenbacklog,
        "listencoresbucketsratio" => ffi::ap_set_listencbratio,
        "sendbuffersize" => ffi::ap_set_send_buffer_size,
        "receivebuffersize" => ffi::ap_set_receive_buffer_size,
        "listentcpdeferaccept" => ffi::ap_set_listentcpdeferaccept,
        "gracefulshutdowntimeout" => ffi::ap_mpm_set_graceful_shutdown,
        other => return Err(format!("{other}: mod_pool has no handler for it; report it").into()),
    };
    // SAFETY: the handler gets what httpd gave ours, during its call.
    command.by_httpd(unsafe { handler(command.as_ptr(), std::ptr::null_mut(), value.as_ptr()) })
}

/// `Listen`.
///
/// # Safety
/// `argc` and `argv` are what httpd gave the handler of a TAKE_ARGV directive.
pub unsafe fn listen_directive(command: &Command<'_>, argc: c_int, argv: *const *mut c_char) -> Handled {
    if_ours(command)?;
    // SAFETY: the handler gets what httpd gave ours, during its call.
    command.by_httpd(unsafe { ffi::ap_set_listener(command.as_ptr(), std::ptr::null_mut(), argc, argv) })
}

/// `PoolMPM`.
pub fn pool_mpm_directive(command: &Command<'_>, on: bool) -> Handled {
    let value = if on { "on" } else { "off" };
    if command.in_htaccess() {
        return Err(Refused::InHtaccess(format!(
            "PoolMPM {value}: cannot stand in .htaccess; write it in the server config"
        )));
    }
    if let Some(section) = command.sections().first() {
        return Err(format!(
            "PoolMPM {value}: cannot stand in a {section}> section, as it is about the whole server; move it out"
        )
        .into());
    }
    let other = loaded_mpm();
    match (on, is_ours()) {
        (true, false) => Err(format!(
            "PoolMPM on: the MPM {other} is loaded too, and serves instead of mod_pool; disable it (a2dismod \
             mpm_{other}), or remove its LoadModule line. If a package enabled it, see docs/debian.md"
        )
        .into()),
        (false, true) => Err(
            "PoolMPM off: no other MPM is loaded before pool_module, so that mod_pool is the MPM; load one before it \
             (a2enmod mpm_event), or remove this line"
                .to_owned()
                .into(),
        ),
        _ => Ok(()),
    }
}

/// The answer to `ap_mpm_query`; `None` for what an MPM of this kind does not know. Some are asked for each request:
/// those take no lock.
pub fn answer(code: c_int) -> Option<c_int> {
    let number = |n: u32| c_int::try_from(n).unwrap_or(c_int::MAX);
    Some(match u32::try_from(code).ok()? {
        ffi::AP_MPMQ_MPM_STATE => retained::state(),
        ffi::AP_MPMQ_GENERATION => retained::generation(),
        ffi::AP_MPMQ_IS_THREADED => ffi::AP_MPMQ_STATIC.cast_signed(),
        ffi::AP_MPMQ_IS_FORKED => ffi::AP_MPMQ_DYNAMIC.cast_signed(),
        ffi::AP_MPMQ_IS_ASYNC | CAN_WAITIO => 1,
        ffi::AP_MPMQ_MAX_DAEMON_USED => score::used_slots(),
        ffi::AP_MPMQ_HARD_LIMIT_DAEMONS => number(limits().limits.server_limit),
        ffi::AP_MPMQ_HARD_LIMIT_THREADS => number(limits().thread_limit),
        ffi::AP_MPMQ_MAX_THREADS => number(limits().limits.threads_per_child),
        ffi::AP_MPMQ_MIN_SPARE_DAEMONS | ffi::AP_MPMQ_MAX_SPARE_DAEMONS => 0,
        ffi::AP_MPMQ_MIN_SPARE_THREADS => number(limits().limits.min_spare_threads),
        ffi::AP_MPMQ_MAX_SPARE_THREADS => number(limits().limits.max_spare_threads),
        // SAFETY: reads a variable of httpd's, which changes only while the configuration is read.
        ffi::AP_MPMQ_MAX_REQUESTS_DAEMON => unsafe { ffi::ap_max_requests_per_child },
        ffi::AP_MPMQ_MAX_DAEMONS => number(limits().limits.max_children),
        _ => return None,
    })
}

/// AP_MPMQ_CAN_WAITIO, which the headers of some releases lack (ap_mpm.h).
const CAN_WAITIO: u32 = 19;
