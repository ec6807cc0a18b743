//! The rules of lending, one test each.

use super::bench::{row, Bench, F1, F2};
use crate::policy::{Action, Event, MAX_FORKING, PATIENCE, RETURN_PATIENCE};
use crate::policy::{ABANDONED_GRACE, DEAD_GRACE, LAST_GRACE, ORPHANED_GRACE, RETIRE_GRACE};
use crate::wire::control::{Arrival, LendCount, PoolRow, Queued, Refusal, Returned, WantId};

fn one(cap: u32) -> Bench {
    Bench::new(100, vec![row("a", Some(0), cap)])
}

#[test]
fn the_first_want_starts_the_zygote_then_forks_and_is_cold() {
    let mut b = one(4);
    b.want(F1, 7, 1);
    let zygote = b.zygote_started().expect("a zygote");
    b.nothing();
    b.event(Event::ZygoteReady { zygote });
    let lease = b.fork_ordered().expect("a fork");
    b.nothing();
    b.forked(lease);
    assert_eq!(b.grant(), Some((7, lease, LendCount(1), true, Queued::Nobody)));
    b.nothing();
}

#[test]
fn a_returned_worker_is_lent_again_warm_the_most_recent_first() {
    let mut b = one(4);
    let first = b.lent(F1, 1, 1);
    let second = b.lent(F1, 2, 1);
    b.give_back(F1, first, Returned::Idle);
    b.pass(10);
    b.give_back(F1, second, Returned::Idle);
    b.actions.clear();
    b.want(F2, 3, 1);
    assert_eq!(b.grant(), Some((3, second.0, LendCount(2), false, Queued::Nobody)));
    b.nothing();
}

#[test]
fn a_stale_return_changes_nothing() {
    let mut b = one(4);
    let (lease, lend) = b.lent(F1, 1, 1);
    b.give_back(F2, (lease, lend), Returned::Idle);
    b.give_back(F1, (lease, LendCount(lend.0 + 1)), Returned::Idle);
    b.nothing();
    b.give_back(F1, (lease, lend), Returned::Idle);
    b.give_back(F1, (lease, lend), Returned::Violation);
    b.nothing();
    b.want(F1, 2, 1);
    assert_eq!(b.grant().map(|g| g.1), Some(lease));
}

#[test]
fn wants_beyond_the_cap_queue_in_order_over_all_frontends() {
    let mut b = one(1);
    let held = b.lent(F1, 1, 1);
    b.want(F2, 2, 1);
    let second = Queued::Elsewhere(Arrival(b.now * 1000));
    assert!(b.has(|a| *a == Action::Contended { frontend: F1, pool: 1, queued: second }));
    b.pass(3);
    b.want(F1, 3, 1);
    let third = Queued::Elsewhere(Arrival(b.now * 1000));
    b.nothing();
    b.give_back(F1, held, Returned::Idle);
    let (want, lease, lend, cold, queued) = b.grant().expect("next in turn");
    assert_eq!((want, cold, queued), (2, false, third));
    b.give_back(F2, (lease, lend), Returned::Idle);
    assert_eq!(b.grant().map(|g| (g.0, g.4)), Some((3, Queued::Nobody)));
    assert!(b.has(|a| *a == Action::Contended { frontend: F2, pool: 1, queued: Queued::Nobody }));
    b.nothing();
}

