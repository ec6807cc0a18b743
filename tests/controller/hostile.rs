//! A pool whose zygote, or worker, is in an attacker's hands. Whatever it does, other pools are served, and all of it ends.

use crate::cast::Behaviour;
use crate::stage::{self, alive, children_of, eventually, want, Stage};
use crate::Test;
use mod_pool::sys::fork::{exit_now, fork_as_sibling, Forked};
use mod_pool::sys::socket::{self, Blocking};
use mod_pool::sys::{launch, privileges, process};
use mod_pool::wire::control::{Refusal, Returned, ZygoteReport, MAX_CONTROL_MESSAGE};
use nix::libc;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = tests![
    a_zygote_in_an_attackers_hands_harms_its_pool_only,
    a_zygote_that_has_served_is_held_to_the_protocol,
    a_worker_that_somebody_traces_is_gone_all_the_same,
    a_worker_that_is_stopped_at_its_end_is_gone_all_the_same,
    a_worker_of_which_a_thread_is_traced_is_gone_all_the_same,
    who_traces_a_worker_does_not_outlive_the_server,
    who_traces_a_worker_outlives_no_server_whose_controller_has_died,
];

/// An order to fork a worker, and what came with it.
#[derive(Debug, Clone, Copy)]
pub struct Order<'o> {
    pub channel: &'o OwnedFd,
    pub request: u32,
    pub data: &'o OwnedFd,
    /// Orders that this zygote had before.
    pub before: u32,
}

/// What a zygote does with each order; whether it was all. Else the zygote carries the order out.
pub type Attack = fn(&Order<'_>) -> bool;

macro_rules! attacks {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name)),*] };
}

pub const ATTACKS: &[(&str, Attack)] = attacks![
    tells_itself,
    tells_the_controller,
    tells_the_parent,
    tells_a_worker_of_another,
    tells_nobody,
    tells_the_highest,
    tells_no_pid,
    tells_a_thread,
    tells_a_zombie,
    tells_what_is_traced,
    tells_one_twice,
    answers_twice,
    answers_another,
    is_ready_for_ever,
    fails_for_ever,
    says_nothing,
    sends_an_empty_message,
    sends_the_largest_message,
    sends_too_large_a_message,
    sends_half_a_message,
    sends_many_descriptors,
    sends_a_lingering_socket,
    sends_no_more,
    reads_no_more,
    stops,
    ends,
    keeps_the_lease,
    forks_on_its_own,
    breaks_the_protocol_later,
];

impl Order<'_> {
    fn send(&self, bytes: &[u8]) -> bool {
        socket::send(self.channel.as_fd(), bytes, &[], Blocking::Yes).is_ok()
    }

    fn answer(&self, pid: u32) -> Vec<u8> {
        ZygoteReport::Forked { request: self.request, pid }.encode()
    }

    fn tell(&self, pid: u32) -> bool {
        self.send(&self.answer(pid));
        true
    }
}

/// As a worker, but for what it does.
fn sibling(f: impl FnOnce()) -> u32 {
    match fork_as_sibling().expect("fork") {
        Forked::Child => {
            privileges::new_session();
            f();
            exit_now(0)
        }
        Forked::Parent { child } => child,
    }
}

fn sleep() {
    std::thread::sleep(Duration::from_secs(60));
}

fn tells_itself(order: &Order<'_>) -> bool {
    order.tell(std::process::id())
}

fn tells_the_controller(order: &Order<'_>) -> bool {
    order.tell(launch::parent_pid())
}

fn tells_the_parent(order: &Order<'_>) -> bool {
    order.tell(process::parent_of(launch::parent_pid()).unwrap_or(1))
}

fn tells_a_worker_of_another(order: &Order<'_>) -> bool {
    let others = process::children_of(launch::parent_pid()).into_iter().filter(|pid| *pid != std::process::id());
    order.tell(others.max().unwrap_or(1))
}

fn tells_nobody(order: &Order<'_>) -> bool {
    let gone = stage::fork(|| true);
    stage::wait(gone);
    order.tell(gone)
}

fn tells_the_highest(order: &Order<'_>) -> bool {
    order.tell(i32::MAX.cast_unsigned())
}

fn tells_no_pid(order: &Order<'_>) -> bool {
    let mut bytes = order.answer(1);
    let at = bytes.len() - 4;
    bytes[at..].fill(0xff);
    order.send(&bytes)
}

fn tells_a_thread(order: &Order<'_>) -> bool {
    order.tell(sleeping_thread())
}

fn tells_a_zombie(order: &Order<'_>) -> bool {
    let child = sibling(|| {});
    std::thread::sleep(Duration::from_millis(50));
    order.tell(child)
}

fn tells_what_is_traced(order: &Order<'_>) -> bool {
    let child = sibling(|| {
        may_be_traced();
        sleep();
    });
    trace(child, false);
    order.tell(child);
    std::thread::sleep(Duration::from_millis(50));
    stage::kill(child);
    true
}

