//! The MPM's directives: values, defaults, and how they are made to fit one another.
//!
//! Runs in: the parent and the seed, while httpd reads its configuration.  Trusts: nothing an administrator typed.
//! Owns: nothing.  Never: does I/O.
//!
//! Names, defaults and meaning are those of mpm_event, so that its configuration works unchanged. What does not fit is
//! changed with a warning, as mpm_event does it; what is no number is an error.

use crate::policy::mpm::admission::FACTOR_SCALE;
use crate::policy::mpm::maintenance::Limits;

/// Most that `ServerLimit` may be.
pub const MAX_SERVER_LIMIT: i64 = 20_000;
/// Most that `ThreadLimit` may be.
pub const MAX_THREAD_LIMIT: i64 = 100_000;
/// More than this is taken as this `AsyncRequestWorkerFactor`: such a process is never full.
const MAX_FACTOR: f64 = 10_000.0;

/// What the directives said, or the defaults.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MpmSettings {
    start_servers: i64,
    server_limit: i64,
    thread_limit: i64,
    threads_per_child: i64,
    min_spare_threads: i64,
    max_spare_threads: i64,
    max_request_workers: i64,
    /// Sixteenths.
    factor: u32,
}

impl Default for MpmSettings {
    fn default() -> Self {
        Self {
            start_servers: 3,
            server_limit: 16,
            thread_limit: 64,
            threads_per_child: 25,
            min_spare_threads: 75,
            max_spare_threads: 250,
            max_request_workers: 400,
            factor: 2 * FACTOR_SCALE,
        }
    }
}

/// The settings, made to fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MpmLimits {
    pub start_servers: u32,
    pub thread_limit: u32,
    /// `AsyncRequestWorkerFactor` in sixteenths.
    pub factor: u32,
    pub limits: Limits,
}

/// What cannot change while httpd runs: the scoreboard has its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoreboardSize {
    pub servers: u32,
    pub threads: u32,
}

impl MpmSettings {
    /// Takes a directive of one whole number. The error is the part after `Directive value: `.
    pub fn set(&mut self, directive: &str, value: &str) -> Result<(), String> {
        let place = match directive.to_ascii_lowercase().as_str() {
            "startservers" => &mut self.start_servers,
            "serverlimit" => &mut self.server_limit,
            "threadlimit" => &mut self.thread_limit,
            "threadsperchild" => &mut self.threads_per_child,
            "minsparethreads" => &mut self.min_spare_threads,
            "maxsparethreads" => &mut self.max_spare_threads,
            "maxrequestworkers" | "maxclients" => &mut self.max_request_workers,
            "asyncrequestworkerfactor" => {
                self.factor = factor(value)?;
                return Ok(());
            }
            _ => return Err("not a directive of the MPM".into()),
        };
        *place = value.trim().parse().map_err(|_| "not a whole number; give one".to_owned())?;
        Ok(())
    }

