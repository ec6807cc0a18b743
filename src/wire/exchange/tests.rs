//! One test for each rule.
//!
//! Runs in: tests.  Trusts: nothing.  Owns: nothing.  Never: looks at how the checker keeps its state.

use super::*;
use crate::wire::frame::{frames, put_frame, PairsWriter};
use crate::wire::response::{put_response_end, put_response_head};

const EXCHANGE: Exchange = Exchange(7);
const OFF_T_MAX: u64 = (1 << 63) - 1;

fn frame(kind: FrameKind, payload: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    flagged(kind, 0, payload)
}

fn flagged(kind: FrameKind, flags: u8, payload: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    put_frame(&mut out, kind, flags, EXCHANGE, payload);
    out
}

fn head_payload(out: &mut Vec<u8>, status: u16, fields: &[(&str, &str)]) {
    put_response_head(out, status, b"");
    let mut pairs = PairsWriter::new(out);
    for (name, value) in fields {
        pairs.pair(name.as_bytes(), value.as_bytes()).expect("short");
    }
    pairs.finish();
}

fn head(status: u16, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(FrameKind::Head, |out| head_payload(out, status, fields))
}

fn announcing(length: &str) -> Vec<u8> {
    head(200, &[("Content-Length", length)])
}

fn data(n: usize) -> Vec<u8> {
    frame(FrameKind::Data, |out| out.resize(out.len() + n, b'd'))
}

fn file(length: u64) -> Vec<u8> {
    frame(FrameKind::File, |out| FileRange { offset: 0, length }.encode(out))
}

fn interim(status: u16) -> Vec<u8> {
    frame(FrameKind::Interim, |out| head_payload(out, status, &[]))
}

fn meta(user: &[u8]) -> Vec<u8> {
    frame(FrameKind::Meta, |out| meta_payload(out, user))
}

fn meta_payload(out: &mut Vec<u8>, user: &[u8]) {
    Meta { user, ..Meta::default() }.encode_strings(out);
    PairsWriter::new(out).finish();
    PairsWriter::new(out).finish();
}

fn log() -> Vec<u8> {
    frame(FrameKind::Log, |out| {
        LogLine { level: 3, module: b"", source: b"", source_line: 0, status: 0, text: b"x" }.encode(out)
    })
}

fn end() -> Vec<u8> {
    flagged(FrameKind::End, 0, |out| {
        put_response_end(out, 1);
        PairsWriter::new(out).finish();
    })
}

fn abort() -> Vec<u8> {
    use crate::wire::response::AbortReason;
    frame(FrameKind::Abort, |out| Abort { reason: AbortReason::Failed, text: b"why" }.encode(out))
}

fn need_body() -> Vec<u8> {
    frame(FrameKind::NeedBody, |_| {})
}

/// What the last of these frames comes to; those before it are right.
fn last(checker: &mut ResponseChecker, messages: &[Vec<u8>]) -> Result<(), String> {
    let all = messages.concat();
    let mut all: Vec<_> = frames(&all).collect::<Result<_, _>>().expect("frames");
    let last = all.pop().expect("a frame");
    for frame in all {
        assert!(checker.take(&frame).is_ok(), "{frame:?}");
    }
    checker.take(&last).map(drop).map_err(|e| e.to_string())
}

fn checker() -> ResponseChecker {
    ResponseChecker::new(EXCHANGE, false)
}

fn outcome(messages: &[Vec<u8>]) -> Result<(), String> {
    last(&mut checker(), messages)
}

fn refused(messages: &[Vec<u8>]) -> String {
    outcome(messages).expect_err("a violation")
}

#[test]
fn a_response_is_taken() {
    assert_eq!(
        outcome(&[interim(103), need_body(), log(), announcing("12"), data(5), file(7), meta(b"u"), end()]),
        Ok(())
    );
    assert_eq!(outcome(&[head(200, &[]), data(5), file(7), end()]), Ok(()));
    assert_eq!(outcome(&[head(200, &[]), end()]), Ok(()));
}

#[test]
fn there_is_one_head() {
    assert_eq!(refused(&[head(200, &[]), head(404, &[])]), "a second response head");
    assert_eq!(refused(&[announcing("5"), data(5), announcing("6")]), "a second response head");
}

#[test]
fn a_body_stands_behind_its_head() {
    for frame in [data(1), data(0), file(1)] {
        assert_eq!(refused(&[frame]), "a body without a head");
    }
    assert_eq!(refused(&[end()]), "an end without a head");
}

#[test]
fn there_is_no_body_where_none_may_be() {
    for status in [204, 304] {
        assert_eq!(refused(&[head(status, &[]), data(1)]), "a body where there is none");
        assert_eq!(outcome(&[head(status, &[("Content-Length", "5")]), data(0), end()]), Ok(()));
    }
    let mut checker = ResponseChecker::new(EXCHANGE, true);
    assert_eq!(last(&mut checker, &[announcing("5"), file(1)]), Err("a body where there is none".into()));
    let mut checker = ResponseChecker::new(EXCHANGE, true);
    assert_eq!(last(&mut checker, &[announcing("5"), end()]), Ok(()));
}

