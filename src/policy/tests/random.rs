//! Random runs: whatever happens in whatever order, the caps hold, no Want is lost and no lease is lent twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::audit::Killed;
use super::bench::{row, table};
use crate::policy::{Action, Event, FrontendId, Millis, PoolKey, State, ZygoteId};
use crate::wire::control::{Arrival, LeaseId, LendCount, PoolRow, Returned, WantId};

/// xorshift64*: small, seeded, good enough to shuffle events.
pub(super) struct Dice(pub u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(high).expect("31 bits") % sides
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        (!all.is_empty()).then(|| all[self.roll(all.len())])
    }
}

/// What the world outside the policy knows.
#[derive(Default)]
struct World {
    state: State,
    now: Millis,
    frontends: BTreeMap<FrontendId, u64>,
    /// Announced, by pid.
    children: BTreeMap<u32, u64>,
    /// Open Wants.
    open: BTreeSet<(FrontendId, WantId)>,
    /// Ordered and not yet answered.
    zygotes_starting: BTreeMap<ZygoteId, PoolKey>,
    zygotes: BTreeMap<ZygoteId, PoolKey>,
    /// Told to end, or killed, and not reaped.
    zygotes_ending: BTreeSet<ZygoteId>,
    forking: BTreeMap<LeaseId, PoolKey>,
    /// Living worker processes.
    workers: BTreeMap<LeaseId, PoolKey>,
    lent: BTreeMap<LeaseId, (FrontendId, LendCount)>,
    leases_seen: BTreeSet<LeaseId>,
    dying: BTreeSet<LeaseId>,
    seeds: BTreeSet<u64>,
    killed_workers: BTreeSet<LeaseId>,
    killed_zygotes: BTreeSet<ZygoteId>,
    killed_seeds: BTreeSet<u64>,
    /// Workers of a dead controller, by pid.
    foreign: BTreeSet<u32>,
    tables: HashMap<u64, Vec<PoolRow>>,
    numbers: u64,
    grants: usize,
    done: bool,
    /// Prints each event and what follows, to find out how a run came to its end.
    verbose: bool,
}

