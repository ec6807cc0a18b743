//! The controller with real processes: this program plays httpd's parent and its frontends, and, started again by the
//! controller, the seed, its zygotes and their workers.

mod cast;
mod stage;

use cast::{become_seed, Behaviour};
use mod_pool::sys::socket::{self, Blocking};
use mod_pool::wire::control::{ControllerMessage, FrontendMessage, LendCount, Queued, Refusal, Returned, WantId};
use stage::{alive, children_of, eventually, want, Frontend, Stage};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|role| role == "fake-seed") {
        become_seed(&args[2..]);
    }
    let filter = args.iter().skip(1).find(|a| !a.starts_with('-')).cloned().unwrap_or_default();
    let tests: &[(&str, fn())] = &[
        ("a_lease_works_and_is_lent_again", a_lease_works_and_is_lent_again),
        ("who_was_not_announced_is_not_served", who_was_not_announced_is_not_served),
        ("a_hello_may_come_before_its_announcement", a_hello_may_come_before_its_announcement),
        ("a_child_that_floods_its_connector_holds_up_nobody", a_child_that_floods_its_connector_holds_up_nobody),
        ("a_child_that_says_hello_in_vain_fills_no_log", a_child_that_says_hello_in_vain_fills_no_log),
        ("who_does_not_read_is_cut_off_alone", who_does_not_read_is_cut_off_alone),
        ("many_frontends_share_few_workers", many_frontends_share_few_workers),
        ("a_stopped_zygote_holds_up_its_pool_only", a_stopped_zygote_holds_up_its_pool_only),
        ("only_the_parent_is_the_parent", only_the_parent_is_the_parent),
        ("an_obituary_follows_kill_9", an_obituary_follows_kill_9),
        ("a_pool_goes_to_zero_and_back", a_pool_goes_to_zero_and_back),
        ("the_cap_holds", the_cap_holds),
        ("who_came_first_is_served_first", who_came_first_is_served_first),
        ("a_pool_that_cannot_start_is_throttled", a_pool_that_cannot_start_is_throttled),
        ("forged_pids_are_not_believed", forged_pids_are_not_believed),
        ("another_socket_does_not_come_back_as_the_lease", another_socket_does_not_come_back_as_the_lease),
        ("what_is_discarded_is_closed_and_nothing_else", what_is_discarded_is_closed_and_nothing_else),
        ("a_lease_with_a_lingering_socket_holds_up_nobody", a_lease_with_a_lingering_socket_holds_up_nobody),
        ("what_a_frontend_hands_in_holds_up_nobody", what_a_frontend_hands_in_holds_up_nobody),
        ("a_pool_whose_descriptors_cannot_be_closed_is_stopped", a_pool_whose_descriptors_cannot_be_closed_is_stopped),
        ("a_frontend_that_dies_takes_its_workers_along", a_frontend_that_dies_takes_its_workers_along),
        ("zygote_and_seed_are_replaced", zygote_and_seed_are_replaced),
        ("what_a_script_left_behind_is_ended", what_a_script_left_behind_is_ended),
        ("standard_error_reaches_a_frontend", standard_error_reaches_a_frontend),
        ("a_reload_ends_the_old_generation", a_reload_ends_the_old_generation),
        ("workers_of_a_dead_controller_count", workers_of_a_dead_controller_count),
        (
            "a_process_of_the_pools_user_that_httpd_has_not_started_is_left_alone",
            a_process_of_the_pools_user_that_httpd_has_not_started_is_left_alone,
        ),
        ("a_new_controller_serves_older_frontends", a_new_controller_serves_older_frontends),
        (
            "who_is_of_an_unknown_configuration_is_refused_at_once",
            who_is_of_an_unknown_configuration_is_refused_at_once,
        ),
        ("stop_leaves_no_process", stop_leaves_no_process),
        ("the_parents_death_ends_nothing_that_is_not_httpds", the_parents_death_ends_nothing_that_is_not_httpds),
        ("sigterm_and_the_parents_death_leave_no_process", sigterm_and_the_parents_death_leave_no_process),
    ];
    let mut run = 0;
    for (name, test) in tests.iter().filter(|(name, _)| name.contains(&filter)) {
        test();
        println!("test {name} ... ok");
        run += 1;
    }
    println!("\ntest result: ok. {run} passed; 0 failed");
}

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

