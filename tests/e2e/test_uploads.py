"""Request bodies on their way to a worker: whoever passes them on is woken when there is something to do, and naps never."""

import hashlib
import os
import re
import signal
import time
from pathlib import Path

import pytest

from harness import ALICE, H2, Later, Site, eventually
from pages import DIGEST_PHP, ECHO_PHP

pytestmark = pytest.mark.pool_only

ALONE = "StartServers 1\nServerLimit 1\nThreadsPerChild 8\nThreadLimit 8\nMaxRequestWorkers 8\nMinSpareThreads 1\nMaxSpareThreads 8\n"
# What PHP reads of a body at a time: it waits until it has so much.
READ = 8192
COUNT_PHP = "<?php\n$in = fopen('php://input', 'rb');\nfor ($n = 0; !feof($in);) $n += strlen(fread($in, 65536));\necho $n;"


@pytest.fixture(scope="module")
def server(shared_httpd):
    site = Site("alice", ALICE, pool_conf="PoolMaxProcesses 1\nPoolIdleTimeout 300s",
                conf="<IfModule php_module>\nphp_flag enable_post_data_reading off\n</IfModule>\n")
    server = shared_httpd(sites=[site], mpm_conf=ALONE)
    site.write("echo.php", ECHO_PHP)
    site.write("digest.php", DIGEST_PHP)
    site.write("count.php", COUNT_PHP)
    site.write("pid.php", "<?php echo getmypid();")
    server.start()
    return server


def sleeps(server):
    """How often threads of frontends have slept so far."""
    total = 0
    for frontend in server.processes("frontend"):
        for task in Path(f"/proc/{frontend.pid}/task").iterdir():
            total += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.M)[1])
    return total


def those_that_interrupt_nobody(server):
    """Threads of frontends under SCHED_BATCH."""
    threads = [int(task.name) for p in server.processes("frontend") for task in Path(f"/proc/{p.pid}/task").iterdir()]
    return {thread for thread in threads if os.sched_getscheduler(thread) == os.SCHED_BATCH}


class Stream:
    """A request by HTTP/2 whose body is sent piece by piece, without a length."""

    def __init__(self, server, path, tls, fields=()):
        self.c = H2(server, tls=tls, timeout=30)
        self.id = self.c.h2.get_next_available_stream_id()
        self.c.streams[self.id] = self.c.new_state()
        self.c.h2.send_headers(self.id, [(":method", "POST"), (":path", path), (":authority", "alice.test"),
                                         (":scheme", "https" if tls else "http"), *fields])
        self.c.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.c.conn.close()

    def send(self, piece, last=False):
        while piece or last:
            room = min(self.c.h2.local_flow_control_window(self.id), self.c.h2.max_outbound_frame_size)
            if room == 0:
                self.c.step()
                continue
            now, piece = piece[:room], piece[room:]
            self.c.h2.send_data(self.id, now, end_stream=last and not piece)
            self.c.flush()
            last = last and bool(piece)

    def body(self, length):
        """So much of the response, waited for."""
        state = self.c.streams[self.id]
        while len(state["body"]) < length and not state["ended"]:
            self.c.step()
        return state["body"]

    def response(self):
        return self.c.wait(self.id)


@pytest.fixture
def streams(server):
    if server.mpm == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")
    return server


BY_TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


@BY_TLS
def test_no_thread_looks_again_and_again_for_the_body_of_a_stream(streams, tls):
    """Its client sends a little, and then nothing for two seconds."""
    with Stream(streams, "/echo.php", tls) as stream:
        stream.send(b"a" * READ)
        assert stream.body(READ) == b"a" * READ
        before = sleeps(streams)
        time.sleep(2)
        # A few times in a second somebody looks whether the client is there still.
        slept = sleeps(streams) - before
        assert slept < 60
        stream.send(b"z", last=True)
        assert stream.response().body == b"a" * READ + b"z"


