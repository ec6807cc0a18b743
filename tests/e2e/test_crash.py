"""Point 6: whatever dies is told honestly, replaced, and takes nobody else along."""

import contextlib
import os
import random
import re
import signal
import threading
import time
import zlib
from collections import Counter

import pytest

from harness import (ALICE, BOB, H2, Broken, Later, MemoryGroup, Site, background, descendants, eventually, fds_of, gone, in_threads,
                     read_process)
from pages import FFI, at_once, usual_pages

pytestmark = pytest.mark.pool_only


def fill(site):
    usual_pages(site)
    site.write("die.php", "<?php file_put_contents(__DIR__ . '/died', getmypid());"
                          "posix_kill(getmypid(), (int)$_GET['signal']); sleep(5);")
    site.write("count.php", """
        <?php
        $body = file_get_contents('php://input');
        file_put_contents(__DIR__ . '/count.log', "ran\\n", FILE_APPEND);
        posix_kill(getmypid(), 9); sleep(5);
    """)
    site.write("body.php", "<?php $b = file_get_contents('php://input'); echo strlen($b), ' ', crc32($b);")
    site.write("halfway.php", """
        <?php
        while (ob_get_level()) ob_end_clean();
        if (isset($_GET['length'])) header('Content-Length: 1000');
        echo 'the first half'; flush(); usleep(200000);
        posix_kill(getmypid(), 9); sleep(5);
    """)
    site.write("exit.php", """
        <?php
        $libc = FFI::cdef('void _exit(int);');
        $libc->_exit((int)$_GET['code']);
    """)
    site.write("eat.php", """
        <?php
        ini_set('memory_limit', -1);
        while (ob_get_level()) ob_end_clean();
        if (isset($_GET['begin'])) { echo 'the first half'; flush(); }
        for ($eaten = []; count($eaten) < 512; $eaten[] = str_repeat('x', 1 << 20));
        echo 'enough';
    """)
    site.write("daemon.php", r"""
        <?php
        $program = isset($_GET['odd']) ? 'perl -e \'$0 = "\xff\xfe"; sleep 300\'' : 'sleep 300';
        exec("setsid $program >/dev/null 2>&1 & echo \$!", $out);
        echo $out[0];
    """)


def make(httpd, pool_conf="PoolIdleTimeout 60s", **kw):
    sites = [Site("alice", ALICE, conf=FFI, pool_conf=pool_conf),
             Site("bob", BOB, conf=FFI, pool_conf="PoolIdleTimeout 60s")]
    server = httpd(sites=sites, **kw)
    for site in sites:
        fill(site)
    return server.start()


@pytest.fixture(scope="module")
def server(shared_httpd):
    return make(shared_httpd)


def busy_pid(server, site="alice"):
    return server.get("/who.php", site).json()["pid"]


def is_unharmed(server, pid, site):
    """The process is there as before, whichever of its pool serves just now."""
    return server.get("/who.php", site).status == 200 and pid in {p.pid for p in server.workers(site)}


def recovers(server, site="alice", timeout=8):
    """The time until the site answers again, asking all the while."""
    start = time.monotonic()
    while True:
        if server.answers(site=site):
            return time.monotonic() - start
        if time.monotonic() - start > timeout:
            there = "\n".join(f"{p.pid} {p.role} {p.state} {p.title}" for p in server.processes())
            raise AssertionError(f"{site} has not recovered within {timeout} s; there are\n{there}")
        time.sleep(0.05)


# --- a worker dies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_death_before_the_response_is_502_and_logged(server, number):
    at = len(server.error_log())
    found = server.get(f"/die.php?signal={int(number)}")
    assert found.status == 502
    pid = (server.sites["alice"].docroot / "died").read_text()
    line = server.wait_for_log(rf"^.*\balice\b.*/die\.php.*$", after=at)[0]
    assert re.search(rf"\b{pid}\b", line)
    assert re.search(rf"signal {int(number)}\b|{number.name}", line)
    assert server.get("/who.php").status == 200


@pytest.mark.parametrize("code", [0, 3])
def test_exit_before_the_response_is_502_and_logged(server, code):
    at = len(server.error_log())
    assert server.get(f"/exit.php?code={code}").status == 502
    line = server.wait_for_log(r"^.*\balice\b.*/exit\.php.*$", after=at)[0]
    assert re.search(rf"(status|code) {code}\b", line)


