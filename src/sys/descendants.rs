//! Ending all that a process has started, where the process itself cannot be ended.
//!
//! Runs in: parent, when it stops.  Trusts: /proc.  Owns: nothing.
//! Never: signals by a number that may belong to somebody else by then, waits beyond its time.

use super::process::{self, PidFd};
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(5);

/// Kills the children of a process, and theirs, until none of them runs. Whoever of them loses its parent becomes a child
/// of this process, where it is a subreaper. True unless some run at the end of the time.
pub fn end_all(root: u32, until: Instant) -> bool {
    loop {
        if kill_once(root) == 0 {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(STEP);
    }
}

/// How many ran. They are all found before the first is killed: where the root is no subreaper, children of a dead one are
/// not found any more.
fn kill_once(root: u32) -> usize {
    let mut todo = vec![root];
    let mut running = Vec::new();
    while let Some(parent) = todo.pop() {
        for pid in process::children_of(parent) {
            // First the pidfd, then the look: the number cannot change hands between them and the signal.
            let Ok(process) = PidFd::open(pid) else { continue };
            if process::parent_of(pid) == Some(parent) && !process.has_ended() {
                running.push(process);
                todo.push(pid);
            }
        }
    }
    running.iter().for_each(PidFd::kill);
    running.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn children_of_children_end_and_their_root_lives() {
        let script = "sh -c 'sleep 100 & setsid sleep 100 & echo $!; wait' & wait; sleep 100";
        let mut root = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().expect("sh");
        let mut line = String::new();
        BufReader::new(root.stdout.take().expect("stdout")).read_line(&mut line).expect("a pid");
        let sleeper = PidFd::open(line.trim().parse().expect("a pid")).expect("it runs");
        assert!(!sleeper.has_ended());
        // The shell goes on, and starts another one.
        assert!(!end_all(root.id(), Instant::now()));
        let until = Instant::now() + Duration::from_secs(10);
        while !sleeper.has_ended() && Instant::now() < until {
            end_all(root.id(), Instant::now());
        }
        assert!(sleeper.has_ended());
        root.kill().expect("it lives");
        root.wait().expect("it ends");
        assert!(end_all(root.id(), Instant::now()));
    }
}
