"""Point 8: what a pool's process is, has, and can reach: seen from outside, in /proc, and tried from inside."""

import contextlib
import ctypes
import os
import re
import signal
import socket
import stat
import threading
import http.server
from pathlib import Path

import pytest

import keyscan
from harness import (ALICE, BOB, FRONTEND, Broken, Later, Site, descendants, eventually, fds_of, free_port, has_module, make_certificate,
                     may_look_into, read_process)
from pages import ENV_CGI, FFI, SLEEP_PHP, WHO_PHP

pytestmark = pytest.mark.pool_only

libc = ctypes.CDLL(None, use_errno=True)


def fill(site):
    site.write("who.php", WHO_PHP)
    site.write("text.txt", f"text of {site.name}")
    site.write("kill.php", """
        <?php
        $out = [];
        foreach (explode(',', $_GET['pids']) as $pid) {
            $out[$pid] = ['kill' => posix_kill((int)$pid, 0) ? 'allowed' : posix_strerror(posix_get_last_error())];
            foreach (['mem', 'environ', 'maps', 'fd', 'io', 'cwd', 'exe'] as $f)
                if ($f == 'fd' ? @scandir("/proc/$pid/fd") : @fopen("/proc/$pid/$f", 'r')) $out[$pid][$f] = 'open';
        }
        echo json_encode($out);
    """)
    site.write("ptrace.php", """
        <?php
        $c = FFI::cdef('long ptrace(int, int, void *, void *); int prlimit(int, int, void *, void *);');
        $out = [];
        foreach (explode(',', $_GET['pids']) as $pid) {
            $old = FFI::new('unsigned long[2]');
            $out[$pid] = [$c->ptrace(16, (int)$pid, null, null), $c->prlimit((int)$pid, 7, null, FFI::addr($old))];
        }
        echo json_encode($out);
    """)
    site.write("setuid.php", """
        <?php
        $c = FFI::cdef('int setuid(unsigned); int setgid(unsigned); int setgroups(unsigned long, void *);'
            . 'int chroot(const char *); int unshare(int);');
        echo json_encode([$c->setuid(0), $c->setgid(0), $c->setgroups(0, null), $c->chroot('/')]);
    """)


EXTRA = [m for m in ("proxy", "proxy_http", "proxy_balancer", "lbmethod_byrequests", "slotmem_shm", "fcgid", "wsgi",
                     "cgid") if has_module(m)]


@pytest.fixture(scope="module", params=["plain", "crowded"])
def server(request, shared_httpd):
    """The usual modules, and the same with modules that have processes and shared memory of their own."""
    crowded = request.param == "crowded"
    backend, port = start_backend()
    conf = """
        <IfModule wsgi_module>
            WSGIDaemonProcess tenant processes=1 threads=1
            WSGISocketPrefix @ROOT@/run/wsgi
        </IfModule>
        <IfModule cgid_module>
            ScriptSock @ROOT@/run/cgisock
        </IfModule>
        <IfModule fcgid_module>
            FcgidIPCDir @ROOT@/run/fcgid
            FcgidProcessTableFile @ROOT@/run/fcgid_shm
        </IfModule>
        <IfModule proxy_balancer_module>
            <Proxy "balancer://farm">
                BalancerMember http://127.0.0.1:@BACKEND@
            </Proxy>
        </IfModule>
    """
    site_conf = FFI + "<IfModule proxy_balancer_module>\nProxyPass /farm balancer://farm/\n</IfModule>\n"
    sites = [Site(n, u, conf=site_conf, pool_conf="PoolIdleTimeout 300s") for n, u in (("alice", ALICE), ("bob", BOB))]
    server = shared_httpd(sites=sites, modules=EXTRA if crowded else [], conf=conf if crowded else "",
                          define={"BACKEND": port})
    server.crowded = crowded
    for site in sites:
        fill(site)
    server.start()
    for site in sites:
        assert server.get("/who.php", site.name).status == 200
    yield server
    backend.shutdown()
    backend.server_close()