def test_kill_from_outside_before_the_response_is_502(server):
    pid = busy_pid(server)
    threading.Timer(0.4, os.kill, (pid, signal.SIGKILL)).start()
    assert server.get("/sleep.php?s=3").status == 502


@pytest.mark.parametrize("query", ["", "?begin"], ids=["before", "within"])
def test_death_by_the_oom_killer_is_told_like_any_other(httpd, query):
    """Not the SIGKILL of a test: the kernel chooses the worker and ends it at the limit of its control group."""
    server = make(httpd, "PoolMaxProcesses 1\nPoolIdleTimeout 60s")
    pid, bob = busy_pid(server), busy_pid(server, "bob")
    at = len(server.error_log())
    with MemoryGroup(f"mod_pool-{server.tag}", 96 << 20) as group:
        group.take(pid)
        found = server.get("/eat.php" + query)
        assert group.kills() == 1
    if query:
        assert (found.status, found.body, found.complete) == (200, b"the first half", False)
    else:
        assert found.status == 502
    line = server.wait_for_log(r"^.*/eat\.php.*$", after=at)[0]
    assert re.search(r"pool alice\b", line) and re.search(rf"\b{pid}\b", line)
    assert re.search(r"signal 9\b|SIGKILL", line)
    assert busy_pid(server) != pid
    assert is_unharmed(server, bob, "bob")


