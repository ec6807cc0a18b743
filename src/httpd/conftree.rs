//! The directives of the configuration, as httpd has read them.
//!
//! Runs in: frontend, when it starts.  Trusts: httpd.  Owns: nothing.  Never: changes the tree.

use crate::apr::pool::bytes;
use crate::ffi;

/// Calls `visit` with name and arguments of each directive of the running configuration, those in blocks too.
pub fn each_directive(mut visit: impl FnMut(&[u8], &[u8])) {
    // SAFETY: httpd's variable, written only while the configuration is read.
    let mut todo = vec![unsafe { ffi::ap_conftree }];
    while let Some(mut at) = todo.pop() {
        while !at.is_null() {
            // SAFETY: a node of httpd's tree, which lives as long as the configuration.
            let node = unsafe { &*at };
            // SAFETY: null or strings that live as long as the node.
            let (name, arguments) = unsafe { (bytes(node.directive), bytes(node.args)) };
            visit(name, arguments);
            todo.push(node.first_child);
            at = node.next;
        }
    }
}
