//! A stand-in for the controller's loop: feeds events, keeps the actions, and answers them on request.

use crate::policy::{Action, Event, FrontendId, Millis, State, ZygoteId, RETURN_PATIENCE};
use crate::wire::control::{Arrival, LeaseId, LendCount, PoolRow, PoolTable, Queued, Returned, WantId};

pub(super) const F1: FrontendId = FrontendId(1);
pub(super) const F2: FrontendId = FrontendId(2);

/// A pool under the root with limits that never bite.
pub(super) fn row(name: &str, parent: Option<u32>, cap: u32) -> PoolRow {
    PoolRow {
        name: name.into(),
        parent,
        uid: Some(1000),
        max_processes: cap,
        min_spare: 0,
        idle_timeout_ms: 30_000,
        queue_timeout_ms: 5_000,
        queue_limit: 100,
        kill_grace_ms: 5_000,
    }
}

pub(super) fn table(generation: u64, pools: Vec<PoolRow>) -> PoolTable {
    PoolTable { generation, frontend_uid: 33, seed_argv: vec![b"httpd".to_vec()], pools }
}

#[derive(Debug)]
pub(super) struct Bench {
    pub state: State,
    pub now: Millis,
    /// Actions not yet looked at.
    pub actions: Vec<Action>,
}

impl Bench {
    /// A ready generation 1 with these pools under a root of `root_cap`, and two frontends.
    pub(super) fn new(root_cap: u32, pools: Vec<PoolRow>) -> Self {
        let mut b = Self { state: State::new(), now: 1_000_000, actions: Vec::new() };
        b.configure(1, root_cap, pools);
        b.event(Event::SeedReady { generation: 1 });
        assert!(b.take(|a| *a == Action::Warm { generation: 1 }).is_some());
        b.event(Event::FrontendCame { frontend: F1, generation: 1 });
        b.event(Event::FrontendCame { frontend: F2, generation: 1 });
        b
    }

    pub(super) fn configure(&mut self, generation: u64, root_cap: u32, pools: Vec<PoolRow>) {
        let mut rows = vec![PoolRow { uid: None, ..row("", None, root_cap) }];
        rows.extend(pools);
        self.event(Event::Configure { table: table(generation, rows), older: false });
        assert!(self.take(|a| *a == Action::StartSeed { generation }).is_some());
    }

    pub(super) fn event(&mut self, event: Event) {
        self.state.handle(event, self.now, &mut self.actions);
    }

    /// Time passes deadline by deadline, as in the loop.
    pub(super) fn pass(&mut self, by: Millis) {
        let until = self.now + by;
        while let Some(next) = self.state.next_deadline().filter(|at| *at <= until) {
            self.now = next.max(self.now);
            self.event(Event::Tick);
        }
        self.now = until;
        self.event(Event::Tick);
    }

    pub(super) fn take(&mut self, which: impl Fn(&Action) -> bool) -> Option<Action> {
        let at = self.actions.iter().position(which)?;
        Some(self.actions.remove(at))
    }

    pub(super) fn want(&mut self, frontend: FrontendId, want: u32, pool: u32) {
        self.want_of(frontend, want, pool, self.now);
    }

    /// Of a request that came at that time.
    pub(super) fn want_of(&mut self, frontend: FrontendId, want: u32, pool: u32, came: Millis) {
        self.event(Event::Want { frontend, want: WantId(want), pool, arrived: Arrival(came * 1000) });
    }

    /// Answers orders for zygotes and workers until none is left.
    pub(super) fn obey(&mut self) {
        loop {
            if let Some(Action::StartZygote { zygote, .. }) = self.take(|a| matches!(a, Action::StartZygote { .. })) {
                self.event(Event::ZygoteReady { zygote });
            } else if let Some(Action::Fork { lease, .. }) = self.take(|a| matches!(a, Action::Fork { .. })) {
                self.forked(lease);
            } else {
                return;
            }
        }
    }

    pub(super) fn forked(&mut self, lease: LeaseId) {
        let pid = u32::try_from(lease.0).expect("small") + 10_000;
        self.event(Event::Forked { lease, pid });
    }

    /// The next grant: want, lease, lend, cold, and who waits then.
    pub(super) fn grant(&mut self) -> Option<(u32, LeaseId, LendCount, bool, Queued)> {
        match self.take(|a| matches!(a, Action::Grant { .. }))? {
            Action::Grant { want, lease, lend, cold, queued, .. } => Some((want.0, lease, lend, cold, queued)),
            _ => None,
        }
    }

    /// A lent worker of a pool, from scratch.
    pub(super) fn lent(&mut self, frontend: FrontendId, want: u32, pool: u32) -> (LeaseId, LendCount) {
        self.want(frontend, want, pool);
        self.obey();
        if !self.actions.iter().any(|a| matches!(a, Action::Grant { .. })) {
            // Another frontend might return one.
            self.pass(RETURN_PATIENCE);
            self.obey();
        }
        let (granted, lease, lend, _, _) = self.grant().expect("a grant");
        assert_eq!(granted, want);
        (lease, lend)
    }

    pub(super) fn give_back(&mut self, frontend: FrontendId, (lease, lend): (LeaseId, LendCount), how: Returned) {
        self.event(Event::Return { frontend, lease, lend, how });
    }

    pub(super) fn reaped(&mut self, lease: LeaseId, wait_status: i32) {
        self.event(Event::WorkerGone { lease, wait_status });
    }

    pub(super) fn has(&mut self, which: impl Fn(&Action) -> bool) -> bool {
        self.take(which).is_some()
    }

    pub(super) fn refused(&mut self) -> Option<(u32, crate::wire::control::Refusal, u32, String)> {
        match self.take(|a| matches!(a, Action::Refuse { .. }))? {
            Action::Refuse { want, reason, retry_after_s, text, .. } => Some((want.0, reason, retry_after_s, text)),
            _ => None,
        }
    }

    pub(super) fn zygote_started(&mut self) -> Option<ZygoteId> {
        match self.take(|a| matches!(a, Action::StartZygote { .. }))? {
            Action::StartZygote { zygote, .. } => Some(zygote),
            _ => None,
        }
    }

    pub(super) fn fork_ordered(&mut self) -> Option<LeaseId> {
        match self.take(|a| matches!(a, Action::Fork { .. }))? {
            Action::Fork { lease, .. } => Some(lease),
            _ => None,
        }
    }

    pub(super) fn retired(&mut self) -> Option<LeaseId> {
        match self.take(|a| matches!(a, Action::Retire { .. }))? {
            Action::Retire { lease } => Some(lease),
            _ => None,
        }
    }

    pub(super) fn nothing(&mut self) {
        assert_eq!(self.actions, vec![]);
    }
}
