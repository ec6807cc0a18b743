//! This module's configuration records: the pool tree of the main server, the assignment of each directory.
//!
//! Runs in: every process httpd is in.  Trusts: httpd.  Owns: the records; they live in httpd's configuration pool, so
//! each reading of the configuration starts with new ones.  Never: changes them after check_config.

use super::command::{self, lossy, module_file_name, module_is_loaded, Command, Handled, Refused};
use super::log::{self, Level};
use super::{classes, conftree, dispositions, exposure, image, mapping, mpm, places, RequestRec, ServerRec};
use crate::apr::pool::{bytes, AprPool};
use crate::ffi;
use crate::settings::{
    Account, Accounts, Findings, Identity, PoolTree, PoolTreeBuilder, SslDirRecord, SslOptions, Surroundings,
    BLOCK_DIRECTIVES,
};
use crate::sys::{accounts, privileges};
use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::io;
use std::os::raw::{c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

unsafe extern "C" {
    /// The module record, in `entry`.
    static mut pool_module: ffi::module;
}

/// Where `AssignServerPool` can stand, besides the server config itself.
const ASSIGNABLE_SECTIONS: [&str; 6] = ["<VirtualHost", "<Location", "<LocationMatch", "<If", "<ElseIf", "<Else"];

/// mod_unixd's and mod_security's: they change the root directory of the frontends, or of httpd's parent.
const CHROOT_DIRECTIVES: [&str; 2] = ["ChrootDir", "SecChrootDir"];

/// The names that mod_php has had.
const PHP_MODULES: [&CStr; 3] = [c"mod_php.c", c"mod_php7.c", c"mod_php5.c"];

/// How long the look at supplementary groups may take: some databases need milliseconds for each user.
const GROUPS_PATIENCE: Duration = Duration::from_secs(3);

/// An [`AssignedName`] that check_config has not seen.
const UNRESOLVED: u32 = u32::MAX;

/// One server's record. After the configuration was read all virtual hosts share the main server's.
#[derive(Debug, Default)]
pub struct ServerConfig {
    reading: RefCell<Reading>,
    /// Set by check_config.
    tree: OnceLock<PoolTree>,
    /// The first `PHPIniDir`; mod_php too keeps to the first, with a warning.
    php_ini_dir: OnceLock<String>,
}

/// What the directives said; used on the one thread that reads the configuration.
#[derive(Debug, Default)]
struct Reading {
    builder: PoolTreeBuilder,
    /// Directory records point to them.
    assigned: Vec<Arc<AssignedName>>,
}

/// One `AssignServerPool`.
#[derive(Debug)]
struct AssignedName {
    name: String,
    /// File, line and sections.
    place: String,
    /// The pool's index; written once, by check_config, before there is any thread.
    index: AtomicU32,
}

/// One directory's record: plain, because merges happen for each request, in the request's pool.
#[derive(Debug, Clone, Copy, Default)]
pub struct DirConfig {
    assigned: Option<Assigned>,
    ssl: SslDirRecord,
    /// `SSLUserName`, in the pool that the record lives in, or in one that outlives it.
    ssl_user_name: Option<ptr::NonNull<c_char>>,
    /// Access checks of modules that start on demand here.
    checks: Checks,
}

/// Which of the modules in [`checkers`](super::checkers) a directory's access checks need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checks {
    /// `FcgidAccessChecker`, `FcgidAuthenticator`, `FcgidAuthorizer`.
    pub fcgid: bool,
    /// `WSGIAccessScript`.
    pub wsgi: bool,
}

#[derive(Debug, Clone, Copy)]
enum Assigned {
    /// `AssignServerPool none`, and whether `static` stood behind it.
    Frontend { files_only: bool },
    /// In the configuration pool, which outlives every request.
    Pool(ptr::NonNull<AssignedName>),
}

/// Who serves a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assignment {
    /// The pool with this index in [`pool_tree`].
    Pool(u32),
    /// The frontend, by `AssignServerPool none`.
    None,
    /// The frontend, which serves plain files only: `AssignServerPool none static`.
    Files,
}

