"""Slow requests do not hold threads: parked where mod_pool is the MPM, bounded where they cannot be parked."""

import hashlib
import os
import re
import resource
import select
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import wireforge as w
from harness import ALICE, BOB, H2, Later, Site, eventually, fds_of, gone, read_process, run
from pages import DIGEST_PHP, FFI, usual_pages

pytestmark = pytest.mark.pool_only

# a2enmod's own mpm_event.conf.
DEBIAN = (
    "StartServers 2\nMinSpareThreads 25\nMaxSpareThreads 75\nThreadLimit 64\nThreadsPerChild 25\n"
    "MaxRequestWorkers 150\nMaxConnectionsPerChild 0\n"
)
FOUR_THREADS = "StartServers 1\nServerLimit 1\nThreadsPerChild 4\nMaxRequestWorkers 4\nMinSpareThreads 1\nMaxSpareThreads 4\n"
BIG_PHP = """
<?php
// Numbered lines: what is lost, doubled or out of order changes the hash.
for ($i = 0; $i < (int)$_GET['lines']; $i++) {
    echo str_pad($i, 99, '.', STR_PAD_LEFT), "\\n";
    if (isset($_GET['flush']) && $i % 50 == 0) flush();
}
"""
PIECES_PHP = """
<?php
// Each piece is a message of its own; the client is to see it at once only where it asks for that.
for ($i = 0; $i < (int)$_GET['count']; $i++) {
    echo str_repeat('x', (int)$_GET['size']);
    if (isset($_GET['flush'])) { echo 'y'; flush(); }
}
"""
HINTS_CGI = """
#!/bin/sh
value=$(head -c 50000 /dev/zero | tr '\\0' v)
for i in $(seq 30); do printf 'HTTP/1.1 103 Early Hints\\r\\nLink: %s\\r\\n\\r\\n' "$value"; done
sleep 3
printf 'HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\n\\r\\nthe page'
"""
HEAD_PHP = """
<?php
while (ob_get_level()) ob_end_clean();
for ($i = 0; $i < (int)$_GET['head'] / 10000; $i++) header("X-Large-$i: " . str_repeat(chr(97 + $i), 10000));
if (isset($_GET['flush'])) { echo 'first'; flush(); sleep(1); }
echo str_repeat('x', (int)$_GET['body']);
"""
FIRST_PHP = "<?php\necho 'first'; flush();\nsleep((int)$_GET['s']);\necho ' last';\n"


def lines(count):
    return b"".join(b"%b\n" % str(i).encode().rjust(99, b".") for i in range(count))


def make(httpd, pool_conf="", mpm_conf=FOUR_THREADS, mpm="pool", alice_conf="", **kw):
    alice = Site("alice", ALICE, pool_conf=pool_conf, conf=alice_conf)
    server = httpd(mpm=mpm, sites=[alice, Site("bob", BOB), Site("plain", pool=None, conf="AssignServerPool none")], mpm_conf=mpm_conf, **kw)
    for site in server.sites.values():
        usual_pages(site)
        site.script("big.php", BIG_PHP)
        site.script("first.php", FIRST_PHP)
        site.script("head.php", HEAD_PHP)
        site.script("pieces.php", PIECES_PHP)
        site.script("nph-many-hints.cgi", HINTS_CGI)
        site.script("digest.php", DIGEST_PHP)
    server.sites["plain"].write("text.txt", "text", mode=0o644)
    return server.start()


class Crowd:
    """Many clients that send one request each, and read nothing."""

    def __init__(self, server, count, path, host="alice.test", receive_buffer=None):
        self.clients = []
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        for _ in range(count):
            s = socket.socket()
            if receive_buffer:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            s.settimeout(20)
            s.connect(("127.0.0.1", server.port))
            s.sendall(request)
            self.clients.append(s)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.leave()

    def leave(self):
        for s in self.clients:
            s.close()
        self.clients = []


def answers_as_ever(server, times=20, within=2):
    """Another pool and the frontends themselves."""
    for _ in range(times):
        for path, site, text in (("/text.txt", "plain", "text"), ("/who.php", "bob", '"site":"bob.test"')):
            start = time.monotonic()
            found = server.get(path, site)
            assert found.status == 200 and text in found.text
            assert time.monotonic() - start < within


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def rss_kib(server):
    return sum(int(read_process(p.pid).status["VmRSS"].split()[0]) for p in server.processes("frontend"))


