"""What httpd's own test suite found: ways of stock httpd that no other test asks for."""

import time

import pytest

from harness import ALICE, Site


def fill(site):
    site.write("text.txt", "some text")
    site.write("limited/text.txt", "some text")
    site.write("limited/.htaccess", "LimitRequestBody 1000\n")
    # httpd counts the bytes of this body, though it does not know yet where it ends.
    site.script("bad-field.cgi", "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\nb\\001d: x\\r\\n\\r\\nnot shown'; sleep 0.3\n")
    site.script("nph-folded.cgi", "#!/bin/sh\nprintf 'HTTP/1.0 200 OK\\r\\nX-A:\\n b\\nX-C: d\\r\\n e\\n f\\r\\n\\r\\nbody'\n")
    for name, chunks in (("nph-chunks.cgi", r"0005\r\nabcde\r\n1; foo=bar\r\nf\r\n0\r\n\r\n"),
                         ("nph-cut.cgi", r"0005\r\nabcde\r\n1; foo=bar\r\n"),
                         ("nph-bad.cgi", r"0005\r\nabcde and more\r\n0\r\n\r\n")):
        site.script(name, "#!/bin/sh\nprintf 'HTTP/1.1 200 OK\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n'\n"
                          f"sleep 0.1; printf '{chunks}'\n")


@pytest.fixture(scope="module")
def server(shared_httpd):
    alice = Site("alice", ALICE, conf="""
        AddHandler cgi-script .cgi
        <Location /mirror>
            SetHandler reflector
        </Location>
        LogLevel log_debug:info
        ErrorLogFormat "[%{u}t] [%-m:%l] [pid %P:tid %{g}T] %7F: %E: [client\\ %a] [%w] %M"
        <Location /text.txt>
            LogMessage "served %{REQUEST_URI}"
        </Location>
    """, tls_conf="""
        Header set X-Names "expr=%{SSL_SERVER_S_DN_CN}|%{SSL_SERVER_S_DN_CN_RAW}|%{SSL_SERVER_S_DN_CN_0_RAW}"
    """)
    server = shared_httpd(sites=[alice], modules=["cgi", "reflector", "log_debug"])
    fill(alice)
    return server.start()


# --- bodies that the handler does not ask for -------------------------------------------------------


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_a_body_beyond_its_limit_is_refused_where_no_handler_wants_it(server, coding):
    body = b"x" * 5000
    headers = []
    if coding == "chunked":
        headers = [("Transfer-Encoding", "chunked")]
        body = b"1388\r\n" + body + b"\r\n0\r\n\r\n"
    assert server.request("GET", "/limited/text.txt", headers=headers, body=body).status == 413


def test_a_body_within_its_limit_is_dropped(server):
    with server.connect() as c:
        for _ in range(3):
            c.request("GET", "/limited/text.txt", headers=[("Content-Length", 900)], body=b"x" * 900)
            found = c.response()
            assert (found.status, found.text, found.closes) == (200, "some text", False)


def test_a_broken_body_is_found_where_no_handler_wants_it(server):
    """The answer is the same whether the body was there at once or came late."""
    for pause in (0, 0.3):
        with server.connect() as c:
            c.send(b"POST /nowhere HTTP/1.1\r\nHost: alice.test\r\nTransfer-Encoding: chunked\r\n\r\n")
            time.sleep(pause)
            c.send(b"no number\r\n\r\n")
            assert c.response("POST").status == 400


def test_reflector(server):
    found = server.request("POST", "/mirror", body=b"abc" * 50000)
    assert (found.status, found.body == b"abc" * 50000) == (200, True)


# --- responses that may not be sent -----------------------------------------------------------------


def test_a_bad_response_field_is_a_whole_500(server):
    found = server.get("/bad-field.cgi")
    assert found.status == 500
    assert "Internal Server Error" in found.text and "</html>" in found.text
    assert "not shown" not in found.text


@pytest.mark.pool_only
def test_folded_fields_of_a_script(server):
    """Stock httpd sends them as the script wrote them, which clients need not take."""
    found = server.get("/nph-folded.cgi")
    assert (found.status, found.get("X-A"), found.get("X-C"), found.text) == (200, "b", "d e f", "body")


def test_chunks_of_a_script_become_the_servers_own(server):
    """An nph- script writes the response as it is to be; its chunks are not content."""
    assert server.get("/nph-chunks.cgi").text == "abcdef"
    with server.connect() as c:
        c.send(b"GET /nph-chunks.cgi HTTP/1.0\r\nHost: alice.test\r\n\r\n")
        assert c.response().text == "abcdef"


@pytest.mark.parametrize("script", ["nph-cut", "nph-bad"])
def test_broken_chunks_of_a_script_are_seen_to_be_broken(server, script):
    """Nobody may take what came until then for the whole response, and nothing follows on that connection."""
    with server.connect() as c:
        found = c.get(f"/{script}.cgi")
        if found.status == 502:  # where nothing of it had been sent yet
            assert found.complete
            return
        assert (found.status, found.complete) == (200, False)
        assert found.body in (b"", b"abcde")
        assert c.is_closed()


# --- loggers ----------------------------------------------------------------------------------------


@pytest.mark.pool_only
def test_what_a_logger_logs_is_the_requests_own_line(server):
    """Modules that work in a pool log at the end of a request, too: mod_log_debug, ModSecurity's phase 5."""
    line = r"\[log_debug:info\] .*\[client 127\.0\.0\.1:\d+\] \[pool alice pid \d+\] served /text\.txt"
    before = server.count_log(line)
    anybodys = server.count_log(r"served /text\.txt")
    for n in range(3):
        assert server.get("/text.txt").status == 200
    assert server.count_log(line) == before + 3
    assert server.count_log(r"served /text\.txt") == anybodys + 3


# --- TLS --------------------------------------------------------------------------------------------


def test_names_of_certificates_unchanged_for_display(server):
    names = server.request("GET", "/text.txt", tls=True).get("X-Names").split("|")
    assert names[0] and names == [names[0]] * 3