def start_backend():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"farm")

        def log_message(self, *_):
            pass

    port = free_port()
    backend = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=backend.serve_forever, daemon=True).start()
    return backend, port


def of_pools(server):
    found = server.processes("zygote") + server.workers()
    assert {p.uids[0] for p in found} == {ALICE, BOB}
    return found


# --- what they are ----------------------------------------------------------------------------------


def test_all_ids_are_the_pools(server):
    for p in of_pools(server):
        uid = {"alice": ALICE, "bob": BOB}[p.pool]
        assert p.uids == (uid,) * 4, p
        assert p.gids == (uid,) * 4, p
        assert set(p.groups) <= {uid}, p


def test_every_thread_has_the_pools_ids(server):
    for p in of_pools(server):
        for task in os.listdir(f"/proc/{p.pid}/task"):
            text = open(f"/proc/{p.pid}/task/{task}/status").read()
            assert set(re.search(r"^Uid:\t(.*)$", text, re.M)[1].split()) == {str(p.uids[0])}


def test_no_capability_and_no_new_privileges(server):
    for p in of_pools(server):
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(p.status[name], 16) == 0, (p.title, name)
        assert p.status["NoNewPrivs"] == "1", p.title


def test_not_dumpable(server):
    for p in of_pools(server):
        # The kernel gives the files in /proc of such a process to root.
        assert os.stat(f"/proc/{p.pid}/mem").st_uid == 0, p.title


def test_single_threaded_and_in_no_terminal(server):
    for p in of_pools(server):
        assert p.status["Threads"] == "1", p.title
        assert open(f"/proc/{p.pid}/stat").read().rsplit(")", 1)[1].split()[4] == "0", p.title


def test_only_workers_interrupt_nobody_when_they_are_woken(server):
    for p in of_pools(server):
        expected = os.SCHED_BATCH if p.role == "worker" else os.SCHED_OTHER
        assert os.sched_getscheduler(p.pid) == expected, p.title


def test_controller_runs_without_configuration_and_modules(server):
    controller = server.processes("controller")[0]
    maps = open(f"/proc/{controller.pid}/maps").read()
    for module in ("libphp", "mod_ssl", "mod_rewrite", "mod_proxy"):
        assert module not in maps
    assert controller.status["Threads"] == "1"


# --- what they have ---------------------------------------------------------------------------------


def unix_sockets():
    """inode -> (flags, path) of all Unix sockets."""
    out = {}
    for line in open("/proc/net/unix").read().splitlines()[1:]:
        cells = line.split()
        out[int(cells[6])] = (int(cells[3], 16), cells[7] if len(cells) > 7 else "")
    return out


def sockets_of(pid):
    return {int(m[1]) for link in fds_of(pid).values() if (m := re.fullmatch(r"socket:\[(\d+)\]", link))}


def access_mode(pid, number):
    """"r", "w" or "rw": the access mode of an open file."""
    flags = int(re.search(r"^flags:\s*(\d+)", open(f"/proc/{pid}/fdinfo/{number}").read(), re.M)[1], 8)
    return ("r", "w", "rw")[flags & os.O_ACCMODE]


def pipe_ends_of(pid):
    """Both ends of a pipe have one inode; the mode tells them apart."""
    return {f"{access_mode(pid, n)} {link}" for n, link in fds_of(pid).items() if link.startswith("pipe:")}


def test_descriptors_are_dev_null_but_lease_and_log_channel(server):
    root = str(server.root)
    for p in server.workers():
        left = {n: link for n, link in fds_of(p.pid).items() if link != "/dev/null"}
        for number, link in left.items():
            assert not link.startswith(root), (p.title, number, link)
            mine = link.startswith(("anon_inode:", "/tmp/.ZendSem", "socket:", "/memfd:opcache", "/dev/urandom"))
            assert mine, (p.title, number, link)
        # The log channel: what a process writes to its standard error, the controller reads.
        assert left[2].startswith("socket:"), (p.title, left)
        sockets = sockets_of(p.pid)
        assert 1 <= len(sockets) <= 3, (p.title, left)
        assert sockets <= unix_sockets().keys(), (p.title, "has a socket of the network")


