"""mod_pool as the MPM: what mpm_event does, done by it. Pools behind it are the other files' matter (`--mpm=pool`)."""

import contextlib
import os
import platform
import re
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from harness import ALICE, HTTPD, Broken, H2, Later, Site, eventually, fds_of, in_threads
from test_config import apxs, conf  # noqa: F401 - conf is a fixture

pytestmark = pytest.mark.pool_only

STATUS = "<Location /server-status>\nSetHandler server-status\nRequire all granted\n</Location>\nExtendedStatus on\n"
ONE_CHILD = "StartServers 1\nServerLimit 1\n"
BIG = 24 * 1024 * 1024  # more than the sockets of both sides hold


def threads(n, more=""):
    return f"{ONE_CHILD}ThreadsPerChild {n}\nMaxRequestWorkers {n}\nMinSpareThreads 1\n{more}"


def make(httpd, mode="foreground", sites=None, files=(), **kw):
    """A server whose one site is served by the frontends themselves, and nothing of pools runs."""
    sites = sites or [Site("alice", pool=None)]
    # With PHP the pool `default` would serve.
    without = ["php", *kw.pop("without", [])]
    server = httpd(mpm="pool", sites=sites, without=without, **{"conf": STATUS, **kw})
    for name, content in {"text.txt": "text", **dict(files)}.items():
        for site in sites:
            site.write(name, content, mode=0o644)
    return server.start(mode) if mode else server


def status(server):
    """mod_status's numbers."""
    with server.connect() as c:
        c.request("GET", "/server-status?auto", headers=[("Connection", "close")])
        text = c.response().text
    return dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)


def frontends(server):
    return sorted(p.pid for p in server.processes("frontend"))


# --- which MPM it is ----------------------------------------------------------------------------------


def version_of(conf):
    return subprocess.run([HTTPD, "-V", "-f", conf.file], capture_output=True, text=True, timeout=30).stdout


def test_alone_it_is_the_mpm_and_beside_another_one_it_is_not(conf):
    alone = conf("", mpm="pool")
    alone.file.write_text(alone.head.split("\n", 1)[1])  # its LoadModule line once
    assert re.search(r"Server MPM:\s+pool\n\s+threaded:\s+yes .*\n\s+forked:\s+yes", version_of(alone))
    assert re.search(r"Server MPM:\s+event\n", version_of(conf("")))


def alone(conf, text):
    made = conf(text, mpm="pool")
    made.file.write_text(made.file.read_text().split("\n", 1)[1])
    return made


def test_pool_mpm_on_refuses_another_mpm_with_the_remedy(conf):
    said = conf("PoolMPM on\n").test()
    assert said.returncode != 0
    assert "PoolMPM on: the MPM event is loaded too" in said.stderr and "a2dismod mpm_event" in said.stderr
    assert alone(conf, "PoolMPM on\n").test().returncode == 0
    said = alone(conf, "PoolMPM off\n").test()
    assert said.returncode != 0 and "PoolMPM off: no other MPM is loaded" in said.stderr
    assert conf("PoolMPM off\n").test().returncode == 0
    for section in ("VirtualHost *:80", "Location /", "Directory /", "If true"):
        name = section.split()[0]
        said = conf(f"<{section}>\nPoolMPM off\n</{name}>\n").test()
        assert said.returncode != 0 and f"PoolMPM off: cannot stand in a <{name}> section" in said.stderr
    assert conf("<IfModule mod_pool.c>\n<IfDefine !NEVER>\nPoolMPM off\n</IfDefine>\n</IfModule>\n").test().returncode == 0


def test_directives_of_the_mpm_belong_to_it_or_to_the_other_one(conf):
    mpm_event_conf = """
        StartServers 2
        MinSpareThreads 25
        MaxSpareThreads 75
        ThreadLimit 64
        ThreadsPerChild 25
        MaxRequestWorkers 150
        MaxConnectionsPerChild 0
        AsyncRequestWorkerFactor 2
        ListenBacklog 511
        GracefulShutdownTimeout 5
        ThreadStackSize 262144
        MaxMemFree 2048
    """
    for made in (alone(conf, mpm_event_conf), conf(mpm_event_conf)):
        said = made.test()
        assert (said.returncode, said.stderr) == (0, "Syntax OK\n")
    said = conf("ThreadsPerChild 5\n", mpm="mpm_prefork").test()
    assert said.returncode != 0 and "Invalid command 'ThreadsPerChild'" in said.stderr


