//! How much a pool's requests may write into the error log in a second, in all frontends together.
//!
//! One client who causes many lines does not keep those about others from being written: each group of clients has a reserve
//! of its own.
//!
//! Runs in: frontend, request threads.  Trusts: nothing; the numbers may have any value.  Owns: some numbers of each pool.
//! Never: reads a clock, waits, drops a line without counting it.

use super::Millis;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers of a pool in memory that all frontends have in common.
pub const NUMBERS: usize = 3 + GROUPS;
/// Bytes of one pool that are written in a second: as many as of its processes' standard error.
pub const ALLOWANCE: u32 = 64 * 1024;
/// Groups of clients, by address.
const GROUPS: usize = 16;
/// Bytes that each of them has beside the allowance, when that is used up.
pub const RESERVE: u32 = 2 * 1024;
/// Bytes that a line costs beside its own: what httpd writes in front of it.
pub const LINE_COST: u32 = 128;

/// A second, and what was spent in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spent {
    second: u32,
    bytes: u32,
}

fn second(now: Millis) -> u32 {
    // It goes round after 136 years.
    u32::try_from((now / 1_000) & u64::from(u32::MAX)).unwrap_or_default()
}

impl Spent {
    fn of(packed: u64) -> Self {
        let half = |bits: u64| u32::try_from(bits & u64::from(u32::MAX)).unwrap_or_default();
        Self { second: half(packed >> 32), bytes: half(packed) }
    }

    fn packed(self) -> u64 {
        u64::from(self.second) << 32 | u64::from(self.bytes)
    }

    /// With a line of `len` bytes more; `None` where that is more than `limit`.
    fn and_line(self, now: Millis, len: usize, limit: u32) -> Option<Self> {
        let now = second(now);
        let before = match now.wrapping_sub(self.second) {
            // Another process may have looked at the clock later and counted sooner.
            0 | u32::MAX => self,
            _ => Self { second: now, bytes: 0 },
        };
        let cost = u32::try_from(len).ok()?.checked_add(LINE_COST)?;
        let bytes = before.bytes.checked_add(cost).filter(|bytes| *bytes <= limit)?;
        Some(Self { bytes, ..before })
    }
}

/// The group of a client with this address, written as httpd writes it. One with IPv6 has a whole network (/64) to choose
/// from, which counts as one.
fn group_of(client: &[u8]) -> usize {
    let mut hasher = DefaultHasher::new();
    match std::str::from_utf8(client).ok().and_then(|text| text.parse().ok()) {
        Some(IpAddr::V6(address)) if address.to_ipv4_mapped().is_none() => address.octets()[..8].hash(&mut hasher),
        Some(address) => address.to_canonical().hash(&mut hasher),
        None => client.hash(&mut hasher),
    }
    usize::try_from(hasher.finish() % GROUPS as u64).unwrap_or_default()
}

#[derive(Debug)]
enum Numbers {
    Here([AtomicU64; NUMBERS]),
    Everywhere(&'static [AtomicU64; NUMBERS]),
}

/// What happens to a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Written,
    /// It is counted. With `tell` the caller calls [`PoolLines::dropped`] a second later.
    Dropped {
        tell: bool,
    },
}

/// Lines of one pool.
#[derive(Debug)]
pub struct PoolLines(Numbers);

impl PoolLines {
    /// Counts in these numbers, or, where they are not [`NUMBERS`], for this process alone.
    pub fn new(shared: &'static [AtomicU64]) -> Self {
        Self(shared.try_into().map_or_else(|_| Numbers::Here(Default::default()), Numbers::Everywhere))
    }

    fn numbers(&self) -> &[AtomicU64; NUMBERS] {
        match &self.0 {
            Numbers::Here(numbers) => numbers,
            Numbers::Everywhere(numbers) => numbers,
        }
    }

    /// A line of `len` bytes, about a client with this address.
    pub fn line(&self, now: Millis, len: usize, client: Option<&[u8]>) -> Fate {
        let [spent, dropped, teller, reserves @ ..] = self.numbers();
        let takes = |from: &AtomicU64, limit| {
            let more = |packed| Spent::of(packed).and_line(now, len, limit).map(Spent::packed);
            from.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
        };
        let reserve = || client.and_then(|client| reserves.get(group_of(client)));
        if takes(spent, ALLOWANCE) || reserve().is_some_and(|reserve| takes(reserve, RESERVE)) {
            return Fate::Written;
        }
        dropped.fetch_add(1, Ordering::Relaxed);
        // One tells for all that is dropped in a second. If he dies, the next one has his lines, too.
        let this = u64::from(second(now)) + 1;
        let tell = teller.swap(this, Ordering::Relaxed) != this;
        Fate::Dropped { tell }
    }

