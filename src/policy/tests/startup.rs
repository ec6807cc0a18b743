//! Failed starts, throttling, generations, and the end.

use super::bench::{row, Bench, F1, F2};
use crate::policy::{Action, Event, FrontendId};
use crate::policy::{FORK_DEADLINE, IN_USE, OLD_IDLE, SEED_DEADLINE, SLOW_START, STARTS_AT_ONCE, STOP_GRACE};
use crate::policy::{UNUSED_DEATHS, WARM_PATIENCE, ZYGOTE_DEADLINE};
use crate::wire::control::{PoolRow, Refusal, Returned};

fn one(cap: u32) -> Bench {
    Bench::new(100, vec![row("a", Some(0), cap)])
}

#[test]
fn a_zygote_that_fails_throttles_its_pool_with_growing_delays() {
    let mut b = one(4);
    for (round, delay) in [(0, 1), (1, 2), (2, 4), (3, 8)] {
        b.want(F1, round, 1);
        let zygote = b.zygote_started().expect("an attempt");
        b.event(Event::ZygoteFailed { zygote, text: "php.ini".into() });
        assert!(b.has(|a| *a == Action::KillZygote { zygote }));
        let (_, reason, retry, text) = b.refused().expect("who waits is refused");
        assert_eq!((reason, retry, text.as_str()), (Refusal::Throttled, delay, "php.ini"));
        assert!(b.has(|a| matches!(a, Action::Throttled { delay_s, .. } if *delay_s == u64::from(delay))));
        b.event(Event::ZygoteGone { zygote, text: "signal 9".into() });
        b.pass(u64::from(delay) * 1000 - 1);
        b.want(F1, 100, 1);
        assert_eq!(b.refused().map(|r| (r.1, r.2)), Some((Refusal::Throttled, 1)), "refused at once");
        b.nothing();
        b.pass(1);
    }
    b.lent(F1, 200, 1);
}

#[test]
fn a_zygote_that_breaks_the_protocol_throttles_its_pool_whatever_it_has_served() {
    let mut b = one(4);
    b.want(F1, 1, 1);
    let zygote = b.zygote_started().expect("its zygote");
    b.event(Event::ZygoteReady { zygote });
    b.obey();
    let (_, lease, lend, ..) = b.grant().expect("a grant");
    b.give_back(F1, (lease, lend), Returned::Last);
    b.event(Event::ZygoteViolated { zygote, text: "a descriptor".into() });
    assert!(b.has(|a| *a == Action::KillZygote { zygote }));
    assert!(b.has(|a| matches!(a, Action::Throttled { text, .. } if text == "a descriptor")));
}

#[test]
fn the_delay_is_bounded_and_a_served_request_resets_it() {
    let mut b = one(4);
    for round in 0..10 {
        b.want(F1, round, 1);
        let zygote = b.zygote_started().expect("an attempt");
        b.event(Event::ZygoteGone { zygote, text: "exit status 1".into() });
        b.pass(60_000);
    }
    b.actions.clear();
    b.want(F1, 50, 1);
    let zygote = b.zygote_started().expect("at most a minute later");
    b.event(Event::ZygoteReady { zygote });
    b.obey();
    let (_, lease, lend, ..) = b.grant().expect("it works now");
    b.give_back(F1, (lease, lend), Returned::Last);
    b.reaped(lease, 0);
    b.event(Event::ZygoteGone { zygote, text: "signal 9".into() });
    b.want(F1, 51, 1);
    let zygote = b.zygote_started().expect("its death was an accident");
    b.event(Event::ZygoteGone { zygote, text: "exit status 1".into() });
    assert_eq!(b.refused().map(|r| r.2), Some(1), "from the first delay again");
}