@pytest.mark.parametrize("line, words", [
    ("ThreadsPerChild many", "ThreadsPerChild many: not a whole number"),
    ("AsyncRequestWorkerFactor 0", "AsyncRequestWorkerFactor 0: not a number above 0"),
    ("<VirtualHost *:1>\nStartServers 1\n</VirtualHost>", "StartServers cannot occur within <VirtualHost> section"),
    ("Listen 127.0.0.1", "Port must be specified"),
])
def test_bad_values_are_refused(conf, line, words):
    said = alone(conf, line + "\n").test()
    assert said.returncode != 0 and words in said.stderr, said.stderr


def test_values_that_do_not_fit_are_changed_and_told(conf):
    said = alone(conf, "ThreadsPerChild 30\nMaxRequestWorkers 100\n").test()
    assert said.returncode == 0
    assert "MaxRequestWorkers 100: not a multiple of ThreadsPerChild 30; taken as 90" in said.stderr


@pytest.mark.parametrize("line, told", [
    ("StartServers 0", "StartServers 0: less than 1; taken as 1\n"),
    ("MinSpareThreads -2", "MinSpareThreads -2: less than 1; taken as 1\n"),
    ("ServerLimit 30000", "ServerLimit 30000: more than 20000; taken as that\n"),
    ("StartServers 5000000000", ""),
    ("AsyncRequestWorkerFactor 20000", ""),
    ("AsyncRequestWorkerFactor 0.01", ""),
])
def test_numbers_that_mpm_event_takes_are_taken(conf, line, told):
    said = alone(conf, line + "\n").test()
    assert (said.returncode, said.stderr) == (0, told + "Syntax OK\n")


def test_frontends_that_would_stay_root_are_refused(conf):
    """httpd takes mod_unixd's refusal of such a `User` for "declined", and serves as root."""
    pool = "<ServerPool p>\nPoolUser #2001\nPoolGroup #2001\n</ServerPool>\n"
    for make_it, refused in ((lambda: alone(conf, ""), True), (lambda: conf(""), False), (lambda: conf(pool), True)):
        made = make_it()
        made.file.write_text(re.sub("(?m)^User #.*", "User #63999", made.file.read_text()))
        said = made.test()
        assert (said.returncode != 0) == refused, said.stderr
        assert ("User #63999: has no passwd entry" in said.stderr) == refused


def test_directives_say_what_they_are_for(conf):
    said = alone(conf, "StartServers\n").test()
    assert "StartServers takes one argument, Number of child processes" in said.stderr


# --- connections --------------------------------------------------------------------------------------


def test_requests_on_one_connection_one_by_one_and_pipelined(httpd):
    server = make(httpd)
    for tls in (False, True):
        with server.connect(tls=tls) as c:
            for _ in range(5):
                assert c.get("/text.txt").text == "text"
            c.send(b"GET /text.txt HTTP/1.1\r\nHost: alice.test\r\n\r\n" * 20)
            for _ in range(20):
                assert c.response().text == "text"
    for tls in (False, True):
        with H2(server, tls=tls) as h2:
            streams = [h2.start("/text.txt") for _ in range(10)]
            assert [h2.wait(s).text for s in streams] == ["text"] * 10


def test_idle_connections_hold_no_thread(httpd):
    server = make(httpd, mpm_conf=threads(2, "AsyncRequestWorkerFactor 40\n"))
    idle = [server.connect() for _ in range(30)]
    for c in idle:
        assert c.get("/text.txt").status == 200
    for c in reversed(idle):
        assert c.get("/text.txt").status == 200
    eventually(lambda: int(status(server)["ConnsAsyncKeepAlive"]) == 30, what="30 idle connections in mod_status")


def test_keep_alive_timeout_of_each_virtual_host_ends_idle_connections(httpd):
    quick = Site("quick", pool=None, conf="KeepAliveTimeout 1\n")
    slow = Site("slow", pool=None, conf="KeepAliveTimeout 30\n")
    server = make(httpd, sites=[slow, quick])
    with server.connect() as a, server.connect() as b:
        assert a.get("/text.txt", host="quick.test").status == 200
        assert b.get("/text.txt", host="slow.test").status == 200
        began = time.monotonic()
        assert a.is_closed(timeout=10)
        assert 0.9 < time.monotonic() - began
        assert b.get("/text.txt", host="slow.test").status == 200


def test_a_connection_that_goes_on_outlives_its_timeout(httpd):
    server = make(httpd, conf=STATUS + "KeepAliveTimeout 1\n")
    with server.connect() as c:
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            assert c.get("/text.txt").status == 200
            time.sleep(0.2)


def test_slow_readers_hold_no_thread(httpd):
    # What is no file any more (mmap, TLS) beyond FlushMaxThreshold holds a thread in the core's filter, with any MPM.
    server = make(httpd, files={"big": b"x" * BIG}, conf=STATUS + "EnableSendfile on\n", mpm_conf=threads(2, "AsyncRequestWorkerFactor 20\n"))
    slow = [server.connect(rcvbuf=4096) for _ in range(6)]
    for c in slow:
        c.request("GET", "/big")
    for _ in range(10):
        assert server.get("/text.txt").text == "text"
    eventually(lambda: int(status(server)["ConnsAsyncWriting"]) == 6, what="6 connections that write")
    for c in slow:
        found = c.response()
        assert found.complete and len(found.body) == BIG
        c.close()


