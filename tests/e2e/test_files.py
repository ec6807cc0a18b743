"""Files that workers send as descriptors: whoever can make one wait keeps no thread of a frontend's, and nobody else.

alice's PHP sends descriptors of file systems that do not answer, or of a file whose lock is held. bob is the victim. The
frontend has two threads.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import stallfs
import wireforge as w
from harness import ALICE, BOB, H2, Broken, Later, Site, eventually
from pages import FFI

pytestmark = pytest.mark.pool_only

MIB = 1 << 20
BLOCK = bytes(range(256)) * 4096
# More than the sockets between server and client take.
HELD = 48 * MIB
BURST = 6


@contextlib.contextmanager
def stalling(base, *file):
    (base / "give").unlink(missing_ok=True)
    server = subprocess.Popen([sys.executable, stallfs.__file__, str(base), *map(str, file)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    try:
        words = server.stdout.readline().split()
        assert words[:1] == ["ready"], words
        yield words[1:]
    finally:
        # All that waits for it goes on, with an error.
        server.kill()
        server.wait(10)


@pytest.fixture(scope="module", autouse=True)
def possible():
    reason = stallfs.is_possible()
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def stall():
    # Of root: in its user namespace it may do nothing with what is others'.
    base = Path(tempfile.mkdtemp(prefix="stall-"))
    base.chmod(0o755)
    yield base
    shutil.rmtree(base)


@pytest.fixture(scope="module")
def server(scratch, stall, shared_httpd, kind):
    if kind["mpm"] == "prefork":
        pytest.skip("the burst must meet one frontend")
    sites = [Site("alice", ALICE, conf=FFI, pool_conf=f"PoolMaxProcesses {BURST}\nPoolEnv SCRATCH {scratch}\n"
                  f"PoolEnv STALL {stall}"),
             Site("bob", BOB, pool_conf="PoolIdleTimeout 300s")]
    server = shared_httpd(sites=sites, conf="Timeout 6\nH2MinWorkers 8\nH2MaxWorkers 16\n", mpm_conf=(
        "StartServers 1\nServerLimit 1\nThreadsPerChild 2\nMaxRequestWorkers 2\nMinSpareThreads 1\nMaxSpareThreads 2\n"
        # A burst's connections stay: with the usual factor, mpm_event takes no other one while there are six.
        "AsyncRequestWorkerFactor 64\n"))
    sites[0].write("forge.php", w.FORGE_PHP)
    sites[0].write("own.txt", "alice herself")
    for size in (16 << 10, 100 << 10, 3 * MIB + 17):
        sites[0].write(f"{size}.bin", (BLOCK * 4)[:size])
    sites[1].write("victim.txt", "the victim's own answer")
    sites[1].write("victim.php", "<?php echo 'the victim, by php';")
    held = stall / "held"
    held.write_bytes(BLOCK * (HELD // len(BLOCK)))
    held.chmod(0o666)
    server.start()
    assert server.get("/victim.php", "bob").status == 200
    return server


@pytest.fixture(autouse=True)
def fresh(server):
    """A fresh worker for each attack, so that its exchange has the forge's number."""
    server.kill("worker", "alice")
    eventually(lambda: not server.workers("alice"), 5)
    before = {p.pid for p in server.processes() if p.role in ("parent", "frontend", "controller")}
    yield
    assert before <= {p.pid for p in server.processes()}, "a process of the server has died"


# mpm_event stops to accept while all threads are busy, and can miss that they are not any more; the end of a connection
# reminds it. So whoever has his answer closes.
CLOSE = [("Connection", "close")]


class Burst:
    """So many attacks at once, and what others see meanwhile."""

    def __init__(self, server, plan):
        self.attacks = [Later(self.attack, server, plan) for _ in range(BURST)]

    def attack(self, server, plan):
        with server.connect(timeout=25) as connection:
            connection.request("POST", "/forge.php", body=plan, headers=CLOSE)
            with contextlib.suppress(Broken):
                return connection.response("POST").status

    def statuses(self):
        """`None` for those that were broken off."""
        return [attack.result(30) for attack in self.attacks]


def others_are_served(server, within, seconds=3):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for path, body in (("/victim.txt", "the victim's own answer"), ("/victim.php", "the victim, by php")):
            began = time.monotonic()
            found = server.get(path, "bob", timeout=20)
            assert (found.status, found.text) == (200, body)
            assert time.monotonic() - began < within, f"{path}: a thread was kept"
        time.sleep(0.05)


def a_file(kind, length=4000, **more):
    # Its last request: the script hangs then, and another request would wait for it to take that.
    end = w.end(flags=w.LAST)
    return {"data": w.head(200, ("Content-Length", str(length))) + w.file(0, length) + end, "fds": [kind], **more}


@pytest.mark.parametrize("what", ["fuse", "overlay", "direct"])
def test_files_that_could_wait_are_refused_and_keep_no_thread(server, stall, what):
    with stalling(stall) as places:
        if what not in (*places, "direct"):
            pytest.skip("no overlayfs here")
        at = len(server.error_log())
        burst = Burst(server, w.plan(a_file(what)))
        # The timeout is 6 s, and none of these answers at all.
        others_are_served(server, 3)
        assert set(burst.statuses()) <= {502, 503, None}
        assert "no plain file of a local file system" in server.wait_for_log("POOL10[34].*no plain file.*", after=at)[0]
        others_are_served(server, 3, 1)


@pytest.mark.parametrize("what", ["epoll", "inotify"])
def test_descriptors_that_are_no_files_are_refused(server, what):
    with server.connect(timeout=15) as c:
        c.request("POST", "/forge.php", body=w.plan(a_file(what)))
        assert c.response("POST").status == 502


