"""Who is to blame when an exchange does not end well, and what client, worker and log get."""

import json
import os
import re
import signal
import threading
import time

import pytest

import wireforge as w
from harness import ALICE, H2, Broken, Site, eventually, in_threads
from pages import ECHO_CGI

PID_CGI = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s' $PPID\n"
LENGTH_PHP = "<?php $n = strlen(file_get_contents('php://input')); header('X-Read: ' . $n); echo \"$n bytes\";"


# --- a client that stalls in its upload -------------------------------------------------------------

STALL_CONF = "AddHandler cgi-script .cgi\n"


def stalling(make, conf, **kw):
    site = Site("alice", ALICE, conf=STALL_CONF, pool_conf="PoolIdleTimeout 300s\nPoolMaxProcesses 1")
    server = make(sites=[site], conf=conf, modules=["cgi"], **kw)
    site.script("echo.cgi", ECHO_CGI)
    site.script("pid.cgi", PID_CGI)
    site.write("length.php", LENGTH_PHP)
    site.write("again.php", "<?php $in = fopen('php://input', 'rb'); for ($i = 0; $i < 3; $i++) echo strlen(fread($in, 8192)), ' ';")
    site.write("late.php", "<?php sleep(6); echo 'late';")
    site.write("first-then-late.php", "<?php while (ob_get_level()) ob_end_clean();\necho 'first'; flush(); sleep(6); echo ' late';")
    site.write("reads-late.php", "<?php sleep(6); echo strlen(file_get_contents('php://input'));")
    server.start()
    return server


@pytest.fixture(scope="module")
def patient(shared_httpd):
    """Only Timeout bounds a client."""
    return stalling(shared_httpd, "Timeout 3", without=["reqtimeout"])


def stall(server, path, coding="length", said=b"0123456789"):
    """Sends the beginning of a body and then nothing: the response, and after how many seconds it came."""
    with server.connect(timeout=30) as c:
        fields = [("Transfer-Encoding", "chunked")] if coding == "chunked" else [("Content-Length", 1000)]
        c.request("POST", path, headers=fields)
        c.send(b"%x\r\n%s\r\n" % (len(said), said) if coding == "chunked" else said)
        start = time.monotonic()
        found = c.response("POST")
        took = time.monotonic() - start
        assert c.is_closed()
        return found, took


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_a_client_that_stalls_in_its_upload_gets_408(patient, coding):
    found, took = stall(patient, "/echo.cgi", coding)
    assert found.status == 408
    assert 2.5 < took < 8


def test_a_script_sees_the_body_end_where_the_client_stalled(patient):
    found, took = stall(patient, "/length.php")
    assert (found.status, found.text) == (200, "0 bytes")
    assert took < 8


def test_a_script_that_reads_on_after_its_client_has_stalled(patient):
    found, took = stall(patient, "/again.php")
    assert (found.status, found.text) == (200, "0 0 0 ")
    assert took < 13


@pytest.mark.pool_only
def test_a_client_that_stalls_costs_no_worker_and_is_named_in_the_log(patient):
    before = patient.get("/pid.cgi").text
    at = len(patient.error_log())
    found, _ = stall(patient, "/echo.cgi")
    assert found.status == 408
    log = patient.error_log()[at:]
    line = r"POOL117: \[pool alice pid %s\] the client sent nothing more of its request body for 3 seconds" % before
    assert len(re.findall(line, log)) == 1, log
    assert "POOL103" not in log and "POOL104" not in log
    assert patient.get("/pid.cgi").text == before


@pytest.mark.pool_only
def test_a_client_that_stalls_after_100_continue(patient):
    before = patient.get("/pid.cgi").text
    with patient.connect(timeout=30) as c:
        c.request("POST", "/echo.cgi", headers=[("Content-Length", 1000), ("Expect", "100-continue")])
        found = c.response("POST")
        assert ([i.status for i in found.interim], found.status) == ([100], 408)
    assert patient.get("/pid.cgi").text == before


