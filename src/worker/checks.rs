//! Access checks of modules that start on demand.
//!
//! Runs in: worker.  Trusts: the modules.  Owns: nothing.  Never: lets a request pass whose check cannot be made.

use super::log::tagged;
use super::state::with;
use crate::httpd::checkers::{self, Checker};
use crate::httpd::{config, log, RequestRec};
use std::os::fd::AsFd;

/// The access_checker hook, before all others: starts the modules that the request's directories ask for. False if one
/// cannot start.
pub fn start_checkers(r: RequestRec<'_>) -> bool {
    let checks = config::checks(r);
    let fcgid = "FcgidAccessChecker, FcgidAuthenticator or FcgidAuthorizer";
    (!checks.fcgid || start(r, Checker::Fcgid, "mod_fcgid", fcgid))
        && (!checks.wsgi || start(r, Checker::Wsgi, "mod_wsgi", "WSGIAccessScript"))
}

/// For mod_wsgi's providers. False if it cannot start.
pub fn start_wsgi(r: RequestRec<'_>) -> bool {
    start(r, Checker::Wsgi, "mod_wsgi", "WSGIAuthUserScript or WSGIAuthGroupScript")
}

fn start(r: RequestRec<'_>, checker: Checker, module: &str, directives: &str) -> bool {
    let started = with(|worker| checkers::start(checker, worker.lease.as_fd()));
    match started.unwrap_or_else(|| Err("this process is no worker".to_owned())) {
        Ok(()) => true,
        Err(why) => {
            let text = tagged(
                "POOL133",
                &format!(
                    "{directives}: access cannot be checked, as {module} does not start in the pool's process: {why}; \
                 keep this URL out of pools (AssignServerPool none), or remove the directive"
                ),
            );
            log::request(log::Level::Error, r, text);
            false
        }
    }
}
