//! What an administrator typed: lines of a configuration, the directive by its first byte. A value may be refused, with a
//! sentence that names it and the remedy, and then leaves no trace; what is accepted makes a tree within its limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mod_pool::settings::{
    Account, Accounts, DirectiveAt, LoggedNames, Place, PoolTree, PoolTreeBuilder, SslDirRecord, Surroundings, ROOT,
};
use mod_pool::wire::control::PoolTable;
use std::collections::HashSet;
use std::io;
use std::time::Duration;

/// root, alice, and ops whose primary group is root's; a database that does not answer for "ldap".
struct FewAccounts;

impl Accounts for FewAccounts {
    fn user_by_name(&self, name: &str) -> io::Result<Option<Account>> {
        match name {
            "root" => self.user_by_uid(0),
            "alice" => self.user_by_uid(1001),
            "ops" => self.user_by_uid(1003),
            "ldap" => Err(io::Error::other("no answer")),
            _ => Ok(None),
        }
    }

    fn user_by_uid(&self, uid: u32) -> io::Result<Option<Account>> {
        let account = |name: &str, gid| Some(Account { name: name.into(), uid, gid });
        Ok(match uid {
            0 => account("root", 0),
            1001 => account("alice", 1001),
            1003 => account("ops", 0),
            _ => None,
        })
    }

    fn group_by_name(&self, name: &str) -> io::Result<Option<u32>> {
        Ok(["root", "alice"].iter().zip([0, 1001]).find(|(known, _)| **known == name).map(|(_, gid)| gid))
    }
}

fn is_name(text: &str, others: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

fn check(tree: &PoolTree) {
    let mut names = HashSet::new();
    for (index, pool) in tree.pools().iter().enumerate() {
        let limits = &pool.limits;
        assert!((1..=32_768).contains(&limits.max_processes));
        // What the root pool has is only the default of its sub pools.
        assert!(pool.parent.is_none() || limits.min_spare <= limits.max_processes);
        assert!(limits.max_requests <= 1_000_000_000 && limits.queue_limit <= 100_000);
        assert!((Duration::from_millis(100)..=Duration::from_secs(7 * 24 * 3600)).contains(&limits.idle_timeout));
        assert!((Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&limits.queue_timeout));
        assert!(pool.umask.is_none_or(|mask| mask <= 0o777));
        let mut variables = HashSet::new();
        for (name, _) in &pool.env {
            assert!(is_name(name, "_") && !name.starts_with(|c: char| c.is_ascii_digit()) && variables.insert(name));
        }
        if let Some(user) = &pool.user {
            assert!(![0, u32::MAX].contains(&user.uid) && ![0, u32::MAX].contains(&user.gid));
        }
        assert!(names.insert(&pool.name));
        match pool.parent {
            None => assert_eq!((index, tree.find(&pool.name)), (0, None)),
            Some(parent) => {
                let index = u32::try_from(index).expect("a short input");
                assert!(parent < index && pool.name.len() <= 64 && is_name(&pool.name, "._-"));
                assert_eq!(tree.find(&pool.name), Some(index));
                let serves = pool.user.is_some() || pool.out_of_service.is_some();
                assert_eq!(tree.assignable(&pool.name).is_ok(), serves);
            }
        }
    }
    assert!(tree.assignable("root").is_err() && tree.assignable("none").is_err());
    // The controller takes whatever an administrator may write.
    let table = tree.to_table(1, 33, vec![b"apache2".to_vec()]);
    assert_eq!(PoolTable::decode(&table.encode()), Ok(table));
    let place = Place { file: "fuzz.conf".into(), line: 1 };
    let chroot = DirectiveAt { name: "ChrootDir".into(), value: "/srv".into(), place };
    for (unprivileged, chroot) in [(None, None), (Some((1001, 1001)), Some(chroot))] {
        let (core_dumps, something_unassigned) = (chroot.is_some(), chroot.is_none());
        let found =
            tree.check(&Surroundings { unprivileged, frontend_uid: 33, chroot, core_dumps, something_unassigned });
        assert!(found.errors.iter().chain(&found.warnings).all(|text| text.contains("; ")));
    }
}

fuzz_target!(|text: &str| {
    let mut builder = PoolTreeBuilder::default();
    let (mut logged, mut ssl) = (LoggedNames::default(), SslDirRecord::default());
    for (line, directive) in text.lines().enumerate() {
        let Some(kind) = directive.chars().next() else { continue };
        let value = &directive[kind.len_utf8()..];
        let (first, rest) = value.split_once(' ').unwrap_or((value, ""));
        let before = builder.finish();
        let place = Place { file: "fuzz.conf".into(), line: u32::try_from(line).expect("a short input") };
        let set = match kind {
            '<' => builder.open(value, place),
            '>' => {
                // A pool whose user and group do not fit is refused when its block is closed, and httpd stops there.
                if let Err(error) = builder.close() {
                    assert!(error.contains("; "), "{error}");
                    break;
                }
                continue;
            }
            'u' => builder.set_user(value, &FewAccounts),
            'g' => builder.set_group(value, &FewAccounts),
            'p' => builder.set_max_processes(value),
            's' => builder.set_min_spare(value),
            'i' => builder.set_idle_timeout(value),
            'r' => builder.set_max_requests(value),
            't' => builder.set_queue_timeout(value),
            'q' => builder.set_queue_limit(value),
            'e' => builder.set_env(first, rest),
            'm' => builder.set_umask(value),
            'o' => builder.set_module_role(first, rest, None),
            'l' => {
                logged.learn(b"CustomLog", value.as_bytes());
                continue;
            }
            'x' => {
                let mut inner = SslDirRecord::default();
                inner.options(value.split_ascii_whitespace());
                ssl = ssl.merged(inner);
                // Merging what is there already changes nothing.
                assert_eq!(ssl.merged(SslDirRecord::default()), ssl);
                continue;
            }
            _ => continue,
        };
        if let Err(error) = set {
            let named = if "eo".contains(kind) { first } else { value };
            assert!(error.contains(named) && error.contains("; "), "{error}");
            assert_eq!(builder.finish(), before);
        }
    }
    let (tree, findings) = builder.finish();
    assert_eq!(tree.pools()[0].parent, None);
    assert!(tree.get(ROOT).is_some());
    if findings.errors.is_empty() && builder.open_pool().is_none() {
        check(&tree);
    }
});
