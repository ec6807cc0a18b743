//! Tables of what is accepted and refused, and what the tree makes of it.

use super::{
    Account, Accounts, DirectiveAt, Findings, Identity, ModuleRole, Place, PoolTree, PoolTreeBuilder, SslDirRecord,
    Surroundings, DEFAULT_MAX_REQUESTS, DEFAULT_POOL, DEFAULT_POOL_MAX_PROCESSES, DEFAULT_POOL_OF_ALL_MAX_PROCESSES,
    DEFAULT_ROOT_MAX_PROCESSES, ROOT,
};
use std::io;
use std::time::Duration;

/// alice and bob as usual, ops whose primary group is root's, a root, a database that fails for "ldap".
struct FakeAccounts;

const KNOWN: [(&str, u32, u32); 4] = [("root", 0, 0), ("alice", 1001, 1001), ("bob", 1002, 1002), ("ops", 1003, 0)];

impl Accounts for FakeAccounts {
    fn user_by_name(&self, name: &str) -> io::Result<Option<Account>> {
        if name == "ldap" {
            return Err(io::Error::other("no answer"));
        }
        Ok(known(|entry| entry.0 == name))
    }

    fn user_by_uid(&self, uid: u32) -> io::Result<Option<Account>> {
        Ok(known(|entry| entry.1 == uid))
    }

    fn group_by_name(&self, name: &str) -> io::Result<Option<u32>> {
        Ok(match name {
            "root" => Some(0),
            "alice" => Some(1001),
            "www" => Some(33),
            _ => None,
        })
    }
}

fn known(is: impl Fn(&&(&str, u32, u32)) -> bool) -> Option<Account> {
    KNOWN.iter().find(is).map(|&(name, uid, gid)| Account { name: name.into(), uid, gid })
}

fn at(line: u32) -> Place {
    Place { file: "pools.conf".into(), line }
}

/// Reads lines as httpd would hand them over; `<ServerPool x>` and `</ServerPool>` are blocks.
fn read(text: &str) -> Result<PoolTreeBuilder, String> {
    let mut builder = PoolTreeBuilder::default();
    for (number, line) in text.lines().enumerate() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let place = at(u32::try_from(number + 1).expect("a short text"));
        match words[..] {
            [] => Ok(()),
            ["<ServerPool", name] => builder.open(name.trim_end_matches('>'), place),
            ["</ServerPool>"] => builder.close(),
            ["PoolUser", v] => builder.set_user(v, &FakeAccounts),
            ["PoolGroup", v] => builder.set_group(v, &FakeAccounts),
            ["PoolMaxProcesses", v] => builder.set_max_processes(v),
            ["PoolMinSpare", v] => builder.set_min_spare(v),
            ["PoolIdleTimeout", v] => builder.set_idle_timeout(v),
            ["PoolMaxRequestsPerProcess", v] => builder.set_max_requests(v),
            ["PoolQueueTimeout", v] => builder.set_queue_timeout(v),
            ["PoolQueueLimit", v] => builder.set_queue_limit(v),
            ["PoolEnv", name, v] => builder.set_env(name, v),
            ["PoolUmask", v] => builder.set_umask(v),
            ["PoolStrict", v] => builder.set_strict(v == "on"),
            ["PoolModuleRole", module, role] => builder.set_module_role(module, role, None),
            _ => panic!("not a line of this test's language: {line}"),
        }?;
    }
    Ok(builder)
}

fn tree(text: &str) -> (PoolTree, Findings) {
    read(text).expect("this configuration is accepted").finish()
}

fn pool<'t>(tree: &'t PoolTree, name: &str) -> &'t super::ServerPool {
    let index = tree.find(name).expect("the pool is defined");
    tree.get(index).expect("an index of the tree")
}

