//! Each control message survives the round trip; no truncation, no addition and no changed byte is a panic.

use super::*;
use crate::wire::codec::Malformed;

/// Round trip, every truncation, one byte too many, every single byte changed.
fn check<T: PartialEq + std::fmt::Debug>(value: &T, bytes: &[u8], decode: fn(&[u8]) -> Result<T, Malformed>) {
    assert_eq!(decode(bytes).as_ref(), Ok(value));
    for end in 0..bytes.len() {
        assert!(decode(&bytes[..end]).is_err(), "{value:?} cut at {end}");
    }
    let mut long = bytes.to_vec();
    long.push(0);
    assert!(decode(&long).is_err(), "{value:?} with a byte more");
    for at in 0..bytes.len() {
        for to in [0, 1, 0x7f, 0x80, 0xff] {
            let mut changed = bytes.to_vec();
            changed[at] = to;
            let _ = decode(&changed);
        }
    }
    let mut unknown = bytes.to_vec();
    unknown[0] = 0xee;
    assert!(decode(&unknown).is_err(), "{value:?} of unknown kind");
}

fn row(name: &str, parent: Option<u32>) -> PoolRow {
    PoolRow {
        name: name.into(),
        parent,
        uid: parent.map(|_| 1001),
        max_processes: 8,
        min_spare: 1,
        idle_timeout_ms: 30_000,
        queue_timeout_ms: 5_000,
        queue_limit: 100,
        kill_grace_ms: 5_000,
    }
}

fn table() -> PoolTable {
    PoolTable {
        generation: 3,
        frontend_uid: 33,
        seed_argv: vec![b"/usr/sbin/apache2".to_vec(), b"-k".to_vec(), Vec::new()],
        pools: vec![row("", None), row("hosting", Some(0)), row("alice", Some(1))],
    }
}

#[test]
fn tables() {
    check(&table(), &table().encode(), PoolTable::decode);
}

#[test]
fn tables_that_are_no_tree_are_refused() {
    let refused = |change: fn(&mut PoolTable), field: &'static str| {
        let mut t = table();
        change(&mut t);
        assert_eq!(PoolTable::decode(&t.encode()), Err(Malformed::Field(field)));
    };
    refused(|t| t.pools.clear(), "pools");
    refused(|t| t.pools[1].parent = Some(1), "parent");
    refused(|t| t.pools[1].parent = Some(2), "parent");
    refused(|t| t.pools[2].parent = None, "parent");
    refused(|t| t.pools[0].parent = Some(0), "parent");
    refused(|t| t.pools[2].name = "hosting".into(), "pool name");
    refused(|t| t.pools[2].name = String::new(), "pool name");
    refused(|t| t.pools[2].name = "a\nb".into(), "pool name");
    refused(|t| t.pools[2].uid = Some(u32::MAX), "uid");
    refused(|t| t.pools[2].max_processes = 0, "max_processes");
    refused(|t| t.pools[2].max_processes = MAX_PROCESSES + 1, "max_processes");
    refused(|t| t.pools[2].min_spare = 9, "min_spare");
    refused(|t| t.pools[2].idle_timeout_ms = MAX_TIMEOUT_MS + 1, "timeout");
    refused(|t| t.seed_argv.clear(), "seed_argv");
    refused(|t| t.seed_argv[0] = b"a\0b".to_vec(), "seed_argv");
}

#[test]
fn a_table_of_another_version_is_refused() {
    let mut bytes = table().encode();
    bytes[1] = 99;
    assert_eq!(PoolTable::decode(&bytes), Err(Malformed::Field("version")));
}

#[test]
fn parent_messages() {
    for m in [
        ParentMessage::Configure { generation: 7, older: false },
        ParentMessage::Configure { generation: 7, older: true },
        ParentMessage::ChildStarted { pid: 4711, generation: 1 << 40 },
        ParentMessage::ChildGone { pid: 4711 },
        ParentMessage::Ping,
        ParentMessage::Discard,
        ParentMessage::Begin { keeper: 4711 },
        ParentMessage::Syslog { facility: 23, ident: b"httpd".to_vec() },
        ParentMessage::OlderKeeper { pid: 4711 },
        ParentMessage::Stop,
    ] {
        check(&m, &m.encode(), ParentMessage::decode);
        let m = ConnectorMessage::Parent(m);
        check(&m, &m.encode(), ConnectorMessage::decode);
    }
}

fn hello(entries: usize) -> Hello {
    Hello {
        version: CONTROL_VERSION,
        build_id: u64::MAX - 1,
        generation: 2,
        in_flight: vec![InFlight { pid: 99, pool: "alice".into() }; entries],
    }
}

#[test]
fn hellos() {
    for entries in [0, 1, 3] {
        let h = hello(entries);
        check(&h, &h.encode(), Hello::decode);
        let h = ConnectorMessage::Hello(h);
        check(&h, &h.encode(), ConnectorMessage::decode);
    }
}