#[test]
fn who_came_first_is_served_first_whenever_his_want_comes() {
    let mut b = one(1);
    let held = b.lent(F1, 1, 1);
    b.pass(20);
    b.want(F1, 2, 1);
    let own = Action::Contended { frontend: F1, pool: 1, queued: Queued::Here };
    assert!(b.has(|a| *a == own));
    b.pass(2);
    b.want_of(F2, 3, 1, b.now - 1);
    let (then, now) = (Arrival((b.now - 1) * 1000), b.now);
    assert!(b.has(|a| *a == Action::Contended { frontend: F1, pool: 1, queued: Queued::Elsewhere(then) }));
    b.want_of(F2, 4, 1, b.now);
    b.nothing();
    // The oldest of all: who holds the lease may have to pass it on to this one.
    b.want_of(F2, 5, 1, now - 9);
    let oldest = Queued::Elsewhere(Arrival((now - 9) * 1000));
    assert!(b.has(|a| *a == Action::Contended { frontend: F1, pool: 1, queued: oldest }));
    b.nothing();
    let mut order = Vec::new();
    let mut lease = (F1, held);
    for _ in 0..4 {
        b.give_back(lease.0, lease.1, Returned::Idle);
        let (want, id, lend, ..) = b.grant().expect("the next");
        order.push(want);
        lease = (if want == 2 { F1 } else { F2 }, (id, lend));
    }
    assert_eq!(order, [5, 2, 3, 4]);
}

#[test]
fn nobody_gains_a_place_by_an_impossible_time() {
    let mut b = one(1);
    let held = b.lent(F1, 1, 1);
    b.want_of(F1, 2, 1, b.now + 60_000);
    b.want_of(F1, 3, 1, 0);
    b.want_of(F1, 4, 1, b.now);
    // As old as a Want can be: it is refused now.
    assert_eq!(b.refused().map(|r| (r.0, r.1)), Some((3, Refusal::QueueTimeout)));
    b.give_back(F1, held, Returned::Idle);
    assert_eq!(b.grant().map(|g| g.0), Some(4), "the end of this millisecond is as far as anybody gets");
}

#[test]
fn a_burst_forks_as_many_as_wait_and_no_more() {
    let mut b = one(10);
    for want in 0..3 {
        b.want(F1, want, 1);
    }
    let zygote = b.zygote_started().expect("one zygote");
    b.event(Event::ZygoteReady { zygote });
    let leases: Vec<_> = std::iter::from_fn(|| b.fork_ordered()).collect();
    assert_eq!(leases.len(), 3);
    b.event(Event::Cancel { frontend: F1, want: WantId(0) });
    b.forked(leases[0]);
    assert_eq!(b.grant().map(|g| g.0), Some(1));
    b.forked(leases[1]);
    assert_eq!(b.grant().map(|g| g.0), Some(2));
    b.forked(leases[2]);
    assert_eq!(b.grant(), None);
}

#[test]
fn idle_leases_of_other_frontends_come_back_before_anything_is_forked() {
    let mut b = one(10);
    let held = [b.lent(F1, 1, 1), b.lent(F1, 2, 1)];
    for want in 3..6 {
        b.want(F2, want, 1);
    }
    assert!(b.fork_ordered().is_some(), "three wait, and two leases can come back");
    assert_eq!(b.fork_ordered(), None);
    b.give_back(F1, held[0], Returned::Idle);
    assert_eq!(b.grant().map(|g| g.0), Some(3));
    assert_eq!(b.fork_ordered(), None);
    b.pass(RETURN_PATIENCE - 1);
    assert_eq!(b.fork_ordered(), None);
    b.pass(1);
    assert!(b.fork_ordered().is_some(), "the other one is in use");
    assert_eq!(b.fork_ordered(), None);
    b.want(F2, 6, 1);
    assert!(b.fork_ordered().is_some(), "who was asked before has no idle lease");
}

#[test]
fn the_queue_is_limited_in_length_and_in_time() {
    let limits = PoolRow { queue_limit: 1, queue_timeout_ms: 700, ..row("a", Some(0), 1) };
    let mut b = Bench::new(100, vec![limits]);
    b.lent(F1, 1, 1);
    b.want(F1, 2, 1);
    b.want(F1, 3, 1);
    let (want, reason, retry, _) = b.refused().expect("the queue is full");
    assert_eq!((want, reason, retry), (3, Refusal::QueueFull, 1));
    b.pass(699);
    assert_eq!(b.refused(), None);
    b.pass(1);
    let (want, reason, ..) = b.refused().expect("waited too long");
    assert_eq!((want, reason), (2, Refusal::QueueTimeout));
}

