//! Listening sockets in their buckets, and the pipes by which the parent tells frontends to end.
//!
//! Runs in: parent (opens), frontend (accepts).  Trusts: httpd.  Owns: nothing (the configuration's pool has it all).
//! Never: outlives the configuration; `Buckets` of an earlier one must not be used.

use super::transaction::{Accepted, TransactionPool};
use crate::apr::AprPool;
use crate::ffi;
use crate::httpd::ServerRec;
use std::ffi::c_int;
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr;

/// How a frontend is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// When its last connection does.
    Graceful,
    Now,
}

/// Sockets that some of the frontends listen on, and those frontends' pipe of death.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    /// Null in one-process mode.
    pod: *mut ffi::ap_pod_t,
    listeners: *mut ffi::ap_listen_rec,
}

// SAFETY: plain pointers into the configuration's pool; its users are the parent's one thread, and in a frontend the
// main thread (pod) and the threads that accept (listeners, which do not change once they run).
unsafe impl Send for Bucket {}

/// Why there are no buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenError {
    NoListener,
    /// Status of APR.
    Duplicate(c_int),
    /// Status of APR.
    Pipe(c_int),
}

/// Opens the listeners of this configuration. `keep` is the number of buckets to make, 0 for as many as
/// `ListenCoresBucketsRatio` says, up to `most`.
pub fn open(
    pconf: AprPool<'_>,
    main: ServerRec<'_>,
    keep: usize,
    most: usize,
    one_process: bool,
) -> Result<Vec<Bucket>, OpenError> {
    // SAFETY: httpd's main thread, which alone changes the list of listeners; the main server is live.
    if unsafe { ffi::ap_setup_listeners(main.as_ptr()) } < 1 {
        return Err(OpenError::NoListener);
    }
    let mut lists: *mut *mut ffi::ap_listen_rec = ptr::null_mut();
    let mut count = c_int::try_from(keep).unwrap_or(0);
    // SAFETY: as above; the call writes the array and its length.
    let rc =
        unsafe { ffi::ap_duplicate_listeners(pconf.as_ptr(), main.as_ptr(), (&raw mut lists).cast(), &raw mut count) };
    if rc != 0 {
        return Err(OpenError::Duplicate(rc));
    }
    let mut buckets = Vec::new();
    for i in 0..usize::try_from(count).unwrap_or(0) {
        if i >= most.max(1) {
            // httpd alone knows the ratio, so that there are too many at first.
            // SAFETY: the array has `count` lists; nobody has got this one.
            unsafe { ffi::ap_close_listeners_ex(*lists.add(i)) };
            continue;
        }
        let mut pod = ptr::null_mut();
        if !one_process {
            // SAFETY: the pool is live; the call writes the pointer.
            let rc = unsafe { ffi::ap_mpm_podx_open(pconf.as_ptr(), &raw mut pod) };
            if rc != 0 {
                return Err(OpenError::Pipe(rc));
            }
        }
        // SAFETY: the array has `count` lists.
        buckets.push(Bucket { pod, listeners: unsafe { *lists.add(i) } });
    }
    Ok(buckets)
}

/// Closes every listener of this process.
pub fn close_all() {
    // SAFETY: httpd's own list, which its main thread alone changes; nobody accepts in this process.
    unsafe { ffi::ap_close_listeners() };
}

fn as_podx(end: End) -> ffi::ap_podx_restart_t {
    match end {
        End::Graceful => ffi::ap_podx_restart_t_AP_MPM_PODX_GRACEFUL,
        End::Now => ffi::ap_podx_restart_t_AP_MPM_PODX_RESTART,
    }
}

impl Bucket {
    /// In the parent: tells one frontend of the bucket.
    pub fn tell_one(&self, end: End) {
        if !self.pod.is_null() {
            // SAFETY: the pipe lives as long as the configuration.
            unsafe { ffi::ap_mpm_podx_signal(self.pod, as_podx(end)) };
        }
    }

    /// In the parent: tells as many frontends as there can be.
    pub fn tell_all(&self, most: u32, end: End) {
        if !self.pod.is_null() {
            let most = c_int::try_from(most).unwrap_or(c_int::MAX);
            // SAFETY: as above.
            unsafe { ffi::ap_mpm_podx_killpg(self.pod, most, as_podx(end)) };
        }
    }

    /// In the parent: a copy of the pipe that outlives the configuration.
    pub fn keep_pipe(&self) -> Option<KeptPipe> {
        if self.pod.is_null() {
            return None;
        }
        let mut fd = -1;
        // SAFETY: the pipe lives as long as the configuration.
        let rc = unsafe { ffi::apr_os_file_get(&raw mut fd, (*self.pod).pod_out) };
        if rc != 0 || fd < 0 {
            return None;
        }
        // SAFETY: as above; borrowed for this call only.
        let copy = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned();
        copy.ok().map(KeptPipe)
    }

