//! What waits, by number: whoever gets a number from the kernel or from the timer wheel takes the thing out, once.
//!
//! Runs in: frontend, any thread.  Trusts: nothing; a number may be old.  Owns: what waits.
//! Never: does I/O (but for what a caller does in `park`), reads a clock.
//!
//! A thing has its number for as long as it lives, whether it waits or somebody has it. The number of one that has
//! ended is not used again for 2^30 others in its place. Each time that it waits gets a number of its own beside that,
//! so that who was woken late does not take the thing from what it waits for by then.

use super::super::Millis;
use super::wheel::TICK;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// A number: place and round.
pub type Token = u64;

/// No token has one of these bits.
pub const FREE_BITS: Token = 0xc000_0000_0000_0000;
const ROUNDS: u32 = 0x3fff_ffff;
/// Bits of a number that tell the place, and then those that tell which of its waits is meant.
const PLACE: Token = 0x000f_ffff;
const WAIT: Token = 0xfff0_0000;
const CHUNK: usize = 1024;
/// Most places: more than a process may have descriptors.
const CHUNKS: usize = 1024;
const _: () = assert!((CHUNK * CHUNKS) as Token == PLACE + 1);

/// Places for things of type `T`.
#[derive(Debug)]
pub struct Slots<T> {
    chunks: Box<[OnceLock<Chunk<T>>]>,
    free: Mutex<Free>,
}

/// Made when the first of its places is needed, and kept.
type Chunk<T> = Box<[Mutex<Slot<T>>]>;

#[derive(Debug, Default)]
struct Free {
    places: Vec<u32>,
    next: u32,
}

#[derive(Debug)]
struct Slot<T> {
    round: u32,
    /// The number of its last wait, as a token has it.
    wait: Token,
    parked: Option<Parked<T>>,
    /// The wheel has an entry that comes out at this time.
    timer: Option<Millis>,
    /// And another one, which comes out after that.
    later: Option<Millis>,
}

#[derive(Debug)]
struct Parked<T> {
    what: T,
    deadline: Option<Millis>,
}

/// What a number from the wheel stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Look<T> {
    /// It does not wait now, or has ended.
    Nothing,
    /// It was put off: look again then.
    Later(Millis),
    /// Its time is over.
    Due(T),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { chunks: (0..CHUNKS).map(|_| OnceLock::new()).collect(), free: Mutex::default() }
    }
}

impl<T> Slots<T> {
    fn slot(&self, place: u32) -> Option<&Mutex<Slot<T>>> {
        let place = usize::try_from(place).ok()?;
        let empty = || Mutex::new(Slot { round: 0, wait: 0, parked: None, timer: None, later: None });
        let chunk = self.chunks.get(place / CHUNK)?.get_or_init(|| (0..CHUNK).map(|_| empty()).collect());
        chunk.get(place % CHUNK)
    }