/// # Safety
/// Called by httpd, with a live pool.
pub unsafe fn create_server_config(pool: *mut ffi::apr_pool_t) -> *mut c_void {
    let config = ServerConfig::default();
    // SAFETY: the pool is live; configurations are read by one thread.
    let pool = unsafe { AprPool::from_raw(pool) };
    // Only ever read through `&`: what changes is in cells.
    ptr::from_ref(pool.place(config)).cast_mut().cast()
}

/// What a virtual host said goes to the main server's record, which the virtual host has from then on.
///
/// # Safety
/// Called by httpd: both are records of [`create_server_config`].
pub unsafe fn merge_server_config(base: *mut c_void, virtual_host: *mut c_void) -> *mut c_void {
    // SAFETY: a record of create_server_config.
    let main = unsafe { &*base.cast::<ServerConfig>() };
    if base != virtual_host {
        // SAFETY: a record of create_server_config.
        let other = unsafe { &*virtual_host.cast::<ServerConfig>() };
        let mut assigned = std::mem::take(&mut other.reading.borrow_mut().assigned);
        main.reading.borrow_mut().assigned.append(&mut assigned);
        if let Some(path) = other.php_ini_dir.get() {
            let _ = main.php_ini_dir.set(path.clone());
        }
    }
    base
}

/// A record in the pool's own memory; it has nothing to drop, so nothing is registered for the end of a request.
///
/// # Safety
/// The pool is live and this thread's.
unsafe fn place_record(pool: *mut ffi::apr_pool_t, record: DirConfig) -> *mut DirConfig {
    const { assert!(align_of::<DirConfig>() <= 8 && !std::mem::needs_drop::<DirConfig>()) };
    // SAFETY: the pool is live; httpd's pools end the process when memory is short, so the answer is not NULL.
    let place = unsafe { ffi::apr_palloc(pool, size_of::<DirConfig>()) }.cast::<DirConfig>();
    // SAFETY: fresh memory of the right size, aligned to 8.
    unsafe { place.write(record) };
    place
}

/// # Safety
/// Called by httpd, with a live pool.
pub unsafe fn create_dir_config(pool: *mut ffi::apr_pool_t) -> *mut c_void {
    // SAFETY: the pool is live and this thread's.
    unsafe { place_record(pool, DirConfig::default()) }.cast()
}

/// # Safety
/// Called by httpd: both are records of [`create_dir_config`] or of this function, the pool is live.
pub unsafe fn merge_dir_config(pool: *mut ffi::apr_pool_t, base: *mut c_void, inner: *mut c_void) -> *mut c_void {
    // SAFETY: a directory record, see above.
    let base = unsafe { *base.cast::<DirConfig>() };
    // SAFETY: a directory record, see above.
    let inner = unsafe { *inner.cast::<DirConfig>() };
    let merged = DirConfig {
        assigned: inner.assigned.or(base.assigned),
        ssl: base.ssl.merged(inner.ssl),
        ssl_user_name: inner.ssl_user_name.or(base.ssl_user_name),
        // Neither module has a way to take a check back.
        checks: Checks { fcgid: inner.checks.fcgid || base.checks.fcgid, wsgi: inner.checks.wsgi || base.checks.wsgi },
    };
    // SAFETY: the pool is live and this thread's.
    unsafe { place_record(pool, merged) }.cast()
}

/// By this httpd finds our records.
pub(super) fn module() -> *const ffi::module {
    &raw const pool_module
}

/// The record of a server; of the main server, once the configuration was read.
pub(super) fn server_config(s: ServerRec<'_>) -> Option<&ServerConfig> {
    // SAFETY: the server is live; httpd keeps a vector of records for each.
    let vector = unsafe { (*s.as_ptr()).module_config };
    // SAFETY: httpd wrote the record's index when it loaded the module.
    let record = unsafe { ffi::ap_get_module_config(vector, module()) };
    // SAFETY: NULL, or made by create_server_config in the configuration pool; changed only through its cells.
    unsafe { record.cast::<ServerConfig>().as_ref() }
}

/// The record of a directory, with everything outside of it merged in.
///
/// # Safety
/// `per_dir` is a live vector of directory records (`r->per_dir_config`, `s->lookup_defaults`).
unsafe fn dir_config(per_dir: *const ffi::ap_conf_vector_t) -> DirConfig {
    // SAFETY: live by contract; see server_config.
    let record = unsafe { ffi::ap_get_module_config(per_dir, module()) };
    // SAFETY: NULL where no directive of ours was met, else a record of create_dir_config.
    unsafe { record.cast::<DirConfig>().as_ref() }.copied().unwrap_or_default()
}