    /// Makes the values fit one another, the limits of the code and the scoreboard there is. What was changed is told
    /// in a sentence each.
    pub fn fit(mut self, scoreboard: Option<ScoreboardSize>) -> (MpmLimits, Vec<String>) {
        let mut told = Vec::new();
        clamp(&mut told, "ServerLimit", &mut self.server_limit, MAX_SERVER_LIMIT);
        clamp(&mut told, "ThreadLimit", &mut self.thread_limit, MAX_THREAD_LIMIT);
        if let Some(size) = scoreboard {
            keep(&mut told, "ServerLimit", &mut self.server_limit, size.servers);
            keep(&mut told, "ThreadLimit", &mut self.thread_limit, size.threads);
        }
        if self.threads_per_child > self.thread_limit {
            told.push(format!(
                "ThreadsPerChild {}: more than ThreadLimit {}; taken as that. Raise ThreadLimit too",
                self.threads_per_child, self.thread_limit
            ));
            self.threads_per_child = self.thread_limit;
        }
        clamp(&mut told, "ThreadsPerChild", &mut self.threads_per_child, self.thread_limit);
        if self.max_request_workers < self.threads_per_child {
            told.push(format!(
                "MaxRequestWorkers {}: fewer than the threads of one process; taken as {}. Lower ThreadsPerChild, or \
                 raise MaxRequestWorkers",
                self.max_request_workers, self.threads_per_child
            ));
            self.max_request_workers = self.threads_per_child;
        }
        let mut children = self.max_request_workers / self.threads_per_child;
        if self.max_request_workers % self.threads_per_child != 0 {
            told.push(format!(
                "MaxRequestWorkers {}: not a multiple of ThreadsPerChild {}; taken as {}, which is {children} processes",
                self.max_request_workers,
                self.threads_per_child,
                children * self.threads_per_child
            ));
        }
        if children > self.server_limit {
            told.push(format!(
                "MaxRequestWorkers {}: needs {children} processes, more than ServerLimit {}; taken as {}. Raise \
                 ServerLimit too",
                self.max_request_workers,
                self.server_limit,
                self.server_limit * self.threads_per_child
            ));
            children = self.server_limit;
        }
        self.max_request_workers = children * self.threads_per_child;
        at_least_one(&mut told, "StartServers", &mut self.start_servers);
        at_least_one(&mut told, "MinSpareThreads", &mut self.min_spare_threads);
        self.start_servers = self.start_servers.min(children);
        let min_spare = self.min_spare_threads.min(i64::from(u32::MAX));
        // Less room would end and start processes in turns. mpm_event says nothing of it either.
        let max_spare = self.max_spare_threads.max(min_spare + self.threads_per_child + 1);
        let fitted = MpmLimits {
            start_servers: small(self.start_servers),
            thread_limit: small(self.thread_limit),
            factor: self.factor,
            limits: Limits {
                threads_per_child: small(self.threads_per_child),
                min_spare_threads: small(min_spare),
                max_spare_threads: small(max_spare),
                max_request_workers: small(self.max_request_workers),
                max_children: small(children),
                server_limit: small(self.server_limit),
            },
        };
        (fitted, told)
    }
}

impl MpmLimits {
    /// Fits the limits to a number of listener buckets: each needs a process, and idle threads of its own.
    pub fn for_buckets(mut self, buckets: u32) -> Self {
        let limits = &mut self.limits;
        limits.max_children = limits.max_children.max(buckets);
        self.start_servers = self.start_servers.max(buckets);
        let threads = limits.threads_per_child;
        let least = threads.saturating_mul(buckets.saturating_sub(1)).saturating_add(buckets);
        limits.min_spare_threads = limits.min_spare_threads.max(least);
        let margin = threads.saturating_add(1).saturating_mul(buckets);
        limits.max_spare_threads = limits.max_spare_threads.max(limits.min_spare_threads.saturating_add(margin));
        self
    }

    /// The scoreboard that these limits need.
    pub fn scoreboard(&self) -> ScoreboardSize {
        ScoreboardSize { servers: self.limits.server_limit, threads: self.thread_limit }
    }
}

fn small(n: i64) -> u32 {
    u32::try_from(n.max(0)).unwrap_or(u32::MAX)
}

/// From 1 to `most`.
fn clamp(told: &mut Vec<String>, name: &str, value: &mut i64, most: i64) {
    at_least_one(told, name, value);
    if *value > most {
        told.push(format!("{name} {value}: more than {most}; taken as that"));
        *value = most;
    }
}

fn at_least_one(told: &mut Vec<String>, name: &str, value: &mut i64) {
    if *value < 1 {
        told.push(format!("{name} {value}: less than 1; taken as 1"));
        *value = 1;
    }
}

fn keep(told: &mut Vec<String>, name: &str, value: &mut i64, first: u32) {
    if *value != i64::from(first) {
        told.push(format!(
            "{name} {value}: cannot change while httpd runs, and stays {first}; stop and start httpd to change it"
        ));
        *value = i64::from(first);
    }
}