    /// How many lines were dropped since the last call, in whichever frontend.
    pub fn dropped(&self) -> u64 {
        let [_, dropped, ..] = self.numbers();
        dropped.swap(0, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> PoolLines {
        PoolLines::new(&[])
    }

    fn shared() -> &'static [AtomicU64] {
        Box::leak(Box::new([const { AtomicU64::new(0) }; NUMBERS]))
    }

    /// How many lines of this length are written.
    fn written(lines: &PoolLines, now: Millis, len: usize) -> usize {
        (0..2_000).filter(|_| lines.line(now, len, None) == Fate::Written).count()
    }

    #[test]
    fn so_many_lines_are_written_in_a_second() {
        assert_eq!(written(&here(), 0, 0), 512);
        assert_eq!(written(&here(), 0, 1), 508);
        assert_eq!(written(&here(), 0, 8_192), 7);
        assert_eq!(written(&here(), 0, ALLOWANCE as usize), 0);
        assert_eq!(written(&here(), 0, usize::MAX), 0);
    }

    #[test]
    fn what_is_dropped_is_counted_and_told_once_a_second() {
        let lines = here();
        let fates: Vec<_> = (0..1_000).map(|_| lines.line(5_000, 0, None)).collect();
        assert!(fates[..512].iter().all(|fate| *fate == Fate::Written));
        assert_eq!(fates[512], Fate::Dropped { tell: true });
        assert!(fates[513..].iter().all(|fate| *fate == Fate::Dropped { tell: false }));
        assert_eq!((lines.dropped(), lines.dropped()), (488, 0));
    }

    #[test]
    fn the_next_second_has_an_allowance_of_its_own() {
        let lines = here();
        for now in [0, 1_000, 2_999, 3_000, 100_000] {
            assert_eq!(written(&lines, now, 0), 512, "{now}");
            assert_eq!(lines.line(now, 0, None), Fate::Dropped { tell: false }, "{now}: somebody tells already");
        }
        assert_eq!(lines.line(100_999, 0, None), Fate::Dropped { tell: false });
    }

    #[test]
    fn who_is_late_with_the_clock_gets_no_new_allowance() {
        let lines = here();
        assert_eq!(written(&lines, 2_000, 0), 512);
        assert_eq!(written(&lines, 1_999, 0), 0);
    }

    #[test]
    fn a_client_who_causes_many_lines_leaves_others_theirs() {
        let lines = here();
        let written =
            |now, client: &[u8]| (0..2_000).filter(|_| lines.line(now, 0, Some(client)) == Fate::Written).count();
        let others: Vec<String> = (1..200).map(|n| format!("192.0.2.{n}")).collect();
        let apart = |other: &&String| group_of(other.as_bytes()) != group_of(b"198.51.100.7");
        let other = others.iter().find(apart).expect("one in another group").as_bytes();
        for now in [0, 1_000] {
            assert_eq!(written(now, b"198.51.100.7"), 512 + 16);
            assert_eq!(written(now, other), 16);
            assert_eq!(lines.line(now, 0, None), Fate::Dropped { tell: false });
        }
        let groups: std::collections::HashSet<_> = others.iter().map(|other| group_of(other.as_bytes())).collect();
        assert_eq!(groups.len(), GROUPS);
    }

    #[test]
    fn a_network_is_one_client() {
        assert_eq!(group_of(b"2001:db8::1"), group_of(b"2001:db8:0:0:ffff::"));
        assert_eq!(group_of(b"::ffff:192.0.2.1"), group_of(b"192.0.2.1"));
        let networks = (0..100).map(|n| group_of(format!("2001:db8:0:{n}::1").as_bytes()));
        assert_eq!(networks.collect::<std::collections::HashSet<_>>().len(), GROUPS);
        assert!(group_of(b"") < GROUPS && group_of(b"\xff") < GROUPS);
    }

    #[test]
    fn all_frontends_count_together() {
        let numbers = shared();
        let (one, other) = (PoolLines::new(numbers), PoolLines::new(numbers));
        assert_eq!(written(&one, 0, 0), 512);
        assert_eq!(other.line(0, 0, None), Fate::Dropped { tell: false });
        assert_eq!(other.dropped(), 2_000 - 512 + 1);
    }

    #[test]
    fn any_numbers_are_only_numbers() {
        let numbers = shared();
        for number in numbers {
            number.store(u64::MAX, Ordering::Relaxed);
        }
        let lines = PoolLines::new(numbers);
        assert!(matches!(lines.line(0, usize::MAX, None), Fate::Dropped { .. }));
        assert_eq!(written(&lines, 1_000, 0), 512);
    }
}
