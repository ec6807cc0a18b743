//! httpd's hook arrays: who is registered, calling one module's function, taking entries out.
//!
//! Runs in: every process httpd is in; changes only while it is single-threaded.  Trusts: httpd's hook layout, which
//! is one for all hooks (apr_hooks.h, `ns##_LINK_##name##_t`).  Owns: nothing.
//! Never: changes an array before the last sort of hooks (`check_config` is after it).

use super::RequestRec;
use crate::apr::pool::bytes;
use crate::ffi;
use std::ffi::{c_char, c_int, c_void, CString};

/// What every `ap_LINK_*_t` looks like.
#[repr(C)]
#[derive(Clone, Copy)]
struct Entry {
    function: *const c_void,
    module: *const c_char,
    predecessors: *const c_void,
    successors: *const c_void,
    order: c_int,
}

/// A function of a hook that passes a request and nothing else.
pub type OfRequest = unsafe extern "C" fn(*mut ffi::request_rec) -> c_int;

type Getter = unsafe extern "C" fn() -> *mut ffi::apr_array_header_t;

/// A hook, by name.
#[derive(Clone, Copy)]
pub struct Hook {
    pub name: &'static str,
    get: Getter,
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

macro_rules! hooks {
    ($($name:ident = $get:ident;)*) => {
        $(#[allow(non_upper_case_globals)]
        pub const $name: Hook = Hook { name: stringify!($name), get: ffi::$get };)*

        /// Every hook that a module may be taken out of.
        pub const ALL: &[Hook] = &[$($name),*];
    };
}

hooks! {
    open_logs = ap_hook_get_open_logs;
    post_config = ap_hook_get_post_config;
    optional_fn_retrieve = ap_hook_get_optional_fn_retrieve;
    child_init = ap_hook_get_child_init;
    pre_mpm = ap_hook_get_pre_mpm;
    monitor = ap_hook_get_monitor;
    create_connection = ap_hook_get_create_connection;
    pre_connection = ap_hook_get_pre_connection;
    process_connection = ap_hook_get_process_connection;
    protocol_propose = ap_hook_get_protocol_propose;
    protocol_switch = ap_hook_get_protocol_switch;
    protocol_get = ap_hook_get_protocol_get;
    create_request = ap_hook_get_create_request;
    pre_read_request = ap_hook_get_pre_read_request;
    post_read_request = ap_hook_get_post_read_request;
    pre_translate_name = ap_hook_get_pre_translate_name;
    quick_handler = ap_hook_get_quick_handler;
    translate_name = ap_hook_get_translate_name;
    map_to_storage = ap_hook_get_map_to_storage;
    header_parser = ap_hook_get_header_parser;
    access_checker = ap_hook_get_access_checker;
    access_checker_ex = ap_hook_get_access_checker_ex;
    check_user_id = ap_hook_get_check_user_id;
    note_auth_failure = ap_hook_get_note_auth_failure;
    auth_checker = ap_hook_get_auth_checker;
    type_checker = ap_hook_get_type_checker;
    fixups = ap_hook_get_fixups;
    insert_filter = ap_hook_get_insert_filter;
    insert_error_filter = ap_hook_get_insert_error_filter;
    handler = ap_hook_get_handler;
    log_transaction = ap_hook_get_log_transaction;
    error_log = ap_hook_get_error_log;
    http_scheme = ap_hook_get_http_scheme;
    default_port = ap_hook_get_default_port;
    child_status = ap_hook_get_child_status;
    generate_log_id = ap_hook_get_generate_log_id;
    ssl_conn_is_ssl = ap_hook_get_ssl_conn_is_ssl;
    ssl_var_lookup = ap_hook_get_ssl_var_lookup;
    ssl_bind_outgoing = ap_hook_get_ssl_bind_outgoing;
    expr_lookup = ap_hook_get_expr_lookup;
}

impl Hook {
    /// The array's header; `None` while nobody is registered.
    fn array(self) -> Option<*mut ffi::apr_array_header_t> {
        // SAFETY: the getters take nothing and return the array or null.
        let array = unsafe { (self.get)() };
        (!array.is_null()).then_some(array)
    }

    fn entries(self) -> Vec<Entry> {
        let Some(array) = self.array() else { return Vec::new() };
        // SAFETY: httpd's array, live; single-threaded change is this file's rule.
        let head = unsafe { &*array };
        let n = usize::try_from(head.nelts).unwrap_or(0);
        // SAFETY: the array holds nelts entries of the common layout.
        (0..n).map(|i| unsafe { head.elts.cast::<Entry>().add(i).read() }).collect()
    }

    /// Source file names of the modules that are registered, in the order they run.
    pub fn modules(self) -> Vec<String> {
        self.entries().iter().map(module_name).collect()
    }

    /// Modules with their functions, in the order they run.
    pub fn in_order(self) -> Vec<(String, *const c_void)> {
        self.entries().iter().map(|e| (module_name(e), e.function)).collect()
    }