    /// The slot of a number that is not old.
    fn current(&self, token: Token) -> Option<MutexGuard<'_, Slot<T>>> {
        let place = u32::try_from(token & PLACE).ok()?;
        let slot = lock(self.slot(place)?);
        (u64::from(slot.round) == token >> 32).then_some(slot)
    }

    /// A number for a new thing; `None` when there are a million.
    pub fn reserve(&self) -> Option<Token> {
        let mut free = lock(&self.free);
        let place = match free.places.pop() {
            Some(place) => place,
            None => {
                let place = free.next;
                self.slot(place)?;
                free.next += 1;
                place
            }
        };
        drop(free);
        let round = lock(self.slot(place)?).round;
        Some(u64::from(round) << 32 | u64::from(place))
    }

    /// The thing with this number has ended.
    pub fn release(&self, token: Token) {
        let Some(mut slot) = self.current(token) else { return };
        slot.round = (slot.round + 1) & ROUNDS;
        (slot.timer, slot.later) = (None, None);
        let parked = slot.parked.take();
        drop(slot);
        drop(parked);
        lock(&self.free).places.push(u32::try_from(token & PLACE).unwrap_or(u32::MAX));
    }

    /// Lets a thing wait, until somebody takes it or its deadline is over. `arm` makes it wake somebody by the number of
    /// this wait, which it gets; nobody takes the thing before `arm` has returned. Answers when the wheel must have an entry for it, if it has none yet.
    pub fn park<E>(
        &self,
        token: Token,
        mut what: T,
        deadline: Option<Millis>,
        arm: impl FnOnce(&mut T, Token) -> Result<(), E>,
    ) -> Result<Option<Millis>, (T, Option<E>)> {
        let Some(mut slot) = self.current(token) else { return Err((what, None)) };
        slot.wait = slot.wait.wrapping_add(PLACE + 1) & WAIT;
        let this_wait = (token & !WAIT) | slot.wait;
        if let Err(e) = arm(&mut what, this_wait) {
            return Err((what, Some(e)));
        }
        slot.parked = Some(Parked { what, deadline });
        let due = deadline.filter(|d| slot.timer.is_none_or(|timer| timer > d + TICK));
        if due.is_some() {
            slot.later = slot.timer.or(slot.later);
            slot.timer = due;
        }
        Ok(due)
    }

    /// Takes what waits, if this is the number of its present wait.
    pub fn take(&self, token: Token) -> Option<T> {
        let mut slot = self.current(token)?;
        (slot.wait == token & WAIT).then(|| slot.parked.take())?.map(|parked| parked.what)
    }

    /// Takes the thing with this number, whatever it waits for, if it is wanted. `wanted` is called under a lock.
    pub fn take_if(&self, token: Token, wanted: impl FnOnce(&T) -> bool) -> Option<T> {
        let mut slot = self.current(token)?;
        slot.parked.as_ref().is_some_and(|parked| wanted(&parked.what)).then(|| slot.parked.take())?.map(|p| p.what)
    }

    /// The wheel's entry for this number has come out.
    pub fn look(&self, token: Token, now: Millis) -> Look<T> {
        let Some(mut slot) = self.current(token) else { return Look::Nothing };
        // Another entry was put in for an earlier deadline: this one is of no use any more.
        if slot.timer.is_some_and(|timer| timer > now) {
            return Look::Nothing;
        }
        slot.timer = slot.later.take().filter(|later| *later > now);
        let Some(deadline) = slot.parked.as_ref().and_then(|p| p.deadline) else { return Look::Nothing };
        if deadline > now {
            // The other entry comes out in time, and is put off in its turn.
            if slot.timer.is_some_and(|timer| timer <= deadline + TICK) {
                return Look::Nothing;
            }
            slot.later = slot.timer.replace(deadline);
            return Look::Later(deadline);
        }
        slot.parked.take().map_or(Look::Nothing, |parked| Look::Due(parked.what))
    }

    /// Takes everything that waits and is wanted.
    pub fn take_all(&self, mut wanted: impl FnMut(&T) -> bool) -> Vec<T> {
        let places = lock(&self.free).next;
        let mut taken = Vec::new();
        for place in 0..places {
            let Some(slot) = self.slot(place) else { break };
            let mut slot = lock(slot);
            if slot.parked.as_ref().is_some_and(|parked| wanted(&parked.what)) {
                taken.extend(slot.parked.take().map(|parked| parked.what));
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::super::wheel::Wheel;
    use super::*;

    fn park(slots: &Slots<u32>, token: Token, what: u32, deadline: Option<Millis>) -> Option<Millis> {
        slots.park(token, what, deadline, |_, _| Ok::<(), ()>(())).expect("parked")
    }

    fn take(slots: &Slots<u32>, token: Token) -> Option<u32> {
        slots.take_if(token, |_| true)
    }

    #[test]
    fn who_was_woken_late_takes_nothing_from_the_next_wait() {
        let slots = Slots::default();
        let token = slots.reserve().expect("room");
        let mut waits = Vec::new();
        for _ in 0..3 {
            let parked = slots.park(token, 7, None, |_, wait| {
                waits.push(wait);
                Ok::<(), ()>(())
            });
            assert_eq!(parked, Ok(None));
            assert!(waits.iter().rev().skip(1).all(|&late| slots.take(late).is_none()));
            assert_eq!(slots.take(waits[waits.len() - 1]), Some(7));
        }
        assert!(waits.iter().all(|wait| wait & FREE_BITS == 0));
        slots.release(token);
        slots.reserve().expect("room");
        assert_eq!(slots.take(waits[2]), None);
    }

    #[test]
    fn what_waits_is_taken_once() {
        let slots = Slots::default();
        let token = slots.reserve().expect("room");
        assert_eq!(token & FREE_BITS, 0);
        assert_eq!(take(&slots, token), None);
        park(&slots, token, 7, None);
        assert_eq!(take(&slots, token), Some(7));
        assert_eq!(take(&slots, token), None);
    }

    #[test]
    fn only_what_is_wanted_is_taken() {
        let slots = Slots::default();
        let token = slots.reserve().expect("room");
        park(&slots, token, 7, None);
        assert_eq!(slots.take_if(token, |n| *n == 8), None);
        assert_eq!(slots.take_if(token, |n| *n == 7), Some(7));
        assert_eq!(slots.take_if(token, |_| true), None);
    }

    #[test]
    fn an_old_number_finds_nothing() {
        let slots = Slots::default();
        let old = slots.reserve().expect("room");
        slots.release(old);
        let new = slots.reserve().expect("room");
        assert_ne!(old, new);
        assert_eq!(old & 0xffff_ffff, new & 0xffff_ffff, "the place is used again");
        park(&slots, new, 1, Some(100));
        assert_eq!(take(&slots, old), None);
        assert_eq!(slots.look(old, 1_000), Look::Nothing);
        slots.release(old);
        assert_eq!(slots.park(old, 2, None, |_, _| Ok::<(), ()>(())), Err((2, None)));
        assert_eq!(take(&slots, new), Some(1));
    }

    #[test]
    fn a_deadline_that_is_put_off_needs_no_new_timer() {
        let slots = Slots::default();
        let token = slots.reserve().expect("room");
        assert_eq!(park(&slots, token, 1, Some(5_000)), Some(5_000));
        assert_eq!(take(&slots, token), Some(1));
        assert_eq!(park(&slots, token, 1, Some(8_000)), None);
        assert_eq!(slots.look(token, 5_000), Look::Later(8_000));
        assert_eq!(slots.look(token, 8_000), Look::Due(1));
        assert_eq!(slots.look(token, 8_000), Look::Nothing);
    }

    #[test]
    fn a_deadline_that_comes_closer_does() {
        let slots = Slots::default();
        let token = slots.reserve().expect("room");
        assert_eq!(park(&slots, token, 1, Some(60_000)), Some(60_000));
        assert_eq!(take(&slots, token), Some(1));
        assert_eq!(park(&slots, token, 1, Some(2_000)), Some(2_000));
        assert_eq!(slots.look(token, 2_000), Look::Due(1));
    }

    #[test]
    fn the_timer_of_a_busy_thing_is_forgotten() {
        let slots = Slots::default();
        let token = slots.reserve().expect("room");
        park(&slots, token, 1, Some(5_000));
        take(&slots, token);
        assert_eq!(slots.look(token, 5_000), Look::Nothing);
        assert_eq!(park(&slots, token, 1, Some(9_000)), Some(9_000));
    }

    /// A connection whose requests wait for a moment each, between waits for the next one.
    #[test]
    fn short_waits_between_long_ones_leave_no_crowd_of_timers() {
        let slots = Slots::default();
        let token = slots.reserve().expect("room");
        let mut wheel = Wheel::new(0);
        let (mut entries, mut most) = (0u32, 0u32);
        for now in 0..20_000 {
            let mut due = Vec::new();
            wheel.take_due(now, &mut due);
            for token in due {
                entries -= 1;
                if let Look::Later(at) = slots.look(token, now) {
                    wheel.insert(at, token);
                    entries += 1;
                }
            }
            for deadline in [now + 100, now + 5_000] {
                take(&slots, token);
                if let Some(at) = park(&slots, token, 7, Some(deadline)) {
                    wheel.insert(at, token);
                    entries += 1;
                }
            }
            most = most.max(entries);
        }
        assert!(most <= 3, "{most} timers of one connection");
        let mut ended = None;
        for now in (20_000..30_000).step_by(10) {
            let mut due = Vec::new();
            wheel.take_due(now, &mut due);
            for token in due {
                match slots.look(token, now) {
                    Look::Later(at) => wheel.insert(at, token),
                    Look::Due(_) => ended = ended.or(Some(now)),
                    Look::Nothing => {}
                }
            }
        }
        assert!(ended.is_some_and(|at| (24_999..24_999 + 2 * TICK).contains(&at)), "{ended:?}");
    }

    #[test]
    fn what_cannot_be_armed_stays_with_its_owner() {
        let slots = Slots::default();
        let token = slots.reserve().expect("room");
        assert_eq!(slots.park(token, 3, Some(1), |_, _| Err("no")), Err((3, Some("no"))));
        assert_eq!(take(&slots, token), None);
    }

    #[test]
    fn all_that_is_wanted_is_taken() {
        let slots = Slots::default();
        for n in 0..3_000 {
            let token = slots.reserve().expect("room");
            park(&slots, token, n, None);
        }
        assert_eq!(slots.take_all(|n| n % 1_000 == 0), [0, 1_000, 2_000]);
        assert_eq!(slots.take_all(|_| true).len(), 2_997);
    }

    #[test]
    fn one_of_many_threads_gets_it() {
        let slots: Slots<u32> = Slots::default();
        let token = slots.reserve().expect("room");
        for round in 0..200 {
            park(&slots, token, round, Some(1));
            let taken: usize = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4)
                    .map(|i| {
                        let slots = &slots;
                        scope.spawn(move || match i {
                            0 => usize::from(slots.look(token, 2) == Look::Due(round)),
                            _ => usize::from(take(slots, token).is_some()),
                        })
                    })
                    .collect();
                threads.into_iter().map(|t| t.join().expect("no panic")).sum()
            });
            assert_eq!(taken, 1);
        }
    }
}