def test_no_descriptor_is_shared_with_another_user(server):
    """Each end of a socket pair has an inode of its own, and each end of a pipe a mode: one in two processes is one
    open file."""
    everyone = server.processes()
    for p in of_pools(server):
        mine = sockets_of(p.pid) | pipe_ends_of(p.pid)
        for other in everyone:
            if other.uid != p.uid:
                shared = mine & (sockets_of(other.pid) | pipe_ends_of(other.pid))
                assert shared == set(), (p.title, other.role, other.title, shared)


def test_workers_of_one_pool_do_not_hold_each_others_lease(server):
    for pool in ("alice", "bob"):
        in_pool = server.workers(pool)
        seen = [i for p in in_pool for i in sockets_of(p.pid)]
        leases = [i for p in in_pool for i in sockets_of(p.pid) if seen.count(i) == 1]
        assert len(leases) >= len(in_pool)
        for zygote in server.processes("zygote", pool):
            assert not set(leases) & sockets_of(zygote.pid)


def shared_writable(pid):
    may_look_into(pid)
    out = set()
    for line in open(f"/proc/{pid}/maps"):
        cells = line.split()
        if cells[1].startswith("rw") and cells[1][3] == "s":
            out.add((cells[3], cells[4]))
    return out


def test_no_writable_memory_is_shared_with_another_user(server):
    everyone = server.processes()
    assert any(shared_writable(p.pid) for p in everyone if p.role == "parent"), "the look finds the scoreboard"
    for p in of_pools(server):
        for other in everyone:
            if other.uid != p.uid:
                assert not shared_writable(p.pid) & shared_writable(other.pid), (p.title, other.title)


PROCESSES_OF_CONTROLLER = ("keeper", "stand-in", "controller")


def test_nothing_listens_for_tenants(server):
    sockets = unix_sockets()
    for p in server.processes():
        if p.role in (*PROCESSES_OF_CONTROLLER, "seed", "zygote", "worker"):
            for inode in sockets_of(p.pid):
                assert not sockets.get(inode, (0, ""))[0] & 0x10000, (p.title, sockets[inode])
            tcp = open("/proc/net/tcp").read() + open("/proc/net/tcp6").read()
            listening = {int(line.split()[9]) for line in tcp.splitlines() if " 0A " in line}
            assert not sockets_of(p.pid) & listening, p.title


def test_a_daemon_of_another_module_has_no_way_to_the_controller(server):
    if not server.crowded:
        pytest.skip("no such daemon here")
    if server.mpm == "prefork":
        pytest.skip("a daemon and a frontend of prefork look alike")
    own = [p.pid for role in PROCESSES_OF_CONTROLLER for p in server.processes(role)]
    assert len(own) == len(PROCESSES_OF_CONTROLLER)
    below = {p.pid for pid in own for p in descendants(pid)} | {*own}
    ways = set().union(*(sockets_of(pid) | pipe_ends_of(pid) for pid in own))
    # A frontend has ThreadsPerChild (32) threads and more; the daemons have a few.
    daemons = [p for p in server.processes()
               if p.role in ("frontend", "other") and p.pid not in below and int(p.status["Threads"]) < 20]
    assert daemons, "mod_wsgi, mod_fcgid and mod_cgid have started theirs"
    for p in daemons:
        assert not (sockets_of(p.pid) | pipe_ends_of(p.pid)) & ways, p.title


def seize(pid):
    """Copies of a process's sockets, as if we were that process (pidfd_getfd(2))."""
    may_look_into(pid)
    handle = os.pidfd_open(pid)
    for number in fds_of(pid):
        fd = libc.syscall(438, handle, number, 0)
        if fd >= 0 and stat.S_ISSOCK(os.fstat(fd).st_mode):
            yield socket.socket(fileno=fd)
        elif fd >= 0:
            os.close(fd)
    os.close(handle)