#[test]
fn workers_that_die_before_any_request_throttle() {
    let mut b = Bench::new(100, vec![PoolRow { min_spare: 1, ..row("a", Some(0), 4) }]);
    let zygote = b.zygote_started().expect("for the spare worker");
    b.event(Event::ZygoteReady { zygote });
    let lease = b.fork_ordered().expect("the spare worker");
    b.forked(lease);
    b.reaped(lease, 11);
    assert!(b.has(|a| matches!(a, Action::Throttled { text, .. } if text.contains("signal 11"))));
    b.want(F1, 1, 1);
    assert_eq!(b.refused().map(|r| r.1), Some(Refusal::Throttled));
    b.nothing();
    b.pass(1000);
    assert!(b.fork_ordered().is_some(), "tried again by itself");
}

#[test]
fn unused_workers_of_a_pool_that_works_may_be_killed() {
    let mut b = Bench::new(100, vec![PoolRow { min_spare: 1, ..row("a", Some(0), 4) }]);
    b.obey();
    let served = b.lent(F1, 1, 1);
    b.give_back(F1, served, Returned::Last);
    b.reaped(served.0, 0);
    b.obey();
    for round in 0..=UNUSED_DEATHS {
        let spare = *b.state.workers.keys().next().expect("the spare worker");
        b.actions.clear();
        b.reaped(spare, 9);
        let throttled = b.has(|a| matches!(a, Action::Throttled { .. }));
        assert_eq!(throttled, round == UNUSED_DEATHS, "after {round} before it");
        b.obey();
    }
}

#[test]
fn a_worker_in_use_proves_its_zygote_though_it_never_comes_back() {
    for (held, dies_first, throttles) in [(IN_USE, false, false), (IN_USE, true, false), (IN_USE - 1, false, true)] {
        let mut b = Bench::new(100, vec![PoolRow { min_spare: 1, ..row("a", Some(0), 4) }]);
        b.obey();
        let busy = b.lent(F1, 1, 1);
        b.obey();
        b.pass(held);
        b.obey();
        b.actions.clear();
        let spare = *b.state.workers.iter().find(|(_, w)| !w.ever_lent).expect("the spare worker").0;
        if dies_first {
            b.reaped(busy.0, 9);
        }
        b.reaped(spare, 9);
        assert_eq!(b.has(|a| matches!(a, Action::Throttled { .. })), throttles, "held for {held}, {dies_first}");
    }
}

#[test]
fn silent_zygotes_are_killed() {
    let mut b = Bench::new(100, vec![PoolRow { queue_timeout_ms: 300_000, ..row("a", Some(0), 4) }]);
    b.want(F1, 1, 1);
    let zygote = b.zygote_started().expect("zygote");
    b.pass(ZYGOTE_DEADLINE);
    assert!(b.has(|a| *a == Action::KillZygote { zygote }));
    assert_eq!(b.refused().map(|r| r.1), Some(Refusal::Throttled));
    b.event(Event::ZygoteGone { zygote, text: String::new() });
    b.pass(1000);
    b.want(F1, 2, 1);
    let zygote = b.zygote_started().expect("zygote");
    b.event(Event::ZygoteReady { zygote });
    let lease = b.fork_ordered().expect("fork");
    b.pass(FORK_DEADLINE);
    assert!(b.has(|a| *a == Action::KillZygote { zygote }));
    assert!(b.has(|a| *a == Action::Forget { lease }));
    b.forked(lease);
    assert!(b.has(|a| *a == Action::Kill { lease }), "its late answer is a process that nobody needs");
}

#[test]
fn a_proven_zygote_that_dies_is_replaced_and_its_idle_workers_stay() {
    let mut b = one(4);
    b.want(F1, 1, 1);
    let zygote = b.zygote_started().expect("zygote");
    b.event(Event::ZygoteReady { zygote });
    b.obey();
    let (_, lease, lend, ..) = b.grant().expect("grant");
    b.give_back(F1, (lease, lend), Returned::Idle);
    b.event(Event::ZygoteGone { zygote, text: "signal 9".into() });
    b.nothing();
    b.want(F1, 2, 1);
    assert_eq!(b.grant().map(|g| g.1), Some(lease));
    b.want(F1, 3, 1);
    assert!(b.zygote_started().is_some());
}