#[test]
fn accepts() {
    let lines = [
        "PoolUser alice",
        "PoolUser #1001",
        "PoolUser #4294967294\nPoolGroup #1",
        "PoolUser ops\nPoolGroup www",
        "PoolGroup #77\nPoolUser alice",
        "PoolMaxProcesses 1",
        "PoolMaxProcesses 32768",
        "PoolMinSpare 0",
        "PoolIdleTimeout 100ms",
        "PoolIdleTimeout 30",
        "PoolIdleTimeout 30s",
        "PoolIdleTimeout 2min",
        "PoolIdleTimeout 168h",
        "PoolMaxRequestsPerProcess 0",
        "PoolMaxRequestsPerProcess 1000000000",
        "PoolQueueTimeout 1ms",
        "PoolQueueTimeout 1h",
        "PoolQueueLimit 0",
        "PoolQueueLimit 100000",
        "PoolEnv _a9 x",
        "PoolUmask 0",
        "PoolUmask 027",
        "PoolUmask 0777",
    ];
    for line in lines {
        let text = format!("<ServerPool a.b_c-9>\n{line}\n</ServerPool>");
        let (_, findings) = tree(&text);
        assert_eq!(findings.errors, Vec::<String>::new(), "{line}");
    }
}

/// Each refusal opens with directive and value, and ends with what to do.
#[test]
fn refuses() {
    let table = [
        ("PoolUser root", "PoolUser root: uid 0 is refused"),
        ("PoolUser #0", "PoolUser #0: uid 0 is refused"),
        ("PoolUser #-1", "PoolUser #-1: not a numeric id; give #"),
        ("PoolUser #4294967295", "PoolUser #4294967295: not a numeric id; give #"),
        ("PoolUser #", "PoolUser #: not a numeric id; give #"),
        ("PoolUser ops", "PoolUser ops: its primary group is gid 0, which is refused; add PoolGroup"),
        ("PoolGroup www", "PoolGroup www: has no effect without PoolUser; add PoolUser"),
        ("PoolGroup root", "PoolGroup root: gid 0 is refused"),
        ("PoolGroup #0", "PoolGroup #0: gid 0 is refused"),
        ("PoolMaxProcesses 0", "PoolMaxProcesses 0: not a whole number from 1 to 32768; give"),
        ("PoolMaxProcesses -1", "PoolMaxProcesses -1: not a whole number from 1 to 32768; give"),
        ("PoolMaxProcesses 99999999999999999999", "PoolMaxProcesses 99999999999999999999: not a whole number"),
        ("PoolMaxProcesses 8k", "PoolMaxProcesses 8k: not a whole number"),
        ("PoolMaxProcesses +8", "PoolMaxProcesses +8: not a whole number"),
        ("PoolMinSpare -1", "PoolMinSpare -1: not a whole number from 0 to 32768; give"),
        ("PoolIdleTimeout 0", "PoolIdleTimeout 0: not a time from 100ms to 168h; give"),
        ("PoolIdleTimeout -5s", "PoolIdleTimeout -5s: not a time"),
        ("PoolIdleTimeout 5d", "PoolIdleTimeout 5d: not a time"),
        ("PoolIdleTimeout s", "PoolIdleTimeout s: not a time"),
        ("PoolIdleTimeout 9999999999999999999h", "PoolIdleTimeout 9999999999999999999h: not a time"),
        ("PoolMaxRequestsPerProcess -1", "PoolMaxRequestsPerProcess -1: not a whole number from 0 to 1000000000; give"),
        ("PoolQueueTimeout 0", "PoolQueueTimeout 0: not a time from 1ms to 1h; give"),
        ("PoolQueueTimeout 2h", "PoolQueueTimeout 2h: not a time"),
        ("PoolQueueLimit 100001", "PoolQueueLimit 100001: not a whole number from 0 to 100000; give"),
        ("PoolEnv 9A x", "PoolEnv 9A: not the name of an environment variable; use"),
        ("PoolEnv A=B x", "PoolEnv A=B: not the name of an environment variable; use"),
        ("PoolUmask 8", "PoolUmask 8: not an octal number from 0 to 0777; give"),
        ("PoolUmask 1000", "PoolUmask 1000: not an octal number"),
        ("PoolUmask -27", "PoolUmask -27: not an octal number"),
        ("PoolUmask u=rwx", "PoolUmask u=rwx: not an octal number"),
        ("PoolModuleRole mod_x.c worker", "PoolModuleRole mod_x.c worker: holds for every pool; move it out"),
        ("<ServerPool p>", "<ServerPool p>: a pool of this name is defined already at pools.conf:1; give"),
        ("<ServerPool none>", "<ServerPool none>: this name has a meaning of its own; choose"),
        ("<ServerPool Root>", "<ServerPool Root>: this name has a meaning of its own; choose"),
        ("<ServerPool -x>", "<ServerPool -x>: a pool's name starts with"),
        ("<ServerPool .x>", "<ServerPool .x>: a pool's name starts with"),
        ("<ServerPool a/b>", "<ServerPool a/b>: a pool's name has 1 to 64 letters"),
        ("<ServerPool ä>", "<ServerPool ä>: a pool's name has 1 to 64 letters"),
    ];
    for (line, says) in table {
        let result = read(&format!("<ServerPool p>\n{line}\n</ServerPool>"));
        let error = result.expect_err(line);
        assert!(error.starts_with(says), "{line}: {error}");
        assert!(error.contains("; "), "no remedy for {line}: {error}");
    }
}