@pytest.mark.skipif(not has_module("cgid"), reason="mod_cgid is not installed")
def test_a_daemon_that_is_started_again_cannot_cut_frontends_off(httpd):
    """httpd's parent forks it like a frontend, at a time when frontends may be forked."""
    server = httpd(sites=[Site("alice", ALICE)], modules=["cgid"])
    fill(server.sites["alice"])
    server.start()
    if server.mpm == "prefork":
        pytest.skip("a daemon and a frontend of prefork look alike")
    find = lambda: [p.pid for p in server.processes("frontend") if int(p.status["Threads"]) < 20]
    assert server.get("/who.php").status == 200
    first = eventually(find, what="mod_cgid's daemon")
    assert len(first) == 1
    os.kill(first[0], signal.SIGKILL)
    again = eventually(lambda: [pid for pid in find() if pid not in first], 8, what="another daemon")
    for taken in seize(again[0]):
        if taken.type == socket.SOCK_SEQPACKET:
            with contextlib.suppress(OSError):
                while taken.send(b"x" * 100, socket.MSG_DONTWAIT):
                    pass
            with contextlib.suppress(OSError):
                taken.shutdown(socket.SHUT_RDWR)
        taken.close()
    for p in server.processes("frontend"):
        if p.pid not in again:
            os.kill(p.pid, signal.SIGKILL)
    eventually(lambda: answers(server), 8, what="new frontends are served")


def daemons(server):
    """mod_cgid's: they have the socket of this server at which it listens. A frontend that starts has few threads, too."""
    lines = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    sockets = {f"socket:[{line[6]}]" for line in lines if line[-1].startswith(str(server.root)) and line[3] == "00010000"}
    for p in server.processes("frontend"):
        with contextlib.suppress(OSError):
            if sockets & {os.readlink(f"/proc/{p.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{p.pid}/fd")}:
                yield p.pid


@pytest.mark.skipif(not has_module("cgid"), reason="mod_cgid is not installed")
@pytest.mark.parametrize("reloads", [0, 1])
def test_a_daemon_that_is_started_again_has_nothing_but_a_way_that_leads_nowhere(httpd, reloads):
    """Also while a seed reads the configuration: whoever has the end at which httpd's parent waits for it can fill the
    controller's."""
    server = httpd(sites=[Site("alice", ALICE)], modules=["cgid"])
    fill(server.sites["alice"])
    server.start()
    if server.mpm == "prefork":
        pytest.skip("a daemon and a frontend of prefork look alike")
    for _ in range(reloads):
        server.graceful()
    find = lambda: [pid for pid in daemons(server) if pid != server.main]
    first = eventually(find, what="mod_cgid's daemon")
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    again = eventually(lambda: [pid for pid in find() if pid not in first], 8, what="another daemon")
    for pid in again:
        taken = list(seize(pid))
        with_boundaries = [t for t in taken if t.family == socket.AF_UNIX and t.type == socket.SOCK_SEQPACKET]
        assert len(with_boundaries) <= 1, "its connector"
        for t in taken:
            t.close()


def answers(server):
    try:
        return server.get("/who.php", timeout=5).status == 200
    except (Broken, OSError):
        return False


# --- what they can reach ----------------------------------------------------------------------------


def targets(server):
    return [p for p in server.processes() if ALICE not in p.uids]


def test_cannot_signal_or_read_anything_of_another_user(server):
    pids = [p.pid for p in targets(server)]
    assert len(pids) >= 5
    out = server.get("/kill.php?pids=" + ",".join(map(str, pids))).json()
    for pid in pids:
        assert out[str(pid)] == {"kill": "Operation not permitted"}, read_process(pid)


def test_cannot_trace_or_limit_anything_of_another_user(server):
    pids = [p.pid for p in targets(server)]
    out = server.get("/ptrace.php?pids=" + ",".join(map(str, pids))).json()
    assert all(out[str(pid)] == [-1, -1] for pid in pids), out


def test_cannot_change_its_ids(server):
    assert server.get("/setuid.php").json() == [-1, -1, -1, -1]


def test_a_set_uid_program_gives_no_rights(server):
    alice = server.sites["alice"]
    alice.write("su.php", "<?php exec('/bin/su -c id 2>&1 </dev/null', $out, $rc); echo $rc, ' ', implode($out);")
    found = server.get("/su.php").text
    assert "uid=0" not in found


