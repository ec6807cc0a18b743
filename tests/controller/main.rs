//! The controller with real processes: this program plays httpd's parent and its frontends, and, started again by the
//! controller, the seed, its zygotes and their workers.

/// A test and its name.
type Test = (&'static str, fn());

macro_rules! tests {
    ($($name:ident),* $(,)?) => { &[$((stringify!($name), $name)),*] };
}

mod admission;
mod cast;
mod ends;
mod hostile;
mod lending;
mod logs;
mod stage;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if args.get(1).is_some_and(|role| role == "fake-seed") {
        cast::become_seed(&args[2..]);
    }
    let filter = args.iter().skip(1).find(|a| !a.starts_with('-')).cloned().unwrap_or_default();
    let all = [admission::TESTS, lending::TESTS, ends::TESTS, logs::TESTS, hostile::TESTS].concat();
    let mut run = 0;
    for (name, test) in all.iter().filter(|(name, _)| name.contains(&filter)) {
        test();
        println!("test {name} ... ok");
        run += 1;
    }
    println!("\ntest result: ok. {run} passed; 0 failed");
}