/// Which pool serves the request, by the sections merged so far; `None` if no directive says.
pub fn assigned_pool(r: RequestRec<'_>) -> Option<Assignment> {
    assignment(request_dir_config(r))
}

/// Which pool serves requests of this server that no section treats otherwise.
pub fn default_assignment(s: ServerRec<'_>) -> Option<Assignment> {
    assignment(default_dir_config(s))
}

fn assignment(config: DirConfig) -> Option<Assignment> {
    match config.assigned? {
        Assigned::Frontend { files_only: false } => Some(Assignment::None),
        Assigned::Frontend { files_only: true } => Some(Assignment::Files),
        Assigned::Pool(name) => {
            // SAFETY: it lives in the configuration pool, as `per_dir` does or outlived by it.
            let name = unsafe { name.as_ref() };
            Some(Assignment::Pool(name.index.load(Ordering::Relaxed)))
        }
    }
}

/// What mod_ssl's directives said for the request, by the sections merged so far; all off if mod_ssl is not loaded.
pub fn ssl_options(r: RequestRec<'_>) -> SslOptions {
    request_dir_config(r).ssl.effective()
}

/// `SSLUserName`: the variable of mod_ssl's that names the request's user.
pub fn ssl_user_name(r: RequestRec<'_>) -> Option<&CStr> {
    // SAFETY: a string in a pool that lives as long as the record, which the request has.
    request_dir_config(r).ssl_user_name.map(|name| unsafe { CStr::from_ptr(name.as_ptr()) })
}

/// Which modules the request's access checks need, by the sections merged so far.
pub fn checks(r: RequestRec<'_>) -> Checks {
    request_dir_config(r).checks
}

fn request_dir_config(r: RequestRec<'_>) -> DirConfig {
    // SAFETY: the request is live.
    let vector = unsafe { (*r.as_ptr()).per_dir_config };
    // SAFETY: a request has a vector of directory records from its creation on.
    unsafe { dir_config(vector) }
}

fn default_dir_config(s: ServerRec<'_>) -> DirConfig {
    // SAFETY: the server is live.
    let vector = unsafe { (*s.as_ptr()).lookup_defaults };
    // SAFETY: each server has a vector of default directory records.
    unsafe { dir_config(vector) }
}

/// The pool tree; only the root pool before check_config.
pub fn pool_tree(s: ServerRec<'_>) -> &PoolTree {
    static EMPTY: OnceLock<PoolTree> = OnceLock::new();
    server_config(s).and_then(|config| config.tree.get()).unwrap_or_else(|| EMPTY.get_or_init(PoolTree::default))
}

/// `PHPIniDir`, if it was given and mod_php is loaded.
pub fn php_ini_dir(s: ServerRec<'_>) -> Option<&str> {
    server_config(s)?.php_ini_dir.get().map(String::as_str)
}

/// A hash of what defines a virtual host: frontend and worker compare it before they speak of the same one by index.
/// It is the same in every process that has read the same text.
pub fn vhost_hash(s: ServerRec<'_>) -> u64 {
    // SAFETY: the server is live.
    let port = unsafe { (*s.as_ptr()).port };
    let (file, line) = s.defined_at();
    let mut hash = Fnv1a::default();
    for text in [file, s.hostname()] {
        hash.bytes(text);
        hash.bytes(&[0]);
    }
    hash.bytes(&line.to_le_bytes());
    hash.bytes(&port.to_le_bytes());
    match default_dir_config(s).assigned {
        None => {}
        Some(Assigned::Frontend { files_only: false }) => hash.bytes(b"none"),
        Some(Assigned::Frontend { files_only: true }) => hash.bytes(b"none static"),
        // SAFETY: it lives in the configuration pool, as the server_rec does.
        Some(Assigned::Pool(name)) => hash.bytes(unsafe { name.as_ref() }.name.as_bytes()),
    }
    hash.0
}