def test_locks_of_a_file_are_not_listed(server):
    """The kernel lists those of the description that was sent, however many: who asks for it is kept so long."""
    with server.connect(timeout=15) as c:
        c.request("POST", "/forge.php", body=w.plan(a_file("locked")))
        answer = c.response("POST")
        assert (answer.status, answer.body) == (200, b"l" * 4000)


@pytest.mark.parametrize("over", ["h1", "tls", "h2"])
def test_a_lock_and_a_flag_that_come_later_keep_no_thread(server, stall, over):
    """The description is shared: its owner sets O_DIRECT once it was accepted, and a read waits for the inode's lock."""
    plan = w.plan(a_file("held", HELD, pause=0.5, flags=0x4000))
    with stalling(stall, stall / "held"):
        if over == "h2":
            with H2(server, timeout=30) as c:
                c.start("/forge.php", method="POST", body=plan)
                time.sleep(1)
                others_are_served(server, 3)
            return
        connections = [server.connect(tls=over == "tls", timeout=30) for _ in range(BURST)]
        try:
            for c in connections:
                c.request("POST", "/forge.php", body=plan, headers=CLOSE)
            time.sleep(1.5)
            # Now they take all that comes, so that the next piece is asked for.
            takers = [Later(drain, c) for c in connections]
            others_are_served(server, 3)
            for taker in takers:
                assert taker.result(30) < HELD
        finally:
            for c in connections:
                c.close()
    others_are_served(server, 3, 1)


def drain(connection):
    """How many bytes come until the connection ends; it is closed then."""
    total = 0
    with contextlib.suppress(OSError, Broken):
        while True:
            data = connection.sock.recv(1 << 16)
            if not data:
                break
            total += len(data)
    connection.close()
    return total


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("size", [16 << 10, 100 << 10, 3 * MIB + 17])
def test_files_arrive_whole_cold_and_warm(server, tls, size):
    path = server.sites["alice"].docroot / f"{size}.bin"
    expected = (BLOCK * 4)[:size]
    for _ in range(2):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for _ in range(2):
            assert server.get(f"/{size}.bin", tls=tls).body == expected
    with H2(server) as c:
        assert c.get(f"/{size}.bin").body == expected
    found = server.get(f"/{size}.bin", headers=[("Range", "bytes=1000-15000")], tls=tls)
    assert (found.status, found.body) == (206, expected[1000:15001])
    with server.connect(tls=tls) as c:
        c.request("HEAD", f"/{size}.bin")
        head = c.response("HEAD")
        assert (head.status, head.get("Content-Length")) == (200, str(size))
        c.request("GET", f"/{size}.bin", headers=[("If-None-Match", head.get("ETag"))])
        assert c.response().status == 304
        c.request("GET", f"/{size}.bin")
        assert c.response().body == expected


def test_a_file_that_is_truncated_while_it_is_sent_breaks_its_own_response(server):
    path = server.sites["alice"].docroot / "shrinks.bin"
    server.sites["alice"].write("shrinks.bin", BLOCK * (HELD // MIB))
    at = len(server.error_log())
    with server.connect(timeout=20) as c:
        c.request("GET", "/shrinks.bin")
        time.sleep(0.5)
        os.truncate(path, 100)
        assert 0 < drain(c) < HELD
    server.wait_for_log("POOL104.*alice.*became shorter", after=at)
    assert server.get("/own.txt").text == "alice herself"


def test_a_file_that_grows_is_sent_as_long_as_it_was(server):
    server.sites["alice"].write("grows.bin", BLOCK * 8)
    path = server.sites["alice"].docroot / "grows.bin"
    stop = threading.Event()

    def grow():
        while not stop.wait(0.01):
            with path.open("ab") as file:
                file.write(b"more" * 1000)

    growing = Later(grow)
    try:
        with server.connect() as c:
            for _ in range(10):
                c.request("GET", "/grows.bin")
                found = c.response()
                assert found.complete and found.body[:8 * MIB] == BLOCK * 8
                assert set(found.body[8 * MIB:]) <= set(b"more")
    finally:
        stop.set()
        growing.result()


def test_files_do_not_stay_open(server):
    def held():
        return sum(1 for p in server.processes("frontend") for fd in os.listdir(f"/proc/{p.pid}/fd")
                   if linked(p.pid, fd).endswith(".bin"))

    for _ in range(5):
        with server.connect() as c:
            for _ in range(80):
                c.request("GET", f"/{100 << 10}.bin")
                assert c.response().status == 200
    eventually(lambda: held() == 0, 3, what="the files are closed")


def linked(pid, fd):
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}")
    except FileNotFoundError:
        return ""


def test_a_file_is_closed_by_no_thread_that_serves(server, tmp_path):
    """Its last close may have to free a deleted file of any size."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    assert server.get("/own.txt").text == "alice herself"
    [frontend] = server.processes("frontend")
    said = tmp_path / "calls"
    tracer = subprocess.Popen(["strace", "-f", "-e", "trace=recvmsg,close", "-o", str(said), "-p", str(frontend.pid)],
                              stderr=subprocess.PIPE, text=True)
    try:
        assert "attached" in tracer.stderr.readline()
        assert len(server.get(f"/{100 << 10}.bin").body) == 100 << 10

        def closes():
            came = re.search(r"^(\d+) .*cmsg_type=SCM_RIGHTS, cmsg_data=\[(\d+)\]", said.read_text(), re.M)
            if came:
                thread, fd = came.groups()
                behind = said.read_text()[came.end():]
                closed = re.search(rf"^(\d+) +close\({fd}\b", behind, re.M)
                return closed and (thread, closed.group(1))
            return None
        thread, closer = eventually(closes, 5, what="the file is closed")
        assert closer != thread, said.read_text()
    finally:
        tracer.terminate()
        tracer.wait(10)
