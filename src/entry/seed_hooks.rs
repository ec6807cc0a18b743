//! What httpd calls in a seed, and the way from there to zygote and worker.
//!
//! Runs in: seed, zygote, worker (one thread each).  Trusts: httpd.  Owns: nothing.  Never: returns to httpd's main.

use super::{worker_checks, worker_hooks};
use crate::apr::AprPool;
use crate::ffi::{self, guard::guard_or_abort};
use crate::httpd::{checkers, classes, config, conftree, image, php, places, ServerRec};
use crate::settings::LoggedNames;
use crate::sys::{fork, launch, memory, title};
use crate::worker::WorkerStart;
use crate::{seed, worker, zygote};
use std::os::raw::c_int;
use std::ptr;

pub fn register() {
    image::reading_for_good();
    worker_hooks::register();
    worker_checks::register();
    // SAFETY: httpd is single-threaded while it loads modules; the functions have the types of these hooks.
    unsafe {
        ffi::ap_hook_mpm_query(Some(mpm_query), ptr::null(), ptr::null(), ffi::APR_HOOK_REALLY_FIRST);
        ffi::ap_hook_check_config(
            Some(check_config),
            ptr::null(),
            ptr::null(),
            ffi::APR_HOOK_REALLY_LAST.cast_signed(),
        );
    }
}

/// A worker is one process with one thread, whatever MPM the configuration loads.
unsafe extern "C" fn mpm_query(code: c_int, result: *mut c_int, status: *mut ffi::apr_status_t) -> c_int {
    let answer = match image::worker_answer(code) {
        Some(answer) => answer,
        None => return ffi::HOOK_DECLINED,
    };
    // SAFETY: httpd passes two places for the answer.
    unsafe {
        *result = answer;
        *status = 0;
    }
    ffi::HOOK_OK
}

/// The configuration is read and checked: from here on this process is a seed.
unsafe extern "C" fn check_config(
    pconf: *mut ffi::apr_pool_t,
    plog: *mut ffi::apr_pool_t,
    ptemp: *mut ffi::apr_pool_t,
    main: *mut ffi::server_rec,
) -> c_int {
    // SAFETY: httpd calls the hook with its main server and pools; as this function does not return, they live as long
    // as the process.
    let (main, pools) = unsafe { (ServerRec::from_raw(main), [pconf, plog, ptemp].map(|p| AprPool::from_raw(p))) };
    guard_or_abort(|| be_seed(main, pools))
}

fn be_seed(main: ServerRec<'static>, pools: [AprPool<'static>; 3]) -> ! {
    title::init();
    let tree = config::pool_tree(main);
    checkers::adopt(tree);
    classes::silence_frontend_modules(tree);
    let channel = match launch::inherited_channel() {
        Ok(channel) => channel,
        Err(e) => fail(&format!("the seed has no channel: {e}")),
    };
    if let Err(what) = memory::make_private() {
        fail(&format!(
            "a module made shared memory while the configuration was read, which all pools could write, and it cannot be \
             made private ({what}); do not load that module"
        ));
    }
    let [pconf, plog, ptemp] = pools;
    // What goes over the whole configuration is done here, once: in each zygote it would take time and, where it writes,
    // a page of memory for each virtual host.
    let places = places::needed(pconf);
    let servers = main.iter().map(|server| (server, config::vhost_hash(server))).collect();
    let mut logged = LoggedNames::default();
    conftree::each_directive(|name, arguments| logged.learn(name, arguments));
    if let Err(e) = image::error_logs_to_null(main, pconf) {
        fail(&format!("/dev/null: {e}"));
    }
    let start = seed::serve(channel, tree);
    let Some(pool) = tree.get(start.pool) else { fork::exit_now(1) };
    let own = zygote::OwnPlaces { base: &places.base, leaves: &places.leaves };
    zygote::become_pool(pool, &start.channel, start.standard_error, own);
    if let Some(user) = &pool.user {
        if let Err(what) = places::give(main, pconf, ptemp, &places, (&pool.name, user.uid)) {
            zygote::give_up(&start.channel, &format!("POOL125: {what}"));
        }
    }
    if let Err(what) = image::start_modules(main, pconf, plog, ptemp) {
        zygote::give_up(&start.channel, &what);
    }
    classes::silence_checks_of_frontends(tree);
    if let Err(what) = php::check_configuration(config::php_ini_dir(main)) {
        zygote::give_up(&start.channel, &what);
    }
    let forked = zygote::serve(pool, start.channel);
    worker::run(WorkerStart {
        lease: forked.lease,
        pool: pool.name.clone(),
        servers,
        max_requests: pool.limits.max_requests,
        env: pool.env.clone(),
        logged,
    })
}

fn fail(what: &str) -> ! {
    eprintln!("mod_pool: {what}");
    fork::exit_now(1)
}