#[test]
fn a_want_that_only_waits_for_its_fork_is_not_in_the_queue() {
    let mut b = Bench::new(100, vec![PoolRow { queue_limit: 0, ..row("a", Some(0), 1) }]);
    b.want(F1, 1, 1);
    assert_eq!(b.refused(), None);
    b.want(F1, 2, 1);
    assert_eq!(b.refused().map(|r| r.1), Some(Refusal::QueueFull));
}

#[test]
fn unknown_and_unassignable_pools_are_refused() {
    let mut b = one(1);
    b.want(F1, 1, 0);
    assert_eq!(b.refused().map(|r| r.1), Some(Refusal::NoPool));
    b.want(F1, 2, 99);
    assert_eq!(b.refused().map(|r| r.1), Some(Refusal::NoPool));
}

#[test]
fn the_idle_worker_of_another_pool_makes_room_under_a_shared_cap() {
    let mut b = Bench::new(1, vec![row("a", Some(0), 4), row("b", Some(0), 4)]);
    let held = b.lent(F1, 1, 1);
    b.give_back(F1, held, Returned::Idle);
    b.want(F1, 2, 2);
    let zygote = b.zygote_started().expect("b's zygote");
    b.nothing();
    b.event(Event::ZygoteReady { zygote });
    assert_eq!(b.retired(), Some(held.0));
    assert_eq!(b.fork_ordered(), None, "the ending worker still counts");
    b.reaped(held.0, 0);
    b.obey();
    assert_eq!(b.grant().map(|g| g.0), Some(2));
}

#[test]
fn lent_leases_of_other_pools_are_recalled_and_taken_when_patience_ends() {
    let mut b = Bench::new(2, vec![row("a", Some(0), 4), row("b", Some(0), 4)]);
    let first = b.lent(F1, 1, 1);
    b.pass(5);
    let second = b.lent(F1, 2, 1);
    b.want(F2, 3, 2);
    b.obey();
    assert!(b.has(|a| *a == Action::Recall { frontend: F1, lease: first.0, lend: first.1 }));
    assert!(!b.has(|a| matches!(a, Action::Recall { .. })));
    b.pass(PATIENCE);
    assert!(b.has(|a| *a == Action::Recall { frontend: F1, lease: second.0, lend: second.1 }));
    // The pool that holds both has a Want of its own, but a later one.
    b.want(F1, 4, 1);
    b.give_back(F1, second, Returned::Idle);
    assert_eq!(b.retired(), Some(second.0));
    b.give_back(F1, first, Returned::Idle);
    assert_eq!(b.grant().map(|g| g.0), Some(4), "one slot is on its way, the other worker stays");
    b.reaped(second.0, 0);
    b.obey();
    assert_eq!(b.grant().map(|g| g.0), Some(3));
}

#[test]
fn whose_turn_came_first_is_served_first_whatever_his_pool() {
    let mut b = Bench::new(1, vec![row("a", Some(0), 4), row("b", Some(0), 4)]);
    let held = b.lent(F1, 1, 1);
    b.want(F2, 2, 1);
    b.want(F2, 3, 2);
    b.obey();
    b.pass(2 * PATIENCE);
    b.give_back(F1, held, Returned::Idle);
    let (want, lease, lend, ..) = b.grant().expect("the older Want");
    assert_eq!(want, 2);
    b.want(F1, 4, 1);
    b.give_back(F2, (lease, lend), Returned::Idle);
    assert_eq!(b.grant(), None);
    assert_eq!(b.retired(), Some(lease), "now it is the other pool's turn");
    b.reaped(lease, 0);
    b.obey();
    assert_eq!(b.grant().map(|g| g.0), Some(3));
}