def test_a_body_that_is_asked_for_behind_the_head_brings_no_100_continue(patient):
    """PHP reads the body of a PUT when the script does. httpd sends no interim response into a response, either."""
    patient.sites["alice"].write("first.php", "<?php while (ob_get_level()) ob_end_clean();\necho 'first'; flush();\n"
                                              "echo ' ', strlen(file_get_contents('php://input'));")
    with patient.connect(timeout=10) as c:
        c.request("PUT", "/first.php", headers=[("Content-Length", 1000), ("Expect", "100-continue")])
        while b"first" not in c.buffer:
            assert c.more()
        c.send(b"b" * 1000)
        found = c.response("PUT")
        assert (found.interim, found.status, found.complete, found.text) == ([], 200, True, "first 1000")


@pytest.mark.pool_only
def test_a_stream_that_stalls_in_its_upload(patient):
    if patient.mpm == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")
    before = patient.get("/pid.cgi").text
    with H2(patient, timeout=15) as c:
        stream = c.h2.get_next_available_stream_id()
        c.h2.send_headers(stream, [(":method", "POST"), (":path", "/echo.cgi"), (":authority", "alice.test"),
                                   (":scheme", "http")])
        c.h2.send_data(stream, b"0123456789")
        c.streams[stream] = c.new_state()
        c.flush()
        assert c.wait(stream).status == 408
        assert c.get("/pid.cgi").text == before


@pytest.mark.pool_only
def test_a_script_is_waited_for_though_its_client_stalls(patient):
    """Timeout is about the client's body; the script's own silence has no limit, and comes after it."""
    at = len(patient.error_log())
    before = patient.get("/pid.cgi").text
    with patient.connect(timeout=30) as c:
        c.request("POST", "/late.php", headers=[("Content-Length", 2_000_000)])
        c.send(b"x" * 1_000_000)
        found = c.response("POST")
    assert (found.status, found.text) == (200, "late")
    log = patient.error_log()[at:]
    assert len(re.findall("POOL117: .* the client sent nothing more of its request body for 3 seconds", log)) == 1, log
    assert "POOL103" not in log and "POOL104" not in log
    assert patient.get("/pid.cgi").text == before


@pytest.mark.parametrize("by", ["http1", "tls", "http2", "http2-tls"])
def test_a_page_that_is_silent_for_longer_than_timeout_is_served(patient, by):
    if by.startswith("http2"):
        if patient.mpm == "prefork":
            pytest.skip("mod_http2 does nothing under prefork")
        with H2(patient, timeout=30, tls=by.endswith("tls")) as c:
            found = c.get("/late.php")
            assert (found.status, found.body) == (200, b"late")
            found = c.get("/first-then-late.php")
            assert (found.status, found.body) == (200, b"first late")
        return
    with patient.connect(timeout=30, tls=by == "tls") as c:
        found = c.get("/late.php")
        assert (found.status, found.text) == (200, "late")
        found = c.get("/first-then-late.php")
        assert (found.status, found.complete, found.text) == (200, True, "first late")


def test_a_script_that_reads_its_body_late_is_waited_for(patient):
    """More body than all sockets on the way take: it stands still for longer than Timeout, and nobody is to blame."""
    size = 4_000_000
    with patient.connect(timeout=40) as c:
        c.request("PUT", "/reads-late.php", headers=[("Content-Length", size)])
        sender = threading.Thread(target=c.send, args=(b"x" * size,))
        sender.start()
        found = c.response("PUT")
        sender.join()
    assert (found.status, found.text) == (200, str(size))


@pytest.mark.pool_only
def test_a_stopped_worker_that_does_not_take_its_request_is_given_up(patient):
    before = int(patient.get("/pid.cgi").text)
    at = len(patient.error_log())
    os.kill(before, signal.SIGSTOP)
    start = time.monotonic()
    assert patient.get("/length.php", timeout=30).status == 504
    assert 2.5 < time.monotonic() - start < 12
    log = patient.error_log()[at:]
    line = r"POOL103: \[pool alice pid %d\] the worker did not take the request for 3 seconds: 504, for GET /length.php" % before
    assert len(re.findall(line, log)) == len(re.findall("POOL10[34]", log)) == 1, log
    assert int(patient.get("/pid.cgi").text) != before