#[test]
fn a_pool_without_its_user_or_group_is_out_of_service_alone() {
    let table = [
        ("PoolUser carol", "PoolUser carol: there is no such user; create it, or give a numeric id as #1234"),
        ("PoolUser 1001", "PoolUser 1001: there is no such user; create it, or give a numeric id as #1234"),
        ("PoolUser ldap", "PoolUser ldap: the system's user database cannot be read (no answer); repair it, or"),
        ("PoolUser #5000", "PoolUser #5000: uid 5000 has no passwd entry that would name its group; create the user,"),
        ("PoolUser alice\nPoolGroup nope", "PoolGroup nope: there is no such group; create it, or"),
        ("PoolUser carol\nPoolGroup www", "PoolUser carol: there is no such user; create it, or"),
    ];
    for (lines, says) in table {
        let text = format!("<ServerPool gone>\n{lines}\nPoolMinSpare 2\n</ServerPool>\n");
        let text = text + "<ServerPool well>\nPoolUser bob\n</ServerPool>\n";
        let (t, findings) = tree(&text);
        assert_eq!(findings.errors, Vec::<String>::new(), "{lines}");
        let [warning] = &findings.warnings[..] else { panic!("{:?}", findings.warnings) };
        assert!(warning.starts_with(says) && warning.contains("out of service"), "{lines}: {warning}");
        let gone = t.find("gone").and_then(|at| t.get(at)).expect("it is there");
        assert!(gone.user.is_none() && gone.out_of_service.as_deref().is_some_and(|why| why.starts_with(says)));
        assert_eq!(t.assignable("gone"), Ok(1), "a virtual host may name it");
        let table = t.to_table(1, 33, Vec::new());
        assert_eq!((table.pools[1].uid, table.pools[1].min_spare, table.pools[2].uid), (None, 0, Some(1002)));
        for strict in [format!("PoolStrict on\n{text}"), format!("{text}PoolStrict on\n")] {
            let (_, findings) = tree(&strict);
            let [error] = &findings.errors[..] else { panic!("{:?}", findings.errors) };
            assert!(error.starts_with(says) && error.contains("PoolStrict on"), "{lines}: {error}");
        }
    }
    let (t, findings) = tree("<ServerPool p>\nPoolUser carol\nPoolUser alice\n</ServerPool>\n");
    assert_eq!(
        (findings, t.find("p").and_then(|at| t.get(at)?.user.clone()).map(|user| user.uid)),
        (Findings::default(), Some(1001)),
        "the last line counts"
    );
    let mut gone = read("<ServerPool default>\nPoolUser carol\n</ServerPool>").expect("accepted");
    gone.complete_default(true, Identity { uid: 33, gid: 33, user_name: None }).expect("accepted");
    let (t, _) = gone.finish();
    assert_eq!(t.unassigned().and_then(|at| t.get(at)?.user.clone()), None, "it does not take the frontends' user");
}

