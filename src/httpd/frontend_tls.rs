//! mod_ssl's part for a request of a pool, in the process that has the TLS session.
//!
//! Runs in: frontend; looked up by the parent, before there are threads.  Trusts: mod_ssl.
//! Owns: the list of variables, kept with the connection.  Never: shows a private key (mod_ssl has no variable of it).

use super::{hooks, Connection, RequestRec, ServerRec};
use crate::apr::{AprPool, Table};
use crate::ffi;
use once_cell::sync::OnceCell;
use std::ffi::{c_int, c_void};
use std::ptr;

type RequestHook = unsafe extern "C" fn(*mut ffi::request_rec) -> c_int;

/// mod_ssl's hook functions, and a directory record of its own with every variable switched on.
#[derive(Debug)]
struct ModSsl {
    access_checker: Option<RequestHook>,
    check_user_id: Option<RequestHook>,
    fixups: Option<RequestHook>,
    /// Place of mod_ssl's record in a vector of directory records.
    index: usize,
}

static MOD_SSL: OnceCell<Option<ModSsl>> = OnceCell::new();

fn hook(hook: hooks::Hook) -> Option<RequestHook> {
    // SAFETY: the three hooks asked for take a request and return an int (http_request.h).
    hook.function_of("mod_ssl.c").map(|f| unsafe { std::mem::transmute::<*const c_void, RequestHook>(f) })
}

fn mod_ssl() -> Option<&'static ModSsl> {
    MOD_SSL.get()?.as_ref()
}

/// Looks mod_ssl up. In the child, before it has threads.
pub fn find() {
    MOD_SSL.get_or_init(|| {
        let index = usize::try_from(hooks::module_index(c"mod_ssl.c")).ok()?;
        Some(ModSsl {
            access_checker: hook(hooks::access_checker),
            check_user_id: hook(hooks::check_user_id),
            fixups: hook(hooks::fixups),
            index,
        })
    });
}

/// What virtual host and Location demand of the TLS session: `SSLRequireSSL`, `SSLRequire`, `SSLVerifyClient` (which
/// may ask the client for its certificate), and `FakeBasicAuth`. An HTTP status is a refusal.
pub fn check_access(r: RequestRec<'_>) -> Result<(), i32> {
    let Some(ssl) = mod_ssl() else { return Ok(()) };
    if let Some(check) = ssl.access_checker {
        // SAFETY: a live request on this thread, at a point where httpd too may call it: after the Location walk.
        let answer = unsafe { check(r.as_ptr()) };
        if answer != ffi::HOOK_OK && answer != ffi::HOOK_DECLINED {
            return Err(answer);
        }
    }
    if let Some(check) = ssl.check_user_id {
        // SAFETY: as above. It sets the Authorization field where FakeBasicAuth says so.
        let answer = unsafe { check(r.as_ptr()) };
        if answer != ffi::HOOK_OK && answer != ffi::HOOK_DECLINED {
            return Err(answer);
        }
    }
    Ok(())
}

/// What is kept with a connection.
#[derive(Debug)]
pub(super) struct Kept {
    /// SSL_CLIENT_VERIFY and SSL_CLIENT_M_SERIAL when the list was made: they change with a new handshake.
    client: (Vec<u8>, Vec<u8>),
    list: Vec<u8>,
}

/// The variables `HTTPS` and `SSL_*`, in the form that `encode` gives them; `None` for a connection without TLS.
pub fn variables<'r>(r: RequestRec<'r>, encode: impl Fn(Table<'r>) -> Vec<u8>) -> Option<&'r [u8]> {
    let ssl = mod_ssl()?;
    // SAFETY: a live request has a live connection.
    if unsafe { ffi::ap_ssl_conn_is_ssl(r.connection_ptr()) } == 0 {
        return None;
    }
    let client = (lookup(r, c"SSL_CLIENT_VERIFY"), lookup(r, c"SSL_CLIENT_M_SERIAL"));
    // An HTTP/2 connection's streams run on several threads: what they share is not written by any of them.
    let Some(connection) = Connection::of(r) else {
        return Some(&r.pool().place(Kept { client, list: encode(make_table(ssl, r)) }).list);
    };
    let state = connection.state();
    // SAFETY: put there below; it lives in the connection's pool, longer than the request.
    if let Some(kept) = state.tls.get().map(|kept| unsafe { kept.as_ref() }).filter(|kept| kept.client == client) {
        return Some(&kept.list);
    }
    let kept = connection.pool().place(Kept { client, list: encode(make_table(ssl, r)) });
    state.tls.set(Some(kept.into()));
    Some(&kept.list)
}

fn lookup(r: RequestRec<'_>, name: &std::ffi::CStr) -> Vec<u8> {
    // SAFETY: a live request and its connection; the answer is null or a string in the request's pool.
    unsafe {
        let rec = r.as_ptr();
        let value = ffi::ap_ssl_var_lookup((*rec).pool, (*rec).server, (*rec).connection, rec, name.as_ptr());
        crate::apr::pool::bytes(value).to_vec()
    }
}

/// Lets mod_ssl's own fixups fill an empty environment, with `SSLOptions +StdEnvVars +ExportCertData` in force.
fn make_table<'r>(ssl: &ModSsl, r: RequestRec<'r>) -> Table<'r> {
    let env = Table::new(r.pool(), 64);
    let record = RECORD.get().map(|address| ptr::with_exposed_provenance_mut::<c_void>(*address));
    if let (Some(fixups), Some(record)) = (ssl.fixups, record) {
        let rec = r.as_ptr();
        // SAFETY: directory records are a vector with one pointer for each module (http_config.h); a copy of it with
        // one other pointer is what httpd makes for each directory too. Both fields are put back; the functions that
        // run meanwhile are mod_ssl's on this thread.
        unsafe {
            let n = usize::try_from(ffi::pool_shim_total_modules()).unwrap_or(0);
            let vector = (*rec).per_dir_config;
            let mut copy: Vec<*mut c_void> = std::slice::from_raw_parts(vector.cast::<*mut c_void>(), n).to_vec();
            if let Some(slot) = copy.get_mut(ssl.index) {
                *slot = record;
                let environment = (*rec).subprocess_env;
                (*rec).per_dir_config = copy.as_mut_ptr().cast();
                (*rec).subprocess_env = env.as_ptr();
                fixups(rec);
                (*rec).per_dir_config = vector;
                (*rec).subprocess_env = environment;
            }
        }
    }
    env
}

/// mod_ssl's directory record with the options set, made by mod_ssl's own functions at start-up: its address.
static RECORD: OnceCell<usize> = OnceCell::new();

/// Makes that record, in a pool that lives as long as the process's configuration. In the child, before it has threads.
pub fn prepare(main: ServerRec<'_>, pool: AprPool<'_>) {
    find();
    // SAFETY: the module list and records of loaded modules; the command function is called as httpd calls it for a
    // RAW_ARGS directive, with a cmd_parms of the same form.
    let record = unsafe { ffi::pool_shim_ssl_options_record(pool.as_ptr(), main.as_ptr()) };
    if !record.is_null() {
        RECORD.get_or_init(|| record.expose_provenance());
    }
}