#[test]
fn a_cap_of_a_parent_holds_over_its_sub_pools_only() {
    let mut b = Bench::new(
        100,
        vec![
            PoolRow { uid: None, ..row("group", Some(0), 1) },
            row("a", Some(1), 4),
            row("b", Some(1), 4),
            row("c", Some(0), 4),
        ],
    );
    b.lent(F1, 1, 2);
    b.want(F1, 2, 3);
    b.obey();
    assert_eq!(b.grant(), None);
    b.want(F1, 3, 4);
    b.obey();
    assert_eq!(b.grant().map(|g| g.0), Some(3));
}

#[test]
fn each_way_to_return_has_its_grace() {
    for (how, grace) in
        [(Returned::Last, LAST_GRACE), (Returned::Abandoned, ABANDONED_GRACE), (Returned::Dead, DEAD_GRACE)]
    {
        let mut b = one(1);
        let held = b.lent(F1, 1, 1);
        b.give_back(F1, held, how);
        b.pass(grace - 1);
        assert!(!b.has(|a| matches!(a, Action::Kill { .. })), "{how:?} too early");
        b.pass(1);
        assert!(b.has(|a| *a == Action::Kill { lease: held.0 }), "{how:?}");
    }
    let mut b = one(1);
    let held = b.lent(F1, 1, 1);
    b.give_back(F1, held, Returned::Expired);
    assert!(b.has(|a| *a == Action::Interrupt { lease: held.0 }));
    b.pass(5_000 - 1);
    assert!(!b.has(|a| matches!(a, Action::Kill { .. })), "too early");
    b.pass(1);
    assert!(b.has(|a| *a == Action::Kill { lease: held.0 }));
    for how in [Returned::Violation, Returned::TimedOut] {
        let mut b = one(1);
        let held = b.lent(F1, 1, 1);
        b.give_back(F1, held, how);
        assert!(b.has(|a| *a == Action::Kill { lease: held.0 }), "{how:?}");
    }
}

#[test]
fn an_ending_worker_counts_until_it_is_reaped() {
    let mut b = one(1);
    let held = b.lent(F1, 1, 1);
    b.give_back(F1, held, Returned::Last);
    b.want(F1, 2, 1);
    b.obey();
    assert_eq!(b.grant(), None);
    b.reaped(held.0, 0);
    b.obey();
    assert_eq!(b.grant().map(|g| (g.0, g.3)), Some((2, true)));
}

#[test]
fn who_holds_a_worker_that_dies_is_told_and_who_saw_it_dead_too() {
    let mut b = one(2);
    let held = b.lent(F1, 1, 1);
    b.reaped(held.0, 9);
    assert!(b.has(|a| matches!(a, Action::Obituary { frontend: F1, lease, wait_status: 9, .. } if *lease == held.0)));
    let held = b.lent(F1, 2, 1);
    b.give_back(F1, held, Returned::Dead);
    b.reaped(held.0, 11);
    assert!(b.has(|a| matches!(a, Action::Obituary { lease, wait_status: 11, .. } if *lease == held.0)));
    let held = b.lent(F1, 3, 1);
    b.give_back(F1, held, Returned::Last);
    b.reaped(held.0, 0);
    assert!(!b.has(|a| matches!(a, Action::Obituary { .. })));
}

#[test]
fn an_idle_worker_that_dies_is_replaced_on_demand() {
    let mut b = one(2);
    let held = b.lent(F1, 1, 1);
    b.give_back(F1, held, Returned::Idle);
    b.reaped(held.0, 9);
    b.nothing();
    b.want(F1, 2, 1);
    assert!(b.fork_ordered().is_some());
}

