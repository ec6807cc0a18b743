//! A pool's queue: Wants of all frontends in the order in which their requests came.
//!
//! Runs in: controller.  Trusts: its caller.  Owns: the order.  Never: looks at more than the oldest of each frontend.

use std::collections::{BTreeMap, BTreeSet};

use super::FrontendId;
use crate::wire::control::{Arrival, Queued};

/// A place in the queue: by the request's arrival, and among those of one moment by a number of the controller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub arrived: Arrival,
    pub number: u64,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    all: BTreeSet<Place>,
    of: BTreeMap<FrontendId, BTreeSet<Place>>,
    /// The oldest of each frontend.
    heads: BTreeMap<Place, FrontendId>,
}

impl Queue {
    pub(super) fn insert(&mut self, frontend: FrontendId, place: Place) {
        self.all.insert(place);
        let own = self.of.entry(frontend).or_default();
        let head = own.first().copied();
        own.insert(place);
        if head.is_none_or(|head| place < head) {
            if let Some(head) = head {
                self.heads.remove(&head);
            }
            self.heads.insert(place, frontend);
        }
    }

    pub(super) fn remove(&mut self, frontend: FrontendId, place: Place) {
        self.all.remove(&place);
        let Some(own) = self.of.get_mut(&frontend) else { return };
        own.remove(&place);
        if self.heads.remove(&place).is_some() {
            match own.first() {
                Some(head) => {
                    self.heads.insert(*head, frontend);
                }
                None => {
                    self.of.remove(&frontend);
                }
            }
        }
    }

    pub(super) fn first(&self) -> Option<Place> {
        self.all.first().copied()
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = Place> + '_ {
        self.all.iter().copied()
    }

    /// What this frontend is to know.
    pub(super) fn seen_by(&self, frontend: FrontendId) -> Queued {
        match self.heads.iter().find(|(_, other)| **other != frontend) {
            Some((place, _)) => Queued::Elsewhere(place.arrived),
            None if self.heads.is_empty() => Queued::Nobody,
            None => Queued::Here,
        }
    }

    #[cfg(test)]
    pub(super) fn contains(&self, place: Place) -> bool {
        self.all.contains(&place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_frontend_sees_the_oldest_of_the_others() {
        let at = |time, number| Place { arrived: Arrival(time), number };
        let (a, b, c) = (FrontendId(1), FrontendId(2), FrontendId(3));
        let mut queue = Queue::default();
        assert_eq!(queue.seen_by(a), Queued::Nobody);
        queue.insert(a, at(20, 1));
        assert_eq!((queue.seen_by(a), queue.seen_by(b)), (Queued::Here, Queued::Elsewhere(Arrival(20))));
        queue.insert(b, at(30, 2));
        queue.insert(a, at(10, 3));
        assert_eq!(queue.seen_by(a), Queued::Elsewhere(Arrival(30)));
        assert_eq!((queue.seen_by(b), queue.seen_by(c)), (Queued::Elsewhere(Arrival(10)), queue.seen_by(b)));
        assert_eq!(queue.iter().map(|place| place.number).collect::<Vec<_>>(), [3, 1, 2]);
        queue.remove(a, at(10, 3));
        assert_eq!(queue.seen_by(b), Queued::Elsewhere(Arrival(20)));
        queue.remove(a, at(20, 1));
        queue.remove(a, at(20, 1));
        assert_eq!((queue.seen_by(a), queue.seen_by(b)), (Queued::Elsewhere(Arrival(30)), Queued::Here));
        queue.remove(b, at(30, 2));
        assert!(queue.is_empty() && queue.of.is_empty() && queue.heads.is_empty());
    }
}