#[test]
fn refuses_what_stands_in_the_wrong_place() {
    let table = [
        ("PoolUser alice", "PoolUser alice: belongs to one pool; write it in a <ServerPool> block"),
        ("PoolGroup www", "PoolGroup www: belongs to one pool; write it in a <ServerPool> block"),
        ("<ServerPool p>\nPoolStrict on", "PoolStrict on: holds for every pool; move it out of <ServerPool p>"),
        ("</ServerPool>", "</ServerPool>: no block is open; remove it"),
        ("PoolModuleRole mod_x.c nowhere", "PoolModuleRole mod_x.c nowhere: not a role; give frontend, worker or both"),
    ];
    for (line, says) in table {
        assert_eq!(read(line).err().as_deref(), Some(says), "{line}");
    }
}

#[test]
fn names_have_at_most_64_characters() {
    let mut builder = PoolTreeBuilder::default();
    assert!(builder.open(&"x".repeat(65), at(1)).is_err());
    assert!(builder.open("", at(1)).is_err());
    assert_eq!(builder.open(&"x".repeat(64), at(1)), Ok(()));
}

#[test]
fn nesting_has_an_end() {
    let mut builder = PoolTreeBuilder::default();
    for depth in 0..super::builder::MAX_DEPTH {
        assert_eq!(builder.open(&format!("p{depth}"), at(1)), Ok(()));
    }
    assert!(builder.open("deeper", at(2)).is_err());
}

#[test]
fn an_empty_configuration_has_the_root_pool() {
    let tree = PoolTree::default();
    assert!(tree.is_empty());
    assert_eq!(tree.find("root"), None);
    let root = tree.get(ROOT).expect("the root pool");
    assert_eq!(root.limits.max_processes, DEFAULT_ROOT_MAX_PROCESSES);
    assert_eq!(root.limits.max_requests, DEFAULT_MAX_REQUESTS);
    assert_eq!(root.user, None);
}

#[test]
fn sub_pools_inherit_all_but_user_group_and_cap() {
    let (tree, findings) = tree(
        "PoolMaxRequestsPerProcess 7
        PoolEnv A root
        PoolEnv B root
        <ServerPool hosting>
          <ServerPool alice>
            PoolUser alice
            PoolEnv A own
          </ServerPool>
          PoolMaxProcesses 100
          PoolIdleTimeout 1min
          PoolUmask 027
          PoolMinSpare 9
          PoolEnv C parent
        </ServerPool>
        PoolQueueLimit 5",
    );
    assert_eq!(findings, Findings::default());
    let alice = pool(&tree, "alice");
    assert_eq!(alice.parent, tree.find("hosting"));
    assert_eq!(alice.user, Some(Identity { uid: 1001, gid: 1001, user_name: Some("alice".into()) }));
    assert_eq!(alice.limits.max_processes, DEFAULT_POOL_MAX_PROCESSES);
    // Inherited, and cut to what the pool may have.
    assert_eq!(alice.limits.min_spare, DEFAULT_POOL_MAX_PROCESSES);
    assert_eq!(alice.limits.idle_timeout, Duration::from_secs(60));
    assert_eq!(alice.limits.max_requests, 7);
    assert_eq!(alice.limits.queue_limit, 5);
    assert_eq!(alice.umask, Some(0o27));
    let env: Vec<String> = alice.env.iter().map(|(n, v)| format!("{n}={v}")).collect();
    assert_eq!(env, ["B=root", "C=parent", "A=own"]);
    assert_eq!(pool(&tree, "hosting").user, None);
    assert_eq!(alice.defined_at, at(5));
}