#[test]
fn a_pool_goes_to_zero_after_its_idle_timeout() {
    let mut b = one(4);
    let held = b.lent(F1, 1, 1);
    b.give_back(F1, held, Returned::Idle);
    b.pass(29_999);
    b.nothing();
    b.pass(1);
    assert_eq!(b.retired(), Some(held.0));
    assert!(b.has(|a| matches!(a, Action::EndZygote { .. })));
    b.nothing();
    b.pass(RETIRE_GRACE);
    assert!(b.has(|a| matches!(a, Action::Kill { .. })));
    assert!(b.has(|a| matches!(a, Action::KillZygote { .. })));
}

#[test]
fn min_spare_is_forked_ahead_and_survives_the_idle_timeout() {
    let mut b = Bench::new(100, vec![PoolRow { min_spare: 2, ..row("a", Some(0), 4) }]);
    b.obey();
    b.want(F1, 1, 1);
    let (_, lease, lend, cold, _) = b.grant().expect("from the spare ones");
    assert!(!cold);
    let third = b.fork_ordered().expect("the spare one is replaced");
    b.nothing();
    b.forked(third);
    b.give_back(F1, (lease, lend), Returned::Idle);
    b.pass(29_999);
    b.nothing();
    b.pass(1);
    assert!(b.retired().is_some(), "one more than spare");
    b.actions.clear();
    b.pass(1000);
    b.nothing();
}

#[test]
fn min_spare_never_evicts_and_comes_back_when_there_is_room() {
    let spare = PoolRow { min_spare: 1, ..row("a", Some(0), 4) };
    let mut b = Bench::new(1, vec![spare, row("b", Some(0), 4)]);
    b.obey();
    b.want(F1, 1, 2);
    b.obey();
    let evicted = b.retired().expect("the spare worker makes room");
    b.obey();
    b.reaped(evicted, 0);
    b.obey();
    let (_, lease, lend, ..) = b.grant().expect("b's worker");
    b.nothing();
    b.give_back(F1, (lease, lend), Returned::Last);
    b.reaped(lease, 0);
    assert!(b.fork_ordered().is_some());
}

#[test]
fn a_frontend_that_leaves_takes_its_wants_along_and_its_workers_end() {
    let mut b = one(1);
    let held = b.lent(F1, 1, 1);
    b.want(F1, 2, 1);
    b.want(F2, 3, 1);
    b.actions.clear();
    b.event(Event::FrontendLeft { frontend: F1 });
    b.pass(100);
    b.reaped(held.0, 0);
    b.obey();
    assert_eq!(b.grant().map(|g| g.0), Some(3));
    assert!(!b.has(|a| matches!(a, Action::Obituary { .. })));

    let mut b = one(1);
    b.lent(F1, 1, 1);
    b.event(Event::FrontendLeft { frontend: F1 });
    b.pass(ORPHANED_GRACE);
    assert!(b.has(|a| matches!(a, Action::Kill { .. })));
}

#[test]
fn workers_of_a_dead_controller_count() {
    let mut b = one(1);
    b.event(Event::ForeignCame { pid: 77, pool: "a".into() });
    b.want(F1, 1, 1);
    b.obey();
    assert_eq!(b.grant(), None);
    b.event(Event::ForeignGone { pid: 77 });
    b.obey();
    assert_eq!(b.grant().map(|g| g.0), Some(1));
}

#[test]
fn a_crowd_does_not_fill_the_way_to_the_zygote() {
    let mut b = Bench::new(1000, vec![PoolRow { queue_limit: 1000, ..row("a", Some(0), 400) }]);
    for want in 0..400 {
        b.want(F1, want, 1);
    }
    let zygote = b.zygote_started().expect("zygote");
    b.event(Event::ZygoteReady { zygote });
    let mut ordered = Vec::new();
    let mut workers = 0;
    loop {
        ordered.extend(std::iter::from_fn(|| b.fork_ordered()));
        assert!(ordered.len() <= MAX_FORKING);
        let Some(lease) = ordered.pop() else { break };
        b.forked(lease);
        workers += 1;
    }
    assert_eq!(workers, 400);
}