@pytest.mark.parametrize("query", ["", "?length"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_death_after_the_start_of_the_response_breaks_it_visibly(server, query, tls):
    with server.connect(tls=tls) as c:
        c.request("GET", "/halfway.php" + query)
        found = c.response()
        assert found.status == 200
        assert found.body == b"the first half"
        assert not found.complete
        assert c.is_closed()


def test_death_after_the_start_resets_the_http2_stream_only(server):
    if server.mpm == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")
    with H2(server) as c:
        other = c.start("/sleep.php?s=0.8")
        found = c.get("/halfway.php")
        assert (found.status, found.complete) == (200, False)
        assert c.wait(other).status == 200
        assert c.get("/die.php?signal=9").status == 502
        assert c.get("/text.txt").text == "text"


@pytest.mark.parametrize("method,body", [("GET", b""), ("POST", b"x=1"), ("PUT", b"y" * 200000)],
                         ids=["get", "post", "large-put"])
def test_a_request_that_ran_is_never_run_twice(server, method, body):
    log = server.sites["alice"].docroot / "count.log"
    log.unlink(missing_ok=True)
    assert server.request(method, "/count.php", body=body).status == 502
    time.sleep(0.3)
    assert log.read_text() == "ran\n"


def test_death_of_an_idle_worker_costs_no_request(server):
    for _ in range(15):
        pid = busy_pid(server)
        os.kill(pid, signal.SIGKILL)
        found = server.request("POST", "/who.php", body=b"x")
        assert found.status == 200
        assert found.json()["pid"] != pid


@pytest.mark.parametrize("size", [1, 1000, 100_000, 400_000])
def test_death_of_an_idle_worker_costs_no_byte_of_a_body(server, size):
    body = bytes(n % 251 for n in range(size))
    for _ in range(20):
        pid = int(server.get("/who.php").json()["pid"])
        os.kill(pid, signal.SIGKILL)
        answer = server.request("POST", "/body.php", body=body)
        assert (answer.status, answer.text) == (200, f"{size} {zlib.crc32(body)}")


def test_death_of_many_idle_workers_at_once(server):
    in_threads(6, lambda _: server.get("/sleep.php?s=0.4"))
    eventually(lambda old=server.kill("worker", "alice"): gone(*old), 10)
    assert [a.status for a in in_threads(12, lambda _: server.get("/who.php"))] == [200] * 12


def test_other_pool_is_untouched_by_deaths(server):
    pid = busy_pid(server, "bob")
    for _ in range(5):
        assert server.get("/die.php?signal=11").status == 502
    assert is_unharmed(server, pid, "bob")


# --- the other roles die ----------------------------------------------------------------------------


def kill_role(server, role, pool=None):
    found = server.kill(role, pool)
    assert found, f"no {role}"
    return found


def test_death_of_a_zygote(httpd):
    server = make(httpd)
    busy_pid(server)
    bob = busy_pid(server, "bob")
    kill_role(server, "zygote", "alice")
    assert recovers(server) < 3
    # More than the living workers can take: a new zygote is needed.
    assert [a.status for a in in_threads(4, lambda _: server.get("/sleep.php?s=0.3"))] == [200] * 4
    assert is_unharmed(server, bob, "bob")


def test_a_request_that_meets_the_death_of_its_zygote(httpd):
    """The controller, held up meanwhile, is asked for workers first and learns afterwards that the zygote is dead."""
    server = make(httpd)
    busy_pid(server)
    time.sleep(1.5)  # The lease has gone back, and so the controller knows that what this zygote forks works.
    controller = server.processes("controller")[0].pid
    os.kill(controller, signal.SIGSTOP)
    try:
        asking = [Later(server.get, "/sleep.php?s=0.2") for _ in range(4)]
        time.sleep(0.5)
        kill_role(server, "zygote", "alice")
        time.sleep(0.2)
    finally:
        os.kill(controller, signal.SIGCONT)
    assert [a.result().status for a in asking] == [200] * 4


def test_death_of_the_seed(httpd):
    server = make(httpd)
    busy_pid(server)
    bob = busy_pid(server, "bob")
    kill_role(server, "seed")
    assert is_unharmed(server, bob, "bob")
    assert recovers(server) < 4
    eventually(lambda: len(server.processes("seed")) == 1, 6, what="one new seed")
    kill_role(server, "zygote")
    server.kill("worker")
    assert recovers(server) < 4
    assert recovers(server, "bob") < 4


def test_death_of_the_controller(httpd):
    server = make(httpd)
    old = [busy_pid(server), busy_pid(server, "bob")]
    old += kill_role(server, "controller")
    assert recovers(server) < 5
    assert recovers(server, "bob") < 5
    # A lease that a frontend still held can have served both before httpd's parent has noticed.
    eventually(lambda: len(server.processes("controller")) == 1, 3, what="a new controller")
    eventually(lambda: gone(*old), 6, what="the old workers end")
    assert [a.status for a in in_threads(6, lambda _: server.get("/sleep.php?s=0.2"))] == [200] * 6


def test_a_controller_that_hangs_is_replaced(httpd):
    """httpd's parent looks after it in its monitor hook, every 10 s or so."""
    server = make(httpd)
    busy_pid(server)
    old = server.processes("controller")[0].pid
    # One that reads, however idle, is left alone.
    time.sleep(25)
    assert server.processes("controller")[0].pid == old
    os.kill(old, signal.SIGSTOP)
    eventually(lambda: gone(old), 45, what="the end of the old one")
    eventually(lambda: len(server.processes("controller")) == 1, 5, what="a new controller")
    assert "POOL120" in server.error_log()
    server.kill("worker")
    assert recovers(server) < 5


@pytest.mark.timeout(150)
def test_a_controller_that_is_slow_in_many_reloads_is_left_alone(httpd):
    """There is always something that it has not read yet, but never for long."""
    server = make(httpd)
    busy_pid(server)
    old = server.processes("controller")[0].pid
    until = time.monotonic() + 40
    slow = threading.Event()

    def hold_up():
        while not slow.wait(0.05) and time.monotonic() < until + 60:
            os.kill(old, signal.SIGSTOP)
            time.sleep(0.2)
            os.kill(old, signal.SIGCONT)

    holding = Later(hold_up)
    try:
        while time.monotonic() < until:
            server.graceful()
            assert not gone(old)
    finally:
        slow.set()
        holding.join(5)
    # What the controller has just forked has its title for a moment.
    eventually(lambda: [p.pid for p in server.processes("controller")] == [old], 5, what="the one controller")
    assert "POOL120" not in server.error_log()
    assert server.get("/who.php").status == 200


def test_spare_workers_may_be_killed_before_any_worker_has_come_back(httpd):
    """As after a reload of a busy site: a worker is at work, and that it started well is known without its return."""
    server = make(httpd, "PoolMinSpare 2\nPoolMaxProcesses 6\nPoolIdleTimeout 60s")
    busy = Later(server.get, "/sleep.php?s=6")
    idle = lambda: [p.pid for p in server.workers("alice") if "[idle]" in p.title]
    eventually(lambda: len(idle()) == 2 and len(server.workers("alice")) == 3, 10, what="one busy, two spare")
    time.sleep(1.5)
    for pid in idle():
        os.kill(pid, signal.SIGKILL)
    for _ in range(5):
        assert server.get("/who.php").status == 200
        time.sleep(0.05)
    assert busy.result().status == 200


def test_request_in_flight_survives_the_controller(httpd):
    server = make(httpd)
    busy_pid(server)
    threading.Timer(0.5, kill_role, (server, "controller")).start()
    assert server.get("/sleep.php?s=1.5").status == 200


def test_controller_killed_again_and_again(httpd):
    server = make(httpd)
    for _ in range(4):
        busy_pid(server)
        # A lease that a frontend holds may serve while there is no controller.
        eventually(lambda: server.processes("controller"), 5, what="a controller")
        kill_role(server, "controller")
        recovers(server, timeout=15)
    eventually(lambda: len(server.processes("controller")) == 1, 5, what="one controller")
    eventually(lambda: len(server.processes("seed")) == 1, 5, what="one seed")


def test_death_of_a_frontend_loses_no_lease(httpd):
    server = make(httpd, "PoolMaxProcesses 2\nPoolIdleTimeout 60s\nPoolQueueTimeout 10s")
    for _ in range(3):
        for _ in range(2):
            Later(server.try_get, "/sleep.php?s=2")
        time.sleep(0.5)
        kill_role(server, "frontend")
        assert recovers(server) < 8
    # The scripts that the dead frontends asked for end, and prefork's parent, which starts one child a second at first,
    # has two: then both places of the pool are free, and two long requests run side by side.
    eventually(lambda: side_by_side(server), 10, what="two requests at a time")
    assert len(server.workers("alice")) <= 2


def side_by_side(server):
    return at_once([a.json() for a in in_threads(2, lambda _: server.get("/sleep.php?s=0.5"))]) == 2


class Load:
    """Clients that ask without a pause and bear any answer; `odd` has statuses that no death explains."""

    def __init__(self, server, clients=4):
        self.server, self.done, self.odd = server, 0, []
        self.over = threading.Event()
        self.threads = [threading.Thread(target=self.ask, args=(n,), daemon=True) for n in range(clients)]

    def ask(self, n):
        while not self.over.is_set():
            try:
                found = self.server.get(("/who.php", "/sleep.php?s=0.05")[self.done % 2], ("alice", "bob")[n % 2])
                self.done += 1
                if found.status not in (200, 502, 503):
                    self.odd.append(found.status)
            except (Broken, OSError):
                time.sleep(0.01)

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        for t in self.threads:
            t.join(30)


def own_descriptors(server, role):
    """Without those for frontends, whose number varies: channel, pidfd and connector; the parent keeps the latter."""
    each = {"controller": 3, "parent": 1}[role]
    (process,) = server.processes(role)
    return len(fds_of(process.pid)) - each * len(server.processes("frontend"))


@pytest.mark.timeout(170)
def test_random_deaths_under_load(httpd):
    conf = "PoolMaxProcesses 4\nPoolIdleTimeout 2s\nPoolQueueTimeout 15s"
    server = httpd(sites=[Site(name, uid, pool_conf=conf) for name, uid in (("alice", ALICE), ("bob", BOB))])
    for site in server.sites.values():
        fill(site)
    server.start()
    once = {"parent", "keeper", "stand-in", "controller", "seed"}
    of_role = lambda: Counter(p.role for p in server.processes())
    quiet = lambda: (n := of_role()).keys() == once | {"frontend", "log writer"} and all(n[role] == 1 for role in once)
    recovers(server), recovers(server, "bob")
    eventually(quiet, 12, what="pools at zero")
    parent, controller = own_descriptors(server, "parent"), own_descriptors(server, "controller")
    dice = random.Random(12)
    deaths = ["worker", "zygote", "seed", "frontend", "controller"] * 6 + ["keeper", "stand-in"] * 2
    dice.shuffle(deaths)
    slow = []
    with Load(server) as load:
        for role in deaths:
            found = server.processes(role)
            for p in found if dice.random() < 0.3 else found[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(p.pid, signal.SIGKILL)
            slow += [(role, took) for took in (recovers(server), recovers(server, "bob")) if took > 4]
    assert (slow, load.odd) == ([], [])
    assert load.done > len(deaths), "the server answered between the deaths"
    start = time.monotonic()
    eventually(lambda: server.processes("controller") and server.processes("seed"), 5, what="controller and seed")
    assert [a.status for a in in_threads(4, lambda _: server.get("/sleep.php?s=1"))] == [200] * 4
    assert time.monotonic() - start < 5, "a lease was lost"
    eventually(quiet, 15, what="pools at zero again")
    # Frontends that the MPM has told to end are reaped by httpd's parent, in its own time.
    eventually(lambda: not [p for p in descendants(server.main) if p.state == "Z"], 5, what="no zombie")
    eventually(lambda: own_descriptors(server, "controller") <= controller, 8, what="no descriptor more")
    eventually(lambda: own_descriptors(server, "parent") <= parent, 5, what="no descriptor more in the parent")


# --- what scripts leave behind ----------------------------------------------------------------------


def test_grandchild_ends_with_its_pool(httpd):
    server = make(httpd, "PoolIdleTimeout 1s")
    pid = int(server.get("/daemon.php").text)
    assert read_process(pid) is not None
    eventually(lambda: gone(pid), 12, what="the daemonised grandchild ends with the pool")
    assert server.of_uid(ALICE) == []


def test_grandchild_does_not_outlive_the_server(httpd):
    server = make(httpd)
    pid = int(server.get("/daemon.php").text)
    server.stop()
    assert gone(pid)


@pytest.mark.parametrize("then", ["goes on", "stop"])
@pytest.mark.parametrize("name", ["plain", "odd"])
def test_grandchild_does_not_outlive_the_controller(httpd, name, then):
    """A dead controller's orphans come to httpd's parent: the next controller ends them, at its own end at the latest.
    Also one that gives itself a name that is not UTF-8."""
    server = make(httpd)
    for _ in range(5):
        pid = int(server.get("/daemon.php" + ("?odd=1" if name == "odd" else "")).text)
        if name == "odd":
            eventually(lambda: b"\xff\xfe" in open(f"/proc/{pid}/comm", "rb").read(), 5, what="its odd name")
        kill_role(server, "controller")
        eventually(lambda: server.processes("controller"), 10, what="a new controller")
        if not gone(pid):  # else the machine is slow, and the first controller has ended it itself
            break
    assert not gone(pid)
    if then == "stop":
        server.stop()
        assert gone(pid)
    else:
        eventually(lambda: gone(pid), 25, what="the daemonised grandchild ends")
        server.wait_for_log("left behind by a process of pool alice")


@pytest.mark.parametrize("role", ["keeper", "stand-in"])
def test_the_death_of_a_process_beside_the_controller_is_as_that_of_the_controller(httpd, role):
    server = make(httpd)
    busy = busy_pid(server)
    controller = server.processes("controller")[0].pid
    for _ in range(2):
        kill_role(server, role)
        eventually(lambda: gone(controller), 10, what="the end of the controller")
        eventually(lambda: server.try_get("/who.php"), 20, what="an answer")
        [next_one] = [p.pid for p in server.processes("controller")]
        assert next_one != controller
        controller = next_one
    roles = ("keeper", "stand-in", "controller", "seed")
    eventually(lambda: [len(server.processes(r)) for r in roles] == [1] * 4, 25, what="one of each")
    eventually(lambda: gone(busy), 25)
    server.stop()
    assert server.count_log("POOL109") == 2


def test_the_death_of_the_parent_ends_nobody_elses_processes(httpd):
    """Whoever is init then has children of any kind: a hardened service of the pool's user, say."""
    server = make(httpd)
    other = background("setpriv", f"--reuid={ALICE}", f"--regid={ALICE}", "--clear-groups", "--no-new-privs", "setsid",
                       "sleep", "60")
    try:
        busy_pid(server)
        controller = server.processes("controller")[0].pid
        # The test process adopts, as init would.
        os.kill(server.main, signal.SIGKILL)
        server.wait_for_end()
        eventually(lambda: gone(controller), 10, what="the controller ends")
        server.stopped = True
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_a_program_of_a_request_in_flight_outlives_the_controller(httpd):
    """What was started by a worker that a frontend still needs, and comes to httpd's parent, is not an orphan."""
    server = make(httpd)
    server.sites["alice"].write("job.php", """
        <?php
        exec('sleep 20 >/dev/null 2>&1 & echo $!', $job);
        sleep(18);
        echo posix_kill((int)$job[0], 0) ? 'alive' : 'gone';
    """)
    busy_pid(server)
    answer = Later(server.get, "/job.php")
    time.sleep(0.5)
    kill_role(server, "controller")
    assert answer.result(30).text == "alive"


def test_no_zombies(server):
    for _ in range(5):
        server.get("/die.php?signal=9")
    time.sleep(1)
    assert [p for p in descendants(server.main) if p.state == "Z"] == []


# --- a pool that cannot start -----------------------------------------------------------------------


def make_with_ini(httpd, pool_conf):
    """A server whose pools read this php.ini when they start. Without the right for others, that of alice fails to."""
    alice = Site("alice", ALICE, pool_conf=pool_conf)
    server = httpd(sites=[alice, Site("bob", BOB)], conf="PHPIniDir @ROOT@/conf/php\n")
    fill(alice), fill(server.sites["bob"])
    ini = server.root / "conf" / "php" / "php.ini"
    ini.parent.mkdir()
    ini.parent.chmod(0o755)
    ini.write_text("memory_limit=64M\n")
    ini.chmod(0o640)
    os.chown(ini, 0, BOB)
    return server, ini


def test_a_pool_that_dies_at_its_start_is_throttled(httpd):
    server, ini = make_with_ini(httpd, "PoolQueueTimeout 5s")
    server.start()
    assert server.get("/who.php").status == 503
    times = []
    for _ in range(15):
        start = time.monotonic()
        found = server.get("/who.php")
        times.append(time.monotonic() - start)
        assert found.status == 503
        assert found.get("Retry-After")
    assert sorted(times)[10] < 0.3
    server.wait_for_log(r"alice.*php\.ini|php\.ini.*alice")
    assert server.count_log(r"php\.ini") <= 6  # not one start per request
    assert server.get("/who.php", "bob").status == 200
    ini.chmod(0o644)
    assert recovers(server, timeout=30)


def test_who_wants_a_throttled_pool_waits_for_a_worker_that_lives(httpd):
    server, ini = make_with_ini(httpd, "PoolMaxProcesses 4\nPoolQueueTimeout 20s\nPoolQueueLimit 3")
    ini.chmod(0o644)
    server.start()
    pid = busy_pid(server)

    def throttled(script):
        """Its only worker is busy with the script, no other can start, and who wants it is told so now."""
        busy = Later(server.get, script)
        time.sleep(0.5)
        at = len(server.error_log())
        first = Later(server.get, "/who.php")
        server.wait_for_log(r"pool alice: its processes fail to start.*php\.ini", after=at, timeout=15)
        return busy, [first, Later(server.get, "/who.php")]

    ini.chmod(0o640)
    kill_role(server, "zygote", "alice")
    busy, waiting = throttled("/sleep.php?s=4")
    time.sleep(0.3)
    assert all(later.is_alive() for later in [busy, *waiting])
    assert busy.result(10).status == 200
    assert [later.result(10).json()["pid"] for later in waiting] == [pid, pid]
    busy, waiting = throttled("/sleep.php?s=20")
    time.sleep(0.3)
    assert all(later.is_alive() for later in [busy, *waiting])
    at, then = len(server.error_log()), time.monotonic()
    os.kill(pid, signal.SIGKILL)
    assert busy.result(5).status == 502
    refused = [later.result(5) for later in waiting]
    assert time.monotonic() - then < 1
    assert [found.status for found in refused] == [503, 503]
    assert all(found.get("Retry-After") for found in refused)
    server.wait_for_log(r"POOL106.*processes die when they start", after=at)
    ini.chmod(0o644)
    assert recovers(server, timeout=60)
