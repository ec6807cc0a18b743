//! Pools that cannot start processes: who is refused, and who waits for a worker that lives.

use super::bench::{row, Bench, F1, F2};
use crate::policy::worker::WorkerSlot;
use crate::policy::{Action, Event, PATIENCE, RETURN_PATIENCE};
use crate::wire::control::{LeaseId, LendCount, PoolRow, Queued, Refusal, Returned};

/// A pool whose start has just failed, for the next second, while F1 has this worker of it; the request 2 of F2 waits.
fn throttled_with_a_worker(limits: PoolRow) -> (Bench, (LeaseId, LendCount)) {
    let mut b = Bench::new(100, vec![limits]);
    let held = b.lent(F1, 1, 1);
    b.want(F2, 2, 1);
    b.pass(RETURN_PATIENCE);
    let lease = b.fork_ordered().expect("for request 2");
    b.event(Event::ForkFailed { lease, text: "EAGAIN".into() });
    assert!(b.has(|a| matches!(a, Action::Throttled { .. })));
    (b, held)
}

#[test]
fn who_wants_a_throttled_pool_waits_for_a_worker_that_lives() {
    let (mut b, held) = throttled_with_a_worker(row("a", Some(0), 4));
    assert_eq!(b.refused(), None, "who waited when it was throttled");
    b.want(F2, 3, 1);
    assert_eq!(b.refused(), None, "who comes later");
    assert!(b.has(|a| matches!(a, Action::Contended { frontend: F1, queued: Queued::Elsewhere(_), .. })));
    b.give_back(F1, held, Returned::Idle);
    let (want, lease, lend, _, queued) = b.grant().expect("the worker that lives");
    assert_eq!((want, lease, queued), (2, held.0, Queued::Here));
    b.give_back(F2, (lease, lend), Returned::Idle);
    assert_eq!(b.grant().map(|g| (g.0, g.1)), Some((3, held.0)));
    assert!(b.fork_ordered().is_none(), "it is throttled still");
}

#[test]
fn who_waits_when_a_throttle_ends_gets_a_new_worker() {
    let (mut b, _) = throttled_with_a_worker(row("a", Some(0), 4));
    b.pass(999);
    assert!(b.fork_ordered().is_none());
    b.pass(1);
    let lease = b.fork_ordered().expect("the next attempt");
    b.forked(lease);
    assert_eq!(b.grant().map(|g| (g.0, g.1)), Some((2, lease)));
}

#[test]
fn the_end_of_a_throttled_pools_last_worker_refuses_who_waits() {
    type End = fn(&mut Bench, (LeaseId, LendCount));
    let ends: [(&str, End); 4] = [
        ("its last request", |b, held| b.give_back(F1, held, Returned::Last)),
        ("its end", |b, held| b.give_back(F1, held, Returned::Dead)),
        ("its death", |b, held| b.reaped(held.0, 9)),
        ("its frontend's end", |b, _| b.event(Event::FrontendLeft { frontend: F1 })),
    ];
    for (what, end) in ends {
        let (mut b, held) = throttled_with_a_worker(row("a", Some(0), 4));
        b.want(F2, 3, 1);
        b.pass(100);
        assert_eq!(b.refused(), None, "{what}");
        end(&mut b, held);
        for want in [2, 3] {
            let refused = b.refused().expect(what);
            assert_eq!(refused, (want, Refusal::Throttled, 1, "EAGAIN".into()), "{what}");
        }
        b.want(F2, 4, 1);
        assert_eq!(b.refused().map(|r| r.1), Some(Refusal::Throttled), "{what}");
        assert!(b.fork_ordered().is_none());
    }
}

#[test]
fn who_waits_for_a_throttled_pool_does_so_within_its_limits() {
    let (mut b, _) = throttled_with_a_worker(PoolRow { queue_limit: 2, queue_timeout_ms: 700, ..row("a", Some(0), 9) });
    b.want(F2, 3, 1);
    assert_eq!(b.refused(), None);
    b.want(F2, 4, 1);
    let (want, reason, ..) = b.refused().expect("nothing can be forked, so there is no room but in the queue");
    assert_eq!((want, reason), (4, Refusal::QueueFull));
    b.pass(700 - RETURN_PATIENCE);
    let (want, reason, _, text) = b.refused().expect("its time is over");
    assert_eq!((want, reason), (2, Refusal::QueueTimeout));
    assert!(text.contains("no process can be started") && text.contains("EAGAIN"), "{text}");
}