#[test]
fn caps_follow_the_tree() {
    let (tree, _) = tree(
        "PoolMaxProcesses 50
        <ServerPool groups>
          <ServerPool a>
            PoolUser alice
          </ServerPool>
        </ServerPool>
        <ServerPool small>
          PoolMaxProcesses 3
          <ServerPool b>
            PoolUser bob
          </ServerPool>
        </ServerPool>",
    );
    assert_eq!(pool(&tree, "groups").limits.max_processes, 50);
    assert_eq!(pool(&tree, "a").limits.max_processes, DEFAULT_POOL_MAX_PROCESSES);
    assert_eq!(pool(&tree, "b").limits.max_processes, 3);
}

#[test]
fn finish_finds_what_no_single_directive_shows() {
    let (_, findings) = tree(
        "PoolMaxProcesses 10
        <ServerPool p>
          PoolMaxProcesses 20
          <ServerPool a>
            PoolUser alice
            PoolMaxProcesses 21
            PoolMinSpare 21
          </ServerPool>
          <ServerPool b>
            PoolUser bob
            PoolMinSpare 9
          </ServerPool>
          <ServerPool empty>
          </ServerPool>
        </ServerPool>",
    );
    let starts: Vec<&str> = findings
        .errors
        .iter()
        .chain(&findings.warnings)
        .map(|text| text.split(':').next().unwrap_or_default())
        .collect();
    assert_eq!(
        starts,
        [
            "PoolMinSpare 9 of <ServerPool b> at pools.conf",
            "PoolMaxProcesses 20 of <ServerPool p> at pools.conf",
            "PoolMaxProcesses 21 of <ServerPool a> at pools.conf",
            "<ServerPool empty> at pools.conf",
            "PoolMaxProcesses 10 of all pools together",
            "PoolMaxProcesses 20 of <ServerPool p> at pools.conf",
        ]
    );
}

const TWO_POOLS: &str = "<ServerPool p>
      <ServerPool a>
        PoolUser alice
      </ServerPool>
      <ServerPool b>
        PoolUser #1001
      </ServerPool>
    </ServerPool>";

/// Frontends as uid 33, and nothing unusual.
fn around(unprivileged: Option<(u32, u32)>) -> Surroundings {
    Surroundings { unprivileged, frontend_uid: 33, chroot: None, core_dumps: false, something_unassigned: true }
}

#[test]
fn another_root_directory_is_refused_where_there_are_pools() {
    let mut jailed = around(None);
    jailed.chroot = Some(DirectiveAt { name: "ChrootDir".into(), value: "/srv/jail".into(), place: at(9) });
    let errors = tree(TWO_POOLS).0.check(&jailed).errors;
    assert_eq!(errors.len(), 1);
    assert!(errors[0].starts_with("ChrootDir /srv/jail at pools.conf:9: "), "{errors:?}");
    assert_eq!(PoolTree::default().check(&jailed).errors, Vec::<String>::new());
}

#[test]
fn a_pool_of_the_frontends_user_is_known_and_costs_their_cores() {
    let (tree, _) = tree(TWO_POOLS);
    assert!(tree.uses_uid(1001) && !tree.uses_uid(33));
    let cores = Surroundings { frontend_uid: 1001, core_dumps: true, ..around(None) };
    assert!(tree.check(&cores).warnings[0].contains("frontends leave no core in CoreDumpDirectory"));
}

#[test]
fn a_role_that_is_fixed_can_only_be_repeated() {
    use ModuleRole::{Both, Frontend};
    let set = |role: &str, fixed| PoolTreeBuilder::default().set_module_role("mod_x.c", role, fixed);
    for (role, fixed) in [("both", Some(Both)), ("frontend", Some(Frontend)), ("worker", None)] {
        assert_eq!(set(role, fixed), Ok(()), "{role}");
    }
    let every = "PoolModuleRole mod_x.c worker: every process needs this module; remove the line";
    assert_eq!(set("worker", Some(Both)), Err(every.to_owned()));
    let frontends = "PoolModuleRole mod_x.c both: this module works in frontends only; remove the line";
    assert_eq!(set("both", Some(Frontend)), Err(frontends.to_owned()));
}