#[test]
fn a_zygote_that_dies_with_an_order_is_replaced_if_a_worker_of_it_lives() {
    for lives in [true, false] {
        let mut b = one(4);
        b.want(F1, 1, 1);
        let zygote = b.zygote_started().expect("zygote");
        b.event(Event::ZygoteReady { zygote });
        if lives {
            b.obey();
            b.grant().expect("nobody has heard of its request yet");
            b.want(F1, 2, 1);
        }
        assert!(b.fork_ordered().is_some());
        b.actions.clear();
        b.event(Event::ZygoteGone { zygote, text: "signal 9".into() });
        assert_eq!(b.zygote_started().is_some(), lives);
        assert_eq!(b.refused().map(|r| r.1), if lives { None } else { Some(Refusal::Throttled) });
    }
}

#[test]
fn wants_wait_for_the_first_seed_and_are_refused_when_it_keeps_failing() {
    let mut b = one(4);
    b.configure(2, 100, vec![row("a", Some(0), 4)]);
    let late = FrontendId(9);
    b.event(Event::FrontendCame { frontend: late, generation: 2 });
    for (round, delay) in [(1, 1000), (2, 2000), (3, 4000)] {
        b.want(late, round, 1);
        b.event(Event::SeedGone { generation: 2, text: "exit status 1".into() });
        let refused: Vec<_> = std::iter::from_fn(|| b.refused()).collect();
        assert_eq!(refused.len(), if round < 3 { 0 } else { 3 });
        b.pass(delay - 1);
        b.nothing();
        b.pass(1);
        assert!(b.has(|a| *a == Action::StartSeed { generation: 2 }));
    }
    b.want(late, 4, 1);
    let (_, reason, _, text) = b.refused().expect("at once");
    assert_eq!(reason, Refusal::Throttled);
    assert!(text.contains("exit status 1"));
    b.event(Event::SeedReady { generation: 2 });
    b.want(late, 5, 1);
    b.obey();
    assert_eq!(b.grant().map(|g| g.0), Some(5));
}

#[test]
fn who_waits_for_a_zygote_that_dies_while_the_seed_keeps_failing_is_refused_at_once() {
    let mut b = one(1);
    b.want(F1, 1, 1);
    let zygote = b.zygote_started().expect("zygote");
    b.event(Event::ZygoteReady { zygote });
    b.obey();
    let (_, lease, lend, ..) = b.grant().expect("grant");
    b.give_back(F1, (lease, lend), Returned::Idle);
    b.want(F1, 2, 1);
    let (_, lease, lend, ..) = b.grant().expect("grant");
    for delay in [1000, 2000, 4000] {
        b.event(Event::SeedGone { generation: 1, text: "exit status 1".into() });
        b.pass(delay);
    }
    b.want(F2, 3, 1);
    b.give_back(F1, (lease, lend), Returned::Last);
    assert_eq!(b.refused(), None, "a zygote is there, and waits for the place of the worker that ends");
    b.actions.clear();
    b.event(Event::ZygoteGone { zygote, text: "signal 9".into() });
    assert_eq!(b.refused().map(|r| (r.0, r.1)), Some((3, Refusal::Throttled)));
}

#[test]
fn a_seed_that_never_gets_ready_is_killed() {
    let mut b = one(4);
    b.configure(2, 100, vec![row("a", Some(0), 4)]);
    b.pass(SEED_DEADLINE);
    assert!(b.has(|a| *a == Action::KillSeed { generation: 2 }));
}

