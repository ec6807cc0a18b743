//! What arrives on a data socket, decoded as the frontend and the worker do: it may be refused, nothing else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mod_pool::wire::frame::{frames, put_frame, FrameKind};
use mod_pool::wire::request::Request;
use mod_pool::wire::response::{decode_trailers, Abort, FileRange, LogLine, Meta, ResponseEnd, ResponseHead};

fuzz_target!(|message: &[u8]| {
    let mut whole = true;
    let mut again = Vec::new();
    for frame in frames(message) {
        let Ok(frame) = frame else {
            whole = false;
            break;
        };
        put_frame(&mut again, frame.kind, frame.flags, frame.exchange, |out| out.extend_from_slice(frame.payload));
        let payload = frame.payload;
        match frame.kind {
            FrameKind::Request => {
                if let Ok(request) = Request::decode(payload) {
                    let pairs = [request.headers, request.env, request.tls];
                    let listed: usize = pairs.iter().map(|list| list.iter().count()).sum();
                    assert_eq!(listed, pairs.iter().map(|list| list.len()).sum::<usize>());
                }
            }
            FrameKind::Head => drop(ResponseHead::decode_final(payload)),
            FrameKind::Interim => drop(ResponseHead::decode_interim(payload)),
            FrameKind::File => {
                if let Ok(range) = FileRange::decode(payload) {
                    let mut bytes = Vec::new();
                    range.encode(&mut bytes);
                    assert_eq!(bytes, payload);
                }
            }
            FrameKind::Meta => drop(Meta::decode(payload)),
            FrameKind::BodyEnd => drop(decode_trailers(payload)),
            FrameKind::End => drop(ResponseEnd::decode(payload)),
            FrameKind::Log => drop(LogLine::decode(payload)),
            FrameKind::Abort => drop(Abort::decode(payload)),
            FrameKind::Body | FrameKind::BodyAbort | FrameKind::ClientGone | FrameKind::Data | FrameKind::NeedBody => {}
        }
    }
    // Frames have one encoding only.
    if whole {
        assert_eq!(again, message);
    }
});