#[test]
fn shared_uids_are_warned_of() {
    let (tree, _) = tree(TWO_POOLS);
    let mut around = around(None);
    let apart = tree.check(&around);
    assert_eq!((apart.errors.len(), apart.warnings.len()), (0, 1));
    assert!(apart.warnings[0]
        .starts_with("PoolUser of <ServerPool b> at pools.conf:5: uid 1001 is that of <ServerPool a> too"));
    around.frontend_uid = 1001;
    let all = tree.check(&around);
    assert_eq!((all.errors.len(), all.warnings.len()), (0, 2));
    assert!(all.warnings[0].contains("uid 1001 is that of the frontends (User)"));
}

#[test]
fn without_root_only_ones_own_id_is_had() {
    let (tree, _) = tree(TWO_POOLS);
    let errors = |own| tree.check(&around(Some(own))).errors;
    assert_eq!(errors((1001, 1001)), Vec::<String>::new());
    assert_eq!(errors((1002, 1002)).len(), 2);
    assert!(errors((1002, 1002))[0].starts_with("PoolUser #1001 (alice) of <ServerPool a>"));
    assert!(errors((1001, 1))[0].starts_with("PoolGroup #1001 of <ServerPool a>"));
}

#[test]
fn assignment_needs_a_known_pool_with_a_user() {
    let (tree, _) = tree(TWO_POOLS);
    assert_eq!(tree.assignable("a"), Ok(2));
    assert_eq!(
        tree.assignable("A"),
        Err("AssignServerPool A: there is no such pool; known are p, a, b; correct the name, or define the pool with \
             <ServerPool A>"
            .into())
    );
    assert_eq!(
        tree.assignable("p"),
        Err("AssignServerPool p: the pool has no PoolUser (a pool does not inherit its parent's); add PoolUser to \
             <ServerPool p> at pools.conf:1"
            .into())
    );
    assert!(tree.assignable("root").is_err());
    assert!(PoolTree::default().assignable("x").is_err_and(|e| e.contains("no pool is defined; define it")));
}

#[test]
fn the_table_has_what_the_controller_needs() {
    let (tree, _) = tree(TWO_POOLS);
    let table = tree.to_table(3, 33, vec![b"apache2".to_vec()]);
    assert_eq!((table.generation, table.frontend_uid), (3, 33));
    let rows: Vec<_> = table.pools.iter().map(|row| (row.name.as_str(), row.parent, row.uid)).collect();
    assert_eq!(
        rows,
        [("root", None, None), ("p", Some(0), None), ("a", Some(1), Some(1001)), ("b", Some(1), Some(1001))]
    );
    assert_eq!(table.pools[2].idle_timeout_ms, 30_000);
}

#[test]
fn module_roles_are_kept_by_file_name() {
    let (tree, _) = tree(
        "PoolModuleRole mod_x.c frontend
        PoolModuleRole mod_y.c BOTH
        PoolModuleRole mod_x.c worker",
    );
    assert_eq!(tree.module_role("mod_x.c"), Some(ModuleRole::Worker));
    assert_eq!(tree.module_role("mod_y.c"), Some(ModuleRole::Both));
    assert_eq!(tree.module_role("mod_z.c"), None);
    assert_eq!(tree.module_roles().len(), 2);
}

fn ssl(lines: &[&str]) -> SslDirRecord {
    let mut record = SslDirRecord::default();
    for line in lines {
        record.options(line.split_whitespace());
    }
    record
}

/// The letters of the options that hold: s, e, f, r.
fn letters(record: SslDirRecord) -> String {
    let options = record.effective();
    [
        ('s', options.std_env_vars),
        ('e', options.export_cert_data),
        ('f', options.fake_basic_auth),
        ('r', options.strict_require),
    ]
    .iter()
    .filter(|(_, on)| *on)
    .map(|(letter, _)| letter)
    .collect()
}

