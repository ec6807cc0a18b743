"""A thread that has answered waits a moment for what the client does next; nobody else waits for that thread."""

import socket
import time

import pytest

from harness import ALICE, Broken, Site, eventually, in_threads
from pages import SLEEP_PHP

OUTSIDE = """
    Alias /outside @ROOT@/outside
    <Location /outside>
        AssignServerPool none
        Require all granted
    </Location>
    <Directory @ROOT@/outside>
        Options +Includes
        AddOutputFilter INCLUDES .shtml
    </Directory>
"""
LOG_FORMAT = "%U%q|%{tid}P|%D|%X"


@pytest.fixture(scope="module")
def server(shared_httpd):
    # Outside of the pool, and of its directories.
    site = Site("alice", ALICE, conf=OUTSIDE, pool_conf="PoolMaxProcesses 40\nPoolQueueLimit 200")
    server = shared_httpd(sites=[site], log_format=LOG_FORMAT, conf="MaxKeepAliveRequests 0", modules=["include"])
    if server.mpm != "event":
        pytest.skip("the thread of a connection keeps it anyway")
    site.write("text.txt", "0123456789")
    site.write("sleep.php", SLEEP_PHP)
    outside = server.root / "outside"
    outside.mkdir()
    outside.chmod(0o755)
    (outside / "parts.shtml").write_text('<<!--#include virtual="/text.txt?a" -->|<!--#include virtual="/text.txt?b" -->>')
    server.start()
    return server


def lines(server, begin, count):
    """Fields of the log lines of the requests whose URI begins like this."""
    def look():
        found = [line.split("|") for line in server.access_log() if line.startswith(begin)]
        return found if len(found) >= count else None

    return eventually(look, 5, what=f"{count} lines for {begin}")


@pytest.mark.parametrize("tls", [False, True])
def test_one_thread_serves_a_client_that_comes_back_at_once(server, tls):
    # A machine under load may not let the client come in time; a listener would never give ten in a row to one thread.
    for attempt in range(30):
        name = f"/text.txt?again={tls}-{attempt}-"
        with server.connect(tls=tls) as c:
            for i in range(10):
                assert c.get(f"{name}{i}").status == 200
        if len({tid for _, tid, *_ in lines(server, name, 10)}) == 1:
            return
    pytest.fail("each time a request went to another thread")


def test_the_request_is_logged_before_the_next_one_comes(server):
    with server.connect() as c:
        c.get("/text.txt?alone")
        lines(server, "/text.txt?alone", 1)


@pytest.mark.parametrize("half", [False, True])
def test_a_connection_that_closes_ends_at_once(server, half):
    for i in range(5):
        with server.connect() as c:
            found = c.get(f"/text.txt?last={half}{i}", headers=[("Connection", "close")])
            assert (found.status, found.text, found.closes) == (200, "0123456789", True)
            c.sock.settimeout(1)
            assert c.sock.recv(1) == b""
            if half:
                c.sock.shutdown(socket.SHUT_WR)
    for fields in lines(server, f"/text.txt?last={half}", 5):
        assert fields[3] == "-", "%X: closed after the response"


def test_a_part_of_a_page_waits_for_nobody(server):
    """A page of the frontend that includes two parts from the pool: one request of the client's."""
    with server.connect() as c:
        for i in range(5):
            assert c.get(f"/outside/parts.shtml?{i}").text.strip() == "<0123456789|0123456789>"


def test_a_client_that_never_closes_holds_no_thread(server):
    # As many as the server has threads in all, each with its own connection.
    open_ones = [server.connect() for _ in range(96)]
    try:
        for i, c in enumerate(open_ones):
            close = [("Connection", "close")] if i % 2 else []
            assert c.get(f"/text.txt?open={i}", headers=close).status == 200
        began = time.monotonic()
        assert server.get("/text.txt?other").status == 200
        assert time.monotonic() - began < 2
    finally:
        for c in open_ones:
            c.close()


def test_clients_without_a_pause_leave_others_their_turn(server):
    stop = time.monotonic() + 3

    def hammer(n):
        count = 0
        while time.monotonic() < stop:
            with server.connect() as c:
                try:
                    while time.monotonic() < stop:
                        assert c.get(f"/text.txt?hammer={n}").status == 200
                        count += 1
                except (Broken, OSError):
                    # mpm_event closes connections between two requests while all of its threads are busy.
                    pass
        return count

    def now_and_then():
        longest = 0
        while time.monotonic() < stop:
            began = time.monotonic()
            assert server.get("/text.txt?guest").status == 200
            longest = max(longest, time.monotonic() - began)
            time.sleep(0.1)
        return longest

    results = in_threads(41, lambda n: hammer(n) if n < 40 else now_and_then())
    assert all(results[:-1])
    assert results[-1] < 2


def test_slow_scripts_and_waiting_threads_together(server):
    def slow(n):
        return server.get(f"/sleep.php?s=0.5&n={n}").status

    def quick(n):
        with server.connect() as c:
            return [c.get(f"/text.txt?quick={n}-{i}").status for i in range(30)]

    results = in_threads(30, lambda n: slow(n) if n < 20 else quick(n))
    assert results[:20] == [200] * 20
    assert results[20:] == [[200] * 30] * 10
