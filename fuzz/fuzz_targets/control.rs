//! What arrives on the controller's sockets, from every side. The first byte says from which; what can be decoded is
//! encoded and decoded again, and is the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mod_pool::wire::control::{
    ConnectorMessage, ControllerMessage, FrontendMessage, Hello, ParentMessage, PoolTable, SeedOrder, SeedReport,
    ZygoteOrder, ZygoteReport, MAX_CONTROL_MESSAGE,
};
use mod_pool::wire::plain_log::PlainLine;

macro_rules! round_trip {
    ($message:ty, $bytes:expr) => {
        if let Ok(message) = <$message>::decode($bytes) {
            assert_eq!(<$message>::decode(&message.encode()), Ok(message));
        }
    };
}

fuzz_target!(|data: &[u8]| {
    let Some((side, bytes)) = data.split_first() else { return };
    if side % 16 == 8 {
        // It comes in a file of its own and may be longer than a message.
        round_trip!(PoolTable, bytes);
    }
    if bytes.len() > MAX_CONTROL_MESSAGE {
        return;
    }
    match side % 16 {
        0 => round_trip!(ParentMessage, bytes),
        1 => round_trip!(Hello, bytes),
        2 => round_trip!(FrontendMessage, bytes),
        3 => round_trip!(ControllerMessage, bytes),
        4 => round_trip!(SeedOrder, bytes),
        5 => round_trip!(SeedReport, bytes),
        6 => round_trip!(ZygoteOrder, bytes),
        7 => round_trip!(ZygoteReport, bytes),
        9 => {
            // A line on a pool's standard error.
            if let Some(line) = PlainLine::decode(bytes) {
                assert_eq!(PlainLine::decode(&line.encode()), Some(line));
            }
        }
        _ => drop(ConnectorMessage::decode(bytes)),
    }
});