/// As ssl_cmd_SSLOptions and ssl_config_perdir_merge do it, oddities included.
#[test]
fn ssl_options_merge_as_in_mod_ssl() {
    let table: [(&[&str], &[&str], &str); 9] = [
        (&[], &[], ""),
        (&["+StdEnvVars"], &[], "s"),
        (&["+StdEnvVars"], &["+ExportCertData"], "se"),
        (&["+StdEnvVars +StrictRequire"], &["-StdEnvVars"], "r"),
        (&["+StdEnvVars"], &["StrictRequire"], "r"),
        // Without a sign the last word wins alone.
        (&["StdEnvVars ExportCertData"], &[], "e"),
        (&["StdEnvVars"], &["+FakeBasicAuth"], "sf"),
        (&["StdEnvVars"], &["-StdEnvVars +StdEnvVars"], "s"),
        (&["+StdEnvVars"], &["OptRenegotiate"], ""),
    ];
    for (outer, inner, holds) in table {
        let merged = ssl(outer).merged(ssl(inner));
        assert_eq!(letters(merged), holds, "{outer:?} {inner:?}");
    }
}

#[test]
fn ssl_requirements_add_up() {
    let mut outer = SslDirRecord::default();
    outer.require();
    let mut inner = SslDirRecord::default();
    inner.verify(b"SSLVerifyClient", b"require");
    let merged = outer.merged(inner).effective();
    assert!(merged.ssl_require && merged.ssl_verify_in_dir && !merged.ssl_expression);
    outer.require_expression(b"1 == 1");
    assert!(outer.merged(SslDirRecord::default()).effective().ssl_expression);
    assert!(!outer.effective().ssl_verify_in_dir);
}

#[test]
fn equal_demands_on_a_session_have_equal_numbers() {
    let demand = |list: &[(&str, &str)]| {
        let mut record = SslDirRecord::default();
        list.iter().for_each(|(name, value)| record.verify(name.as_bytes(), value.as_bytes()));
        record
    };
    let number = |record: SslDirRecord| record.effective().demands;
    let none = SslDirRecord::default();
    let member = demand(&[("SSLVerifyClient", "require")]);
    assert_eq!((number(none), number(none.merged(none))), (0, 0));
    assert_eq!(number(member), number(demand(&[("sslverifyclient", "require")])));
    assert_eq!(number(member), number(none.merged(member)));
    assert_eq!(number(member), number(member.merged(none)));
    let others = [
        none,
        demand(&[("SSLVerifyClient", "optional")]),
        demand(&[("SSLVerifyClient", "require"), ("SSLVerifyDepth", "1")]),
        demand(&[("SSLVerifyClient", "optional")]).merged(member),
        member.merged(member),
    ];
    assert!(others.iter().all(|other| number(*other) != number(member)));
}

#[test]
fn the_pool_default_is_made_or_found() {
    let www = Identity { uid: 33, gid: 33, user_name: Some("www-data".into()) };
    let around = around(None);
    let completed = |text: &str, serves: bool| {
        let mut builder = read(text).expect("this configuration is accepted");
        builder.complete_default(serves, www.clone()).expect("an unprivileged user");
        let (tree, mut findings) = builder.finish();
        findings.append(tree.check(&around));
        (tree, findings)
    };

    let (tree, findings) = completed("", false);
    assert!(tree.is_empty() && tree.unassigned().is_none() && findings == Findings::default());

    let (tree, findings) = completed("", true);
    assert_eq!((tree.unassigned(), tree.find(DEFAULT_POOL)), (Some(1), Some(1)));
    let made = pool(&tree, DEFAULT_POOL);
    assert_eq!((made.user.as_ref(), made.limits.max_processes), (Some(&www), DEFAULT_POOL_OF_ALL_MAX_PROCESSES));
    assert_eq!((findings.errors.len(), findings.warnings.len()), (0, 1));
    assert!(findings.warnings[0].contains("<ServerPool default>: serves what is assigned to no pool"), "{findings:?}");
    assert!(findings.warnings[0].contains("give it a user of its own"), "{findings:?}");

    let own = "<ServerPool default>\nPoolUser alice\nPoolMaxProcesses 3\n</ServerPool>";
    for serves in [false, true] {
        let (tree, findings) = completed(own, serves);
        assert_eq!((tree.unassigned(), findings), (serves.then_some(1), Findings::default()));
        let found = pool(&tree, DEFAULT_POOL);
        assert_eq!((found.user.as_ref().map(|u| u.uid), found.limits.max_processes), (Some(1001), 3));
    }

    let (tree, findings) = completed("<ServerPool default>\nPoolMaxProcesses 3\n</ServerPool>", true);
    assert_eq!((pool(&tree, DEFAULT_POOL).user.as_ref(), findings.warnings.len()), (Some(&www), 1));
}