impl World {
    fn event(&mut self, event: Event) {
        let mut actions = Vec::new();
        let told = format!("{event:?} at {}", self.now);
        self.state.handle(event, self.now, &mut actions);
        let forked: Vec<PoolKey> = actions
            .iter()
            .filter_map(|action| match action {
                Action::Fork { key, .. } => Some(*key),
                _ => None,
            })
            .collect();
        if self.verbose {
            println!("{told}: {actions:?}");
        }
        for action in actions {
            self.act(action);
        }
        for key in forked {
            // A cap that was lowered, and workers of a dead controller, may exceed it; nothing is forked then.
            for name in self.names_above(key) {
                let (used, cap) = self.state.accounts.used_and_cap(&name);
                assert!(used <= cap, "{used} of {cap} in {name:?}");
            }
        }
        self.check();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::StartSeed { generation } => {
                self.killed_seeds.remove(&generation);
                assert!(self.seeds.insert(generation));
            }
            Action::StartZygote { zygote, key } => {
                assert!(self.zygotes_starting.insert(zygote, key).is_none());
            }
            Action::Fork { lease, zygote, key } => {
                assert!(self.zygotes.contains_key(&zygote), "an order to a zygote that is not ready");
                assert!(self.leases_seen.insert(lease), "a lease number was used twice");
                self.forking.insert(lease, key);
            }
            Action::Grant { frontend, want, lease, lend, .. } => {
                assert!(self.open.remove(&(frontend, want)), "a Want that is not open");
                assert!(self.workers.contains_key(&lease), "a worker that does not exist");
                assert!(!self.dying.contains(&lease), "a worker that is ending");
                assert!(self.lent.insert(lease, (frontend, lend)).is_none(), "lent twice");
                let generation = self.frontends.get(&frontend).expect("a known frontend");
                assert_eq!(*generation, self.workers[&lease].generation);
                self.grants += 1;
            }
            Action::Refuse { frontend, want, .. } => {
                // A Want of an unknown pool was never open here.
                self.open.remove(&(frontend, want));
            }
            Action::Retire { lease } | Action::Kill { lease } => {
                if matches!(action, Action::Kill { .. }) {
                    self.killed_workers.insert(lease);
                }
                self.dying.insert(lease);
                self.lent.remove(&lease);
            }
            Action::Interrupt { lease } => {
                assert!(self.workers.contains_key(&lease), "a worker that does not exist");
            }
            Action::Forget { lease } => {
                self.forking.remove(&lease);
            }
            Action::Recall { frontend, lease, lend } => {
                assert_eq!(self.lent.get(&lease), Some(&(frontend, lend)));
            }
            Action::Contended { frontend, .. } | Action::Obituary { frontend, .. } => {
                assert!(self.frontends.contains_key(&frontend), "to a frontend that is gone");
            }
            Action::EndZygote { zygote } | Action::KillZygote { zygote } => {
                if matches!(action, Action::KillZygote { .. }) {
                    self.killed_zygotes.insert(zygote);
                }
                self.zygotes_starting.remove(&zygote);
                self.zygotes.remove(&zygote);
                self.zygotes_ending.insert(zygote);
            }
            Action::Done => {
                assert!(self.workers.is_empty() && self.zygotes.is_empty() && self.seeds.is_empty());
                assert!(self.zygotes_ending.is_empty() && self.zygotes_starting.is_empty());
                self.done = true;
            }
            Action::KillSeed { generation } => {
                self.killed_seeds.insert(generation);
            }
            Action::GenerationGone { generation } => {
                let mut users = self.frontends.values().chain(self.children.values());
                assert!(users.all(|g| *g != generation), "a frontend has lost its configuration");
            }
            Action::EndSeed { .. } | Action::Throttled { .. } | Action::Warm { .. } => {}
        }
    }

    /// The pool's name and those of the pools it is in.
    fn names_above(&self, key: PoolKey) -> Vec<String> {
        let rows = &self.tables[&key.generation];
        let mut names = Vec::new();
        let mut at = Some(key.pool);
        while let Some(index) = at {
            let row = &rows[index as usize];
            names.push(row.name.clone());
            at = row.parent;
        }
        names
    }

    fn check(&self) {
        self.state.audit(&Killed {
            workers: &self.killed_workers,
            zygotes: &self.killed_zygotes,
            seeds: &self.killed_seeds,
        });
        let known: BTreeSet<LeaseId> = self.state.workers.keys().copied().collect();
        let real: BTreeSet<LeaseId> = self.workers.keys().chain(self.forking.keys()).copied().collect();
        assert_eq!(known, real, "workers that the books or the world do not know");
        let queued: BTreeSet<_> = self.state.want_index.keys().copied().collect();
        assert_eq!(queued, self.open, "Wants lost or invented");
    }

    /// The first configuration; or, after the death of a controller, the newest and one before that has frontends.
    fn begin(&mut self, dice: &mut Dice) -> u64 {
        if dice.roll(2) == 0 {
            self.configure(1, false, dice);
            return 1;
        }
        self.configure(1, true, dice);
        self.child_started(1);
        self.configure(2, false, dice);
        2
    }

    fn child_started(&mut self, generation: u64) {
        let pid = u32::try_from(self.number()).expect("small");
        self.children.insert(pid, generation);
        self.event(Event::ChildStarted { pid, generation });
    }

    fn frontend_came(&mut self, generation: u64) {
        assert!(self.state.generation_open(generation));
        let frontend = FrontendId(self.number());
        self.frontends.insert(frontend, generation);
        self.event(Event::FrontendCame { frontend, generation });
    }

    fn configure(&mut self, generation: u64, older: bool, dice: &mut Dice) {
        let mut cap =
            |usual: u32| if dice.roll(4) == 0 { 1 + u32::try_from(dice.roll(4)).expect("small") } else { usual };
        let mut rows = vec![
            PoolRow { uid: None, ..row("", None, cap(5)) },
            PoolRow { uid: None, ..row("group", Some(0), cap(3)) },
            PoolRow { min_spare: 1, idle_timeout_ms: 400, ..row("a", Some(1), cap(2)) },
            PoolRow { queue_limit: 2, idle_timeout_ms: 200, ..row("b", Some(1), cap(3)) },
            PoolRow { queue_timeout_ms: 300, idle_timeout_ms: 0, ..row("c", Some(0), cap(4)) },
        ];
        // Another configuration may have other pools, or the same under other numbers.
        match dice.roll(6) {
            0 => rows.truncate(4),
            1 => rows.swap(2, 3),
            _ => {}
        }
        self.tables.insert(generation, rows.clone());
        self.event(Event::Configure { table: table(generation, rows), older });
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn random_event(&mut self, dice: &mut Dice, newest: &mut u64) {
        let frontends: Vec<_> = self.frontends.keys().copied().collect();
        let workers: Vec<_> = self.workers.keys().copied().collect();
        match dice.roll(100) {
            0..=29 => {
                if let Some(frontend) = dice.pick(&frontends) {
                    let want = WantId(u32::try_from(self.number()).expect("small"));
                    self.open.insert((frontend, want));
                    let pool = match dice.roll(40) {
                        0 => 1,
                        1 => 77,
                        _ => u32::try_from(2 + dice.roll(3)).expect("small"),
                    };
                    // Some have waited, and a clock may say anything.
                    let age = [0, 0, 3_000, 90_000, 60_000_000, u64::MAX][dice.roll(6)];
                    let arrived = Arrival((self.now * 1000).checked_sub(age).unwrap_or(u64::MAX));
                    self.event(Event::Want { frontend, want, pool, arrived });
                }
            }
            30..=32 => {
                let open: Vec<_> = self.open.iter().copied().collect();
                if let Some((frontend, want)) = dice.pick(&open) {
                    self.open.remove(&(frontend, want));
                    self.event(Event::Cancel { frontend, want });
                }
            }
            33..=59 => {
                let lent: Vec<_> = self.lent.iter().map(|(l, (f, n))| (*l, *f, *n)).collect();
                if let Some((lease, frontend, lend)) = dice.pick(&lent) {
                    let how = [
                        Returned::Idle,
                        Returned::Idle,
                        Returned::Idle,
                        Returned::Idle,
                        Returned::Last,
                        Returned::Dead,
                        Returned::Abandoned,
                        Returned::Violation,
                        Returned::TimedOut,
                        Returned::Expired,
                    ][dice.roll(9)];
                    self.lent.remove(&lease);
                    self.event(Event::Return { frontend, lease, lend, how });
                    // A second Return of the same lending is stale.
                    if dice.roll(4) == 0 {
                        self.event(Event::Return { frontend, lease, lend, how: Returned::Violation });
                    }
                }
            }
            60..=71 => {
                let orders: Vec<_> = self.forking.iter().map(|(l, k)| (*l, *k)).collect();
                if let Some((lease, key)) = dice.pick(&orders) {
                    self.forking.remove(&lease);
                    if dice.roll(20) == 0 {
                        self.event(Event::ForkFailed { lease, text: "EAGAIN".into() });
                    } else if dice.roll(20) == 0 {
                        self.event(Event::ForkLacks { lease, text: "EMFILE".into() });
                    } else {
                        self.workers.insert(lease, key);
                        self.event(Event::Forked { lease, pid: 1 });
                    }
                }
            }
            72..=79 => {
                let starting: Vec<_> = self.zygotes_starting.iter().map(|(z, k)| (*z, *k)).collect();
                if let Some((zygote, key)) = dice.pick(&starting) {
                    self.zygotes_starting.remove(&zygote);
                    if dice.roll(10) == 0 {
                        self.event(Event::ZygoteGone { zygote, text: "exit status 1".into() });
                    } else if dice.roll(10) == 0 {
                        self.event(Event::ZygoteLacks { zygote, text: "EMFILE".into() });
                    } else {
                        self.zygotes.insert(zygote, key);
                        self.event(Event::ZygoteReady { zygote });
                    }
                }
            }
            80..=88 => {
                let dying: Vec<_> = self.dying.iter().copied().collect();
                let victim = if dice.roll(8) == 0 { dice.pick(&workers) } else { dice.pick(&dying) };
                if let Some(lease) = victim {
                    self.dying.remove(&lease);
                    self.workers.remove(&lease);
                    self.lent.remove(&lease);
                    self.event(Event::WorkerGone { lease, wait_status: 9 });
                }
            }
            89 => {
                let zygotes: Vec<_> = self.zygotes.keys().copied().collect();
                let ending: Vec<_> = self.zygotes_ending.iter().copied().collect();
                if let Some(zygote) = dice.pick(&ending) {
                    self.zygotes_ending.remove(&zygote);
                    self.event(Event::ZygoteGone { zygote, text: "exit status 0".into() });
                } else if let (Some(zygote), true) = (dice.pick(&zygotes), dice.roll(2) == 0) {
                    let text = String::from("garbage");
                    let violated = dice.roll(2) == 0;
                    self.event(if violated {
                        Event::ZygoteViolated { zygote, text }
                    } else {
                        Event::ZygoteFailed { zygote, text }
                    });
                } else if let Some(zygote) = dice.pick(&zygotes) {
                    self.zygotes.remove(&zygote);
                    self.event(Event::ZygoteGone { zygote, text: "signal 9".into() });
                }
            }
            90 | 91 => {
                let seeds: Vec<_> = self.seeds.iter().copied().collect();
                if let Some(generation) = dice.pick(&seeds) {
                    if dice.roll(5) == 0 {
                        self.seeds.remove(&generation);
                        self.event(Event::SeedGone { generation, text: "signal 9".into() });
                    } else {
                        self.event(Event::SeedReady { generation });
                    }
                }
            }
            92 => {
                if let Some(frontend) = dice.pick(&frontends) {
                    self.frontends.remove(&frontend);
                    self.open.retain(|(f, _)| *f != frontend);
                    self.lent.retain(|_, (f, _)| *f != frontend);
                    self.event(Event::FrontendLeft { frontend });
                }
            }
            93 | 94 => {
                if self.frontends.len() < 4 && self.state.generation_open(*newest) {
                    self.frontend_came(*newest);
                }
            }
            95 if dice.roll(10) == 0 => {
                *newest += 1;
                self.configure(*newest, false, dice);
            }
            95 => {
                let children: Vec<_> = self.children.iter().map(|(pid, generation)| (*pid, *generation)).collect();
                match (dice.roll(3), dice.pick(&children)) {
                    (0, _) | (_, None) => self.child_started(*newest),
                    (1, Some((_, generation))) => self.frontend_came(generation),
                    (_, Some((pid, _))) => {
                        self.children.remove(&pid);
                        self.event(Event::ChildGone { pid });
                    }
                }
            }
            96 => {
                if dice.roll(3) == 0 {
                    let pid = u32::try_from(self.number()).expect("small");
                    self.foreign.insert(pid);
                    self.event(Event::ForeignCame { pid, pool: ["a", "b", "group", "unknown"][dice.roll(4)].into() });
                } else if let Some(pid) = self.foreign.pop_first() {
                    self.event(Event::ForeignGone { pid });
                }
            }
            97 => self.stale_event(dice),
            98 if dice.roll(5) == 0 => {
                self.now += u64::try_from(dice.roll(130_000)).expect("small");
                self.event(Event::Tick);
            }
            _ => {
                self.now += u64::try_from(dice.roll(200)).expect("small");
                self.event(Event::Tick);
            }
        }
    }

    /// Something about what was never there, or is gone.
    fn stale_event(&mut self, dice: &mut Dice) {
        let lease = self.leases_seen.iter().next().copied().unwrap_or(LeaseId(7));
        let gone = !self.workers.contains_key(&lease) && !self.forking.contains_key(&lease);
        let frontend = FrontendId(1_000_000);
        let text = String::from("late");
        match dice.roll(11) {
            0 => self.event(Event::Want { frontend, want: WantId(1), pool: 2, arrived: Arrival(0) }),
            10 => self.event(Event::ChildGone { pid: 1_000_000 }),
            1 => self.event(Event::Cancel { frontend, want: WantId(1) }),
            2 => self.event(Event::Return { frontend, lease, lend: LendCount(1), how: Returned::Idle }),
            3 => self.event(Event::FrontendLeft { frontend }),
            4 => self.event(Event::FrontendCame { frontend, generation: 1_000_000 }),
            5 => self.event(Event::ZygoteReady { zygote: ZygoteId(1_000_000) }),
            6 => self.event(Event::ZygoteViolated { zygote: ZygoteId(1_000_000), text }),
            7 if gone => self.event(Event::ForkFailed { lease, text }),
            8 if gone => self.event(Event::WorkerGone { lease, wait_status: 9 }),
            _ => self.event(Event::SeedGone { generation: 1_000_000, text }),
        }
    }

    /// The outside world obeys: everything that should end ends, everything ordered comes to be.
    fn wind_down(&mut self) {
        self.event(Event::Stop);
        for _ in 0..200 {
            self.now += 500;
            self.event(Event::Tick);
            let all = self.zygotes_starting.keys().chain(self.zygotes.keys()).chain(&self.zygotes_ending);
            for zygote in all.copied().collect::<Vec<_>>() {
                self.zygotes_ending.remove(&zygote);
                self.zygotes_starting.remove(&zygote);
                self.zygotes.remove(&zygote);
                self.event(Event::ZygoteGone { zygote, text: String::new() });
            }
            for lease in self.workers.keys().copied().collect::<Vec<_>>() {
                self.workers.remove(&lease);
                self.lent.remove(&lease);
                self.event(Event::WorkerGone { lease, wait_status: 0 });
            }
            for generation in std::mem::take(&mut self.seeds) {
                self.event(Event::SeedGone { generation, text: String::new() });
            }
        }
        assert!(self.open.is_empty(), "Wants without an answer");
        assert!(self.done, "stopped, and something is left");
    }
}