fn tells_one_twice(order: &Order<'_>) -> bool {
    let child = sibling(sleep);
    order.tell(child);
    Order { request: order.request.wrapping_add(1), ..*order }.tell(child)
}

fn answers_twice(order: &Order<'_>) -> bool {
    order.tell(sibling(sleep));
    order.tell(sibling(sleep))
}

fn answers_another(order: &Order<'_>) -> bool {
    Order { request: !order.request, ..*order }.tell(sibling(sleep))
}

fn is_ready_for_ever(order: &Order<'_>) -> bool {
    while order.send(&ZygoteReport::Ready.encode()) {}
    true
}

fn fails_for_ever(order: &Order<'_>) -> bool {
    while order.send(&ZygoteReport::Failed { text: "so it is".into() }.encode()) {}
    true
}

fn says_nothing(_: &Order<'_>) -> bool {
    true
}

fn sends_an_empty_message(order: &Order<'_>) -> bool {
    order.send(b"");
    sleep();
    true
}

fn sends_the_largest_message(order: &Order<'_>) -> bool {
    order.send(&[0; MAX_CONTROL_MESSAGE])
}

fn sends_too_large_a_message(order: &Order<'_>) -> bool {
    order.send(&[2; 8 * MAX_CONTROL_MESSAGE])
}

fn sends_half_a_message(order: &Order<'_>) -> bool {
    order.send(&order.answer(1)[..3])
}

fn sends_many_descriptors(order: &Order<'_>) -> bool {
    use nix::sys::socket::{sendmsg, ControlMessage, MsgFlags};
    let bytes = order.answer(1);
    let parts = [std::io::IoSlice::new(&bytes)];
    let with = [ControlMessage::ScmRights(&[order.data.as_raw_fd(); 250])];
    for _ in 0..100 {
        let _ = sendmsg::<()>(order.channel.as_raw_fd(), &parts, &with, MsgFlags::MSG_DONTWAIT, None);
    }
    true
}

fn sends_a_lingering_socket(order: &Order<'_>) -> bool {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let full = stage::lingering(&listener.local_addr().expect("address").to_string());
    let _ = socket::send(order.channel.as_fd(), &order.answer(1), &[full.as_fd()], Blocking::No);
    drop(full);
    sleep();
    true
}

fn sends_no_more(order: &Order<'_>) -> bool {
    socket::shutdown_sending(order.channel.as_fd());
    sleep();
    true
}

fn reads_no_more(order: &Order<'_>) -> bool {
    order.tell(sibling(sleep));
    // SAFETY: takes integers.
    unsafe { libc::shutdown(order.channel.as_raw_fd(), libc::SHUT_RD) };
    sleep();
    true
}

fn stops(_: &Order<'_>) -> bool {
    stage::stop(std::process::id());
    true
}

fn ends(_: &Order<'_>) -> bool {
    exit_now(0)
}

/// Its worker ends, and the socket does not.
fn keeps_the_lease(order: &Order<'_>) -> bool {
    std::mem::forget(order.data.try_clone());
    order.tell(sibling(|| {}))
}

fn forks_on_its_own(order: &Order<'_>) -> bool {
    for _ in 0..300 {
        sibling(sleep);
    }
    order.tell(sibling(sleep))
}

/// Its first worker serves.
fn breaks_the_protocol_later(order: &Order<'_>) -> bool {
    order.before > 0 && answers_another(order)
}

pub fn attack(name: &str) -> Option<Attack> {
    ATTACKS.iter().find(|attack| attack.0 == name).map(|attack| attack.1)
}

/// A thread of this process that sleeps.
fn sleeping_thread() -> u32 {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // SAFETY: takes nothing.
        let _ = tell.send(unsafe { libc::gettid() });
        sleep();
    });
    told.recv().expect("a thread").cast_unsigned()
}

/// A change of user has forbidden it.
fn may_be_traced() {
    // SAFETY: takes integers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) };
}

/// A child of the caller's traces this thread, and takes no notice of its end, which the kernel then shows to nobody else.
/// With `exit` it stops there until the tracer lets it go on.
fn trace(thread: u32, exit: bool) -> u32 {
    let (tell, told) = socket::seqpacket_pair().expect("socketpair");
    let tracer = stage::fork(|| {
        let none = std::ptr::null_mut::<libc::c_void>();
        let options = if exit { libc::PTRACE_O_TRACEEXIT } else { 0 };
        let options = std::ptr::without_provenance_mut::<libc::c_void>(usize::try_from(options).expect("small"));
        // SAFETY: nothing of our memory is read or written.
        let traces = || unsafe { libc::ptrace(libc::PTRACE_SEIZE, thread.cast_signed(), none, options) == 0 };
        // It may not have allowed it yet.
        eventually("it is traced", traces);
        socket::send(tell.as_fd(), b"x", &[], Blocking::Yes).expect("send");
        sleep();
        true
    });
    drop(tell);
    let told = socket::receive(told.as_fd(), &mut [0], Blocking::Yes);
    assert!(told.is_ok_and(|told| told.len == 1), "it is not traced");
    tracer
}