@pytest.mark.pool_only
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_streams_of_clients_that_left_free_their_threads(httpd, tls):
    """Each connection has a thread of mod_http2's for its stream, and may have one of the MPM's."""
    site = Site("alice", ALICE, pool_conf="PoolMaxProcesses 8\nPoolMaxFrontendThreads 100")
    server = httpd(sites=[site], conf="H2MinWorkers 2\nH2MaxWorkers 2\n",
                   mpm_conf="ServerLimit 1\nStartServers 1\nThreadsPerChild 4\nThreadLimit 4\nMaxRequestWorkers 4\n"
                            "MinSpareThreads 1\nMaxSpareThreads 4\n")
    if server.mpm == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")
    site.write("sleep.php", "<?php sleep(40);")
    site.write("one.php", "<?php echo 'php';")
    server.start()
    clients = [H2(server, timeout=20, tls=tls) for _ in range(4)]
    for c in clients:
        stream = c.h2.get_next_available_stream_id()
        c.h2.send_headers(stream, [(":method", "GET"), (":path", "/sleep.php"), (":authority", "alice.test"),
                                   (":scheme", "https" if tls else "http")], end_stream=True)
        c.flush()
    time.sleep(1.5)
    for c in clients:
        c.conn.sock.close()
    start = time.monotonic()
    with H2(server, timeout=30, tls=tls) as c:
        assert c.get("/one.php").body == b"php"
    assert server.get("/one.php").text == "php"
    assert time.monotonic() - start < 10, "the scripts sleep for 40 s"


def test_mod_reqtimeout_bounds_the_upload_before_timeout_does(httpd):
    server = stalling(httpd, "Timeout 20\nRequestReadTimeout body=2")
    found, took = stall(server, "/echo.cgi")
    assert found.status == 408
    assert took < 6


# --- a worker that gives an exchange up -------------------------------------------------------------


@pytest.fixture(scope="module")
def honest(scratch, shared_httpd):
    site = Site("alice", ALICE, conf=STALL_CONF + "php_admin_value ffi.enable 1\n",
                pool_conf=f"PoolIdleTimeout 300s\nPoolMaxProcesses 1\nPoolEnv SCRATCH {scratch}")
    server = shared_httpd(sites=[site], conf="Timeout 5", modules=["cgi"])
    site.script("pid.cgi", PID_CGI)
    site.script("nph-garbage.cgi", "#!/bin/sh\nhead -c 100000 /dev/zero\n")
    site.write("short.php", "<?php header('Content-Length: 100'); echo 'only this'; while (ob_get_level()) ob_end_flush(); flush();")
    site.write("forge.php", w.FORGE_PHP)
    server.start()
    return server


def failing(server, path):
    try:
        found = server.get(path)
        return found.status if found.complete else 0
    except Broken:
        return 0


@pytest.mark.pool_only
@pytest.mark.parametrize("path, status, text", [
    ("/short.php", 502, "the body is shorter than its Content-Length"),
    ("/nph-garbage.cgi", 502, "the response was not completed"),
])
def test_a_response_that_an_application_spoils_costs_no_worker(honest, path, status, text):
    before = honest.get("/pid.cgi").text
    at = len(honest.error_log())
    assert failing(honest, path) in (0, status)
    log = honest.error_log()[at:]
    assert len(re.findall(r"POOL10[34]: \[pool alice pid %s\] the worker gave up: %s" % (before, text), log)) == 1, log
    assert len(re.findall("POOL1", log)) == 1, log
    assert honest.get("/pid.cgi").text == before


@pytest.mark.pool_only
def test_bytes_behind_an_abort_are_a_violation(honest):
    for p in honest.workers("alice"):
        os.kill(p.pid, signal.SIGKILL)
    eventually(lambda: not honest.workers("alice"))
    at = len(honest.error_log())
    assert honest.request("POST", "/forge.php", body=w.plan(w.abort(3, "sorry") + w.log("more"))).status == 502
    log = honest.error_log()[at:]
    assert len(re.findall("POOL103: .*a frame behind the end of the response", log)) == len(re.findall("POOL103", log)) == 1, log
    eventually(lambda: not honest.workers("alice"))


