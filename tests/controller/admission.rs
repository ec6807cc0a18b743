//! Who is heard, and what he may say.

use crate::cast::Behaviour;
use crate::stage::{self, alive, children_of, eventually, want, Frontend, Stage};
use crate::Test;
use mod_pool::sys::socket::{self, Blocking};
use mod_pool::wire::control::{FrontendMessage, InFlight, ParentMessage, Refusal, Returned};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

pub const TESTS: &[Test] = tests![
    who_was_not_announced_is_not_served,
    a_hello_may_come_before_its_announcement,
    a_child_that_floods_its_connector_holds_up_nobody,
    a_child_that_says_hello_in_vain_fills_no_log,
    who_does_not_read_is_cut_off_alone,
    only_the_parent_is_the_parent,
    forged_pids_are_not_believed,
    who_is_of_an_unknown_configuration_is_refused_at_once,
    a_process_of_the_pools_user_that_httpd_has_not_started_is_left_alone,
    what_is_sent_in_vain_holds_up_nobody,
];

fn who_was_not_announced_is_not_served() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let asks_in_vain = |connector: &OwnedFd| {
        let mut f = Frontend::hello(connector, 1, vec![]);
        f.send(&want(1, 1));
        f.receive(Duration::from_millis(300)).is_none_or(|m| m.0.is_none())
    };
    let child = stage.fork(asks_in_vain);
    assert_eq!(stage::wait(child.pid), 0, "a stranger was served");
    // Somebody else with the connector of an announced child, or with the parent's.
    let child = stage.fork(|own| stage::in_a_child(|| asks_in_vain(own)));
    stage.announce(&child);
    assert_eq!(stage::wait(child.pid), 0, "a child of a frontend was served");
    assert!(stage::in_a_child(|| asks_in_vain(stage.connector())), "who speaks at the parent's place was served");
    // Another uid is refused even when announced.
    if stage.root {
        let status = stage::in_an_announced_child(&stage, |own| {
            mod_pool::sys::privileges::change_user(12345, 12345, &[12345]).expect("setuid");
            asks_in_vain(own)
        });
        assert!(status, "a frontend of another user was served");
    }
    let status = stage::in_an_announced_child(&stage, |own| {
        let mut f = Frontend::hello(own, 1, vec![]);
        f.lease(1, 1).ask("ping").starts_with("pong")
    });
    assert!(status, "an announced frontend was not served");
}

fn a_hello_may_come_before_its_announcement() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let (read, write) = mod_pool::sys::descriptor::pipe().expect("pipe");
    let child = stage.fork(|own| {
        let mut f = Frontend::hello(own, 1, vec![]);
        stage::write_all(&write, b"said");
        f.lease(1, 1).ask("ping").starts_with("pong")
    });
    stage::read_some(&read);
    std::thread::sleep(Duration::from_millis(100));
    stage.announce(&child);
    assert_eq!(stage::wait(child.pid), 0);
}

fn a_child_that_floods_its_connector_holds_up_nobody() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let floods = |own: &OwnedFd| loop {
        if mod_pool::sys::socket::send(own.as_fd(), &[7; 100], &[], Blocking::Yes).is_err() {
            return true;
        }
    };
    let announced = stage.fork(floods);
    stage.announce(&announced);
    let stranger = stage.fork(floods);
    for _ in 0..20 {
        let began = std::time::Instant::now();
        let served = stage::in_an_announced_child(&stage, |own| {
            let mut f = Frontend::hello(own, 1, vec![]);
            f.lease(1, 1).ask("ping").starts_with("pong")
        });
        assert!(served && began.elapsed() < Duration::from_secs(2));
    }
    for child in [announced, stranger] {
        stage::kill(child.pid);
        stage::wait(child.pid);
    }
}

fn a_child_that_says_hello_in_vain_fills_no_log() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let (read, write) = nix::unistd::pipe().expect("pipe");
    stage.log_to(write.as_fd());
    drop(write);
    let null = std::fs::File::open("/dev/null").expect("/dev/null");
    let served = stage::in_an_announced_child(&stage, |own| {
        for _ in 0..200 {
            Frontend::hello_with(own, 1, vec![], null.as_fd());
        }
        let mut f = Frontend::hello(own, 1, vec![]);
        f.lease(1, 1).ask("ping").starts_with("pong")
    });
    assert!(served);
    drop(stage);
    let log = std::io::read_to_string(std::fs::File::from(read)).expect("the log");
    assert!((1..=5).contains(&log.lines().count()), "{log}");
}

fn who_does_not_read_is_cut_off_alone() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let mut f = stage.frontend();
    let cut_off = stage::in_an_announced_child(&stage, |own| {
        let silent = Frontend::hello(own, 1, vec![]);
        (0..200_000).any(|number| !silent.try_send(&want(number, 99)))
    });
    assert!(cut_off, "its refusals were buffered without end");
    assert!(f.lease(1, 1).ask("ping").starts_with("pong"));
}

