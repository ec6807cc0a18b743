"""What root and the frontends share with a tenant: no call on it waits for him. docs/security.md has the table.

Each attack holds the object as a tenant can; the proof is that another pool is served meanwhile by new processes, for which
the controller must work.
"""

import os
import re
import signal
import socket
import time

import pytest

from harness import ALICE, BOB, Later, Site, eventually, gone, read_process
from harness.stuck import held, held_pipe, read_for_ever
from pages import FFI, SLEEP_PHP, WHO_PHP

SPLICE = {"x86_64": 275, "aarch64": 76}

# Standard error of this process, held by splice(2) from a socket on which nothing ever comes: for a pipe, that is with
# its mutex. Needs perl-base only. Says when it holds it.
HOLD = r"""
use Socket;
my ($seconds, $splice, $said) = @ARGV;
socketpair(A, B, AF_UNIX, SOCK_STREAM, 0);
my $child = fork;
if (!$child) { syscall($splice, fileno(A), 0, 2, 0, 4096, 0); exit }
select(undef, undef, undef, 0.4);
open(F, ">", $said); print F "held"; close F;
sleep $seconds;
kill 9, $child;
"""


def fill(site):
    site.write("who.php", WHO_PHP)
    site.write("hold.pl", HOLD)
    site.write("exec.php", "<?php exec($_POST['c'], $o, $rc); echo $rc, ' ', implode(\"\\n\", $o);")
    site.write("pid.php", "<?php echo getmypid();")


@pytest.fixture(scope="module")
def server(shared_httpd):
    sites = [Site("alice", ALICE, conf=FFI, pool_conf="PoolMaxProcesses 4\nPoolIdleTimeout 60s"),
             Site("bob", BOB, pool_conf="PoolMaxProcesses 4\nPoolIdleTimeout 60s")]
    server = shared_httpd(sites=sites)
    for site in sites:
        fill(site)
    return server.start()


@pytest.fixture(autouse=True)
def survivors(request):
    if "server" not in request.fixturenames:
        yield
        return
    server = request.getfixturevalue("server")
    ours = lambda: {p.pid for p in server.processes() if p.role in ("parent", "controller", "seed")}
    before = ours()
    yield
    assert before <= ours(), "a process of the server has died"


def run(server, command, site="alice"):
    answer = server.request("POST", "/exec.php", site, body=("c=" + quote(command)).encode(),
                            headers=[("Content-Type", "application/x-www-form-urlencoded")])
    return answer.text


def quote(text):
    return "".join(c if c.isalnum() else "".join(f"%{b:02X}" for b in c.encode()) for c in text)


def bob_gets_new_processes(server):
    """The controller reaps, forks and lends."""
    for _ in range(2):
        old = int(server.get("/pid.php", "bob").text)
        server.kill("worker", "bob")
        eventually(lambda: gone(old), 5, what="bob's worker ends")
        answer = server.get("/pid.php", "bob", timeout=5)
        assert (answer.status, answer.text.isdigit()) == (200, True)
        assert int(answer.text) != old


def splice_number():
    number = SPLICE.get(os.uname().machine)
    if number is None:
        pytest.skip("the number of splice(2) is not known here")
    return number


@pytest.mark.pool_only
@pytest.mark.parametrize("ends", ["worker", "pool"])
def test_standard_error_that_a_tenant_holds_is_read_and_closed(server, ends):
    said = server.sites["alice"].home / f"held-{ends}"
    said.unlink(missing_ok=True)
    pid = int(run(server, f"perl hold.pl 8 {splice_number()} {said} >/dev/null </dev/null & echo $PPID").split()[1])
    eventually(said.exists, 5, what="standard error is held")
    server.kill("worker", "alice")
    if ends == "pool":
        server.kill("zygote", "alice")
    began = time.monotonic()
    eventually(lambda: gone(pid), 5)
    bob_gets_new_processes(server)
    assert server.get("/pid.php", "alice", timeout=5).status == 200
    assert time.monotonic() - began < 7, "somebody waited for the tenant"