#[test]
fn a_fork_under_way_is_waited_for_though_another_failed() {
    let mut b = Bench::new(100, vec![row("a", Some(0), 4)]);
    b.event(Event::FrontendLeft { frontend: F2 });
    b.lent(F1, 1, 1);
    b.want(F1, 2, 1);
    b.want(F1, 3, 1);
    let (first, second) = (b.fork_ordered().expect("fork"), b.fork_ordered().expect("fork"));
    b.event(Event::WorkerGone { lease: b.state.workers.iter().find_map(lent).expect("one"), wait_status: 9 });
    b.event(Event::ForkFailed { lease: first, text: "EAGAIN".into() });
    assert_eq!(b.refused(), None);
    b.forked(second);
    assert_eq!(b.grant().map(|g| (g.0, g.1)), Some((2, second)));
    assert_eq!(b.refused(), None);
}

fn lent((lease, worker): (&LeaseId, &WorkerSlot)) -> Option<LeaseId> {
    worker.holder().map(|_| *lease)
}

#[test]
fn a_worker_that_lives_serves_its_pool_while_the_seed_keeps_failing() {
    for ends in [false, true] {
        let mut b = Bench::new(100, vec![row("a", Some(0), 4)]);
        let held = b.lent(F1, 1, 1);
        b.give_back(F1, held, Returned::Idle);
        b.want(F1, 2, 1);
        let held = b.grant().map(|g| (g.1, g.2)).expect("proven by now");
        let zygote = *b.state.zygotes.keys().next().expect("one");
        b.event(Event::ZygoteGone { zygote, text: "signal 9".into() });
        b.want(F2, 3, 1);
        for delay in [1000, 2000, 4000] {
            b.event(Event::SeedGone { generation: 1, text: "exit status 1".into() });
            if delay < 4000 {
                b.pass(delay);
            }
        }
        b.want(F2, 4, 1);
        assert_eq!(b.refused(), None);
        b.actions.clear();
        if ends {
            b.reaped(held.0, 9);
            let (want, reason, retry, text) = b.refused().expect("no worker lives");
            assert_eq!((want, reason, retry), (3, Refusal::Throttled, 4));
            assert!(text.contains("exit status 1"), "{text}");
            assert_eq!(b.refused().map(|r| r.0), Some(4));
        } else {
            b.give_back(F1, held, Returned::Idle);
            assert_eq!(b.grant().map(|g| g.0), Some(3));
            b.pass(4000);
            b.event(Event::SeedReady { generation: 1 });
            b.obey();
            assert_eq!(b.grant().map(|g| g.0), Some(4), "by a new worker");
        }
    }
}

#[test]
fn no_room_is_made_for_a_throttled_pool() {
    let mut b = Bench::new(2, vec![row("a", Some(0), 4), row("b", Some(0), 4)]);
    let (of_a, of_b) = (b.lent(F1, 1, 1), b.lent(F1, 2, 2));
    b.want(F2, 3, 1);
    b.pass(RETURN_PATIENCE);
    b.reaped(of_b.0, 9);
    let lease = b.fork_ordered().expect("for request 3");
    b.event(Event::ForkFailed { lease, text: "EAGAIN".into() });
    let of_b = b.lent(F1, 4, 2);
    b.want(F2, 5, 2);
    b.pass(PATIENCE);
    b.actions.clear();
    b.give_back(F1, of_b, Returned::Idle);
    assert_eq!(b.grant().map(|g| (g.0, g.1)), Some((5, of_b.0)), "not ended for a pool that can fork nothing");
    assert_eq!(b.refused(), None, "request 3 waits for {of_a:?}");
}

#[test]
fn a_worker_from_before_a_failure_does_not_shorten_the_time_to_the_next_attempt() {
    let (mut b, held) = throttled_with_a_worker(row("a", Some(0), 4));
    b.want(F2, 3, 1);
    b.give_back(F1, held, Returned::Idle);
    assert_eq!(b.grant().map(|g| g.0), Some(2));
    b.pass(1000);
    let lease = b.fork_ordered().expect("the next attempt");
    b.event(Event::ForkFailed { lease, text: "EAGAIN".into() });
    assert!(b.has(|a| matches!(a, Action::Throttled { delay_s: 2, .. })));
    b.pass(2000);
    let lease = b.fork_ordered().expect("the one after that");
    b.forked(lease);
    let (_, lease, lend, ..) = b.grant().expect("it works again");
    b.give_back(F2, (lease, lend), Returned::Idle);
    b.want(F2, 4, 1);
    b.want(F2, 5, 1);
    let lease = b.fork_ordered().expect("another worker");
    b.event(Event::ForkFailed { lease, text: "EAGAIN".into() });
    assert!(b.has(|a| matches!(a, Action::Throttled { delay_s: 1, .. })), "a new worker has served");
}
