//! The controller has no descriptor left: what is idle elsewhere makes room.

use super::bench::{row, Bench, F1, F2};
use crate::policy::{Action, Event, PATIENCE};
use crate::wire::control::{PoolRow, Returned};

const TEXT: &str = "Too many open files";

fn two() -> Bench {
    Bench::new(100, vec![row("a", Some(0), 4), row("b", Some(0), 4)])
}

fn lacks(b: &mut Bench) -> bool {
    if let Some(zygote) = b.zygote_started() {
        b.event(Event::ZygoteLacks { zygote, text: TEXT.into() });
    } else if let Some(lease) = b.fork_ordered() {
        b.event(Event::ForkLacks { lease, text: TEXT.into() });
    } else {
        return false;
    }
    true
}

#[test]
fn an_idle_worker_and_its_zygote_end_for_a_pool_that_has_no_room() {
    let mut b = two();
    let idle = b.lent(F1, 1, 1);
    b.give_back(F1, idle, Returned::Idle);
    b.actions.clear();
    b.want(F1, 2, 2);
    assert!(lacks(&mut b));
    assert_eq!(b.retired(), Some(idle.0), "the idle worker");
    assert!(!b.has(|a| matches!(a, Action::Throttled { .. } | Action::Refuse { .. })));
    b.reaped(idle.0, 0);
    assert!(lacks(&mut b), "tried again");
    let ended = b.take(|a| matches!(a, Action::EndZygote { .. }));
    let Some(Action::EndZygote { zygote }) = ended else { panic!("its zygote, which is of no use: {:?}", b.actions) };
    b.event(Event::ZygoteGone { zygote, text: "exit status 0".into() });
    b.obey();
    assert_eq!(b.grant().map(|g| g.0), Some(2));
}

#[test]
fn of_two_idle_pools_the_one_used_longest_ago_makes_room() {
    let mut b = Bench::new(100, vec![row("a", Some(0), 4), row("b", Some(0), 4), row("c", Some(0), 4)]);
    let older = b.lent(F1, 1, 2);
    b.give_back(F1, older, Returned::Idle);
    b.pass(1000);
    let newer = b.lent(F1, 2, 1);
    b.give_back(F1, newer, Returned::Idle);
    b.actions.clear();
    b.want(F1, 3, 3);
    assert!(lacks(&mut b));
    assert_eq!((b.retired(), b.retired()), (Some(older.0), None));
}

#[test]
fn a_lease_that_another_frontend_does_not_use_is_asked_for() {
    let mut b = two();
    let lent = b.lent(F2, 1, 1);
    b.actions.clear();
    b.want(F1, 2, 2);
    assert!(lacks(&mut b));
    assert!(b.has(|a| matches!(a, Action::Recall { lease, .. } if *lease == lent.0)));
    // Busy: it stays, and nobody is refused for that.
    for _ in 0..10 {
        b.pass(PATIENCE);
        assert!(lacks(&mut b), "tried again");
        b.nothing();
    }
    b.give_back(F2, lent, Returned::Idle);
    while lacks(&mut b) {}
    assert_eq!(b.retired(), Some(lent.0));
}

#[test]
fn a_pool_without_room_waits_for_what_the_start_of_another_comes_to() {
    let mut b = two();
    b.want(F1, 1, 1);
    let first = b.zygote_started().expect("a zygote");
    b.want(F1, 2, 2);
    assert!(lacks(&mut b));
    b.nothing();
    b.event(Event::ZygoteReady { zygote: first });
    b.pass(PATIENCE);
    let lease = b.fork_ordered().expect("a worker of the first");
    assert!(lacks(&mut b), "the second tries again");
    b.nothing();
    b.event(Event::Forked { lease, pid: 100 });
    assert_eq!(b.grant().map(|g| g.0), Some(1));
}

#[test]
fn of_pools_that_keep_one_another_out_the_last_to_come_yields() {
    for turn in [[0, 1], [1, 0]] {
        let mut b = two();
        b.want(F1, 1, 1);
        b.pass(1);
        b.want(F1, 2, 2);
        let zygotes = [b.zygote_started().expect("a zygote"), b.zygote_started().expect("a zygote")];
        for zygote in turn {
            b.event(Event::ZygoteReady { zygote: zygotes[zygote] });
        }
        assert!(lacks(&mut b) && lacks(&mut b), "no room for a worker of either");
        let ended = b.take(|a| matches!(a, Action::EndZygote { .. }));
        assert_eq!(ended, Some(Action::EndZygote { zygote: zygotes[1] }));
        b.event(Event::ZygoteGone { zygote: zygotes[1], text: "exit status 0".into() });
        b.pass(PATIENCE);
        b.obey();
        assert_eq!(b.grant().map(|g| g.0), Some(1));
        assert!(b.refused().is_none());
    }
}

