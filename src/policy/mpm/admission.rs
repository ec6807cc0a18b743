//! Whether a process takes new connections (`AsyncRequestWorkerFactor`).
//!
//! Runs in: frontend.  Trusts: nothing.  Owns: nothing.  Never: does I/O.

/// How full a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// `ThreadsPerChild`.
    pub threads: u32,
    /// Threads with nothing to do.
    pub idle: u32,
    /// Open connections, of any kind.
    pub connections: u32,
    /// Those of them that only wait for the client's end.
    pub lingering: u32,
    /// `AsyncRequestWorkerFactor` in sixteenths, 16 at least.
    pub factor: u32,
    /// The process does not accept now.
    pub closed: bool,
}

/// `AsyncRequestWorkerFactor` is kept in steps of this fraction.
pub const FACTOR_SCALE: u32 = 16;

/// The process has as many connections as it may: one for each thread, and `factor` for each idle one. While it does
/// not accept, one idle thread counts less, so that it does not start and stop with each request; but where all threads are
/// idle there is no request.
pub fn is_full(load: Load) -> bool {
    if load.idle == 0 {
        return true;
    }
    let counted = load.connections.saturating_sub(load.lingering);
    let idle = u64::from(load.idle - u32::from(load.closed && load.idle < load.threads));
    let room = u64::from(load.threads) + idle * u64::from(load.factor) / u64::from(FACTOR_SCALE);
    u64::from(counted) >= room
}

/// The next connection should wake another process: this one has connections for half of its threads. Below that it
/// keeps to itself, with warm caches; the kernel wakes the process that began to listen first.
pub fn lets_others_go_first(load: Load) -> bool {
    load.connections.saturating_sub(load.lingering).saturating_mul(2) >= load.threads
}

/// The numbers of descriptors from this one on are not for connections: who has one needs others to be served, for a file
/// or a worker. Three for each thread (it may have accepted one too many), and some for the rest of the process; where the
/// limit is small, a quarter.
pub fn first_spared(limit: u64, threads: u32) -> u64 {
    limit - (3 * u64::from(threads) + 16).min(limit / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Load =
        Load { threads: 25, idle: 25, connections: 0, lingering: 0, factor: 2 * FACTOR_SCALE, closed: false };

    #[test]
    fn room_is_a_connection_for_each_thread_and_some_for_each_idle_one() {
        assert!(!is_full(QUIET));
        assert!(!is_full(Load { connections: 74, ..QUIET }));
        assert!(is_full(Load { connections: 75, ..QUIET }));
        assert!(!is_full(Load { connections: 44, idle: 10, ..QUIET }));
        assert!(is_full(Load { connections: 45, idle: 10, ..QUIET }));
    }

    #[test]
    fn some_descriptors_are_not_for_connections() {
        assert_eq!(first_spared(1024, 25), 1024 - 91);
        assert_eq!(first_spared(48, 4), 36);
        assert_eq!(first_spared(0, 4), 0);
        assert_eq!(first_spared(u64::MAX, u32::MAX), u64::MAX - 3 * u64::from(u32::MAX) - 16);
    }

    #[test]
    fn without_an_idle_thread_there_is_none() {
        assert!(is_full(Load { idle: 0, ..QUIET }));
    }

    #[test]
    fn lingering_connections_take_no_room() {
        assert!(!is_full(Load { connections: 1_000, lingering: 990, ..QUIET }));
        assert!(!is_full(Load { connections: 5, lingering: 9, ..QUIET }));
    }

    #[test]
    fn a_closed_process_opens_a_little_later() {
        let busy = Load { idle: 20, ..QUIET };
        assert!(!is_full(Load { connections: 63, ..busy }));
        assert!(is_full(Load { connections: 63, closed: true, ..busy }));
        assert!(!is_full(Load { connections: 62, closed: true, ..busy }));
        assert!(!is_full(Load { connections: 74, closed: true, ..QUIET }), "a thread was busy for a moment only");
    }

    #[test]
    fn a_process_with_half_of_its_threads_taken_lets_others_go_first() {
        assert!(!lets_others_go_first(Load { connections: 12, ..QUIET }));
        assert!(lets_others_go_first(Load { connections: 13, ..QUIET }));
        assert!(!lets_others_go_first(Load { connections: 20, lingering: 10, ..QUIET }));
    }

    #[test]
    fn fractions_count() {
        let half = Load { factor: FACTOR_SCALE * 3 / 2, threads: 4, idle: 4, ..QUIET };
        assert!(!is_full(Load { connections: 9, ..half }));
        assert!(is_full(Load { connections: 10, ..half }));
    }
}
