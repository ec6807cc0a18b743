//! What hooks tell the MPM of requests and of secondary connections.
//!
//! Runs in: frontend, where mod_pool is the MPM, in the thread that has the connection.  Trusts: httpd.  Owns: nothing.
//! Never: moves a connection on.

use super::connection::{state_of, State};
use crate::ffi;
use crate::httpd::connection::keep_with;
use std::ffi::c_void;
use std::ptr;

unsafe extern "C" fn request_ends(data: *mut c_void) -> ffi::apr_status_t {
    // SAFETY: registered with the connection's state, which outlives the request.
    unsafe { (*data.cast::<State>()).request = ptr::null_mut() };
    0
}

/// A request begins on a connection.
///
/// # Safety
/// As httpd calls pre_read_request.
pub unsafe fn request_begins(r: *mut ffi::request_rec, c: *mut ffi::conn_rec) {
    let state = state_of(c);
    if state.is_null() {
        return;
    }
    // SAFETY: the connection is this thread's; the request's pool ends before the connection's.
    unsafe {
        (*state).request = r;
        (*state).server = ffi::ap_server_conf;
        ffi::apr_pool_cleanup_register((*r).pool, state.cast(), Some(request_ends), Some(ffi::apr_pool_cleanup_null));
    }
}

/// A request's virtual host is known: its timeouts hold. Without a `KeepAliveTimeout` of its own it is that of the
/// first host of the address, as with every MPM.
///
/// # Safety
/// As httpd calls post_read_request.
pub unsafe fn request_is_read(r: *mut ffi::request_rec) {
    // SAFETY: the request and its connection are live, and this thread's.
    unsafe {
        let state = state_of((*r).connection);
        if !state.is_null() {
            let own = (*(*r).server).keep_alive_timeout_set() != 0;
            (*state).server = if own { (*r).server } else { (*(*r).connection).base_server };
        }
    }
}

/// A connection's protocol has changed, and with it the virtual host that it belongs to.
///
/// # Safety
/// As httpd calls protocol_switch.
pub unsafe fn protocol_changes(c: *mut ffi::conn_rec, r: *mut ffi::request_rec, s: *mut ffi::server_rec) {
    let state = state_of(c);
    if r.is_null() && !s.is_null() && !state.is_null() {
        // SAFETY: the connection is this thread's.
        unsafe { (*state).server = s };
    }
}

/// A secondary connection (a stream of HTTP/2) gets a state of its own: modules change what they find.
///
/// # Safety
/// As httpd calls pre_connection.
pub unsafe fn pre_connection(c: *mut ffi::conn_rec) {
    // SAFETY: a live connection of this thread; its master lives longer.
    unsafe {
        let master = (*c).master;
        if master.is_null() || (!(*c).cs.is_null() && (*c).cs != (*master).cs) {
            return;
        }
        let of_master = state_of(master);
        if of_master.is_null() {
            return;
        }
        let mut public: ffi::conn_state_t = std::mem::zeroed();
        public.state = ffi::conn_state_e_CONN_STATE_PROCESSING;
        public.sense = ffi::conn_sense_e_CONN_SENSE_DEFAULT;
        let state = ffi::apr_palloc((*c).pool, size_of::<State>()).cast::<State>();
        state.write(State {
            public,
            c,
            socket: (*of_master).socket,
            sbh: ptr::null_mut(),
            request: ptr::null_mut(),
            began: 0,
            server: (*of_master).server,
            away: false,
            lingering: false,
            suspended: false,
            watched: false,
            token: 0,
            ended: |_, _, _| (),
        });
        (*c).cs = &raw mut (*state).public;
        keep_with(c).mpm.set(state.cast());
    }
}
