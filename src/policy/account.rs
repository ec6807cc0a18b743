//! The process limits: one account for each pool name, over all generations together, charged hierarchically.
//!
//! Runs in: controller.  Trusts: its caller.  Owns: how many workers each name has, and which of them can be had back.
//! Never: goes below zero.

use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use super::Millis;
use crate::wire::control::LeaseId;

/// Names of the accounts that a worker is charged to: its own pool's first, the root's last.
pub(super) type Chain = Rc<[Rc<str>]>;

#[derive(Debug, Default)]
struct Account {
    cap: u32,
    used: u32,
    /// Workers idle at the controller, the longest-idle first.
    idle: BTreeSet<(Millis, LeaseId)>,
    /// Workers lent and not yet recalled, the longest-lent first.
    lent: BTreeSet<(Millis, LeaseId)>,
}

/// All accounts.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    map: HashMap<Rc<str>, Account>,
}

impl Accounts {
    /// Sets the cap of a name, the newest configuration's word.
    pub(super) fn set_cap(&mut self, name: &Rc<str>, cap: u32) {
        self.map.entry(Rc::clone(name)).or_default().cap = cap;
    }

    /// How many workers the name may have.
    pub(super) fn cap(&self, name: &str) -> u32 {
        self.map.get(name).map_or(0, |account| account.cap)
    }

    /// Drops what is neither in use nor in a table.
    pub(super) fn retain(&mut self, known: impl Fn(&str) -> bool) {
        self.map.retain(|name, account| account.used > 0 || known(name));
    }

    /// The account nearest to the leaf that has no room. Making room in it makes room in every full one above it.
    pub(super) fn full(&self, chain: &Chain) -> Option<Rc<str>> {
        chain.iter().find(|name| self.map.get(*name).is_none_or(|account| account.used >= account.cap)).cloned()
    }

    /// How many more workers the chain allows.
    pub(super) fn headroom(&self, chain: &Chain) -> u32 {
        chain
            .iter()
            .map(|name| self.map.get(name).map_or(0, |account| account.cap.saturating_sub(account.used)))
            .min()
            .unwrap_or(0)
    }

    pub(super) fn charge(&mut self, chain: &Chain) {
        for name in chain.iter() {
            self.map.entry(Rc::clone(name)).or_default().used += 1;
        }
    }

    pub(super) fn release(&mut self, chain: &Chain) {
        self.each(chain, |account| {
            account.used = account.used.saturating_sub(1);
        });
    }

    pub(super) fn add_idle(&mut self, chain: &Chain, since: Millis, lease: LeaseId) {
        self.each(chain, |account| {
            account.idle.insert((since, lease));
        });
    }

    pub(super) fn remove_idle(&mut self, chain: &Chain, since: Millis, lease: LeaseId) {
        self.each(chain, |account| {
            account.idle.remove(&(since, lease));
        });
    }

    pub(super) fn add_lent(&mut self, chain: &Chain, since: Millis, lease: LeaseId) {
        self.each(chain, |account| {
            account.lent.insert((since, lease));
        });
    }

    pub(super) fn remove_lent(&mut self, chain: &Chain, since: Millis, lease: LeaseId) {
        self.each(chain, |account| {
            account.lent.remove(&(since, lease));
        });
    }

    /// The longest-idle worker under a name.
    pub(super) fn longest_idle(&self, name: &str) -> Option<LeaseId> {
        self.map.get(name)?.idle.first().map(|(_, lease)| *lease)
    }

    /// Workers under a name that are lent and not recalled, the longest-lent first.
    pub(super) fn lent(&self, name: &str) -> impl Iterator<Item = LeaseId> + '_ {
        self.map.get(name).into_iter().flat_map(|account| account.lent.iter().map(|(_, lease)| *lease))
    }

    fn each(&mut self, chain: &Chain, change: impl Fn(&mut Account)) {
        for name in chain.iter() {
            if let Some(account) = self.map.get_mut(name) {
                change(account);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn used_and_cap(&self, name: &str) -> (u32, u32) {
        self.map.get(name).map_or((0, 0), |account| (account.used, account.cap))
    }

    #[cfg(test)]
    pub(super) fn idle_of(&self, name: &str) -> BTreeSet<(Millis, LeaseId)> {
        self.map.get(name).map(|account| account.idle.clone()).unwrap_or_default()
    }

    #[cfg(test)]
    pub(super) fn names(&self) -> impl Iterator<Item = &Rc<str>> {
        self.map.keys()
    }
}