WAYS = {
    "php-stream": "<?php $f = fopen('php://stderr', 'w'); echo fwrite($f, \"by php-stream\\n\") ? 'ok' : 'no';",
    "php-error_log": "<?php echo error_log('by php-error_log') ? 'ok' : 'no';",
    "php-warning": "<?php trigger_error('by php-warning', E_USER_WARNING); echo 'ok';",
    "php-path": "<?php $f = @fopen('/dev/stderr', 'w'); echo $f && fwrite($f, \"by php-path\\n\") ? 'ok' : 'no';",
    "php-fd": "<?php $f = @fopen('php://fd/2', 'w'); echo $f && fwrite($f, \"by php-fd\\n\") ? 'ok' : 'no';",
    "php-proc": "<?php $f = @fopen('/proc/self/fd/2', 'w'); echo $f && fwrite($f, \"by php-proc\\n\") ? 'ok' : 'no';",
    "ini-path": "<?php ini_set('error_log', '/dev/stderr'); error_log('by ini-path'); echo 'ok';",
    "error_log-3": "<?php echo @error_log(\"by error_log-3\\n\", 3, 'php://stderr') ? 'ok' : 'no';",
    "error_log-3-path": "<?php echo @error_log(\"by error_log-3-path\\n\", 3, '/dev/stderr') ? 'ok' : 'no';",
    "sh-fd": "echo by sh-fd >&2",
    "sh-path": "echo by sh-path >/dev/stderr",
    "bash-path": "bash -c 'echo by bash-path >/dev/stderr'",
    "sh-append": "echo by sh-append >>/dev/stderr",
    "sh-proc": "echo by sh-proc >/proc/self/fd/2",
    "tee": "echo by tee | tee /dev/stderr >/dev/null",
    "perl": "perl -e 'print STDERR \"by perl\\n\"'",
    "python": "python3 -c 'import sys; sys.stderr.write(\"by python\\n\")'",
    "awk": "echo x | awk '{ print \"by awk\" > \"/dev/stderr\" }'",
    "pipe": "(echo by pipe >&2) | cat",
    "cgi-fd": "echo by cgi-fd >&2",
    "cgi-path": "echo by cgi-path >/dev/stderr",
    "cgi-tee": "echo by cgi-tee | tee /dev/stderr >/dev/null",
}

# Those that open standard error by its path. Under stock httpd it is the error log, which the scripts' user may not open.
BY_PATH = {"php-path", "php-fd", "php-proc", "error_log-3-path", "sh-path", "bash-path", "sh-append", "sh-proc", "tee"}


@pytest.fixture(scope="module")
def ways(shared_httpd):
    site = Site("alice", ALICE, conf="AddHandler cgi-script .cgi\n")
    server = shared_httpd(sites=[site], modules=["cgi"])
    fill(site)
    for name, command in WAYS.items():
        if command.startswith("<?php"):
            site.write(f"{name}.php", command)
        elif name.startswith("cgi"):
            site.script(f"{name}.cgi", f"#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\n{command}\necho $?\n")
    return server.start()


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_standard_error(ways, way):
    """What works under stock httpd works; the same test runs there (--reference)."""
    if not ways.with_pool and "php" not in ways.modules:
        pytest.skip("a threaded reference has no PHP")
    command = WAYS[way]
    if command.startswith("<?php"):
        said = ways.get(f"/{way}.php").text
    elif way.startswith("cgi"):
        said = ways.get(f"/{way}.cgi").text
    else:
        said = run(ways, command)
    written = lambda: re.search(rf"by {way}$|by {way}[^-\w].*$", ways.error_log(), re.M)
    if way in BY_PATH:
        assert said.split()[0] in ("no", "1", "2"), said
        ways.get("/pid.php")
        assert not written()
    else:
        assert said.split()[0] in ("ok", "0"), said
        eventually(written, 5, what="the line")


# One byte at a time for some seconds, then a line.
DRIP = r"""
use Time::HiRes qw(time sleep);
my ($seconds, $flags, $writers) = @ARGV;
for (2 .. $writers) { last if !fork }
my $end = time + $seconds;
while (time < $end) { for (1 .. 50) { $flags ? send(STDERR, "\n", $flags) : syswrite(STDERR, "\n", 1) } }
sleep 0.5;
syswrite(STDERR, "\nthe dripping $flags is over\n");
"""