def ended(server):
    """Between the one and the other state a connection is in neither, so that it counts when it is seen twice."""
    for pause in (0.6, 0):
        now = status(server)
        if not now["ConnsAsyncWriting"] == now["ConnsAsyncClosing"] == "0":
            return False
        time.sleep(pause)
    return True


def test_a_client_that_takes_nothing_is_sent_away_after_timeout(httpd):
    server = make(httpd, files={"big": b"x" * BIG}, conf=STATUS + "Timeout 1\nEnableSendfile on\n")
    with server.connect(rcvbuf=4096) as c:
        c.request("GET", "/big")
        eventually(lambda: status(server)["ConnsAsyncWriting"] == "1", what="one that writes")
        # What the client takes within the last two seconds it still gets.
        eventually(lambda: ended(server), 15, what="the end of the connection")
        assert len(c.read_all()) < BIG


def test_the_end_of_a_connection_waits_for_the_client(httpd):
    server = make(httpd)
    with server.connect() as c:
        c.request("GET", "/text.txt", headers=[("Connection", "close")])
        assert c.response().text == "text"
        assert c.is_closed()
        eventually(lambda: status(server)["ConnsAsyncClosing"] == "1", what="one that lingers")
        # What is still sent is read, so that no reset destroys what the client has not read yet.
        c.send(b"x" * 100_000)
        c.send(b"x" * 100_000)
    eventually(lambda: status(server)["ConnsAsyncClosing"] == "0", what="none that lingers")


def test_a_full_process_takes_no_more_connections_than_it_may_and_loses_none(httpd):
    server = make(httpd, mpm_conf=threads(4, "AsyncRequestWorkerFactor 1\n"), conf=STATUS + "KeepAliveTimeout 20\n")
    # A place for each thread, and one for each idle one.
    held = []
    while len(held) < 10:
        c = server.connect(timeout=20)
        c.request("GET", "/text.txt")
        c.sock.settimeout(1)
        try:
            assert c.response().text == "text"
        except TimeoutError:
            break
        held.append(c)
    assert 6 <= len(held) <= 9
    for kept in held[:4]:
        kept.close()
    c.sock.settimeout(20)
    assert c.response().text == "text"
    c.close()


@pytest.mark.parametrize("count, factor", [(1, 1), (1, 2), (4, 1), (4, 2)])
def test_a_quiet_process_takes_as_many_connections_as_mpm_event(httpd, count, factor):
    server = make(httpd, mpm_conf=threads(count, f"AsyncRequestWorkerFactor {factor}\n"), conf="KeepAliveTimeout 20\n")
    with contextlib.ExitStack() as stack:
        held = 0
        while held < 20:
            c = stack.enter_context(server.connect(timeout=20))
            c.request("GET", "/text.txt")
            c.sock.settimeout(1)
            try:
                assert c.response().text == "text"
            except TimeoutError:
                break
            held += 1
            time.sleep(0.1)  # its thread is idle again
        assert held == count + count * factor


def test_where_no_thread_comes_free_idle_connections_are_sent_away(httpd):
    server = make(httpd, mpm_conf=threads(1, "AsyncRequestWorkerFactor 40\n"), without=["reqtimeout"],
                  conf=STATUS + "KeepAliveTimeout 60\n")
    before = frontends(server)
    idle = []
    for tls in (False, True):
        idle.append(server.connect(tls=tls))
        assert idle[-1].get("/text.txt").text == "text"
    h2 = H2(server, tls=True)
    assert h2.wait(h2.start("/text.txt")).text == "text"
    running = half_a_request(server)
    began = time.monotonic()
    for c in idle:
        assert c.is_closed(timeout=10)
    while h2.conn.sock.recv(4096):  # GOAWAY, then the end
        pass
    assert time.monotonic() - began < 5
    assert finish(running).text == "text"
    running.close()
    assert frontends(server) == before


def test_more_connections_at_once_than_threads_are_all_served(httpd):
    server = make(httpd, mpm_conf="StartServers 2\nServerLimit 2\nThreadsPerChild 4\nMaxRequestWorkers 8\n")

    def client(_):
        for _ in range(10):
            assert server.get("/text.txt").text == "text"

    in_threads(60, client)
    assert not server.count_log("POOL2")