fn only_the_parent_is_the_parent() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let status = stage::in_a_child(|| {
        stage.say(&mod_pool::wire::control::ParentMessage::Stop, &[]);
        true
    });
    assert!(status);
    let mut f = stage.frontend();
    assert_eq!(f.lease(1, 1).ask("ping").get(..4), Some("pong"));
}

fn forged_pids_are_not_believed() {
    let stage = Stage::open(Behaviour::TellsForgedPids, 2, 30_000);
    let mut f = stage.frontend();
    f.send(&want(1, 1));
    let (reason, text) = f.refused(1);
    assert_eq!(reason, Refusal::Throttled);
    assert!(text.contains("pid"), "{text}");
    eventually("the zygote is killed", || children_of(stage.controller).len() == 1);
}

fn who_is_of_an_unknown_configuration_is_refused_at_once() {
    let mut stage = Stage::open(Behaviour::Good, 2, 30_000);
    stage.configure(2, Behaviour::Good, 2, 30_000);
    let wants = |own: &OwnedFd, generation| {
        let f = Frontend::hello(own, generation, vec![]);
        f.send(&want(1, 1));
        f
    };
    let old = stage.fork(|own| wants(own, 1).refused(1).0 == Refusal::NoPool);
    stage.announce_of(&old, 1);
    assert_eq!(stage::wait(old.pid), 0, "it was not refused");
    // A child cannot choose its configuration.
    let liar = stage::in_an_announced_child(&stage, |own| {
        wants(own, 1).receive(Duration::from_secs(5)).is_some_and(|m| m.0.is_none())
    });
    assert!(liar, "a frontend was heard that named another configuration than its parent");
}

fn a_process_of_the_pools_user_that_httpd_has_not_started_is_left_alone() {
    let (started, process) = stage::process_of_another(stage::POOL_UID);
    let stage = Stage::open(Behaviour::Good, 1, 30_000);
    // A frontend that somebody has broken into can name any process.
    let in_flight = vec![InFlight { pid: process, pool: "alice".into() }];
    let mut f = Frontend::hello(stage.connector(), 1, in_flight);
    assert!(f.lease(1, 1).ask("ping").starts_with("pong"), "it does not count");
    drop(stage);
    assert!(alive(process), "it was killed");
    stage::kill(process);
    assert_eq!(stage::wait(started), 0);
}

/// Sockets that are slow to close, in each place of a message that the controller does not take.
fn what_is_sent_in_vain_holds_up_nobody() {
    type Way = fn(&OwnedFd, BorrowedFd<'_>);
    const WAYS: [(&str, Way); 5] = [
        ("with garbage", |own, full| {
            socket::send(own.as_fd(), &[7; 100], &[full], Blocking::Yes).expect("connector");
        }),
        ("as the channel of a hello", |own, full| Frontend::hello_with(own, 1, vec![], full)),
        ("in the channel of a hello that is refused", |own, full| {
            let (channel, theirs) = socket::seqpacket_pair().expect("socketpair");
            socket::send(channel.as_fd(), &FrontendMessage::Discard { pool: 1 }.encode(), &[full], Blocking::Yes)
                .expect("channel");
            Frontend::hello_with(own, 99, vec![], theirs.as_fd());
        }),
        ("in a channel that is left", |own, full| {
            Frontend::hello(own, 1, vec![]).send_with(&FrontendMessage::Discard { pool: 1 }, &[full]);
        }),
        ("in a second hello", |own, full| {
            let first = Frontend::hello(own, 1, vec![]);
            first.send_with(&FrontendMessage::Discard { pool: 1 }, &[full]);
            Frontend::hello_with(own, 1, vec![], full);
        }),
    ];
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let mut f = stage.frontend();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address").to_string();
    let mut number = 0;
    for (what, way) in WAYS {
        for left in [false, true] {
            // What was left is read when the child and its connector are gone.
            let child = stage.fork(|own| {
                way(own, stage::lingering(&address).as_fd());
                true
            });
            if left {
                stage::stop(stage.controller);
            }
            stage.announce(&child);
            assert_eq!(stage::wait(child.pid), 0);
            stage.say(&ParentMessage::ChildGone { pid: child.pid }, &[]);
            drop(child);
            stage::go_on(stage.controller);
            let began = Instant::now();
            for _ in 0..3 {
                number += 1;
                let lease = f.lease(number, 1);
                assert!(lease.ask("ping").starts_with("pong"));
                f.give_back(lease, Returned::Violation);
            }
            assert!(began.elapsed() < Duration::from_secs(5), "{what}, {left}: {:?}", began.elapsed());
        }
    }
}