/// In a worker: has itself traced, or a thread of it. The answer is the tracer's pid.
pub fn have_traced(data: &OwnedFd, thread: bool, exit: bool) {
    may_be_traced();
    let tracer = trace(if thread { sleeping_thread() } else { std::process::id() }, exit);
    socket::send(data.as_fd(), tracer.to_string().as_bytes(), &[], Blocking::Yes).expect("an answer");
}

fn processor_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("ticks");
    Duration::from_millis(10 * (ticks(11) + ticks(12)))
}

fn a_zygote_in_an_attackers_hands_harms_its_pool_only() {
    for (name, _) in ATTACKS {
        let stage = Stage::open(Behaviour::Hostile(name), 8, 30_000);
        let mut f = stage.frontend();
        f.send(&want(1, 1));
        f.send(&want(2, 1));
        let used = processor_time(stage.controller);
        for number in 10..20 {
            let began = Instant::now();
            let lease = f.lease(number, 2);
            assert!(lease.cold && lease.ask("ping").starts_with("pong"));
            assert!(
                began.elapsed() < Duration::from_secs(1),
                "{name}: another pool has waited for {:?}",
                began.elapsed()
            );
            f.give_back(lease, Returned::Violation);
            std::thread::sleep(Duration::from_millis(10));
        }
        let used = processor_time(stage.controller) - used;
        assert!(used < Duration::from_millis(150), "{name}: the controller was busy for {used:?}");
    }
}

fn a_zygote_that_has_served_is_held_to_the_protocol() {
    let stage = Stage::open(Behaviour::Hostile("breaks_the_protocol_later"), 4, 30_000);
    let mut f = stage.frontend();
    let lease = f.lease(1, 1);
    assert!(lease.ask("ping").starts_with("pong"));
    f.give_back(lease, Returned::Idle);
    let lease = f.lease(2, 1);
    f.send(&want(3, 1));
    // It waits, as long as a worker lives.
    f.give_back(lease, Returned::Violation);
    let (reason, text) = f.refused(3);
    assert_eq!(reason, Refusal::Throttled);
    assert!(text.contains("nobody asked"), "{text}");
}

/// Dies by itself, or because it is to.
fn has_traced(question: &str, dies: bool) {
    let stage = Stage::open(Behaviour::Good, 2, 30_000);
    let mut f = stage.frontend();
    let lease = f.lease(1, 1);
    let tracer: u32 = lease.ask(question).parse().expect("its pid");
    let (worker, used) = (lease.pid, processor_time(stage.controller));
    if dies {
        stage::kill(worker);
    } else {
        f.give_back(lease, Returned::Violation);
    }
    eventually("the end of who traces it", || !alive(tracer));
    eventually("it is reaped", || !children_of(stage.controller).contains(&worker));
    let used = processor_time(stage.controller) - used;
    assert!(used < Duration::from_millis(50), "the controller was busy for {used:?}");
    assert!(f.lease(2, 1).ask("ping").starts_with("pong"));
}

fn a_worker_that_somebody_traces_is_gone_all_the_same() {
    has_traced("have yourself traced", true);
    has_traced("have yourself traced", false);
}

fn a_worker_that_is_stopped_at_its_end_is_gone_all_the_same() {
    has_traced("have your end traced", false);
}

fn a_worker_of_which_a_thread_is_traced_is_gone_all_the_same() {
    has_traced("have a thread traced", true);
    has_traced("have a thread traced", false);
}

fn who_traces_a_worker_outlives_no_server_whose_controller_has_died() {
    for question in ["have yourself traced", "have your end traced", "have a thread traced"] {
        let mut stage = Stage::open(Behaviour::Good, 2, 30_000);
        let mut f = stage.frontend();
        let lease = f.lease(1, 1);
        let (worker, tracer) = (lease.pid, lease.ask(question).parse().expect("its pid"));
        stage::kill(stage.controller);
        stage.reap_controller();
        stage.start_controller();
        stage.configure(1, Behaviour::Good, 2, 30_000);
        let f = stage.frontend();
        drop((f, stage));
        eventually("their end", || !alive(worker) && !alive(tracer));
    }
}

fn who_traces_a_worker_does_not_outlive_the_server() {
    for question in ["have yourself traced", "have your end traced", "have a thread traced"] {
        let stage = Stage::open(Behaviour::Good, 2, 30_000);
        let mut f = stage.frontend();
        let lease = f.lease(1, 1);
        let tracer: u32 = lease.ask(question).parse().expect("its pid");
        let began = Instant::now();
        drop(stage);
        assert!(!alive(tracer), "it has outlived the server");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}