@pytest.mark.pool_only
@pytest.mark.pool_only
@pytest.mark.parametrize("text", ["404", "200", "99999", ""])
def test_a_whole_request_is_no_part(honest, text):
    """Only a part of a page may fail without an answer of its own; and the status is not taken from there."""
    for p in honest.workers("alice"):
        os.kill(p.pid, signal.SIGKILL)
    eventually(lambda: not honest.workers("alice"))
    assert honest.request("POST", "/forge.php", body=w.plan(w.abort(4, text, flags=w.LAST))).status == 502


def test_an_abort_that_says_last_ends_the_worker(honest, scratch):
    for p in honest.workers("alice"):
        os.kill(p.pid, signal.SIGKILL)
    eventually(lambda: not honest.workers("alice"))
    assert honest.request("POST", "/forge.php", body=w.plan(w.abort(3, "sorry", flags=w.LAST))).status == 502
    assert honest.get("/pid.cgi").status == 200
    forger = json.loads((scratch / "forge.log").read_text())["pid"]
    eventually(lambda: forger not in {p.pid for p in honest.workers("alice")}, 10)


@pytest.mark.pool_only
def test_an_empty_message_is_not_the_end(honest):
    """recvmsg(2) says 0 for both."""
    for p in honest.workers("alice"):
        os.kill(p.pid, signal.SIGKILL)
    eventually(lambda: not honest.workers("alice"))
    at = len(honest.error_log())
    assert honest.request("POST", "/forge.php", body=w.plan(b"")).status == 502
    log = honest.error_log()[at:]
    assert len(re.findall("POOL103: .*broke the protocol: it sent an empty message", log)) == len(re.findall("POOL103", log)) == 1, log


@pytest.mark.pool_only
def test_an_empty_message_of_an_idle_worker_loses_no_request(honest):
    for p in honest.workers("alice"):
        os.kill(p.pid, signal.SIGKILL)
    eventually(lambda: not honest.workers("alice"))
    at = len(honest.error_log())
    answer = w.head(200, ("Content-Length", "5")) + w.data("first") + w.end()
    with honest.connect() as c:
        c.request("POST", "/forge.php", body=w.plan(answer, {"data": b"", "repeat": 3, "pause": 0.05}))
        assert c.response("POST").body == b"first"
        time.sleep(0.5)
        assert c.get("/pid.cgi").status == 200
    assert not re.search("POOL10[345]", honest.error_log()[at:])


# --- configurations that differ ---------------------------------------------------------------------


def read_again(server):
    """The seed dies, the zygote too: what starts in their place reads the files as they are now."""
    seed = server.processes(role="seed")[0].pid
    os.kill(seed, signal.SIGKILL)
    for p in server.processes(pool="alice"):
        os.kill(p.pid, signal.SIGKILL)
    eventually(lambda: [p for p in server.processes(role="seed") if p.pid != seed], 15)


EXTRA_VHOST = "<VirtualHost 127.0.0.1:%d>\nServerName more.test\nAssignServerPool none\n</VirtualHost>\n"


@pytest.fixture
def included(httpd):
    """Virtual hosts in files of their own, as Debian has them."""
    site = Site("alice", ALICE, pool_conf="PoolIdleTimeout 300s\nPoolMaxProcesses 1")
    server = httpd(sites=[site], conf="IncludeOptional @ROOT@/conf/sites/*.conf")
    (server.root / "conf/sites").mkdir()
    server.own = server.root / "conf/sites/50-own.conf"
    server.own.write_text(f"<VirtualHost 127.0.0.1:{server.port}>\nServerName own.test\nDocumentRoot {site.docroot}\n"
                          f"AssignServerPool alice\n</VirtualHost>\n")
    site.write("pid.php", "<?php echo getmypid();")
    server.start()
    assert server.request("GET", "/pid.php", "own.test").status == 200
    return server