#[test]
fn a_body_is_as_long_as_was_announced() {
    assert_eq!(refused(&[announcing("5"), data(3), data(3)]), "more body than its Content-Length");
    assert_eq!(refused(&[announcing("5"), file(6)]), "more body than its Content-Length");
    assert_eq!(refused(&[announcing("5"), data(4), end()]), "less body than its Content-Length");
    assert_eq!(refused(&[announcing("0"), data(1)]), "more body than its Content-Length");
}

#[test]
fn no_sum_is_more_than_httpd_can_count() {
    let beyond = "more body than a length can say";
    // 2^64 + 5: as httpd adds, 5.
    assert_eq!(refused(&[head(200, &[]), file(OFF_T_MAX), file(OFF_T_MAX)]), beyond);
    assert_eq!(refused(&[head(200, &[]), file(OFF_T_MAX), data(1)]), beyond);
    assert_eq!(refused(&[head(200, &[]), data(1), file(OFF_T_MAX)]), beyond);
    assert_eq!(refused(&[announcing("5"), file(OFF_T_MAX)]), "more body than its Content-Length");
    assert_eq!(outcome(&[head(200, &[]), file(OFF_T_MAX), data(0), end()]), Ok(()));
    assert_eq!(outcome(&[announcing("9223372036854775807"), file(OFF_T_MAX - 5), data(5), end()]), Ok(()));
    let mut checker = checker();
    assert_eq!(last(&mut checker, &[head(200, &[]), file(OFF_T_MAX / 2)]), Ok(()));
    assert_eq!(last(&mut checker, &[file(OFF_T_MAX / 2), data(1)]), Ok(()));
    assert_eq!(checker.total(), OFF_T_MAX);
    assert_eq!(last(&mut checker, &[data(1)]), Err(beyond.into()));
}

#[test]
fn a_content_length_is_digits_that_httpd_can_count() {
    for value in [
        "",
        "+5",
        "-5",
        " 5",
        "5 ",
        "\t5",
        "0x5",
        "5,5",
        "5, 5",
        "5.0",
        "5e0",
        "\u{665}",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551621",
        "99999999999999999999999",
    ] {
        assert_eq!(refused(&[announcing(value)]), "a Content-Length that is no number, or two of them", "{value:?}");
        for status in [204, 304] {
            assert!(outcome(&[head(status, &[("content-length", value)])]).is_err(), "{value:?} of {status}");
        }
    }
    for two in [("5", "5"), ("5", "6"), ("0", "0")] {
        refused(&[head(200, &[("Content-Length", two.0), ("CONTENT-LENGTH", two.1)])]);
    }
    assert_eq!(outcome(&[announcing("9223372036854775807")]), Ok(()));
}

#[test]
fn a_length_has_one_spelling() {
    for (from, to) in [("5", "5"), ("005", "5"), ("0", "0"), ("0000", "0"), ("00000000000000000000000050", "50")] {
        assert_eq!(canonical_length(from.as_bytes()), to.as_bytes());
        assert_eq!(outcome(&[announcing(from)]), Ok(()));
    }
    assert_eq!(canonical_length(b""), b"");
}

#[test]
fn a_response_that_may_be_read_with_and_without_a_body_ends_the_connection() {
    let ends = |frame: &[u8]| match checker().take(&frames(frame).next().expect("one").expect("whole")) {
        Ok(Step::Head(head)) => head.ends_connection(),
        other => panic!("{other:?}"),
    };
    assert!(ends(&head(205, &[])) && ends(&head(205, &[("Content-Length", "5")])));
    assert!(!ends(&head(205, &[("Content-Length", "0")])) && !ends(&head(200, &[])));
}

#[test]
fn nothing_stands_behind_the_end() {
    for over in [vec![head(200, &[]), end()], vec![head(200, &[]), abort()], vec![abort()]] {
        for frame in
            [head(200, &[]), data(0), data(1), file(1), end(), abort(), log(), meta(b""), need_body(), interim(103)]
        {
            let messages = [over.clone(), vec![frame]].concat();
            assert_eq!(refused(&messages), "a frame behind the end of the response");
        }
    }
}

#[test]
fn after_a_violation_nothing_is_taken() {
    let mut checker = checker();
    assert!(last(&mut checker, &[announcing("5"), data(6)]).is_err());
    for frame in [data(5), end(), abort(), log()] {
        assert!(last(&mut checker, &[frame]).is_err());
    }
    assert_eq!((checker.stage(), checker.total()), (Stage::Body, 0));
}