def test_the_other_pool_and_the_server_go_on(server):
    assert server.get("/text.txt", "bob").text == "text of bob"
    if server.crowded:
        for _ in range(5):
            assert server.get("/farm/x").text == "farm"


def test_modules_with_shared_memory_survive_reloads(server):
    if not server.crowded:
        pytest.skip("nothing to disturb here")
    for _ in range(3):
        server.graceful()
        eventually(lambda: server.get("/who.php").status == 200, 8)
        for _ in range(5):
            assert server.get("/farm/x").text == "farm"
    assert not re.search(r"AH01179|AH01205|AH0117[78]", server.error_log())
    parent = open(f"/proc/{server.main}/maps").read()
    assert not re.search(r"slotmem.*\(deleted\)", parent)
    managers = [p for p in server.processes() if p.ppid == server.main]
    assert len([p for p in managers if p.role == "other"]) <= 4


# --- what only frontends can do ---------------------------------------------------------------------


@pytest.mark.parametrize("handler,module", [("fcgid-script", "mod_fcgid.c"), ("wsgi-script", "mod_wsgi.c"),
                                            ("balancer-manager", "mod_proxy_balancer.c")])
def test_a_handler_that_works_in_frontends_only_does_not_show_the_script(server, handler, module):
    if not server.crowded:
        pytest.skip("these modules are not loaded here")
    alice = server.sites["alice"]
    alice.write("handlers/.htaccess", f"SetHandler {handler}\n")
    alice.write("handlers/secret.txt", "the-source-of-the-script")
    found = server.get("/handlers/secret.txt")
    assert found.status == 500
    assert "the-source" not in found.text
    server.wait_for_log(rf"POOL114: \[pool alice pid \d+\] the handler {handler} belongs to {module}.*PoolModuleRole {module} worker")


def test_server_status_belongs_to_the_frontends(httpd):
    """A worker has no scoreboard. The example in docs/directives.md has the page of the frontends, pools included."""
    alice = Site("alice", ALICE, conf="""
        <Location /server-status>
            SetHandler server-status
        </Location>
        Alias /real-status /nowhere
        <Location /real-status>
            SetHandler server-status
            Require local
            AssignServerPool none
        </Location>
    """)
    server = httpd(sites=[alice], conf="ExtendedStatus On\n")
    alice.write("sleep.php", SLEEP_PHP)
    alice.write(".htaccess", "RewriteEngine On\nRewriteRule ^own-status$ - [H=server-status]\n")
    server.start()
    for path in ("/server-status", "/server-status?auto", "/own-status"):
        at = len(server.error_log())
        found = server.get(path)
        assert (found.status, "Scoreboard" in found.text) == (500, False)
        server.wait_for_log(r"POOL114: \[pool alice pid \d+\] the handler server-status belongs to mod_status\.c", after=at)
    sleeping = Later(server.get, "/sleep.php?s=2")
    row = (rf"<b>W</b>[^W]*<td nowrap>{re.escape(alice.host)}:{server.port}</td>"
           r"<td nowrap>GET /sleep\.php\?s=2 HTTP/1\.1</td>")
    eventually(lambda: re.search(row, server.get("/real-status").text), 2, what="the pool's request on the page")
    assert sleeping.result().status == 200
    numbers = dict(line.split(": ", 1) for line in server.get("/real-status?auto").text.splitlines() if ": " in line)
    assert int(numbers["Total Accesses"]) >= 4
    assert "W" in numbers["Scoreboard"]


# --- the pool's own environment ---------------------------------------------------------------------


