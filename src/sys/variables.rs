//! Environment variables that belong to whoever started httpd, and those that belong to a user.
//!
//! Runs in: parent, zygote.  Trusts: the passwd database.  Owns: the list of names.
//! Never: looks at a value.

use nix::unistd::{Uid, User};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;

/// What a service manager says to the service that it has started: its sockets, its log, its credentials, its directories.
const OF_SERVICE: [&str; 22] = [
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "CREDENTIALS_DIRECTORY",
    "SYSTEMD_EXEC_PID",
    "MAINPID",
    "MANAGERPID",
    "MANAGERPIDFDID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "MEMORY_PRESSURE_WATCH",
    "MEMORY_PRESSURE_WRITE",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "CACHE_DIRECTORY",
    "LOGS_DIRECTORY",
    "CONFIGURATION_DIRECTORY",
];
/// What a login session has of the administrator who started httpd by hand.
const OF_SESSION: [&str; 18] = [
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "USERNAME",
    "MAIL",
    "PWD",
    "OLDPWD",
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "GPG_AGENT_INFO",
    "GPG_TTY",
    "KRB5CCNAME",
    "HISTFILE",
    "TMUX",
    "STY",
];
/// The same, by the beginning of the name.
const OF_SESSION_PREFIXES: [&str; 4] = ["SSH_", "SUDO_", "XDG_", "PKEXEC_"];

/// It is meant for httpd's own first process: no other one has a use for it.
pub fn is_of_service(name: &[u8]) -> bool {
    OF_SERVICE.iter().any(|n| n.as_bytes() == name)
}

/// It is nothing for a pool's processes: of the service manager, or of a user who is not theirs.
pub fn is_foreign(name: &[u8]) -> bool {
    is_of_service(name)
        || OF_SESSION.iter().any(|n| n.as_bytes() == name)
        || OF_SESSION_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

/// This process has one thread. It gets `HOME`, `USER`, `LOGNAME` and `SHELL` of the user's passwd entry, as login(1) sets
/// them, and none of another's. Without an entry `HOME` is `/`, and the others are not set. An error: a user with a name is
/// not found.
pub fn become_users(uid: u32, name: Option<&str>) -> io::Result<()> {
    let entry = match name {
        Some(name) => Some(User::from_name(name)?.ok_or_else(|| io::Error::other("the user has no passwd entry"))?),
        // Who has no entry has none, whatever the database says in that case.
        None => User::from_uid(Uid::from_raw(uid)).ok().flatten(),
    };
    let foreign: Vec<OsString> =
        std::env::vars_os().map(|(name, _)| name).filter(|name| is_foreign(name.as_bytes())).collect();
    for name in foreign {
        std::env::remove_var(name);
    }
    let Some(entry) = entry else {
        std::env::set_var("HOME", "/");
        return Ok(());
    };
    std::env::set_var("HOME", entry.dir);
    std::env::set_var("USER", &entry.name);
    std::env::set_var("LOGNAME", entry.name);
    std::env::set_var("SHELL", entry.shell);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_httpd_and_its_modules_need_stays() {
        for name in ["PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "APACHE_RUN_DIR", "LD_LIBRARY_PATH", "ORACLE_HOME"] {
            assert!(!is_foreign(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn of_a_service_manager_and_of_a_login_nothing_stays() {
        for name in ["NOTIFY_SOCKET", "INVOCATION_ID", "JOURNAL_STREAM", "LISTEN_FDS", "CREDENTIALS_DIRECTORY"] {
            assert!(is_of_service(name.as_bytes()) && is_foreign(name.as_bytes()), "{name}");
        }
        for name in ["SSH_AUTH_SOCK", "SUDO_USER", "HOME", "XDG_RUNTIME_DIR"] {
            assert!(!is_of_service(name.as_bytes()) && is_foreign(name.as_bytes()), "{name}");
        }
    }
}
