//! Unix sockets that keep message boundaries, carry file descriptors, and tell who sent a message.
//!
//! Runs in: every role, any thread.  Trusts: the kernel, for credentials and boundaries.
//! Owns: each descriptor it has received, from the moment of the call.  Never: looks into a message.

// The sizes that cmsg(3)'s macros take are those of a few ints.
#![allow(clippy::cast_possible_truncation)]

use std::io;
use std::mem::{size_of, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Most descriptors that one message may bring; [`Received::fds_lost`] tells of more.
pub const MAX_FDS: usize = 4;
/// Most that a message can bring (the kernel's `SCM_MAX_FD`). [`receive`] has room for all of them: those that found none
/// would be closed by the kernel within the call, which may take as long as he likes who sent them.
const MOST_SENT: usize = 253;
/// Most messages that [`end_is_empty`] drops: more than a response that its client has given up leaves unread.
const MOST_DROPPED: usize = 256;

/// Bytes asked for of what lies unread in a socket of [`one_way`]; the kernel doubles them (socket(7)), to what a pipe holds.
const ONE_WAY_BUFFER: libc::c_int = 32 * 1024;

/// Whether a call may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocking {
    Yes,
    No,
}

/// Who sent a message, as the kernel saw it (unix(7), `SCM_CREDENTIALS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
}

/// What [`receive`] got beside the bytes.
#[derive(Debug)]
pub struct Received {
    /// Bytes of the message; 0 is the end of the connection.
    pub len: usize,
    pub fds: Vec<OwnedFd>,
    /// The message was longer than the buffer; the rest is gone.
    pub truncated: bool,
    /// More than [`MAX_FDS`] descriptors were sent, or some could not be received (`RLIMIT_NOFILE`).
    pub fds_lost: bool,
    /// Only on a socket with [`pass_credentials`].
    pub credentials: Option<Credentials>,
}

fn pair(kind: libc::c_int) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds: [RawFd; 2] = [-1, -1];
    // SAFETY: socketpair writes two ints into the array it is given, which has room for two.
    let rc = unsafe { libc::socketpair(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just opened this descriptor for us; nobody else owns it.
    let a = unsafe { OwnedFd::from_raw_fd(fds[0]) };
    // SAFETY: as above.
    let b = unsafe { OwnedFd::from_raw_fd(fds[1]) };
    Ok((a, b))
}

/// A connected pair that keeps boundaries and reports the end of the peer; close-on-exec.
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    pair(libc::SOCK_SEQPACKET)
}

