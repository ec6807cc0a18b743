"""Point 9: a hostile worker harms itself. The victim behind it gets his own answer; the frontend lives on.

alice's PHP writes frames of her own into her lease, by FFI. bob is the victim.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from datetime import datetime

import pytest

import wireforge as w
from harness import ALICE, BOB, H2, Broken, Later, Site, eventually, fds_of, gone, in_threads
from pages import FFI

pytestmark = pytest.mark.pool_only

CONF = """
Timeout 5
CustomLog @ROOT@/logs/notes.log "%{seen}n %{seen}e %{nokeepalive}n %{Hidden}i"
"""


@pytest.fixture(scope="module")
def server(scratch, shared_httpd):
    sites = [Site("alice", ALICE, conf=FFI,
                  pool_conf=f"PoolMaxProcesses 6\nPoolIdleTimeout 60s\nPoolEnv SCRATCH {scratch}"),
             Site("bob", BOB, pool_conf="PoolIdleTimeout 300s")]
    server = shared_httpd(sites=sites, conf=CONF)
    server.scratch = scratch
    sites[0].write("forge.php", w.FORGE_PHP)
    sites[0].write("own.txt", "alice herself")
    sites[1].write("victim.txt", "the victim's own answer")
    sites[1].write("victim.php", "<?php echo 'the victim, by php';")
    server.start()
    assert server.get("/victim.php", "bob").status == 200
    return server


@pytest.fixture(autouse=True)
def survivors(server):
    """A fresh worker for each attack, so that its exchange has the forge's number; and nobody but it suffers."""
    server.kill("worker", "alice")
    eventually(lambda: not server.workers("alice"), 5)
    log = server.scratch / "forge.log"
    log.unlink(missing_ok=True)
    before = {p.pid for p in server.processes() if p.role in ("parent", "frontend", "controller", "seed")}
    at = len(server.error_log())
    yield
    alive = {p.pid for p in server.processes() if p.role in ("parent", "frontend", "controller", "seed")}
    assert before <= alive, "a process of the server has died"
    assert not re.search(r"exit signal|segfault|panick", server.error_log()[at:])
    assert server.get("/victim.txt", "bob").text == "the victim's own answer"
    # An attacker that gave a whole answer and sleeps is, from outside, a slow script with alice's next request: Timeout
    # bounds it.
    eventually(lambda: quiet(server) == "alice herself", 15, what="alice is served again")
    if log.exists():
        assert forge_log(server)["targets"], "forge.php found no lease"


def forge_log(server):
    """What forge.php wrote: whole, whenever it is read."""
    return json.loads((server.scratch / "forge.log").read_text())


def worker_is_replaced(server):
    pid = forge_log(server)["pid"]
    eventually(lambda: gone(pid), 12, what="the violator's end")


class Outcome:
    """What the client saw: response (or None) and whether the connection could be used on."""

    def __init__(self, found, closed):
        self.found, self.closed = found, closed

    @property
    def status(self):
        return self.found.status if self.found else 0

    def __repr__(self):
        return f"{self.found} closed={self.closed}"


def attack_h1(server, plan, method="POST"):
    """The attack and, on the same connection, the victim's request behind it."""
    with server.connect(timeout=15) as c:
        c.request(method, "/forge.php", body=plan)
        c.request("GET", "/victim.txt", "bob.test")
        try:
            found = c.response(method)
        except Broken:
            assert b"victim" not in c.buffer
            return Outcome(None, True)
        try:
            victim = c.response()
        except Broken:
            return Outcome(found, True)
        assert (victim.status, victim.text) == (200, "the victim's own answer"), (found, victim)
        assert found.complete
        return Outcome(found, False)


def attack_h2(server, plan, method="POST"):
    if server.mpm == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")
    with H2(server, timeout=15) as c:
        stream = c.start("/forge.php", method=method, body=plan)
        victim = c.start("/victim.txt", host="bob.test")
        found = c.wait(victim)
        assert (found.status, found.text) == (200, "the victim's own answer")
        try:
            return Outcome(c.wait(stream), False)
        finally:
            late = c.get("/victim.php", host="bob.test")
            assert late.text == "the victim, by php"


ATTACKS = {"h1": attack_h1, "h2": attack_h2}


@pytest.fixture(params=["h1", "h2"])
def attack(request, server):
    return lambda *messages, **kw: ATTACKS[request.param](server, w.plan(*messages, **kw))


OK = w.head(200, ("Content-Type", "text/plain"))


# --- framing of the body ----------------------------------------------------------------------------


def test_the_forge_can_answer_at_all(attack, server):
    """If this fails, the other tests prove nothing: a right answer by hand is accepted."""
    seen = attack(w.head(200, ("Content-Type", "text/plain"), ("X-Forged", "yes")) + w.data("forged") + w.end(),
                  then="exit")
    assert (seen.status, seen.found.get("X-Forged") or seen.found.get("x-forged"), seen.found.text) == (
        200, "yes", "forged")


def test_body_longer_than_content_length(attack, server):
    seen = attack(w.head(200, ("Content-Length", "5")) + w.data(b"A" * 30000), w.data(b"B" * 30000), w.end())
    assert seen.found is None or seen.found.body in (b"AAAAA",) or seen.status == 502 or not seen.found.complete
    assert seen.found is None or len(seen.found.body) <= 5 or seen.status == 502
    worker_is_replaced(server)


def test_body_longer_than_content_length_in_one_message(attack, server):
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    seen = attack(w.head(200, ("Content-Length", "5")) + w.data(b"hello" + response) + w.end())
    if seen.found and seen.status == 200:
        assert seen.found.body in (b"", b"hello")
    worker_is_replaced(server)


def test_body_shorter_than_content_length(attack, server):
    seen = attack(w.head(200, ("Content-Length", "500")) + w.data("short") + w.end())
    assert seen.found is None or seen.status == 502 or not seen.found.complete


@pytest.mark.parametrize("value", ["-5", "5x", "", "0x5", "99999999999999999999999", " 5", "+5", "5, 5", "5,6"])
def test_content_length_that_is_no_number(attack, value):
    seen = attack(w.head(200, ("Content-Length", value)) + w.data("hello") + w.end())
    if seen.found and seen.status == 200:
        assert seen.found.body in (b"hello", b"")
        assert seen.found.all("Content-Length") in ([], ["5"])


