//! A virtual host, or the main server.
//!
//! Runs in: every process httpd is in.  Trusts: the caller of `from_raw`.  Owns: nothing.
//! Never: outlives the configuration it belongs to.

use crate::apr::{pool::bytes, AprPool};
use crate::ffi;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::time::Duration;

/// A `server_rec` of the configuration that is in force during `'c`.
#[derive(Debug, Clone, Copy)]
pub struct ServerRec<'c> {
    raw: NonNull<ffi::server_rec>,
    life: PhantomData<&'c ffi::server_rec>,
}

// SAFETY: httpd writes to its servers only while it reads the configuration, before it has threads; what is read here
// afterwards does not change.
unsafe impl Send for ServerRec<'_> {}
// SAFETY: as above.
unsafe impl Sync for ServerRec<'_> {}

impl<'c> ServerRec<'c> {
    /// # Safety
    /// `raw` is a server of a configuration that lives during `'c`.
    pub unsafe fn from_raw(raw: *mut ffi::server_rec) -> Self {
        Self { raw: NonNull::new(raw).expect("httpd passes a server"), life: PhantomData }
    }

    pub fn as_ptr(self) -> *mut ffi::server_rec {
        self.raw.as_ptr()
    }

    fn rec(self) -> &'c ffi::server_rec {
        // SAFETY: live during 'c (from_raw), and written by httpd only while it reads the configuration, which is
        // one thread.
        unsafe { self.raw.as_ref() }
    }

    /// This server and those behind it in the configuration's order; from the main server: all of them.
    pub fn iter(self) -> impl Iterator<Item = ServerRec<'c>> {
        let mut at = Some(self);
        std::iter::from_fn(move || {
            let this = at?;
            let next = this.rec().next;
            // SAFETY: the servers of one configuration are linked and live equally long.
            at = (!next.is_null()).then(|| unsafe { Self::from_raw(next) });
            Some(this)
        })
    }

    /// Tells servers of one configuration apart.
    pub fn key(self) -> usize {
        self.raw.as_ptr().addr()
    }

    /// `Timeout`.
    pub fn timeout(self) -> Duration {
        Duration::from_micros(u64::try_from(self.rec().timeout).unwrap_or(0))
    }

    /// `ErrorLog`.
    pub fn error_log_name(self) -> &'c [u8] {
        // SAFETY: a string of the configuration, or null.
        unsafe { bytes(self.rec().error_fname) }
    }

    pub fn hostname(self) -> &'c [u8] {
        // SAFETY: a string of the configuration.
        unsafe { bytes(self.rec().server_hostname) }
    }

    /// File and line where it is defined; empty and 0 for the main server.
    pub fn defined_at(self) -> (&'c [u8], u32) {
        // SAFETY: a string of the configuration.
        (unsafe { bytes(self.rec().defn_name) }, self.rec().defn_line_number)
    }

    pub fn is_virtual(self) -> bool {
        self.rec().is_virtual != 0
    }

    /// Whether this virtual host takes every connection to that port that no other virtual host names (`*:port`, `*`).
    pub fn takes_all_of(self, port: u16) -> bool {
        let mut at = self.rec().addrs;
        // SAFETY: null, or an entry of the server's list, which lives as long as the server.
        while let Some(address) = unsafe { at.as_ref() } {
            // SAFETY: null or a string of the configuration.
            let any = matches!(unsafe { bytes(address.virthost) }, b"*" | b"_default_");
            if any && (address.host_port == 0 || address.host_port == port) {
                return true;
            }
            at = address.next;
        }
        false
    }

    /// The ports of all `Listen` lines that were read.
    pub fn listens_to(self) -> Vec<u16> {
        let mut ports = Vec::new();
        // SAFETY: httpd's list of listeners, which changes only while the configuration is read, on this thread.
        let mut at = unsafe { ffi::ap_listeners };
        // SAFETY: null, or an entry of that list.
        while let Some(listener) = unsafe { at.as_ref() } {
            // SAFETY: null, or an address that lives as long as its listener.
            ports.extend(unsafe { listener.bind_addr.as_ref() }.map(|address| address.port));
            at = listener.next;
        }
        ports
    }

    /// Arguments of httpd as it was started, `-k` left out (mpm_unix.c).
    pub fn process_argv(self) -> Vec<&'c [u8]> {
        // SAFETY: the process record lives as long as the process.
        let process = unsafe { &*self.rec().process };
        let n = usize::try_from(process.argc).unwrap_or(0);
        // SAFETY: argv holds argc strings that live as long as the process.
        (0..n).map(|i| unsafe { bytes(*process.argv.add(i)) }).collect()
    }

    /// The pool that lives as long as the process.
    pub fn process_pool(self) -> AprPool<'static> {
        // SAFETY: the process record and its pool live until the process exits.
        unsafe { AprPool::from_raw((*self.rec().process).pool) }
    }
}