/// How many runs: `POLICY_RUNS` for a longer search.
pub(super) fn runs(usual: u64) -> u64 {
    std::env::var("POLICY_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

#[test]
fn whatever_happens_the_caps_hold_and_no_want_is_lost() {
    let mut grants = 0;
    for seed in 1..=runs(60) {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
        let mut world = World { now: 1, verbose: std::env::var_os("POLICY_TRACE").is_some(), ..World::default() };
        println!("run {seed}");
        let mut newest = world.begin(&mut dice);
        for _ in 0..2_000 {
            world.random_event(&mut dice, &mut newest);
        }
        world.wind_down();
        grants += world.grants;
    }
    assert!(grants > 3_000, "only {grants} grants: the runs test nothing");
}

#[test]
fn what_waits_is_served_once_all_obey() {
    for seed in 1..=runs(40) {
        let mut dice = Dice(0x2545_f491_4f6c_dd1d_u64.wrapping_mul(seed));
        let mut world = World { now: 1, verbose: std::env::var_os("POLICY_TRACE").is_some(), ..World::default() };
        println!("run {seed}");
        let mut newest = world.begin(&mut dice);
        for _ in 0..500 {
            world.random_event(&mut dice, &mut newest);
        }
        // From now on processes start, end when told, and requests are short. No Want may wait for its timeout.
        for _ in 0..400 {
            world.now += 25;
            world.event(Event::Tick);
            for generation in world.seeds.clone() {
                world.event(Event::SeedReady { generation });
            }
            for (zygote, key) in std::mem::take(&mut world.zygotes_starting) {
                world.zygotes.insert(zygote, key);
                world.event(Event::ZygoteReady { zygote });
            }
            for zygote in std::mem::take(&mut world.zygotes_ending) {
                world.event(Event::ZygoteGone { zygote, text: "exit status 0".into() });
            }
            for (lease, key) in world.forking.clone() {
                world.forking.remove(&lease);
                world.workers.insert(lease, key);
                world.event(Event::Forked { lease, pid: 1 });
            }
            for (lease, (frontend, lend)) in world.lent.clone() {
                world.lent.remove(&lease);
                world.event(Event::Return { frontend, lease, lend, how: Returned::Idle });
            }
            for lease in world.dying.clone() {
                world.dying.remove(&lease);
                world.workers.remove(&lease);
                world.event(Event::WorkerGone { lease, wait_status: 0 });
            }
        }
        assert!(world.open.is_empty(), "run {seed}: {:?} still wait", world.open);
    }
}
