//! How many frontends there are: spare threads, the pace of forking, what is said about limits that are reached.
//!
//! Runs in: httpd's parent, once a second while nothing dies.  Trusts: nothing; frontends can write the scoreboard that
//! the counts are from, and gain a few forks at most.  Owns: nothing.  Never: forks.

/// Most frontends forked in one go, over all listener buckets.
pub const MAX_SPAWN_RATE: u32 = 32;
/// Rounds after a graceful restart in which the pace is not doubled: the machine is busy with the change itself.
pub const HOLD_OFF_AFTER_GRACEFUL: u32 = 10;

/// The MPM's directives, checked. Threads and processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub threads_per_child: u32,
    pub min_spare_threads: u32,
    pub max_spare_threads: u32,
    pub max_request_workers: u32,
    /// `MaxRequestWorkers` in processes.
    pub max_children: u32,
    pub server_limit: u32,
}

/// One place of the scoreboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Child {
    /// There is a process.
    pub alive: bool,
    /// It belongs to the running generation.
    pub current: bool,
    /// It is ending, when its last connection does.
    pub quiescing: bool,
    /// It has as many connections as it may.
    pub closed: bool,
    /// Threads that wait, or have not started yet.
    pub idle: u32,
    /// Threads that run and are not ending.
    pub active: u32,
}

/// Frontends, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Those that are not ending.
    pub active: u32,
    pub total: u32,
}

/// What lasts from one round to the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pace {
    /// How many are forked in the next round that has too few, for each bucket of listeners.
    pub spawn_rate: Vec<u32>,
    pub hold_off: u32,
    pub said_reached: bool,
    pub said_near: bool,
}

impl Pace {
    /// Fits the rates to a number of buckets; new ones are filled as fast as the fastest.
    pub fn set_buckets(&mut self, buckets: usize) {
        let rate = self.spawn_rate.iter().copied().max().unwrap_or(1);
        self.spawn_rate.resize(buckets, rate);
    }
}

/// What the administrator should know. Each is said once, but for the last two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Report {
    MaxRequestWorkersReached,
    NearMaxRequestWorkers,
    /// No place in the scoreboard although `MaxRequestWorkers` is not reached.
    ScoreboardFull,
    /// So many are forked that more spare threads may be needed.
    Busy {
        spawning: u32,
        idle_threads: u32,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Ask one frontend of the bucket to end.
    pub retire_one: bool,
    /// Slots to fork for.
    pub spawn: Vec<usize>,
    pub report: Option<Report>,
    /// A frontend has all its threads running.
    pub healthy: bool,
    /// One more than the last slot that has a process.
    pub used: usize,
}

/// One round for one bucket. `children` has a row for each slot of the scoreboard; slot modulo buckets is the bucket.
pub fn maintain(bucket: usize, children: &[Child], limits: &Limits, totals: Totals, pace: &mut Pace) -> Plan {
    let buckets = pace.spawn_rate.len().max(1);
    let share = |n: u32| n / u32::try_from(buckets).unwrap_or(1);
    let rate = pace.spawn_rate.get(bucket).copied().unwrap_or(1);
    let mut plan = Plan::default();
    let (mut idle, mut active) = (0, 0);
    let mut free = Vec::new();
    for (slot, child) in children.iter().enumerate().skip(bucket).step_by(buckets) {
        if !child.alive {
            if free.len() < usize::try_from(rate).unwrap_or(usize::MAX) {
                free.push(slot);
            }
            continue;
        }
        if child.current && !child.quiescing && !child.closed {
            idle += child.idle;
        }
        active += child.active;
        plan.healthy |= child.active == limits.threads_per_child;
        plan.used = slot + 1;
    }

    let mut next_rate = 1;
    if idle > share(limits.max_spare_threads) {
        // Those that end stay for as long as their clients do. While some are still at it, ask no more of them unless
        // the scoreboard has room for a whole new generation.
        let room = limits.server_limit.saturating_sub(totals.total) > limits.max_children;
        plan.retire_one = totals.active == totals.total || room;
    } else if idle < share(limits.min_spare_threads) {
        if active >= share(limits.max_request_workers) {
            plan.report = pace.limit_reached(idle);
        } else if free.is_empty() {
            plan.report = Some(Report::ScoreboardFull);
        } else {
            let allowed = limits.max_children.saturating_sub(totals.active);
            if allowed == 0 {
                pace.hold_off += 1;
            }
            free.truncate(usize::try_from(allowed).unwrap_or(usize::MAX));
            if rate >= 8 {
                let spawning = u32::try_from(free.len()).unwrap_or(u32::MAX);
                plan.report = Some(Report::Busy { spawning, idle_threads: idle });
            }
            plan.spawn = free;
            let base = if allowed == 0 { 1 } else { rate };
            next_rate = pace.next_rate(base, share(MAX_SPAWN_RATE));
        }
    }
    if let Some(rate) = pace.spawn_rate.get_mut(bucket) {
        *rate = next_rate;
    }
    plan
}