/// A stream that carries bytes one way, as a pipe does: the end to read, the end to write; both close-on-exec.
///
/// Unlike a pipe it has no lock that the writer's processes can hold (splice(2) waits with a pipe's mutex held, and
/// whoever reads or closes the pipe then waits for it, whatever he says of waiting): a receiver takes locks of his own
/// end only. But descriptors may come: it is read with [`receive_stream`].
pub fn one_way() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pair(libc::SOCK_STREAM)?;
    urgent_in_line(read.as_fd())?;
    set_option(write.as_fd(), libc::SO_SNDBUF, &ONE_WAY_BUFFER)?;
    // SAFETY: shutdown takes two ints and touches no memory of ours.
    if unsafe { libc::shutdown(write.as_raw_fd(), libc::SHUT_RD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((read, write))
}

/// A byte sent with `MSG_OOB` is received like any other. Else the kernel would drop it when what lies behind it is
/// received, and would close within that call the descriptors that came with it.
fn urgent_in_line(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option::<libc::c_int>(fd, libc::SO_OOBINLINE, &1)
}

fn set_option<T>(fd: BorrowedFd<'_>, name: libc::c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `len` bytes of `value`, which is that large.
    let rc = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, ptr::from_ref(value).cast(), len) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// From now on each message received here brings its sender's credentials.
pub fn pass_credentials(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_option::<libc::c_int>(fd, libc::SO_PASSCRED, &1)
}

/// The longest that a blocking [`receive`] waits: `ErrorKind::WouldBlock` then. Zero means for ever.
pub fn receive_timeout(fd: BorrowedFd<'_>, timeout: std::time::Duration) -> io::Result<()> {
    set_option(fd, libc::SO_RCVTIMEO, &time_value(timeout))
}

/// The longest that a blocking [`send`] waits: `ErrorKind::WouldBlock` then. Zero means for ever.
pub fn send_timeout(fd: BorrowedFd<'_>, timeout: std::time::Duration) -> io::Result<()> {
    set_option(fd, libc::SO_SNDTIMEO, &time_value(timeout))
}

fn time_value(t: std::time::Duration) -> libc::timeval {
    libc::timeval {
        tv_sec: libc::time_t::try_from(t.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_usec: libc::suseconds_t::from(t.subsec_micros()),
    }
}

/// Asks for buffers of this many bytes in each direction, beyond the system's limit where we may (socket(7)).
pub fn buffer_size(fd: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    set_option(fd, libc::SO_SNDBUFFORCE, &bytes).or_else(|_| set_option(fd, libc::SO_SNDBUF, &bytes))?;
    set_option(fd, libc::SO_RCVBUFFORCE, &bytes).or_else(|_| set_option(fd, libc::SO_RCVBUF, &bytes))
}

/// What a socket's peer is doing while it has nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerState {
    /// Nothing waits to be received.
    Quiet,
    Speaks,
    /// Its end is closed, or the connection is broken.
    Gone,
}

/// Looks without waiting, and leaves everything where it is.
pub fn peer_state(fd: BorrowedFd<'_>) -> PeerState {
    let mut byte = 0u8;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes at most one byte to a live variable.
    match unsafe { libc::recv(fd.as_raw_fd(), (&raw mut byte).cast(), 1, flags) } {
        1.. => PeerState::Speaks,
        n if n < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock => PeerState::Quiet,
        // A message without a byte.
        0 if !super::wait::is_hung_up(fd, false) => PeerState::Speaks,
        _ => PeerState::Gone,
    }
}

/// Ends the connection in both directions, for every process that holds a copy.
pub fn shutdown(fd: BorrowedFd<'_>) {
    // SAFETY: shutdown takes two ints and touches no memory of ours.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) };
}

/// The peer reads the end; what it sends can still be received.
pub fn shutdown_sending(fd: BorrowedFd<'_>) {
    // SAFETY: shutdown takes two ints and touches no memory of ours.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) };
}

/// Bytes sent here that the peer has not received yet, the kernel's bookkeeping included (unix(7), `SIOCOUTQ`).
///
/// Of a message that is received, the kernel takes one byte off last, after it has woken whoever waits for that.
pub fn unread_by_peer(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int to the address given.
    if unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).ok().filter(|&bytes| bytes > 1).unwrap_or(0))
}

/// Room for one control message of each kind that we take, aligned as cmsg(3) wants.
#[repr(C)]
union Control {
    _align: libc::cmsghdr,
    bytes: [u8; CONTROL_LEN],
}

const CONTROL_LEN: usize = {
    // SAFETY: CMSG_SPACE is arithmetic on its argument.
    unsafe { libc::CMSG_SPACE((MOST_SENT * size_of::<RawFd>()) as u32) as usize }
} + {
    // SAFETY: as above.
    unsafe { libc::CMSG_SPACE(size_of::<libc::ucred>() as u32) as usize }
};

/// Room for just [`MAX_FDS`].
const FEW_LEN: usize = {
    // SAFETY: CMSG_LEN is arithmetic on its argument.
    unsafe { libc::CMSG_LEN((MAX_FDS * size_of::<RawFd>()) as u32) as usize }
};

/// Sends one message, with descriptors when there are any (at most [`MAX_FDS`]). Never raises SIGPIPE.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>], blocking: Blocking) -> io::Result<()> {
    send_parts(fd, &[io::IoSlice::new(bytes)], fds, blocking)
}

/// Whether [`send`] failed because more descriptors of this process's user are on their way, in all sockets of the
/// machine, than the process may have open (unix(7): `ETOOMANYREFS`). It succeeds when some of them have been received.
pub fn is_crowded(e: &io::Error) -> bool {
    e.raw_os_error() == Some(libc::ETOOMANYREFS)
}