def test_a_secondary_protocol_through_mod_proxy(httpd):
    """WebSocket: an upgrade that mod_proxy passes on, then bytes both ways."""
    backend = socket.socket()
    backend.bind(("127.0.0.1", 0))
    backend.listen()

    def serve():
        connection, _ = backend.accept()
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(4096)
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
        while piece := connection.recv(4096):
            connection.sendall(piece.upper())
        connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    port = backend.getsockname()[1]
    server = make(httpd, modules=["proxy", "proxy_http", "proxy_wstunnel"],
                  conf=STATUS + f"ProxyPass /ws ws://127.0.0.1:{port}/\n")
    with server.connect() as c:
        c.request("GET", "/ws", headers=[
            ("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")])
        assert c.response().status == 101
        for word in (b"one", b"two", b"three"):
            c.send(word)
            assert c.exactly(len(word)) == (word.upper(), True)
    thread.join(10)
    backend.close()


def test_modules_that_want_to_be_called_at_a_time(httpd):
    """mod_dialup suspends the request and sends a piece each second from a timed callback."""
    body = os.urandom(20_000)
    server = make(httpd, files={"big": body}, modules=["dialup"], mpm_conf=threads(1, "AsyncRequestWorkerFactor 20\n"),
                  conf=STATUS + '<Location /big>\nModemStandard "V.92"\n</Location>\n')
    with server.connect() as slow:
        slow.request("GET", "/big")
        eventually(lambda: server.get("/text.txt").text == "text", what="the one thread is free meanwhile")
        found = slow.response()
        assert found.complete and found.body == body
        # The connection came back from the module.
        assert slow.get("/text.txt").text == "text"


# epoll_wait(2) and epoll_pwait(2)
EPOLL_WAIT = {"x86_64": ("232", "281"), "aarch64": ("22",)}


def pollers(server):
    """How many threads of the frontends wait for events, as far as we may know."""
    found = 0
    for pid in frontends(server):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += (task / "syscall").read_text().split()[0] in EPOLL_WAIT.get(platform.machine(), ())
    return found


class SlowBackend:
    """Answers nobody before it is told to; `conf` is what makes httpd pass /slow on to it."""

    def __init__(self):
        self.asked, self.go = [], threading.Event()
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(64)
        self.conf = {"modules": ["proxy", "proxy_http"],
                     "conf": STATUS + f"ProxyPass /slow http://127.0.0.1:{self.socket.getsockname()[1]}/\n"}

    def __enter__(self):
        threading.Thread(target=self.serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.go.set()
        self.socket.close()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self.answer, args=(self.socket.accept()[0],), daemon=True).start()

    def answer(self, connection):
        with connection:
            connection.recv(65536)
            self.asked.append(connection)
            self.go.wait(60)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nslow")


def test_threads_that_stay_away_do_not_hold_up_the_others(httpd):
    """Few threads wait for events, the others rest: they are called when those are with a module that waits for long."""
    with SlowBackend() as backend:
        server = make(httpd, mpm_conf=threads(25), **backend.conf)
        for _ in range(2):
            backend.asked.clear()
            backend.go.clear()
            slow = [Later(server.get, "/slow", timeout=90) for _ in range(20)]
            # While threads go away one after the other, and when 20 of 25 are away.
            assert server.get("/text.txt").text == "text"
            eventually(lambda: len(backend.asked) == 20, 15, what="all are away at the same time")
            for _ in range(4):
                assert server.get("/text.txt").text == "text"
            backend.go.set()
            assert [later.result(60).text for later in slow] == ["slow"] * 20
            time.sleep(0.5)

        def few_wait():
            # Each event sends one away; while many wait, the kernel wakes another one for each.
            assert server.get("/text.txt").text == "text"
            return pollers(server) <= 2

        eventually(few_wait, 15, what="the others rest again")


def test_while_all_threads_are_away_nobody_looks_for_others(httpd):
    backend = socket.socket()
    backend.bind(("127.0.0.1", 0))
    backend.listen(100)
    # Nothing is answered until then.
    server = make(httpd, mpm_conf=threads(64), modules=["proxy", "proxy_http"],
                  conf=STATUS + f"ProxyPass /slow http://127.0.0.1:{backend.getsockname()[1]}/\n")
    (pid,) = frontends(server)

    def used():
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    with contextlib.ExitStack() as clients:
        for _ in range(80):
            clients.enter_context(server.connect()).request("GET", "/slow")
        time.sleep(1)
        before = used()
        time.sleep(3)
        assert used() - before < 0.15
        waiting = clients.enter_context(server.connect())
        waiting.request("GET", "/text.txt")
        backend.close()
        assert waiting.response().text == "text"