#[test]
fn the_pool_default_does_not_run_as_root_or_nobody_known() {
    for (uid, gid, said) in [(0, 33, "User #0:"), (33, 0, "Group #0:"), (u32::MAX, 33, "User #-1:")] {
        let borrowed = Identity { uid, gid, user_name: None };
        let error = PoolTreeBuilder::default().complete_default(true, borrowed.clone()).expect_err("refused");
        assert!(error.starts_with(said) && error.contains("declare <ServerPool default>"), "{error}");
        assert_eq!(PoolTreeBuilder::default().complete_default(false, borrowed), Ok(()));
    }
}

#[test]
fn a_pool_with_roots_group_is_refused_and_groups_of_others_are_told() {
    let (tree, _) = tree(
        "<ServerPool a>\nPoolUser alice\n</ServerPool>\n<ServerPool b>\nPoolUser bob\n</ServerPool>\n\
         <ServerPool c>\nPoolUser #1005\nPoolGroup www\n</ServerPool>",
    );
    let findings =
        |of: fn(&str) -> Vec<u32>| tree.check_groups(33, |name, user| Some(Ok([vec![user.gid], of(name)].concat())));
    assert_eq!(findings(|_| Vec::new()), Findings::default());
    assert_eq!(findings(|_| vec![4, 5]), Findings::default(), "groups of nobody here");
    let root = findings(|name| if name == "bob" { vec![0] } else { Vec::new() });
    assert!(root.warnings.is_empty() && root.errors.len() == 1);
    assert!(root.errors[0].starts_with("PoolUser bob of <ServerPool b> at pools.conf:"), "{}", root.errors[0]);
    let others = findings(|name| if name == "bob" { vec![1001, 33] } else { vec![33] });
    assert!(others.errors.is_empty() && others.warnings.len() == 3, "{others:?}");
    assert!(others.warnings[0].contains("pools a, b are members of group 33, which is that of the frontends"));
    assert!(others.warnings[1].contains("pools a, b are members of group 33, which is the group of the pools c"));
    assert!(others.warnings[2].contains("pools b are members of group 1001, which is the group of the pools a"));
    let slow = tree.check_groups(33, |_, _| None);
    assert!(slow.warnings.len() == 1 && slow.warnings[0].starts_with("<ServerPool a> and 1 more"), "{slow:?}");
    let broken = tree.check_groups(33, |_, _| Some(Err(io::Error::other("no answer"))));
    assert!(broken.errors.is_empty() && broken.warnings.len() == 2, "{broken:?}");
}

#[test]
fn more_pools_than_the_controller_takes_are_refused() {
    let pools = |n: usize| -> String {
        (0..n).map(|i| format!("<ServerPool p{i}>\nPoolUser #{0}\nPoolGroup #{0}\n</ServerPool>\n", i + 2000)).collect()
    };
    let most = crate::wire::control::MAX_POOLS - 1;
    let (tree_of_most, _) = tree(&pools(most));
    assert_eq!(tree_of_most.check(&around(None)).errors, Vec::<String>::new());
    assert!(crate::wire::control::PoolTable::decode(&tree_of_most.to_table(1, 33, vec![b"httpd".to_vec()]).encode())
        .is_ok());
    let errors = tree(&pools(most + 1)).0.check(&around(None)).errors;
    assert!(errors.len() == 1 && errors[0].starts_with("<ServerPool p65535> at pools.conf:"), "{errors:?}");
}