def test_two_content_lengths(attack):
    seen = attack(w.head(200, ("Content-Length", "5"), ("Content-Length", "50")) + w.data("hello") + w.end())
    if seen.found and seen.status == 200:
        assert len(seen.found.all("Content-Length")) <= 1
        assert seen.found.body in (b"hello", b"") or not seen.found.complete


@pytest.mark.parametrize("value", ["chunked", "gzip, chunked", "identity", "Chunked"])
def test_transfer_encoding_of_its_own(attack, value):
    raw = b"5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    seen = attack(w.head(200, ("Transfer-Encoding", value)) + w.data(raw) + w.end(), then="exit")
    if seen.found and seen.status == 200 and seen.found.complete:
        assert seen.found.body == raw


@pytest.mark.parametrize("field", ["Connection", "Keep-Alive", "Upgrade", "Trailer", "Proxy-Connection", "TE"])
def test_hop_by_hop_fields_are_dropped(attack, field):
    seen = attack(w.head(200, (field, "x-evil, upgrade"), ("X-Kept", "1")) + w.data("ok") + w.end(), then="exit")
    assert seen.status in (200, 502)
    if seen.status == 200:
        assert "evil" not in "".join(seen.found.all(field))


@pytest.mark.parametrize("status", [204, 304])
def test_body_where_there_is_none(attack, status):
    attack(w.head(status) + w.data("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad") + w.end())


def test_body_of_a_head_response(server):
    with server.connect(timeout=10) as c:
        plan = w.plan(w.head(200, ("Content-Length", "3")) + w.data("HTTP/1.1 200 OK\r\n\r\n") + w.end())
        c.request("HEAD", "/forge.php", headers=[("Content-Length", len(plan))])
        c.send(plan)
        c.request("GET", "/victim.txt", "bob.test")
        try:
            c.response("HEAD")
            assert c.response().text == "the victim's own answer"
        except Broken:
            assert b"200" not in c.buffer


# --- heads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 1, 99, 100, 101, 102, 199, 1000, 65535])
def test_status_outside_200_to_999(attack, server, status):
    seen = attack(w.head(status) + w.data("x") + w.end())
    assert seen.status == 502
    worker_is_replaced(server)


