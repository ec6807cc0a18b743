"""Hundreds and thousands of pools: nobody gets 503, no pool is throttled, zygotes stay within their bound."""

import os
import re
import threading
import time
from pathlib import Path

import pytest

from harness import ALICE, Broken, Later, Site, eventually, may_look_into

pytestmark = pytest.mark.pool_only

AT_ONCE = 16  # zygotes of a generation beyond the root pool's PoolMaxProcesses (docs/architecture.md)
MPM_CONF = (
    "StartServers 2\nServerLimit 4\nThreadsPerChild 32\nMaxRequestWorkers 128\nMinSpareThreads 32\nMaxSpareThreads 96\n"
)


class Pools:
    """A server with so many pools, each with a user and a virtual host of its own, and one page for all."""

    def __init__(self, httpd, count, most, pool_conf):
        self.count, self.most = count, most
        self.first = 10_000 * ALICE  # no other run's: theirs begin elsewhere, see harness/installed.py
        if not may_be_users(self.first, self.first + count):
            pytest.skip(f"users from {self.first} on are needed: not in this user namespace")
        pools, hosts = [], []
        for n in range(count):
            uid = self.first + n
            pools.append(f"<ServerPool p{n}>\nPoolUser #{uid}\nPoolGroup #{uid}\n{pool_conf}\n</ServerPool>\n")
            hosts.append(f"<VirtualHost 127.0.0.1:@PORT@>\nServerName p{n}.test\nDocumentRoot @ROOT@/sites/common\n"
                         f"AssignServerPool p{n}\n</VirtualHost>\n")
        common = Site("common", pool=None, conf="AssignServerPool none")
        self.server = httpd(sites=[common], mpm_conf=MPM_CONF, without=("ssl", "http2"), conf="".join(hosts),
                            global_pool_conf=f"PoolMaxProcesses {most}\n{''.join(pools)}")
        common.write("uid.php", "<?php echo posix_geteuid();", mode=0o644)
        common.docroot.chmod(0o755)
        self.server.start()

    def ask(self, n):
        """What is wrong with the answer of pool n; as a rule nothing."""
        try:
            found = self.server.get("/uid.php", f"p{n}.test", timeout=60)
        except (Broken, OSError) as e:
            return f"p{n}: {e!r}"
        if (found.status, found.text) != (200, str(self.first + n)):
            return f"p{n}: {found.status} {found.text[:200]}"
        return None

    def ask_all(self, clients, seconds=0.0):
        """Each pool once, by so many clients, evenly within so many seconds or as fast as it goes. Returns what is wrong."""
        began = time.monotonic()
        todo, lock, wrong = iter(range(self.count)), threading.Lock(), []

        def client():
            while True:
                with lock:
                    n = next(todo, None)
                if n is None:
                    return
                time.sleep(max(0.0, began + seconds * n / self.count - time.monotonic()))
                wrong.append(self.ask(n))

        threads = [Later(client) for _ in range(clients)]
        for thread in threads:
            thread.result(400)
        assert len(wrong) == self.count
        return [error for error in wrong if error]


def may_be_users(first, end):
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(start <= first and end <= start + count for start, _, count in ranges)


def needs_memory(gib):
    available = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1])
    if available < gib << 20:
        pytest.skip(f"needs {gib} GiB of memory that is not in use")


def all_pids():
    return {int(entry) for entry in os.listdir("/proc") if entry.isdigit()}


class Watch(threading.Thread):
    """Counts a controller's zygotes, workers, seeds and descriptors all the time, and its memory (KiB)."""

    WHAT = ("zygote", "worker", "seed", "descriptor", "memory")

    def __init__(self, server):
        super().__init__(daemon=True)
        [controller] = server.processes("controller")
        self.controller = controller.pid
        self.roles = {}  # of processes that keep theirs
        self.samples = []
        self.error = None
        self.ends = threading.Event()

    def __enter__(self):
        self.samples.append(self.sample())
        self.start()
        return self

    def __exit__(self, *_):
        self.ends.set()
        self.join()

    def run(self):
        try:
            while not self.ends.wait(0.1):
                self.samples.append(self.sample())
        except OSError as e:  # the controller has died
            self.error = e

    def sample(self):
        pids = all_pids()
        self.roles = {pid: role for pid, role in self.roles.items() if pid in pids}
        found = dict(self.roles)
        for pid in pids - self.roles.keys():
            role, stays = self.role(pid)
            found[pid] = role
            if stays:
                self.roles[pid] = role
        # A look at /proc takes its time. What is there before and after another one was there at the same moment.
        at_once = all_pids()
        found = [role for pid, role in found.items() if pid in at_once]
        descriptors = len(os.listdir(f"/proc/{self.controller}/fd"))
        status = Path(f"/proc/{self.controller}/status").read_text()
        memory = int(re.search(r"VmRSS:\s+(\d+)", status)[1])
        return dict(zip(self.WHAT, [*map(found.count, self.WHAT[:3]), descriptors, memory]))

    def role(self, pid):
        """And whether it stays: what has just been forked has the title of its origin, and then a session of its own."""
        try:
            _, ppid, _, session = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:4]
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return None, False
        if int(ppid) != self.controller:
            return None, True
        role = re.match(rb"(?:mod_pool: )?(\w*)", title)[1].decode()
        return role, role in ("zygote", "worker") and int(session) == pid

    def now(self, what):
        assert self.error is None
        return self.samples[-1][what]

    def most(self, what, since=0, until=None):
        assert self.error is None
        return max(sample[what] for sample in self.samples[since:until])


