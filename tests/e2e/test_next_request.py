"""A thread that has answered waits a moment for what the client does next; nobody else waits for that thread.

That a thread waits for the next request is seen by its number. Whether it waits for the client to close, and that it does
not after a part of a page, is a matter of speed alone: here it is only seen that nothing else comes of it.
"""

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
BIG = 24 * 1024 * 1024  # more than the sockets of both sides hold


@pytest.fixture(scope="module")
def server(shared_httpd):
    # Outside of the pool, and of its directories.
    site = Site("alice", ALICE, conf=OUTSIDE, pool_conf="PoolMaxProcesses 40\nPoolQueueLimit 200")
    server = shared_httpd(sites=[site], log_format=LOG_FORMAT, conf="MaxKeepAliveRequests 0", modules=["include"])
    if server.mpm not in ("event", "pool"):
        pytest.skip("the thread of a connection keeps it anyway")
    site.write("text.txt", "0123456789")
    site.write("big.bin", b"x" * BIG)
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
def test_a_connection_that_closes_ends_and_is_logged_so(server, half):
    """Whatever the client does then. That no listener has to wait for its end is speed alone, which this does not see."""
    for i in range(5):
        with server.connect() as c:
            found = c.get(f"/text.txt?last={half}{i}", headers=[("Connection", "close")])
            assert (found.status, found.text, found.closes) == (200, "0123456789", True)
            assert c.is_closed(20) and c.buffer == b""
            if half:
                c.sock.shutdown(socket.SHUT_WR)
    for fields in lines(server, f"/text.txt?last={half}", 5):
        assert fields[3] == "-", "%X: closed after the response"


def test_a_connection_that_closes_cuts_nothing_off(server):
    """A slow client has all of the response, though those before it have closed at once, so that one more is waited for."""
    for _ in range(5):
        assert server.get("/text.txt").text == "0123456789"
    with server.connect(rcvbuf=4096) as c:
        c.request("GET", "/big.bin", headers=[("Connection", "close")])
        time.sleep(0.3)
        found = c.response()
        assert (found.status, found.complete, found.closes, len(found.body)) == (200, True, True, BIG)
        assert c.is_closed(20)


def test_parts_of_a_page_are_one_request_of_the_client(server):
    """A page of the frontend that includes two parts from the pool. Nobody waits after a part, which is not seen here."""
    with server.connect() as c:
        for i in range(5):
            found = c.get(f"/outside/parts.shtml?{i}")
            assert (found.status, found.closes, found.text.strip()) == (200, False, "<0123456789|0123456789>")
    logged = [fields[0] for fields in lines(server, "/outside/parts.shtml", 5)]
    assert sorted(logged) == [f"/outside/parts.shtml?{i}" for i in range(5)]
    assert not [line for line in server.access_log() if line.startswith(("/text.txt?a|", "/text.txt?b|"))]


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