    /// The functions of the modules that are wanted, in the order they run.
    ///
    /// # Safety
    ///
    /// The hook passes a request and nothing else.
    pub unsafe fn of_request(self, wanted: impl Fn(&str) -> bool) -> Vec<OfRequest> {
        let entries = self.entries().into_iter().filter(|e| wanted(&module_name(e)));
        // SAFETY: what is registered in such an array takes a request and returns an int (the contract above).
        entries.map(|e| unsafe { std::mem::transmute::<*const c_void, OfRequest>(e.function) }).collect()
    }

    /// The function that this module registered, if it is there: the first when it registered several.
    pub fn function_of(self, module: &str) -> Option<*const c_void> {
        self.entries().iter().find(|e| module_name(e) == module).map(|e| e.function)
    }

    /// All functions that this module registered, in the order they run.
    pub fn functions_of(self, module: &str) -> Vec<*const c_void> {
        self.entries().iter().filter(|e| module_name(e) == module).map(|e| e.function).collect()
    }

    /// As [`function_of`](Self::function_of), if the module registered it to run at this place.
    pub fn function_at(self, module: &str, order: c_int) -> Option<*const c_void> {
        self.entries().iter().find(|e| module_name(e) == module && e.order == order).map(|e| e.function)
    }

    /// Takes every entry out whose module `keep` does not want; returns how many went.
    ///
    /// Only while httpd is single-threaded, after its last sort, and not from within this same hook.
    pub fn retain(self, keep: impl Fn(&str) -> bool) -> usize {
        let before = self.entries();
        let kept: Vec<Entry> = before.iter().copied().filter(|e| keep(&module_name(e))).collect();
        self.put(&kept);
        before.len() - kept.len()
    }

    /// Has this module's first function run before those of all others, whatever place these have asked for.
    ///
    /// Only while httpd is single-threaded, after its last sort, and not from within this same hook.
    pub fn lead(self, module: &str) {
        let mut entries = self.entries();
        if let Some(at) = entries.iter().position(|e| module_name(e) == module) {
            entries[..=at].rotate_right(1);
            self.put(&entries);
        }
    }

    /// Puts these entries, no more than there are, in the place of what is there.
    fn put(self, entries: &[Entry]) {
        let Some(array) = self.array() else { return };
        // SAFETY: httpd's array, live, and nobody else uses it now (the contract of the callers).
        let head = unsafe { &mut *array };
        for (i, entry) in entries.iter().enumerate() {
            // SAFETY: i is below the number of entries the array holds.
            unsafe { head.elts.cast::<Entry>().add(i).write(*entry) };
        }
        head.nelts = c_int::try_from(entries.len()).unwrap_or(head.nelts);
    }
}

/// Calls all of them, as httpd does: until one refuses.
pub fn run_all(functions: &[OfRequest], r: RequestRec<'_>) {
    for function in functions {
        // SAFETY: a live request on this thread, in place of httpd's call.
        let answer = unsafe { function(r.as_ptr()) };
        if answer != ffi::HOOK_OK && answer != ffi::HOOK_DECLINED {
            break;
        }
    }
}

fn module_name(entry: &Entry) -> String {
    // SAFETY: szName is null or the name in a module record, which is static data of a loaded module.
    String::from_utf8_lossy(unsafe { bytes(entry.module) }).into_owned()
}

/// Takes a module out of every hook but those in `except`.
pub fn silence(module: &str, except: &[&str]) {
    for hook in ALL {
        if !except.contains(&hook.name) {
            hook.retain(|m| m != module);
        }
    }
}

/// Source file names of all modules that are loaded (`mod_php.c`).
pub fn loaded_modules() -> Vec<String> {
    let mut names = Vec::new();
    // SAFETY: httpd's list of modules, terminated by null; it changes only while the configuration is read.
    let mut at = unsafe { ffi::ap_top_module };
    while !at.is_null() {
        // SAFETY: not null, so a live module record.
        let record = unsafe { &*at };
        // SAFETY: the name of a module is static data of it.
        names.push(String::from_utf8_lossy(unsafe { bytes(record.name) }).into_owned());
        at = record.next;
    }
    names
}

/// Index of a loaded module, for its log level; -1 when it is not loaded.
pub fn module_index(name: &std::ffi::CStr) -> i32 {
    // SAFETY: the name is NUL-terminated; the answer is null or a live module record.
    let module = unsafe { ffi::ap_find_linked_module(name.as_ptr()) };
    // A seed may have loaded the one beside the other.
    if module.is_null() && name == c"mod_cgi.c" {
        return module_index(c"mod_cgid.c");
    }
    if module.is_null() {
        return -1;
    }
    // SAFETY: not null, so a live module record.
    unsafe { (*module).module_index }
}

/// As [`module_index`], for a module's source file or its short name in the error log; -1 when there is none.
pub fn module_index_of(name: &[u8]) -> i32 {
    let files: [(&[u8], &[u8]); 3] = [(b"", b""), (b"mod_", b".c"), (b"", b".c")];
    let index = |(front, back): (&[u8], &[u8])| CString::new([front, name, back].concat()).map(|f| module_index(&f));
    files.into_iter().filter_map(|ends| index(ends).ok()).find(|i| *i >= 0).unwrap_or(-1)
}