def test_pool_env_and_umask_reach_php_and_cgi(httpd):
    alice = Site("alice", ALICE, pool_conf="PoolEnv APP_ENV production\nPoolEnv APP_TIER 'two words'\nPoolUmask 0027",
                 conf="AddHandler cgi-script .cgi\nOptions +ExecCGI\nSetEnv APP_TIER own\nLogFormat \"%{APP_ENV}e\" env\nCustomLog @ROOT@/logs/env.log env")
    bob = Site("bob", BOB)
    server = httpd(sites=[alice, bob], modules=["cgi"])
    for site in (alice, bob):
        site.write("env.php", """
            <?php
            @unlink('made'); touch('made');
            printf("%s|%s|%s|%o", getenv('APP_ENV'), $_SERVER['APP_ENV'] ?? '', getenv('APP_TIER'),
                fileperms('made') & 0777);
        """)
        site.script("env.cgi", """
            #!/bin/sh
            printf 'Content-Type: text/plain\\n\\n'
            rm -f made2; : > made2
            printf '%s|%s|' "$APP_ENV" "$APP_TIER"; stat -c %a made2
        """)
    server.start()
    assert server.get("/env.php").text == "production|production|own|640"
    assert server.get("/env.cgi").text.strip() == "production|own|640"
    assert server.get("/env.php", "bob").text.startswith("||")
    assert eventually(lambda: (server.root / "logs" / "env.log").read_text().splitlines()[:1] == ["production"])


# --- what the configuration reveals -----------------------------------------------------------------


# Looks through all memory of its own process that can be written, without a system call that would need a right. What
# follows the mark is found; the mark itself, which is in the script too, is not enough.
OWN_MEMORY_PHP = """
    <?php
    // Addresses as numbers: to the machine it is the same.
    $c = FFI::cdef('unsigned long memmem(unsigned long, unsigned long, const char *, unsigned long);'
        . 'void *memcpy(char *, unsigned long, unsigned long);');
    $found = [];
    foreach (file('/proc/self/maps') as $line) {
        if (!preg_match('/^([0-9a-f]+)-([0-9a-f]+) rw/', $line, $m)) continue;
        [$at, $end] = [hexdec($m[1]), hexdec($m[2])];
        while ($hit = $c->memmem($at, $end - $at, 'CANARY-', 7)) {
            $at = $hit + 7;
            $text = FFI::new('char[40]');
            $c->memcpy($text, $at, min(40, $end - $at));
            if (preg_match('/^[a-z]+-[0-9a-f]{16}/', FFI::string($text, 40), $m)) $found[$m[0]] = true;
        }
    }
    echo json_encode(array_keys($found));
"""


def canary(what):
    """A secret, and what own-memory.php says when it finds it."""
    found = f"{what}-{os.urandom(8).hex()}"
    return f"CANARY-{found}", found