@pytest.mark.pool_only
def test_a_virtual_host_that_the_worker_has_not_is_503_and_the_log_names_the_remedy(included):
    """The files were changed after httpd had read them, and a new seed reads the change."""
    included.own.write_text("# moved by a line\n" + included.own.read_text())
    read_again(included)
    at = len(included.error_log())
    found = eventually(lambda: r if "POOL106" not in included.error_log()[at:]
                       and (r := included.request("GET", "/pid.php", "own.test")) else None, 15)
    assert (found.status, found.get("Retry-After")) == (503, "1")
    log = included.error_log()[at:]
    line = (r"POOL103: \[pool alice pid \d+\] the worker has read another configuration.*"
            r"changed since httpd has read them: 'apachectl graceful'.*: 503, for GET /pid.php")
    assert len(re.findall(line, log)) == len(re.findall("POOL103", log)) == 1, log
    # It is asked again each time, but it is no crime of the worker's.
    worker = included.workers("alice")[0].pid
    assert included.request("GET", "/pid.php", "own.test").status == 503
    assert included.workers("alice")[0].pid == worker
    # Who did not change is served.
    assert included.request("GET", "/pid.php", "alice").text == str(worker)
    included.graceful()
    eventually(lambda: included.request("GET", "/pid.php", "own.test").status == 200, 15)


@pytest.mark.pool_only
def test_a_virtual_host_is_found_though_another_one_came_before_it(included):
    """A file that is added moves all behind it by one place; it takes nobody's service away."""
    for name in ("10-new.conf", "90-new.conf"):
        (included.root / "conf/sites" / name).write_text(EXTRA_VHOST % included.port)
    read_again(included)
    assert eventually(lambda: (r := included.request("GET", "/pid.php", "own.test")).status == 200 and r, 15)
    assert included.request("GET", "/pid.php", "alice").status == 200


@pytest.mark.pool_only
def test_a_frontend_is_only_lent_workers_of_its_own_generation(httpd):
    """A reload moves every virtual host. Requests that the old frontends still serve, also those that come on connections
    that are kept from before it, and those of new connections have workers that know their virtual host."""
    site = Site("alice", ALICE, pool_conf="PoolIdleTimeout 300s\nPoolMaxProcesses 8")
    server = httpd(sites=[site], conf="KeepAliveTimeout 30")
    site.write("slow.php", "<?php usleep(800000); echo getmypid();")
    site.write("quick.php", "<?php echo getmypid();")
    server.start()
    server.get("/slow.php")
    at = len(server.error_log())
    stop = threading.Event()
    kept_over = []

    def kept(_):
        """Stays on one connection as long as the server keeps it, with a request in progress nearly always."""
        asked = 0
        while not stop.is_set():
            with server.connect() as c:
                before, here = reloads[0], 0
                while not stop.is_set():
                    try:
                        found = c.get("/slow.php" if here else "/quick.php")
                    except (Broken, OSError):
                        # Between two requests the server may end it; an answer that has begun may not break off.
                        assert here and not c.buffer
                        break
                    assert (found.status, found.complete) == (200, True)
                    if here and reloads[0] != before:
                        kept_over.append(found.text)
                    asked, here = asked + 1, here + 1
                    if found.closes:
                        break
        return asked

    def new(i):
        time.sleep(0.1 * i)
        answers = []
        while not stop.is_set():
            answers.append(server.get("/slow.php").status)
        assert set(answers) == {200}
        return len(answers)

    def reload():
        for n in range(4):
            server.extra = f"# {n}\n" * (n + 1) + server.extra
            time.sleep(0.4)
            server.graceful()
            reloads[0] += 1
        time.sleep(1)
        return 1

    def work(i):
        if i == 0:
            try:
                return reload()
            finally:
                stop.set()
        return kept(i) if i < 4 else new(i - 4)

    reloads = [0]
    assert all(in_threads(7, work))
    # What this is about has happened: an answer after a reload on a connection that had others before it.
    assert kept_over
    log = server.error_log()[at:]
    assert "another configuration" not in log and not re.search("POOL10[3-6]", log), log


# --- requests that are too large to be sent ---------------------------------------------------------