#[test]
fn a_generation_ends_with_its_last_frontend() {
    let mut b = one(4);
    let held = b.lent(F1, 1, 1);
    let spare = b.lent(F2, 2, 1);
    b.configure(2, 100, vec![row("a", Some(0), 4)]);
    b.event(Event::SeedReady { generation: 2 });
    b.obey();
    assert!(b.has(|a| *a == WARM));
    b.give_back(F2, spare, Returned::Idle);
    b.pass(1000);
    assert_eq!(b.retired(), Some(spare.0), "idle for a second in an old generation");
    b.reaped(spare.0, 0);
    let again = b.lent(F2, 3, 1);
    b.event(Event::FrontendLeft { frontend: F1 });
    b.actions.clear();
    b.give_back(F2, again, Returned::Last);
    b.event(Event::FrontendLeft { frontend: F2 });
    assert!(b.has(|a| *a == Action::EndSeed { generation: 1 }));
    assert!(b.has(|a| matches!(a, Action::EndZygote { .. })));
    assert!(!b.state.generation_open(1));
    b.reaped(held.0, 0);
    b.reaped(again.0, 0);
    b.event(Event::SeedGone { generation: 1, text: String::new() });
    assert!(!b.has(|a| matches!(a, Action::GenerationGone { .. })), "the zygote lives");
    let of_old =
        |(id, z): (&crate::policy::ZygoteId, &crate::policy::zygote::Zygote)| (z.key.generation == 1).then_some(*id);
    let zygote = b.state.zygotes.iter().find_map(of_old).expect("one");
    b.event(Event::ZygoteGone { zygote, text: String::new() });
    assert!(b.has(|a| *a == Action::GenerationGone { generation: 1 }));
    assert!(b.state.pools.keys().all(|key| key.generation == 2));
    assert!(b.state.zygotes.values().all(|z| z.key.generation == 2));
    assert!(b.state.workers.values().all(|w| w.key.generation == 2));
}

#[test]
fn a_generation_with_a_child_that_has_not_said_hello_stays() {
    let mut b = one(4);
    b.event(Event::ChildStarted { pid: 71, generation: 1 });
    b.event(Event::FrontendLeft { frontend: F1 });
    b.event(Event::FrontendLeft { frontend: F2 });
    b.configure(2, 100, vec![row("a", Some(0), 4)]);
    assert!(b.state.generation_open(1));
    b.event(Event::FrontendCame { frontend: F1, generation: 1 });
    b.lent(F1, 1, 1);
    b.event(Event::FrontendLeft { frontend: F1 });
    assert!(b.state.generation_open(1), "it may say hello again");
    b.event(Event::ChildGone { pid: 71 });
    assert!(!b.state.generation_open(1));
    // Its number is given to a child of another generation.
    b.event(Event::ChildStarted { pid: 72, generation: 2 });
    b.configure(3, 100, vec![row("a", Some(0), 4)]);
    assert!(b.state.generation_open(2));
    b.event(Event::ChildStarted { pid: 72, generation: 3 });
    assert!(!b.state.generation_open(2));
}

/// A controller that took over when generation 2 ran, and generation 1 had a frontend still.
fn after_a_controller() -> Bench {
    let mut b = Bench { state: crate::policy::State::new(), now: 1_000_000, actions: Vec::new() };
    let rows = || vec![PoolRow { uid: None, ..row("", None, 100) }, row("a", Some(0), 4)];
    b.event(Event::Configure { table: super::bench::table(1, rows()), older: true });
    b.event(Event::ChildStarted { pid: 71, generation: 1 });
    b.configure(2, 100, vec![row("a", Some(0), 4)]);
    b.event(Event::SeedReady { generation: 2 });
    assert!(b.has(|a| *a == Action::Warm { generation: 2 }));
    b.event(Event::FrontendCame { frontend: F1, generation: 1 });
    b.event(Event::FrontendCame { frontend: F2, generation: 2 });
    b
}

#[test]
fn an_older_generation_gets_a_seed_when_a_request_of_it_comes() {
    let mut b = after_a_controller();
    b.lent(F2, 1, 1);
    b.nothing();
    b.want(F1, 2, 1);
    b.want(F1, 3, 1);
    assert!(b.has(|a| *a == Action::StartSeed { generation: 1 }));
    b.nothing();
    b.event(Event::SeedReady { generation: 1 });
    b.obey();
    assert_eq!([b.grant().map(|g| g.0), b.grant().map(|g| g.0)], [Some(2), Some(3)]);
}

#[test]
fn an_older_generation_that_nobody_has_is_forgotten() {
    let mut b = after_a_controller();
    b.event(Event::FrontendLeft { frontend: F1 });
    b.nothing();
    b.event(Event::ChildGone { pid: 71 });
    assert!(b.has(|a| *a == Action::GenerationGone { generation: 1 }));
    b.nothing();
}