def test_modules_with_work_of_their_own(httpd):
    """mod_watchdog's threads, in the parent and in frontends: a health check finds a backend."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        dead = s.getsockname()[1]
    server = make(httpd, modules=["watchdog", "proxy", "proxy_http", "proxy_balancer", "proxy_hcheck",
                                  "slotmem_shm", "lbmethod_byrequests"],
                  conf=STATUS + f"""
        <Proxy balancer://b>
            BalancerMember http://127.0.0.1:@PORT@ hcmethod=GET hcuri=/text.txt hcinterval=1
            BalancerMember http://127.0.0.1:{dead} hcmethod=GET hcuri=/ hcinterval=1
        </Proxy>
        ProxyPass /b balancer://b
        LogLevel proxy_hcheck:info
        """)
    server.wait_for_log(rf"Health check DISABLING http://127.0.0.1:{dead}", timeout=15)
    # The live one is asked again and again, is never taken for dead, and alone gets all requests.
    eventually(lambda: server.count_log('"GET /text.txt HTTP/1.0"', "access.log") >= 3, 15, what="health checks that find it")
    for _ in range(6):
        assert server.get("/b/text.txt").text == "text"
    assert not server.count_log(f"DISABLING http://127.0.0.1:{server.port}")
    # One that comes back is found, too.
    with socket.create_server(("127.0.0.1", dead)) as back:
        back.settimeout(15)

        def answer():
            with contextlib.suppress(OSError):  # until it is closed
                while True:
                    with back.accept()[0] as c:
                        c.recv(4096)
                        c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        server.wait_for_log(rf"Health check ENABLING http://127.0.0.1:{dead}", timeout=15)


@pytest.fixture(scope="module")
def mpmtest(tmp_path_factory):
    """The LoadModule line of tests/e2e/mod_mpmtest.c."""
    if not shutil.which("apr-1-config"):
        pytest.skip("no apr-1-config")
    so = tmp_path_factory.mktemp("mpmtest") / "mod_mpmtest.so"
    flags = subprocess.run(["apr-1-config", "--includes", "--cppflags"], capture_output=True, text=True, check=True)
    subprocess.run([apxs("CC"), "-shared", "-fPIC", f"-I{apxs('INCLUDEDIR')}", *flags.stdout.split(),
                    "-o", so, Path(__file__).with_name("mod_mpmtest.c")], check=True)
    return f"LoadModule mpmtest_module {so}\n"


def from_address(server, address):
    return socket.create_connection(("127.0.0.1", server.port), 5, (address, 0))


def test_callbacks_that_modules_ask_for_in_child_init(httpd, mpmtest):
    server = make(httpd, conf=mpmtest + STATUS)
    server.wait_for_log("mpmtest: registered with 0")
    server.wait_for_log("mpmtest: called")


def test_a_connection_that_a_module_gives_back_at_once_goes_on(httpd, mpmtest):
    server = make(httpd, conf=mpmtest + STATUS)
    for _ in range(5):
        with from_address(server, "127.0.0.3") as c:
            c.sendall(b"x")
            assert c.recv(1) == b""


def test_a_connection_that_a_module_refuses_ends_with_its_hooks(httpd, mpmtest):
    server = make(httpd, conf=mpmtest + STATUS)
    with from_address(server, "127.0.0.4") as c, contextlib.suppress(ConnectionResetError):
        c.sendall(b"x")
        assert c.recv(1) == b""
    server.wait_for_log("mpmtest: refused, aborted is 1")
    assert server.get("/text.txt").text == "text"
    assert status(server)["ConnsAsyncClosing"] == "0"


# --- processes ----------------------------------------------------------------------------------------


def test_frontends_are_forked_while_threads_are_busy_and_ended_after(httpd):
    conf = "StartServers 1\nServerLimit 4\nThreadsPerChild 2\nMaxRequestWorkers 8\nMinSpareThreads 1\nMaxSpareThreads 3\n"
    server = make(httpd, mpm_conf=conf, without=["reqtimeout"])
    busy = [server.connect() for _ in range(5)]
    for c in busy:
        c.send(b"GET /text.txt HTTP/1.1\r\nHost: alice")  # a request half sent takes a thread
    eventually(lambda: len(frontends(server)) >= 3, 15, what="more frontends")
    for c in busy:
        c.send(b".test\r\n\r\n")
        assert c.response().text == "text"
        c.close()
    eventually(lambda: len(frontends(server)) <= 2, 20, what="fewer frontends")


def test_max_connections_per_child_replaces_a_frontend_without_loss(httpd):
    server = make(httpd, conf=STATUS + "MaxConnectionsPerChild 20\n", mpm_conf="StartServers 2\nThreadsPerChild 4\n")
    before = frontends(server)
    for _ in range(100):
        assert server.get("/text.txt").text == "text"
    eventually(lambda: not set(before) & set(frontends(server)), 15, what="new frontends")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_frontend_that_is_killed_is_replaced(httpd, number):
    server = make(httpd, mpm_conf="StartServers 2\nThreadsPerChild 4\n")
    victim = frontends(server)[0]
    os.kill(victim, number)
    eventually(lambda: victim not in frontends(server) and len(frontends(server)) >= 2, 10, what="another frontend")
    for _ in range(20):
        assert server.get("/text.txt").text == "text"


def short_of_descriptors(httpd):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (48, hard))  # it is inherited
    try:
        server = make(httpd, mpm_conf=threads(4, "AsyncRequestWorkerFactor 50\n"), without=["reqtimeout"],
                      conf=STATUS + "KeepAliveTimeout 60\n")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return server


def all_answered(server, answers):
    """Each client has its answer: who is inside has a descriptor for his file."""
    assert all(found.complete for found in answers)
    assert [(found.status, found.text) for found in answers if (found.status, found.text) != (200, "text")] == []
    assert server.count_log("POOL207") == 1
    assert not server.count_log(r"\(24\)Too many open files")


def recovers(server, pid, held):
    # Idle ones have made room.
    eventually(lambda: _answers(server), 20, what="an answer for a new client")
    held.close()
    eventually(lambda: _answers(server), 20, what="an answer again")
    assert frontends(server) == [pid]
    assert server.count_log("POOL207") == 1


def check_room(pid):
    room = 48 - len(os.listdir(f"/proc/{pid}/fd"))
    assert 20 < room < 40


def test_out_of_descriptors_idle_connections_make_room_for_new_ones(httpd):
    """Clients that come one by one and stay."""
    server = short_of_descriptors(httpd)
    (pid,) = frontends(server)
    check_room(pid)
    with contextlib.ExitStack() as held:
        answers = [held.enter_context(server.connect(timeout=30)).get("/text.txt") for _ in range(60)]
        all_answered(server, answers)
        recovers(server, pid, held)


def test_out_of_descriptors_it_serves_whoever_comes_at_once_and_recovers(httpd):
    server = short_of_descriptors(httpd)
    (pid,) = frontends(server)
    check_room(pid)
    with contextlib.ExitStack() as held:
        clients = []
        for _ in range(60):
            clients.append(held.enter_context(server.connect(timeout=30)))
            clients[-1].request("GET", "/text.txt")
        all_answered(server, [c.response() for c in clients])
        recovers(server, pid, held)


def _answers(server):
    try:
        with server.connect(timeout=2) as c:
            return c.get("/text.txt").text == "text"
    except (OSError, Broken):
        return False


def test_threads_that_cannot_be_started_end_the_server_with_the_reason(httpd):
    """An end that httpd decides upon is status 0, with mpm_event too."""
    server = make(httpd, mode=None, conf=STATUS + f"ThreadStackSize {1 << 46}\n")
    server.write_conf()
    done = subprocess.run(server.argv("-D", "FOREGROUND"), capture_output=True, text=True, timeout=30,
                          env=server._environment())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert server.count_log("POOL204") and server.count_log("POOL214") == 1


def listening(port):
    """The inodes of the sockets that listen at a port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}") and row[3] == "0A"}


