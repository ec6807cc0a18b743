//! Leases, workers and what comes back with them.

use crate::cast::Behaviour;
use crate::stage::{self, alive, children_of, eventually, want, Frontend, Stage};
use crate::Test;
use mod_pool::sys::socket::{self};
use mod_pool::wire::control::{ControllerMessage, FrontendMessage, LendCount, Queued, Refusal, Returned, WantId};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = tests![
    a_lease_works_and_is_lent_again,
    many_frontends_share_few_workers,
    a_stopped_zygote_holds_up_its_pool_only,
    an_obituary_follows_kill_9,
    a_pool_goes_to_zero_and_back,
    the_cap_holds,
    who_came_first_is_served_first,
    a_pool_that_cannot_start_is_throttled,
    another_socket_does_not_come_back_as_the_lease,
    what_is_discarded_is_closed_and_nothing_else,
    a_lease_with_a_lingering_socket_holds_up_nobody,
    what_a_frontend_hands_in_holds_up_nobody,
    a_pool_whose_descriptors_cannot_be_closed_is_stopped,
];

fn a_lease_works_and_is_lent_again() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let mut f = stage.frontend();
    let lease = f.lease(1, 1);
    assert!(lease.cold);
    assert_eq!(lease.ask("ping"), format!("pong {}", lease.pid));
    let pid = lease.pid;
    f.give_back(lease, Returned::Idle);
    let again = f.lease(2, 1);
    assert_eq!((again.pid, again.cold, again.lend.0), (pid, false, 2));
    assert_eq!(again.ask("ping"), format!("pong {pid}"));
}

fn many_frontends_share_few_workers() {
    let stage = Stage::open(Behaviour::Good, 2, 30_000);
    let children: Vec<u32> = (0..4)
        .map(|_| {
            let child = stage.fork(|own| {
                let mut f = Frontend::hello(own, 1, vec![]);
                for want in 0..150 {
                    // Two pools under one cap: workers are retired for each other all the time.
                    let lease = f.lease(want, 1 + (want / 50) % 2);
                    assert_eq!(lease.ask("ping"), format!("pong {}", lease.pid));
                    let how = if want % 40 == 39 { Returned::Last } else { Returned::Idle };
                    f.give_back(lease, how);
                }
                true
            });
            stage.announce(&child);
            child.pid
        })
        .collect();
    let most = std::cell::Cell::new(0);
    for pid in children {
        while alive(pid) {
            // A seed and two zygotes beside the workers; a zygote may be ending while the next one starts.
            most.set(children_of(stage.controller).len().max(most.get()));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(stage::wait(pid), 0, "a frontend was not served");
    }
    assert!(most.get() <= 1 + 2 + 2 + 2, "{} children", most.get());
}

fn a_stopped_zygote_holds_up_its_pool_only() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let mut f = stage.frontend();
    let lease = f.lease(1, 1);
    let zygote =
        *children_of(stage.controller).iter().find(|p| **p != lease.pid && stage::session(**p) == **p).expect("one");
    stage::stop(zygote);
    f.send(&want(2, 1));
    assert!(f.lease(3, 2).ask("ping").starts_with("pong"));
    assert!(lease.ask("ping").starts_with("pong"));
}

fn an_obituary_follows_kill_9() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let mut f = stage.frontend();
    let lease = f.lease(1, 1);
    stage::kill(lease.pid);
    let (id, pid) = (lease.id, lease.pid);
    let told = f.expect("the obituary", |m| match m {
        ControllerMessage::Obituary { lease, pid, wait_status, .. } => Some((*lease, *pid, *wait_status)),
        _ => None,
    });
    assert_eq!(told, (id, pid, 9));
    assert!(!alive(pid), "reaped");
    // A crash is told to who reports the end of the socket first, too.
    let lease = f.lease(2, 1);
    let pid = lease.pid;
    lease.tell("crash");
    f.give_back(lease, Returned::Dead);
    let status = f.expect("the obituary", |m| match m {
        ControllerMessage::Obituary { pid: p, wait_status, .. } if *p == pid => Some(*wait_status),
        _ => None,
    });
    assert_eq!(status, 7 << 8);
}

