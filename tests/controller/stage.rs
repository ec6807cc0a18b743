//! The parent's and the frontends' side of these tests.

use crate::cast::{Behaviour, BUILD};
use mod_pool::controller::{run, ControllerStart};
use mod_pool::sys::clock;
use mod_pool::sys::fork::exit_now;
use mod_pool::sys::socket::{self, Blocking};
use mod_pool::wire::control::{
    Arrival, ControllerMessage, FrontendMessage, Hello, InFlight, LeaseId, LendCount, ParentMessage, PoolRow,
    PoolTable, Refusal, Returned, WantId, CONTROL_VERSION, MAX_CONTROL_MESSAGE,
};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Of a request that comes now.
pub fn want(number: u32, pool: u32) -> FrontendMessage {
    FrontendMessage::Want { want: WantId(number), pool, arrived: Arrival(clock::micros()) }
}

/// Longest wait for anything: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(15);
/// The pool's uid where we may choose one.
pub const POOL_UID: u32 = 65_534;

fn pid_of(pid: u32) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"))
}

/// Runs `f` in a child of this process, which has one thread; the child ends with 0 if it returned true.
pub fn fork(f: impl FnOnce() -> bool) -> u32 {
    // SAFETY: this process has one thread, so the child may go on like any program.
    match unsafe { nix::unistd::fork() }.expect("fork") {
        nix::unistd::ForkResult::Parent { child } => u32::try_from(child.as_raw()).expect("positive"),
        nix::unistd::ForkResult::Child => {
            let ok = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).unwrap_or(false);
            exit_now(i32::from(!ok))
        }
    }
}

pub fn wait(pid: u32) -> i32 {
    match nix::sys::wait::waitpid(pid_of(pid), None).expect("waitpid") {
        nix::sys::wait::WaitStatus::Exited(_, code) => code,
        _ => -1,
    }
}

pub fn kill(pid: u32) {
    nix::sys::signal::kill(pid_of(pid), nix::sys::signal::Signal::SIGKILL).expect("kill");
}

pub fn stop(pid: u32) {
    nix::sys::signal::kill(pid_of(pid), nix::sys::signal::Signal::SIGSTOP).expect("kill");
}

pub fn go_on(pid: u32) {
    nix::sys::signal::kill(pid_of(pid), nix::sys::signal::Signal::SIGCONT).expect("kill");
}

/// Whether it is there, and stopped now.
pub fn try_stop(pid: u32) -> bool {
    let _ = nix::sys::signal::kill(pid_of(pid), nix::sys::signal::Signal::SIGSTOP);
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('T'))
}

pub fn session(pid: u32) -> u32 {
    mod_pool::sys::process::session_of(pid).expect("alive")
}

pub fn terminate(pid: u32) {
    nix::sys::signal::kill(pid_of(pid), nix::sys::signal::Signal::SIGTERM).expect("kill");
}

pub fn in_a_child(f: impl FnOnce() -> bool) -> bool {
    wait(fork(f)) == 0
}

/// As [`in_a_child`], after the parent has announced the child.
pub fn in_an_announced_child(stage: &Stage, f: impl FnOnce(&OwnedFd) -> bool) -> bool {
    let child = stage.fork(f);
    stage.announce(&child);
    wait(child.pid) == 0
}

/// A process of this user, where we may choose, that is the child of another one than this; that one's pid first. It
/// ends with its child.
pub fn process_of_another(uid: u32) -> (u32, u32) {
    let (said, heard) = socket::seqpacket_pair().expect("socketpair");
    let between = fork(|| {
        let pid = fork(|| {
            if mod_pool::sys::privileges::effective_uid() == 0 {
                mod_pool::sys::privileges::change_user(uid, uid, &[uid]).expect("setuid");
            }
            std::thread::sleep(Duration::from_secs(60));
            true
        });
        socket::send(said.as_fd(), &pid.to_be_bytes(), &[], Blocking::Yes).expect("send");
        nix::sys::wait::waitpid(pid_of(pid), None).is_ok()
    });
    let mut pid = [0; 4];
    socket::receive(heard.as_fd(), &mut pid, Blocking::Yes).expect("receive");
    let pid = u32::from_be_bytes(pid);
    eventually("its user", || {
        !Stage::chooses_users() || mod_pool::sys::process::uids_of(pid).is_ok_and(|uids| uids == [uid; 4])
    });
    (between, pid)
}