BAD_FIELDS = {
    "crlf-in-value": ("X", "a\r\nInjected: yes"),
    "lf-in-value": ("X", "a\nInjected: yes"),
    "cr-in-value": ("X", "a\rInjected: yes"),
    "response-in-value": ("X", "a\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
    "crlf-in-name": ("X: a\r\nInjected", "yes"),
    "space-in-name": ("X Y", "yes"),
    "colon-in-name": ("X:", "yes"),
    "empty-name": ("", "yes"),
    "nul-in-value": ("X", "a\0b"),
    "nul-in-name": ("X\0", "b"),
    "control-in-value": ("X", "a\x01b"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_field_in_the_head(attack, server, name):
    seen = attack(w.head(200, BAD_FIELDS[name]) + w.data("x") + w.end())
    assert seen.status == 502
    assert seen.found.get("Injected") is None
    worker_is_replaced(server)


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_field_in_an_interim_response(attack, server, name):
    seen = attack(w.interim(103, BAD_FIELDS[name]) + OK + w.data("x") + w.end())
    assert seen.status == 502
    assert seen.found.get("Injected") is None
    worker_is_replaced(server)


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_field_in_the_trailers(attack, name):
    seen = attack(OK + w.data("x") + w.end(BAD_FIELDS[name]))
    assert seen.found is None or seen.status == 502 or not seen.found.complete or seen.found.trailers == []


@pytest.mark.parametrize("line", ["200 OK\r\nInjected: yes", "404 Not Found", "200", "20", "200 \r\n\r\nbody", "\n"])
def test_bad_status_line(attack, line):
    seen = attack(w.head(200, line=line) + w.data("x") + w.end())
    assert seen.status in (200, 502)
    assert seen.found.get("Injected") is None


@pytest.mark.parametrize("status", [0, 99, 100, 101, 200, 500])
def test_interim_of_a_wrong_status(attack, status):
    seen = attack(w.interim(status) + OK + w.data("x") + w.end())
    assert seen.status == 502 or (status == 100 and seen.status == 200)


def test_endless_interim_responses(attack, server):
    seen = attack({"data": w.interim(103, ("Link", "</a>")), "repeat": 5000})
    assert seen.found is None or seen.status == 502
    assert seen.found is None or len(seen.found.interim) <= 64
    worker_is_replaced(server)


def test_endless_head(attack, server):
    piece = w.pairs(*[(f"X-{i}", "v" * 1000) for i in range(30)])
    seen = attack({"data": w.frame(w.HEAD, piece, flags=w.MORE), "repeat": 200})
    assert seen.status == 502
    worker_is_replaced(server)


def test_too_many_fields(attack):
    seen = attack(w.head(200, *[("X", "y")] * 5000) + w.data("x") + w.end())
    assert seen.status == 502


# --- frames -----------------------------------------------------------------------------------------


BAD_MESSAGES = {
    "garbage": bytes(range(256)) * 4,
    "text": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    "zeros": b"\0" * 100,
    "empty": b"",
    "half-a-frame": w.head(200)[:7],
    "length-beyond": w.frame(w.DATA, b"x", length=1000),
    "giant-length": w.frame(w.DATA, b"x", length=0xFFFFFFFF),
    "unknown-kind": w.frame(99, b"x"),
    "request-kind": w.frame(w.REQUEST, b"\1" * 80),
    "body-kind": w.frame(w.BODY, b"x"),
    "unknown-flag": w.head(200, flags=0x80),
    "reserved-bytes": w.frame(w.HEAD, b"\0\xc8\0\0\0\0", reserved=7),
    "wrong-exchange": w.head(200, exchange=w.FIRST + 1) + w.data("x", exchange=w.FIRST + 1) + w.end(exchange=w.FIRST + 1),
    "old-exchange": w.head(200, exchange=1) + w.data("x", exchange=1) + w.end(exchange=1),
    "no-exchange": w.head(200, exchange=0) + w.data("x", exchange=0) + w.end(exchange=0),
    "exchange-max": w.head(200, exchange=0xFFFFFFFF),
    "data-before-head": w.data("x") + w.end(),
    "end-before-head": w.end(),
    "file-without-descriptor": OK + w.file(0, 100) + w.end(),
    "head-of-trailing-bytes": w.frame(w.HEAD, b"\0\xc8\0\0\0\0junk"),
    "pair-count-beyond": w.frame(w.HEAD, b"\0\xc8\0\0\xff\xff"),
    "abort-unknown": w.abort(77),
    "log-level": w.log("x", level=99),
    "log-source": w.log("x", level=7, source="x.c] [client 198.51.100.99:1", line=1),
    "log-source-line-break": w.log("x", source="x.c\n", line=1),
    "log-source-length": w.log("x", source="x" * 129, line=1),
    "meta-three-times": w.meta() * 3,
    "meta-twice-in-garbage": w.frame(w.META, b"\xff" * 50),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_bad_message_before_the_response(attack, server, name):
    seen = attack(BAD_MESSAGES[name])
    if name == "file-without-descriptor":
        assert seen.found is None or seen.status == 502 or not seen.found.complete
    else:
        assert seen.status == 502
    worker_is_replaced(server)


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_bad_message_within_the_response(attack, server, name):
    if name in ("data-before-head", "end-before-head", "file-without-descriptor"):
        pytest.skip("right at this place, or tested before it")
    seen = attack(OK + w.data("begin", flags=w.FLUSH), {"data": BAD_MESSAGES[name], "pause": 0.1})
    assert seen.found is None or seen.status == 502 or not seen.found.complete
    worker_is_replaced(server)


def test_message_larger_than_allowed(attack, server):
    """No message has more than 160 KiB (docs/protocol.md)."""
    seen = attack(OK + w.data(b"x" * 170_000) + w.end())
    assert seen.found is None or seen.status == 502 or not seen.found.complete


def test_two_heads(attack):
    seen = attack(OK + w.head(404) + w.data("x") + w.end())
    assert seen.found is None or seen.status == 502 or not seen.found.complete


AFTER_END = {
    "second-response": w.head(200, ("Content-Length", "6")) + w.data("poison") + w.end(),
    "next-exchange": w.head(200, exchange=w.FIRST + 1) + w.data("poison", exchange=w.FIRST + 1) + w.end(exchange=w.FIRST + 1),
    "garbage": b"\xff" * 200,
    "late-data": w.data("poison"),
    "second-end": w.end(),
}


@pytest.mark.parametrize("name", AFTER_END)
@pytest.mark.parametrize("together", [True, False], ids=["one-message", "later"])
def test_frames_after_end_reach_nobody(attack, server, name, together):
    answer = w.head(200, ("Content-Length", "5")) + w.data("first") + w.end()
    if together:
        seen = attack(answer + AFTER_END[name])
        assert seen.found is None or seen.found.body in (b"first", b"") or seen.status == 502
    else:
        seen = attack(answer, {"data": AFTER_END[name], "repeat": 3, "pause": 0.05})
        assert (seen.status, seen.found.body) == (200, b"first")
        # All of it is there before the next request goes out. What comes later breaks that request (502), never another
        # pool's: the worker could as well have given it any answer.
        time.sleep(0.6)
    # The same pool's next request does not get it either.
    for _ in range(5):
        assert server.get("/own.txt").text == "alice herself"


@pytest.mark.timeout(120)
def test_floods_of_log_meta_and_need_body(attack, server):
    for message in (w.log("flood " * 100), w.meta(notes=[("n", "v")] * 100), w.frame(w.NEED_BODY)):
        start = time.monotonic()
        attack({"data": message, "repeat": 2000}, OK + w.data("x") + w.end(), then="exit")
        assert time.monotonic() - start < 30


def test_log_lines_cannot_forge(attack, server):
    at = len(server.error_log())
    attack(w.log("one\n[Sun Nov 22 00:00:00 2026] [core:error] forged") + OK + w.data("x") + w.end())
    time.sleep(0.3)
    assert not re.search(r"^\[Sun Nov 22 00:00:00 2026", server.error_log()[at:], re.M)


def test_notes_reach_only_the_logs_that_ask_for_them(server):
    """A module may keep a pointer in a note, and follow it: what no log shows never gets into the request."""
    at = len(server.error_log())
    notes = [("modsecurity-tx-context", "A" * 64), ("seen", "shown"), ("hidden", "1")]
    plan = w.plan(w.meta(notes=notes, env=notes) + w.head(200) + w.data("ok") + w.end(), then="exit")
    assert server.request("POST", "/forge.php", body=plan).text == "ok"
    line = eventually(lambda: next((x for x in (server.root / "logs" / "notes.log").read_text().splitlines()
                                    if "shown" in x), None))
    assert line == "shown shown - -"
    assert "exit signal" not in server.error_log()[at:]


def test_notes_that_steer_the_frontend_have_no_effect(attack):
    notes = [(n, "1") for n in ("nokeepalive", "dontlog", "error-notes", "downgrade-1.0", "force-response-1.0",
                                "no-gzip", "pool-name", "short-lingering-close")]
    seen = attack(w.meta(notes=notes, env=notes) + w.head(200, ("Content-Length", "2")) + w.data("ok") + w.end())
    assert (seen.status, seen.found.text) == (200, "ok")
    assert not seen.closed


# --- time -------------------------------------------------------------------------------------------


def test_silence_holds_nobody_else(server):
    clients = [server.connect(timeout=30) for _ in range(6)]
    for c in clients:
        c.request("POST", "/forge.php", body=w.plan())
    time.sleep(0.5)
    start = time.monotonic()
    answers = in_threads(8, lambda _: server.get("/victim.php", "bob").text)
    assert answers == ["the victim, by php"] * 8
    assert time.monotonic() - start < 3
    for c in clients:
        c.reset()
    server.kill("worker", "alice")


def test_one_byte_a_second(attack):
    seen = attack(OK, {"data": w.data("s", flags=w.FLUSH), "repeat": 4, "pause": 1}, w.end())
    assert (seen.status, seen.found.text) == (200, "ssss")


def test_a_worker_that_does_not_read_its_body(server):
    server.sites["alice"].write("deaf.php", "<?php sleep(8); echo 'ok';")
    box = []

    def upload():
        with server.connect(timeout=30) as c:
            c.request("PUT", "/deaf.php", headers=[("Content-Length", 20_000_000)])
            c.send_while_reading([b"x" * 1_000_000] * 20)
            try:
                box.append(c.response("PUT").status)
            except Broken:
                box.append(0)

    threads = [threading.Thread(target=upload, daemon=True) for _ in range(4)]
    for t in threads:
        t.start()
    time.sleep(1)
    for _ in range(10):
        start = time.monotonic()
        assert server.get("/victim.txt", "bob").status == 200
        assert time.monotonic() - start < 1
    for t in threads:
        t.join(30)
    assert len(box) == 4


@pytest.mark.parametrize("plan", [
    [{"data": w.log("still here") + w.frame(w.NEED_BODY), "repeat": 90, "pause": 0.1}, OK + w.end()],
    [OK, {"data": w.data("", flags=w.FLUSH), "repeat": 90, "pause": 0.1}, w.end()],
], ids=["log", "empty"])
def test_frames_that_bring_nothing_are_waited_for_as_silence_is(server, plan):
    """Longer than Timeout (5 s): a script that is slow, whatever it says meanwhile."""
    start = time.monotonic()
    found = server.request("POST", "/forge.php", body=w.plan(*plan), timeout=40)
    assert (found.status, found.complete, found.body) == (200, True, b"")
    assert time.monotonic() - start > 8


@pytest.mark.parametrize("plan", [
    [{"data": w.log("still here") + w.frame(w.NEED_BODY), "repeat": 100000, "pause": 0.05}],
    [OK, {"data": w.data("", flags=w.FLUSH), "repeat": 100000, "pause": 0.05}],
], ids=["log", "empty"])
def test_frames_that_bring_nothing_hold_no_thread_for_a_client_that_left(server, plan):
    """More of them than `PoolMaxFrontendThreads` and the pool have room for."""
    for _ in range(8):
        with server.connect() as c:
            body = w.plan(*plan)
            c.request("POST", "/forge.php", headers=[("Content-Length", len(body))], body=body)
            time.sleep(0.5)
            c.reset()
    for _ in range(10):
        start = time.monotonic()
        assert server.get("/victim.txt", "bob").status == 200
        assert time.monotonic() - start < 1
    server.kill("worker", "alice")


@pytest.mark.parametrize("bad", [w.frame(99), w.data("x", exchange=w.FIRST + 1), OK, w.end() + w.data("more")],
                         ids=["kind", "exchange", "second-head", "behind-the-end"])
def test_a_worker_whose_client_has_left_is_held_to_the_protocol(server, bad):
    plan = w.plan({"data": OK + w.data("first", flags=w.FLUSH), "pause": 1}, bad)
    with server.connect() as c:
        c.request("POST", "/forge.php", headers=[("Content-Length", len(plan))], body=plan)
        c.head()
        c.reset()
    eventually(lambda: (server.scratch / "forge.log").exists(), 10, what="the forge has sent its frames")
    worker_is_replaced(server)


# --- descriptors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["fifo", "fifo-read", "device", "null", "tty", "directory", "path", "write-only",
                                  "short", "memfd", "proc", "sysfs", "socket", "pipe"])
def test_bad_descriptor(attack, server, what):
    seen = attack({"data": w.head(200, ("Content-Length", "4000")) + w.file(0, 4000) + w.end(), "fds": [what]})
    assert seen.found is None or seen.status == 502 or not seen.found.complete
    worker_is_replaced(server)


def test_the_log_says_what_the_client_saw(attack, server):
    """A head that was taken and has not left yet becomes a whole 502."""
    for flags, text in ((0, "502, as nothing of the response had left"), (w.FLUSH, "the response was broken off")):
        at = len(server.error_log())
        begin = w.head(200, ("Content-Length", "4000"))
        bad = {"data": w.file(0, 4000) + w.end(), "fds": ["pipe"]}
        if flags:
            seen = attack(begin + w.data("begun", flags=flags), bad)
            assert seen.found is None or not seen.found.complete
        else:
            seen = attack({"data": begin + w.file(0, 4000) + w.end(), "fds": ["pipe"]})
            assert seen.status == 502 and seen.found.complete
        line = server.wait_for_log("POOL104.*", after=at)[0]
        assert text in line
        server.kill("worker", "alice")
        eventually(lambda: not server.workers("alice"), 5)


def test_good_descriptor_by_hand(attack):
    seen = attack({"data": w.head(200, ("Content-Length", "4000")) + w.file(500, 4000) + w.end(), "fds": ["good"]})
    assert (seen.status, seen.found.body) == (200, b"g" * 4000)


def test_many_files_do_not_use_up_the_descriptors(server):
    """A response of many files keeps few of them open, however slowly the client reads."""
    def held():
        return sum(len(fds_of(p.pid)) for p in server.processes("frontend"))

    before = held()
    plan = w.plan(OK, {"data": w.file(0, 5000), "fds": ["good"], "repeat": 500}, w.end(), then="exit")
    with server.connect(timeout=30) as c:
        c.request("POST", "/forge.php", body=plan)
        time.sleep(1)
        assert held() < before + 40
        assert len(c.response("POST").body) == 500 * 5000


@pytest.mark.parametrize("offset,length", [(0, 5001), (5000, 1), (2**63, 10), (2**64 - 1, 2), (0, 2**63), (1, 2**62)])
def test_range_outside_the_file(attack, offset, length):
    seen = attack({"data": OK + w.file(offset, length) + w.end(), "fds": ["good"]})
    assert seen.found is None or seen.status == 502 or not seen.found.complete


@pytest.mark.parametrize("count", [2, 10, 100, 253])
def test_too_many_descriptors_do_not_leak(attack, server, count):
    def held():
        return sum(len(fds_of(p.pid)) for p in server.processes() if p.role in ("frontend", "controller"))

    before = held()
    for _ in range(3):
        attack({"data": OK + w.file(0, 100) + w.end(), "fds": ["good"] * count}, then="exit")
    time.sleep(1.5)
    assert held() <= before + 6


def test_descriptors_with_messages_that_carry_none(attack, server):
    attack({"data": w.log("x"), "fds": ["good"] * 10, "repeat": 20}, OK + w.data("x") + w.end(), then="exit")


LINGER_PHP = r"""
<?php
// Sends a full TCP socket that lingers to the own lease, where nobody reads it when that is idle, and ends this worker.
$c = FFI::cdef('
    typedef long ssize_t; typedef unsigned long size_t;
    struct iovec { void *base; size_t len; };
    struct msghdr { void *name; unsigned namelen; struct iovec *iov; size_t iovlen; void *control; size_t controllen;
                    int flags; };
    ssize_t sendmsg(int, const struct msghdr *, int); ssize_t send(int, const void *, size_t, int);
    int socket(int, int, int); int connect(int, const void *, unsigned); int close(int); int fork(void);
    int getsockopt(int, int, int, void *, unsigned *); int setsockopt(int, int, int, const void *, unsigned);
    void _exit(int); int usleep(unsigned);
');
$now = isset($_GET['now']);
if (!$now && $c->fork() != 0) { echo getmypid(); return; }
$c->usleep((int)(1e6 * ($_GET['after'] ?? 0)));
$tcp = $c->socket(2, 1, 0);
$address = FFI::new('char[16]'); FFI::memcpy($address, pack('vnNJ', 2, (int)$_GET['port'], 0x7f000001, 0), 16);
if ($c->connect($tcp, FFI::addr($address), 16) != 0) $c->_exit(1);
$linger = FFI::new('int[2]'); $linger[0] = 1; $linger[1] = 20;
$c->setsockopt($tcp, 1, 13, FFI::addr($linger), 8);
$data = FFI::new('char[65536]');
while ($c->send($tcp, FFI::addr($data), 65536, 0x4040) > 0);
$control = FFI::new('char[24]'); FFI::memcpy($control, pack('Plll', 20, 1, 1, $tcp), 20);
$iov = $c->new('struct iovec'); $iov->base = FFI::cast('void *', FFI::addr($data)); $iov->len = 1;
$m = $c->new('struct msghdr'); $m->iov = FFI::addr($iov); $m->iovlen = 1;
$m->control = FFI::cast('void *', FFI::addr($control)); $m->controllen = 24;
$sent = 0;
for ($fd = 3; $fd < 1024; $fd++) {
    $type = FFI::new('int'); $len = FFI::new('unsigned'); $len->cdata = 4;
    if ($c->getsockopt($fd, 1, 3, FFI::addr($type), FFI::addr($len)) == 0 && $type->cdata == 5)
        $sent += $c->sendmsg($fd, FFI::addr($m), 0x4000) > 0;
}
// Not the last copy: that lies in the lease.
$c->close($tcp);
file_put_contents(getenv('SCRATCH') . '/linger', $sent);
if (!$now) posix_kill(posix_getppid(), 9);
$c->_exit(0);
"""


def test_a_lingering_socket_in_an_idle_lease_holds_up_nobody(server):
    """Who closes that socket last sleeps for 20 s: it must not be the controller, which forks everybody's workers."""
    alice = server.sites["alice"]
    alice.write("linger.php", LINGER_PHP)
    sent = server.scratch / "linger"
    sent.unlink(missing_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        # The frontend gives an idle lease back after a second.
        worker = int(server.get(f"/linger.php?after=2.5&port={port}").text)
        eventually(lambda: gone(worker), 10, what="the worker's end")
        assert sent.read_text() == "1"
        until = time.monotonic() + 5
        while time.monotonic() < until:
            eventually(lambda old=server.kill("worker", "bob"): gone(*old), 10)
            start = time.monotonic()
            assert server.get("/victim.php", "bob", timeout=30).status == 200
            assert time.monotonic() - start < 2
            time.sleep(0.3)
        assert server.get("/own.txt").text == "alice herself"
        # Who closed it is gone, too: it had nothing to wait for.
        eventually(lambda: not server.processes("closer"), 5)


def test_lingering_sockets_in_answers_hold_no_thread(server):
    """Who receives it and closes it last sleeps for 20 s: it must not be a thread that serves requests."""
    server.sites["alice"].write("linger.php", LINGER_PHP)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        start = time.monotonic()
        for _ in range(40):
            found = server.get(f"/linger.php?now&port={port}", timeout=15)
            assert found.status in (502, 503)
            assert server.get("/victim.php", "bob").status == 200
        assert time.monotonic() - start < 15


MANY_PHP = r"""
<?php
// Sends a message with 253 copies of a full TCP socket that lingers, for this request, and ends this worker.
$c = FFI::cdef('
    typedef long ssize_t; typedef unsigned long size_t;
    struct iovec { void *base; size_t len; };
    struct msghdr { void *name; unsigned namelen; struct iovec *iov; size_t iovlen; void *control; size_t controllen;
                    int flags; };
    ssize_t sendmsg(int, const struct msghdr *, int); ssize_t send(int, const void *, size_t, int);
    int socket(int, int, int); int connect(int, const void *, unsigned); int close(int);
    int getsockopt(int, int, int, void *, unsigned *); int setsockopt(int, int, int, const void *, unsigned);
    void _exit(int);
');
$tcp = $c->socket(2, 1, 0);
$address = FFI::new('char[16]'); FFI::memcpy($address, pack('vnNJ', 2, (int)$_GET['port'], 0x7f000001, 0), 16);
if ($c->connect($tcp, FFI::addr($address), 16) != 0) $c->_exit(1);
$linger = FFI::new('int[2]'); $linger[0] = 1; $linger[1] = 20;
$c->setsockopt($tcp, 1, 13, FFI::addr($linger), 8);
$data = FFI::new('char[65536]');
while ($c->send($tcp, FFI::addr($data), 65536, 0x4040) > 0);
$len = 16 + 4 * 253;
$control = FFI::new('char[1032]'); FFI::memcpy($control, pack('Pll', $len, 1, 1) . str_repeat(pack('l', $tcp), 253), $len);
$iov = $c->new('struct iovec'); $iov->base = FFI::cast('void *', FFI::addr($data)); $iov->len = 1;
$m = $c->new('struct msghdr'); $m->iov = FFI::addr($iov); $m->iovlen = 1;
$m->control = FFI::cast('void *', FFI::addr($control)); $m->controllen = $len;
for ($fd = 3; $fd < 1024; $fd++) {
    $type = FFI::new('int'); $len = FFI::new('unsigned'); $len->cdata = 4;
    if ($c->getsockopt($fd, 1, 3, FFI::addr($type), FFI::addr($len)) == 0 && $type->cdata == 5)
        $c->sendmsg($fd, FFI::addr($m), 0x4000);
}
$c->close($tcp);
$c->_exit(0);
"""


def test_floods_of_descriptors_use_up_none_of_a_frontend(httpd, scratch):
    """Neither its own ones nor those that its user may have on their way: it has as few as a service of systemd."""
    sites = [Site("alice", ALICE, conf=FFI, pool_conf="PoolMaxProcesses 6"), Site("bob", BOB)]
    server = httpd(sites=sites, conf="Timeout 5\nKeepAliveTimeout 60", mpm_conf="StartServers 1\nServerLimit 1\n"
                   "ThreadsPerChild 32\nMaxRequestWorkers 32")
    sites[0].write("many.php", MANY_PHP)
    sites[1].write("victim.txt", "victim")
    server.start()
    assert server.get("/victim.txt", "bob").text == "victim"
    frontend, = server.processes("frontend")
    # Who may change it is who it belongs to; root needs a capability that a container may lack.
    change = "import resource, sys; resource.prlimit(int(sys.argv[1]), resource.RLIMIT_NOFILE, (1024, 1024))"
    subprocess.run([sys.executable, "-c", change, str(frontend.pid)], check=True, user=frontend.uid, group=frontend.uid,
                   extra_groups=[])
    before = len(fds_of(frontend.pid))
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as clients:
        path = f"/many.php?port={listener.getsockname()[1]}"
        for _ in range(3):
            for found in in_threads(6, lambda _: server.try_get(path, timeout=30)):
                assert found is None or found.status in (502, 503)
        held = len(fds_of(frontend.pid))
        for _ in range(20):
            connection = clients.enter_context(server.connect(timeout=5))
            connection.request("GET", "/victim.txt", "bob.test")
            assert connection.response().text == "victim"
    assert held < before + 100
    assert [p.pid for p in server.processes("frontend")] == [frontend.pid]


TINY_FILES = {"data": w.file(0, 1) * 4, "fds": ["good"] * 4, "repeat": 100_000}


@contextlib.contextmanager
def descriptors_of_frontends(server):
    """How many more than now one of them has at most, meanwhile; the victim is served, also by a new worker."""
    most = {}

    def look():
        for p in server.processes("frontend"):
            with contextlib.suppress(OSError):
                count = len(fds_of(p.pid))
                first, highest = most.get(p.pid, (count, count))
                most[p.pid] = first, max(highest, count)
    look()
    yield look
    for turn in range(20):
        if turn % 5 == 0:
            eventually(lambda old=server.kill("worker", "bob"): gone(*old), 10)
        start = time.monotonic()
        assert server.get("/victim.php", "bob", timeout=30).status == 200
        assert time.monotonic() - start < 2
        look()
        time.sleep(0.1)
    assert max(highest - first for first, highest in most.values()) < 400


def test_files_for_a_client_that_has_left_use_up_none_of_a_frontend(server):
    plan = w.plan({"data": OK + w.data("x", flags=w.FLUSH), "pause": 0.5}, TINY_FILES)
    with descriptors_of_frontends(server):
        for _ in range(6):
            with server.connect() as c:
                c.request("POST", "/forge.php", headers=[("Content-Length", len(plan))], body=plan)
                c.head()
                c.reset()
    server.kill("worker", "alice")


@pytest.mark.parametrize("protocol", ["h1", "h2"])
def test_a_flood_of_files_uses_up_none_of_a_frontend(server, protocol):
    """They are closed as fast as they come, however many workers send them."""
    plan = w.plan(OK, TINY_FILES)
    with contextlib.ExitStack() as clients, descriptors_of_frontends(server):
        for _ in range(6):
            send_attack(server, clients, protocol, plan)
    server.kill("worker", "alice")


def send_attack(server, clients, protocol, plan):
    """By a client that reads nothing."""
    if protocol == "h2":
        if server.mpm == "prefork":
            pytest.skip("mod_http2 does nothing under prefork")
        clients.enter_context(H2(server, timeout=30)).start("/forge.php", method="POST", body=plan)
    else:
        clients.enter_context(server.connect(timeout=30)).request("POST", "/forge.php", body=plan)


NOTHING_TO_READ = {
    "log": ([], w.log("x", level=7) * 2000),
    "need-body": ([], w.frame(w.NEED_BODY) * 5000),
    "empty": ([OK], w.data("", flags=w.FLUSH) * 5000),
    "bytes": ([OK], w.data("x") * 5000),
}


@pytest.mark.parametrize("protocol", ["h1", "h2"])
@pytest.mark.parametrize("what", NOTHING_TO_READ)
def test_a_flood_for_clients_that_read_nothing_is_no_burden_to_others(server, what, protocol):
    begin, message = NOTHING_TO_READ[what]
    plan = w.plan(*begin, {"data": message, "repeat": 1_000_000})
    before = {p.pid: resident(p.pid) for p in server.processes("frontend")}
    with contextlib.ExitStack() as clients:
        for _ in range(6):
            send_attack(server, clients, protocol, plan)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            start = time.monotonic()
            assert server.get("/victim.php", "bob", timeout=30).status == 200
            assert time.monotonic() - start < 2
        grown = {pid: resident(pid) - then for pid, then in before.items() if not gone(pid)}
    assert all(more < 64 << 20 for more in grown.values()), grown
    server.kill("worker", "alice")


def resident(pid):
    """Bytes of memory."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS:"))


# --- other ways -------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", b"\xff" * 500, bytes(64), b"\1" * 64, w.end() * 100],
                         ids=["empty", "ff", "zeros", "ones", "ends"])
def test_garbage_into_every_socket_there_is(server, payload):
    """The log channel to the controller included."""
    plan = w.plan({"data": payload, "repeat": 50}, then="exit", where="all")
    attack_h1(server, plan)
    assert len(server.processes("controller")) == 1


def test_a_child_that_outlives_its_worker_cannot_answer_for_it(server):
    plan = w.plan({"data": w.head(200) + w.data("poison") + w.end(), "repeat": 20, "pause": 0.05}, then="fork")
    assert server.request("POST", "/forge.php", body=plan).text == "parent"
    until = time.monotonic() + 3
    while time.monotonic() < until:
        found = server.get("/own.txt")
        assert b"poison" not in found.body
        assert server.get("/victim.txt", "bob").text == "the victim's own answer"


def test_what_comes_by_a_lease_that_has_gone_back_reaches_nobody(server):
    """A frontend keeps an idle lease for a second, then the controller has it, which does not read it."""
    answer = w.head(200, ("Content-Length", "5")) + w.data("first") + w.end()
    late = {"data": w.head(200) + w.data("poison") + w.end(), "repeat": 50}
    plan = w.plan({"data": answer, "pause": 2}, late)
    assert server.request("POST", "/forge.php", body=plan).text == "first"
    eventually(lambda: "sent" in forge_log(server), 10, what="the forge has sent all of it")
    for _ in range(10):
        # It may break one request of its own pool.
        assert b"poison" not in server.get("/own.txt").body
        assert server.get("/victim.txt", "bob").text == "the victim's own answer"
    worker_is_replaced(server)


@pytest.mark.parametrize("processor", [1, 0x7fff, 0xfffe, 0xffff])
def test_a_worker_may_say_that_it_runs_on_any_processor(attack, server, processor):
    seen = attack(OK + w.data("x") + w.end(processor=processor), then="exit")
    assert (seen.status, seen.found.text) == (200, "x")
    assert server.get("/own.txt").text == "alice herself"


HEIR_PHP = """
<?php
// A child in a session of its own keeps the lease, and this worker dies.
$c = FFI::cdef('int fork(void); int setsid(void); unsigned sleep(unsigned);');
if (isset($_GET['begun'])) { while (ob_get_level()) ob_end_flush(); echo 'begun'; flush(); }
if ($c->fork() == 0) { $c->setsid(); $c->sleep(60); }
posix_kill(getmypid(), 9);
sleep(60);
"""


def test_who_keeps_the_lease_of_a_worker_delays_no_word_of_its_end(server):
    server.sites["alice"].write("heir.php", HEIR_PHP)
    for query in ("", "?begun"):
        start = time.monotonic()
        with server.connect(timeout=20) as c:
            c.request("GET", f"/heir.php{query}")
            try:
                found = c.response()
            except Broken:
                found = None
        assert time.monotonic() - start < 2
        assert found is None or not found.complete if query else found.status == 502
    assert server.wait_for_log("POOL10[34].*was killed by signal 9 before its response was complete")


TRACED_PHP = """
<?php
// A child traces this worker, which dies; its end is told to that child only.
$c = FFI::cdef('int fork(void); long ptrace(int, int, void *, void *); unsigned sleep(unsigned); int usleep(unsigned);
                int prctl(int, unsigned long, unsigned long, unsigned long, unsigned long);');
$c->prctl(4, 1, 0, 0, 0);
if ($c->fork() == 0) { $c->ptrace(0x4206, posix_getppid(), null, null); $c->sleep(60); }
$c->usleep(200000);
posix_kill(getmypid(), 9);
sleep(60);
"""


def test_who_traces_a_worker_keeps_nobody_busy(server):
    server.sites["alice"].write("traced.php", TRACED_PHP)
    controller, = server.processes("controller")
    spent = processor_seconds(controller.pid)
    start = time.monotonic()
    assert server.get("/traced.php", timeout=30).status == 502
    # Who traces it is ended as what is left behind is.
    assert time.monotonic() - start < 8
    assert processor_seconds(controller.pid) - spent < 0.3


def processor_seconds(pid):
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("what", ["stop", "limit", "kill", "flood"])
def test_what_a_tenant_does_to_its_own_zygote_stays_his(server, what):
    alice = server.sites["alice"]
    alice.write("zygote.php", """
        <?php
        $c = FFI::cdef('int prlimit(int, int, const void *, void *);');
        $n = 0;
        // One that was just forked has the zygote's title still.
        usleep(100000);
        foreach (glob('/proc/[0-9]*/cmdline') as $f) {
            $t = str_replace("\\0", ' ', (string)@file_get_contents($f));
            if (!str_starts_with($t, 'mod_pool: zygote alice')) continue;
            $pid = (int)explode('/', $f)[2];
            // Another run of these tests may have an alice of its own.
            if (!preg_match('/^Uid:\\s+' . posix_geteuid() . '\\s/m', file_get_contents("/proc/$pid/status"))) continue;
            $n++;
            if ($_GET['what'] == 'stop') posix_kill($pid, 19);
            if ($_GET['what'] == 'kill') posix_kill($pid, 9);
            if ($_GET['what'] == 'flood') for ($i = 0; $i < 20000; $i++) posix_kill($pid, 10 + 2 * ($i % 2));
            if ($_GET['what'] == 'limit') {
                $l = FFI::new('unsigned long[2]'); $l[0] = 3; $l[1] = 3;
                $c->prlimit($pid, 7, FFI::addr($l), null);
            }
        }
        echo "found $n";
    """)
    # After what the last one did the pool may be throttled.
    eventually(lambda: quiet(server) == "alice herself", 40, what="alice is served")
    assert server.get(f"/zygote.php?what={what}").text == "found 1"
    # More of alice's requests than there are workers; bob is served at once, also by a new worker.
    threads = [Later(quiet, server) for _ in range(8)]
    eventually(lambda old=server.kill("worker", "bob"): gone(*old), 10)
    for _ in range(10):
        start = time.monotonic()
        assert server.get("/victim.php", "bob").status == 200
        assert time.monotonic() - start < 2
    server.kill("zygote", "alice")
    for t in threads:
        t.join(40)


FLOOD_PHP = """
<?php
// Starts processes in sessions of their own and leaves them behind, until it is told that it is enough.
set_time_limit(0);
while (ob_get_level()) ob_end_flush();
for ($n = 0; $n < 20000 && !file_exists(getenv('SCRATCH') . '/enough'); $n += 20) {
    exec('for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do setsid sleep 300 >/dev/null 2>&1 & done');
    echo ' ';
    flush();
    usleep(50000);
}
echo $n;
"""
LEFT_BEHIND = re.compile(r"^\[(\w+ \w+ +\d+ [\d:]+\.\d+ \d+)\] .*mod_pool: pid \d+(?: and (\d+) others)?, left behind by a process"
                         r" of (.*), (?:is|are) killed$", re.M)


def test_a_flood_of_processes_left_behind_fills_no_log_and_holds_up_nobody(server, scratch):
    alice = server.sites["alice"]
    alice.write("flood.php", FLOOD_PHP)
    enough = scratch / "enough"
    enough.unlink(missing_ok=True)
    at = len(server.error_log())
    told = lambda: LEFT_BEHIND.findall(server.error_log()[at:])
    # After what the last test did the pool may be throttled.
    eventually(lambda: quiet(server) == "alice herself", 40, what="alice is served")
    flood = Later(server.get, "/flood.php", timeout=80)
    try:
        eventually(told, 20, what="a line about what was left behind")
        # The controller forks bob's workers, while it goes on.
        for _ in range(15):
            victims = server.kill("worker", "bob")
            eventually(lambda: gone(*victims), what="the end of bob's worker")
            assert server.get("/victim.php", "bob", timeout=30).text == "the victim, by php"
        assert flood.is_alive(), flood.value
        eventually(lambda: len(told()) >= 3, 20, what="more lines")
    finally:
        enough.touch()
    found = flood.result(30)
    enough.unlink()
    assert (found.status, found.complete) == (200, True)
    count = int(found.text)
    assert count >= 100
    # All of them end, and are told of: so many, by a line in a second at most.
    eventually(lambda: sum(1 + int(others or 0) for _, others, _ in told()) >= count, 30, what="an account of all of them")
    eventually(lambda: not [p for p in server.of_uid(ALICE) if p.title.startswith("sleep")], 10, what="their end")
    lines = told()
    assert {who for _, _, who in lines} == {"pool alice"}
    assert sum(1 + int(others or 0) for _, others, _ in lines) == count
    times = [datetime.strptime(when, "%a %b %d %H:%M:%S.%f %Y") for when, _, _ in lines]
    # One more for the line at the beginning, and one for a log that is written late.
    assert len(lines) <= (times[-1] - times[0]).total_seconds() + 2, lines


STORM_PHP = r"""
<?php
// Leaves 30 processes behind that fork for so many seconds, go to sessions of their own and end with this status: with 15 as a
// frontend does that finds that none can work (APEXIT_CHILDFATAL).
$status = (int)$_GET['status'];
$c = FFI::cdef('int fork(void); int setsid(void); void _exit(int); int usleep(unsigned);
                int prlimit(int, int, const void *, void *);');
$limit = FFI::new('unsigned long[2]'); $limit[0] = $limit[1] = 250;
$c->prlimit(0, 6, FFI::addr($limit), null);
$until = time() + (int)$_GET['seconds'];
for ($i = 0; $i < 30; $i++) {
    if ($c->fork() != 0) continue;
    while (time() < $until) { if ($c->fork() > 0) $c->_exit($status); $c->setsid(); $c->usleep(20000); }
    $c->_exit(0);
}
echo 'left behind';
"""


def storm(httpd, status=15, seconds=8, reload=False):
    """Without a controller its processes are children of httpd's parent. With `reload`, the configuration is read again at
    that moment."""
    sites = [Site("alice", ALICE, conf=FFI), Site("bob", BOB)]
    server = httpd(sites=sites)
    sites[0].write("storm.php", STORM_PHP)
    sites[1].write("victim.php", "<?php echo 'the victim, by php';")
    server.start()
    # From the first one on, an MPM tells of children that it does not know.
    server.graceful()
    assert server.get(f"/storm.php?status={status}&seconds={seconds}").text == "left behind"
    at = len(server.error_log())
    began = time.monotonic()
    server.kill("controller")
    if reload:
        server.graceful(wait=False)
    # Each of its processes is there for a moment only.
    there = lambda: any(server.of_uid(ALICE) for _ in range(20))
    goes_on = there if reload else lambda: time.monotonic() < began + 12
    while goes_on():
        start = time.monotonic()
        assert server.get("/victim.php", "bob", timeout=30).text == "the victim, by php"
        assert time.monotonic() - start < 5
        # Fifteen seconds after the controller's death, and what the machine is late.
        assert time.monotonic() - began < 20
        time.sleep(0.1)
    eventually(lambda: not there(), 20, what="the end of the storm")
    return server.error_log()[at:].splitlines()


def test_a_storm_at_a_reload_is_over_in_time_and_others_are_served(httpd):
    storm(httpd, status=0, seconds=60, reload=True)


def test_a_storm_of_processes_that_outlives_a_controller_fills_no_log(httpd, kind):
    if kind["mpm"] != "pool":
        pytest.skip("the lines about unknown children are the other MPM's own")
    lines = storm(httpd)
    assert len(lines) < 100, len(lines)
    assert not [line for line in lines if "Fatal error" in line]


def test_no_process_of_a_pool_that_outlives_a_controller_stops_the_server(httpd):
    """An MPM takes the exit status of any child of httpd's parent for a frontend's."""
    storm(httpd)


def quiet(server):
    found = server.try_get("/own.txt", timeout=30)
    return found and found.text


def test_a_fork_bomb_of_connections_does_not_stop_the_victim(server):
    """Many attackers at once on their own connections, one victim in between."""
    plan = w.plan(OK + w.data(b"x" * 20000, flags=w.FLUSH), b"\xff" * 100, then="exit")
    errors = []

    def attacker(_):
        for _ in range(10):
            try:
                server.request("POST", "/forge.php", body=plan)
            except (Broken, OSError):
                pass

    def victim():
        while not done.is_set():
            try:
                found = server.get("/victim.txt", "bob")
                if found.text != "the victim's own answer":
                    errors.append(found)
            except (Broken, OSError) as e:
                errors.append(e)

    done = threading.Event()
    watching = threading.Thread(target=victim, daemon=True)
    watching.start()
    in_threads(4, attacker, timeout=80)
    done.set()
    watching.join(10)
    assert errors == []


def test_descriptors_that_no_thread_could_close_are_closed_by_the_next_one(httpd, kind, scratch):
    if kind["mpm"] == "prefork":
        pytest.skip("the attacks must meet one frontend")
    site = Site("alice", ALICE, conf=FFI, pool_conf=f"PoolMaxProcesses 2\nPoolEnv SCRATCH {scratch}")
    server = httpd(sites=[site], mpm_conf="StartServers 1\nServerLimit 1\nThreadsPerChild 8\nMaxRequestWorkers 8\n")
    site.write("forge.php", w.FORGE_PHP)
    site.write("own.txt", "alice herself")
    server.start()

    def attack():
        with server.connect() as c:
            c.request("POST", "/forge.php", body=w.plan({"data": w.head() + w.data("x"), "fds": ["good"]}))
            with contextlib.suppress(Broken):
                c.response()

    attack()
    frontend, = server.processes("frontend")
    change = ("import resource, sys; old = resource.prlimit(int(sys.argv[1]), resource.RLIMIT_NPROC);"
              "resource.prlimit(int(sys.argv[1]), resource.RLIMIT_NPROC, (int(sys.argv[2]), old[1])); print(old[0])")

    def limit(number):
        done = subprocess.run([sys.executable, "-c", change, str(frontend.pid), str(number)], check=True, text=True,
                              capture_output=True, user=frontend.uid, group=frontend.gids[1], extra_groups=[])
        return int(done.stdout)

    before = limit(1)
    attack()
    limit(before)
    for _ in range(20):
        attack()
    assert server.count_log("POOL124") == 0
    assert server.get("/own.txt").text == "alice herself"
