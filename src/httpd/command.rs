//! `cmd_parms`: a directive while httpd hands it to its module.
//!
//! Runs in: parent and seed while the configuration is read; workers, for `.htaccess`.  Trusts: httpd.
//! Owns: nothing.  Never: keeps anything of a directive past its handler.

use super::config::{server_config, ServerConfig};
use super::log::{self, Level};
use super::ServerRec;
use crate::apr::pool::AprPool;
use crate::ffi;
use crate::settings::Place;
use std::ffi::{CStr, CString};
use std::marker::PhantomData;
use std::os::raw::{c_char, c_int};
use std::ptr;

/// A directive that is being handled.
#[derive(Debug)]
pub struct Command<'h> {
    raw: *mut ffi::cmd_parms,
    handler: PhantomData<&'h mut ffi::cmd_parms>,
}

/// Why a directive is refused.
#[derive(Debug)]
pub enum Refused {
    /// A sentence of our own.
    Said(String),
    /// The same, of a directive that stands in `.htaccess` and may not.
    InHtaccess(String),
    /// A message of httpd's, which lives as long as the configuration.
    ByHttpd(*const c_char),
}

impl From<String> for Refused {
    fn from(text: String) -> Self {
        Refused::Said(text)
    }
}

pub type Handled = Result<(), Refused>;

impl<'h> Command<'h> {
    /// # Safety
    /// `raw` is what httpd gave the handler whose call bounds `'h`.
    pub unsafe fn from_raw(raw: *mut ffi::cmd_parms) -> Self {
        Command { raw, handler: PhantomData }
    }

    fn parms(&self) -> &ffi::cmd_parms {
        // SAFETY: live during the handler (from_raw), and httpd writes to it only within `walk_children`, which takes
        // `&mut self`.
        unsafe { &*self.raw }
    }

    fn directive(&self) -> Option<&ffi::ap_directive_t> {
        // SAFETY: NULL or a node of the configuration tree, which does not change while it is walked.
        unsafe { self.parms().directive.as_ref() }
    }

    /// For a handler of httpd's own, during ours.
    pub(super) fn as_ptr(&self) -> *mut ffi::cmd_parms {
        self.raw
    }

    /// Refuses the directive where it may not stand: the flags are those of `ap_check_cmd_context`.
    pub fn check_context(&self, forbidden: u32) -> Handled {
        // SAFETY: live during the handler (from_raw).
        self.by_httpd(unsafe { ffi::ap_check_cmd_context(self.raw, forbidden) })
    }

    /// What a handler of httpd's own has answered.
    pub fn by_httpd(&self, message: *const c_char) -> Handled {
        if message.is_null() {
            Ok(())
        } else {
            Err(Refused::ByHttpd(message))
        }
    }

    /// The directive's name as it is written in the command table.
    pub fn name(&self) -> String {
        // SAFETY: httpd sets `cmd` before it calls a handler, to a record with a name.
        let name = unsafe { (*self.parms().cmd).name };
        // SAFETY: a NUL-terminated string constant.
        lossy(unsafe { CStr::from_ptr(name) })
    }

    pub fn place(&self) -> Place {
        let Some(directive) = self.directive() else {
            return Place::default();
        };
        Place { file: text_or_empty(directive.filename), line: u32::try_from(directive.line_num).unwrap_or(0) }
    }

    /// Inside a section such as `<Directory>`, `<Location>` or `<If>`, or in `.htaccess`?
    pub fn in_directory(&self) -> bool {
        !self.parms().path.is_null()
    }

    /// In `.htaccess`? (The test of `ap_check_cmd_context`, core.c.)
    pub fn in_htaccess(&self) -> bool {
        self.parms().pool == self.parms().temp_pool
    }

    /// An unknown directive is skipped here (`AllowOverride Nonfatal=Unknown`).
    pub fn unknown_is_skipped(&self) -> bool {
        self.parms().override_ & ffi::NONFATAL_UNKNOWN as c_int != 0
    }

    /// A directive that may not stand in `.htaccess` is skipped there (`AllowOverride Nonfatal=Override`).
    fn forbidden_is_skipped(&self) -> bool {
        self.parms().override_ & ffi::NONFATAL_OVERRIDE as c_int != 0
    }

    /// The sections around the directive, innermost first, as `<Location`.
    pub fn sections(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut at = self.directive().map_or(ptr::null_mut(), |d| d.parent);
        // SAFETY: NULL or a node of the configuration tree; parents end at the top.
        while let Some(directive) = unsafe { at.as_ref() } {
            names.push(text_or_empty(directive.directive));
            at = directive.parent;
        }
        names
    }

    /// Splits raw arguments as httpd does: blanks, quotes, backslashes.
    pub fn words(&self, args: &CStr) -> Vec<String> {
        let mut rest = args.as_ptr();
        let mut words = Vec::new();
        // SAFETY: `rest` stays within `args`, up to its NUL.
        while unsafe { *rest } != 0 {
            // SAFETY: temp_pool is live during the handler; `rest` is moved on, never past the NUL.
            let word = unsafe { ffi::ap_getword_conf(self.parms().temp_pool, &mut rest) };
            words.push(text_or_empty(word));
        }
        words
    }