@pytest.mark.pool_only
@pytest.mark.parametrize("urgent, writers", [(0, 1), (0, 4), (1, 1)], ids=["bytes", "four", "urgent"])
def test_small_writes_to_standard_error_do_not_keep_the_controller_busy(server, urgent, writers):
    alice = server.sites["alice"]
    alice.write("drip.pl", DRIP)
    controller = next(p.pid for p in server.processes() if p.role == "controller")
    at = len(server.error_log())
    run(server, f"perl drip.pl 4 {urgent} {writers} >/dev/null </dev/null &")
    time.sleep(0.5)
    before, began = cpu_seconds(controller), time.monotonic()
    while time.monotonic() < began + 2.5:
        asked = time.monotonic()
        assert server.get("/pid.php", "bob", timeout=10).status == 200
        assert time.monotonic() - asked < 5
        time.sleep(0.1)
    share = (cpu_seconds(controller) - before) / (time.monotonic() - began)
    # Processor time, not speed: a busy machine makes it less. Unbounded, it is most of a core.
    assert share < 0.15, f"the controller used {share:.0%} of a core"
    server.wait_for_log(f"the dripping {urgent} is over", after=at)


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.pool_only
@pytest.mark.parametrize("urgent", [False, True])
def test_a_descriptor_by_standard_error_is_not_received(server, urgent):
    """It is of a connection that lingers: whoever closes it waits, unless he is ending."""
    alice = server.sites["alice"]
    alice.write("send.php", SEND_PHP)
    at = len(server.error_log())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        pid = int(server.get(f"/send.php?port={port}&flags={1 if urgent else 0}").text)
        # It is said of each pool once in a minute.
        told = "POOL131: pool alice: process .* has sent a descriptor by its standard error"
        if not re.search(told, server.error_log()):
            server.wait_for_log(told, after=at)
        began = time.monotonic()
        bob_gets_new_processes(server)
        server.kill("worker", "alice")
        eventually(lambda: gone(pid), 5)
        bob_gets_new_processes(server)
        assert server.get("/pid.php", "alice", timeout=5).status == 200
        assert time.monotonic() - began < 10
        # The closers have the connection in the end, not the controller.
        eventually(lambda: not [p for p in server.processes() if "closer" in p.title], 10)


# A connection whose other end reads nothing, full, with SO_LINGER of 30 s; sent by standard error, and no copy is kept.
SEND_PHP = r"""
    <?php
    $c = FFI::cdef('
        struct iov { void *base; size_t len; };
        struct msg { void *name; unsigned namelen; struct iov *iov; size_t iovlen; void *control; size_t controllen; int flags; };
        struct cmsg { size_t len; int level; int type; int fd; int pad; };
        struct addr { unsigned short family; unsigned char data[14]; };
        int socket(int, int, int); int connect(int, void *, unsigned); int close(int); int fcntl(int, int, int);
        long write(int, const void *, size_t); int setsockopt(int, int, int, void *, unsigned);
        long sendmsg(int, struct msg *, int);');
    $s = $c->socket(2, 1, 0);
    $a = $c->new('struct addr'); $a->family = 2;
    foreach ([$_GET['port'] >> 8, $_GET['port'] & 255, 127, 0, 0, 1] as $i => $b) $a->data[$i] = $b;
    $c->connect($s, FFI::addr($a), 16);
    $l = FFI::new('int[2]'); $l[0] = 1; $l[1] = 30;
    $c->setsockopt($s, 1, 13, FFI::addr($l), 8);
    $c->fcntl($s, 4, 2048);
    while ($c->write($s, str_repeat('x', 65536), 65536) > 0);
    $b = FFI::new('char[1]'); $b[0] = 'x';
    $i = $c->new('struct iov'); $i->base = FFI::addr($b); $i->len = 1;
    $m = $c->new('struct msg'); $k = $c->new('struct cmsg');
    $k->len = 20; $k->level = 1; $k->type = 1; $k->fd = $s;
    $m->iov = FFI::addr($i); $m->iovlen = 1; $m->control = FFI::addr($k); $m->controllen = 24;
    $sent = $c->sendmsg(2, FFI::addr($m), (int)$_GET['flags']);
    $c->close($s);
    // What the controller does with it shows itself here.
    fwrite(fopen('php://stderr', 'w'), "behind it\n");
    if ($sent != 1) die('sendmsg failed');
    echo getmypid();
"""


@pytest.mark.pool_only
def test_standard_error_is_opened_by_its_path_where_httpd_is_not_root(httpd):
    """There the error log is the scripts' user's own, and so is a pool's standard error."""
    server = httpd(sites=[Site("alice", ALICE)], user=ALICE, group=ALICE, without=["ssl"])
    fill(server.sites["alice"])
    server.write_conf()
    for path in [server.root, *server.root.rglob("*")]:
        os.chown(path, ALICE, ALICE)
    as_root = server.argv
    server.argv = lambda *more: ["setpriv", f"--reuid={ALICE}", f"--regid={ALICE}", "--clear-groups", *as_root(*more)]
    server.start()
    assert {p.uid for p in server.processes()} == {ALICE}
    for command in ("echo by path >/dev/stderr", "echo by number >&2"):
        assert run(server, command).split()[0] == "0"
    server.wait_for_log("by path")
    server.wait_for_log("by number")


# --- the error log -----------------------------------------------------------------------------------