@pytest.fixture(scope="module")
def generous(shared_httpd):
    """httpd itself takes nearly everything."""
    site = Site("alice", ALICE, pool_conf="PoolIdleTimeout 300s\nPoolMaxProcesses 1")
    server = shared_httpd(sites=[site], conf="LimitRequestFields 0\nLimitRequestFieldSize 300000\n"
                                             "LimitRequestLine 300000\n")
    site.write("pid.php", "<?php echo getmypid();")
    server.start()
    return server


@pytest.mark.pool_only
@pytest.mark.parametrize("path, fields, status, why", [
    ("/pid.php", [(f"X-{n}", "x" * 60_000) for n in range(20)], 431,
     "its header fields and variables have more than 1048576 bytes together"),
    ("/pid.php", [("X-Long", "x" * 70_000)], 431, "a header field or variable has more than 65535 bytes"),
    ("/pid.php?" + "x" * 70_000, [], 414, "its request line has more than 65535 bytes"),
], ids=["many", "long", "line"])
def test_a_request_that_is_too_large_for_the_wire(generous, path, fields, status, why):
    worker = generous.get("/pid.php").text
    at = len(generous.error_log())
    with generous.connect() as c:
        c.request("GET", path, headers=fields)
        assert c.response().status == status
    log = generous.error_log()[at:]
    line = r"POOL103: \[pool alice pid %s\] the worker was not asked: %s: %d, for GET" % (worker, why, status)
    assert len(re.findall(line, log)) == len(re.findall("POOL1", log)) == 1, log[:2000]
    assert generous.get("/pid.php").text == worker


@pytest.mark.pool_only
def test_a_request_of_nearly_the_limit_is_served(generous):
    fields = [(f"X-{n}", "x" * 60_000) for n in range(17)]
    assert generous.request("GET", "/pid.php?" + "x" * 20_000, headers=fields).status == 200


# --- an answer that is whole is never thrown away -----------------------------------------------------