    /// A copy that lives as long as the records this directive is read for.
    pub fn keep(&self, text: &str) -> Option<ptr::NonNull<c_char>> {
        // SAFETY: httpd gives the pool of the configuration, or of the request for `.htaccess`; it is live.
        let pool = unsafe { AprPool::from_raw(self.parms().pool) };
        ptr::NonNull::new(pool.copy(text.as_bytes()))
    }

    /// The record of the server that the directive belongs to: the main one or a virtual host.
    pub fn server_config(&self) -> Option<&ServerConfig> {
        // SAFETY: httpd sets `server` before it calls a handler; the configuration outlives the handler.
        server_config(unsafe { ServerRec::from_raw(self.parms().server) })
    }

    /// The directives in this section, each with its arguments.
    pub fn children(&self) -> Vec<(String, String)> {
        let mut children = Vec::new();
        let mut at = self.directive().map_or(ptr::null_mut(), |d| d.first_child);
        // SAFETY: NULL or a node of the configuration tree.
        while let Some(child) = unsafe { at.as_ref() } {
            children.push((text_or_empty(child.directive), text_or_empty(child.args)));
            at = child.next;
        }
        children
    }

    /// Lets httpd name the line of child number `at` when this section is refused.
    pub fn blame_child(&mut self, at: usize) {
        let mut child = self.directive().map_or(ptr::null_mut(), |d| d.first_child);
        for _ in 0..at {
            // SAFETY: NULL or a node of the configuration tree.
            child = unsafe { child.as_ref() }.map_or(ptr::null_mut(), |c| c.next);
        }
        // SAFETY: live during the handler, and no reference into it is held across this call (`&mut self`).
        unsafe { (*self.raw).err_directive = child };
    }

    /// Handles the directives in this section, in the context the section itself is in.
    pub fn walk_children(&mut self) -> Handled {
        let (first, context, cmd) = match self.directive() {
            Some(directive) => (directive.first_child, self.parms().context, self.parms().cmd),
            None => return Ok(()),
        };
        let section = self.parms().directive;
        // SAFETY: as core.c's own sections do it; no reference into `raw` is held across the call.
        let message = unsafe { ffi::ap_walk_config(first, self.raw, context) };
        // SAFETY: live during the handler; the walk leaves its last directive behind.
        let parms = unsafe { &mut *self.raw };
        parms.directive = section;
        parms.cmd = cmd;
        if message.is_null() {
            Ok(())
        } else {
            Err(Refused::ByHttpd(message))
        }
    }

    /// What the handler returns to httpd.
    pub fn answer(&self, handled: Handled) -> *const c_char {
        match handled {
            Ok(()) => ptr::null(),
            Err(Refused::ByHttpd(message)) => message,
            Err(Refused::InHtaccess(text)) if self.forbidden_is_skipped() => {
                // SAFETY: httpd sets `server` before it calls a handler, to a record that outlives the call.
                log::server(Level::Warning, unsafe { ServerRec::from_raw(self.parms().server) }, text);
                ptr::null()
            }
            Err(Refused::Said(text) | Refused::InHtaccess(text)) => {
                // SAFETY: the pool is live during the handler; it is the configuration's, which is read by one thread, or
                // for `.htaccess` that of the thread's own request.
                let pool = unsafe { AprPool::from_raw(self.parms().pool) };
                pool.copy(text.as_bytes())
            }
        }
    }
}

/// Lets a panic in a directive's handler fail the configuration instead of httpd.
pub const PANICKED: &CStr = c"mod_pool failed while it read this directive; see the error log, and report it";

fn text_or_empty(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: httpd's strings in the configuration tree are NUL-terminated and live while it is read.
    lossy(unsafe { CStr::from_ptr(text) })
}

pub(super) fn lossy(text: &CStr) -> String {
    text.to_string_lossy().into_owned()
}

/// Is a module with this file name loaded?
pub fn module_is_loaded(name: &CStr) -> bool {
    // SAFETY: walks httpd's list of modules, which changes only between two readings of the configuration.
    !unsafe { ffi::ap_find_linked_module(name.as_ptr()) }.is_null()
}

/// Does a loaded module have a directive, or section (`<X`), of this name?
pub fn is_known(directive: &str) -> bool {
    let Ok(name) = CString::new(directive) else { return false };
    // SAFETY: the head of httpd's list of modules; see `module_is_loaded`.
    let mut at = unsafe { ffi::ap_top_module };
    // SAFETY: NULL or a module of the list.
    while let Some(module) = unsafe { at.as_ref() } {
        // SAFETY: the name is NUL-terminated; the table ends with an entry without a name.
        if !module.cmds.is_null() && !unsafe { ffi::ap_find_command(name.as_ptr(), module.cmds) }.is_null() {
            return true;
        }
        at = module.next;
    }
    false
}

/// The file name (`mod_x.c`) of the module that is called `name` there or in LoadModule (`x_module`).
pub fn module_file_name(name: &str) -> Option<String> {
    let short = name.strip_suffix("_module");
    // SAFETY: the head of httpd's list of modules; see `module_is_loaded`.
    let mut at = unsafe { ffi::ap_top_module };
    // SAFETY: NULL or a module of the list.
    while let Some(module) = unsafe { at.as_ref() } {
        let file = text_or_empty(module.name);
        // SAFETY: answers NULL or a string that lives as long as the module, for any index.
        let found = text_or_empty(unsafe { ffi::ap_find_module_short_name(module.module_index) });
        if file == name || short == Some(found.as_str()) {
            return Some(file);
        }
        at = module.next;
    }
    None
}