    /// In a frontend: becomes readable when the parent has told something. `None` in one-process mode.
    pub fn pipe(&self) -> Option<BorrowedFd<'_>> {
        if self.pod.is_null() {
            return None;
        }
        let mut fd = -1;
        // SAFETY: the pipe lives as long as the configuration.
        let rc = unsafe { ffi::apr_os_file_get(&raw mut fd, (*self.pod).pod_in) };
        // SAFETY: as above.
        (rc == 0 && fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// In a frontend's main thread: what the parent has told, unless a sibling took it. Waits, unless the pipe was made
    /// not to.
    pub fn told(&self) -> Option<End> {
        // SAFETY: as above.
        match unsafe { ffi::ap_mpm_podx_check(self.pod) }.cast_unsigned() {
            ffi::ap_podx_restart_t_AP_MPM_PODX_GRACEFUL => Some(End::Graceful),
            ffi::ap_podx_restart_t_AP_MPM_PODX_RESTART => Some(End::Now),
            _ => None,
        }
    }

    /// In a frontend of another bucket: this one is none of its business.
    pub fn close(&self) {
        self.close_listeners();
        if !self.pod.is_null() {
            // SAFETY: as above; this process does not use the pipe.
            unsafe { ffi::ap_mpm_podx_close(self.pod) };
        }
    }

    /// Closes this process's copies of the listeners; nobody accepts any more.
    pub fn close_listeners(&self) {
        // SAFETY: the list is live.
        unsafe { ffi::ap_close_listeners_ex(self.listeners) };
    }

    /// The listeners, made ready to be accepted from without waiting.
    pub fn listeners(&self) -> Vec<Listener> {
        let mut found = Vec::new();
        let mut at = self.listeners;
        while !at.is_null() {
            let mut fd = -1;
            // SAFETY: a live record of the list; nothing else of this process uses it yet.
            unsafe {
                ffi::apr_socket_opt_set((*at).sd, ffi::APR_SO_NONBLOCK.cast_signed(), 1);
                ffi::apr_os_sock_get(&raw mut fd, (*at).sd);
            }
            if fd >= 0 {
                found.push(Listener { record: at, fd });
            }
            // SAFETY: as above.
            at = unsafe { (*at).next };
        }
        found
    }
}

/// The parent's end of a pipe to frontends of an earlier configuration.
#[derive(Debug)]
pub struct KeptPipe(OwnedFd);

impl KeptPipe {
    /// Tells as many frontends as there can be, and forgets them.
    pub fn tell_all(self, most: u32, end: End) {
        let word = match end {
            End::Graceful => ffi::AP_MPM_PODX_GRACEFUL_CHAR,
            End::Now => ffi::AP_MPM_PODX_RESTART_CHAR,
        };
        let words = vec![word; usize::try_from(most).unwrap_or(1)];
        // It fails when none of them is there any more.
        let _ = std::fs::File::from(self.0).write_all(&words);
    }
}

/// One listening socket of this process.
#[derive(Debug, Clone, Copy)]
pub struct Listener {
    record: *mut ffi::ap_listen_rec,
    fd: c_int,
}

// SAFETY: the record does not change while threads accept from it, and accept(2) may be called by many.
unsafe impl Send for Listener {}
// SAFETY: as above.
unsafe impl Sync for Listener {}

/// Why nothing was accepted.
#[derive(Debug)]
pub enum NotAccepted {
    /// Nobody is there, or is gone again.
    Nobody,
    /// No descriptor or no memory.
    Shortage,
    /// Something else that does not go away by itself.
    Failed(std::io::Error),
}

impl NotAccepted {
    /// accept(2): what is wrong with one client's connection is told here, too. Those are the errors that
    /// ap_unixd_accept passes over; of the others it does not tell which it was.
    fn from_status(rc: c_int) -> Self {
        match rc {
            libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM => Self::Shortage,
            libc::EAGAIN
            | libc::EINTR
            | libc::ECONNABORTED
            | libc::EPROTO
            | libc::ETIMEDOUT
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH => Self::Nobody,
            other => Self::Failed(std::io::Error::from_raw_os_error(other)),
        }
    }
}

impl Listener {
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open until `close_listeners`, which its caller calls when no thread accepts any more.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    /// Accepts a connection, if one waits. The pool becomes the connection's.
    pub fn accept(&self, pool: TransactionPool) -> Result<Accepted, (NotAccepted, TransactionPool)> {
        let mut socket = ptr::null_mut();
        // SAFETY: the record is live; the pool is this thread's.
        let rc = unsafe { ffi::apr_socket_accept(&raw mut socket, (*self.record).sd, pool.as_ptr()) };
        if rc != 0 {
            return Err((NotAccepted::from_status(rc), pool));
        }
        Ok(Accepted::new(pool, socket))
    }
}