/// `AsyncRequestWorkerFactor` in sixteenths; less than 1 counts as 1.
fn factor(value: &str) -> Result<u32, String> {
    let number = value.trim().parse::<f64>().ok().filter(|n| *n > 0.0);
    let number = number.ok_or_else(|| "not a number above 0; give one, such as 2".to_owned())?.min(MAX_FACTOR);
    let mut sixteenths = FACTOR_SCALE;
    while f64::from(sixteenths + 1) <= number * f64::from(FACTOR_SCALE) {
        sixteenths += 1;
    }
    Ok(sixteenths)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(lines: &[(&str, &str)]) -> MpmSettings {
        let mut settings = MpmSettings::default();
        for (name, value) in lines {
            settings.set(name, value).expect("a good value");
        }
        settings
    }

    #[test]
    fn defaults_are_those_of_mpm_event() {
        let (fitted, told) = MpmSettings::default().fit(None);
        assert_eq!(told, Vec::<String>::new());
        assert_eq!((fitted.start_servers, fitted.thread_limit, fitted.factor), (3, 64, 32));
        let expected = Limits {
            threads_per_child: 25,
            min_spare_threads: 75,
            max_spare_threads: 250,
            max_request_workers: 400,
            max_children: 16,
            server_limit: 16,
        };
        assert_eq!(fitted.limits, expected);
    }

    #[test]
    fn debian_s_file_fits_as_it_is() {
        let lines = [
            ("StartServers", "2"),
            ("MinSpareThreads", "25"),
            ("MaxSpareThreads", "75"),
            ("ThreadLimit", "64"),
            ("ThreadsPerChild", "25"),
            ("MaxRequestWorkers", "150"),
        ];
        let (fitted, told) = settings(&lines).fit(None);
        assert_eq!(told, Vec::<String>::new());
        assert_eq!((fitted.start_servers, fitted.limits.max_children), (2, 6));
    }

    #[test]
    fn what_does_not_fit_is_changed_and_told() {
        let one = |name: &str, value: &str| {
            let (fitted, told) = settings(&[(name, value)]).fit(None);
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].starts_with(&format!("{name} {value}: ")), "{told:?}");
            fitted
        };
        let (single, told) = settings(&[("ThreadsPerChild", "0"), ("MaxRequestWorkers", "16")]).fit(None);
        assert_eq!((single.limits.threads_per_child, told.len()), (1, 1));
        assert_eq!(one("StartServers", "-3").start_servers, 1);
        assert_eq!(one("MinSpareThreads", "0").limits.min_spare_threads, 1);
        assert_eq!(one("MaxRequestWorkers", "10").limits.max_request_workers, 25);
        assert_eq!(one("ThreadLimit", "200000").thread_limit, 100_000);
        let odd = one("MaxRequestWorkers", "130");
        assert_eq!((odd.limits.max_request_workers, odd.limits.max_children), (125, 5));
        let many = one("MaxRequestWorkers", "800");
        assert_eq!((many.limits.max_request_workers, many.limits.max_children), (400, 16));
        let (threads, told) = settings(&[("ThreadsPerChild", "100"), ("MaxRequestWorkers", "640")]).fit(None);
        assert_eq!((threads.limits.threads_per_child, told.len()), (64, 1));
        let (servers, told) = settings(&[("ServerLimit", "30000")]).fit(None);
        assert_eq!((servers.limits.server_limit, told.len()), (20_000, 1));
    }

    #[test]
    fn the_scoreboard_keeps_its_size() {
        let size = MpmSettings::default().fit(None).0.scoreboard();
        let (fitted, told) = settings(&[("ServerLimit", "32"), ("ThreadLimit", "128")]).fit(Some(size));
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(fitted.scoreboard(), size);
        assert_eq!(MpmSettings::default().fit(Some(size)).1, Vec::<String>::new());
    }

    #[test]
    fn spare_threads_leave_room_for_a_process() {
        let (fitted, _) = settings(&[("MinSpareThreads", "75"), ("MaxSpareThreads", "75")]).fit(None);
        assert_eq!(fitted.limits.max_spare_threads, 101);
        let four = fitted.for_buckets(4);
        assert_eq!((four.start_servers, four.limits.min_spare_threads, four.limits.max_spare_threads), (4, 79, 183));
        assert_eq!(fitted.for_buckets(1), fitted);
    }

    #[test]
    fn what_is_no_number_is_refused() {
        let mut settings = MpmSettings::default();
        for (name, value) in [
            ("StartServers", "many"),
            ("ThreadLimit", "1.5"),
            ("AsyncRequestWorkerFactor", "0"),
            ("AsyncRequestWorkerFactor", "-1"),
            ("AsyncRequestWorkerFactor", "NaN"),
            ("AsyncRequestWorkerFactor", "two"),
        ] {
            let e = settings.set(name, value).expect_err(value);
            assert!(e.starts_with("not a ") && e.contains("; give one"), "{e}");
        }
        assert_eq!(settings, MpmSettings::default());
    }

    #[test]
    fn the_factor_is_kept_in_sixteenths() {
        for (text, sixteenths) in [("2", 32), ("1.5", 24), ("0.3", 16), ("2.03", 32), ("2.0625", 33), ("1e9", 160_000)]
        {
            assert_eq!(factor(text), Ok(sixteenths), "{text}");
        }
    }
}
