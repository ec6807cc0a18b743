//! Lines to syslogd, as httpd writes them where `ErrorLog` says syslog.
//!
//! Runs in: parent; controller, which makes the lines; its log writer, which sends them.  Trusts: nothing in a line.
//! Owns: the log writer's socket to syslogd.  Never: sends in the controller, as whoever fills /dev/log holds up a sender.

use super::descriptor;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Where syslogd listens.
const PATH: &str = "/dev/log";
/// httpd's own choice, local7.
const DEFAULT_FACILITY: u8 = 23;
/// Longest name in front of a line, in bytes.
const MAX_IDENT: usize = 64;
/// In the order of their numbers. What is between ftp and local0 has no name that is common.
const FACILITIES: [(&[u8], u8); 20] = [
    (b"kern", 0),
    (b"user", 1),
    (b"mail", 2),
    (b"daemon", 3),
    (b"auth", 4),
    (b"syslog", 5),
    (b"lpr", 6),
    (b"news", 7),
    (b"uucp", 8),
    (b"cron", 9),
    (b"authpriv", 10),
    (b"ftp", 11),
    (b"local0", 16),
    (b"local1", 17),
    (b"local2", 18),
    (b"local3", 19),
    (b"local4", 20),
    (b"local5", 21),
    (b"local6", 22),
    (b"local7", 23),
];

/// syslog's own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Error = 3,
    Notice = 5,
}

#[derive(Debug)]
struct Syslog {
    facility: u8,
    ident: String,
}

/// A connection to syslogd.
#[derive(Debug, Default)]
pub struct Socket(Option<UnixDatagram>);

static CURRENT: Mutex<Option<Syslog>> = Mutex::new(None);

/// Facility and name of `ErrorLog syslog[:[facility][:name]]`; `None` for any other error log.
pub fn destination(error_log: &[u8], program: &[u8]) -> Option<(u8, Vec<u8>)> {
    let mut parts = error_log.splitn(3, |b| *b == b':');
    if !parts.next()?.eq_ignore_ascii_case(b"syslog") {
        return None;
    }
    let (name, ident) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let named = FACILITIES.iter().find(|(known, _)| name.eq_ignore_ascii_case(known));
    let facility = named.map_or(DEFAULT_FACILITY, |(_, number)| *number);
    let ident = [ident, program, b"httpd"].into_iter().find(|name| !name.is_empty())?;
    Some((facility, ident.iter().copied().take(MAX_IDENT).collect()))
}

/// [`message`] makes one from now on, unless `ident` is empty.
pub fn use_from_now_on(facility: u8, ident: &[u8]) {
    let ident: String = String::from_utf8_lossy(ident).chars().filter(|c| !c.is_control()).take(MAX_IDENT).collect();
    let new = (!ident.is_empty()).then_some(Syslog { facility: facility % 24, ident });
    *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = new;
}

/// A line as syslogd takes it; `None` if syslog is not in use.
pub fn message(level: Level, line: &[u8]) -> Option<Vec<u8>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|syslog| syslog.message(level, line))
}

impl Syslog {
    fn message(&self, level: Level, line: &[u8]) -> Vec<u8> {
        let priority = u32::from(self.facility) << 3 | level as u32;
        let head = format!("<{priority}>{} {}[{}]: ", time(), self.ident, std::process::id());
        [head.as_bytes(), line].concat()
    }
}

impl Socket {
    /// Sends what [`message`] has made. Waits for a syslogd that does not read; where there is none, the line is lost.
    pub fn send(&mut self, message: &[u8]) {
        self.send_to(Path::new(PATH), message);
    }

    fn send_to(&mut self, path: &Path, message: &[u8]) {
        // A syslogd that was started again has another socket.
        for _ in 0..2 {
            if self.0.is_none() {
                self.0 = connect(path).ok();
            }
            let Some(socket) = &self.0 else { return };
            match socket.send(message) {
                Err(_) => self.0 = None,
                Ok(_) => return,
            }
        }
    }
}

fn connect(path: &Path) -> std::io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    Ok(socket)
}

/// As RFC 3164 has it: `Nov  8 09:05:00`.
fn time() -> String {
    let now = descriptor::local_time();
    let mut fields = now.split(' ').skip(1);
    let (month, day, clock) =
        (fields.next().unwrap_or_default(), fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
    format!("{month} {:>2} {}", day.trim_start_matches('0'), clock.split('.').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_logs_that_are_syslog() {
        let found = |name: &str| {
            destination(name.as_bytes(), b"apache2").map(|(f, i)| (f, String::from_utf8(i).expect("text")))
        };
        let is = |facility, ident: &str| Some((facility, ident.to_owned()));
        assert_eq!(found("syslog"), is(23, "apache2"));
        assert_eq!(found("Syslog:local3"), is(19, "apache2"));
        assert_eq!(found("syslog:daemon:web"), is(3, "web"));
        assert_eq!(found("syslog::web"), is(23, "web"));
        for other in ["syslogs", "/var/log/syslog", "|syslog", ""] {
            assert_eq!(found(other), None, "{other}");
        }
    }

    #[test]
    fn a_syslogd_may_come_hang_and_come_again() {
        let directory = std::env::temp_dir().join(format!("mod_pool-syslog-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let path = directory.join("log");
        let syslog = Syslog { facility: 19, ident: "web".into() };
        let text = syslog.message(Level::Error, b"[pool:error] text");
        let mut socket = Socket::default();
        socket.send_to(&path, b"nobody there");
        let mut buf = [0; 100];
        for round in 0..2 {
            let listener = UnixDatagram::bind(&path).expect("a socket");
            listener.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("a timeout");
            socket.send_to(&path, &text);
            let len = listener.recv(&mut buf).expect("a line");
            let line = String::from_utf8_lossy(&buf[..len]);
            assert!(line.starts_with("<155>"), "{line}");
            assert!(line.ends_with(&format!(" web[{}]: [pool:error] text", std::process::id())), "{line}");
            assert_eq!(line.find(" web["), Some(5 + "Nov  8 09:05:00".len()), "{line}");
            if round == 0 {
                // It reads nothing: more than its queue takes. Who waits then goes on when it ends.
                let (path, text) = (path.clone(), text.clone());
                let mut other = Socket(connect(&path).ok());
                let waiting = std::thread::spawn(move || (0..1_000).for_each(|_| other.send_to(&path, &text)));
                std::thread::sleep(std::time::Duration::from_millis(100));
                assert!(!waiting.is_finished());
                std::fs::remove_file(directory.join("log")).expect("no socket");
                drop(listener);
                waiting.join().expect("its end");
            }
        }
        std::fs::remove_file(&path).expect("no socket");
        std::fs::remove_dir(&directory).expect("no directory");
    }
}