/// A controller that has room for so many processes, each of which takes its time to start and to end.
struct Room {
    bench: Bench,
    free: usize,
    /// What happens next in it, and when.
    comes: Vec<(u64, Event)>,
    freed: Vec<u64>,
    served: Vec<u32>,
}

impl Room {
    /// Carries out what was ordered and lets a millisecond pass.
    fn step(&mut self) {
        for action in std::mem::take(&mut self.bench.actions) {
            let now = self.bench.now;
            match action {
                Action::StartZygote { zygote, .. } if self.free == 0 => {
                    self.bench.event(Event::ZygoteLacks { zygote, text: TEXT.into() });
                }
                Action::Fork { lease, .. } if self.free == 0 => {
                    self.bench.event(Event::ForkLacks { lease, text: TEXT.into() });
                }
                Action::StartZygote { zygote, .. } => {
                    self.free -= 1;
                    self.comes.push((now + 20, Event::ZygoteReady { zygote }));
                }
                Action::Fork { lease, .. } => {
                    self.free -= 1;
                    let pid = u32::try_from(lease.0).expect("small") + 10_000;
                    self.comes.push((now + 5, Event::Forked { lease, pid }));
                }
                Action::EndZygote { zygote } => {
                    self.freed.push(now + 10);
                    self.comes.push((now + 10, Event::ZygoteGone { zygote, text: "exit status 0".into() }));
                }
                Action::Retire { lease } => {
                    self.freed.push(now + 3);
                    self.comes.push((now + 3, Event::WorkerGone { lease, wait_status: 0 }));
                }
                Action::Grant { want, lease, lend, frontend, .. } => {
                    self.served.push(want.0);
                    self.comes.push((now + 10, Event::Return { frontend, lease, lend, how: Returned::Idle }));
                }
                Action::Refuse { want, .. } => panic!("request {} is refused", want.0),
                _ => {}
            }
        }
        self.bench.pass(1);
        let now = self.bench.now;
        let all = self.freed.len();
        self.freed.retain(|at| *at > now);
        self.free += all - self.freed.len();
        let (due, later) = std::mem::take(&mut self.comes).into_iter().partition(|(at, _)| *at <= now);
        self.comes = later;
        let due: Vec<(u64, Event)> = due;
        for (_, event) in due {
            self.bench.event(event);
        }
    }
}

#[test]
fn with_room_for_one_pool_all_are_served_in_turn() {
    const POOLS: u32 = 24;
    for free in [2, 3, 11] {
        let pools = (0..POOLS).map(|n| row(&format!("p{n}"), Some(0), 4)).collect();
        let bench = Bench::new(100, pools);
        let mut room = Room { bench, free, comes: vec![], freed: vec![], served: vec![] };
        for n in 1..=POOLS {
            room.bench.want(F1, n, n);
            if n % 5 == 0 {
                room.step();
            }
        }
        for _ in 0..4_900 {
            room.step();
        }
        room.served.sort_unstable();
        assert_eq!(room.served, (1..=POOLS).collect::<Vec<u32>>(), "with room for {free}");
    }
}

#[test]
fn without_room_for_one_worker_beside_its_zygote_the_pool_fails() {
    let mut b = two();
    b.want(F1, 1, 1);
    b.pass(1);
    let zygote = b.zygote_started().expect("a zygote");
    b.event(Event::ZygoteReady { zygote });
    b.want(F1, 2, 2);
    assert!(lacks(&mut b) && lacks(&mut b));
    for _ in 0..4 {
        b.pass(PATIENCE);
        while lacks(&mut b) {}
    }
    assert!(b.has(|a| matches!(a, Action::Throttled { text, .. } if text == TEXT)));
}

#[test]
fn without_anything_idle_elsewhere_the_pool_fails() {
    let mut b = two();
    b.want(F1, 1, 1);
    assert!(lacks(&mut b));
    assert!(b.has(|a| matches!(a, Action::Throttled { text, .. } if text == TEXT)));
    assert!(b.refused().is_some());
}

#[test]
fn nothing_ends_for_spare_workers() {
    let spare = |name| PoolRow { min_spare: 1, ..row(name, Some(0), 4) };
    let mut b = Bench::new(100, vec![spare("a"), spare("b")]);
    let first = b.zygote_started().expect("a zygote");
    let second = b.zygote_started().expect("a zygote");
    b.event(Event::ZygoteReady { zygote: first });
    b.obey();
    b.event(Event::ZygoteLacks { zygote: second, text: TEXT.into() });
    b.pass(1000);
    b.nothing();
}