@pytest.mark.timeout(180)
def test_five_thousand_hanging_requests_leave_others_alone(httpd, many_descriptors):
    conf = "PoolMaxProcesses 8\nPoolQueueLimit 10000\nPoolQueueTimeout 10min"
    server = make(httpd, conf, DEBIAN)
    answers_as_ever(server, 3)
    before = rss_kib(server)
    with Crowd(server, 5000, "/sleep.php?s=300") as crowd:
        eventually(lambda: len(server.workers("alice")) == 8, 20)
        answers_as_ever(server)
        time.sleep(2)
        answers_as_ever(server)
        assert (rss_kib(server) - before) / 5000 < 64, "KiB for each parked request"
        assert len(server.processes("frontend")) <= 6
        crowd.leave()
    # Who waited in the queue is gone from it; who had a worker has left it behind.
    time.sleep(2)
    for worker in server.workers("alice"):
        os.kill(worker.pid, signal.SIGKILL)
    eventually(lambda: server.answers("/who.php", "alice"), 20)
    eventually(lambda: sum(len(fds_of(p.pid)) for p in server.processes("frontend")) < 500, 20)


@pytest.mark.parametrize("path", [
    "/sleep.php?s=60", "/first.php?s=60", "/big.php?lines=300000", "/big.php?lines=300000&flush",
    "/pieces.php?size=50000&count=400", "/pieces.php?size=50000&count=400&flush",
])
def test_requests_that_hang_hold_no_thread(httpd, path):
    """In the worker, after the first byte, and with clients that read nothing: more of them than there are threads."""
    server = make(httpd, "PoolMaxProcesses 12")
    with Crowd(server, 12, path, receive_buffer=4096):
        eventually(lambda: len(server.workers("alice")) == 12, 20)
        time.sleep(1)
        answers_as_ever(server)


def test_interim_responses_to_clients_that_read_nothing_hold_no_thread(httpd):
    # A connection of this machine's own has room for all of them otherwise.
    server = make(httpd, "PoolMaxProcesses 12", alice_conf="AddHandler cgi-script .cgi", modules=["cgi"], conf="SendBufferSize 16384")
    with Crowd(server, 12, "/nph-many-hints.cgi", receive_buffer=4096):
        eventually(lambda: len(server.workers("alice")) == 12, 20)
        time.sleep(1)
        answers_as_ever(server, 5)
    with server.connect() as c:
        c.request("GET", "/nph-many-hints.cgi")
        found = c.response()
        assert (found.status, found.body) == (200, b"the page")


@pytest.mark.parametrize("query", [
    "head=240000&body=10", "head=240000&body=100000", "head=240000&body=0", "head=240000&body=10&flush",
    "head=50000&body=60000", "head=50000&body=10&flush",
])
def test_large_heads_to_clients_that_read_nothing_hold_no_thread(httpd, query):
    server = make(httpd, "PoolMaxProcesses 12", conf="SendBufferSize 16384")
    with Crowd(server, 12, f"/head.php?{query}", receive_buffer=4096):
        eventually(lambda: server.workers("alice"), 20)
        time.sleep(1.5)
        answers_as_ever(server, 5)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("query", ["head=240000&body=200000", "head=50000&body=60000&flush", "head=10000&body=10", "head=240000&body=0"])
