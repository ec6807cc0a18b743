//! A child of httpd's parent that ends as the controller does. httpd's parent learns of its children's ends only, and the
//! controller is its keeper's child.
//!
//! Runs in: its own process, child of httpd's parent, not with `-X` (one thread).
//! Trusts: the keeper's one message.  Owns: a copy of the parent's end of the lifeline.
//! Never: ends before the controller.

use crate::sys::poller::{self, SignalDescriptor};
use crate::sys::socket::{self, Blocking};
use crate::sys::{descriptor, fork, title};
use std::os::fd::{AsFd, OwnedFd};

/// Waits for the keeper's word of how the controller has ended, or for the keeper's end.
pub fn stand_in(lifeline: OwnedFd) -> ! {
    poller::ignore_group_signals();
    // Not for this process to act on: the controller gets it from its keeper.
    let _blocked = SignalDescriptor::of_term();
    title::init();
    title::set("mod_pool: stand-in");
    // The error log, which may be renamed, or a program that ends with it.
    let _ = descriptor::let_go_of_standard_ones();
    let mut status = [0; 4];
    let received = socket::receive(lifeline.as_fd(), &mut status, Blocking::Yes);
    match received {
        Ok(received) if received.len == status.len() => fork::end_as(i32::from_be_bytes(status)),
        // The keeper has ended: as it should, with the controller; else the controller ends itself.
        Ok(_) | Err(_) => fork::exit_now(0),
    }
}