/// What is to be done about the frontends of the configuration before, which serve until those of this one do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeOver {
    /// They are not needed any more; or there is no place for another one until one of them ends.
    Tell,
    /// A frontend of this configuration gets ready.
    Wait,
    /// Nobody is left who could take their place.
    Start,
}

/// Listeners are inherited, but each bucket of them only has its own frontends. One serves when all its `threads` run.
pub fn change_over(children: &[Child], buckets: usize, threads: u32) -> ChangeOver {
    let buckets = buckets.max(1);
    let mut found = ChangeOver::Tell;
    for bucket in 0..buckets {
        let own = || children.iter().skip(bucket).step_by(buckets);
        let mut new = own().filter(|child| child.alive && child.current && !child.quiescing).peekable();
        if new.peek().is_none() {
            if own().all(|child| child.alive) {
                return ChangeOver::Tell;
            }
            found = ChangeOver::Start;
        } else if new.all(|child| child.active < threads) && found == ChangeOver::Tell {
            found = ChangeOver::Wait;
        }
    }
    found
}

/// Slots for `count` new frontends, in the order to fork them: each goes to the bucket of listeners that has fewest of
/// the running generation. Any free slot would not do: after a graceful restart the old ones hold some, and a bucket that
/// gets none of the new ones has nobody who accepts.
pub fn slots_to_start(children: &[Child], buckets: usize, count: u32) -> Vec<usize> {
    let buckets = buckets.max(1);
    let mut serving = vec![0u32; buckets];
    let mut free = vec![Vec::new(); buckets];
    for (slot, child) in children.iter().enumerate().rev() {
        if !child.alive {
            free[slot % buckets].push(slot);
        } else if child.current && !child.quiescing {
            serving[slot % buckets] += 1;
        }
    }
    let mut slots = Vec::new();
    for _ in 0..count {
        let Some(bucket) = (0..buckets).filter(|b| !free[*b].is_empty()).min_by_key(|b| serving[*b]) else { break };
        slots.extend(free[bucket].pop());
        serving[bucket] += 1;
    }
    slots
}

impl Pace {
    fn limit_reached(&mut self, idle: u32) -> Option<Report> {
        let (said, report) = if idle == 0 {
            (&mut self.said_reached, Report::MaxRequestWorkersReached)
        } else {
            (&mut self.said_near, Report::NearMaxRequestWorkers)
        };
        (!std::mem::replace(said, true)).then_some(report)
    }

