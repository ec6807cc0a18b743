//! Socket addresses from numbers, without asking a resolver.
//!
//! Runs in: worker.  Trusts: nothing.  Owns: nothing; addresses live in the pool they are made in.
//! Never: makes a system call.

use super::AprPool;
use crate::ffi;
use std::net::IpAddr;
use std::ptr;

/// An address as APR would have made it from the same numbers.
pub fn make(pool: AprPool<'_>, ip: IpAddr, port: u16) -> *mut ffi::apr_sockaddr_t {
    let size = size_of::<ffi::apr_sockaddr_t>();
    // SAFETY: apr_palloc returns `size` bytes, aligned to 8.
    let place = unsafe { ffi::apr_palloc(pool.as_ptr(), size) }.cast::<ffi::apr_sockaddr_t>();
    // SAFETY: all zeroes is a valid apr_sockaddr_t (null pointers, family 0).
    unsafe { ptr::write_bytes(place, 0, 1) };
    // SAFETY: zeroed just now, and nobody else has it yet.
    let address = unsafe { &mut *place };
    address.pool = pool.as_ptr();
    address.port = port;
    match ip {
        IpAddr::V4(v4) => {
            address.family = ffi::APR_INET.cast_signed();
            address.salen = socklen::<ffi::sockaddr_in>();
            address.ipaddr_len = 4;
            address.addr_str_len = 16;
            // SAFETY: the union is zeroed, so each of its members is initialised.
            let sin = unsafe { &mut address.sa.sin };
            sin.sin_family = u16::try_from(ffi::APR_INET).unwrap_or(0);
            sin.sin_port = port.to_be();
            sin.sin_addr.s_addr = u32::from_ne_bytes(v4.octets());
            address.ipaddr_ptr = (&raw mut sin.sin_addr).cast();
        }
        IpAddr::V6(v6) => {
            address.family = ffi::APR_INET6.cast_signed();
            address.salen = socklen::<ffi::sockaddr_in6>();
            address.ipaddr_len = 16;
            address.addr_str_len = 46;
            // SAFETY: as above.
            let sin6 = unsafe { &mut address.sa.sin6 };
            sin6.sin6_family = u16::try_from(ffi::APR_INET6).unwrap_or(0);
            sin6.sin6_port = port.to_be();
            // SAFETY: in6_addr is 16 bytes in network order, whichever member of its union is named.
            unsafe { ptr::copy_nonoverlapping(v6.octets().as_ptr(), (&raw mut sin6.sin6_addr).cast::<u8>(), 16) };
            address.ipaddr_ptr = (&raw mut sin6.sin6_addr).cast();
        }
    }
    place
}

fn socklen<T>() -> ffi::apr_socklen_t {
    ffi::apr_socklen_t::try_from(size_of::<T>()).unwrap_or(0)
}