#[test]
fn another_exchange_is_none_of_ours() {
    let mut other = Vec::new();
    put_frame(&mut other, FrameKind::NeedBody, 0, Exchange(8), |_| {});
    let mut checker = checker();
    assert_eq!(last(&mut checker, &[other]), Err("a frame of another exchange".into()));
    assert!(last(&mut checker, &[need_body()]).is_err());
}

#[test]
fn a_frontends_frames_are_not_a_workers() {
    for kind in [FrameKind::Request, FrameKind::Body, FrameKind::BodyEnd, FrameKind::BodyAbort, FrameKind::ClientGone] {
        assert_eq!(refused(&[frame(kind, |_| {})]), "a frame that only a frontend sends");
    }
}

#[test]
fn interim_responses_are_few_and_come_first() {
    let many: Vec<_> = (0..MAX_INTERIM).map(|_| interim(103)).collect();
    assert_eq!(outcome(&many), Ok(()));
    assert_eq!(refused(&[many, vec![interim(103)]].concat()), "an interim response too late, or too many");
    assert_eq!(refused(&[head(200, &[]), interim(103)]), "an interim response too late, or too many");
    refused(&[interim(101)]);
    let mut checker = checker();
    let message = interim(100);
    let frame = frames(&message).next().expect("one").expect("whole");
    assert_eq!(checker.take(&frame), Ok(Step::NeedBody));
}

#[test]
fn the_last_of_two_metas_counts() {
    let mut checker = checker();
    assert_eq!(last(&mut checker, &[meta(b"first"), head(200, &[]), meta(b"last")]), Ok(()));
    assert_eq!(checker.meta().map(|m| m.user), Some(&b"last"[..]));
    assert_eq!(last(&mut checker, &[meta(b"third")]), Err("META too often".into()));
}

#[test]
fn a_meta_in_parts_counts_when_it_is_whole() {
    let mut payload = Vec::new();
    meta_payload(&mut payload, b"user");
    let (first, second) = payload.split_at(4);
    let mut checker = checker();
    assert_eq!(last(&mut checker, &[flagged(FrameKind::Meta, FLAG_MORE, |out| out.extend_from_slice(first))]), Ok(()));
    assert_eq!(checker.meta(), None);
    assert_eq!(last(&mut checker, &[frame(FrameKind::Meta, |out| out.extend_from_slice(second))]), Ok(()));
    assert_eq!(checker.meta().map(|m| m.user), Some(&b"user"[..]));
    let part = |kind| flagged(kind, FLAG_MORE, |out| out.resize(out.len() + MAX_RESPONSE_HEAD / 2, b'm'));
    assert_eq!(
        refused(&[part(FrameKind::Meta), part(FrameKind::Meta), part(FrameKind::Meta)]),
        "META beyond the limit"
    );
    assert_eq!(
        refused(&[part(FrameKind::Head), part(FrameKind::Head), part(FrameKind::Head)]),
        "a response head beyond the limit"
    );
}

#[test]
fn a_head_in_parts_is_the_same_head() {
    let mut payload = Vec::new();
    head_payload(&mut payload, 404, &[("Content-Length", "03"), ("X", "y")]);
    for at in 0..payload.len() {
        let (first, second) = payload.split_at(at);
        let mut checker = checker();
        let first = flagged(FrameKind::Head, FLAG_MORE, |out| out.extend_from_slice(first));
        assert_eq!(last(&mut checker, &[first]), Ok(()));
        let message = frame(FrameKind::Head, |out| out.extend_from_slice(second));
        let frame = frames(&message).next().expect("one").expect("whole");
        let Ok(Step::Head(head)) = checker.take(&frame) else { panic!("cut at {at}") };
        assert_eq!((head.get().status, head.length()), (404, Some(3)));
        assert_eq!(head.get().fields.iter().last(), Some((&b"X"[..], &b"y"[..])));
    }
}

#[test]
fn so_many_log_lines_are_written() {
    let mut checker = checker();
    let message = log();
    let frame = frames(&message).next().expect("one").expect("whole");
    let steps: Vec<_> = (0..1000).map(|_| checker.take(&frame).expect("taken")).collect();
    assert_eq!(steps.iter().filter(|s| matches!(s, Step::Log(_))).count(), 200);
    assert_eq!(steps.iter().position(|s| *s == Step::LogLimit), Some(200));
    assert_eq!(steps.iter().filter(|s| **s == Step::Nothing).count(), 799);
}

#[test]
fn what_cannot_be_decoded_is_refused() {
    for kind in [FrameKind::Head, FrameKind::Interim, FrameKind::Meta, FrameKind::Log, FrameKind::Abort] {
        refused(&[frame(kind, |out| out.extend_from_slice(&[0xff; 5]))]);
    }
    for kind in [FrameKind::File, FrameKind::End] {
        refused(&[head(200, &[]), frame(kind, |out| out.extend_from_slice(&[0xff; 5]))]);
    }
}