def listened_at(server, port):
    """For each frontend, which of them it has."""
    there = listening(port)
    return [there & set(fds_of(pid).values()) for pid in frontends(server)]


def check_buckets(server, count):
    """So many sockets at each port, each of which some frontend accepts from, and each frontend from one."""
    def is_so(port):
        has = listened_at(server, port)
        return len(listening(port)) == count and {len(of) for of in has} == {1} and set().union(*has) == listening(port)

    for port in (server.port, server.tls_port):
        # Ending frontends of before a reload have closed theirs soon.
        eventually(lambda: is_so(port), 15, what=f"{count} sockets that listen at {port}")
    for _ in range(40):
        assert server.get("/text.txt").text == "text"


def test_buckets_of_listeners(httpd):
    cores = os.sysconf("SC_NPROCESSORS_ONLN")
    if cores < 2:
        pytest.skip("httpd makes one bucket for each core: needs two cores")
    ratio = cores // 2
    buckets = cores // ratio  # two or three
    server = make(httpd, mpm_conf=f"ListenCoresBucketsRatio {ratio}\nThreadsPerChild 4\nMinSpareThreads 4\n"
                                  f"MaxSpareThreads 100\nStartServers {buckets}\nServerLimit 16\nMaxRequestWorkers 64\n")
    check_buckets(server, buckets)
    server.graceful()
    check_buckets(server, buckets)


def test_there_are_no_more_buckets_than_frontends(httpd):
    server = make(httpd, mpm_conf=threads(4, "ListenCoresBucketsRatio 1\n"))
    check_buckets(server, 1)
    server.graceful()
    check_buckets(server, 1)


# --- restart and stop ---------------------------------------------------------------------------------