def the_seed(server):
    """Its pid, if there is one of them."""
    seeds = [p.pid for p in server.processes("seed")]
    return seeds[0] if len(seeds) == 1 else None


def reload_while(work, pools, watch, times):
    """Reloads so many times while `work` goes on, each one when nothing is left of the configuration before."""
    bound = pools.most + AT_ONCE
    assert watch.most("zygote") <= bound
    for _ in range(times):
        older = eventually(lambda: the_seed(pools.server), 10, what="a seed")
        pools.server.graceful()
        eventually(lambda: the_seed(pools.server) not in (None, older), 60, what="one generation, the new one")
        eventually(lambda: watch.now("zygote") <= bound, 10, what="the zygotes of one generation")
        assert work.is_alive(), "the reload was not under load"
    # Two generations and no more were there at a time, and one is from now on.
    assert watch.most("zygote") <= 2 * bound
    return len(watch.samples)


def check(pools, watch, since):
    """What holds at any time, and what holds since the last reload."""
    log = pools.server.error_log()
    assert not re.findall("fail to start|POOL106|Too many open files|left behind|.*:error].*", log)[:5]
    assert watch.most("worker") <= pools.most
    assert watch.most("zygote", since) <= pools.most + AT_ONCE
    # Of a process: its pidfd, its channel or data socket, its standard error. Two generations are there at a time.
    assert watch.most("descriptor") <= 3 * (2 * (pools.most + AT_ONCE) + pools.most) + 100
    assert watch.most("memory") <= 64 << 10


class Asking:
    """Asks all pools again and again."""

    def __init__(self, pools, clients):
        self.ends = threading.Event()
        self.pools, self.clients = pools, clients

    def __call__(self):
        wrong = []
        while not self.ends.is_set():
            wrong += self.pools.ask_all(self.clients)
        return wrong


# A seed's channel takes some 278 orders.
@pytest.mark.timeout(240)
@pytest.mark.parametrize("count", [300, pytest.param(600, marks=pytest.mark.scale)])
def test_hundreds_of_pools_with_a_spare_process_each(httpd, count):
    needs_memory(8)
    most = count + 40
    pools = Pools(httpd, count, most, "PoolMinSpare 1")
    with Watch(pools.server) as watch:
        ready = lambda: watch.now("worker") == watch.now("zygote") == count
        eventually(ready, 60, what="each pool's spare process")
        assert watch.most("worker") == watch.most("zygote") == count
        asking = Asking(pools, 16)
        work = Later(asking)
        reloaded = reload_while(work, pools, watch, 2)
        asking.ends.set()
        assert work.result(60) == []
        # Those that were asked last have a second process for a while.
        eventually(lambda: count <= watch.now("worker") <= most, 60, what="each pool's spare process")
        check(pools, watch, reloaded)
    pools.server.stop()


def test_virtual_hosts_are_not_copied_into_each_process(httpd):
    pools = Pools(httpd, 1_500, 8, "PoolIdleTimeout 60s")
    assert pools.ask(7) is None
    seed = the_seed(pools.server)
    may_look_into(seed)
    # What its zygote writes to is the seed's alone from then on: 3 KB for each virtual host would be 4.5 MB.
    own = int(re.search(r"Private_Dirty:\s+(\d+)", Path(f"/proc/{seed}/smaps_rollup").read_text())[1])
    assert own < 2 << 10


@pytest.mark.scale
@pytest.mark.timeout(600)
def test_three_thousand_pools_that_are_asked_within_half_a_minute(httpd):
    needs_memory(8)
    count, most = 3_000, 100
    pools = Pools(httpd, count, most, "PoolIdleTimeout 2s")
    with Watch(pools.server) as watch:
        before = watch.now("descriptor")
        work = Later(pools.ask_all, 50, 30)
        time.sleep(5)
        reloaded = reload_while(work, pools, watch, 2)
        assert work.result(400) == []
        assert watch.most("zygote") > most / 2  # else it was no load
        check(pools, watch, reloaded)
        eventually(lambda: watch.now("zygote") + watch.now("worker") == 0, 30, what="no process of a pool")
        eventually(lambda: watch.now("descriptor") <= before + 10, 30, what="no descriptor of a pool")
    pools.server.stop()