#[test]
fn who_is_of_no_known_generation_is_refused_at_once() {
    let mut b = one(4);
    let late = FrontendId(9);
    b.event(Event::FrontendCame { frontend: late, generation: 7 });
    b.want(late, 1, 1);
    let (want, reason, retry, text) = b.refused().expect("at once");
    assert_eq!((want, reason, retry), (1, Refusal::NoPool, crate::policy::STRANGER_RETRY));
    assert!(text.contains("older"), "{text}");
    b.event(Event::FrontendLeft { frontend: late });
    b.want(late, 2, 1);
    b.nothing();
}

/// A server whose pool `a` has two workers in generation 1, and that has begun with generation 2, where it is the second.
fn reloading(cap: u32) -> (Bench, crate::policy::ZygoteId) {
    let mut b = Bench::new(100, vec![row("a", Some(0), cap), row("b", Some(0), 4)]);
    b.lent(F1, 1, 1);
    b.lent(F1, 2, 1);
    b.configure(2, 100, vec![row("b", Some(0), 4), row("a", Some(0), cap)]);
    b.actions.clear();
    b.event(Event::SeedReady { generation: 2 });
    let key = crate::policy::PoolKey { generation: 2, pool: 2 };
    let started = b.take(|a| matches!(a, Action::StartZygote { key: k, .. } if *k == key)).expect("of the same name");
    b.nothing();
    let Action::StartZygote { zygote, .. } = started else { panic!("just matched") };
    (b, zygote)
}

const WARM: Action = Action::Warm { generation: 2 };

#[test]
fn a_pool_in_use_is_warmed_in_the_new_generation() {
    let (mut b, zygote) = reloading(4);
    b.event(Event::ZygoteReady { zygote });
    let orders = b.actions.iter().filter(|a| matches!(a, Action::Fork { .. })).count();
    assert_eq!(orders, 2, "as many workers as it has");
    assert!(!b.has(|a| *a == WARM));
    b.obey();
    assert!(b.has(|a| *a == WARM));
    b.actions.clear();
    b.pass(29_999);
    b.nothing();
    b.pass(1);
    assert!(b.retired().is_some(), "not for ever");
}

#[test]
fn a_pool_without_room_is_warm_with_its_zygote() {
    let (mut b, zygote) = reloading(2);
    b.event(Event::ZygoteReady { zygote });
    assert!(b.fork_ordered().is_none());
    assert!(b.has(|a| *a == WARM));
}

#[test]
fn nobody_waits_for_a_pool_that_cannot_be_warmed() {
    let (mut b, zygote) = reloading(4);
    b.event(Event::ZygoteFailed { zygote, text: "php.ini".into() });
    assert!(b.has(|a| *a == WARM));
    let (mut b, _) = reloading(4);
    b.pass(WARM_PATIENCE - 1);
    assert!(!b.has(|a| *a == WARM));
    b.pass(1);
    assert!(b.has(|a| *a == WARM));
    let mut b = one(4);
    b.configure(2, 100, vec![row("a", Some(0), 4)]);
    b.event(Event::SeedReady { generation: 2 });
    assert!(b.has(|a| *a == WARM), "nothing is in use");
}

#[test]
fn caps_hold_over_both_generations() {
    let mut b = one(1);
    let held = b.lent(F1, 1, 1);
    b.configure(2, 100, vec![row("a", Some(0), 1)]);
    b.event(Event::SeedReady { generation: 2 });
    let late = FrontendId(9);
    b.event(Event::FrontendCame { frontend: late, generation: 2 });
    b.want(late, 1, 1);
    b.obey();
    assert!(b.has(|a| matches!(a, Action::Recall { frontend: F1, .. })));
    b.obey();
    assert_eq!(b.grant(), None);
    b.give_back(F1, held, Returned::Idle);
    assert_eq!(b.retired(), Some(held.0));
    b.reaped(held.0, 0);
    b.obey();
    assert_eq!(b.grant().map(|g| g.0), Some(1));
}