/// As [`send`], with the message in several parts.
pub fn send_parts(
    fd: BorrowedFd<'_>,
    parts: &[io::IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
    blocking: Blocking,
) -> io::Result<()> {
    if fds.len() > MAX_FDS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut control = MaybeUninit::<Control>::zeroed();
    let mut header: libc::msghdr = {
        // SAFETY: msghdr is plain data for which all zeroes is a valid, empty value.
        unsafe { MaybeUninit::zeroed().assume_init() }
    };
    header.msg_iov = parts.as_ptr().cast_mut().cast();
    header.msg_iovlen = parts.len();
    if !fds.is_empty() {
        let payload = fds.len() * size_of::<RawFd>();
        header.msg_control = control.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE is arithmetic on its argument.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(payload as u32) } as usize;
        // SAFETY: msg_control points at `control`, which is aligned and has room for MAX_FDS descriptors.
        let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
        // SAFETY: CMSG_LEN is arithmetic on its argument.
        let len = unsafe { libc::CMSG_LEN(payload as u32) } as usize;
        // SAFETY: `first` is not null, as msg_controllen covers a whole header, and lies within `control`.
        unsafe { *first = libc::cmsghdr { cmsg_len: len, cmsg_level: libc::SOL_SOCKET, cmsg_type: libc::SCM_RIGHTS } };
        // SAFETY: the data of a control message lies right behind its header, within `control`.
        let data = unsafe { libc::CMSG_DATA(first) }.cast::<RawFd>();
        for (i, fd) in fds.iter().enumerate() {
            // SAFETY: i < MAX_FDS, for which `control` has room; the write needs no alignment.
            unsafe { data.add(i).write_unaligned(fd.as_raw_fd()) };
        }
    }
    let flags = libc::MSG_NOSIGNAL | if blocking == Blocking::No { libc::MSG_DONTWAIT } else { 0 };
    loop {
        // SAFETY: all that `header` points to (parts, control) outlives the call; the kernel only reads it.
        let n = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, flags) };
        if n >= 0 {
            return Ok(());
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
}

/// What lies at the head of the queue: its length, and whether something comes with it that only a control buffer
/// could take. It stays there, descriptors are not opened.
fn look(fd: BorrowedFd<'_>) -> io::Result<(usize, bool)> {
    look_at(fd, &mut [0])
}

/// As [`look`], as far as the buffer goes. In a stream it goes no farther than to the first byte with a descriptor.
fn look_at(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<(usize, bool)> {
    let mut part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let mut header: libc::msghdr = {
        // SAFETY: msghdr is plain data for which all zeroes is a valid, empty value.
        unsafe { MaybeUninit::zeroed().assume_init() }
    };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes at most iov_len bytes into `buf`; there is no control buffer.
    let n = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) };
    let len = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    Ok((len, header.msg_flags & libc::MSG_CTRUNC != 0))
}

/// Receives one message that is to bring no descriptor, without waiting. One that does stays where it is, and is told
/// as `ErrorKind::InvalidData`: a descriptor that was received has to be closed, and that may take as long as he likes
/// who sent it (each close(2) of a copy flushes a file of FUSE). Not for a socket with [`pass_credentials`].
pub fn receive_bare(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<Received> {
    // Nobody else receives here: what was seen is what comes next.
    match look(fd)? {
        (_, true) => Err(io::ErrorKind::InvalidData.into()),
        (_, false) => receive(fd, buf, Blocking::No),
    }
}

/// Receives bytes of a stream of [`one_way`], without waiting; `Ok(0)` is the end. Where a descriptor comes with them,
/// all stays where it is, and that is told as `ErrorKind::InvalidData`, as by [`receive_bare`].
pub fn receive_stream(fd: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    let (len, more) = look_at(fd, buf)?;
    if more {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // Nobody else receives here: these very bytes come next, and nothing with them.
    match buf.get_mut(..len) {
        Some(seen @ [_, ..]) => Ok(receive(fd, seen, Blocking::No)?.len),
        _ => Ok(0),
    }
}

/// The type of a Unix socket; `None` for anything else.
fn unix_type(fd: BorrowedFd<'_>) -> Option<libc::c_int> {
    let option = |name| {
        let mut value: libc::c_int = -1;
        let mut len: libc::socklen_t = 4;
        // SAFETY: the kernel writes at most `len` bytes, an int, to a live variable.
        unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len) };
        value
    };
    (option(libc::SO_DOMAIN) == libc::AF_UNIX).then(|| option(libc::SO_TYPE))
}