def test_the_whole_answer_of_a_worker_that_ends_with_its_upload_unread(httpd):
    """Its last request: the kernel tells of the unread body before it gives the answer."""
    site = Site("alice", ALICE, pool_conf="PoolMaxRequestsPerProcess 1\nPoolMaxProcesses 2")
    server = httpd(sites=[site])
    site.write("early.php", "<?php header('Connection: close'); echo str_repeat('0123456789', 30000);")
    server.start()
    for size in [100_000, 160_000, 200_000, 250_000, 4_000_000] * 4:
        with server.connect(timeout=20) as c:
            c.send(b"POST /early.php HTTP/1.1\r\nHost: alice.test\r\nContent-Length: %d\r\n\r\n" % size)
            c.send_while_reading([bytes(10_000)] * (size // 10_000))
            time.sleep(0.05)
            found = c.response("POST")
            assert (found.status, found.complete, len(found.body)) == (200, True, 300_000)
    assert not re.search("POOL10[34]", server.error_log())


# --- a client that leaves ---------------------------------------------------------------------------

TICKS_PHP = """<?php
while (ob_get_level()) ob_end_clean();
$log = getenv('SCRATCH') . '/' . $_GET['log'];
register_shutdown_function(function () use ($log) {
    file_put_contents($log, getmypid() . ' ' . connection_status() . ' ' . (int)connection_aborted() . "\\n", FILE_APPEND);
});
ignore_user_abort(isset($_GET['ignore']));
for ($i = 0; $i < 600; $i++) { echo "tick $i\\n"; flush(); usleep(20000); if ($i == 50 && isset($_GET['ignore'])) exit; }
"""


@pytest.fixture(scope="module")
def left(scratch, shared_httpd):
    """With fewer processes than clients leave."""
    site = Site("alice", ALICE, pool_conf=f"PoolIdleTimeout 300s\nPoolMaxProcesses 3\nPoolEnv SCRATCH {scratch}",
                conf=f"SetEnv SCRATCH {scratch}\n")
    server = shared_httpd(sites=[site])
    site.write("ticks.php", TICKS_PHP)
    site.write("one.php", "<?php echo 'php';")
    site.write("pid.php", "<?php echo getmypid();")
    site.write("quiet.php", "<?php ignore_user_abort(true); sleep(2);\n"
                            "file_put_contents(getenv('SCRATCH') . '/' . $_GET['log'], getmypid() . ' ' . connection_status() . \" 0\\n\");")
    server.start()
    return server


def leave_soon(server, path, by, how="reset"):
    """Sends a request, waits for the first of its answer, and leaves."""
    if by.startswith("http2"):
        c = H2(server, timeout=20, tls=by.endswith("tls"))
        stream = c.h2.get_next_available_stream_id()
        c.h2.send_headers(stream, [(":method", "GET"), (":path", path), (":authority", "alice.test"), (":scheme", "http")],
                          end_stream=True)
        c.flush()
        while b"tick" not in c.conn.sock.recv(65536) and not by.endswith("tls"):
            pass
        time.sleep(0.1)
        return c.conn.reset() if how == "reset" else c.conn.sock.close()
    c = server.connect(tls=by == "tls", timeout=20)
    c.request("GET", path)
    c.head()
    return c.reset() if how == "reset" else c.close()


def told(scratch, log, count):
    """What the shutdown functions have written."""
    path = scratch / log
    eventually(lambda: path.exists() and len(path.read_text().splitlines()) >= count, 30, what="the scripts end")
    return [tuple(map(int, line.split())) for line in path.read_text().splitlines()]


@pytest.mark.pool_only
@pytest.mark.timeout(180)
@pytest.mark.parametrize("by", ["http1", "tls", "http2", "http2-tls"])
def test_a_hundred_clients_that_leave_cost_no_fork(left, scratch, by):
    if by.startswith("http2") and left.mpm == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")
    log = f"hundred-{by}.log"
    for i in range(100):
        leave_soon(left, f"/ticks.php?log={log}", by, "reset" if i % 2 else "close")
    found = told(scratch, log, 100)
    assert {(status, aborted) for _, status, aborted in found} == {(1, 1)}, "each script sees that its client has left"
    pids = {pid for pid, _, _ in found}
    assert len(pids) <= 3, "no worker ends for a client that has left"
    assert int(left.get("/pid.php").text) in {p.pid for p in left.workers("alice")}
    assert pids <= {p.pid for p in left.workers("alice")}
    assert left.count_log("POOL10[34]") == 0


@pytest.mark.pool_only
def test_a_script_that_goes_on_without_its_client_keeps_its_worker_and_frees_it(left, scratch):
    leave_soon(left, "/ticks.php?log=ignore.log&ignore", "http1")
    [(pid, status, aborted)] = told(scratch, "ignore.log", 1)
    assert (status, aborted) == (1, 1)
    eventually(lambda: pid in {int(left.get("/pid.php").text) for _ in range(3)}, 10, what="the worker serves again")


@pytest.mark.pool_only
def test_a_silent_job_without_client_ends_and_its_worker_serves_on(left, scratch):
    c = left.connect()
    c.request("GET", "/quiet.php?log=quiet.log")
    time.sleep(0.3)
    c.reset()
    [(pid, _, _)] = told(scratch, "quiet.log", 1)
    time.sleep(1.5)
    assert pid in {p.pid for p in left.workers("alice")}


@pytest.mark.pool_only
def test_a_client_that_leaves_in_its_upload_costs_no_worker(left):
    before = {p.pid for p in left.workers("alice")} | {int(left.get("/pid.php").text)}
    for _ in range(20):
        c = left.connect()
        c.request("PUT", "/pid.php", headers=[("Content-Length", 5_000_000)], body=b"x" * 400_000)
        c.reset()
    for _ in range(10):
        assert left.get("/one.php").text == "php"
    time.sleep(1)
    now = {p.pid for p in left.workers("alice")}
    assert len(now - before) <= 3 - len(before), (before, now)


# --- PoolRequestTimeout -----------------------------------------------------------------------------

LOOPS_PHP = """<?php
$log = getenv('SCRATCH') . '/' . $_GET['log'];
register_shutdown_function(function () use ($log) {
    file_put_contents($log, getmypid() . ' ' . connection_status() . ' 0' . "\\n", FILE_APPEND);
    if (isset($_GET['stuck'])) while (true) usleep(100000);
});
while (ob_get_level()) ob_end_clean();
if (isset($_GET['first'])) { echo 'first'; flush(); }
if ($_GET['how'] == 'sleep') sleep(60);
if ($_GET['how'] == 'ticks') { ignore_user_abort(true); while (true) { echo 'tick'; flush(); usleep(50000); } }
while (true) usleep(1);
"""


@pytest.fixture(scope="module")
def limited(scratch, shared_httpd):
    limits = "PoolIdleTimeout 300s\nPoolMaxProcesses 3\nPoolRequestTimeout 2s\nPoolKillGrace 2s\n"
    site = Site("alice", ALICE, pool_conf=f"{limits}PoolEnv SCRATCH {scratch}", conf=STALL_CONF)
    server = shared_httpd(sites=[site], modules=["cgi"])
    site.write("loops.php", LOOPS_PHP)
    site.write("pid.php", "<?php echo getmypid();")
    site.script("sleeps.cgi", "#!/bin/sh\nsleep 60\n")
    server.start()
    return server


@pytest.mark.pool_only
@pytest.mark.parametrize("how", ["sleep", "loop"])
@pytest.mark.parametrize("by", ["http1", "tls", "http2", "http2-tls"])
def test_a_request_beyond_its_time_gets_504_and_its_shutdown_functions_run(limited, scratch, by, how):
    if by.startswith("http2") and limited.mpm == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")
    log = f"over-{by}-{how}.log"
    at = len(limited.error_log())
    start = time.monotonic()
    if by.startswith("http2"):
        with H2(limited, timeout=30, tls=by.endswith("tls")) as c:
            status = c.get(f"/loops.php?how={how}&log={log}").status
    else:
        with limited.connect(timeout=30, tls=by == "tls") as c:
            status = c.get(f"/loops.php?how={how}&log={log}").status
    assert status == 504
    assert 1.9 < time.monotonic() - start < 12
    [(pid, _, _)] = told(scratch, log, 1)
    eventually(lambda: pid not in {p.pid for p in limited.workers("alice")}, 10, what="the end of the process")
    text = limited.error_log()[at:]
    line = r"POOL103: \[pool alice pid %d\] the worker was ended by PoolRequestTimeout after 2 s: 504, for GET /loops.php" % pid
    assert len(re.findall(line, text)) == len(re.findall("POOL1", text)) == 1, text


@pytest.mark.pool_only
def test_a_response_beyond_its_time_breaks_off(limited, scratch):
    at = len(limited.error_log())
    with limited.connect(timeout=30) as c:
        c.request("GET", "/loops.php?how=sleep&first&log=broken.log")
        found = c.response()
        assert (found.status, found.body, found.complete) == (200, b"first", False)
    told(scratch, "broken.log", 1)
    assert len(re.findall("POOL104: .* was ended by PoolRequestTimeout after 2 s", limited.error_log()[at:])) == 1


@pytest.mark.pool_only
def test_a_process_that_does_not_end_is_killed_after_its_grace(limited, scratch):
    start = time.monotonic()
    assert limited.get("/loops.php?how=sleep&stuck&log=stuck.log", timeout=30).status == 504
    [(pid, _, _)] = told(scratch, "stuck.log", 1)
    eventually(lambda: pid not in {p.pid for p in limited.workers("alice")}, 12, what="the end of the process")
    assert time.monotonic() - start > 3.5


@pytest.mark.pool_only
def test_a_cgi_program_beyond_its_time_ends(limited):
    start = time.monotonic()
    assert limited.get("/sleeps.cgi", timeout=30).status == 504
    assert 1.9 < time.monotonic() - start < 12
    assert limited.get("/pid.php").status == 200


@pytest.mark.pool_only
def test_a_job_without_client_ends_with_its_time(limited, scratch):
    at = len(limited.error_log())
    leave_soon(limited, "/loops.php?how=ticks&log=job.log", "http1")
    [(pid, _, _)] = told(scratch, "job.log", 1)
    eventually(lambda: pid not in {p.pid for p in limited.workers("alice")}, 10, what="the end of the process")
    assert len(re.findall(r"POOL147: \[pool alice pid %d\]" % pid, limited.error_log()[at:])) == 1
