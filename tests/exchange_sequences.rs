//! Random sequences of frames, always the same ones: whatever a worker sends, it is one response, and its sums are right.
//! `fuzz/fuzz_targets/exchange.rs` looks for others.

mod sequences;

const SEQUENCES: u32 = 300_000;

/// xorshift64*, with a seed of its own.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

#[test]
fn whatever_a_worker_sends_is_one_response_or_refused() {
    let mut random = Random(0x6d6f_645f_706f_6f6c);
    let mut bytes = std::iter::from_fn(|| Some(random.next().to_be_bytes())).flatten();
    let mut all = sequences::Reached::default();
    for _ in 0..SEQUENCES {
        let one = sequences::check(&mut bytes);
        all.heads += one.heads;
        all.ends += one.ends;
        all.aborts += one.aborts;
        all.violations += one.violations;
        all.beyond += one.beyond;
    }
    // They are worth the time only if they reach every end often.
    assert_eq!(all.ends + all.aborts + all.violations, SEQUENCES, "{all:?}");
    for reached in [all.heads, all.ends, all.aborts, all.violations, all.beyond] {
        assert!(reached > SEQUENCES / 100, "{all:?}");
    }
    println!("{all:?}");
}