def test_a_slow_reader_gets_a_large_head_whole(httpd, query, tls, method):
    server = make(httpd, "PoolMaxProcesses 2", conf="SendBufferSize 16384")
    number = {key: int(value or 1) for key, _, value in (part.partition("=") for part in query.split("&"))}
    with server.connect(tls=tls, timeout=30, rcvbuf=4096) as c:
        c.request(method, f"/head.php?{query}")
        time.sleep(1.5)
        answers_as_ever(server, 3)
        found = c.response(method)
        assert found.status == 200
        for i in range(number["head"] // 10000):
            assert found.get(f"X-Large-{i}") == chr(97 + i) * 10000
        body = b"first" * number.get("flush", 0) + b"x" * number["body"]
        assert found.body == (body if method == "GET" else b"")
        # The connection goes on.
        assert c.get("/who.php").json()["site"] == "alice.test"


def test_a_client_of_http_1_0_keeps_its_connection_behind_a_large_head(httpd):
    server = make(httpd, "PoolMaxProcesses 2")
    with server.connect() as c:
        for _ in range(2):
            c.send(b"GET /head.php?head=10000&body=7000 HTTP/1.0\r\nHost: alice.test\r\nConnection: keep-alive\r\n\r\n")
            found = c.response()
            assert found.get("Content-Length") == "7000" and "Keep-Alive" in found.get("Connection")
            assert found.get("X-Large-0") == "a" * 10000 and found.body == b"x" * 7000


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_slow_reader_gets_a_file_behind_a_large_head(httpd, tls):
    fields = "".join(f"Header set X-Large-{i} {chr(97 + i) * 7000}\n" for i in range(12))
    server = make(httpd, "PoolMaxProcesses 2", alice_conf=fields, modules=["headers"], conf="SendBufferSize 16384")
    content = lines(50_000)
    server.sites["alice"].write("big.txt", content)
    with server.connect(tls=tls, timeout=30, rcvbuf=4096) as c:
        for _ in range(2):
            c.request("GET", "/big.txt")
            time.sleep(1)
            answers_as_ever(server, 3)
            found = c.response()
            assert found.get("X-Large-11") == "l" * 7000 and found.body == content


def test_a_response_with_a_large_head_breaks_off_visibly(httpd):
    server = make(httpd, "PoolMaxProcesses 2", conf="SendBufferSize 16384")
    server.sites["alice"].script("die.php", HEAD_PHP.replace("sleep(1)", "sleep(1); posix_kill(getmypid(), 9); sleep(9)"))
    for seconds in (0, 2):
        with server.connect(rcvbuf=4096 if seconds else None) as c:
            c.request("GET", "/die.php?head=240000&body=10&flush")
            time.sleep(seconds)
            found = c.response()
            assert (found.status, found.body, found.complete) == (200, b"first", False)
            assert found.get("X-Large-23") == "x" * 10000
            assert c.is_closed()
    answers_as_ever(server, 3)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("flush", ["", "&flush"], ids=["", "flush"])
def test_a_slow_reader_gets_every_byte_in_order(httpd, tls, flush):
    server = make(httpd, "PoolMaxProcesses 2")
    count = 120_000
    with server.connect(tls=tls, timeout=30) as c:
        c.request("GET", f"/big.php?lines={count}{flush}")
        time.sleep(1.5)
        answers_as_ever(server, 3)
        found = c.response()
        assert hashlib.sha256(found.body).digest() == hashlib.sha256(lines(count)).digest()
        # The connection goes on.
        assert c.get("/who.php").json()["site"] == "alice.test"


@pytest.mark.parametrize("flush", ["", "&flush"], ids=["", "flush"])
def test_a_client_that_takes_nothing_for_timeout_frees_its_worker(httpd, flush):
    server = make(httpd, "PoolMaxProcesses 1\nPoolQueueTimeout 30s", conf="Timeout 2")
    with Crowd(server, 1, f"/big.php?lines=300000{flush}", receive_buffer=4096):
        time.sleep(0.5)
        start = time.monotonic()
        assert server.get("/who.php").status == 200
        assert 1 < time.monotonic() - start < 10
    with server.connect() as c:
        c.request("GET", f"/big.php?lines=300000{flush}")
        found, start = 0, time.monotonic()
        while found < 25_000_000:
            piece = len(c.sock.recv(1_000_000, socket.MSG_WAITALL))
            assert piece
            found += piece
            time.sleep(0.2)
        assert time.monotonic() - start > 4, "slow, but it takes something all the time"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_slow_reader_of_a_file_frees_its_worker(httpd, tls):
    server = make(httpd, "PoolMaxProcesses 1")
    system = run("stat", "-f", "-c", "%T", server.root).stdout.decode().strip()
    if system.startswith(("fuse", "nfs", "cifs", "smb")):
        pytest.skip(f"a file on {system} is read by its worker, and not passed on as a descriptor")
    content = lines(200_000)
    server.sites["alice"].write("big.txt", content)
    with server.connect(tls=tls, timeout=30) as c:
        c.request("GET", "/big.txt")
        time.sleep(1)
        assert server.get("/who.php").status == 200
        assert c.response().body == content


def test_a_slow_upload_holds_no_thread_and_arrives_whole(httpd):
    server = make(httpd, "PoolMaxProcesses 8")
    body = lines(4000)
    with ExitStack() as stack:
        clients = [stack.enter_context(server.connect(timeout=30)) for _ in range(8)]
        for c in clients:
            c.send(f"POST /digest.php HTTP/1.1\r\nHost: alice.test\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        for at in range(0, len(body), 100_000):
            for c in clients:
                c.send(body[at:at + 100_000])
            time.sleep(0.1)
            answers_as_ever(server, 2)
        for c in clients:
            found = c.response().json()
            assert found["bytes"] == len(body) and found["sha256"] == hashlib.sha256(body).hexdigest()


def frontend_work(server, what):
    """How often the frontends' threads have slept, or how long they have run (in ticks), since the server's start."""
    total = 0
    for frontend in server.processes("frontend"):
        if what == "ticks":
            total += sum(map(int, Path(f"/proc/{frontend.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
            continue
        for task in Path(f"/proc/{frontend.pid}/task").iterdir():
            total += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.M)[1])
    return total


@contextmanager
def standing_still(server, count):
    """So many workers of alice's do nothing until SIGCONT, which `go` sends; and at the end in any case."""
    eventually(lambda: len(server.workers("alice")) >= count)
    # Children of a script, if there are any, have the worker's title and come behind it.
    pids = [worker.pid for worker in server.workers("alice")[:count]]

    def go():
        for pid in pids:
            if not gone(pid):
                os.kill(pid, signal.SIGCONT)

    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield go
    finally:
        go()


def test_a_worker_that_takes_no_request_holds_no_thread_by_an_upload_that_goes_on(httpd):
    server = make(httpd, "PoolMaxProcesses 4\nPoolMinSpare 4")
    with standing_still(server, 4) as go, ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(4)]
        for c in clients:
            c.send(b"POST /digest.php HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 4000\r\n\r\n" + b"a" * 1000)
        time.sleep(0.5)
        for c in clients:
            c.send(b"b" * 1000)
        time.sleep(0.5)
        before = frontend_work(server, "sleeps")
        time.sleep(2)
        assert frontend_work(server, "sleeps") - before < 1500
        go()
        for c in clients:
            c.send(b"c" * 2000)
            assert c.response().json()["bytes"] == 4000


def test_a_worker_that_takes_no_request_holds_no_thread_by_a_large_head(httpd):
    server = make(httpd, "PoolMaxProcesses 4\nPoolMinSpare 4")
    fields = "".join(f"X-{i}: {'v' * 8000}\r\n" for i in range(90))
    head = f"POST /digest.php HTTP/1.1\r\nHost: alice.test\r\n{fields}Content-Length: 4000\r\n\r\n".encode()
    with standing_still(server, 4) as go, ExitStack() as stack:
        clients = [stack.enter_context(server.connect(timeout=30)) for _ in range(4)]
        for c in clients:
            c.send(head + b"a" * 1000)
        time.sleep(1)
        answers_as_ever(server, 5)
        go()
        for c in clients:
            c.send(b"c" * 3000)
            assert c.response().json()["bytes"] == 4000


def test_a_worker_that_speaks_before_it_takes_the_request_is_heard(httpd, scratch):
    server = make(httpd, f"PoolMaxProcesses 1\nPoolEnv SCRATCH {scratch}", conf="Timeout 10", alice_conf=FFI)
    server.sites["alice"].write("forge.php", w.FORGE_PHP)
    # A child of the script speaks on the lease a second later, while the worker stands still.
    spoken = w.plan(w.log("unasked", exchange=w.FIRST + 1), w.head(exchange=1), then="fork")
    assert server.request("POST", "/forge.php", body=spoken).text == "parent"
    with standing_still(server, 1), server.connect() as c:
        c.send(b"POST /digest.php HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 4000\r\n\r\n" + b"a" * 1000)
        time.sleep(0.3)
        c.send(b"b" * 1000)
        start = time.monotonic()
        assert c.response().status == 502
        assert time.monotonic() - start < 4
    assert server.count_log("POOL103: .* broke the protocol: it sent a frame of another exchange: 502") == 1


def test_a_client_that_stops_sending_makes_no_thread_run_while_its_body_waits_for_the_worker(httpd):
    server = make(httpd, "PoolMaxProcesses 1",
                  alice_conf="<IfModule php_module>\nphp_flag enable_post_data_reading off\n</IfModule>\n")
    server.sites["alice"].script("late.php", "<?php usleep(300000); echo strlen(file_get_contents('php://input'));")
    # More than the worker's socket takes, and so little more that the client can stop sending.
    body = lines(8000)

    def upload():
        with server.connect() as c:
            c.send(f"POST /late.php HTTP/1.1\r\nHost: alice.test\r\nConnection: close\r\nContent-Length: {len(body)}"
                   "\r\n\r\n".encode() + body)
            c.half_close()
            return c.response().text

    assert upload() == str(len(body))
    before = frontend_work(server, "ticks")
    for _ in range(6):
        assert upload() == str(len(body))
    assert frontend_work(server, "ticks") - before < 15


def test_pipelined_requests_behind_a_parked_one_are_answered_in_order(httpd):
    server = make(httpd)
    with server.connect() as c:
        c.send(b"".join(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode() for path, host in (
            ("/sleep.php?s=0.3", "alice.test"), ("/text.txt", "plain.test"), ("/who.php", "bob.test"),
            ("/sleep.php?s=0.2", "bob.test"))))
        assert "end" in c.response().json()
        assert c.response().text == "text"
        assert c.response().json()["site"] == "bob.test"
        assert "end" in c.response().json()


def test_the_queue_keeps_its_order_and_its_limits_for_parked_requests(httpd):
    server = make(httpd, "PoolMaxProcesses 1\nPoolQueueLimit 6\nPoolQueueTimeout 3s")
    first = Later(server.get, "/sleep.php?s=1.5")
    time.sleep(0.3)
    waiting = []
    for _ in range(6):
        waiting.append(Later(server.get, "/sleep.php?s=0.05"))
        time.sleep(0.05)
    refused = server.get("/who.php")
    assert refused.status == 503 and refused.get("Retry-After")
    assert server.count_log("POOL106: .pool alice. 503: PoolQueueLimit") == 1
    starts = [w.result().json()["start"] for w in waiting]
    assert starts == sorted(starts)
    assert first.result().status == 200
    held = Later(server.get, "/sleep.php?s=6")
    time.sleep(0.3)
    late = server.get("/who.php")
    assert late.status == 503 and late.get("Retry-After")
    assert server.count_log("POOL106: .pool alice. 503: PoolQueueTimeout") == 1
    assert held.result().status == 200


def test_past_pool_max_parked_there_is_503(httpd):
    server = make(httpd, "PoolMaxProcesses 1\nPoolQueueLimit 100\nPoolMaxParked 5")
    with Crowd(server, 5, "/sleep.php?s=60"):
        time.sleep(1)
        refused = server.get("/who.php")
        assert refused.status == 503 and refused.get("Retry-After")
        line = r"POOL122: \[pool alice\] 503: PoolMaxParked: 5 requests of this process wait .* for GET /who.php"
        assert server.count_log(line) == 1
        answers_as_ever(server, 3)


def test_without_a_place_to_park_a_request_still_gets_a_worker_that_is_idle(httpd):
    """The frontend has to ask the controller for it, and that takes a moment."""
    server = make(httpd, "PoolMaxProcesses 4\nPoolMinSpare 3\nPoolMaxParked 1")
    found = []
    with server.connect() as c:
        c.request("GET", "/sleep.php?s=10")
        eventually(lambda: len(server.workers("alice")) == 4)
        for _ in range(5):
            time.sleep(1.5)  # What is idle here goes back.
            found.append(server.get("/who.php").status)
        assert c.response().status == 200
    # The moment may be over on a machine that is busy with others.
    assert found.count(200) >= 4


def test_a_crowd_past_pool_max_parked_holds_no_thread(httpd):
    """Each of them gets its moment, but not four at a time on the four threads."""
    server = make(httpd, "PoolMaxProcesses 1\nPoolQueueLimit 1000\nPoolMaxParked 2")
    with Crowd(server, 2, "/sleep.php?s=60"):
        time.sleep(1)
        assert server.get("/text.txt", "plain").text == "text"
        with ExitStack() as stack:
            connections = [stack.enter_context(server.connect(timeout=20)) for _ in range(400)]
            time.sleep(0.5)
            start = time.monotonic()
            for c in connections:
                c.request("GET", "/who.php")
            assert server.get("/text.txt", "plain").text == "text"
            took = time.monotonic() - start
            assert {c.response().status for c in connections} == {503}
            # 400 times 10 ms, by four threads: a second.
            assert took < 0.7
        assert server.count_log("POOL122: .pool alice. 503: PoolMaxParked: 2 requests of this process wait") == 400


def test_a_parked_request_whose_client_leaves_ends(httpd):
    server = make(httpd, "PoolMaxProcesses 1\nPoolQueueLimit 100")
    with Crowd(server, 1, "/sleep.php?s=8"):
        time.sleep(0.5)
        for half in (False, True):
            crowd = Crowd(server, 20, "/sleep.php?s=60")
            time.sleep(0.5)
            if half:
                for s in crowd.clients:
                    s.shutdown(socket.SHUT_WR)
                assert all(s.recv(1) == b"" for s in crowd.clients)  # a moment later
            crowd.leave()
        start = time.monotonic()
        assert server.get("/who.php").status == 200
        assert time.monotonic() - start < 12, "nobody works for those who have left"


def test_a_client_that_only_stops_sending_gets_its_answer_within_two_seconds(httpd):
    server = make(httpd, "PoolMaxProcesses 1")
    for path in ("/sleep.php?s=0.5", "/first.php?s=1"):
        with server.connect() as c:
            c.request("GET", path, headers=[("Connection", "close")])
            c.half_close()
            found = c.response()
            assert (found.status, found.complete) == (200, True) and found.body


@pytest.mark.parametrize("path,line", [("/sleep.php?s=60", "POOL103"), ("/first.php?s=60", "POOL104")])
def test_a_worker_that_dies_under_a_parked_request(httpd, path, line):
    server = make(httpd)
    with server.connect() as c:
        c.request("GET", path)
        eventually(lambda: server.workers("alice"))
        time.sleep(0.7)
        server.kill("worker", "alice")
        if line == "POOL103":
            assert c.response().status == 502
        else:
            assert not c.response().complete
    assert server.count_log(f"{line}: .pool alice pid [0-9]+. the worker .*signal 9") == 1
    assert server.get("/who.php").status == 200


def test_a_silent_worker_of_a_parked_request_is_waited_for(httpd):
    server = make(httpd, conf="Timeout 2")
    found = server.get("/sleep.php?s=6", timeout=30)
    assert (found.status, "end" in found.json()) == (200, True)
    assert server.count_log("POOL10") == 0


def test_a_client_that_only_stops_sending_gets_its_answer_from_a_worker_that_has_its_request(httpd):
    server = make(httpd, "PoolMaxProcesses 1")
    for path in ("/sleep.php?s=4", "/first.php?s=4"):
        before = None
        with server.connect(timeout=20) as c:
            c.request("GET", path, headers=[("Connection", "close")])
            c.half_close()
            time.sleep(2.5)
            before = frontend_work(server, "ticks")
            found = c.response()
            assert (found.status, found.complete) == (200, True) and found.body
        assert frontend_work(server, "ticks") - before < 15, "nothing runs while it waits"


def test_parked_requests_outlive_a_graceful_restart(httpd):
    server = make(httpd, "PoolMaxProcesses 2")
    inside, queued = [Later(server.get, "/sleep.php?s=3") for _ in range(2)], []
    time.sleep(0.5)
    queued = [Later(server.get, "/sleep.php?s=0.1") for _ in range(4)]
    time.sleep(0.3)
    server.graceful()
    assert server.get("/who.php").status == 200
    assert [x.result().status for x in inside + queued] == [200] * 6


def test_a_stop_does_not_wait_for_parked_requests(httpd):
    server = make(httpd, "PoolMaxProcesses 2")
    with Crowd(server, 6, "/sleep.php?s=60"):
        time.sleep(0.7)
        start = time.monotonic()
        server.signal(signal.SIGTERM)
        server.wait_for_end()
        assert time.monotonic() - start < 4
    server.stop()


def test_an_error_document_of_a_parked_request(httpd):
    server = make(httpd, conf="ErrorDocument 502 \"it broke\"\n")
    later = Later(server.get, "/sleep.php?s=60")
    eventually(lambda: server.workers("alice"))
    time.sleep(0.5)
    server.kill("worker", "alice")
    found = later.result()
    assert (found.status, found.text) == (502, "it broke")


def test_loggers_see_a_parked_request_as_any_other(httpd):
    server = make(httpd, log_format='%v %>s %B %D \\"%r\\" pool=%{pool-name}n pid=%{pool-pid}n cold=%{pool-cold}n')
    found = server.get("/sleep.php?s=0.5")
    pid = found.json()["pid"]
    line = eventually(lambda: re.search(r"^alice.test 200 (\d+) (\d+) .*", "\n".join(server.access_log()), re.M))
    assert int(line[1]) == len(found.body) and 500_000 <= int(line[2]) < 5_000_000
    assert line[0].endswith(f"pool=alice pid={pid} cold=1")


# --- where nothing can be parked ------------------------------------------------------------------------


def test_a_pool_that_holds_half_of_the_threads_gets_503_and_others_are_served(httpd):
    mpm = FOUR_THREADS.replace("4", "8")
    server = make(httpd, "PoolMaxProcesses 8", mpm, mpm="event")
    with Crowd(server, 4, "/sleep.php?s=60"):
        eventually(lambda: len(server.workers("alice")) == 4)
        time.sleep(1.5)
        refused = server.get("/who.php")
        assert refused.status == 503 and refused.get("Retry-After")
        line = r"POOL121: \[pool alice\] 503: PoolMaxFrontendThreads: 4 threads of this process .* for GET /who.php"
        assert server.count_log(line) == 1
        answers_as_ever(server)


@pytest.mark.parametrize("mpm", ["event", "worker"])
def test_a_crowd_that_comes_at_once_leaves_threads_to_others_after_a_while(httpd, mpm):
    """None of its threads was held for long when the last one was taken. Those that only wait for a process give up."""
    server = make(httpd, "PoolMaxProcesses 2", FOUR_THREADS.replace("4", "8"), mpm=mpm)
    assert server.get("/who.php").status == server.get("/who.php", "bob").status == 200
    with Crowd(server, 8, "/sleep.php?s=60") as crowd:
        time.sleep(3)
        answers_as_ever(server, 5)
        # Six of eight threads may be occupied, those of the requests just made among them; four may be the pool's.
        given_up = server.count_log(r"POOL121: .pool alice. 503: .* for GET /sleep.php")
        assert 2 <= given_up <= 4
        assert server.get("/who.php").status == 503
        answered = [s for s in crowd.clients if select.select([s], [], [], 0)[0]]
        assert [s.recv(100)[9:12] for s in answered] == [b"503"] * given_up


def test_pool_max_frontend_threads_is_the_pools_own(httpd):
    mpm = FOUR_THREADS.replace("4", "8")
    server = make(httpd, "PoolMaxProcesses 8\nPoolMaxFrontendThreads 2", mpm, mpm="event")
    with Crowd(server, 2, "/sleep.php?s=60"):
        time.sleep(1.7)
        assert server.get("/who.php").status == 503
        # The limit of a half is that of the others.
        with Crowd(server, 2, "/sleep.php?s=60", host="bob.test"):
            time.sleep(1.7)
            assert server.get("/who.php", "bob").status == 200


def test_a_crowd_of_a_busy_pool_leaves_threads_of_the_mpm_to_others(httpd):
    """Its queue moves, which excuses streams of HTTP/2 only: they wait on threads of their own."""
    server = make(httpd, "PoolMaxProcesses 2\nPoolMaxFrontendThreads 8", FOUR_THREADS.replace("4", "24"), mpm="event")
    over = threading.Event()

    def ask_again_and_again():
        while not over.is_set():
            server.get("/sleep.php?s=0.25", timeout=30)

    crowd = [Later(ask_again_and_again) for _ in range(40)]
    try:
        server.wait_for_log(r"POOL121: .pool alice. 503: PoolMaxFrontendThreads: 8 threads")
        answers_as_ever(server, 10)
    finally:
        over.set()
    [client.result(30) for client in crowd]


@pytest.mark.parametrize("seconds", [0.03, 0.3])
@pytest.mark.parametrize("mpm", ["event", "pool"])
def test_a_hundred_streams_of_one_browser_get_their_answers(httpd, mpm, seconds):
    """With the slower pages threads wait for seconds, more of them than PoolMaxFrontendThreads."""
    server = make(httpd, "PoolMaxProcesses 8", DEBIAN, mpm=mpm)
    with H2(server, tls=True, timeout=60) as h2:
        streams = [h2.start(f"/sleep.php?s={seconds}") for _ in range(100)]
        assert [h2.wait(s).status for s in streams] == [200] * 100


def browsers_in_two_frontends(server, stack):
    """Five connections over HTTP/2 to one frontend process, and one to another."""
    found = {}
    for number in range(60):
        h2 = stack.enter_context(H2(server, tls=True, timeout=60))
        # mod_http2 logs a stream when it looks after it next.
        line = eventually(lambda: h2.get(f"/who.php?{number}").status == 200 and re.search(rf"^\?{number} (\d+)$", server.log("pids.log"), re.M))
        found.setdefault(line[1], []).append(h2)
        crowd, *others = sorted(found.values(), key=len, reverse=True)
        if len(crowd) >= 5 and others:
            return crowd[:5], others[0][0]
    raise AssertionError("all connections got to one frontend process")


@pytest.mark.parametrize("moves", [True, False], ids=["moves", "hangs"])
@pytest.mark.parametrize("mpm", ["event", "pool"])
def test_streams_wait_in_a_queue_that_moves_for_another_frontend(httpd, mpm, moves):
    pids = 'CustomLog logs/pids.log "%q %P"\nKeepAliveTimeout 60\n'
    server = make(httpd, "PoolMaxProcesses 4\nPoolMaxFrontendThreads 4", DEBIAN, mpm=mpm, conf=pids)
    with ExitStack() as stack:
        crowd, alone = browsers_in_two_frontends(server, stack)
        page = f"/sleep.php?s={0.3 if moves else 60}"
        # mod_http2 begins with six streams of a connection at a time.
        before = [(h2, h2.start(page)) for h2 in crowd for _ in range(6)]
        [h2.flush() for h2 in crowd]
        time.sleep(0.2)
        behind = [alone.start(page) for _ in range(4)]
        alone.flush()
        # None of these gets a process for more than a second. A queue that does not move counts as one for two at most.
        time.sleep(1.2 if moves else 2.5)
        late = alone.start("/who.php")
        if not moves:
            assert alone.wait(late).status == 503
            return
        assert [alone.wait(stream).status for stream in [late, *behind]] == [200] * 5
        assert [h2.wait(stream).status for h2, stream in before] == [200] * 30


def test_streams_that_hang_leave_others_alone_as_the_mpm(httpd):
    server = make(httpd, "PoolMaxProcesses 30\nPoolMaxFrontendThreads 3", DEBIAN)
    with H2(server, tls=True, timeout=60) as h2:
        for _ in range(3):
            h2.start("/sleep.php?s=60")
        h2.flush()
        eventually(lambda: len(server.workers("alice")) == 3)
        time.sleep(1.5)
        assert h2.get("/who.php").status == 503
        answers_as_ever(server, 5)


def test_mod_status_counts_the_time_that_a_request_was_parked(httpd):
    conf = "ExtendedStatus on\n<Location /server-status>\nSetHandler server-status\nRequire all granted\nAssignServerPool none\n</Location>\n"
    server = make(httpd, conf=conf)
    server.get("/first.php?s=0")

    def status(query=""):
        return server.get(f"/server-status{query}", site="plain").text

    def total():
        return int(re.search(r"^Total Duration: (-?\d+)", status("?auto"), re.M)[1])

    before = total()
    # Threads that began none of them end some.
    for _ in range(2):
        for client in [Later(server.get, "/first.php?s=1") for _ in range(4)]:
            assert client.result().text == "first last"
    assert 8000 <= total() - before < 14000
    rows = [re.sub("<[^>]*>", " ", row).split() for row in re.findall("<tr><td><b>.*?</tr>", status(), re.S)]
    assert rows and all(0 <= int(of_all) < 16000 for _, _, _, _, _, _, _, of_all, *_ in rows), rows


def test_a_controller_that_does_not_read_holds_no_thread(httpd):
    """500 requests ask it for workers, more messages than its socket takes; who needs nothing of it is served."""
    server = make(httpd, "PoolQueueLimit 1000")
    assert server.get("/who.php", "bob").status == 200  # its worker stays here for a second
    controller = server.processes("controller")[0].pid
    os.kill(controller, signal.SIGSTOP)
    try:
        with Crowd(server, 500, "/who.php") as crowd:
            time.sleep(0.3)
            for _ in range(5):
                start = time.monotonic()
                assert server.get("/text.txt", "plain").text == "text"
                assert time.monotonic() - start < 2
            os.kill(controller, signal.SIGCONT)
            for s in crowd.clients:
                assert s.recv(100).startswith(b"HTTP/1.1 200 ")
    finally:
        os.kill(controller, signal.SIGCONT)


def test_an_answered_want_is_not_cancelled(httpd):
    """What a request says to the controller from its cold pool: that it wants a worker."""
    server = make(httpd, "PoolIdleTimeout 60s")
    frontend = server.processes("frontend")[0].pid
    for request in range(2):
        trace = server.root / f"trace{request}"
        with subprocess.Popen(["strace", "-f", "-qq", "-e", "trace=sendmsg", "-xx", "-s", "8", "-o", str(trace), "-p", str(frontend)],
                              stderr=subprocess.PIPE) as strace:
            eventually(lambda: read_process(frontend).status["TracerPid"] != "0")
            assert server.get("/who.php", "alice" if request == 0 else "bob").status == 200
            time.sleep(1.5)
            strace.send_signal(signal.SIGINT)
        # The first byte says what a message of the frontend is: Want 1, Cancel 2, Return 3.
        said = re.findall(r'iov_base="\\x0([1-9])\\x00', trace.read_text())
        assert "1" in said and "2" not in said, trace.read_text()
