//! The directives of the configuration, as httpd has read them.
//!
//! Runs in: frontend, when it starts; wherever the configuration is checked.  Trusts: httpd.  Owns: nothing.
//! Never: changes the tree.

use crate::apr::pool::bytes;
use crate::ffi;
use crate::settings::{DirectiveAt, Place};

/// Calls `visit` with name and arguments of each directive of the running configuration, those in blocks too.
pub fn each_directive(mut visit: impl FnMut(&[u8], &[u8])) {
    // SAFETY: null or strings that live as long as the node.
    each_node(|node| unsafe { visit(bytes(node.directive), bytes(node.args)) });
}

/// The first directive with one of these names.
pub fn find(names: &[&str]) -> Option<DirectiveAt> {
    let mut found = None;
    each_node(|node| {
        // SAFETY: null or strings that live as long as the node.
        let texts = unsafe { [node.directive, node.args, node.filename].map(|text| bytes(text)) };
        let [name, value, file] = texts.map(|text| String::from_utf8_lossy(text).into_owned());
        if found.is_none() && names.iter().any(|n| n.eq_ignore_ascii_case(&name)) {
            let line = u32::try_from(node.line_num).unwrap_or(0);
            found = Some(DirectiveAt { name, value, place: Place { file, line } });
        }
    });
    found
}

/// Calls `visit` for each directive of this name.
pub(super) fn each_named(name: &str, mut visit: impl FnMut(&ffi::ap_directive_t)) {
    each_node(|node| {
        // SAFETY: null or a string that lives as long as the node.
        if unsafe { bytes(node.directive) }.eq_ignore_ascii_case(name.as_bytes()) {
            visit(node);
        }
    });
}

fn each_node(mut visit: impl FnMut(&ffi::ap_directive_t)) {
    // SAFETY: httpd's variable, written only while the configuration is read.
    let mut todo = vec![unsafe { ffi::ap_conftree }];
    while let Some(mut at) = todo.pop() {
        while !at.is_null() {
            // SAFETY: a node of httpd's tree, which lives as long as the configuration.
            let node = unsafe { &*at };
            visit(node);
            todo.push(node.first_child);
            at = node.next;
        }
    }
}