/// Whether a process exists that has not ended.
pub fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
}

/// But for the writers of the controller's log.
pub fn children_of(pid: u32) -> Vec<u32> {
    children(pid).into_iter().filter(|pid| !is_log_writer(*pid)).collect()
}

pub fn log_writers_of(pid: u32) -> Vec<u32> {
    children(pid).into_iter().filter(|pid| is_log_writer(*pid)).collect()
}

fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|p| p.parse().expect("pid")).collect()
}

fn is_log_writer(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|title| title.starts_with(b"mod_pool: log writer"))
}

/// Somebody who keeps a pipe's mutex: splice(2) waits with it for a socket on which nothing comes. To be declared after the
/// pipe: who closes the pipe while this one is there waits for it, whatever he is.
#[derive(Debug)]
pub struct Holder {
    pid: u32,
    _silent: [OwnedFd; 2],
}

impl Holder {
    pub fn of(write: &OwnedFd) -> Self {
        let (silent, other) = socket::seqpacket_pair().expect("socketpair");
        let pid = fork(|| {
            // SAFETY: takes integers only: it ends with this process, also where that cannot unwind.
            unsafe { nix::libc::prctl(nix::libc::PR_SET_PDEATHSIG, nix::libc::SIGKILL, 0, 0, 0) };
            let (from, to, none) = (silent.as_raw_fd(), write.as_raw_fd(), std::ptr::null_mut());
            // SAFETY: without offsets nothing of our memory is read or written.
            unsafe { nix::libc::splice(from, none, to, none, 4096, 0) };
            true
        });
        let holder = Self { pid, _silent: [silent, other] };
        let number = format!("{} ", nix::libc::SYS_splice);
        let syscall = || std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
        eventually("the pipe is held", || syscall().starts_with(&number));
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        kill(self.pid);
        wait(self.pid);
    }
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn write_all(fd: &OwnedFd, bytes: &[u8]) {
    File::from(fd.try_clone().expect("dup")).write_all(bytes).expect("write");
}

pub fn read_some(fd: &OwnedFd) -> String {
    let mut buf = [0; 1024];
    let mut n = 0;
    eventually("something to read", || {
        n = mod_pool::sys::descriptor::read(fd, &mut buf).unwrap_or(0);
        n > 0
    });
    String::from_utf8_lossy(&buf[..n]).into_owned()
}

/// A connection full of what nobody reads: who closes it last waits for 20 seconds, unless he is ending.
pub fn lingering(to: &str) -> OwnedFd {
    let mut stream = std::net::TcpStream::connect(to).expect("connect");
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 20 };
    nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).expect("SO_LINGER");
    stream.set_nonblocking(true).expect("O_NONBLOCK");
    while stream.write(&[0; 65536]).is_ok() {}
    stream.into()
}