fn a_pool_goes_to_zero_and_back() {
    let stage = Stage::open(Behaviour::Good, 4, 300);
    let mut f = stage.frontend();
    let lease = f.lease(1, 1);
    let pid = lease.pid;
    assert_eq!(children_of(stage.controller).len(), 3, "seed, zygote, worker");
    f.give_back(lease, Returned::Idle);
    eventually("only the seed is left", || children_of(stage.controller).len() == 1);
    assert!(!alive(pid));
    assert!(f.lease(2, 1).ask("ping").starts_with("pong"));
}

fn the_cap_holds() {
    let stage = Stage::open(Behaviour::Good, 2, 30_000);
    let mut f = stage.frontend();
    let first = f.lease(1, 1);
    let second = f.lease(2, 1);
    assert_ne!(first.pid, second.pid);
    f.send(&want(3, 1));
    let mut granted = || {
        f.receive(Duration::from_millis(300)).and_then(|(m, _)| match m {
            Some(ControllerMessage::Grant { want, .. }) => Some(want),
            _ => None,
        })
    };
    assert_eq!(granted(), None);
    f.give_back(first, Returned::Idle);
    assert_eq!(
        f.granted(3).pid,
        children_of(stage.controller).into_iter().find(|p| *p != second.pid && f.knows(*p)).expect("the returned one")
    );
}

fn who_came_first_is_served_first() {
    let stage = Stage::open(Behaviour::Good, 1, 30_000);
    let mut f = stage.frontend();
    let lease = f.lease(1, 1);
    let early = want(2, 1);
    std::thread::sleep(Duration::from_millis(2));
    let late = want(3, 1);
    let FrontendMessage::Want { arrived: then, .. } = early else { panic!("{early:?}") };
    for message in [&late, &early] {
        f.send(message);
    }
    f.give_back(lease, Returned::Idle);
    let lease = f.granted(2);
    let child = stage.fork(|own| {
        // The holder of the only lease is another frontend: it is told when the oldest request elsewhere came.
        let mut other = Frontend::hello(own, 1, vec![]);
        other.send(&FrontendMessage::Want { want: WantId(4), pool: 1, arrived: then });
        let lease = other.granted(4);
        other.give_back(lease, Returned::Idle);
        true
    });
    stage.announce(&child);
    f.expect("a word", |m| {
        (*m == ControllerMessage::Contended { pool: 1, queued: Queued::Elsewhere(then) }).then_some(())
    });
    f.give_back(lease, Returned::Idle);
    assert!(f.granted(3).ask("ping").starts_with("pong"));
    assert_eq!(stage::wait(child.pid), 0);
}

fn a_pool_that_cannot_start_is_throttled() {
    let stage = Stage::open(Behaviour::FailsToStart, 2, 30_000);
    let mut f = stage.frontend();
    f.send(&want(1, 1));
    let (reason, text) = f.refused(1);
    assert_eq!(reason, Refusal::Throttled);
    assert_eq!(text, "php.ini is not readable");
    f.send(&want(2, 1));
    assert_eq!(f.refused(2).0, Refusal::Throttled);
    eventually("the zygote is reaped", || children_of(stage.controller).len() == 1);
}

fn another_socket_does_not_come_back_as_the_lease() {
    let stage = Stage::open(Behaviour::Good, 2, 30_000);
    let mut f = stage.frontend();
    let mut lease = f.lease(1, 1);
    let pid = lease.pid;
    let (own, _other) = mod_pool::sys::socket::seqpacket_pair().expect("pair");
    lease.data = own;
    f.give_back(lease, Returned::Idle);
    let next = f.lease(2, 1);
    assert_ne!(next.pid, pid);
    assert!(next.ask("ping").starts_with("pong"));
}

