//! The controller's own lines: who writes them, and that they hold up nobody.

use crate::cast::Behaviour;
use crate::stage::{self, alive, eventually, log_writers_of, Holder, Stage};
use crate::Test;
use mod_pool::wire::control::ParentMessage;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

pub const TESTS: &[Test] = tests![
    a_log_that_somebody_holds_holds_up_nobody,
    a_log_that_somebody_holds_does_not_delay_the_end,
    a_log_writer_that_dies_is_replaced_and_holds_nothing_else,
];

/// What each [`speak`] has the controller say.
const SAID: &str = "the configuration did not arrive";

fn speak(stage: &Stage, times: usize) {
    for _ in 0..times {
        stage.say(&ParentMessage::Configure { generation: 99, older: false }, &[]);
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    mod_pool::sys::descriptor::pipe().expect("pipe")
}

/// Reads what is there; how often the controller has spoken, and how many of its lines are told to be lost.
fn count(read: &OwnedFd, log: &mut String) -> (usize, usize) {
    let mut buf = [0; 65536];
    while let Ok(n @ 1..) = mod_pool::sys::descriptor::read(read, &mut buf) {
        log.push_str(&String::from_utf8_lossy(&buf[..n]));
    }
    let lost = log.lines().filter_map(|line| line.split_once("POOL134: ")?.1.split(' ').next()?.parse::<usize>().ok());
    (log.matches(SAID).count(), lost.sum())
}

fn a_log_that_somebody_holds_holds_up_nobody() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let (read, write) = pipe();
    stage.log_to(write.as_fd());
    let mut f = stage.frontend();
    assert!(f.lease(1, 1).ask("ping").starts_with("pong"));
    let mut log = String::new();
    speak(&stage, 1);
    eventually("the first line", || count(&read, &mut log) == (1, 0));

    let holder = Holder::of(&write);
    speak(&stage, 2);
    assert!(f.lease(2, 2).ask("ping").starts_with("pong"), "a pool without processes is not served");
    speak(&stage, 3_000);
    assert!(f.lease(3, 1).ask("ping").starts_with("pong"));
    // Who reads the pipe now waits, too.
    let waits =
        |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") D "));
    assert!(log_writers_of(stage.controller).iter().any(waits), "nobody held the log");
    drop(holder);
    eventually("each line is written or counted", || {
        let (said, lost) = count(&read, &mut log);
        said + lost == 3_003
    });
    let (said, lost) = count(&read, &mut log);
    assert!(said > 10 && lost > 10, "{said} lines were written, {lost} were lost");
    speak(&stage, 1);
    eventually("and the next one", || count(&read, &mut log) == (said + 1, lost));
}

fn a_log_that_somebody_holds_does_not_delay_the_end() {
    let mut stage = Stage::open(Behaviour::Good, 4, 30_000);
    let (_read, write) = pipe();
    stage.log_to(write.as_fd());
    let mut f = stage.frontend();
    assert!(f.lease(1, 1).ask("ping").starts_with("pong"));
    let _holder = Holder::of(&write);
    speak(&stage, 2);
    assert!(f.lease(2, 1).ask("ping").starts_with("pong"));
    let all = stage::children_of(stage.controller);
    stage.say(&ParentMessage::Stop, &[]);
    eventually("the controller ends", || !alive(stage.controller));
    assert_eq!(stage.reap_controller(), 0);
    assert!(all.iter().all(|pid| !alive(*pid)), "something outlived its controller");
}

fn a_log_writer_that_dies_is_replaced_and_holds_nothing_else() {
    let stage = Stage::open(Behaviour::Good, 4, 30_000);
    let (read, write) = pipe();
    stage.log_to(write.as_fd());
    let mut f = stage.frontend();
    let lease = f.lease(1, 1);
    let one = || log_writers_of(stage.controller).len() == 1;
    eventually("the writers of the logs before end", one);
    let mut log = String::new();
    for round in 1..=3 {
        let writer = log_writers_of(stage.controller)[0];
        let open = || std::fs::read_dir(format!("/proc/{writer}/fd")).map_or(0, Iterator::count);
        eventually("it has its queue and the log, and nothing else", || open() == 2);
        stage::kill(writer);
        eventually("it has ended, with no line in hand", || !alive(writer));
        // What is said before another one is there waits for it.
        speak(&stage, 5);
        eventually("lines come", || count(&read, &mut log) == (5 * round, 0));
        eventually("another one writes", || one() && log_writers_of(stage.controller)[0] != writer);
    }
    assert!(write.as_raw_fd() > 2 && lease.ask("ping").starts_with("pong"));
}