def half_a_request(server):
    c = server.connect()
    c.send(b"GET /text.txt HTTP/1.1\r\nHost: alice")
    return c


def finish(c):
    c.send(b".test\r\n\r\n")
    return c.response()


def wait_for_a_reader(server):
    eventually(lambda: "R" in status(server)["Scoreboard"], what="a thread that reads")


def test_graceful_replaces_frontends_and_lets_requests_finish(httpd):
    server = make(httpd, without=["reqtimeout"])
    before = frontends(server)
    running = half_a_request(server)
    wait_for_a_reader(server)
    idle = server.connect()
    assert idle.get("/text.txt").status == 200
    server.graceful()
    assert idle.is_closed()
    eventually(lambda: set(frontends(server)) - set(before), what="a new frontend")
    assert server.get("/text.txt").text == "text"
    found = finish(running)
    assert found.text == "text" and found.closes
    eventually(lambda: not set(before) & set(frontends(server)), 10, what="the end of the old ones")


@pytest.mark.parametrize("order", [signal.SIGUSR1, signal.SIGWINCH], ids=["graceful", "graceful-stop"])
def test_a_request_that_came_before_the_word_to_end_is_answered(httpd, order):
    """On connections that were kept alive, while all threads of the frontend are busy."""
    server = make(httpd, modules=["cgi"], conf=STATUS + "AddHandler cgi-script .cgi\n",
                  mpm_conf=threads(2, "AsyncRequestWorkerFactor 40\n"))
    server.sites["alice"].script("slow.cgi", "#!/bin/sh\nsleep 3\nprintf 'Content-Type: text/plain\\n\\nslow'\n")
    kept = [server.connect() for _ in range(20)]
    assert {c.get("/text.txt").status for c in kept} == {200}
    busy = [server.connect() for _ in range(2)]
    for c in busy:
        c.request("GET", "/slow.cgi")
    time.sleep(0.5)
    for c in kept:
        c.request("GET", "/text.txt")
    server.signal(order)
    answers = [c.response() for c in kept]
    assert {(found.text, found.closes) for found in answers} == {("text", True)}
    assert {c.response().text for c in busy} == {"slow"}


def test_graceful_under_load_loses_nothing(httpd):
    server = make(httpd, mpm_conf="StartServers 2\nThreadsPerChild 8\nMaxRequestWorkers 64\nServerLimit 16\n")
    stop = threading.Event()
    lost, done = [], [0]

    def client(keep_alive):
        while not stop.is_set():
            try:
                with server.connect() as c:
                    for i in range(20):
                        try:
                            found = c.get("/text.txt")
                        except (OSError, Broken) as e:
                            # A connection that was kept alive may end before any byte of an answer.
                            if i == 0 or c.buffer:
                                lost.append(repr(e))
                            break
                        if found.status != 200 or found.text != "text":
                            lost.append(found)
                        done[0] += 1
                        if not keep_alive or found.closes:
                            break
            except OSError as e:
                lost.append(repr(e))

    clients = [threading.Thread(target=client, args=(i % 2 == 0,), daemon=True) for i in range(6)]
    for t in clients:
        t.start()
    for _ in range(8):
        server.graceful()
        served = done[0]
        eventually(lambda: done[0] > served + 20, what="requests between two reloads")
    stop.set()
    for t in clients:
        t.join(20)
    assert lost == [] and done[0] > 200


def test_restart_does_not_wait(httpd):
    server = make(httpd, without=["reqtimeout"])
    before = frontends(server)
    running = half_a_request(server)
    wait_for_a_reader(server)
    server.signal(signal.SIGHUP)
    eventually(lambda: frontends(server) and not set(before) & set(frontends(server)), 15, what="new frontends")
    eventually(lambda: _answers(server), what="an answer")
    with pytest.raises((Broken, OSError)):
        finish(running)


def test_stop_ends_all_at_once(httpd):
    server = make(httpd, mode="daemon", without=["reqtimeout"])
    running = half_a_request(server)
    wait_for_a_reader(server)
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    server.wait_for_end(15)
    assert time.monotonic() - began < 8
    assert not server.pid_file.exists()
    assert "caught SIGTERM" in server.error_log()
    running.close()


def test_a_bad_configuration_at_graceful_lets_requests_finish(httpd):
    server = make(httpd, without=["reqtimeout"])
    running = half_a_request(server)
    wait_for_a_reader(server)
    server.conf_file.write_text("NoSuchDirective on\n")
    server.signal(signal.SIGUSR1)
    server.wait_for_end(15)
    time.sleep(0.5)
    assert finish(running).text == "text"
    running.close()


