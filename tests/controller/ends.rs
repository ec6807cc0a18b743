//! What follows a death, a reload, a stop.

use crate::cast::Behaviour;
use crate::stage::{self, alive, children_of, eventually, want, Frontend, Stage};
use crate::Test;
use mod_pool::wire::control::{ControllerMessage, InFlight, Returned, MAX_POOL_NAME};
use std::os::fd::AsFd;
use std::time::Duration;

pub const TESTS: &[Test] = tests![
    a_frontend_that_dies_takes_its_workers_along,
    zygote_and_seed_are_replaced,
    what_a_script_left_behind_is_ended,
    standard_error_reaches_a_frontend,
    a_reload_ends_the_old_generation,
    zygotes_that_an_ended_seed_still_forks_are_known,
    workers_of_a_dead_controller_count,
    a_new_controller_serves_older_frontends,
    stop_leaves_no_process,
    sigterm_and_the_parents_death_leave_no_process,
    what_a_full_list_may_lack_is_not_ended_before_the_controller,
];

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

fn zygotes_that_an_ended_seed_still_forks_are_known() {
    let mut stage = Stage::open(Behaviour::StartsSlowly, 4, 30_000);
    let mut f = stage.frontend();
    let lease = f.lease(1, 1);
    // A worker that answers has a session of its own.
    assert!(lease.ask("ping").starts_with("pong"));
    let [seed] = children_of(stage.controller).into_iter().filter(|p| stage::session(*p) != *p).collect::<Vec<_>>()[..]
    else {
        panic!("one child is the seed");
    };
    drop(lease);
    stage::stop(seed);
    f.send(&want(2, 2));
    // The seed has the order soon, and cannot carry it out yet.
    std::thread::sleep(Duration::from_millis(300));
    drop(f);
    let (read, write) = mod_pool::sys::descriptor::pipe().expect("pipe");
    stage.configure(2, Behaviour::Good, 4, 30_000);
    stage.log_to(write.as_fd());
    std::thread::sleep(Duration::from_millis(100));
    stage::go_on(seed);
    eventually("the new seed is left", || children_of(stage.controller).len() == 1 && !alive(seed));
    let mut log = [0; 4096];
    let said = mod_pool::sys::descriptor::read(&read, &mut log).unwrap_or(0);
    assert_eq!(String::from_utf8_lossy(&log[..said]), "", "nobody has left a process behind");
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
    let in_flight = vec![InFlight { pid: lease.pid, pool: "alice".into() }];
    let mut f = Frontend::hello(stage.connector(), 1, in_flight);
    f.send(&want(1, 1));
    assert!(f.receive(Duration::from_millis(500)).is_none(), "the old worker counts against the cap");
    assert!(lease.ask("ping").starts_with("pong"));
    drop(lease);
    assert!(f.granted(1).ask("ping").starts_with("pong"));
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

/// Each frontend names the workers of a dead controller that it needs; a list that is full may lack some.
fn what_a_full_list_may_lack_is_not_ended_before_the_controller() {
    let mut stage = Stage::open(Behaviour::Good, 4, 30_000);
    let left: u32 = stage.frontend().lease(1, 1).ask("daemon").parse().expect("its pid");
    stage::kill(stage.controller);
    stage.reap_controller();
    stage.start_controller();
    stage.configure(1, Behaviour::Good, 4, 30_000);
    let in_flight = vec![InFlight { pid: 1, pool: "a".repeat(MAX_POOL_NAME) }; 100];
    let f = Frontend::hello(stage.connector(), 1, in_flight);
    std::thread::sleep(Duration::from_secs(17));
    assert!(alive(left), "it was ended");
    drop(f);
    drop(stage);
    eventually("the controller's end", || !alive(left));
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