fn forged_pids_are_not_believed() {
    let stage = Stage::open(Behaviour::TellsForgedPids, 2, 30_000);
    let mut f = stage.frontend();
    f.send(&want(1, 1));
    let (reason, text) = f.refused(1);
    assert_eq!(reason, Refusal::Throttled);
    assert!(text.contains("pid"), "{text}");
    eventually("the zygote is killed", || children_of(stage.controller).len() == 1);
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

fn a_frontend_that_dies_takes_its_workers_along() {
    let stage = Stage::open(Behaviour::Good, 2, 30_000);
    let status = stage::in_an_announced_child(&stage, |own| {
        let mut f = Frontend::hello(own, 1, vec![]);
        f.lease(1, 1).ask("ping");
        f.lease(2, 1).ask("ping");
        mod_pool::sys::fork::exit_now(0);
    });
    assert!(status);
    eventually("its workers end", || children_of(stage.controller).len() <= 2);
    let mut f = stage.frontend();
    assert!(f.lease(1, 1).ask("ping").starts_with("pong"));
}

fn zygote_and_seed_are_replaced() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let mut f = stage.frontend();
    let lease = f.lease(1, 1);
    let others: Vec<u32> = children_of(stage.controller).into_iter().filter(|p| *p != lease.pid).collect();
    for pid in &others {
        stage::kill(*pid);
    }
    eventually("both are reaped", || others.iter().all(|p| !alive(*p)));
    assert!(lease.ask("ping").starts_with("pong"), "the worker goes on");
    f.give_back(lease, Returned::Last);
    // The seed starts again after a second.
    assert!(f.lease(2, 1).ask("ping").starts_with("pong"));
}

fn what_a_script_left_behind_is_ended() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let mut f = stage.frontend();
    let lease = f.lease(1, 1);
    let left: u32 = lease.ask("daemon").parse().expect("its pid");
    assert!(alive(left));
    lease.tell("crash");
    f.give_back(lease, Returned::Dead);
    eventually("the daemon is killed and reaped", || !alive(left));
}

fn standard_error_reaches_a_frontend() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let mut f = stage.frontend();
    let lease = f.lease(1, 1);
    assert_eq!(lease.ask("shout"), "done");
    let pid = lease.pid;
    let line = f.expect("a log line", |m| match m {
        ControllerMessage::Log { pool: 1, pid: p, line } if *p == pid => Some(line.clone()),
        _ => None,
    });
    assert_eq!(line, b"PHP Warning: \\x1b[1mboo");
    lease.ask("flood");
    let dropped = f.expect("the count of dropped lines", |m| match m {
        ControllerMessage::Log { line, pid, .. } if line.ends_with(b"lines dropped") => Some((line.clone(), *pid)),
        _ => None,
    });
    let (dropped, by) = dropped;
    assert_eq!(by, stage.controller, "who dropped them says so");
    assert!(dropped.len() > b"lines dropped".len());
}

fn a_reload_ends_the_old_generation() {
    let mut stage = Stage::open(Behaviour::Good, 2, 30_000);
    let mut old = stage.frontend();
    let lease = old.lease(1, 1);
    stage.configure(2, Behaviour::Good, 2, 30_000);
    let done = stage::in_an_announced_child(&stage, |own| {
        let mut new = Frontend::hello(own, 2, vec![]);
        new.lease(1, 1).ask("ping").starts_with("pong")
    });
    assert!(done);
    assert!(lease.ask("ping").starts_with("pong"), "the old generation still serves");
    drop(lease);
    drop(old);
    eventually("one seed is left, and what the new generation keeps", || children_of(stage.controller).len() <= 2);
}

fn workers_of_a_dead_controller_count() {
    let mut stage = Stage::open(Behaviour::Good, 1, 30_000);
    let mut f = stage.frontend();
    let lease = f.lease(1, 1);
    let others: Vec<u32> = children_of(stage.controller).into_iter().filter(|p| *p != lease.pid).collect();
    stage::kill(stage.controller);
    stage.reap_controller();
    eventually("seed and zygote end with their controller", || others.iter().all(|pid| !alive(*pid)));
    stage.start_controller();
    stage.configure(1, Behaviour::Good, 1, 30_000);
    let in_flight = vec![mod_pool::wire::control::InFlight { pid: lease.pid, pool: "alice".into() }];
    let mut f = Frontend::hello(stage.connector(), 1, in_flight);
    f.send(&want(1, 1));
    assert!(f.receive(Duration::from_millis(500)).is_none(), "the old worker counts against the cap");
    assert!(lease.ask("ping").starts_with("pong"));
    drop(lease);
    assert!(f.granted(1).ask("ping").starts_with("pong"));
}

fn a_process_of_the_pools_user_that_httpd_has_not_started_is_left_alone() {
    let (started, process) = stage::process_of_another(stage::POOL_UID);
    let stage = Stage::open(Behaviour::Good, 1, 30_000);
    // A frontend that somebody has broken into can name any process.
    let in_flight = vec![mod_pool::wire::control::InFlight { pid: process, pool: "alice".into() }];
    let mut f = Frontend::hello(stage.connector(), 1, in_flight);
    assert!(f.lease(1, 1).ask("ping").starts_with("pong"), "it does not count");
    drop(stage);
    assert!(alive(process), "it was killed");
    stage::kill(process);
    assert_eq!(stage::wait(started), 0);
}

