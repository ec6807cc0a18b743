"""What is lacking for a while ends nothing for good: descriptors, processes."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from harness import ALICE, Site, in_threads
from test_robust import TWO_FRONTENDS, make

pytestmark = pytest.mark.pool_only


@pytest.mark.timeout(90)
def test_more_sites_than_the_controller_has_descriptors_for_are_all_served(httpd):
    """What is idle ends first; nobody is refused."""
    sites = [Site(f"s{n}", ALICE + n % 3, pool_conf="PoolIdleTimeout 60s") for n in range(24)]
    server = httpd(mpm="pool", sites=sites, mpm_conf=TWO_FRONTENDS.replace("ServerLimit 4", "ServerLimit 2"))
    for site in sites:
        site.write("hello.php", "<?php echo 'hello';")
    server.start()
    [controller] = server.processes("controller")
    resource.prlimit(controller.pid, resource.RLIMIT_NOFILE, (100, 100))
    answers = [server.get("/hello.php", site.name).status for site in sites * 2]
    assert answers == [200] * len(answers)
    together = in_threads(len(sites), lambda i: server.get("/hello.php", sites[i].name).status)
    assert together == [200] * len(sites)
    assert server.count_log("POOL153.*100 open files.*ulimit -n") == 1
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