/// Ends the connection in both directions, for every process that holds a copy of this end, drops what has arrived here
/// without a descriptor, and tells whether nothing else is left to be received. It stays so: what the peer sends from now on fails. To close such an end frees nothing
/// that the peer has sent, and takes no time. False for any other kind of descriptor, which is left alone.
pub fn end_is_empty(fd: BorrowedFd<'_>) -> bool {
    match unix_type(fd) {
        Some(libc::SOCK_SEQPACKET) => {
            shutdown(fd);
            drop_messages(fd)
        }
        Some(libc::SOCK_STREAM) => {
            shutdown(fd);
            urgent_in_line(fd).is_ok() && drop_bytes(fd)
        }
        _ => false,
    }
}

fn drop_messages(fd: BorrowedFd<'_>) -> bool {
    for _ in 0..MOST_DROPPED {
        match receive_bare(fd, &mut [0]) {
            Ok(dropped) if dropped.len > 0 => {}
            // It was pending, in front of what has arrived.
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            Ok(_) | Err(_) => break,
        }
    }
    // Its sender's credentials come with each message, an empty one too, and not with the end.
    if pass_credentials(fd).is_err() {
        return false;
    }
    look(fd).is_ok_and(|seen| seen == (0, false))
}

fn drop_bytes(fd: BorrowedFd<'_>) -> bool {
    for _ in 0..MOST_DROPPED {
        match receive_stream(fd, &mut [0; 4096]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            Err(_) => return false,
        }
    }
    false
}

/// Packs descriptors into a socket, in whose queue they lie: it can be sent, held and closed like any socket, and who
/// closes its last copy closes them. The own copies stay open.
pub fn parcel(fds: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
    let (outside, inside) = seqpacket_pair()?;
    for some in fds.chunks(MAX_FDS) {
        send(outside.as_fd(), b"x", some, Blocking::No)?;
    }
    Ok(inside)
}

/// Receives one message. Descriptors arrive close-on-exec.
pub fn receive(fd: BorrowedFd<'_>, buf: &mut [u8], blocking: Blocking) -> io::Result<Received> {
    receive_with(fd, buf, blocking, 0, CONTROL_LEN)
}

/// Receives one message of a stranger. One that brings more than [`MAX_FDS`] descriptors, or more than there is room for in
/// this process, stays where it is, with `fds_lost`; the first of them have come nevertheless. So nobody fills this
/// process's table with them, and the kernel closes none within the call. Not for a socket with [`pass_credentials`].
pub fn receive_few(fd: BorrowedFd<'_>, buf: &mut [u8], blocking: Blocking) -> io::Result<Received> {
    let seen = receive_with(fd, buf, blocking, libc::MSG_PEEK, FEW_LEN)?;
    if !seen.fds_lost {
        // Nobody else receives here: what was seen is dropped. Its descriptors have copies, so that closes none.
        take_seen(fd)?;
    }
    Ok(seen)
}

/// Takes the message at the head of the queue out of it.
fn take_seen(fd: BorrowedFd<'_>) -> io::Result<()> {
    loop {
        // SAFETY: recv has no room to write to.
        if unsafe { libc::recv(fd.as_raw_fd(), ptr::null_mut(), 0, libc::MSG_DONTWAIT) } >= 0 {
            return Ok(());
        }
        let e = io::Error::last_os_error();
        // The peer has ended since, with something unread: that is told once, and the message is still there.
        if e.kind() != io::ErrorKind::ConnectionReset {
            return Err(e);
        }
    }
}