fn a_new_controller_serves_older_frontends() {
    let mut stage = Stage::open(Behaviour::Good, 2, 30_000);
    let (read, write) = mod_pool::sys::descriptor::pipe().expect("pipe");
    let old = stage.fork(|own| {
        let mut f = Frontend::hello(own, 1, vec![]);
        if f.lease(1, 1).ask("ping").starts_with("pong") {
            stage::write_all(&write, b"served");
        }
        // The end of the channel: its controller has died.
        while f.receive(Duration::from_secs(20)).is_some_and(|m| m.0.is_some()) {}
        let mut f = Frontend::hello(own, 1, vec![]);
        f.lease(2, 1).ask("ping").starts_with("pong")
    });
    stage.announce(&old);
    assert_eq!(stage::read_some(&read), "served");
    stage.configure(2, Behaviour::Good, 2, 30_000);
    stage::kill(stage.controller);
    stage.reap_controller();
    stage.start_controller();
    stage.configure_older(1, Behaviour::Good, 2);
    stage.announce_of(&old, 1);
    stage.configure(2, Behaviour::Good, 2, 100);
    let new = stage::in_an_announced_child(&stage, |own| {
        Frontend::hello(own, 2, vec![]).lease(1, 1).ask("ping").starts_with("pong")
    });
    assert!(new, "a frontend of the newest configuration was not served");
    assert_eq!(stage::wait(old.pid), 0, "an older frontend was not served");
    eventually("the newest seed is left", || children_of(stage.controller).len() == 1);
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

fn stop_leaves_no_process() {
    let mut stage = Stage::open(Behaviour::Good, 4, 30_000);
    let mut f = stage.frontend();
    let lease = f.lease(1, 1);
    let left: u32 = lease.ask("daemon").parse().expect("its pid");
    f.send(&want(2, 1));
    let second = f.granted(2);
    second.tell("ignore the end");
    let all = children_of(stage.controller);
    assert!(all.len() >= 4);
    stage.say(&mod_pool::wire::control::ParentMessage::Stop, &[]);
    assert_eq!(stage.reap_controller(), 0);
    assert!(all.iter().all(|pid| !alive(*pid)));
    assert!(!alive(left));
}

fn the_parents_death_ends_nothing_that_is_not_httpds() {
    // A service of the pool's user, child of the process that the controller falls to: for httpd that is init.
    mod_pool::sys::launch::become_subreaper();
    let service = stage::fork_service(stage::POOL_UID);
    let (said, heard) = socket::seqpacket_pair().expect("socketpair");
    let parent = stage::fork(|| {
        let stage = Stage::open(Behaviour::Good, 4, 30_000);
        let mut f = stage.frontend();
        let _lease = f.lease(1, 1);
        socket::send(said.as_fd(), &stage.controller.to_be_bytes(), &[], Blocking::Yes).expect("send");
        std::thread::sleep(Duration::from_secs(60));
        true
    });
    let mut controller = [0; 4];
    socket::receive(heard.as_fd(), &mut controller, Blocking::Yes).expect("receive");
    let controller = u32::from_be_bytes(controller);
    stage::kill(parent);
    stage::wait(parent);
    eventually("the controller's end", || !alive(controller));
    assert!(alive(service), "it was killed");
    stage::kill(service);
    stage::wait(service);
}

fn sigterm_and_the_parents_death_leave_no_process() {
    let mut stage = Stage::open(Behaviour::Good, 4, 30_000);
    let mut f = stage.frontend();
    let _lease = f.lease(1, 1);
    let all = children_of(stage.controller);
    stage::terminate(stage.controller);
    assert_eq!(stage.reap_controller(), 0);
    assert!(all.iter().all(|pid| !alive(*pid)));

    // A parent of its own, which is killed.
    let (read, write) = mod_pool::sys::descriptor::pipe().expect("pipe");
    let parent = stage::fork(|| {
        let stage = Stage::open(Behaviour::Good, 4, 30_000);
        let mut f = stage.frontend();
        let _lease = f.lease(1, 1);
        let mut all = children_of(stage.controller);
        all.push(stage.controller);
        let text: Vec<String> = all.iter().map(u32::to_string).collect();
        stage::write_all(&write, text.join(" ").as_bytes());
        std::thread::sleep(Duration::from_secs(30));
        true
    });
    let text = stage::read_some(&read);
    let all: Vec<u32> = text.split(' ').map(|p| p.parse().expect("pid")).collect();
    assert_eq!(all.len(), 4);
    stage::kill(parent);
    stage::wait(parent);
    eventually("everything ended with the parent", || all.iter().all(|pid| !alive(*pid)));
}