@pytest.mark.parametrize("protocol", ["HTTP/1.1", "h2", "h2c"])
def test_stop_does_not_wait_for_a_busy_script(httpd, protocol):
    site = Site("alice", ALICE)
    server = httpd(mpm="pool", sites=[site])
    site.write("sleep.php", "<?php sleep(30);")
    site.write("text.txt", "text", mode=0o644)
    server.start("daemon")
    assert server.get("/text.txt").text == "text"
    if protocol == "HTTP/1.1":
        c = server.connect()
        c.request("GET", "/sleep.php")
    else:
        c = H2(server, tls=protocol == "h2")
        c.start("/sleep.php")
    time.sleep(0.5)
    began = time.monotonic()
    server.signal(signal.SIGTERM)
    eventually(lambda: not server.pid_file.exists(), 20, what="the end of the pid file")
    assert frontends(server) == []
    server.wait_for_end(20)
    # 0.3 s for threads that hang, 1 s for the pools' processes; mpm_event's children are killed after 9 s.
    assert time.monotonic() - began < 3


def test_graceful_stop_waits_for_requests(httpd):
    server = make(httpd, without=["reqtimeout"])
    running = half_a_request(server)
    wait_for_a_reader(server)
    server.signal(signal.SIGWINCH)
    eventually(lambda: not _answers(server), what="no new connection")
    assert server.is_running()
    assert finish(running).text == "text"
    running.close()
    assert server.wait_for_end(15) == 0


def test_graceful_shutdown_timeout_ends_the_wait(httpd):
    server = make(httpd, conf=STATUS + "GracefulShutdownTimeout 1\n", without=["reqtimeout"])
    running = half_a_request(server)
    wait_for_a_reader(server)
    began = time.monotonic()
    server.signal(signal.SIGWINCH)
    assert server.wait_for_end(15) == 0
    assert time.monotonic() - began > 0.9
    running.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_process(httpd, number):
    server = make(httpd, mode="single")
    assert frontends(server) == []
    with server.connect() as c:
        for _ in range(5):
            assert c.get("/text.txt").text == "text"
    server.signal(number)
    assert server.wait_for_end(10) == 0


def test_k_words_of_apachectl(httpd):
    server = make(httpd, mode="daemon")
    for word in ("graceful", "restart"):
        before = frontends(server)
        assert server.command(word).returncode == 0
        eventually(lambda: frontends(server) and not set(before) & set(frontends(server)), 15, what=word)
        eventually(lambda: _answers(server), what="an answer")
    assert server.command("graceful-stop").returncode == 0
    server.wait_for_end(15)


# --- the pool `default` -------------------------------------------------------------------------------


WHO = "<?php echo posix_geteuid(), ' ', $_SERVER['SERVER_PROTOCOL'], ' ', $_SERVER['HTTPS'] ?? 'off', ' ', php_sapi_name();"


def plain(httpd, **kw):
    """Stock mod_php, and no word of pools."""
    site = Site("alice", pool=None)
    server = httpd(mpm="pool", sites=[site], **{"conf": STATUS, **kw})
    site.write("who.php", WHO, mode=0o644)
    site.write("text.txt", "text", mode=0o644)
    for directory in (site.docroot, site.home):
        directory.chmod(0o755)
    return server


def test_with_php_and_nothing_assigned_the_pool_default_serves(httpd):
    server = plain(httpd)
    said = server.configtest()
    assert said.returncode == 0
    assert "<ServerPool default>: serves what is assigned to no pool" in said.stderr
    server.start()
    assert server.get("/who.php").text == "33 HTTP/1.1 off apache2handler"
    for tls in (False, True):
        with H2(server, tls=tls) as h2:
            streams = [h2.start("/who.php") for _ in range(6)]
            assert {h2.wait(s).text for s in streams} == {f"33 HTTP/2.0 {'on' if tls else 'off'} apache2handler"}
    assert server.get("/text.txt").text == "text"
    assert [p.pool for p in server.processes("zygote")] == ["default"]
    # What shows the server's own state is no pool's matter.
    assert status(server)["ServerMPM"] == "pool"
    server.graceful()
    assert server.get("/who.php").text == "33 HTTP/1.1 off apache2handler"


def test_the_pool_default_can_have_a_user_of_its_own(httpd):
    server = plain(httpd, global_pool_conf=f"<ServerPool default>\nPoolUser #{ALICE}\nPoolGroup #{ALICE}\n</ServerPool>\n",
                   conf=STATUS + "<Location /here>\nAssignServerPool none\n</Location>\nAlias /here @ROOT@/sites/alice\n")
    said = server.configtest()
    assert (said.returncode, said.stderr) == (0, "Syntax OK\n")
    server.start()
    assert server.get("/who.php").text == f"{ALICE} HTTP/1.1 off apache2handler"
    assert server.get("/here/text.txt").text == "text"
    assert server.get("/here/who.php").status == 500  # PHP never runs in a frontend
    assert server.count_log("POOL112")
