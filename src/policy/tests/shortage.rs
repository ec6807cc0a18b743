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