fn receive_with(
    fd: BorrowedFd<'_>,
    buf: &mut [u8],
    blocking: Blocking,
    flags: libc::c_int,
    control_len: usize,
) -> io::Result<Received> {
    let mut control = MaybeUninit::<Control>::zeroed();
    let mut part = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let mut header: libc::msghdr = {
        // SAFETY: msghdr is plain data for which all zeroes is a valid, empty value.
        unsafe { MaybeUninit::zeroed().assume_init() }
    };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control_len.min(CONTROL_LEN);
    let flags = flags | libc::MSG_CMSG_CLOEXEC | if blocking == Blocking::No { libc::MSG_DONTWAIT } else { 0 };
    let len = loop {
        // SAFETY: the kernel writes at most iov_len bytes into `buf` and msg_controllen bytes into `control`.
        let n = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) };
        match usize::try_from(n) {
            Ok(n) => break n,
            Err(_) => {
                let e = io::Error::last_os_error();
                if e.kind() != io::ErrorKind::Interrupted {
                    return Err(e);
                }
            }
        }
    };
    let mut received = Received {
        len,
        fds: Vec::new(),
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        fds_lost: header.msg_flags & libc::MSG_CTRUNC != 0,
        credentials: None,
    };
    // SAFETY: the kernel filled `control` up to msg_controllen with whole control messages.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !at.is_null() {
        // SAFETY: `at` came from CMSG_FIRSTHDR or CMSG_NXTHDR and is not null, so a whole header is there.
        let head = unsafe { at.read_unaligned() };
        // SAFETY: the data lies behind the header, within `control`.
        let data = unsafe { libc::CMSG_DATA(at) };
        // SAFETY: CMSG_LEN is arithmetic on its argument.
        let payload = head.cmsg_len.saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
        match (head.cmsg_level, head.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for i in 0..payload / size_of::<RawFd>() {
                    // SAFETY: i counts whole descriptors of this control message.
                    let raw = unsafe { data.cast::<RawFd>().add(i).read_unaligned() };
                    // SAFETY: the kernel opened this descriptor for us in this very call; nobody else owns it.
                    received.fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
                }
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if payload >= size_of::<libc::ucred>() => {
                // SAFETY: the payload is at least one ucred, checked above.
                let c = unsafe { data.cast::<libc::ucred>().read_unaligned() };
                received.credentials = u32::try_from(c.pid).ok().map(|pid| Credentials { pid, uid: c.uid, gid: c.gid });
            }
            _ => {}
        }
        // SAFETY: `header` and `at` are those of this walk.
        at = unsafe { libc::CMSG_NXTHDR(&raw const header, at) };
    }
    received.fds_lost |= received.fds.len() > MAX_FDS;
    Ok(received)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_message_keeps_its_boundary_and_brings_its_descriptor() {
        let (a, b) = seqpacket_pair().expect("socketpair");
        let (mut left, right) = std::os::unix::net::UnixStream::pair().expect("pair");
        send(a.as_fd(), b"one", &[right.as_fd()], Blocking::Yes).expect("send");
        send(a.as_fd(), b"two", &[], Blocking::Yes).expect("send");
        drop(right);
        let mut buf = [0; 16];
        let got = receive(b.as_fd(), &mut buf, Blocking::Yes).expect("receive");
        assert_eq!(&buf[..got.len], b"one");
        assert_eq!(got.fds.len(), 1);
        let mut passed = std::fs::File::from(got.fds.into_iter().next().expect("one descriptor"));
        passed.write_all(b"x").expect("write");
        let mut one = [0];
        left.read_exact(&mut one).expect("read");
        assert_eq!(&one, b"x");
        let got = receive(b.as_fd(), &mut buf, Blocking::Yes).expect("receive");
        assert_eq!((&buf[..got.len], got.fds.len()), (&b"two"[..], 0));
    }

    #[test]
    fn too_long_a_message_is_reported_and_credentials_are_the_senders() {
        let (a, b) = seqpacket_pair().expect("socketpair");
        pass_credentials(b.as_fd()).expect("SO_PASSCRED");
        send(a.as_fd(), b"too long", &[], Blocking::Yes).expect("send");
        let mut buf = [0; 3];
        let got = receive(b.as_fd(), &mut buf, Blocking::Yes).expect("receive");
        assert!(got.truncated);
        assert_eq!(got.credentials.map(|c| c.pid), Some(std::process::id()));
    }

    #[test]
    fn more_descriptors_than_allowed_are_not_sent() {
        let (a, _b) = seqpacket_pair().expect("socketpair");
        let many = [a.as_fd(); MAX_FDS + 1];
        let e = send(a.as_fd(), b"x", &many, Blocking::Yes).expect_err("refused");
        assert_eq!(e.kind(), io::ErrorKind::InvalidInput);
    }

    fn with_copies(of: &OwnedFd, count: usize) {
        let sent = nix::sys::socket::sendmsg::<()>(
            of.as_raw_fd(),
            &[io::IoSlice::new(b"x")],
            &[nix::sys::socket::ControlMessage::ScmRights(&vec![of.as_raw_fd(); count])],
            nix::sys::socket::MsgFlags::empty(),
            None,
        );
        assert_eq!(sent, Ok(1));
    }

    #[test]
    fn more_descriptors_than_allowed_are_received_and_told() {
        let (a, b) = seqpacket_pair().expect("socketpair");
        with_copies(&a, MOST_SENT);
        let got = receive(b.as_fd(), &mut [0; 8], Blocking::No).expect("receive");
        assert_eq!((got.fds.len(), got.fds_lost), (MOST_SENT, true));
    }

    #[test]
    fn more_descriptors_than_allowed_stay_where_a_stranger_has_sent_them() {
        for count in [MAX_FDS + 1, MOST_SENT] {
            let (a, b) = seqpacket_pair().expect("socketpair");
            with_copies(&a, MAX_FDS);
            send(a.as_fd(), b"", &[], Blocking::No).expect("send");
            with_copies(&a, count);
            let got = receive_few(b.as_fd(), &mut [0; 8], Blocking::No).expect("receive");
            assert_eq!((got.len, got.fds.len(), got.fds_lost), (1, MAX_FDS, false));
            let got = receive_few(b.as_fd(), &mut [0; 8], Blocking::No).expect("receive");
            assert_eq!((got.len, got.fds.len(), got.fds_lost), (0, 0, false));
            for _ in 0..2 {
                let got = receive_few(b.as_fd(), &mut [0; 8], Blocking::No).expect("receive");
                assert_eq!((got.fds.len(), got.fds_lost), (MAX_FDS, true));
            }
            drop(a);
            assert!(!end_is_empty(b.as_fd()));
        }
    }

    #[test]
    fn what_a_stranger_sent_before_its_end_is_received() {
        let (a, b) = seqpacket_pair().expect("socketpair");
        send(b.as_fd(), b"unread", &[], Blocking::No).expect("send");
        send(a.as_fd(), b"answer", &[], Blocking::No).expect("send");
        drop(a);
        let mut buf = [0; 3];
        let first = receive_few(b.as_fd(), &mut buf, Blocking::Yes).map_err(|e| e.kind());
        assert_eq!(first.map(|got| got.len), Err(io::ErrorKind::ConnectionReset));
        let got = receive_few(b.as_fd(), &mut buf, Blocking::Yes).expect("receive");
        assert_eq!((&buf[..got.len], got.truncated), (&b"ans"[..], true));
        assert_eq!(receive_few(b.as_fd(), &mut buf, Blocking::Yes).expect("the end").len, 0);
    }

    #[test]
    fn an_end_is_empty_when_nothing_was_sent_to_it() {
        let (a, b) = seqpacket_pair().expect("socketpair");
        assert!(end_is_empty(a.as_fd()) && end_is_empty(b.as_fd()));
        assert!(send(b.as_fd(), b"x", &[], Blocking::No).is_err(), "it was shut down");
        for message in [&b"x"[..], b""] {
            for with in [true, false] {
                let (a, b) = seqpacket_pair().expect("socketpair");
                let fd = [a.as_fd()];
                send(a.as_fd(), message, if with { &fd } else { &[] }, Blocking::No).expect("send");
                // Only what is nothing but bytes is dropped.
                let plain = !with;
                assert_eq!(end_is_empty(b.as_fd()), plain, "{message:?} {with}");
                // Also when the peer is gone, and has left something unread itself.
                let (a, b) = seqpacket_pair().expect("socketpair");
                send(a.as_fd(), message, if with { &fd } else { &[] }, Blocking::No).expect("send");
                send(b.as_fd(), b"unread", &[], Blocking::No).expect("send");
                drop(a);
                assert_eq!(end_is_empty(b.as_fd()), plain, "{message:?} {with}");
            }
        }
        let (a, b) = seqpacket_pair().expect("socketpair");
        send(b.as_fd(), b"unread", &[], Blocking::No).expect("send");
        drop(a);
        assert!(end_is_empty(b.as_fd()));
        let (a, _b) = std::os::unix::net::UnixDatagram::pair().expect("pair");
        assert!(!end_is_empty(a.as_fd()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let stream = std::net::TcpStream::connect(listener.local_addr().expect("its address")).expect("connect");
        assert!(!end_is_empty(stream.as_fd()) && !end_is_empty(listener.as_fd()));
    }

    #[test]
    fn a_descriptor_where_none_belongs_is_not_received() {
        let (a, b) = seqpacket_pair().expect("socketpair");
        let mut buf = [0; 8];
        let e = receive_bare(b.as_fd(), &mut buf).expect_err("nothing");
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        send(a.as_fd(), b"one", &[], Blocking::No).expect("send");
        send(a.as_fd(), b"two", &[a.as_fd()], Blocking::No).expect("send");
        assert_eq!(receive_bare(b.as_fd(), &mut buf).expect("the first").len, 3);
        for _ in 0..2 {
            let e = receive_bare(b.as_fd(), &mut buf).expect_err("the second");
            assert_eq!(e.kind(), io::ErrorKind::InvalidData);
        }
        drop(a);
        let (a, b) = seqpacket_pair().expect("socketpair");
        drop(a);
        assert_eq!(receive_bare(b.as_fd(), &mut buf).expect("the end").len, 0);
    }

    #[test]
    fn a_parcel_holds_its_descriptors_until_it_is_closed() {
        let (mut left, right) = std::os::unix::net::UnixStream::pair().expect("pair");
        let packed = parcel(&[right.as_fd(); 6]).expect("parcel");
        drop(right);
        assert!(!crate::sys::wait::is_hung_up(left.as_fd(), false));
        drop(packed);
        assert_eq!(left.read(&mut [0]).expect("the end"), 0);
    }

    #[test]
    fn what_the_peer_has_not_received_is_known() {
        let (a, b) = seqpacket_pair().expect("socketpair");
        assert_eq!(unread_by_peer(a.as_fd()).expect("ioctl"), 0);
        send(a.as_fd(), b"one", &[], Blocking::Yes).expect("send");
        assert!(unread_by_peer(a.as_fd()).expect("ioctl") > 0);
        receive(b.as_fd(), &mut [0; 16], Blocking::Yes).expect("receive");
        assert_eq!(unread_by_peer(a.as_fd()).expect("ioctl"), 0);
    }

    #[test]
    fn only_a_live_peer_that_has_said_nothing_is_quiet() {
        let (a, b) = seqpacket_pair().expect("socketpair");
        assert_eq!(peer_state(a.as_fd()), PeerState::Quiet);
        send(b.as_fd(), b"unasked", &[], Blocking::Yes).expect("send");
        assert_eq!(peer_state(a.as_fd()), PeerState::Speaks);
        let mut buf = [0; 16];
        assert_eq!(receive(a.as_fd(), &mut buf, Blocking::Yes).expect("receive").len, 7);
        send(b.as_fd(), b"", &[], Blocking::Yes).expect("send");
        assert_eq!(peer_state(a.as_fd()), PeerState::Speaks, "an empty message is not the end");
        assert_eq!(receive(a.as_fd(), &mut buf, Blocking::Yes).expect("receive").len, 0);
        assert_eq!(peer_state(a.as_fd()), PeerState::Quiet);
        drop(b);
        assert_eq!(peer_state(a.as_fd()), PeerState::Gone);
    }

    /// Sends with a descriptor, as somebody does who means ill.
    fn send_with(
        fd: BorrowedFd<'_>,
        bytes: &[u8],
        flags: nix::sys::socket::MsgFlags,
        fds: &[RawFd],
    ) -> nix::Result<usize> {
        let rights = [nix::sys::socket::ControlMessage::ScmRights(fds)];
        nix::sys::socket::sendmsg::<()>(fd.as_raw_fd(), &[io::IoSlice::new(bytes)], &rights, flags, None)
    }

    #[test]
    fn a_one_way_stream_is_read_without_waiting_and_written_like_a_pipe() {
        let (read, write) = one_way().expect("socketpair");
        let mut buf = [0; 8];
        let e = receive_stream(read.as_fd(), &mut buf).expect_err("empty");
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        let mut file = std::fs::File::from(write.try_clone().expect("dup"));
        file.write_all(b"abc").expect("write");
        file.write_all(b"defghi").expect("write");
        assert_eq!(receive_stream(read.as_fd(), &mut buf).expect("data"), 8);
        assert_eq!(&buf, b"abcdefgh");
        assert_eq!(receive_stream(read.as_fd(), &mut buf).expect("data"), 1);
        // Nothing goes the other way.
        assert!(send(read.as_fd(), b"x", &[], Blocking::No).is_err());
        assert_eq!(file.read(&mut buf).expect("the end"), 0);
        nix::fcntl::fcntl(&write, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).expect("fcntl");
        let mut taken = 0;
        while let Ok(n) = file.write(&[b'x'; 4096]) {
            taken += n;
        }
        assert!((32 << 10..=128 << 10).contains(&taken), "{taken}");
        drop((file, write));
        while receive_stream(read.as_fd(), &mut buf).expect("data") > 0 {}
    }

    #[test]
    fn a_descriptor_in_a_stream_is_not_received() {
        for flags in [nix::sys::socket::MsgFlags::empty(), nix::sys::socket::MsgFlags::MSG_OOB] {
            let (read, write) = one_way().expect("socketpair");
            let (kept, sent) = std::os::unix::net::UnixStream::pair().expect("pair");
            send(write.as_fd(), b"text", &[], Blocking::No).expect("send");
            assert_eq!(send_with(write.as_fd(), b"x", flags, &[sent.as_raw_fd()]), Ok(1));
            send(write.as_fd(), b"more", &[], Blocking::No).expect("send");
            drop(sent);
            let (mut got, mut buf) = (Vec::new(), [0; 64]);
            let end = loop {
                match receive_stream(read.as_fd(), &mut buf) {
                    Ok(n) => got.extend_from_slice(&buf[..n]),
                    Err(e) => break e,
                }
            };
            // An urgent byte is a mark at which a look ends.
            assert!(got.is_empty() || got == b"text", "{got:?}");
            assert_eq!(end.kind(), io::ErrorKind::InvalidData);
            assert_eq!(peer_state(kept.as_fd()), PeerState::Quiet, "nobody has closed what was sent");
            assert!(!end_is_empty(read.as_fd()));
            assert_eq!(peer_state(kept.as_fd()), PeerState::Quiet);
            assert!(send(write.as_fd(), b"x", &[], Blocking::No).is_err(), "it has ended");
            drop(read);
            assert_eq!(peer_state(kept.as_fd()), PeerState::Gone);
        }
    }

    #[test]
    fn the_end_of_a_stream_is_empty_where_no_descriptor_lies_in_it() {
        let (read, write) = one_way().expect("socketpair");
        assert!(end_is_empty(one_way().expect("socketpair").0.as_fd()));
        let written = std::fs::File::from(write.try_clone().expect("dup")).write(&[b'x'; 50_000]);
        assert_eq!(written.expect("write"), 50_000);
        assert!(end_is_empty(read.as_fd()));
        assert!(send(write.as_fd(), b"x", &[], Blocking::No).is_err(), "and stays so");
        // Who listens may have connections in its queue.
        let listener = std::os::unix::net::UnixListener::bind_addr(&{
            use std::os::linux::net::SocketAddrExt;
            std::os::unix::net::SocketAddr::from_abstract_name(format!("mod_pool-{}", std::process::id()))
                .expect("name")
        })
        .expect("listen");
        assert!(!end_is_empty(listener.as_fd()));
    }

    #[test]
    fn the_end_of_the_peer_is_an_empty_message() {
        let (a, b) = seqpacket_pair().expect("socketpair");
        drop(a);
        let got = receive(b.as_fd(), &mut [0; 4], Blocking::Yes).expect("receive");
        assert_eq!(got.len, 0);
    }
}