#[test]
fn an_idle_worker_of_another_generation_is_lent_to_nobody() {
    let mut b = one(4);
    let old = b.lent(F1, 1, 1);
    b.give_back(F1, old, Returned::Idle);
    b.configure(2, 100, vec![row("a", Some(0), 4)]);
    b.event(Event::SeedReady { generation: 2 });
    let late = FrontendId(9);
    b.event(Event::FrontendCame { frontend: late, generation: 2 });
    let new = b.lent(late, 1, 1);
    assert_ne!(new.0, old.0, "its own, though one of the old generation is idle");
    b.give_back(late, new, Returned::Idle);
    b.reaped(old.0, 0);
    assert_ne!(b.lent(F1, 2, 1).0, new.0, "the same the other way round");
}

#[test]
fn stop_refuses_ends_kills_and_is_done_when_all_is_reaped() {
    let mut b = one(2);
    let held = b.lent(F1, 1, 1);
    let idle = b.lent(F2, 2, 1);
    b.give_back(F2, idle, Returned::Abandoned);
    b.want(F2, 3, 1);
    b.actions.clear();
    b.event(Event::Stop);
    assert_eq!(b.refused().map(|r| (r.0, r.1)), Some((3, Refusal::Stopping)));
    b.want(F2, 4, 1);
    assert_eq!(b.refused().map(|r| r.1), Some(Refusal::Stopping));
    assert!(b.has(|a| matches!(a, Action::EndZygote { .. })));
    assert!(b.has(|a| matches!(a, Action::EndSeed { .. })));
    b.pass(STOP_GRACE);
    for lease in [held.0, idle.0] {
        assert!(b.has(|a| *a == Action::Kill { lease }));
        b.reaped(lease, 9);
    }
    assert!(b.has(|a| matches!(a, Action::KillZygote { .. })));
    assert!(b.has(|a| *a == Action::KillSeed { generation: 1 }));
    let zygote = *b.state.zygotes.keys().next().expect("one");
    b.event(Event::ZygoteGone { zygote, text: String::new() });
    assert!(!b.has(|a| *a == Action::Done));
    b.event(Event::SeedGone { generation: 1, text: String::new() });
    assert!(b.has(|a| *a == Action::Done));
}

/// Pools of their own users, numbered from 1.
fn many(count: u32, change: impl Fn(PoolRow) -> PoolRow) -> Vec<PoolRow> {
    (0..count).map(|n| change(row(&format!("p{n}"), Some(0), 4))).collect()
}

#[test]
fn zygotes_are_ordered_a_few_at_a_time() {
    let mut b = Bench::new(1_000, many(600, |row| PoolRow { min_spare: 1, ..row }));
    let mut started = 0;
    let mut open = Vec::new();
    loop {
        while let Some(zygote) = b.zygote_started() {
            open.push(zygote);
            started += 1;
        }
        assert!(open.len() <= STARTS_AT_ONCE, "{} at a time", open.len());
        let Some(zygote) = open.pop() else { break };
        b.event(Event::ZygoteReady { zygote });
    }
    assert_eq!(started, 600);
    assert!(!b.has(|a| matches!(a, Action::Throttled { .. } | Action::Refuse { .. })));
}

#[test]
fn a_zygote_that_hangs_holds_up_others_for_a_moment_only() {
    let mut b = Bench::new(1_000, many(40, |row| row));
    for pool in 1..=40 {
        b.want(F1, pool, pool);
    }
    let count = |b: &mut Bench| std::iter::from_fn(|| b.zygote_started()).count();
    assert_eq!(count(&mut b), STARTS_AT_ONCE);
    b.pass(SLOW_START - 1);
    assert_eq!(count(&mut b), 0);
    b.pass(1);
    assert_eq!(count(&mut b), STARTS_AT_ONCE, "though none of the first is ready");
    b.pass(SLOW_START);
    assert_eq!(count(&mut b), 40 - 2 * STARTS_AT_ONCE);
}

