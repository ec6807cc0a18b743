//! What arrives on a connector: that of httpd's parent, or that of one child of the MPM.
//!
//! Runs in: parent, controller, seed, zygote, frontend.  Trusts: nothing it decodes.  Owns: the layout of the parent's messages and of a frontend's hello.
//! Never: reads a socket, panics on any input, allocates by a length that a peer sent.

use super::{field, CONTROL_VERSION, MAX_CONTROL_MESSAGE, MAX_POOL_NAME};
use crate::wire::codec::{Malformed, Put, Reader};

/// On its own connector, from httpd's parent (proven by `SCM_CREDENTIALS`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParentMessage {
    /// A configuration was read. With it: fd of a sealed memfd with the encoded [`PoolTable`](super::PoolTable), then the fd of the
    /// error log (the controller's new standard error), then perhaps one that is closed when the seed is ready or dead.
    /// An older one is told to a controller that took over: it only serves frontends that are there already.
    Configure { generation: u64, older: bool },
    /// httpd's `child_status` hook said that this child of the parent started, forked under this configuration: it may
    /// say hello. With it: the controller's end of the child's connector.
    ChildStarted { pid: u32, generation: u64 },
    /// The child is gone.
    ChildGone { pid: u32 },
    /// End every process of every pool, then exit.
    Stop,
    /// Means nothing. Whether it was received, the parent sees at its own end of the connector.
    Ping,
    /// A connector comes with it that a process may have filled which is no child of the MPM: to be closed.
    Discard,
    /// What the parent says from here on is for the controller that is a child of this process, its keeper. What lies in
    /// the connector before it was for one that died without having read it.
    Begin { keeper: u32 },
    /// The error log of the configuration that is told next is syslog: the controller's lines go there, under this name.
    /// Without a name they go to its standard error.
    Syslog { facility: u8, ident: Vec<u8> },
    /// The keeper with this pid is that of a controller that has died, or that was killed and does not end: what is below
    /// it is left to the controller that is told.
    OlderKeeper { pid: u32 },
}

/// On its connector, from a frontend. With it: the controller's end of the frontend's own channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    pub version: u16,
    /// Identifies the build of the module (see `entry::build_id`).
    pub build_id: u64,
    /// Generation of the configuration that this frontend has read.
    pub generation: u64,
    /// Leases it got from a controller that has died since and that still carry a request.
    pub in_flight: Vec<InFlight>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InFlight {
    pub pid: u32,
    pub pool: String,
}

/// All that may arrive on a connector. Who may say what is decided by the sender's credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectorMessage {
    /// Counts only from the parent's own process.
    Parent(ParentMessage),
    /// Counts only from an announced child.
    Hello(Hello),
}

const CONFIGURE: u8 = 1;
const CHILD_STARTED: u8 = 2;
const CHILD_GONE: u8 = 3;
const STOP: u8 = 4;
const HELLO: u8 = 5;
const PING: u8 = 6;
const DISCARD: u8 = 7;
const BEGIN: u8 = 8;
const SYSLOG: u8 = 9;
const OLDER_KEEPER: u8 = 10;

/// The one message that goes the other way on a child's connector: the parent has started another controller, and the
/// one before, which does not end, closes no channel.
pub const ANOTHER_CONTROLLER: &[u8] = &[11];

impl ConnectorMessage {
    /// The message as bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Parent(message) => message.encode(),
            Self::Hello(hello) => hello.encode(),
        }
    }

    /// Reads either kind of message.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        match bytes.first() {
            Some(&HELLO) => Hello::decode(bytes).map(Self::Hello),
            _ => ParentMessage::decode(bytes).map(Self::Parent),
        }
    }
}

impl ParentMessage {
    /// The message as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Configure { generation, older } => {
                out.put_u8(CONFIGURE);
                out.put_u64(*generation);
                out.put_u8(u8::from(*older));
            }
            Self::ChildStarted { pid, generation } => {
                out.put_u8(CHILD_STARTED);
                out.put_u32(*pid);
                out.put_u64(*generation);
            }
            Self::ChildGone { pid } => {
                out.put_u8(CHILD_GONE);
                out.put_u32(*pid);
            }
            Self::Stop => out.put_u8(STOP),
            Self::Ping => out.put_u8(PING),
            Self::Discard => out.put_u8(DISCARD),
            Self::Begin { keeper } => {
                out.put_u8(BEGIN);
                out.put_u32(*keeper);
            }
            Self::Syslog { facility, ident } => {
                out.put_u8(SYSLOG);
                out.put_u8(*facility);
                out.put_short(ident);
            }
            Self::OlderKeeper { pid } => {
                out.put_u8(OLDER_KEEPER);
                out.put_u32(*pid);
            }
        }
        out
    }

    /// Reads one message.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        field::message(bytes, |kind, r| {
            Ok(match kind {
                CONFIGURE => Self::Configure { generation: r.u64()?, older: field::boolean(r, "older")? },
                CHILD_STARTED => Self::ChildStarted { pid: field::pid(r)?, generation: r.u64()? },
                CHILD_GONE => Self::ChildGone { pid: field::pid(r)? },
                STOP => Self::Stop,
                PING => Self::Ping,
                DISCARD => Self::Discard,
                BEGIN => Self::Begin { keeper: field::pid(r)? },
                SYSLOG => Self::Syslog { facility: r.u8()?, ident: r.short()?.to_vec() },
                OLDER_KEEPER => Self::OlderKeeper { pid: field::pid(r)? },
                _ => return Err(Malformed::Field("kind")),
            })
        })
    }
}

impl Hello {
    /// The message as bytes. What is in flight beyond [`MAX_CONTROL_MESSAGE`] is left out: the caps are then
    /// accounted a little low until those workers end, and the controller ends nothing that it takes for left behind.
    pub fn encode(&self) -> Vec<u8> {
        let mut list = Vec::new();
        let mut count: u16 = 0;
        let fixed = 1 + 2 + 8 + 8 + 2;
        for entry in &self.in_flight {
            let before = list.len();
            list.put_u32(entry.pid);
            field::put_name(&mut list, &entry.pool);
            if fixed + list.len() > MAX_CONTROL_MESSAGE {
                list.truncate(before);
                break;
            }
            count += 1;
        }
        let mut out = Vec::new();
        out.put_u8(HELLO);
        out.put_u16(self.version);
        out.put_u64(self.build_id);
        out.put_u64(self.generation);
        out.put_u16(count);
        out.put(&list);
        out
    }

    /// Whether more may have been in flight than its list names.
    pub fn may_lack_some(&self) -> bool {
        const LONGEST: usize = 4 + 2 + MAX_POOL_NAME;
        self.encode().len() + LONGEST > MAX_CONTROL_MESSAGE
    }

    /// Reads one message; another version than [`CONTROL_VERSION`] is an error.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        if r.u8()? != HELLO {
            return Err(Malformed::Field("kind"));
        }
        let version = r.u16()?;
        if version != CONTROL_VERSION {
            return Err(Malformed::Field("version"));
        }
        let build_id = r.u64()?;
        let generation = r.u64()?;
        let count = r.u16()?;
        let mut in_flight = Vec::new();
        for _ in 0..count {
            in_flight.push(InFlight { pid: field::pid(&mut r)?, pool: field::name(&mut r, false)? });
        }
        r.finish()?;
        Ok(Self { version, build_id, generation, in_flight })
    }
}