@pytest.mark.pool_only
@pytest.mark.timeout(120)
def test_an_error_log_that_somebody_holds_holds_up_no_pool(httpd):
    """A piped logger's pipe is standard error of mod_cgid's scripts and mod_wsgi's daemons, too."""
    sites = [Site("alice", ALICE), Site("bob", BOB)]
    server = httpd(sites=sites, conf='ErrorLog "|/usr/bin/tee -a @ROOT@/logs/error.log"\n')
    for site in sites:
        fill(site)
    server.start()
    said = lambda: server.count_log("pool bob: its zygote died")
    assert server.get("/pid.php", "bob").status == 200
    server.kill("zygote", "bob")
    eventually(lambda: said() == 1, 5, what="the controller's line")
    log = os.open(f"/proc/{server.main}/fd/2", os.O_WRONLY)
    try:
        assert os.readlink(f"/proc/self/fd/{log}").startswith("pipe:")
        with held(log):
            for _ in range(3):
                eventually(lambda workers=server.kill("worker", "bob"): gone(*workers), 5)
                assert server.get("/pid.php", "bob", timeout=10).status == 200
                [zygote] = server.kill("zygote", "bob")
                eventually(lambda: gone(zygote), 5)
            # New processes of another pool, too.
            assert server.get("/pid.php", "alice", timeout=10).status == 200
            assert said() == 1, "nobody held the log"
        eventually(lambda: said() == 4, 5, what="the lines that were said meanwhile")
        assert server.count_log("POOL120") == 0
    finally:
        os.close(log)


# --- a controller that waits all the same ------------------------------------------------------------


def controller_of(server):
    [controller] = server.processes("controller")
    return controller.pid


def is_stuck(pid):
    process = read_process(pid)
    return process is not None and process.state == "D"


@pytest.fixture
def two_sites(httpd):
    sites = [Site("alice", ALICE, conf=FFI), Site("bob", BOB)]
    server = httpd(sites=sites, conf="Timeout 100\n")
    for site in sites:
        fill(site)
        site.write("sleep.php", SLEEP_PHP)
    return server.start()


@pytest.mark.pool_only
@pytest.mark.timeout(150)
def test_another_controller_takes_over_from_one_that_cannot_be_killed(two_sites):
    server = two_sites
    kept = int(server.get("/pid.php", "bob").text)
    long = Later(server.get, "/sleep.php?s=60", "alice", timeout=100)
    eventually(lambda: server.workers("alice"), 5)
    [busy] = [p.pid for p in server.workers("alice")]
    controller = controller_of(server)
    before = {p.pid for p in server.processes() if p.role in ("seed", "zygote", "worker")}
    frontends = {p.pid for p in server.processes("frontend")}
    with held_pipe() as pipe:
        read_for_ever(controller, pipe)
        line = server.wait_for_log(r"POOL132: the controller (\d+) does not end", timeout=60)
        assert int(line[1]) == controller and is_stuck(controller)
        assert server.count_log("POOL120") == 1 and server.count_log("POOL109") == 0
        # Frontends turn to the new one by themselves.
        answer = server.get("/pid.php", "bob", timeout=20)
        assert answer.status == 200 and int(answer.text) not in before
        assert frontends == {p.pid for p in server.processes("frontend")}
        # What the old one has started ends, but for what somebody still needs.
        eventually(lambda: gone(*(before - {busy})), 25, what="what was left behind ends")
        assert kept in before and not gone(busy)
        assert long.result(60).status == 200
        eventually(lambda: gone(busy), 15, what="and the last")
        assert is_stuck(controller)
    # It can die now, and that is no new death.
    eventually(lambda: gone(controller), 5)
    assert server.get("/pid.php", "bob").status == 200
    assert server.count_log("POOL109") == 0 and len(server.processes("controller")) == 1


@pytest.mark.pool_only
@pytest.mark.timeout(120)
@pytest.mark.parametrize("noticed", [True, False])
def test_stop_ends_all_but_a_controller_that_cannot_be_killed(two_sites, noticed):
    server = two_sites
    alice = server.sites["alice"]
    alice.write("daemon.php", "<?php exec('setsid sleep 1000 >/dev/null 2>&1 </dev/null & echo $!', $o); echo $o[0];")
    controller = controller_of(server)
    with held_pipe() as pipe:
        for site in ("alice", "bob"):
            assert server.get("/pid.php", site).status == 200
        daemon = int(server.get("/daemon.php").text)
        read_for_ever(controller, pipe)
        if noticed:
            server.wait_for_log("POOL132", timeout=60)
            assert server.get("/pid.php", "bob", timeout=20).status == 200
        else:
            assert not gone(daemon)
        others = [p.pid for p in server.processes() if p.pid != controller]
        assert len([p for p in server.processes("controller")]) == (2 if noticed else 1)
        server.signal(signal.SIGTERM)
        server.wait_for_end()
        assert gone(daemon, *others)
        assert is_stuck(controller)
        line = server.wait_for_log(r"POOL135: the controller (\d+) does not end")
        assert int(line[1]) == controller
    eventually(lambda: gone(controller), 5)
    server.stop()