/// What an exec of the controller's image does: it holds nothing of the parent's.
fn close_all_but(keep: &[RawFd]) {
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")
        .expect("proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > 2 && !keep.contains(fd))
        .collect();
    for fd in open {
        // The descriptor of the directory itself is closed by now.
        let _ = nix::unistd::close(fd);
    }
}

/// A child that may be a frontend.
#[derive(Debug)]
pub struct Child {
    pub pid: u32,
    connector: OwnedFd,
}

/// httpd's parent with a controller.
#[derive(Debug)]
pub struct Stage {
    speak: OwnedFd,
    listen: OwnedFd,
    pub controller: u32,
    keeper: u32,
    /// The other end is the keeper's.
    lifeline: OwnedFd,
    reaped: bool,
    parent: u32,
    pub root: bool,
    newest: u64,
}

impl Stage {
    fn chooses_users() -> bool {
        mod_pool::sys::privileges::effective_uid() == 0
    }

    pub fn open(behaviour: Behaviour, cap: u32, idle_timeout_ms: u64) -> Self {
        let (speak, listen) = socket::seqpacket_pair().expect("socketpair");
        // Credentials travel only with what is sent after this.
        socket::pass_credentials(listen.as_fd()).expect("SO_PASSCRED");
        let root = Self::chooses_users();
        let parent = std::process::id();
        // Until there is one.
        let lifeline = listen.try_clone().expect("dup");
        let mut stage =
            Self { speak, listen, controller: 0, keeper: 0, lifeline, reaped: true, parent, root, newest: 0 };
        stage.start_controller();
        stage.configure(1, behaviour, cap, idle_timeout_ms);
        stage
    }

    pub fn start_controller(&mut self) {
        let parent = std::process::id();
        let older = (self.keeper != 0).then_some(self.keeper);
        let (lifeline, ours) = socket::seqpacket_pair().expect("socketpair");
        self.lifeline = ours;
        self.keeper = fork(|| {
            let connector = self.listen.try_clone().expect("dup");
            close_all_but(&[connector.as_raw_fd(), lifeline.as_raw_fd()]);
            run(ControllerStart { connector, lifeline: Some(lifeline), parent, build_id: BUILD })
        });
        eventually("the controller", || !children_of(self.keeper).is_empty());
        self.controller = children_of(self.keeper)[0];
        self.reaped = false;
        self.say(&ParentMessage::Begin { keeper: self.keeper }, &[]);
        if let Some(pid) = older {
            self.say(&ParentMessage::OlderKeeper { pid }, &[]);
        }
    }

    pub fn configure(&mut self, generation: u64, behaviour: Behaviour, cap: u32, idle_timeout_ms: u64) {
        self.tell(generation, false, behaviour, cap, idle_timeout_ms, std::io::stderr().as_fd());
        self.newest = generation;
    }

    /// To a controller that has taken over.
    pub fn configure_older(&self, generation: u64, behaviour: Behaviour, cap: u32) {
        self.tell(generation, true, behaviour, cap, 30_000, std::io::stderr().as_fd());
    }

    /// What the controller logs from now on goes there. A configuration that it knows changes nothing else.
    pub fn log_to(&self, errors: BorrowedFd<'_>) {
        self.tell(self.newest, false, Behaviour::Good, 1, 30_000, errors);
    }

    fn tell(
        &self,
        generation: u64,
        older: bool,
        behaviour: Behaviour,
        cap: u32,
        idle_timeout_ms: u64,
        errors: BorrowedFd<'_>,
    ) {
        let own = mod_pool::sys::process::own_uid();
        let uid = if self.root { POOL_UID } else { own };
        let row = |name: &str, parent, uid| PoolRow {
            name: name.into(),
            parent,
            uid,
            max_processes: cap,
            min_spare: 0,
            idle_timeout_ms,
            queue_timeout_ms: 10_000,
            queue_limit: 10,
            kill_grace_ms: 5_000,
        };
        let table = PoolTable {
            generation,
            frontend_uid: own,
            seed_argv: behaviour.argv(uid),
            pools: vec![row("", None, None), row("alice", Some(0), Some(uid)), row("bob", Some(0), Some(uid))],
        };
        let memory = nix::sys::memfd::memfd_create("table", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("memfd");
        write_all(&memory, &table.encode());
        self.say(&ParentMessage::Configure { generation, older }, &[memory.as_fd(), errors]);
    }

    pub fn say(&self, message: &ParentMessage, fds: &[BorrowedFd<'_>]) {
        socket::send(self.speak.as_fd(), &message.encode(), fds, Blocking::Yes).expect("connector");
    }

    /// As the parent's fork handlers do it: the child has one end of a connector, and the controller gets the other.
    pub fn fork(&self, f: impl FnOnce(&OwnedFd) -> bool) -> Child {
        let (own, other) = socket::seqpacket_pair().expect("socketpair");
        socket::pass_credentials(other.as_fd()).expect("SO_PASSCRED");
        let pid = fork(|| f(&own));
        Child { pid, connector: other }
    }

    pub fn announce(&self, child: &Child) {
        self.announce_of(child, self.newest);
    }

    pub fn announce_of(&self, child: &Child, generation: u64) {
        self.say(&ParentMessage::ChildStarted { pid: child.pid, generation }, &[child.connector.as_fd()]);
    }

    /// This very process as a frontend, as with -X.
    pub fn frontend(&self) -> Frontend {
        Frontend::hello(&self.speak, 1, vec![])
    }

    /// The parent's own end.
    pub fn connector(&self) -> &OwnedFd {
        &self.speak
    }

    pub fn reap_controller(&mut self) -> i32 {
        self.reaped = true;
        let mut status = [0; 4];
        // The keeper of one that has ended as it should ends with it, and says nothing.
        let received = socket::receive(self.lifeline.as_fd(), &mut status, Blocking::Yes).expect("the end");
        if received.len == 0 {
            return wait(self.keeper);
        }
        i32::from_be_bytes(status)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.reaped && self.parent == std::process::id() {
            let all = children_of(self.controller);
            if std::thread::panicking() {
                // It may not listen, and its queue may be full.
                kill(self.controller);
            } else {
                self.say(&ParentMessage::Stop, &[]);
            }
            let status = self.reap_controller();
            if !std::thread::panicking() {
                assert_eq!(status, 0, "the controller's exit status");
                assert!(all.iter().all(|pid| !alive(*pid)), "something outlived its controller");
            }
        }
    }
}

/// A lease as a frontend holds it.
#[derive(Debug)]
pub struct Lease {
    pub id: LeaseId,
    pub lend: LendCount,
    pub pid: u32,
    pub cold: bool,
    pub data: OwnedFd,
}

impl Lease {
    pub fn tell(&self, text: &str) {
        socket::send(self.data.as_fd(), text.as_bytes(), &[], Blocking::Yes).expect("worker");
    }

    pub fn ask(&self, text: &str) -> String {
        self.tell(text);
        let mut buf = [0; 256];
        socket::receive_timeout(self.data.as_fd(), PATIENCE).expect("timeout");
        let got = socket::receive(self.data.as_fd(), &mut buf, Blocking::Yes).expect("an answer");
        String::from_utf8_lossy(&buf[..got.len]).into_owned()
    }
}

/// A frontend's channel.
#[derive(Debug)]
pub struct Frontend {
    channel: OwnedFd,
    kept: Vec<(ControllerMessage, Vec<OwnedFd>)>,
    pids: Vec<u32>,
}

impl Frontend {
    pub fn hello(connector: &OwnedFd, generation: u64, in_flight: Vec<InFlight>) -> Self {
        let (channel, theirs) = socket::seqpacket_pair().expect("socketpair");
        Self::hello_with(connector, generation, in_flight, theirs.as_fd());
        Self { channel, kept: Vec::new(), pids: Vec::new() }
    }

    /// With any descriptor as the channel.
    pub fn hello_with(connector: &OwnedFd, generation: u64, in_flight: Vec<InFlight>, channel: BorrowedFd<'_>) {
        let hello = Hello { version: CONTROL_VERSION, build_id: BUILD, generation, in_flight };
        socket::send(connector.as_fd(), &hello.encode(), &[channel], Blocking::Yes).expect("connector");
    }

    pub fn send(&self, message: &FrontendMessage) {
        // A controller that refuses us closes the channel.
        let _ = self.try_send(message);
    }

    pub fn try_send(&self, message: &FrontendMessage) -> bool {
        socket::send(self.channel.as_fd(), &message.encode(), &[], Blocking::Yes).is_ok()
    }

    /// `None` after the time, a message of `None` at the end of the channel.
    pub fn receive(&mut self, patience: Duration) -> Option<(Option<ControllerMessage>, Vec<OwnedFd>)> {
        let mut buf = [0; MAX_CONTROL_MESSAGE];
        socket::receive_timeout(self.channel.as_fd(), patience).expect("timeout");
        match socket::receive(self.channel.as_fd(), &mut buf, Blocking::Yes) {
            Ok(got) if got.len == 0 => Some((None, vec![])),
            Ok(got) => Some((Some(ControllerMessage::decode(&buf[..got.len]).expect("well-formed")), got.fds)),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(_) => Some((None, vec![])),
        }
    }

    fn next<T>(&mut self, what: &str, which: impl Fn(&ControllerMessage) -> Option<T>) -> (T, Vec<OwnedFd>) {
        if let Some(at) = self.kept.iter().position(|(m, _)| which(m).is_some()) {
            let (message, fds) = self.kept.remove(at);
            return (which(&message).expect("just seen"), fds);
        }
        let began = Instant::now();
        loop {
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
            match self.receive(Duration::from_secs(1)) {
                Some((Some(message), fds)) => match which(&message) {
                    Some(value) => return (value, fds),
                    None => self.kept.push((message, fds)),
                },
                Some((None, _)) => panic!("the channel ended, waiting for {what}"),
                None => {}
            }
        }
    }

    pub fn expect<T>(&mut self, what: &str, which: impl Fn(&ControllerMessage) -> Option<T>) -> T {
        self.next(what, which).0
    }

    pub fn granted(&mut self, number: u32) -> Lease {
        let ((id, lend, pid, cold), fds) = self.next("a grant", |m| match m {
            ControllerMessage::Grant { want, lease, lend, pid, cold, .. } if *want == WantId(number) => {
                Some((*lease, *lend, *pid, *cold))
            }
            ControllerMessage::Refuse { want, text, .. } if *want == WantId(number) => panic!("refused: {text}"),
            _ => None,
        });
        self.pids.push(pid);
        Lease { id, lend, pid, cold, data: fds.into_iter().next().expect("the data socket") }
    }

    pub fn lease(&mut self, number: u32, pool: u32) -> Lease {
        self.send(&want(number, pool));
        self.granted(number)
    }

    pub fn refused(&mut self, number: u32) -> (Refusal, String) {
        self.expect("a refusal", |m| match m {
            ControllerMessage::Refuse { want, reason, text, .. } if *want == WantId(number) => {
                Some((*reason, text.clone()))
            }
            _ => None,
        })
    }

    /// Whether a worker with this pid was ever granted.
    pub fn knows(&self, pid: u32) -> bool {
        self.pids.contains(&pid)
    }

    pub fn send_with(&self, message: &FrontendMessage, fds: &[BorrowedFd<'_>]) {
        socket::send(self.channel.as_fd(), &message.encode(), fds, Blocking::Yes).expect("channel");
    }

    /// With the data socket, however it is.
    pub fn give_back_all(&self, lease: Lease, how: Returned) {
        let message = FrontendMessage::Return { lease: lease.id, lend: lease.lend, how };
        self.send_with(&message, &[lease.data.as_fd()]);
    }

    pub fn give_back(&self, lease: Lease, how: Returned) {
        let message = FrontendMessage::Return { lease: lease.id, lend: lease.lend, how };
        let fds = [lease.data.as_fd()];
        let fds: &[BorrowedFd<'_>] = if how == Returned::Idle { &fds } else { &[] };
        socket::send(self.channel.as_fd(), &message.encode(), fds, Blocking::Yes).expect("channel");
    }
}
