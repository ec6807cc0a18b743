"""What a bad day brings, with mod_pool as the MPM: crowds, slow clients, deaths, no processes, no disk, many reloads."""

import contextlib
import errno
import os
import random
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness import ALICE, BOB, Broken, Later, MemoryGroup, Site, descendants, eventually, fds_of, gone, read_process, run

pytestmark = pytest.mark.pool_only

STATUS = "<Location /server-status>\nSetHandler server-status\nRequire all granted\n</Location>\nExtendedStatus on\n"
TWO_FRONTENDS = (
    "StartServers 2\nServerLimit 4\nThreadsPerChild 8\nMaxRequestWorkers 32\nMinSpareThreads 12\nMaxSpareThreads 32\n"
)
PAGES = (("/text.txt", "plain", "text"), ("/ok.php", "alice", "from alice"), ("/ok.php", "bob", "from bob"))


def make(httpd, pool_conf="PoolIdleTimeout 60s", mpm="pool", start=True, **kw):
    """Two pools, and a site that the frontends serve themselves."""
    sites = [Site("alice", ALICE, pool_conf=pool_conf), Site("bob", BOB, pool_conf=pool_conf),
             Site("plain", pool=None, conf="AssignServerPool none")]
    server = httpd(mpm=mpm, sites=sites, **{"conf": STATUS, "mpm_conf": TWO_FRONTENDS, **kw})
    for site in sites[:2]:
        site.write("ok.php", "<?php echo 'from %s';" % site.name)
        site.write("say.php", "<?php error_log('said ' . $_GET['n']); echo 'told';")
    sites[2].write("text.txt", "text", mode=0o644)
    return server.start() if start else server


def serves(server, pages=PAGES, timeout=5):
    """Whether each page is answered as it should be."""
    for path, site, text in pages:
        found = server.try_get(path, site, timeout=timeout)
        if not (found and found.status == 200 and found.text == text):
            return False
    return True


def frontends(server):
    return {p.pid for p in server.processes("frontend")}


def status(server):
    text = server.get("/server-status?auto", "plain").text
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


def orphans(server):
    """Processes of the running server that its parent has nothing to do with."""
    own = {server.main} | {p.pid for p in descendants(server.main)}
    return [p for p in server.leftovers() if p.pid not in own]


def zombies(server):
    return [p for p in descendants(server.main) if p.state == "Z"]


def is_in_order(server):
    """One of each that there is to be one of; nobody dead, nobody lost."""
    count = lambda role: len(server.processes(role))
    return (count("controller") == count("seed") == 1 and count("zygote") <= 2 and count("frontend") <= 4
            and not zombies(server) and not orphans(server))