#[test]
fn pools_with_requests_come_before_spare_workers() {
    let mut b = Bench::new(1_000, many(60, |row| PoolRow { min_spare: 1, ..row }));
    let first: Vec<_> = std::iter::from_fn(|| b.zygote_started()).collect();
    b.want(F1, 1, 55);
    b.event(Event::ZygoteReady { zygote: first[0] });
    let next = b.take(|a| matches!(a, Action::StartZygote { .. }));
    assert!(matches!(next, Some(Action::StartZygote { key, .. }) if key.pool == 55), "{next:?}");
}

#[test]
fn zygotes_are_bounded_by_the_workers_that_the_root_pool_may_have() {
    let mut b = Bench::new(8, many(50, |row| row));
    let mut live = std::collections::BTreeSet::new();
    let mut served = 0;
    for pool in 1..=50 {
        b.want(F1, pool, pool);
    }
    while served < 50 {
        let action = if b.actions.is_empty() { None } else { Some(b.actions.remove(0)) };
        match action {
            Some(Action::StartZygote { zygote, .. }) => {
                live.insert(zygote);
                assert!(live.len() <= 8 + STARTS_AT_ONCE, "{} zygotes", live.len());
                b.event(Event::ZygoteReady { zygote });
            }
            Some(Action::EndZygote { zygote }) => {
                assert!(live.remove(&zygote));
                b.event(Event::ZygoteGone { zygote, text: String::new() });
            }
            Some(Action::Fork { lease, .. }) => b.forked(lease),
            Some(Action::Grant { lease, lend, .. }) => {
                served += 1;
                b.give_back(F1, (lease, lend), Returned::Idle);
            }
            Some(Action::Retire { lease }) => b.reaped(lease, 0),
            Some(Action::Refuse { want, text, .. }) => panic!("{want:?}: {text}"),
            Some(_) => {}
            None => b.pass(1),
        }
    }
}

#[test]
fn a_group_whose_limit_is_reached_keeps_no_zygote_from_others() {
    let mut pools = vec![PoolRow { uid: None, ..row("group", Some(0), 1) }];
    pools.extend((0..30).map(|n| row(&format!("sub{n}"), Some(1), 1)));
    pools.push(row("other", Some(0), 1));
    let mut b = Bench::new(4, pools);
    for pool in 2..32 {
        b.want(F1, pool, pool);
    }
    // One of the group gets its worker and keeps it; the others wait for it.
    b.obey();
    b.grant().expect("one of the group");
    b.want(F1, 100, 32);
    for _ in 0..4 {
        while let Some(Action::EndZygote { zygote }) = b.take(|a| matches!(a, Action::EndZygote { .. })) {
            b.event(Event::ZygoteGone { zygote, text: String::new() });
        }
        b.obey();
    }
    assert_eq!(b.grant().map(|g| g.0), Some(100));
}

#[test]
fn until_frontends_change_over_the_old_generation_keeps_what_it_has() {
    let pools = || vec![PoolRow { min_spare: 1, ..row("spare", Some(0), 4) }, row("used", Some(0), 4)];
    let mut b = Bench::new(100, pools());
    b.obey();
    let used = b.lent(F1, 1, 2);
    b.give_back(F1, used, Returned::Idle);
    b.configure(2, 100, pools());
    b.pass(20_000);
    assert!(!b.has(|a| matches!(a, Action::Retire { .. } | Action::EndZygote { .. })), "the seed reads for 20 s");
    let again = b.lent(F1, 2, 2);
    assert_eq!(again.0, used.0, "no cold start meanwhile");
    b.event(Event::SeedReady { generation: 2 });
    let warmed: Vec<u32> = std::iter::from_fn(|| match b.take(|a| matches!(a, Action::StartZygote { .. })) {
        Some(Action::StartZygote { zygote, key }) => {
            b.event(Event::ZygoteReady { zygote });
            Some(key.pool)
        }
        _ => None,
    })
    .collect();
    assert_eq!(warmed, [1, 2], "both are in use");
    b.obey();
    assert!(b.has(|a| *a == WARM));
    b.give_back(F1, again, Returned::Idle);
    b.pass(OLD_IDLE);
    let retired = std::iter::from_fn(|| b.retired()).count();
    assert_eq!(retired, 2, "what is idle in the old one ends, its spare too");
}
