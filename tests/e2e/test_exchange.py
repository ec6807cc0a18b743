"""Who is to blame when an exchange does not end well, and what client, worker and log get."""

import re
import time

import pytest

from harness import ALICE, H2, Broken, Site, eventually
from pages import ECHO_CGI

PID_CGI = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s' $PPID\n"
LENGTH_PHP = "<?php $n = strlen(file_get_contents('php://input')); header('X-Read: ' . $n); echo \"$n bytes\";"


# --- a client that stalls in its upload -------------------------------------------------------------

STALL_CONF = "AddHandler cgi-script .cgi\n"


def stalling(make, conf, **kw):
    site = Site("alice", ALICE, conf=STALL_CONF, pool_conf="PoolIdleTimeout 300s\nPoolMaxProcesses 4")
    server = make(sites=[site], conf=conf, modules=["cgi"], **kw)
    site.script("echo.cgi", ECHO_CGI)
    site.script("pid.cgi", PID_CGI)
    site.write("length.php", LENGTH_PHP)
    site.write("again.php", "<?php $in = fopen('php://input', 'rb'); for ($i = 0; $i < 3; $i++) echo strlen(fread($in, 8192)), ' ';")
    site.write("late.php", "<?php sleep(6); echo 'late';")
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
    assert re.search(r"POOL115: \[pool alice pid %s\] the client sent nothing more of its request body for 3 seconds"
                     % before, log), log
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
        c.streams[stream] = {"status": None, "headers": [], "body": b"", "ended": False, "reset": None, "interim": []}
        c.flush()
        assert c.wait(stream).status == 408
        assert c.get("/pid.cgi").text == before


@pytest.mark.pool_only
def test_a_script_that_is_silent_is_blamed_though_its_client_stalls_too(patient):
    """The client gets 408's time first, then the script its own."""
    at = len(patient.error_log())
    with patient.connect(timeout=30) as c:
        c.request("POST", "/late.php", headers=[("Content-Length", 2_000_000)])
        c.send(b"x" * 1_000_000)
        found = c.response("POST")
    assert found.status == 504
    assert "was silent for 3 seconds" in patient.error_log()[at:]


def test_mod_reqtimeout_bounds_the_upload_before_timeout_does(httpd):
    server = stalling(httpd, "Timeout 20\nRequestReadTimeout body=2")
    found, took = stall(server, "/echo.cgi")
    assert found.status == 408
    assert took < 6
