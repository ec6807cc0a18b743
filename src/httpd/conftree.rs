//! The directives of the configuration, as httpd has read them.
//!
//! Runs in: frontend, when it starts; seed; wherever the configuration is checked.  Trusts: httpd.  Owns: nothing.
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

/// A directive, with where it stands.
#[derive(Clone, Copy)]
pub struct Node<'c> {
    pub name: &'c [u8],
    pub args: &'c [u8],
    raw: &'c ffi::ap_directive_t,
}

impl std::fmt::Debug for Node<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", String::from_utf8_lossy(self.name), String::from_utf8_lossy(self.args))
    }
}

impl<'c> Node<'c> {
    /// The sections around it, innermost first.
    pub fn sections(self) -> impl Iterator<Item = Node<'c>> {
        // SAFETY: null or a node of httpd's tree, which lives as long as the configuration.
        let above = |node: &Node<'c>| unsafe { node.raw.parent.as_ref() }.map(Node::of);
        std::iter::successors(above(&self), above)
    }

    /// Inside one of these sections (`<Location`)?
    pub fn is_in(self, names: &[&str]) -> bool {
        self.sections().any(|section| names.iter().any(|n| section.name.eq_ignore_ascii_case(n.as_bytes())))
    }

    /// File and line of the virtual host around it.
    pub fn virtual_host(self) -> Option<(&'c [u8], u32)> {
        self.sections().find(|section| section.name.eq_ignore_ascii_case(b"<VirtualHost")).map(Node::place)
    }

    /// File and line.
    pub fn place(self) -> (&'c [u8], u32) {
        // SAFETY: null or a string that lives as long as the node.
        (unsafe { bytes(self.raw.filename) }, u32::try_from(self.raw.line_num).unwrap_or(0))
    }

    fn of(raw: &'c ffi::ap_directive_t) -> Self {
        // SAFETY: null or strings that live as long as the node.
        let (name, args) = unsafe { (bytes(raw.directive), bytes(raw.args)) };
        Node { name, args, raw }
    }
}

/// Calls `visit` with each directive of the running configuration, those in blocks too; those of one block follow one
/// another.
pub fn each(mut visit: impl FnMut(&Node<'_>)) {
    each_node(|raw| visit(&Node::of(raw)));
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