    /// Twice as many next time, if these are not enough.
    fn next_rate(&mut self, rate: u32, most: u32) -> u32 {
        if self.hold_off > 0 {
            self.hold_off -= 1;
            rate
        } else if rate < most {
            rate * 2
        } else {
            rate
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        threads_per_child: 10,
        min_spare_threads: 20,
        max_spare_threads: 60,
        max_request_workers: 160,
        max_children: 16,
        server_limit: 20,
    };

    const IDLE: Child = Child { alive: true, current: true, quiescing: false, closed: false, idle: 10, active: 10 };
    const BUSY: Child = Child { idle: 0, ..IDLE };

    fn pace() -> Pace {
        Pace { spawn_rate: vec![1], ..Pace::default() }
    }

    fn row(children: &[Child]) -> (Vec<Child>, Totals) {
        let n = u32::try_from(children.iter().filter(|c| c.alive).count()).expect("few");
        let ending = u32::try_from(children.iter().filter(|c| c.quiescing).count()).expect("few");
        let mut row = children.to_vec();
        row.resize(20, Child::default());
        (row, Totals { active: n - ending, total: n })
    }

    fn plan(children: &[Child], pace: &mut Pace) -> Plan {
        let (row, totals) = row(children);
        maintain(0, &row, &LIMITS, totals, pace)
    }

    #[test]
    fn enough_spare_threads_change_nothing() {
        let mut pace = Pace { spawn_rate: vec![8], ..Pace::default() };
        let plan = plan(&[IDLE, IDLE, BUSY], &mut pace);
        assert_eq!(plan, Plan { healthy: true, used: 3, ..Plan::default() });
        assert_eq!(pace.spawn_rate, [1]);
    }

    #[test]
    fn too_few_double_the_pace_up_to_the_most() {
        let mut pace = pace();
        let mut children = vec![BUSY];
        for expected in [1, 2, 4] {
            let plan = plan(&children, &mut pace);
            assert_eq!(plan.spawn.len(), expected);
            assert_eq!(plan.spawn[0], children.len());
            children.extend(vec![BUSY; expected]);
        }
        assert_eq!(pace.spawn_rate, [8]);
        let plan = plan(&children, &mut pace);
        assert_eq!(plan.report, Some(Report::Busy { spawning: 8, idle_threads: 0 }));
        for _ in 0..10 {
            maintain(0, &row(&[BUSY]).0, &LIMITS, Totals { active: 1, total: 1 }, &mut pace);
        }
        assert_eq!(pace.spawn_rate, [MAX_SPAWN_RATE]);
    }

    #[test]
    fn after_a_graceful_restart_the_pace_is_held() {
        let mut pace = Pace { hold_off: 2, ..pace() };
        for (rate, hold_off) in [(1, 1), (1, 0), (2, 0)] {
            assert_eq!(plan(&[BUSY], &mut pace).spawn.len(), 1);
            assert_eq!((pace.spawn_rate[0], pace.hold_off), (rate, hold_off));
        }
    }

    #[test]
    fn max_request_workers_is_never_passed_and_told_once() {
        let mut pace = Pace { spawn_rate: vec![32], ..Pace::default() };
        let spawned = plan(&[BUSY; 15], &mut pace).spawn;
        assert_eq!(spawned, [15]);
        let full = plan(&[BUSY; 16], &mut pace);
        assert_eq!((full.spawn, full.report), (vec![], Some(Report::MaxRequestWorkersReached)));
        assert_eq!(plan(&[BUSY; 16], &mut pace).report, None);
        let mut nearly = [BUSY; 16];
        nearly[0].idle = 1;
        assert_eq!(plan(&nearly, &mut pace).report, Some(Report::NearMaxRequestWorkers));
    }

    #[test]
    fn ending_processes_count_for_the_scoreboard_only() {
        let ending = Child { quiescing: true, active: 0, ..BUSY };
        let mut pace = pace();
        let mut children = vec![ending; 19];
        children.push(BUSY);
        let plan = plan(&children, &mut pace);
        assert_eq!((plan.spawn, plan.report), (vec![], Some(Report::ScoreboardFull)));
    }

    #[test]
    fn at_the_most_processes_that_do_not_run_yet_none_is_forked() {
        let starting = Child { active: 0, closed: true, ..BUSY };
        let mut pace = Pace { spawn_rate: vec![4], ..Pace::default() };
        let plan = plan(&[starting; 16], &mut pace);
        assert_eq!(plan.spawn, Vec::<usize>::new());
        assert_eq!(pace.spawn_rate, [1]);
    }

    #[test]
    fn too_many_end_one_by_one() {
        let mut pace = pace();
        assert!(plan(&[IDLE; 7], &mut pace).retire_one);
        assert!(!plan(&[IDLE; 6], &mut pace).retire_one);
        // Four are ending, and a new generation of 16 would not fit.
        let mut children = vec![IDLE; 7];
        children.extend([Child { quiescing: true, ..BUSY }; 4]);
        assert!(!plan(&children, &mut pace).retire_one);
    }

    #[test]
    fn threads_of_old_full_and_ending_processes_are_not_spare() {
        let children =
            [Child { current: false, ..IDLE }, Child { closed: true, ..IDLE }, Child { quiescing: true, ..IDLE }, IDLE];
        assert_eq!(plan(&children, &mut pace()).spawn, [4]);
    }

    #[test]
    fn new_frontends_go_to_each_bucket_in_turn() {
        const FREE: Child = Child { alive: false, current: false, quiescing: false, closed: false, idle: 0, active: 0 };
        const OLD: Child = Child { current: false, ..IDLE };
        assert_eq!(slots_to_start(&[FREE; 6], 1, 3), [0, 1, 2]);
        assert_eq!(slots_to_start(&[FREE; 6], 2, 3), [0, 1, 2]);
        // The first free slots are all of the first bucket.
        let half = [FREE, OLD, FREE, OLD, FREE, OLD, FREE, FREE];
        assert_eq!(slots_to_start(&half, 2, 2), [0, 7]);
        assert_eq!(slots_to_start(&half, 2, 4), [0, 7, 2, 4]);
        // Who has fewest comes first; those that are ending count for nothing.
        assert_eq!(slots_to_start(&[IDLE, Child { quiescing: true, ..IDLE }, FREE, FREE], 2, 1), [3]);
        assert_eq!(slots_to_start(&[OLD, OLD], 2, 2), Vec::<usize>::new());
        assert_eq!(slots_to_start(&[], 0, 2), Vec::<usize>::new());
    }

    #[test]
    fn old_frontends_serve_until_each_bucket_has_a_new_one_that_does() {
        const FREE: Child = Child { alive: false, current: false, quiescing: false, closed: false, idle: 0, active: 0 };
        const OLD: Child = Child { current: false, ..IDLE };
        const NEW: Child = Child { active: 0, closed: true, ..IDLE };
        const PART: Child = Child { active: 9, ..NEW };
        const LEAVES: Child = Child { quiescing: true, ..IDLE };
        for (children, expected) in [
            ([OLD, OLD, FREE, FREE], [ChangeOver::Start, ChangeOver::Start]),
            ([OLD, OLD, NEW, FREE], [ChangeOver::Wait, ChangeOver::Start]),
            ([OLD, OLD, PART, NEW], [ChangeOver::Wait, ChangeOver::Wait]),
            ([OLD, OLD, PART, BUSY], [ChangeOver::Tell, ChangeOver::Wait]),
            ([OLD, OLD, NEW, BUSY], [ChangeOver::Tell, ChangeOver::Wait]),
            ([OLD, OLD, IDLE, FREE], [ChangeOver::Tell, ChangeOver::Start]),
            ([OLD, OLD, IDLE, NEW], [ChangeOver::Tell, ChangeOver::Wait]),
            ([OLD, OLD, IDLE, BUSY], [ChangeOver::Tell, ChangeOver::Tell]),
            ([OLD, OLD, LEAVES, FREE], [ChangeOver::Start, ChangeOver::Tell]),
            // They hold every slot, of all buckets or of one.
            ([OLD, OLD, OLD, OLD], [ChangeOver::Tell, ChangeOver::Tell]),
            ([FREE, OLD, FREE, OLD], [ChangeOver::Start, ChangeOver::Tell]),
        ] {
            assert_eq!([1, 2].map(|buckets| change_over(&children, buckets, 10)), expected, "{children:?}");
        }
    }

    #[test]
    fn each_bucket_looks_after_its_own_slots() {
        let mut pace = Pace { spawn_rate: vec![1, 2], ..Pace::default() };
        let mut children = vec![Child::default(); 20];
        children[1] = IDLE;
        children[3] = IDLE;
        let totals = Totals { active: 2, total: 2 };
        let first = maintain(0, &children, &LIMITS, totals, &mut pace);
        assert_eq!((first.spawn, first.used), (vec![0], 0));
        let second = maintain(1, &children, &LIMITS, totals, &mut pace);
        assert_eq!((second.spawn, second.used), (vec![], 4));
        pace.set_buckets(3);
        assert_eq!(pace.spawn_rate, [2, 1, 2]);
    }
}
