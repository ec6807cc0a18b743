//! The seed, zygote and worker of these tests: they speak the protocol, and misbehave on request.

use crate::hostile::{self, Attack, Order};
use mod_pool::sys::fork::{exit_now, fork_as_sibling, Forked};
use mod_pool::sys::privileges;
use mod_pool::sys::socket::{self, Blocking};
use mod_pool::wire::control::{SeedOrder, SeedReport, ZygoteOrder, ZygoteReport, CONTROL_VERSION, MAX_CONTROL_MESSAGE};
use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

/// Build of the fake module.
pub const BUILD: u64 = 0x5eed;

/// What a seed's children do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    Good,
    FailsToStart,
    StartsSlowly,
    TellsForgedPids,
    /// The zygote of alice is in an attacker's hands.
    Hostile(&'static str),
}

impl Behaviour {
    pub fn argv(self, uid: u32) -> Vec<Vec<u8>> {
        let name = match self {
            Self::Hostile(attack) => attack.into(),
            other => format!("{other:?}"),
        };
        ["seed", "fake-seed", &name, &uid.to_string()].map(|a| a.as_bytes().to_vec()).to_vec()
    }
}

fn receive(fd: &OwnedFd) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut buf = [0; MAX_CONTROL_MESSAGE];
    match socket::receive(fd.as_fd(), &mut buf, Blocking::Yes) {
        Ok(got) if got.len > 0 => (buf[..got.len].to_vec(), got.fds),
        _ => exit_now(0),
    }
}

fn send(fd: &OwnedFd, bytes: &[u8]) {
    if socket::send(fd.as_fd(), bytes, &[], Blocking::Yes).is_err() {
        exit_now(0);
    }
}

pub fn become_seed(args: &[String]) -> ! {
    let behaviour = args[0].clone();
    let uid: u32 = args[1].parse().expect("uid");
    // SAFETY: the controller starts a seed with its channel as descriptor 3.
    let channel = unsafe { OwnedFd::from_raw_fd(3) };
    send(&channel, &SeedReport::Ready { version: CONTROL_VERSION, build_id: BUILD }.encode());
    loop {
        let (bytes, fds) = receive(&channel);
        let SeedOrder::StartZygote { request, pool } = SeedOrder::decode(&bytes).expect("an order");
        let mut fds = fds.into_iter();
        let (zygote_channel, errors) = (fds.next().expect("channel"), fds.next().expect("errors"));
        match fork_as_sibling().expect("fork") {
            Forked::Child => {
                drop(channel);
                let attack = hostile::attack(&behaviour).filter(|_| pool == "alice");
                become_zygote(&zygote_channel, errors, &behaviour, uid, attack);
            }
            Forked::Parent { child } => {
                send(&channel, &SeedReport::ZygoteStarted { request, pid: child }.encode());
            }
        }
    }
}

fn become_zygote(channel: &OwnedFd, errors: OwnedFd, behaviour: &str, uid: u32, attack: Option<Attack>) -> ! {
    privileges::new_session();
    privileges::duplicate_to(errors.as_fd(), 2).expect("dup2");
    drop(errors);
    if privileges::effective_uid() == 0 {
        privileges::change_user(uid, uid, &[uid]).expect("setuid");
    }
    privileges::no_new_privileges().expect("no_new_privs");
    if behaviour == "FailsToStart" {
        send(channel, &ZygoteReport::Failed { text: "php.ini is not readable".into() }.encode());
        exit_now(1);
    }
    if behaviour == "StartsSlowly" {
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    send(channel, &ZygoteReport::Ready.encode());
    let mut before = 0;
    loop {
        let (bytes, fds) = receive(channel);
        let ZygoteOrder::Fork { request } = ZygoteOrder::decode(&bytes).expect("an order");
        let mut fds = fds.into_iter();
        let (data, errors) = (fds.next().expect("data"), fds.next().expect("errors"));
        if attack.is_some_and(|attack| attack(&Order { channel, request, data: &data, before })) {
            continue;
        }
        before += 1;
        if behaviour == "TellsForgedPids" {
            send(channel, &ZygoteReport::Forked { request, pid: 1 }.encode());
            continue;
        }
        match fork_as_sibling().expect("fork") {
            Forked::Child => {
                privileges::new_session();
                privileges::duplicate_to(errors.as_fd(), 2).expect("dup2");
                drop(errors);
                become_worker(&data);
            }
            Forked::Parent { child } => send(channel, &ZygoteReport::Forked { request, pid: child }.encode()),
        }
    }
}

fn become_worker(data: &OwnedFd) -> ! {
    loop {
        let (bytes, _) = receive(data);
        match bytes.as_slice() {
            b"ping" => send(data, format!("pong {}", std::process::id()).as_bytes()),
            b"crash" => exit_now(7),
            b"ignore the end" => loop {
                std::thread::sleep(std::time::Duration::from_secs(60));
            },
            b"shout" => {
                std::io::stderr().write_all(b"PHP Warning: \x1b[1mboo\n").expect("stderr");
                send(data, b"done");
            }
            b"flood" => {
                for _ in 0..4000 {
                    std::io::stderr().write_all(&[b"0123456789".repeat(10), b"\n".to_vec()].concat()).expect("stderr");
                }
                send(data, b"done");
            }
            b"have yourself traced" => hostile::have_traced(data, false, false),
            b"have your end traced" => hostile::have_traced(data, false, true),
            b"have a thread traced" => hostile::have_traced(data, true, false),
            b"daemon" => {
                let pid = crate::stage::fork(|| {
                    privileges::new_session();
                    std::thread::sleep(std::time::Duration::from_secs(60));
                    true
                });
                send(data, pid.to_string().as_bytes());
            }
            _ => match bytes.strip_prefix(b"load ") {
                Some(address) => load(data, &String::from_utf8_lossy(address)),
                None => exit_now(3),
            },
        }
    }
}

/// When the lease is idle, a lingering socket is left in it, and the worker ends.
fn load(data: &OwnedFd, address: &str) {
    let worker = std::process::id();
    crate::stage::fork(|| {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let full = crate::stage::lingering(address);
        socket::send(data.as_fd(), b"", &[full.as_fd()], Blocking::No).expect("the lease");
        // Before this process closes its own.
        crate::stage::kill(worker);
        true
    });
    send(data, b"soon");
}
