"""What is lacking for a while ends nothing for good: descriptors, processes."""

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import ALICE, Site, eventually, in_threads
from test_robust import PAGES, TWO_FRONTENDS, ForkLimit, frontends, make, serves

pytestmark = pytest.mark.pool_only


@pytest.mark.timeout(90)
@pytest.mark.parametrize("limit", [72, 100])
def test_more_sites_than_the_controller_has_descriptors_for_are_all_served(httpd, limit):
    """What is idle ends first; nobody is refused, and pools that start do not keep one another out."""
    sites = [Site(f"s{n}", ALICE + n % 3, pool_conf="PoolIdleTimeout 60s") for n in range(24)]
    server = httpd(mpm="pool", sites=sites, mpm_conf=TWO_FRONTENDS.replace("ServerLimit 4", "ServerLimit 2"))
    for site in sites:
        site.write("hello.php", "<?php echo 'hello';")
    server.start()
    [controller] = server.processes("controller")
    resource.prlimit(controller.pid, resource.RLIMIT_NOFILE, (limit, limit))
    answers = [server.get("/hello.php", site.name).status for site in sites * 2]
    assert answers == [200] * len(answers)
    together = in_threads(len(sites), lambda i: server.get("/hello.php", sites[i].name).status)
    assert together == [200] * len(sites)
    assert server.count_log(f"POOL153.*{limit} open files.*ulimit -n") == 1
    assert server.count_log("fail to start") == 0

def test_the_controller_may_have_more_files_than_httpd_and_pools_may_not(httpd):
    if os.getuid() != 0:
        pytest.skip("only root may raise the hard limit")
    server = make(httpd)
    server.sites["alice"].write("limit.php", "<?php echo file_get_contents('/proc/self/limits');")
    limits = server.get("/limit.php", "alice").body.decode()
    own = resource.prlimit(server.main, resource.RLIMIT_NOFILE)
    assert re.search(r"Max open files +(\d+) +(\d+)", limits).groups() == tuple(map(str, own))
    [controller] = server.processes("controller")
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    # In a container root may lack the capability.
    tries = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}))"
    may_raise = subprocess.run([sys.executable, "-c", tries], stderr=subprocess.DEVNULL, check=False).returncode == 0
    expected = (most, most) if may_raise else (own[1], own[1])
    assert resource.prlimit(controller.pid, resource.RLIMIT_NOFILE) == expected

@pytest.mark.timeout(120)
@pytest.mark.parametrize("mpm", ["pool", "event"])
def test_a_controller_that_could_not_be_started_is_started_when_it_can_be(httpd, mpm):
    server = make(httpd, mpm=mpm)
    with ForkLimit(f"mod_pool-{server.tag}") as group:
        try:
            eventually(lambda: serves(server), 15)
            for _ in range(2):
                for process in server.processes():
                    with contextlib.suppress(ProcessLookupError):
                        group.take(process.pid)
            group.close()
            [controller] = server.processes("controller")
            os.kill(controller.pid, signal.SIGKILL)
            server.wait_for_log("POOL110.*tried again", 15)
            time.sleep(1)
            assert server.processes("controller") == []
            group.open()
            eventually(lambda: serves(server), 40, what="another controller")
            assert len(server.processes("controller")) == 1
        finally:
            group.open()
            server.stop()

@pytest.mark.timeout(120)
@pytest.mark.parametrize("mpm", ["pool", "event"])
def test_a_reload_without_a_controller_ends_nothing(httpd, mpm):
    server = make(httpd, mpm=mpm)
    with ForkLimit(f"mod_pool-{server.tag}") as group:
        try:
            eventually(lambda: serves(server), 15)
            for _ in range(2):
                for process in server.processes():
                    with contextlib.suppress(ProcessLookupError):
                        group.take(process.pid)
            group.close()
            [controller] = server.processes("controller")
            os.kill(controller.pid, signal.SIGKILL)
            server.wait_for_log("POOL110", 15)
            os.kill(server.main, signal.SIGUSR1)
            server.wait_for_log("POOL155.*tried again", 20)
            time.sleep(1)
            os.kill(server.main, 0)
            # mpm_event ends the older ones, though it cannot fork others.
            assert frontends(server) or mpm == "event"
            group.open()
            eventually(lambda: serves(server), 40, what="another controller")
        finally:
            group.open()
            server.stop()

@pytest.mark.timeout(120)
def test_a_controller_that_dies_at_once_is_started_at_growing_intervals(httpd):
    server = make(httpd)
    assert serves(server)
    end = time.monotonic() + 30
    killed = 0
    while time.monotonic() < end:
        for process in server.processes("controller"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
        time.sleep(0.02)
    assert 3 <= killed <= 20  # else one each second
    assert server.count_log("POOL110.*in a row have ended at once") >= 1
    eventually(lambda: serves(server), 40, what="the next one")


def slowest_beside_clients_that_take_nothing(server):
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            s = stack.enter_context(socket.socket())
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            s.connect(("127.0.0.1", server.port))
            s.sendall(b"GET /large.bin HTTP/1.1\r\nHost: plain.test\r\n\r\n")
        slowest = 0.0
        end = time.monotonic() + 7
        while time.monotonic() < end:
            began = time.monotonic()
            assert serves(server, PAGES[:1], timeout=15)
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(0.05)
    return slowest


@pytest.mark.timeout(90)
def test_clients_that_take_nothing_hold_no_thread_at_their_end(httpd):
    one = "StartServers 1\nServerLimit 1\nThreadsPerChild 2\nMaxRequestWorkers 2\nAsyncRequestWorkerFactor 20"
    # Without sendfile the core itself waits while it sends what it has mapped.
    server = make(httpd, conf="Timeout 2\nEnableSendfile on", mpm_conf=one)
    server.sites["plain"].write("large.bin", "x" * (50 << 20), mode=0o644)
    assert serves(server)
    # They end together, and each would hold one of two threads for two seconds. A busy machine may be slow once.
    assert any(slowest_beside_clients_that_take_nothing(server) < 1.5 for _ in range(3))