fn what_is_discarded_is_closed_and_nothing_else() {
    use mod_pool::sys::{discard, process, wait};
    let pair = || socket::seqpacket_pair().expect("socketpair");
    let ((left, right), (other, _kept)) = (pair(), pair());
    let parcel = socket::parcel(&[right.as_fd()]).expect("parcel");
    drop(right);
    let child = discard::close_in_child(vec![parcel]).expect("fork");
    eventually("the end", || wait::is_hung_up(left.as_fd(), false));
    eventually("the child's end", || process::reap_pid(child));
    assert!(!wait::is_hung_up(other.as_fd(), false));

    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let full = stage::lingering(&listener.local_addr().expect("address").to_string());
    let parcel = socket::parcel(&[full.as_fd()]).expect("parcel");
    drop(full);
    let began = Instant::now();
    let child = discard::close_in_child(vec![parcel]).expect("fork");
    eventually("the child's end", || process::reap_pid(child));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

fn a_lease_with_a_lingering_socket_holds_up_nobody() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let mut f = stage.frontend();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let lease = f.lease(1, 1);
    let pid = lease.pid;
    assert_eq!(lease.ask(&format!("load {}", listener.local_addr().expect("address"))), "soon");
    f.give_back(lease, Returned::Idle);
    let began = Instant::now();
    eventually("the worker's end", || !alive(pid));
    for want in 2..6 {
        let lease = f.lease(want, 2);
        assert!(lease.cold && lease.ask("ping").starts_with("pong"));
        f.give_back(lease, Returned::Violation);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

fn what_a_frontend_hands_in_holds_up_nobody() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let mut f = stage.frontend();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    let began = Instant::now();
    // A lease of which the frontend knows that it is full, or that it is at its end, and one that it cannot give back.
    let mut want = 0;
    let mut loaded = |f: &mut Frontend| {
        want += 1;
        let lease = f.lease(want, 1);
        assert_eq!(lease.ask(&format!("load {address}")), "soon");
        eventually("the worker's end", || !alive(lease.pid));
        lease
    };
    for how in [Returned::Violation, Returned::Dead, Returned::Last] {
        let lease = loaded(&mut f);
        f.give_back_all(lease, how);
    }
    let lease = loaded(&mut f);
    let parcel = socket::parcel(&[stage::lingering(&address).as_fd()]).expect("parcel");
    f.send_with(&FrontendMessage::Discard { pool: 1 }, &[parcel.as_fd(), lease.data.as_fd()]);
    f.send_with(&FrontendMessage::Discard { pool: 99 }, &[lease.data.as_fd()]);
    f.send_with(&FrontendMessage::Cancel { want: WantId(99) }, &[lease.data.as_fd()]);
    let stale = FrontendMessage::Return { lease: lease.id, lend: LendCount(77), how: Returned::Last };
    f.send_with(&stale, &[lease.data.as_fd()]);
    f.send(&FrontendMessage::Return { lease: lease.id, lend: lease.lend, how: Returned::Dead });
    drop((parcel, lease));
    for want in 10..14 {
        assert!(f.lease(want, 2).ask("ping").starts_with("pong"));
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

fn a_pool_whose_descriptors_cannot_be_closed_is_stopped() {
    use mod_pool::sys::process::session_of;
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let mut f = stage.frontend();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    // What the kernel may do with a process that closes something, a stop does here: it lives for a moment only.
    let mut number = 0;
    let mut held = || {
        number += 1;
        let lease = f.lease(number, 1);
        let known = children_of(stage.controller);
        assert_eq!(lease.ask(&format!("load {address}")), "soon");
        f.give_back(lease, Returned::Idle);
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            let new = children_of(stage.controller).into_iter().filter(|pid| !known.contains(pid));
            // What its worker has left is there for a moment, too, in the worker's session.
            let mut closers = new.filter(|pid| session_of(*pid) == session_of(stage.controller));
            if let Some(closer) = closers.find(|pid| stage::try_stop(*pid)) {
                return Some(closer);
            }
        }
        None
    };
    let closer = (0..20).find_map(|_| held()).expect("a closer that could be stopped");
    let other = f.lease(100, 1);
    eventually("the end of the pool's processes", || !alive(other.pid));
    f.give_back(other, Returned::Dead);
    f.send(&want(101, 1));
    let (why, text) = f.refused(101);
    assert_eq!(why, Refusal::Throttled);
    assert!(text.contains("cannot be closed"), "{text}");
    assert!(f.lease(102, 2).ask("ping").starts_with("pong"), "another pool is not concerned");
    stage::kill(closer);
    let mut number = 200;
    eventually("the pool works again", || {
        number += 1;
        f.send(&want(number, 1));
        f.expect("an answer", |m| match m {
            ControllerMessage::Grant { want: of, .. } => (*of == WantId(number)).then_some(true),
            ControllerMessage::Refuse { want: of, .. } => (*of == WantId(number)).then_some(false),
            _ => None,
        })
    });
}