class Clients:
    """Some keep their connection, some close it; each checks every answer and takes its time between two.

    Lost is what a browser would show: a refused new connection, no answer or another one. The end of an idle connection
    before any byte of an answer is not: the client asks again on a new one (RFC 9112, 9.3.1).
    """

    def __init__(self, server, pages=PAGES, each=2, pause=0.01, patience=20):
        self.server, self.pause, self.patience = server, pause, patience
        self.lost, self.again, self.times = [], 0, []
        self.over = threading.Event()
        jobs = [(page, n % 2 == 0) for page in pages for n in range(each)]
        self.threads = [threading.Thread(target=self.ask, args=job, daemon=True) for job in jobs]

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for t in self.threads:
            t.join(30)

    def ask(self, page, keep_alive):
        path, site, text = page
        headers = [] if keep_alive else [("Connection", "close")]
        connection, used = None, 0
        while not self.over.wait(self.pause):
            start = time.monotonic()
            try:
                if connection is None:
                    connection, used = self.server.connect(timeout=self.patience), 0
                connection.request("GET", path, f"{site}.test", headers)
                found = connection.response()
                if (found.status, found.complete, found.text) != (200, True, text):
                    self.lost.append(f"{site}{path}: {found.status} complete={found.complete} {found.text[:50]!r}")
                self.times.append((site, start, time.monotonic() - start))
                used += 1
                if keep_alive and not found.closes:
                    continue
            except (Broken, OSError) as e:
                if used and not connection.buffer and not isinstance(e, TimeoutError):
                    self.again += 1
                else:
                    self.lost.append(f"{site}{path}: {e!r} after {used} answers on this connection")
            if connection:
                connection.close()
            connection = None

    def between(self, start, end):
        """In words: how many answers, and 50, 99 of 100 of them within how many ms."""
        out = []
        for kind, plain in (("files", True), ("pools", False)):
            took = sorted(t for site, at, t in self.times if start <= at < end and (site == "plain") == plain)
            p50, p99 = (1000 * took[len(took) * part // 100] for part in (50, 99))
            out.append(f"{kind}: {len(took)} answers, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        return "; ".join(out)


# --- crowds -------------------------------------------------------------------------------------------


# argv: port, source address, connections. One request on each, then all of them idle until stdin ends.
HOLDER = r"""
import resource, socket, sys
port, source, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held, good = [], 0
while len(held) < count:
    some = []
    for _ in range(min(100, count - len(held))):
        s = socket.socket()
        s.settimeout(60)
        s.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: a port is taken for both addresses
        s.bind((source, 0))
        s.connect(("127.0.0.1", port))
        s.sendall(b"GET /text.txt HTTP/1.1\r\nHost: plain.test\r\n\r\n")
        some.append(s)
    for s in some:
        data = b""
        while not data.endswith(b"\r\n\r\ntext"):
            piece = s.recv(4096)
            if not piece:
                sys.exit("a connection has ended: %r" % data)
            data += piece
    held += some
print("ready", flush=True)
sys.stdin.read()
for s in held:
    s.setblocking(False)
    try:
        if s.recv(1) == b"":
            sys.exit("the server has ended an idle connection")
    except BlockingIOError:
        pass
"""
CROWD = 20_000


@pytest.mark.timeout(170)
def test_twenty_thousand_idle_connections(httpd):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Two frontends share them; a client process takes a quarter.
    count = min(CROWD, 2 * (hard - 1500))
    if count < 5000:
        pytest.skip(f"RLIMIT_NOFILE is {hard} at most")
    threads = 32
    factor = (min(hard, CROWD) - 1000) // threads
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # it is inherited
    try:
        server = make(httpd, conf=STATUS + "KeepAliveTimeout 600\n", mpm_conf=f"""
            StartServers 2
            ServerLimit 2
            ThreadsPerChild {threads}
            MaxRequestWorkers {2 * threads}
            MinSpareThreads 1
            MaxSpareThreads {2 * threads}
            AsyncRequestWorkerFactor {factor}
        """)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    eventually(lambda: serves(server), 15)
    rss = lambda: sum(int(p.status["VmRSS"].split()[0]) for p in server.processes("frontend"))
    pids = frontends(server)
    descriptors = lambda: sum(len(fds_of(pid)) for pid in pids)
    before, opened = rss(), descriptors()
    start = time.monotonic()
    holders = [subprocess.Popen([sys.executable, "-c", HOLDER, str(server.port), f"127.0.0.{2 + n}", str(count // 4)],
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for n in range(4)]
    try:
        for holder in holders:
            if holder.stdout.readline() != b"ready\n":
                raise AssertionError(holder.stderr.read().decode())
        print(f"{count} connections within {time.monotonic() - start:.1f} s")
        eventually(lambda: int(status(server)["ConnsAsyncKeepAlive"]) >= count // 4 * 4, 10, what="all of them idle")
        each = (rss() - before) / count
        print(f"{each:.1f} KiB of a frontend's memory for each")
        assert each < 48  # about 32, as with mpm_event
        for _ in range(20):
            asked = time.monotonic()
            assert serves(server)
            assert time.monotonic() - asked < 3
        assert descriptors() >= count
        for holder in holders:
            _, said = holder.communicate(timeout=60)
            assert holder.returncode == 0, said.decode()
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
    eventually(lambda: descriptors() <= opened + 2 * threads, 30, what="the descriptors are closed")
    assert serves(server)
    print(f"{(rss() - before) / count:.1f} KiB each are kept for the next ones")
    assert frontends(server) == pids
    assert not server.count_log("POOL207")


def test_slow_headers_leave_room_for_others(httpd):
    """Slowloris: more clients than threads, each with a byte of a header now and then."""
    server = make(httpd, conf=STATUS + "RequestReadTimeout header=2-4,minrate=500\n", mpm_conf="""
        StartServers 1
        ServerLimit 1
        ThreadsPerChild 4
        MaxRequestWorkers 4
        MinSpareThreads 1
        MaxSpareThreads 4
    """)
    eventually(lambda: serves(server), 15)
    slow = {}
    for _ in range(12):
        s = socket.create_connection(("127.0.0.1", server.port), 10)
        s.sendall(b"GET /text.txt HTTP/1.1\r\nHost: plain.test\r\nX-Slow: ")
        slow[s] = b""
    over = threading.Event()
    ended = []

    def drip():
        while slow and not over.wait(0.3):
            for s in list(slow):
                with contextlib.suppress(OSError):
                    s.send(b"x")
            for s in select.select(list(slow), [], [], 0)[0]:
                try:
                    piece = s.recv(4096)
                except OSError:
                    piece = b""
                slow[s] += piece
                if not piece:
                    ended.append(slow.pop(s))
                    s.close()

    dripper = threading.Thread(target=drip, daemon=True)
    dripper.start()
    took = []
    for _ in range(8):
        asked = time.monotonic()
        assert serves(server, timeout=30)
        took.append(time.monotonic() - asked)
    eventually(lambda: len(ended) == 12, 40, what="the end of the slow ones")
    over.set()
    dripper.join(10)
    print("three pages took", " ".join(f"{t:.2f}" for t in took), "s")
    assert [data[:12] for data in ended] == [b"HTTP/1.1 408"] * 12
    asked = time.monotonic()
    assert serves(server) and time.monotonic() - asked < 2


# argv: a processor. For each line: keeps it from everybody for 30 ms.
HOG = r"""
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
print("ready", flush=True)
for _ in sys.stdin:
    end = time.monotonic() + 0.03
    print("busy", flush=True)
    while time.monotonic() < end:
        pass
"""


@pytest.mark.serial
@pytest.mark.timeout(120)
def test_a_frontend_that_gets_full_calls_another_for_those_it_was_woken_for(httpd):
    """The kernel wakes a thread of one process for each of three connections; the first makes that process full."""
    server = make(httpd, conf=STATUS + "KeepAliveTimeout 100\n", log_format="%P %U%q", without=["reqtimeout"], mpm_conf="""
        StartServers 2
        ServerLimit 2
        ThreadsPerChild 4
        MaxRequestWorkers 8
        MinSpareThreads 1
        MaxSpareThreads 8
        AsyncRequestWorkerFactor 1
    """)
    all_of_them = os.sched_getaffinity(0)
    here, *others = sorted(all_of_them)
    if not others:
        pytest.skip("needs two processors")
    hog = subprocess.Popen([sys.executable, "-c", HOG, str(here)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)
    try:
        if hog.stdout.readline() != "ready\n":
            pytest.skip(f"needs SCHED_FIFO: {hog.communicate()[1].splitlines()[-1]}")
        eventually(lambda: serves(server, PAGES[:1]), 15)
        with contextlib.ExitStack() as held:
            has, n = dict.fromkeys(frontends(server), 0), 0
            while min(has.values()) < 6:
                n += 1
                c = held.enter_context(server.connect())
                assert c.get(f"/text.txt?{n}", "plain.test").status == 200
                log = lambda: re.search(rf"^(\d+) /text.txt\?{n}$", "\n".join(server.access_log()), re.M)
                pid = int(eventually(log)[1])
                if has[pid] == 6:
                    c.close()
                else:
                    has[pid] += 1
            os.sched_setaffinity(0, set(others))
            for pid in has:
                for thread in os.listdir(f"/proc/{pid}/task"):
                    os.sched_setaffinity(int(thread), {here})
            took = []
            for _ in range(20):
                time.sleep(0.3)
                hog.stdin.write("\n")
                hog.stdin.flush()
                assert hog.stdout.readline() == "busy\n"
                with server.connect() as half, server.connect() as one, server.connect() as other:
                    half.send(b"GET /te")
                    start = time.monotonic()
                    for c in (one, other):
                        c.request("GET", "/text.txt", "plain.test", [("Connection", "close")])
                    for c in (one, other):
                        assert c.response().text == "text"
                        took.append(time.monotonic() - start)
    finally:
        os.sched_setaffinity(0, all_of_them)
        hog.kill()
        hog.communicate()
    took.sort()
    print("answers after", " ".join(f"{1000 * t:.0f}" for t in took), "ms")
    # Some of them find a place where they came. Nobody else looked for 250 ms.
    assert took[len(took) // 2] < 0.12


# --- deaths -------------------------------------------------------------------------------------------


@pytest.mark.timeout(150)
def test_any_process_may_be_killed_at_any_moment(httpd):
    server = make(httpd)
    eventually(lambda: serves(server), 15)
    for role in ("frontend", "controller", "seed", "zygote", "worker"):
        for path, site, _ in PAGES:
            server.get(path, site)
        killed = server.kill(role)
        assert killed, role
        start = time.monotonic()
        eventually(lambda: serves(server), 20, what=f"answers after the death of each {role}")
        print(f"{role}: {time.monotonic() - start:.2f} s")
        eventually(lambda: not {p.pid for p in server.processes()} & set(killed), 5, what="they are gone")
    dice = random.Random(34)
    deaths = 0
    with Clients(server, pause=0.005) as clients:
        end = time.monotonic() + 10
        while time.monotonic() < end or deaths <= 10:
            victims = [p for p in server.processes() if p.pid != server.main]
            if victims:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(dice.choice(victims).pid, signal.SIGKILL)
                    deaths += 1
            time.sleep(dice.random() * 0.4)
    print(f"{deaths} deaths, {len(clients.times)} answers, {len(clients.lost)} lost")
    assert len(clients.times) > deaths
    # A connection breaks; a pool says 502 or 503; nobody waits in vain, or gets something else.
    fair = "ok.php: 50[23] complete=True|complete=False|Broken|ConnectionReset"
    assert [lost for lost in clients.lost if not re.search(fair, lost)] == []
    eventually(lambda: serves(server), 20, what="answers after the last death")
    for _ in range(10):
        assert serves(server)
    eventually(lambda: is_in_order(server), 15, what="one of each, no zombie, no orphan")
    server.stop()
    assert server.leftovers() == []


def test_nothing_outlives_the_parent_and_the_next_start_serves(httpd):
    server = make(httpd, start=False).start("daemon")
    eventually(lambda: serves(server), 15)
    there = [p.pid for p in server.processes()]
    os.kill(server.main, signal.SIGKILL)
    eventually(lambda: gone(*there), 15, what="the end of every process")
    assert server.wait_until_nothing_is_left() == []
    server.pid_file.unlink()  # start() reads it
    server.start("daemon")
    eventually(lambda: serves(server), 15)


def test_a_crash_in_a_frontend_is_told_once_and_costs_its_own_connections_only(httpd):
    server = make(httpd, conf=STATUS + "KeepAliveTimeout 60\n", log_format="%P %U%q")
    eventually(lambda: serves(server), 15)
    before = frontends(server)
    kept = []
    for n in range(40):
        kept.append(server.connect())
        assert kept[n].get(f"/text.txt?n={n}", "plain.test").text == "text"

    def pids():
        found = re.findall(r"^(\d+) /text\.txt\?n=(\d+)$", "\n".join(server.access_log()), re.M)
        return {int(n): int(pid) for pid, n in found}

    eventually(lambda: len(pids()) == 40, what="a line for each connection")
    of = pids()
    victim = of[0]
    os.kill(victim, signal.SIGSEGV)
    eventually(lambda: victim not in frontends(server) and len(frontends(server)) >= len(before), 10, what="another one")
    for n, c in enumerate(kept):
        if of[n] == victim:
            assert c.is_closed()
        else:
            assert c.get("/text.txt", "plain.test").text == "text"
        c.close()
    assert serves(server)
    assert server.count_log(rf"child pid {victim} exit signal Segmentation fault") == 1
    assert server.count_log(r"exit signal") == 1
    assert not zombies(server)


def later(server, path, site="alice"):
    return Later(lambda: server.get(path, site, timeout=40).status)


def test_a_reload_while_the_controller_is_dead_loses_nothing(httpd):
    server = make(httpd, "PoolIdleTimeout 60s\nPoolQueueTimeout 3s")
    eventually(lambda: serves(server), 15)
    for _ in range(4):
        server.kill("controller")
        # httpd's parent looks once a second: as a rule the reload comes first.
        waiting = [later(server, "/ok.php", site) for site in ("alice", "bob") for _ in range(2)]
        time.sleep(0.1)
        server.graceful()
        assert [w.result(45) for w in waiting] == [200] * 4
        eventually(lambda: serves(server), 15)


@pytest.mark.parametrize("reload", [False, True], ids=["", "reload"])
def test_the_death_of_the_controller_costs_no_request_that_waits(httpd, reload):
    server = make(httpd, "PoolIdleTimeout 60s\nPoolQueueTimeout 6s\nPoolMaxProcesses 1")
    server.sites["alice"].write("slow.php", "<?php sleep(1); echo 'slept';")
    eventually(lambda: serves(server), 15)
    waiting = [later(server, "/slow.php")]
    time.sleep(0.3)
    waiting += [later(server, "/ok.php") for _ in range(3)]
    time.sleep(0.2)
    if reload:
        server.graceful()
    server.kill("controller")
    assert [w.result(45) for w in waiting] == [200] * 4
    eventually(lambda: is_in_order(server), 15, what="one of each, no zombie, no orphan")


@pytest.mark.parametrize("change", ["moved", "gone"])
def test_what_waits_for_a_site_that_was_changed_is_refused_at_once(httpd, change):
    """A seed for frontends of an older configuration reads the files as they are now."""
    server = make(httpd, "PoolIdleTimeout 60s\nPoolQueueTimeout 60s\nPoolMaxProcesses 1")
    alice = server.sites["alice"]
    alice.write("slow.php", "<?php while (!file_exists('go')) { usleep(20000); clearstatcache(); } echo 'gone';")
    eventually(lambda: serves(server), 15)
    slow = later(server, "/slow.php")
    time.sleep(0.5)
    waiting = [Later(lambda: (server.get("/ok.php", "alice", timeout=40), time.monotonic())) for _ in range(3)]
    time.sleep(0.5)
    if change == "moved":
        server.extra += "\n# all virtual hosts move by a line\n"
    else:
        alice.pool, alice.conf = None, "AssignServerPool none\n"
    server.graceful()
    at = len(server.error_log())
    server.kill("controller")
    # Until its frontend knows of the death, the worker that is free serves what waits there, as it should.
    eventually(lambda: "POOL109" in server.error_log()[at:], 10)
    time.sleep(0.5)
    alice.write("go", "")
    killed = time.monotonic()
    for answer, when in [w.result(45) for w in waiting]:
        assert answer.status == 503 and answer.get("Retry-After")
        assert when - killed < 15
    assert slow.result(45) == 200
    refused = "POOL103.* has read another configuration" if change == "moved" else "POOL106: .pool alice. 503"
    assert len(re.findall(refused, server.error_log()[at:])) == 3
    pages = PAGES if change == "moved" else [page for page in PAGES if page[1] != "alice"]
    eventually(lambda: serves(server, pages), 15)
    eventually(lambda: is_in_order(server), 15, what="one of each, no zombie, no orphan")


# --- what the machine has not got ---------------------------------------------------------------------


class ForkLimit(MemoryGroup):
    """A control group whose processes cannot fork while it is `closed`: the kernel says EAGAIN."""

    def __init__(self, name):
        top = Path("/sys/fs/cgroup")
        unified = (top / "cgroup.controllers").exists()
        self.path = (top if unified else top / "pids") / name
        try:
            self.path.mkdir()
        except OSError as e:
            pytest.skip(f"needs a pids cgroup that can be written: {e}")
        try:
            self.open()
        except OSError as e:
            self.path.rmdir()
            pytest.skip(f"needs the pids controller of cgroups: {e}")

    def open(self):
        (self.path / "pids.max").write_text("max")

    def close(self):
        (self.path / "pids.max").write_text("1")


@pytest.mark.timeout(120)
def test_without_a_process_to_fork_it_goes_on_with_what_it_has(httpd):
    server = make(httpd, "PoolIdleTimeout 60s\nPoolQueueTimeout 3s", log_format="%P %v")
    with ForkLimit(f"mod_pool-{server.tag}") as group:
        try:
            eventually(lambda: serves(server, PAGES[:2]), 15)  # bob's pool does not run
            # A worker ends with the frontend that holds it.
            holder = eventually(lambda: re.findall(r"^(\d+) alice\.test$", "\n".join(server.access_log()), re.M))[-1]
            victim = min(frontends(server) - {int(holder)})
            for _ in range(2):
                for process in server.processes():
                    with contextlib.suppress(ProcessLookupError):
                        group.take(process.pid)
            group.close()
            os.kill(victim, signal.SIGKILL)
            server.wait_for_log("POOL213.*cannot be forked", 15)
            end = time.monotonic() + 4
            while time.monotonic() < end:
                assert serves(server, PAGES[:2])
                time.sleep(0.1)
            for _ in range(3):
                refused = server.get("/ok.php", "bob")
                assert refused.status == 503 and refused.get("Retry-After")
            group.open()
            opened = time.monotonic()
            eventually(lambda: serves(server), 20, what="bob's pool")
            pool_took = time.monotonic() - opened
            eventually(lambda: len(frontends(server)) >= 2, 20, what="another frontend")
            print(f"the pool was back after {pool_took:.1f} s, the frontend after {time.monotonic() - opened:.1f} s")
            # The parent tries every 10 s.
            assert server.count_log("POOL213") <= 2
            assert server.count_log("pool bob: .*cannot fork") >= 1
            eventually(lambda: is_in_order(server), 10, what="one of each, no zombie, no orphan")
        finally:
            group.open()
            server.stop()


@pytest.mark.parametrize("mpm", ["pool", "event"])
def test_a_pool_that_cannot_grow_serves_with_the_workers_it_has(httpd, mpm):
    """Who finds them busy waits for them, as where PoolMaxProcesses is reached."""
    server = make(httpd, "PoolIdleTimeout 60s", mpm=mpm, mpm_conf=TWO_FRONTENDS.replace("ServerLimit 4", "ServerLimit 2"))
    server.sites["alice"].write("nap.php", "<?php usleep(50000); echo 'slept';")
    nap = ("/nap.php", "alice", "slept")
    assert serves(server, [nap])
    [controller] = server.processes("controller")
    before = len(server.workers("alice"))
    limits = resource.prlimit(controller.pid, resource.RLIMIT_NOFILE)
    # What is free now is not enough for another worker.
    resource.prlimit(controller.pid, resource.RLIMIT_NOFILE, (max(fds_of(controller.pid)) + 2, limits[1]))
    with Clients(server, [nap], each=6, pause=0) as clients:
        time.sleep(5)
        assert len(server.workers("alice")) == before
        resource.prlimit(controller.pid, resource.RLIMIT_NOFILE, limits)
        eventually(lambda: len(server.workers("alice")) > before, 10, what="more workers, where there can be some")
        time.sleep(1)
    assert len(clients.times) > 100 and clients.lost == []
    failures = server.count_log(r"pool alice: its processes fail to start.*Too many open files.*ulimit -n")
    assert 1 <= failures <= 4  # after 0, 1, 3 and 7 s


@pytest.mark.timeout(60)
def test_a_controller_without_descriptors_to_spare_loses_no_worker(httpd):
    """More pools than it has descriptors for. A lease that comes back needs one."""
    limit = 64
    one = "PoolIdleTimeout 60s\nPoolMaxProcesses 1"
    sites = [Site(f"s{n}", ALICE + n % 3, pool_conf=one) for n in range(10)]
    server = httpd(mpm="pool", sites=sites, mpm_conf=TWO_FRONTENDS.replace("ServerLimit 4", "ServerLimit 2"))
    for site in sites:
        site.write("nap.php", "<?php usleep(20000); echo 'slept';")
    server.start()
    [controller] = server.processes("controller")
    resource.prlimit(controller.pid, resource.RLIMIT_NOFILE, (limit, limit))
    # Each makes room for the next one.
    assert [server.get("/nap.php", site.name).status for site in sites] == [200] * len(sites)
    working = [site.name for site in sites[-3:]]
    assert [server.get("/nap.php", name).status for name in working] == [200] * len(working)
    workers = {worker.pid for worker in server.workers()}
    with Clients(server, [("/nap.php", name, "slept") for name in working], each=3, pause=0) as clients:
        for _ in range(4):
            time.sleep(1.2)  # in which idle leases come back
    time.sleep(1.5)
    assert clients.lost == []
    assert {worker.pid for worker in server.workers()} >= workers


@pytest.mark.timeout(120)
@pytest.mark.parametrize("then", ["goes on", "stop", "reload"])
def test_a_reload_without_a_process_to_fork_keeps_the_older_frontends(httpd, then):
    server = make(httpd)
    with ForkLimit(f"mod_pool-{server.tag}") as group:
        try:
            eventually(lambda: serves(server), 15)
            older = frontends(server)
            for _ in range(2):
                for process in server.processes():
                    with contextlib.suppress(ProcessLookupError):
                        group.take(process.pid)
            group.close()
            server.graceful()
            server.wait_for_log("POOL213.*cannot be forked.*go on", 15)
            end = time.monotonic() + 3
            while time.monotonic() < end:
                assert serves(server, PAGES[:1], timeout=3)
            assert frontends(server) == older
            if then == "stop":
                server.stop()
                assert server.leftovers() == []
                return
            if then == "reload":
                server.graceful()
                assert serves(server, PAGES[:1], timeout=3)
            assert server.count_log("POOL213") == 1
            group.open()
            opened = time.monotonic()
            eventually(lambda: frontends(server) and not frontends(server) & older, 25, what="new frontends only")
            print(f"new frontends after {time.monotonic() - opened:.1f} s")
            eventually(lambda: serves(server), 15)
            eventually(lambda: is_in_order(server), 15, what="one of each, no zombie, no orphan")
        finally:
            group.open()
            server.stop()


@pytest.mark.timeout(120)
def test_a_frontend_that_lacks_its_last_thread_takes_no_connection_with_it(httpd):
    server = make(httpd, mpm_conf=TWO_FRONTENDS.replace("ServerLimit 4", "ServerLimit 2"))
    with ForkLimit(f"mod_pool-{server.tag}") as group:
        try:
            assert serves(server, PAGES[:1])
            for _ in range(2):
                for process in server.processes():
                    group.take(process.pid)
            tasks = int((group.path / "pids.current").read_text())
            (group.path / "pids.max").write_text(str(tasks - 1))
            victim = min(frontends(server))
            os.kill(victim, signal.SIGTERM)
            eventually(lambda: gone(victim))
            with Clients(server, PAGES[:1], each=12, pause=0) as clients:
                server.wait_for_log("POOL204", 10)
                time.sleep(6)
            assert len(clients.times) > 500 and clients.lost == []
            group.open()
            eventually(lambda: len(frontends(server)) == 2, 20, what="another frontend")
            assert serves(server, PAGES[:1])
        finally:
            group.open()
            server.stop()


@pytest.mark.timeout(120)
def test_a_reload_whose_frontends_cannot_be_set_up_keeps_the_older_ones(httpd):
    server = make(httpd)
    eventually(lambda: serves(server), 15)
    older = frontends(server)
    extra = server.extra
    server.extra += f"ThreadStackSize {1 << 46}\n"
    server.graceful()
    server.wait_for_log("POOL204", 15)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        assert serves(server, timeout=5)
    assert frontends(server) >= older
    # One attempt, and the next after 10 s.
    assert 1 <= server.count_log("POOL204") <= 4
    assert not server.count_log("POOL214")
    server.extra = extra
    server.graceful()
    eventually(lambda: frontends(server) and not frontends(server) & older, 25, what="new frontends only")
    eventually(lambda: serves(server), 15)
    eventually(lambda: is_in_order(server), 15, what="one of each, no zombie, no orphan")


@pytest.mark.timeout(120)
def test_without_descriptors_left_nobody_inside_is_refused(httpd):
    """More clients than a frontend has descriptors; each connection keeps one, a request needs one or two more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (80, hard))  # it is inherited
    try:
        server = make(httpd, "PoolIdleTimeout 60s\nPoolMaxProcesses 3", conf=STATUS + "KeepAliveTimeout 60\n", mpm_conf="""
            StartServers 1
            ServerLimit 1
            ThreadsPerChild 6
            MaxRequestWorkers 6
            MinSpareThreads 1
            MaxSpareThreads 6
            AsyncRequestWorkerFactor 50
        """)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for site in ("plain", "alice"):
        server.sites[site].write("big.txt", "b" * 3_000_000, mode=0o644)
    eventually(lambda: serves(server), 15)
    (pid,) = frontends(server)
    pages = (*PAGES, ("/big.txt", "plain", "b" * 3_000_000), ("/big.txt", "alice", "b" * 3_000_000))
    for _ in range(2):
        with contextlib.ExitStack() as held:
            asked = []
            for n in range(100):
                path, site, text = pages[n % len(pages)]
                asked.append((held.enter_context(server.connect(timeout=60)), text))
                asked[-1][0].request("GET", path, f"{site}.test")
            got = [(c.response(), text) for c, text in asked]
            assert [(r.status, r.complete, r.text[:60]) for r, text in got if (r.status, r.text) != (200, text)] == []
    assert server.count_log("POOL207")
    assert not server.count_log(r"\(24\)|Too many open files")
    eventually(lambda: serves(server), 15)
    assert frontends(server) == {pid}


# argv: a user, a number. Has so many descriptors on their way until its standard input ends.
IN_FLIGHT = r"""
import array, os, socket, sys
user, count = map(int, sys.argv[1:])
os.setgroups([]); os.setgid(user); os.setuid(user)
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * count))])
print("ready", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def descriptors_in_flight(user, count):
    """Of this user, as on a busy machine: beyond the limit of open files of who sends another one, the kernel refuses."""
    holder = subprocess.Popen([sys.executable, "-c", IN_FLIGHT, str(user), str(count)], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "ready\n"
        yield
    finally:
        holder.communicate()


@pytest.mark.parametrize("in_flight", [0, 10])
@pytest.mark.parametrize("mpm", ["pool", "event"])
def test_a_frontend_without_a_descriptor_left_keeps_its_controller(httpd, mpm, in_flight):
    server = make(httpd, mpm=mpm, mpm_conf="StartServers 1\nServerLimit 1\nThreadsPerChild 8\nMaxRequestWorkers 8\n")
    assert server.get("/ok.php").text == "from alice"
    workers = {worker.pid for worker in server.workers("alice")}
    pid, = frontends(server)
    owner = read_process(pid)
    # Who may change it is who it belongs to; root needs a capability that a container may lack.
    change = "import resource, sys; resource.prlimit(int(sys.argv[1]), resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[3])))"
    soft, hard = map(int, re.search(r"^Max open files +(\d+) +(\d+)", Path(f"/proc/{pid}/limits").read_text(), re.M).groups())
    for limit, others in ((3, in_flight), (soft, 0)):
        with descriptors_in_flight(owner.uid, others) if others else contextlib.nullcontext():
            subprocess.run([sys.executable, "-c", change, str(pid), str(limit), str(hard)], check=True, user=owner.uid, group=owner.uid, extra_groups=[])
            # It takes an idle lease back to the controller meanwhile, or tries to.
            time.sleep(2)
    assert server.get("/ok.php").text == "from alice"
    assert {worker.pid for worker in server.workers("alice")} == workers


@pytest.fixture
def small_disk():
    """Mounts 64 KiB at a directory of a server that it stops before it takes them away again."""
    mounted = []

    def mount(server, directory):
        directory.mkdir()
        done = run("mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "mod_pool-test", directory, check=False)
        if done.returncode != 0:
            pytest.skip(f"needs to mount a tmpfs: {done.stderr.decode().strip()}")
        mounted.append((server, directory))

    yield mount
    for server, directory in mounted:
        try:
            server.stop()
        finally:
            run("umount", directory)


def fill_up(path):
    with open(path, "ab", buffering=0) as f, contextlib.suppress(OSError):
        while f.write(b"x" * 512):
            pass
    with open(path, "ab", buffering=0) as f:
        with pytest.raises(OSError) as e:
            while f.write(b"x"):
                pass
        assert e.value.errno == errno.ENOSPC


def test_a_full_disk_under_the_logs_stops_no_answer(httpd, small_disk):
    conf = STATUS + 'CustomLog @ROOT@/full/access.log "%v %U%q"\n'
    server = make(httpd, conf=conf, start=False)
    server.sites["alice"].conf = "ErrorLog @ROOT@/full/error.log\n"
    full = server.root / "full"
    small_disk(server, full)
    server.start()
    logged = lambda text, name="access.log": text in (full / name).read_text(errors="replace")
    eventually(lambda: serves(server), 15)
    assert server.get("/say.php?n=first").text == "told"
    eventually(lambda: logged("said first", "error.log"), what="a line before")
    eventually(lambda: logged("n=first"), what="a line before")
    fill_up(full / "ballast")
    # More than the rest of a page that the logs have.
    for n in range(200):
        assert server.get(f"/text.txt?{'y' * 100}{n}", "plain").text == "text"
    for n in range(20):
        assert server.get(f"/say.php?n={'z' * 500}{n}").text == "told"
    assert serves(server)
    assert not logged("y199") and not logged("z19", "error.log")
    assert server.count_log("No space left on device.*/full/access.log")  # httpd says so, in each line's place
    (full / "ballast").unlink()
    assert server.get("/say.php?n=last").text == "told"
    assert server.get("/text.txt?last", "plain").text == "text"
    eventually(lambda: logged("said last", "error.log"), what="a line after")
    eventually(lambda: logged("/text.txt?last"), what="a line after")
    assert len(frontends(server)) >= 2 and not server.count_log("exit signal")


# --- reloads ------------------------------------------------------------------------------------------


# Room for frontends that a long request keeps.
ROOM = TWO_FRONTENDS.replace("ServerLimit 4", "ServerLimit 16")


def reload_under_load(server, times):
    """What the clients saw, with the processes that there were before the last reload."""
    with Clients(server) as clients:
        began = time.monotonic()
        time.sleep(3)
        reloads = time.monotonic()
        for _ in range(times):
            old = {p.pid for p in server.processes()} - {server.main}
            server.graceful()
        end = time.monotonic()
    print(f"{server.mpm}, quiet: {clients.between(began, reloads)}")
    print(f"{server.mpm}, reloads: {clients.between(reloads, end)}")
    print(f"{times} reloads within {end - reloads:.1f} s, {clients.again} kept connections closed, lost: {clients.lost}")
    return clients, old


@pytest.mark.timeout(200)
def test_a_hundred_reloads_lose_nothing(httpd):
    server = make(httpd, mpm_conf=ROOM)
    server.sites["alice"].write("slow.php", "<?php usleep(500000); echo 'slept';")
    eventually(lambda: serves(server), 15)
    # Some requests take longer than a few reloads.
    with Clients(server, [("/slow.php", "alice", "slept")]) as slow:
        clients, old = reload_under_load(server, 100)
    assert slow.lost == [] and len(slow.times) > 5
    assert clients.lost == [] and len(clients.times) > 1000
    # The controller stays, with the processes beside it; it knows each configuration that is still in use.
    stay = ("controller", "keeper", "stand-in")
    left = lambda: [p for p in server.processes() if p.pid in old and p.role not in stay]
    eventually(lambda: not left(), 15, what="the end of older processes")
    eventually(lambda: is_in_order(server), 15, what="one of each, no zombie, no orphan")
    assert serves(server)
    assert not server.count_log("exit signal")


@pytest.mark.timeout(120)
def test_what_reloads_lose_with_stock_mpm_event(httpd):
    """For comparison; only printed."""
    server = make(httpd, mpm="event", mpm_conf=ROOM)
    eventually(lambda: serves(server), 15)
    reload_under_load(server, 20)
    eventually(lambda: serves(server), 15)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("tls", [False, True])
def test_half_a_trailer_holds_no_thread(httpd, tls):
    """httpd reads the fields behind a chunked body waiting for the client, as long as it may be silent."""
    server = make(httpd, without=["reqtimeout"], conf="Timeout 40\n",
                  mpm_conf="StartServers 1\nServerLimit 1\nThreadsPerChild 2\nMaxRequestWorkers 2\n")
    server.sites["alice"].write("length.php", "<?php echo strlen(file_get_contents('php://input'));")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(4):
            clients.append(stack.enter_context(server.connect(tls=tls, timeout=30)))
            clients[-1].request("POST", "/length.php", headers=[("Transfer-Encoding", "chunked")])
            clients[-1].send(b"5\r\nhello\r\n0\r\nX-Half: a")
        time.sleep(0.5)
        # Two at a time, each for a second. The pool's own requests may meet its PoolMaxFrontendThreads.
        for path, site, text in PAGES:
            if site == "alice":
                continue
            assert server.get(path, site, timeout=20).text == text
        assert time.monotonic() - began < 15
        assert [client.response().status for client in clients] == [400] * 4
    # One that is not as slow as that.
    with server.connect(tls=tls) as client:
        client.request("POST", "/length.php", headers=[("Transfer-Encoding", "chunked")])
        client.send(b"5\r\nhello\r\n0\r\nX-Half: a")
        time.sleep(0.3)
        client.send(b"\r\n\r\n")
        assert client.response().text == "5"