/// The hash of Fowler, Noll and Vo: it needs no key, and no secret hangs on it.
struct Fnv1a(u64);

impl Default for Fnv1a {
    fn default() -> Self {
        Fnv1a(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv1a {
    fn bytes(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// The uid that frontends run as.
pub fn frontend_uid() -> u32 {
    frontend_ids().0
}

/// `#uid`, where `User` says that: mod_unixd looks for its name when it is to become that user, and stays what it is where
/// there is none.
fn user_as_number() -> Option<String> {
    // SAFETY: null or a string, written while the configuration is read, on this thread.
    let user = String::from_utf8_lossy(unsafe { bytes(ffi::ap_unixd_config.user_name) }).into_owned();
    user.starts_with('#').then_some(user)
}

fn frontend_ids() -> (u32, u32) {
    match accounts::effective_ids() {
        // SAFETY: mod_unixd writes both while the configuration is read, on this thread; nobody does later.
        (0, _) => unsafe { (ffi::ap_unixd_config.user_id, ffi::ap_unixd_config.group_id) },
        own => own,
    }
}

/// In a seed: the server that it belongs to found that the pool `default` serves what nothing is assigned to. A seed
/// could not tell, as it has no threads itself.
pub const DEFAULT_SERVES: &CStr = c"POOL_DEFAULT";

/// Whether a request can come to a server to which nothing is assigned: a virtual host, or the main server where virtual
/// hosts for all addresses do not take every port that httpd listens to. (A section can leave something unassigned only
/// with `none`, which the pool `default` does not serve.)
fn something_unassigned(main: ServerRec<'_>) -> bool {
    let unassigned = |server: ServerRec<'_>| default_assignment(server).is_none();
    if main.iter().filter(|server| server.is_virtual()).any(unassigned) {
        return true;
    }
    unassigned(main) && !main.listens_to().into_iter().all(|port| main.iter().any(|server| server.takes_all_of(port)))
}

/// Whether the pool `default` is to serve what nothing is assigned to: frontends cannot, and the server config leaves
/// something unassigned.
fn default_serves(main: ServerRec<'_>) -> bool {
    if image::is_defined(c"POOL_SEED") {
        return image::is_defined(DEFAULT_SERVES);
    }
    image::is_threaded() && classes::php_is_loaded() && default_assignment(main).is_none()
}

/// The pool that serves a request which nothing is assigned to, but for what the administrator asks of a module of the
/// frontends by name.
pub fn unassigned_pool(r: RequestRec<'_>) -> Option<u32> {
    let pool = pool_tree(r.server()).unassigned()?;
    (!r.forced_handler().is_some_and(classes::is_for_frontends)).then_some(pool)
}

/// check_config: names become indexes, and the tree is final. Says on the error log what is wrong; false if the
/// server must not start.
pub fn check_config(main: ServerRec<'_>, pconf: AprPool<'_>) -> bool {
    let Some(config) = server_config(main) else {
        return false;
    };
    let own = accounts::effective_ids();
    let around = Surroundings {
        unprivileged: (own.0 != 0).then_some(own),
        frontend_uid: frontend_uid(),
        chroot: conftree::find(&CHROOT_DIRECTIVES),
        // SAFETY: httpd's variable, written while the configuration is read, on this thread.
        core_dumps: unsafe { ffi::ap_coredumpdir_configured } != 0,
        something_unassigned: something_unassigned(main),
    };
    let mut reading = config.reading.borrow_mut();
    let (uid, gid) = frontend_ids();
    let user_name = accounts::user_by_uid(uid).ok().flatten().map(|entry| entry.name);
    let nameless = user_name.is_none().then(user_as_number).flatten().filter(|_| own.0 == 0);
    let completed = reading.builder.complete_default(default_serves(main), Identity { uid, gid, user_name });
    let (tree, mut findings) = reading.builder.finish();
    if let Some(user) = nameless.filter(|_| mpm::is_ours() || !tree.is_empty()) {
        findings.errors.push(format!(
            "User {user}: has no passwd entry, and httpd's processes would stay root; name a user that has one, or add one"
        ));
    }
    findings.errors.extend(completed.err());
    findings.append(tree.check(&around));
    findings.append(dispositions::check(&tree));
    if own.0 == 0 && warnings_are_due() {
        let began = Instant::now();
        findings.append(tree.check_groups(gid, |name, user| {
            (began.elapsed() < GROUPS_PATIENCE).then(|| privileges::groups_of(name, user.gid))
        }));
    }
    findings.errors.extend(mapping::check(main, &tree));
    for assigned in &reading.assigned {
        match tree.assignable(&assigned.name) {
            Ok(index) => assigned.index.store(index, Ordering::Relaxed),
            Err(what) => findings.errors.push(format!("{what} ({})", assigned.place)),
        }
    }
    if own.0 == 0 && !tree.is_empty() && !image::is_defined(c"POOL_SEED") {
        if let Err((at, why)) = places::check(pconf) {
            findings.errors.push(format!(
                "{} {} at {}: each pool needs a directory of its own in the place of that, which httpd makes below \
                 DefaultRuntimeDir, and cannot: {why}; let DefaultRuntimeDir be a directory that only root can change, or \
                 remove {}",
                at.name, at.value, at.place, at.name
            ));
        }
    }
    if findings.errors.is_empty() && !tree.is_empty() && warnings_are_due() {
        findings.warnings.extend(exposure::check(&tree, around.frontend_uid));
    }
    report(&findings);
    config.tree.set(tree).is_ok() && findings.errors.is_empty()
}

fn report(findings: &Findings) {
    for text in &findings.errors {
        log::startup(Level::Emerg, text.as_str());
    }
    if warnings_are_due() {
        for text in &findings.warnings {
            log::startup(Level::Warning, text.as_str());
        }
    }
}

/// httpd reads its configuration twice when it starts, a seed reads it again: say a warning once.
fn warnings_are_due() -> bool {
    // SAFETY: reads a global of httpd's.
    let state = unsafe { ffi::ap_state_query(ffi::AP_SQ_MAIN_STATE as c_int) };
    // SAFETY: as before.
    let mode = unsafe { ffi::ap_state_query(ffi::AP_SQ_RUN_MODE as c_int) };
    // SAFETY: a string constant; looks into a table that changes only while the command line is read.
    let seed = unsafe { ffi::ap_exists_config_define(c"POOL_SEED".as_ptr()) } != 0;
    let dry_pass = state == ffi::AP_SQ_MS_CREATE_PRE_CONFIG as c_int;
    !seed && (mode == ffi::AP_SQ_RM_CONFIG_TEST as c_int || !dry_pass)
}

struct SystemAccounts;

impl Accounts for SystemAccounts {
    fn user_by_name(&self, name: &str) -> io::Result<Option<Account>> {
        Ok(accounts::user_by_name(name)?.map(account))
    }

    fn user_by_uid(&self, uid: u32) -> io::Result<Option<Account>> {
        Ok(accounts::user_by_uid(uid)?.map(account))
    }

    fn group_by_name(&self, name: &str) -> io::Result<Option<u32>> {
        accounts::group_by_name(name)
    }
}

fn account(entry: accounts::PasswdEntry) -> Account {
    let accounts::PasswdEntry { name, uid, gid } = entry;
    Account { name, uid, gid }
}

/// Gives `f` the tree builder of the main server, if the directive stands where such a directive may.
fn with_builder(
    command: &Command<'_>,
    value: &str,
    f: impl FnOnce(&mut PoolTreeBuilder) -> Result<(), String>,
) -> Handled {
    let name = command.name();
    let sections = command.sections();
    let misplaced = |place: &str| {
        format!(
            "{name} {value}: cannot stand in {place}; write it in the server config, outside of any other section than \
             <ServerPool>"
        )
    };
    if command.in_htaccess() {
        return Err(Refused::InHtaccess(misplaced(".htaccess")));
    }
    if let Some(section) = sections.iter().find(|s| !is(s, &["<ServerPool"])) {
        return Err(misplaced(&format!("a {section}> section")).into());
    }
    let config = command.server_config().ok_or_else(|| format!("{name} {value}: httpd gave no record for it"))?;
    Ok(f(&mut config.reading.borrow_mut().builder)?)
}

fn is(name: &str, known: &[&str]) -> bool {
    known.iter().any(|k| name.eq_ignore_ascii_case(k))
}

/// A directive of one value.
pub fn setting(
    command: &Command<'_>,
    value: &CStr,
    set: fn(&mut PoolTreeBuilder, &str) -> Result<(), String>,
) -> Handled {
    let value = lossy(value);
    with_builder(command, &value, |builder| set(builder, &value))
}

/// `PoolUser`.
pub fn pool_user(command: &Command<'_>, value: &CStr) -> Handled {
    setting(command, value, |builder, text| builder.set_user(text, &SystemAccounts))
}

/// `PoolGroup`.
pub fn pool_group(command: &Command<'_>, value: &CStr) -> Handled {
    setting(command, value, |builder, text| builder.set_group(text, &SystemAccounts))
}

/// `PoolEnv`.
pub fn pool_env(command: &Command<'_>, name: &CStr, value: &CStr) -> Handled {
    let name = lossy(name);
    let value = value.to_str().map_err(|_| format!("PoolEnv {name}: the value is not UTF-8; write it in UTF-8"))?;
    with_builder(command, &name, |builder| builder.set_env(&name, value))
}

/// `PoolStrict`.
pub fn pool_strict(command: &Command<'_>, on: bool) -> Handled {
    with_builder(command, if on { "on" } else { "off" }, |builder| builder.set_strict(on))
}

/// `PoolModuleRole`.
pub fn pool_module_role(command: &Command<'_>, module: &CStr, role: &CStr) -> Handled {
    let (module, role) = (lossy(module), lossy(role));
    let file = module_file_name(&module).ok_or_else(|| {
        format!(
            "PoolModuleRole {module} {role}: no such module is loaded; write its name as in LoadModule (x_module) or its \
             file (mod_x.c), and put the line into <IfModule {module}> if the module may be absent"
        )
    })?;
    let fixed = classes::fixed_role(&file);
    with_builder(command, &module, |builder| builder.set_module_role(&file, &role, fixed))
}

/// `<ServerPool name>`.
pub fn server_pool(command: &mut Command<'_>, args: &CStr) -> Handled {
    let text = lossy(args);
    let Some(name) = text.trim_end().strip_suffix('>') else {
        return Err(format!("<ServerPool {text}: the closing '>' is missing; write <ServerPool name>").into());
    };
    let words = command.words(&CString::new(name).unwrap_or_default());
    let [name] = &words[..] else {
        return Err(format!("<ServerPool {text}: takes one name; write <ServerPool name>").into());
    };
    let place = command.place();
    with_builder(command, &format!("{name}>"), |builder| builder.open(name, place))?;
    let children = command.children();
    let foreign = |(child, _): &(String, String)| !is(child, &BLOCK_DIRECTIVES);
    if let Some(at) = children.iter().position(foreign) {
        command.blame_child(at);
        let (child, args) = &children[at];
        if !command::is_known(child) {
            return Err(unknown(child).into());
        }
        return Err(format!(
            "{child} {args}: cannot stand in <ServerPool {name}>, where only directives of the pool and its sub pools \
             can; move it out of the block"
        )
        .into());
    }
    command.walk_children()?;
    with_builder(command, name, PoolTreeBuilder::close)
}

/// `AssignServerPool`.
pub fn assign_server_pool(command: &Command<'_>, dir: &mut DirConfig, name: &CStr, how: Option<&CStr>) -> Handled {
    let name = lossy(name);
    let sections = command.sections();
    let misplaced = |place: &str| {
        format!(
            "AssignServerPool {name}: cannot stand in {place}; write it in the server config, <VirtualHost>, <Location> \
             or <If>"
        )
    };
    if command.in_htaccess() {
        return Err(Refused::InHtaccess(misplaced(".htaccess")));
    }
    if let Some(section) = sections.iter().find(|s| !is(s, &ASSIGNABLE_SECTIONS)) {
        return Err(misplaced(&format!("a {section}> section")).into());
    }
    let how = how.map(lossy);
    if name.eq_ignore_ascii_case("none") {
        let files_only = how.as_ref().is_some_and(|how| how.eq_ignore_ascii_case("static"));
        if let Some(how) = how.filter(|_| !files_only) {
            return Err(
                format!("AssignServerPool {name} {how}: none can be followed by static only; remove {how}").into()
            );
        }
        dir.assigned = Some(Assigned::Frontend { files_only });
        return Ok(());
    }
    if let Some(how) = how {
        return Err(format!(
            "AssignServerPool {name} {how}: a pool is one name, and only none can be followed by a word (static); remove \
             {how}"
        )
        .into());
    }
    let config =
        command.server_config().ok_or_else(|| format!("AssignServerPool {name}: httpd gave no record for it"))?;
    let assigned =
        Arc::new(AssignedName { place: format!("at {}", command.place()), name, index: AtomicU32::new(UNRESOLVED) });
    dir.assigned = Some(Assigned::Pool(ptr::NonNull::from(&*assigned)));
    config.reading.borrow_mut().assigned.push(assigned);
    Ok(())
}

/// As httpd answers a directive that no loaded module has.
fn only_if_loaded(command: &Command<'_>, owners: &[&CStr]) -> Result<bool, String> {
    if owners.iter().any(|owner| module_is_loaded(owner)) {
        return Ok(true);
    }
    if command.unknown_is_skipped() {
        return Ok(false);
    }
    Err(unknown(&command.name()))
}

fn unknown(directive: &str) -> String {
    format!(
        "Invalid command '{directive}', perhaps misspelled or defined by a module not included in the server \
         configuration"
    )
}

/// `SSLOptions`.
pub fn ssl_options_directive(command: &Command<'_>, dir: &mut DirConfig, args: &CStr) -> Handled {
    if only_if_loaded(command, &[c"mod_ssl.c"])? {
        let words = command.words(args);
        dir.ssl.options(words.iter().map(String::as_str));
    }
    Ok(())
}

/// `SSLRequireSSL`, `SSLRequire`.
pub fn ssl_require_directive(command: &Command<'_>, dir: &mut DirConfig, args: &CStr) -> Handled {
    if only_if_loaded(command, &[c"mod_ssl.c"])? {
        if command.name().eq_ignore_ascii_case("SSLRequire") {
            dir.ssl.require_expression(args.to_bytes());
        } else {
            dir.ssl.require();
        }
    }
    Ok(())
}

/// `SSLVerifyClient`, `SSLVerifyDepth`, `SSLCipherSuite`.
pub fn ssl_verify_directive(command: &Command<'_>, dir: &mut DirConfig, args: &CStr) -> Handled {
    if only_if_loaded(command, &[c"mod_ssl.c"])? && command.in_directory() {
        dir.ssl.verify(command.name().as_bytes(), args.to_bytes());
    }
    Ok(())
}

/// `SSLUserName`.
pub fn ssl_user_name_directive(command: &Command<'_>, dir: &mut DirConfig, args: &CStr) -> Handled {
    if only_if_loaded(command, &[c"mod_ssl.c"])? {
        dir.ssl_user_name = command.words(args).first().and_then(|name| command.keep(name));
    }
    Ok(())
}

/// `FcgidAccessChecker`, `FcgidAuthenticator`, `FcgidAuthorizer`, also by the names they had before. mod_fastcgi has
/// directives of these older names, and keeps its own class.
pub fn fcgid_check_directive(command: &Command<'_>, dir: &mut DirConfig) -> Handled {
    let older = command.name().starts_with("FastCgi");
    let owners: &[&CStr] = if older { &[c"mod_fcgid.c", c"mod_fastcgi.c"] } else { &[c"mod_fcgid.c"] };
    dir.checks.fcgid |= only_if_loaded(command, owners)? && module_is_loaded(c"mod_fcgid.c");
    Ok(())
}

/// `WSGIAccessScript`.
pub fn wsgi_check_directive(command: &Command<'_>, dir: &mut DirConfig) -> Handled {
    dir.checks.wsgi |= only_if_loaded(command, &[c"mod_wsgi.c"])?;
    Ok(())
}

/// `PHPIniDir`.
pub fn php_ini_dir_directive(command: &Command<'_>, args: &CStr) -> Handled {
    if only_if_loaded(command, &PHP_MODULES)? {
        if let (Some(config), Some(word)) = (command.server_config(), command.words(args).into_iter().next()) {
            let _ = config.php_ini_dir.set(word);
        }
    }
    Ok(())
}
