//! Values of the directives: text to number, time, name; what is refused is told in a sentence.
//!
//! Runs in: wherever the configuration is read.  Trusts: nothing.  Owns: the limits of each value.
//! Never: looks anything up.
//!
//! An error is the part after `Directive value: `, and it ends with the remedy.

use super::ModuleRole;
use std::ops::RangeInclusive;
use std::time::Duration;

/// A name goes into process titles, log lines and cgroup names, so it is short and plain.
pub const MAX_NAME: usize = 64;
/// pid_max's default on a small machine is 32,768; more in one pool is a slip of the finger.
pub const PROCESSES: RangeInclusive<u32> = 1..=32_768;
pub const SPARE: RangeInclusive<u32> = 0..=32_768;
pub const REQUESTS: RangeInclusive<u32> = 0..=1_000_000_000;
pub const QUEUE: RangeInclusive<u32> = 0..=100_000;
/// More than a process may have descriptors.
pub const PARKED: RangeInclusive<u32> = 0..=1_000_000;
/// The most that `ThreadsPerChild` can be.
pub const THREADS: RangeInclusive<u32> = 1..=20_000;
/// Below a tenth of a second a pool would do little but fork.
pub const IDLE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(7 * 24 * 3600);
pub const WAIT: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);

/// The name of a pool that is being defined.
pub fn pool_name(text: &str) -> Result<(), String> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    if ["none", "root"].iter().any(|r| text.eq_ignore_ascii_case(r)) {
        return Err("this name has a meaning of its own; choose another one".into());
    }
    if text.is_empty() || text.len() > MAX_NAME || !text.bytes().all(plain) {
        return Err(format!(
            "a pool's name has 1 to {MAX_NAME} letters (A-Z, a-z), digits, '.', '_' or '-'; choose such a name"
        ));
    }
    if text.starts_with(['-', '.']) {
        return Err("a pool's name starts with a letter, a digit or '_'; choose such a name".into());
    }
    Ok(())
}

/// A whole number within `range`.
pub fn number(text: &str, range: &RangeInclusive<u32>) -> Result<u32, String> {
    digits(text)
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| range.contains(n))
        .ok_or_else(|| format!("not a whole number from {} to {}; give one in this range", range.start(), range.end()))
}

/// A time with httpd's suffixes (`ap_timeout_parameter_parse`): `ms`, `s`, `min`, `h`; seconds without one.
pub fn time(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(unit_at);
    let unit_ms = match unit {
        "" | "s" => 1000,
        "ms" => 1,
        "min" | "mi" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    digits(count)
        .filter(|_| unit_ms > 0)
        .and_then(|n| n.checked_mul(unit_ms))
        .map(Duration::from_millis)
        .filter(|t| range.contains(t))
        .ok_or_else(|| {
            format!(
                "not a time from {} to {}; give a number with the unit ms, s, min or h (seconds without a unit)",
                spoken(*range.start()),
                spoken(*range.end())
            )
        })
}

/// `#1000` as 1000; `None` if it is a name. -1 means "leave it as it is" to setuid(2), so it is no id.
pub fn numeric_id(text: &str) -> Option<Result<u32, String>> {
    let id = text.strip_prefix('#')?;
    Some(
        digits(id)
            .and_then(|n| u32::try_from(n).ok())
            .filter(|&n| n != u32::MAX)
            .ok_or_else(|| format!("not a numeric id; give # and a number from 1 to {}", u32::MAX - 1)),
    )
}

/// An octal mask of permission bits.
pub fn umask(text: &str) -> Result<u32, String> {
    let octal = (1..=4).contains(&text.len()) && text.bytes().all(|c| matches!(c, b'0'..=b'7'));
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|&mask| octal && mask <= 0o777)
        .ok_or_else(|| "not an octal number from 0 to 0777; give one such as 027".into())
}

/// The name of an environment variable.
pub fn env_name(text: &str) -> Result<(), String> {
    let first = text.bytes().next();
    let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    if first.is_none_or(|c| c.is_ascii_digit()) || !text.bytes().all(plain) {
        return Err("not the name of an environment variable; use letters, digits and '_', no digit first".into());
    }
    Ok(())
}

pub fn module_role(text: &str) -> Result<ModuleRole, String> {
    [("frontend", ModuleRole::Frontend), ("worker", ModuleRole::Worker), ("both", ModuleRole::Both)]
        .into_iter()
        .find(|(word, _)| text.eq_ignore_ascii_case(word))
        .map(|(_, role)| role)
        .ok_or_else(|| "not a role; give frontend, worker or both".into())
}

/// Digits only: no sign, no blank, nothing behind.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

fn spoken(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds == 0 {
        format!("{}ms", time.as_millis())
    } else if seconds.is_multiple_of(3600) {
        format!("{}h", seconds / 3600)
    } else {
        format!("{seconds}s")
    }
}