def test_what_a_site_sees_of_the_secrets_of_another_one(httpd):
    """As docs/security.md has it, in "What the configuration reveals": the configuration's text is in every pool's
    memory, where native code finds it; what a file holds that only the pool's user reads is not; and no way but native
    code leads to any of it."""
    in_conf = {what: canary(what) for what in ("setenv", "poolenv", "proxysecret", "phpvalue")}
    in_file = {what: canary(what) for what in ("htaccess", "dotenv", "password")}
    bob = Site("bob", BOB, pool_conf=f"PoolEnv SECRET {in_conf['poolenv'][0]}", conf=f"""
        SetEnv DB_PASSWORD {in_conf['setenv'][0]}
        ProxyPass /ajp ajp://127.0.0.1:9/ secret={in_conf['proxysecret'][0]}
        php_admin_value error_append_string {in_conf['phpvalue'][0]}
        <Location /private>
            AuthType Basic
            AuthName x
            AuthUserFile @HOME@/htpasswd
            Require valid-user
        </Location>
        {FFI}
    """)
    alice = Site("alice", ALICE, conf=FFI + "AddHandler cgi-script .cgi\n")
    server = httpd(sites=[alice, bob], modules=["cgi", "proxy", "proxy_ajp"])
    for site in (alice, bob):
        site.write("memory.php", OWN_MEMORY_PHP)
        site.write("info.php", "<?php phpinfo(); echo file_get_contents('/proc/self/environ'), print_r(getenv(), 1),"
                               "print_r($_SERVER, 1), print_r(ini_get_all(), 1);")
        site.script("env.cgi", ENV_CGI)
    bob.write(".htaccess", f"SetEnv TOKEN {in_file['htaccess'][0]}\n")
    bob.write(".env", in_file["dotenv"][0])
    bob.write("env.php", "<?php echo file_get_contents('.env'), $_SERVER['TOKEN'], $_SERVER['DB_PASSWORD'],"
                         "getenv('SECRET'), ini_get('error_append_string');")
    bob.write("htpasswd", f"{in_file['password'][0]}:x\n", base=bob.home)
    server.start()

    # bob's own requests have them all, so the look finds what is there.
    own = server.get("/env.php", "bob").text
    for what in ("dotenv", "htaccess", "setenv", "poolenv", "phpvalue"):
        assert (in_conf | in_file)[what][0] in own, what
    assert server.get("/private", "bob", headers=[("Authorization", "Basic eDp4")]).status == 401
    texts = {found for _, found in in_conf.values()}
    assert texts | {in_file["htaccess"][1]} <= set(server.get("/memory.php", "bob").json())

    seen = set(server.get("/memory.php").json())
    assert texts <= seen, "if this is no longer so, docs/security.md has to say so"
    assert not seen & {found for _, found in in_file.values()}
    # The ways of every script, in a fresh worker and in one that has read all of its memory.
    for path in ("/info.php", "/env.cgi"):
        found = server.get(path)
        assert found.status == 200 and "PATH" in found.text
        assert "CANARY-" not in found.text
    for name in (".env", ".htaccess"):
        alice.write("read.php", f"<?php var_dump(@file_get_contents('{bob.docroot / name}'));")
        assert server.get("/read.php").text.strip() == "bool(false)"


# --- .htaccess --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["AssignServerPool bob", "AssignServerPool none", "PoolUser #0",
                                  f"<ServerPool x>\nPoolUser #{BOB}\n</ServerPool>", "PoolMaxProcesses 100",
                                  "<If \"true\">\nAssignServerPool bob\n</If>",
                                  "<Files x.php>\nAssignServerPool bob\n</Files>"])
def test_htaccess_cannot_choose_a_pool(server, text):
    alice = server.sites["alice"]
    alice.write("choose/.htaccess", text + "\n")
    alice.write("choose/x.php", "<?php echo posix_geteuid();")
    found = server.get("/choose/x.php")
    assert found.status == 500
    assert str(BOB) not in found.text


def test_script_cannot_choose_a_pool_by_headers(server):
    for name in ("X-Server-Pool", "AssignServerPool", "Pool-Name"):
        who = server.get("/who.php", headers=[(name, "bob")]).json()
        assert who["posix"] == ALICE


# --- php.ini ----------------------------------------------------------------------------------------


def test_an_unreadable_scan_directory_file_stops_the_pool(httpd):
    alice = Site("alice", ALICE)
    server = httpd(sites=[alice])
    scan = server.root / "conf" / "php.d"
    scan.mkdir()
    scan.chmod(0o755)
    (scan / "99-secure.ini").write_text("disable_functions=exec\n")
    (scan / "99-secure.ini").chmod(0o600)
    server.env["PHP_INI_SCAN_DIR"] = str(scan)
    fill(alice)
    server.start()
    assert server.get("/who.php").status == 503
    server.wait_for_log(r"99-secure\.ini")


def test_php_ini_of_the_server_applies_in_a_pool(httpd):
    alice = Site("alice", ALICE)
    server = httpd(sites=[alice], conf="PHPIniDir @ROOT@/conf/php\n")
    ini = server.root / "conf" / "php"
    ini.mkdir()
    ini.chmod(0o755)
    (ini / "php.ini").write_text("disable_functions=exec\nmemory_limit=55M\n")
    alice.write("ini.php", "<?php echo ini_get('memory_limit'), ' ', function_exists('exec') ? 'exec' : 'none';")
    server.start()
    assert server.get("/ini.php").text == "55M none"


# --- TLS keys ---------------------------------------------------------------------------------------


