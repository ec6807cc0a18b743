//! The shared object this code is in: its file and its build id.
//!
//! Runs in: every role.  Trusts: the dynamic loader.  Owns: nothing.  Never: reads the file itself.

use std::ffi::{c_int, c_void, CStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// File of the loaded object that contains `address`.
pub fn file_of(address: usize) -> Option<PathBuf> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: dladdr only compares the address and fills the structure.
    if unsafe { libc::dladdr(std::ptr::without_provenance(address), info.as_mut_ptr()) } == 0 {
        return None;
    }
    // SAFETY: dladdr succeeded and has filled it; all zeroes are valid too.
    let info = unsafe { info.assume_init() };
    if info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the name of a loaded object is a NUL-terminated string of the loader's.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes())))
}

/// File of the object that this function is in: mod_pool.so.
pub fn own_file() -> Option<PathBuf> {
    file_of(own_file as *const () as usize)
}

struct Search {
    address: usize,
    found: u64,
}

/// The first eight bytes of the object's GNU build id (elf(5), `NT_GNU_BUILD_ID`); 0 when it was linked without.
///
/// It names the code that is mapped, whatever has become of the file since.
pub fn build_id() -> u64 {
    let mut search = Search { address: build_id as *const () as usize, found: 0 };
    // SAFETY: the callback gets this very pointer, and only during the call.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    search.found
}

unsafe extern "C" fn look(info: *mut libc::dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: `data` is the Search that build_id passed, which nobody else uses meanwhile.
    let search = unsafe { &mut *data.cast::<Search>() };
    // SAFETY: the loader passes a filled record.
    let info = unsafe { &*info };
    if info.dlpi_phdr.is_null() {
        return 0;
    }
    // SAFETY: dlpi_phnum program headers lie at dlpi_phdr, mapped with the object.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    let base = usize::try_from(info.dlpi_addr).unwrap_or(0);
    let range = |h: &libc::Elf64_Phdr| {
        let start = base.wrapping_add(usize::try_from(h.p_vaddr).unwrap_or(0));
        (start, usize::try_from(h.p_memsz).unwrap_or(0))
    };
    let contains = |h: &libc::Elf64_Phdr| {
        let (start, len) = range(h);
        h.p_type == libc::PT_LOAD && search.address.wrapping_sub(start) < len
    };
    if !headers.iter().any(contains) {
        return 0;
    }
    for header in headers.iter().filter(|h| h.p_type == libc::PT_NOTE) {
        let (start, len) = range(header);
        // SAFETY: a PT_NOTE segment is part of a PT_LOAD segment, so it is mapped and readable.
        let notes = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(start), len) };
        if let Some(id) = gnu_build_id(notes) {
            search.found = id;
            return 1;
        }
    }
    1
}

/// Looks through ELF notes: name length, descriptor length, type, then name and descriptor, each padded to four.
fn gnu_build_id(mut notes: &[u8]) -> Option<u64> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let padded = |n: u32| usize::try_from(n).ok().and_then(|n| n.checked_next_multiple_of(4));
    while let Some((head, rest)) = notes.split_first_chunk::<12>() {
        let word = |i: usize| u32::from_ne_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let (name, rest) = rest.split_at_checked(padded(word(0))?)?;
        let (value, rest) = rest.split_at_checked(padded(word(4))?)?;
        if word(8) == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return value.first_chunk::<8>().map(|id| u64::from_be_bytes(*id));
        }
        notes = rest;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_knows_its_file() {
        assert!(own_file().expect("loaded").is_absolute());
    }

    #[test]
    fn a_build_id_is_found_among_other_notes() {
        let mut notes = Vec::new();
        for (kind, name, value) in [(1u32, b"GNU\0", &[9u8; 4][..]), (3, b"GNU\0", &[1, 2, 3, 4, 5, 6, 7, 8][..])] {
            notes.extend(4u32.to_ne_bytes());
            notes.extend(u32::try_from(value.len()).expect("short").to_ne_bytes());
            notes.extend(kind.to_ne_bytes());
            notes.extend(name);
            notes.extend(value);
        }
        assert_eq!(gnu_build_id(&notes), Some(0x0102_0304_0506_0708));
        assert_eq!(gnu_build_id(&notes[..20]), None);
    }
}