#[test]
fn a_hello_never_exceeds_a_control_message() {
    let bytes = hello(5000).encode();
    assert!(bytes.len() <= MAX_CONTROL_MESSAGE);
    let read = Hello::decode(&bytes).expect("whole entries only");
    assert!(read.in_flight.len() > 700);
    assert!(read.may_lack_some());
    assert!(!hello(600).may_lack_some());
}

#[test]
fn a_hello_of_another_version_is_refused() {
    let mut h = hello(0);
    h.version = CONTROL_VERSION + 1;
    assert_eq!(Hello::decode(&h.encode()), Err(Malformed::Field("version")));
}

#[test]
fn frontend_messages() {
    let (lease, lend) = (LeaseId(1 << 40), LendCount(9));
    let mut all = vec![
        FrontendMessage::Want { want: WantId(1), pool: 2, arrived: Arrival(1 << 50) },
        FrontendMessage::Cancel { want: WantId(3) },
    ];
    all.push(FrontendMessage::Discard { pool: 2 });
    all.extend(
        [
            Returned::Idle,
            Returned::Last,
            Returned::Abandoned,
            Returned::Dead,
            Returned::Violation,
            Returned::TimedOut,
            Returned::Expired,
        ]
        .map(|how| FrontendMessage::Return { lease, lend, how }),
    );
    for m in &all {
        check(m, &m.encode(), FrontendMessage::decode);
    }
}

#[test]
fn controller_messages() {
    let (lease, lend, pid) = (LeaseId(5), LendCount(1), 4711);
    let mut all = vec![
        ControllerMessage::Recall { lease, lend },
        ControllerMessage::Obituary { lease, lend, pid, wait_status: 9 },
        ControllerMessage::Log { pool: 3, pid, line: b"PHP Warning: \xff".to_vec() },
    ];
    for queued in
        [Queued::Nobody, Queued::Here, Queued::Elsewhere(Arrival(1)), Queued::Elsewhere(Arrival(u64::MAX - 1))]
    {
        all.push(ControllerMessage::Grant { want: WantId(1), pool: 3, lease, lend, pid, cold: true, queued });
        all.push(ControllerMessage::Contended { pool: 3, queued });
    }
    all.extend(
        [Refusal::QueueFull, Refusal::QueueTimeout, Refusal::Throttled, Refusal::NoPool, Refusal::Stopping].map(
            |reason| ControllerMessage::Refuse {
                want: WantId(2),
                reason,
                retry_after_s: 4,
                text: "setuid: Operation not permitted".into(),
            },
        ),
    );
    for m in &all {
        check(m, &m.encode(), ControllerMessage::decode);
    }
}

#[test]
fn orders_and_reports() {
    let m = SeedOrder::StartZygote { request: 1, pool: "alice".into() };
    check(&m, &m.encode(), SeedOrder::decode);
    let text = String::from("php.ini is not readable");
    for m in [
        SeedReport::Ready { version: CONTROL_VERSION, build_id: 77 },
        SeedReport::ZygoteStarted { request: 1, pid: 2 },
        SeedReport::Failed { request: 1, text: text.clone() },
    ] {
        check(&m, &m.encode(), SeedReport::decode);
    }
    let m = ZygoteOrder::Fork { request: 6 };
    check(&m, &m.encode(), ZygoteOrder::decode);
    for m in [ZygoteReport::Ready, ZygoteReport::Forked { request: 6, pid: 8 }, ZygoteReport::Failed { text }] {
        check(&m, &m.encode(), ZygoteReport::decode);
    }
}

#[test]
fn values_out_of_range_are_refused() {
    let m = ZygoteReport::Forked { request: 1, pid: 0 };
    assert_eq!(ZygoteReport::decode(&m.encode()), Err(Malformed::Field("pid")));
    let m = ParentMessage::ChildStarted { pid: u32::MAX, generation: 1 };
    assert_eq!(ParentMessage::decode(&m.encode()), Err(Malformed::Field("pid")));
    let mut bytes = ParentMessage::Configure { generation: 1, older: true }.encode();
    bytes[9] = 2;
    assert_eq!(ParentMessage::decode(&bytes), Err(Malformed::Field("older")));
    let (lease, lend, queued) = (LeaseId(5), LendCount(1), Queued::Nobody);
    let mut bytes =
        ControllerMessage::Grant { want: WantId(1), pool: 3, lease, lend, pid: 9, cold: true, queued }.encode();
    bytes[25] = 2;
    assert_eq!(ControllerMessage::decode(&bytes), Err(Malformed::Field("cold")));
}

#[test]
fn long_texts_are_cut_between_characters() {
    let m = ZygoteReport::Failed { text: "ä".repeat(400) };
    let ZygoteReport::Failed { text } = ZygoteReport::decode(&m.encode()).expect("cut, not broken") else {
        panic!("another kind");
    };
    assert_eq!(text, "ä".repeat(250));
}