SECRET = "open-sesame"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain-keys", "encrypted-keys"])
def test_no_tls_key_in_any_process_but_parent_and_frontends(httpd, encrypted):
    sites, keys = [], []
    for i, kind in enumerate(("rsa", "ec", "rsa", "ec")):
        name, uid = ("alice", ALICE) if i == 0 else ("bob", BOB) if i == 1 else (f"more{i}", BOB)
        sites.append(Site(name, uid, pool="alice" if i == 0 else "bob"))
        keys.append((name, kind))
    conf = "SSLPassPhraseDialog exec:@ROOT@/tls/dialog\n" if encrypted else ""
    server = httpd(sites=sites, conf=conf)
    tls = server.root / "tls"
    passphrase = SECRET if encrypted else None
    for name, kind in keys:
        make_certificate(tls / f"{name}.pem", tls / f"{name}.key", f"{name}.test", kind=kind, passphrase=passphrase)
        server.sites[name].tls_conf = f"SSLCertificateFile {tls}/{name}.pem\nSSLCertificateKeyFile {tls}/{name}.key\n"
    if encrypted:
        dialog = tls / "dialog"
        dialog.write_text(f"#!/bin/sh\necho {SECRET}\n")
        dialog.chmod(0o700)
        make_certificate(server.certificate, server.key, "server.test", passphrase=passphrase)
    server.make_certificate()
    for site in sites:
        fill(site)
    server.start()

    wanted = []
    for name, _ in keys:
        wanted += keyscan.needles(tls / f"{name}.key", passphrase)
    if encrypted:
        wanted.append(("the pass phrase", SECRET.encode()))

    for generation in range(3):
        for name, _ in keys:
            assert server.get("/who.php", name, tls=True).status == 200
        in_front = set()
        for p in server.processes("frontend"):
            in_front |= keyscan.find(p.pid, wanted) or set()
        assert len(in_front) >= 4, f"the scan finds keys where they are: {in_front}"
        for role in (*PROCESSES_OF_CONTROLLER, "seed", "zygote", "worker"):
            # Old processes end, and new ones start, while the servers change over.
            found = eventually(lambda: [server.get("/who.php", name, tls=True) for name, _ in keys]
                               and server.processes(role), 10, what=role)
            # One of the generation before may end while it is looked at.
            seen = [(p, keyscan.find(p.pid, wanted)) for p in found]
            assert any(hits is not None for _, hits in seen), role
            for p, hits in seen:
                assert not hits, (generation, p.title, hits)
        server.sites["alice"].conf = f"SetEnv GENERATION {generation}"
        server.graceful()


def test_key_file_is_closed_to_the_pool(server):
    alice = server.sites["alice"]
    alice.write("key.php", f"<?php var_dump(@file_get_contents('{server.key}'));")
    assert server.get("/key.php").text.strip() == "bool(false)"
    assert stat.S_IMODE(server.key.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", ["foreground", "single"])
def test_a_pool_of_the_frontends_user_cannot_read_them(httpd, mode):
    """Where CoreDumpDirectory is set, httpd makes its children readable for their own user, TLS keys included."""
    sites = [Site("alice", FRONTEND, conf=FFI)]
    server = httpd(sites=sites, conf="CoreDumpDirectory /tmp\n")
    fill(sites[0])
    server.start(mode)
    frontends = [server.main] if mode == "single" else [p.pid for p in server.processes("frontend")]
    pids = ",".join(map(str, frontends))
    for pid, found in server.get(f"/kill.php?pids={pids}").json().items():
        assert set(found) == {"kill"}, found
    for traced, _ in server.get(f"/ptrace.php?pids={pids}").json().values():
        assert traced == -1


def test_frontends_leave_cores_where_no_pool_has_their_user(httpd):
    # Else the pool default serves what is unassigned, as the frontends' user.
    conf = "CoreDumpDirectory /tmp\nAssignServerPool none\n"
    server = httpd(sites=[Site("alice", ALICE)], conf=conf).start()
    for p in server.processes("frontend"):
        assert os.stat(f"/proc/{p.pid}/environ").st_uid == p.uid  # root's where it is not dumpable, proc(5)
