//! PHP's configuration, which PHP skips without a word where it cannot read it.
//!
//! Runs in: zygote, as the pool's user, after PHP has started.  Trusts: PHP's own variables.  Owns: nothing.
//! Never: changes PHP's configuration.

use crate::apr::pool::bytes;
use std::ffi::{c_char, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// A variable of PHP's, which is loaded with its symbols (mod_so opens modules with RTLD_GLOBAL).
fn variable(name: &std::ffi::CStr) -> Option<PathBuf> {
    // SAFETY: the name is NUL-terminated; the answer is null or the address of a `char *` (php_ini.h).
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }.cast::<*const c_char>();
    if address.is_null() {
        return None;
    }
    // SAFETY: not null, so PHP's variable: null or a NUL-terminated string.
    let value = unsafe { bytes(*address) };
    (!value.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(value)))
}

/// Fails if this user cannot read a php.ini, or a file of the scan directory, that is there: the error names it.
pub fn check_configuration(ini_dir: Option<&str>) -> Result<(), String> {
    if !super::classes::php_is_loaded() {
        return Ok(());
    }
    let scan = variable(c"php_ini_scanned_path");
    let mut files = Vec::new();
    if let Some(list) = &scan {
        // Several directories stand behind one another (PHP_INI_SCAN_DIR).
        for dir in list.as_os_str().as_bytes().split(|b| *b == b':').filter(|d| !d.is_empty()) {
            let dir = Path::new(OsStr::from_bytes(dir));
            for name in names_in(dir)? {
                if name.extension().is_some_and(|e| e == "ini") {
                    files.push(name);
                }
            }
        }
    }
    let home = match ini_dir {
        Some(dir) => Some(PathBuf::from(dir)),
        None => scan.as_deref().and_then(Path::parent).map(Path::to_owned),
    };
    for name in ["php-apache2handler.ini", "php.ini"] {
        files.extend(home.as_ref().map(|dir| dir.join(name)));
    }
    files.iter().try_for_each(|file| can_read(file))
}

fn names_in(dir: &Path) -> Result<Vec<PathBuf>, String> {
    match std::fs::read_dir(dir) {
        Ok(entries) => Ok(entries.filter_map(|e| Some(e.ok()?.path())).collect()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(unreadable(dir, &e)),
    }
}

fn can_read(file: &Path) -> Result<(), String> {
    match std::fs::File::open(file) {
        Ok(_) => Ok(()),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        Err(e) => Err(unreadable(file, &e)),
    }
}

fn unreadable(path: &Path, e: &io::Error) -> String {
    format!("PHP's configuration {} cannot be read by the pool's user ({e}); PHP would run without it", path.display())
}