@BY_TLS
@pytest.mark.parametrize("size", [READ, 5 * READ])
def test_each_piece_of_a_stream_is_passed_on_when_it_comes(streams, tls, size):
    """The script sends each piece back, and the client sends the next one then."""
    sent = b""
    with Stream(streams, "/echo.php", tls) as stream:
        for i in range(60):
            piece = (b"%9d," % i * (size // 10 + 1))[:size]
            stream.send(piece)
            sent += piece
            assert stream.body(len(sent)) == sent
        stream.send(b"", last=True)
        found = stream.response()
    assert (found.status, found.complete, found.body) == (200, True, sent)


@BY_TLS
@pytest.mark.parametrize("length", [True, False], ids=["length", "no-length"])
def test_a_large_body_of_a_stream_arrives_whole(streams, tls, length):
    body = b"".join(b"%9d\n" % i for i in range(800_000))
    fields = [("content-length", str(len(body)))] if length else []
    with Stream(streams, "/digest.php", tls, fields) as stream:
        stream.send(body, last=True)
        found = stream.response().json()
    assert found["bytes"] == len(body) and found["sha256"] == hashlib.sha256(body).hexdigest()


def test_threads_of_streams_interrupt_nobody_when_they_are_woken(streams):
    """And no others: what is handed on piece by piece comes together while a processor is busy."""
    before = those_that_interrupt_nobody(streams)
    assert streams.request("POST", "/count.php", body=b"x" * 100_000, tls=True).text == "100000"
    assert those_that_interrupt_nobody(streams) == before
    with Stream(streams, "/count.php", True) as stream:
        stream.send(b"x" * 100_000, last=True)
        assert stream.response().text == "100000"
    assert those_that_interrupt_nobody(streams)


def test_a_stream_whose_client_leaves_in_its_upload_frees_its_worker(streams):
    before = streams.get("/pid.php").text
    for how in ("reset", "close"):
        stream = Stream(streams, "/count.php", False)
        stream.send(b"x" * 10_000)
        eventually(lambda: any("busy" in p.title for p in streams.workers("alice")), 10)
        if how == "reset":
            stream.c.h2.reset_stream(stream.id)
            stream.c.flush()
        start = time.monotonic()
        if how == "close":
            stream.c.conn.close()
        assert streams.get("/pid.php", timeout=30).text == before
        assert time.monotonic() - start < 15
        stream.c.conn.close()


def stopped_worker(server):
    pid = int(server.get("/pid.php").text)
    os.kill(pid, signal.SIGSTOP)
    return pid


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_no_thread_looks_again_and_again_whether_a_worker_takes_an_upload(server, tls):
    """The worker stands still while the request and more of its body than one message has are there."""
    body = b"0123456789" * 30_000
    pid = stopped_worker(server)
    try:
        sent = Later(lambda: server.request("POST", "/count.php", body=body, tls=tls, timeout=30))
        time.sleep(0.5)
        before = sleeps(server)
        time.sleep(2)
        slept = sleeps(server) - before
        assert slept < 40
    finally:
        os.kill(pid, signal.SIGCONT)
    assert sent.result().text == str(len(body))


def test_an_upload_goes_on_as_soon_as_its_worker_does(server):
    """A worker that was kept from a processor for a moment: nobody waits longer than that."""
    body = b"0123456789" * 30_000
    undisturbed, delayed = [], []
    for _ in range(8):
        start = time.monotonic()
        assert server.request("POST", "/count.php", body=body).text == str(len(body))
        undisturbed.append(time.monotonic() - start)
        pid = stopped_worker(server)
        try:
            sent = Later(lambda: server.request("POST", "/count.php", body=body, timeout=30))
            time.sleep(0.13)
        finally:
            start = time.monotonic()
            os.kill(pid, signal.SIGCONT)
        assert sent.result().text == str(len(body))
        delayed.append(time.monotonic() - start)
    # Who looks each 100 ms comes 80 ms later.
    assert min(delayed) < min(undisturbed) + 0.04, (delayed, undisturbed)


def test_an_upload_whose_worker_is_killed_before_it_has_taken_the_request_goes_to_another(server):
    body = b"0123456789" * 30_000
    for tls in (False, True):
        pid = stopped_worker(server)
        sent = Later(lambda: server.request("POST", "/count.php", body=body, tls=tls, timeout=30))
        time.sleep(0.4)
        os.kill(pid, signal.SIGKILL)
        found = sent.result()
        assert (found.status, found.text) == (200, str(len(body)))
