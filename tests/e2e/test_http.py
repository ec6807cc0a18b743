"""Point 4: the whole of HTTP, where the pool must behave as stock httpd does."""

import gzip
import hashlib
import os
import re
import ssl
import time

import pytest

from harness import ALICE, H2, Broken, Site, eventually, make_certificate
from pages import DIGEST_PHP, ECHO_CGI, ECHO_PHP, SERVER_PHP, WHO_PHP

MB = 1024 * 1024

CONF = """
    AddHandler cgi-script .cgi
    AddType text/html .shtml
    AddOutputFilter INCLUDES .shtml
    ErrorDocument 404 /errors/404.php
    FileETag MTime Size
    MergeTrailers on
    H2EarlyHints on
    <Location /small>
        LimitRequestBody 1000
    </Location>
    <Location /small/told>
        ErrorDocument 413 "told so"
    </Location>
    <Location /squeezed>
        SetOutputFilter DEFLATE
    </Location>
"""


def fill(site):
    site.write("who.php", WHO_PHP)
    site.write("digest.php", DIGEST_PHP)
    site.write("echo.php", ECHO_PHP)
    site.write("server.php", SERVER_PHP)
    site.script("echo.cgi", ECHO_CGI)
    site.write("text.txt", "0123456789" * 100)
    site.write("empty.txt", "")
    site.write("small/digest.php", DIGEST_PHP)
    site.script("small/echo.cgi", ECHO_CGI)
    site.write("dirlimit/.htaccess", "LimitRequestBody 2000\n")
    site.write("dirlimit/digest.php", DIGEST_PHP)
    site.write("squeezed/page.txt", "squeeze me " * 500)
    site.write("squeezed/page.php", "<?php header('Content-Type: text/plain'); echo str_repeat('squeeze me ', 500);")
    site.write(
        "errors/404.php",
        """
        <?php
        echo 'sorry ', $_SERVER['REDIRECT_STATUS'], ' ', $_SERVER['REDIRECT_URL'], ' ',
            isset($_SERVER['REDIRECT_REDIRECT_STATUS']) ? 'twice' : 'once';
        """,
    )
    site.write(
        "trailers.php",
        """
        <?php
        $n = strlen(file_get_contents('php://input'));
        echo $n, ' ', apache_request_headers()['X-Check'] ?? 'none';
        """,
    )
    site.write("stream.php", """
        <?php
        while (ob_get_level()) ob_end_clean();
        header('Content-Type: text/plain');
        for ($i = 0; $i < 4; $i++) { echo "part $i\\n"; flush(); usleep(500000); }
    """)
    site.script("stream.cgi", """
        #!/bin/sh
        printf 'Content-Type: text/plain\\r\\n\\r\\n'
        for i in 0 1 2 3; do echo "part $i"; sleep 0.5; done
    """)
    site.script("nph-plain.cgi", """
        #!/bin/sh
        printf 'HTTP/1.1 299 Nonparsed\\r\\nContent-Type: text/plain\\r\\nX-Nph: yes\\r\\n'
        printf 'Content-Length: 4\\r\\n\\r\\nbody'
    """)
    site.script("nph-endless.cgi", """
        #!/bin/sh
        printf 'HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nConnection: close\\r\\n\\r\\nuntil the end'
    """)
    site.script("nph-hints.cgi", """
        #!/bin/sh
        printf 'HTTP/1.1 103 Early Hints\\r\\nLink: </a.css>; rel=preload\\r\\n\\r\\n'
        sleep 0.7
        printf 'HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nContent-Length: 4\\r\\n\\r\\ndone'
    """)
    site.write("refuse.php", """
        <?php
        http_response_code(403); header('Content-Length: 3'); echo 'no!';
        while (ob_get_level()) ob_end_flush();
        flush();
    """)
    site.write("status.php", """
        <?php
        http_response_code((int)$_GET['s']);
        if ($_GET['s'] != 204 && $_GET['s'] != 304) echo 'status ', $_GET['s'];
        else header('ETag: "x"');
    """)
    site.script("local.cgi", "#!/bin/sh\nprintf 'Location: /server.php?from=cgi\\r\\n\\r\\n'\n")
    site.write("virtual.php", "<?php echo 'before '; virtual('/text.txt'); echo ' after';")
    site.write("page.shtml", """
        <!--#include virtual="/text.txt" -->|<!--#include virtual="/one.php?x=7" -->|
        <!--#include virtual="/one.cgi" -->|<!--#echo var="DOCUMENT_URI" -->|<!--#exec cmd="id -u" -->
    """)
    site.write("one.php", "<?php echo 'php', $_GET['x'] ?? '';")
    site.script("one.cgi", "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\ncgi'\n")
    site.write("abort.php", """
        <?php
        ignore_user_abort(true);
        while (ob_get_level()) ob_end_clean();
        $until = microtime(true) + 20;
        while (microtime(true) < $until) {
            echo str_repeat('x', 20000); flush();
            if (connection_aborted()) { file_put_contents(__DIR__ . '/aborted', connection_status()); exit; }
            usleep(50000);
        }
        file_put_contents(__DIR__ . '/aborted', 'never');
    """)
    site.write("bigheader.php", "<?php header('X-Big: ' . str_repeat('b', (int)$_GET['n'])); echo 'ok';")


@pytest.fixture(scope="module")
def server(shared_httpd):
    alice = Site("alice", ALICE, conf=CONF)
    server = shared_httpd(
        sites=[alice],
        modules=["cgi"],
        conf="LimitRequestFields 30\nLimitRequestLine 4000\nLimitRequestFieldSize 6000\n",
        log_format="%>s %B %U %{X-Check}^ti",
    )
    fill(alice)
    return server.start()


@pytest.fixture
def alice(server):
    return server.sites["alice"]


def needs_h2(server):
    if server.mpm == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")


# --- request bodies ---------------------------------------------------------------------------------


def chunked(parts, trailers=""):
    for part in parts:
        yield b"%x\r\n" % len(part) + part + b"\r\n"
    yield b"0\r\n" + trailers.encode() + b"\r\n"


BLOCK = os.urandom(MB)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_echo_of_100_mb_both_ways_at_once(server, coding, tls):
    count = 100
    want = hashlib.sha256(BLOCK * count).hexdigest()
    with server.connect(tls=tls, timeout=60) as c:
        if coding == "length":
            c.request("PUT", "/echo.php", headers=[("Content-Length", count * MB)])
            c.send_while_reading([BLOCK] * count)
        else:
            c.request("PUT", "/echo.php", headers=[("Transfer-Encoding", "chunked")])
            c.send_while_reading(chunked([BLOCK] * count))
        found = c.response("PUT")
        assert c.sent_all
        assert found.complete
        assert len(found.body) == count * MB
        assert hashlib.sha256(found.body).hexdigest() == want
        # The connection is still good.
        assert c.get("/text.txt").status == 200


def test_body_is_not_buffered_whole(server):
    """Each piece comes back before the next is sent: nobody waits for the whole body."""
    piece = BLOCK[:65536]
    with server.connect(timeout=10) as c:
        c.request("PUT", "/echo.php", headers=[("Content-Length", 8 * len(piece))])
        c.send(piece)
        found = c.head()
        assert found.get("Transfer-Encoding") == "chunked"
        for i in range(8):
            got = b""
            while len(got) < len(piece):
                got += c.chunk()
            assert got == piece
            if i < 7:
                c.send(piece)
        assert c.chunk() == b""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_upload_of_50_mb(server, tls):
    with server.connect(tls=tls, timeout=60) as c:
        c.request("PUT", "/digest.php", headers=[("Content-Length", 50 * MB)])
        for _ in range(50):
            c.send(BLOCK)
        found = c.response().json()
    assert found["bytes"] == 50 * MB
    assert found["sha256"] == hashlib.sha256(BLOCK * 50).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 16384, 65535, 65536, 65537, 262144, 1000003])
@pytest.mark.parametrize("script", ["digest.php", "echo.cgi"])
def test_body_sizes_around_every_limit(server, size, script):
    if script == "echo.cgi" and size > 65536:
        pytest.skip("mod_cgi writes the whole body before it reads: larger ones block any `cat`")
    body = (BLOCK * 1)[:size] if size <= MB else BLOCK
    for headers, data in (
        ([("Content-Length", size)], body),
        ([("Transfer-Encoding", "chunked")], b"".join(chunked([body] if body else []))),
    ):
        with server.connect() as c:
            c.request("POST", f"/{script}", headers=headers, body=data)
            found = c.response("POST")
            if script == "echo.cgi":
                assert found.body == body
            else:
                assert found.json()["bytes"] == size
                assert found.json()["sha256"] == hashlib.sha256(body).hexdigest()


def test_chunked_body_in_tiny_pieces(server):
    with server.connect() as c:
        c.request("POST", "/digest.php", headers=[("Transfer-Encoding", "chunked")])
        for piece in chunked([b"abc"] * 20):
            for byte in range(len(piece)):
                c.send(piece[byte : byte + 1])
        assert c.response().json()["bytes"] == 60


def test_trailers_of_a_chunked_request_reach_the_script_and_the_log(server):
    body = b"".join(chunked([b"hello"], trailers="X-Check: c0ffee\r\n"))
    found = server.request("POST", "/trailers.php", headers=[("Transfer-Encoding", "chunked"),
                           ("Trailer", "X-Check")], body=body)
    assert found.text == "5 c0ffee"
    server.wait_for_log(r"^200 \d+ /trailers\.php c0ffee", name="access.log")


def test_malformed_chunk_is_400_and_ends_the_connection(server):
    with server.connect() as c:
        c.request("POST", "/digest.php", headers=[("Transfer-Encoding", "chunked")], body=b"zz\r\nbad\r\n")
        found = c.response()
        assert found.status == 400
        assert c.is_closed()


def test_body_that_ends_early_does_not_hang_the_server(server):
    with server.connect() as c:
        c.request("PUT", "/echo.php", headers=[("Content-Length", 1000)], body=b"half")
        c.half_close()
        c.read_all()
    assert server.get("/text.txt").status == 200


@pytest.mark.timeout(120)
def test_http2_upload(server):
    needs_h2(server)
    path = server.root / "upload.bin"
    path.write_bytes(BLOCK * 20)
    for http, tls in (("2pk", False), ("2", True)):
        done = server.curl("-T", path, path="/digest.php", http=http, tls=tls, timeout=60)
        assert hashlib.sha256(BLOCK * 20).hexdigest().encode() in done.stdout


@pytest.mark.timeout(120)
def test_http2_echo(server):
    needs_h2(server)
    path, out = server.root / "up.bin", server.root / "down.bin"
    path.write_bytes(BLOCK * 30)
    server.curl("-T", path, "-o", out, path="/echo.php", http="2", tls=True, timeout=60)
    assert out.read_bytes() == BLOCK * 30


# --- Expect and early answers -----------------------------------------------------------------------


def test_expect_100_continue_is_sent_when_the_script_reads(server):
    with server.connect() as c:
        c.request("POST", "/digest.php", headers=[("Content-Length", 5), ("Expect", "100-continue")])
        interim = c.head()
        assert interim.status == 100
        c.send(b"hello")
        found = c.response("POST")
        assert (found.status, found.json()["bytes"]) == (200, 5)


def test_expect_100_continue_once_only(server):
    with server.connect() as c:
        c.request("POST", "/digest.php", headers=[("Content-Length", 100000), ("Expect", "100-continue")])
        assert c.head().status == 100
        for _ in range(10):
            c.send(b"x" * 10000)
            time.sleep(0.02)
        found = c.response("POST")
        assert found.interim == []
        assert found.json()["bytes"] == 100000


def test_expect_with_a_refusal_needs_no_body(server):
    with server.connect(timeout=5) as c:
        c.request("POST", "/small/digest.php", headers=[("Content-Length", 5000), ("Expect", "100-continue")])
        found = c.response("POST")
        assert (found.status, found.interim) == (413, [])
        assert c.is_closed()


def test_unknown_expectation_is_417(server):
    assert server.get("/text.txt", headers=[("Expect", "miracles")]).status == 417


def test_413_while_the_client_still_sends(server):
    with server.connect(timeout=10) as c:
        c.request("POST", "/small/digest.php", headers=[("Content-Length", 50 * MB)])
        c.send_while_reading([b"x" * 10000])
        found = c.response("POST")
        assert found.status == 413


def test_script_answers_before_the_body_is_there(server):
    with server.connect(timeout=10) as c:
        c.request("PUT", "/refuse.php", headers=[("Content-Length", 5 * MB)], body=b"x" * 1000)
        found = c.response("PUT")
        assert (found.status, found.text) == (403, "no!")


def test_next_request_is_found_behind_an_unread_body(server):
    with server.connect(timeout=20) as c:
        c.send_while_reading(
            [b"PUT /refuse.php HTTP/1.1\r\nHost: alice.test\r\nContent-Length: 300000\r\n\r\n", b"G" * 300000,
             b"GET /text.txt HTTP/1.1\r\nHost: alice.test\r\n\r\n"]
        )
        assert c.response("PUT").status == 403
        try:
            found = c.response("GET")
        except Broken:
            return  # closing instead is fair; taking body bytes for a request is not
        assert (found.status, len(found.body)) == (200, 1000)


def test_limit_request_body(server):
    assert server.request("POST", "/small/digest.php", body=b"x" * 1000).json()["bytes"] == 1000
    assert server.request("POST", "/small/digest.php", body=b"x" * 1001).status == 413
    over = b"".join(chunked([b"x" * 400] * 5))
    found = server.request("POST", "/small/echo.cgi", headers=[("Transfer-Encoding", "chunked")], body=over)
    assert found.status == 413


@pytest.mark.parametrize("path", ["/text.txt", "/digest.php", "/echo.cgi"])
@pytest.mark.parametrize("coding, status", [("length", 413), ("chunked", 413), ("malformed", 400)])
def test_a_refused_body_is_answered_once(server, path, coding, status):
    """httpd's input filter sends an answer of its own as soon as it finds the fault."""
    headers = [] if coding == "length" else [("Transfer-Encoding", "chunked")]
    body = {"length": b"x" * 1001, "chunked": b"".join(chunked([b"x" * 400] * 5)), "malformed": b"no number\r\n"}[coding]
    for later in (0, 0.2):
        with server.connect() as c:
            c.request("POST", "/small" + path, headers=[("Content-Length", 1001)] if coding == "length" else headers)
            time.sleep(later)
            c.send(body)
            found = c.response("POST")
            assert c.is_closed()
        assert (found.status, found.complete) == (status, True)
        assert re.findall(r"<title>(\d+)|</html>", found.text) == [str(status), ""]


def test_error_document_for_a_body_beyond_its_limit(server):
    found = server.request("POST", "/small/told/text.txt", body=b"x" * 1001)
    assert (found.status, found.text) == (413, "told so")


def test_limit_request_body_in_htaccess(server):
    assert server.request("POST", "/dirlimit/digest.php", body=b"x" * 2000).json()["bytes"] == 2000
    assert server.request("POST", "/dirlimit/digest.php", body=b"x" * 2001).status == 413


def test_limit_request_fields_line_and_size(server):
    many = lambda n: [(f"X-{i}", "v") for i in range(n)]
    assert server.get("/text.txt", headers=many(25)).status == 200
    assert server.get("/text.txt", headers=many(40)).status == 400
    assert server.get("/text.txt?" + "q" * 3000).status == 200
    assert server.get("/text.txt?" + "q" * 5000).status == 414
    assert server.get("/text.txt", headers=[("X-Long", "l" * 5000)]).status == 200
    assert server.get("/text.txt", headers=[("X-Long", "l" * 7000)]).status == 400


# --- methods and statuses ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/text.txt", "/server.php", "/one.cgi", "/nowhere", "/"])
def test_head_has_the_headers_of_get_and_no_body(server, path):
    with server.connect() as c:
        get = c.get(path)
        c.request("HEAD", path)
        head = c.response("HEAD")
        assert head.body == b""
        assert head.status == get.status
        assert head.get("Content-Type") == get.get("Content-Type")
        if path == "/text.txt":
            assert head.get("Content-Length") == "1000"
        # Nothing of a body lies before the next response.
        assert c.get("/text.txt").text == "0123456789" * 100


@pytest.mark.parametrize("status", [200, 201, 204, 302, 304, 400, 404, 410, 500, 503, 511])
def test_status_of_a_script_and_the_connection_after_it(server, status):
    with server.connect() as c:
        found = c.get(f"/status.php?s={status}")
        assert found.status == status
        if status in (204, 304):
            assert found.get("Transfer-Encoding") is None
            assert found.get("Content-Length") in (None, "0") or status == 304
        else:
            assert found.text == f"status {status}"
        if found.closes:
            assert status in (400, 500, 503)  # httpd drops the connection after these
            assert c.is_closed()
        else:
            assert c.get("/text.txt").text.startswith("0123")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "PROPFIND", "REPORT", "FOOBAR"])
def test_method_reaches_the_script(server, method):
    found = server.request(method, "/server.php", body=b"" if method == "GET" else b"b")
    assert found.json()["REQUEST_METHOD"] == method


def test_options_star_and_options_of_a_file(server):
    found = server.request("OPTIONS", "*")
    assert (found.status, found.body) == (200, b"")
    found = server.request("OPTIONS", "/text.txt")
    assert found.status == 200
    assert {"GET", "HEAD", "OPTIONS"} <= set(re.split(r",\s*", found.get("Allow")))


def test_method_not_allowed_for_a_file(server):
    found = server.request("DELETE", "/text.txt")
    assert found.status == 405
    assert "GET" in found.get("Allow")


def test_trace_answers_with_the_request(server):
    found = server.request("TRACE", "/text.txt", headers=[("X-Trace", "me")])
    assert (found.status, found.get("Content-Type")) == (200, "message/http")
    assert "X-Trace: me" in found.text


def test_absolute_uri_and_missing_host(server):
    with server.connect() as c:
        c.send("GET http://alice.test/text.txt HTTP/1.1\nHost: other.test\n\n")
        assert c.response().status == 200
        c.send("GET /text.txt HTTP/1.1\n\n")
        assert c.response().status == 400


@pytest.mark.parametrize("path", ["/a%00b", "/%2e%2e/%2e%2e/etc/passwd", "/a%2fb", "/text.txt%", "/%ff"])
def test_odd_paths_are_answered_by_httpd(server, path):
    assert server.get(path).status in (400, 403, 404)


@pytest.mark.parametrize("bytes_", [b"GET\r\n\r\n", b"\x16\x03\x01\x00\xa5\x01\r\n\r\n",
                                    b"GET /text.txt HTTP/1.1\r\nHost: alice.test\r\nBad Name: x\r\n\r\n"])
def test_malformed_requests_are_400_or_505(server, bytes_):
    with server.connect() as c:
        c.send(bytes_)
        data = c.read_all()
    assert re.search(rb"HTTP/1\.1 (400|505)|400 Bad Request", data)


# --- ranges and conditions --------------------------------------------------------------------------


@pytest.mark.parametrize("range_,content,body", [
    ("bytes=0-9", "bytes 0-9/1000", b"0123456789"),
    ("bytes=5-7", "bytes 5-7/1000", b"567"),
    ("bytes=-3", "bytes 997-999/1000", b"789"),
    ("bytes=995-", "bytes 995-999/1000", b"56789"),
    ("bytes=990-5000", "bytes 990-999/1000", b"0123456789"),
])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_range(server, range_, content, body, tls):
    found = server.get("/text.txt", headers=[("Range", range_)], tls=tls)
    assert (found.status, found.get("Content-Range"), found.body) == (206, content, body)
    assert found.get("Content-Length") == str(len(body))


def test_multipart_ranges(server):
    found = server.get("/text.txt", headers=[("Range", "bytes=0-1,10-12,-1")])
    assert found.status == 206
    boundary = re.fullmatch(r"multipart/byteranges; boundary=(\S+)", found.get("Content-Type"))[1]
    parts = found.body.split(b"--" + boundary.encode())
    got = [tuple(p.split(b"\r\n\r\n", 1)) for p in parts if b"Content-range" in p or b"Content-Range" in p]
    assert [b.removesuffix(b"\r\n") for _, b in got] == [b"01", b"012", b"9"]
    assert len(found.body) == int(found.get("Content-Length"))


def test_range_outside_is_416(server):
    found = server.get("/text.txt", headers=[("Range", "bytes=1000-")])
    assert found.status == 416
    assert b"0123" not in found.body


def test_range_of_a_head_request_and_of_a_large_file(server, alice):
    path = alice.write("large.bin", b"")
    with open(path, "r+b") as f:
        f.seek(5 * 1024**3)  # sparse, beyond 32 bits
        f.write(b"the end")
    found = server.get("/large.bin", headers=[("Range", "bytes=-7")])
    assert (found.status, found.text) == (206, "the end")
    with server.connect() as c:
        c.request("HEAD", "/large.bin")
        assert c.response("HEAD").get("Content-Length") == str(5 * 1024**3 + 7)


def test_conditional_requests(server):
    # httpd's ETag of a file that was changed within the last second is a weak one, which no range goes by.
    first = eventually(lambda: (answer := server.get("/text.txt")).get("ETag").startswith('"') and answer)
    etag, modified = first.get("ETag"), first.get("Last-Modified")
    assert etag and modified
    assert first.get("Accept-Ranges") == "bytes"
    ask = lambda *headers: server.get("/text.txt", headers=headers)
    same = ask(("If-None-Match", etag))
    assert (same.status, same.body, same.get("ETag")) == (304, b"", etag)
    assert ask(("If-None-Match", '"other"')).status == 200
    assert ask(("If-Modified-Since", modified)).status == 304
    assert ask(("If-Modified-Since", "Mon, 01 Jan 2001 00:00:00 GMT")).status == 200
    assert ask(("If-Match", '"other"')).status == 412
    assert ask(("If-Unmodified-Since", "Mon, 01 Jan 2001 00:00:00 GMT")).status == 412
    assert ask(("Range", "bytes=0-0"), ("If-Range", etag)).status == 206
    assert ask(("Range", "bytes=0-0"), ("If-Range", '"other"')).status == 200


def test_304_leaves_the_connection_usable(server):
    with server.connect() as c:
        etag = c.get("/text.txt").get("ETag")
        for _ in range(3):
            assert c.get("/text.txt", headers=[("If-None-Match", etag)]).status == 304
            assert c.get("/one.php").text == "php"


# --- responses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/stream.php", "/stream.cgi"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_flushed_parts_arrive_as_they_are_written(server, path, tls):
    server.get("/text.txt")
    start = time.monotonic()
    with server.connect(tls=tls) as c:
        c.request("GET", path)
        found = c.head()
        assert found.get("Transfer-Encoding") == "chunked"
        times, text = [], b""
        while True:
            data = c.chunk()
            if not data:
                break
            text += data
            times.append((time.monotonic() - start, text.count(b"\n")))
    assert text == b"part 0\npart 1\npart 2\npart 3\n"
    first = next(t for t, n in times if n >= 1)
    third = next(t for t, n in times if n >= 3)
    assert first < 0.45, times
    assert 0.8 < third < 1.45, times


def test_flushed_parts_arrive_over_http2(server):
    needs_h2(server)
    with H2(server) as c:
        start = time.monotonic()
        stream = c.start("/stream.cgi")
        while not c.streams[stream]["body"]:
            c.step()
        assert time.monotonic() - start < 0.9
        assert c.wait(stream).text == "part 0\npart 1\npart 2\npart 3\n"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_large_file_arrives_whole(server, alice, tls):
    alice.write("big.bin", BLOCK * 64)
    found = server.get("/big.bin", tls=tls, timeout=60)
    assert found.get("Content-Length") == str(64 * MB)
    assert found.body == BLOCK * 64


def test_large_file_over_http2(server, alice):
    needs_h2(server)
    alice.write("big2.bin", BLOCK * 20)
    out = server.root / "big2.out"
    server.curl("-o", out, path="/big2.bin", http="2", tls=True, timeout=60)
    assert out.read_bytes() == BLOCK * 20


def test_slow_reader_gets_every_byte(server, alice):
    alice.write("medium.bin", BLOCK * 8)
    alice.write("medium.php", "<?php readfile(__DIR__ . '/medium.bin');")
    for path in ("/medium.bin", "/medium.php"):
        with server.connect(rcvbuf=8192, timeout=30) as c:
            c.request("GET", path)
            found = c.head()
            time.sleep(1)
            c.body_of(found)
            assert hashlib.sha256(found.body).digest() == hashlib.sha256(BLOCK * 8).digest(), path


@pytest.mark.parametrize("size", [0, 100, 4000, 8000, 30000])
def test_long_response_header(server, size):
    found = server.get(f"/bigheader.php?n={size}")
    assert found.status == 200
    assert len(found.get("X-Big") or "") == size


def test_nph_cgi(server):
    found = server.get("/nph-plain.cgi")
    assert (found.status, found.get("X-Nph"), found.text) == (299, "yes", "body")
    assert server.get("/nph-endless.cgi").text == "until the end"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_early_hints_reach_the_client_early(server, tls):
    start = time.monotonic()
    with server.connect(tls=tls) as c:
        c.request("GET", "/nph-hints.cgi")
        hints = c.head()
        assert time.monotonic() - start < 0.6
        assert (hints.status, hints.get("Link")) == (103, "</a.css>; rel=preload")
        found = c.response()
        assert (found.status, found.text) == (200, "done")


def test_early_hints_over_http2(server):
    needs_h2(server)
    with H2(server) as c:
        found = c.get("/nph-hints.cgi")
        assert found.text == "done"
        assert [dict(i)[":status"] for i in found.interim] == ["103"]


def test_deflate_is_applied_once(server):
    for path in ("/squeezed/page.txt", "/squeezed/page.php"):
        found = server.get(path, headers=[("Accept-Encoding", "gzip")])
        assert found.all("Content-Encoding") == ["gzip"]
        assert gzip.decompress(found.body) == b"squeeze me " * 500
        assert server.get(path).get("Content-Encoding") is None


def test_usual_headers_are_there_once(server):
    found = server.get("/one.php")
    for name in ("Date", "Server", "Content-Type"):
        assert len(found.all(name)) == 1, name


def test_empty_file(server):
    found = server.get("/empty.txt")
    assert (found.status, found.get("Content-Length"), found.body) == (200, "0", b"")


# --- redirects inside, subrequests ------------------------------------------------------------------


def test_local_redirect_of_a_cgi(server):
    found = server.get("/local.cgi").json()
    assert found["QUERY_STRING"] == "from=cgi"
    assert found["REDIRECT_URL"] == "/local.cgi"
    assert found["REDIRECT_STATUS"] == "200"


def test_error_document_by_php_knows_what_failed_once(server):
    found = server.get("/no/such/page")
    assert (found.status, found.text) == (404, "sorry 404 /no/such/page once")


def test_php_virtual(server):
    assert server.get("/virtual.php").text == "before " + "0123456789" * 100 + " after"


def test_ssi_includes_in_the_pool(server, alice):
    text = [part.strip() for part in server.get("/page.shtml").text.split("|")]
    assert text[0] == "0123456789" * 100
    assert text[1:4] == ["php7", "cgi", "/page.shtml"]
    assert int(text[4]) == alice.owner[0]


def test_ssi_of_the_frontend_includes_from_the_pool(httpd):
    """A page outside the pool (server's user) includes one that a pool serves."""
    front = Site("front", pool=None, conf="""
        AddType text/html .shtml
        AddOutputFilter INCLUDES .shtml
        Alias /pool @ROOT@/sites/alice
        <Directory @ROOT@/sites/alice>
            Options +ExecCGI
            AddHandler cgi-script .cgi
        </Directory>
        <IfModule pool_module>
            AssignServerPool none
        </IfModule>
        <Location /pool>
            <IfModule pool_module>
                AssignServerPool alice
            </IfModule>
        </Location>
    """)
    alice = Site("alice", ALICE)
    server = httpd(sites=[front, alice], modules=["cgi"])
    with_pool = server.with_pool
    front.write(
        "page.shtml",
        '[<!--#include virtual="/pool/part.txt" -->][<!--#include virtual="/pool/part.php?x=1" -->]',
    )
    front.write("hints.shtml", 'before [<!--#include virtual="/pool/nph-hints.cgi" -->] behind')
    front.write("files.shtml", '<!--#include virtual="/pool/big.txt" -->' * 3)
    alice.script("nph-hints.cgi", """
        #!/bin/sh
        printf 'HTTP/1.1 103 Early Hints\\r\\nX-Part: 1\\r\\n\\r\\nHTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\n\\r\\nhints'
    """)
    big = b"".join(b"%9d\n" % i for i in range(100_000))
    alice.write("big.txt", big)
    alice.write("part.txt", "part")
    alice.write("part.php", "<?php echo 'uid ', posix_geteuid(), ' x=', $_GET['x'];")
    server.start()
    found = server.get("/page.shtml", "front")
    assert found.text.strip() == f"[part][uid {alice.owner[0]} x=1]"
    # An interim response of a part would stand in the middle of the page.
    if with_pool:
        found = server.get("/hints.shtml", "front")
        assert (found.complete, found.text, found.interim) == (True, "before [hints] behind", [])
    assert server.get("/files.shtml", "front").body == big * 3


FAILING_PARTS = {
    "missing": "/pool/no-such-file",
    "forbidden": "/pool/closed/part.txt",
    "no-slash": "/pool/closed",
    "broken-cgi": "/pool/broken.cgi",
    "redirect": "/pool/moved",
    "rewritten-to-nothing": "/pool/lost",
}


def test_ssi_of_the_frontend_says_that_a_part_is_missing(httpd):
    """No error document in the middle of a page, no body of a redirect; what a script itself answers is a part."""
    front = Site("front", pool=None, conf="""
        AddType text/html .shtml
        AddOutputFilter INCLUDES .shtml
        AddHandler cgi-script .cgi
        Alias /pool @ROOT@/sites/alice
        ErrorDocument 404 /pool/error.php
        <Location /denied>
            Require all denied
            ErrorDocument 403 /pool/no-such-file
        </Location>
        <Directory @ROOT@/sites/alice>
            AllowOverride All
            Options +ExecCGI
            Require all granted
        </Directory>
        <IfModule pool_module>
            AssignServerPool none
        </IfModule>
        <Location /pool>
            <IfModule pool_module>
                AssignServerPool alice
            </IfModule>
        </Location>
    """)
    alice = Site("alice", ALICE)
    server = httpd(sites=[front, alice], modules=["cgi"])
    for name, url in FAILING_PARTS.items():
        front.write(f"{name}.shtml", f'[<!--#config errmsg="failed" --><!--#include virtual="{url}" -->]')
    front.write("own.shtml", '[<!--#include virtual="/pool/own.php" -->]')
    alice.write("error.php", "<?php echo 'an error document';")
    alice.write("own.php", "<?php http_response_code(404); echo 'my own words';")
    alice.write("closed/.htaccess", "Require all denied\n")
    alice.write("closed/part.txt", "closed")
    alice.write(".htaccess", "RewriteEngine on\nRewriteRule ^moved$ /elsewhere [R,L]\nRewriteRule ^lost$ nothing [L]\n")
    alice.script("broken.cgi", "#!/bin/sh\necho no header at all\n")
    server.start()
    said = {name: server.get(f"/{name}.shtml", "front").text for name in FAILING_PARTS}
    # An internal redirect ends in an error document, in a part too.
    assert said.pop("rewritten-to-nothing") == "[an error document]"
    assert said == {name: "[failed]" for name in said}
    assert server.get("/own.shtml", "front").text == "[my own words]"
    assert server.get("/no-such-file", "front").text == "an error document"
    # The error is the first one, whatever becomes of its document.
    found = server.get("/denied/page", "front")
    assert (found.status, "Additionally, a 403 Forbidden" in found.text) == (403, True)
    assert "an error document" not in found.text
    if server.with_pool:
        assert server.count_log("POOL103") == 0


# --- the client goes away ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "close"])
def test_php_sees_that_the_client_went_away(server, alice, how):
    mark = alice.docroot / "aborted"
    mark.unlink(missing_ok=True)
    c = server.connect()
    c.request("GET", "/abort.php")
    c.head()
    c.reset() if how == "reset" else c.close()
    eventually(mark.exists, 12, what="the script notices")
    eventually(lambda: mark.read_text() == "1", 2)


def test_client_that_leaves_during_its_upload_hurts_nobody(server):
    for _ in range(5):
        c = server.connect()
        c.request("PUT", "/echo.php", headers=[("Content-Length", 10 * MB)], body=b"x" * 100000)
        c.reset()
    assert server.get("/one.php").text == "php"


# --- TLS demands ------------------------------------------------------------------------------------


class TestTls:
    @pytest.fixture(scope="class")
    def secure(self, shared_httpd):
        alice = Site("alice", ALICE, conf="""
            SSLVerifyDepth 2
            ErrorDocument 403 /denied.php
            <Location /tlsonly>
                SSLRequireSSL
            </Location>
            <Location /member>
                SSLRequireSSL
                SSLVerifyClient require
            </Location>
            <Location /maybe>
                SSLVerifyClient optional
            </Location>
            <Location /expr>
                Require expr "%{HTTPS} == 'on'"
            </Location>
            <Location /requiressl>
                Require ssl
            </Location>
        """, tls_conf="""
            SSLCACertificateFile @ROOT@/tls/ca.pem
            SSLOptions +StdEnvVars
        """)
        strict = Site("strict", ALICE, pool="alice", tls_conf="""
            SSLCACertificateFile @ROOT@/tls/ca.pem
            SSLVerifyClient require
            SSLOptions +StdEnvVars
            SSLUserName SSL_CLIENT_S_DN_CN
        """)
        server = shared_httpd(sites=[alice, strict], log_format="%u %>s %U", modules=["include"])
        tls = server.root / "tls"
        make_certificate(tls / "ca.pem", tls / "ca.key", "test CA", is_ca=True)
        make_certificate(tls / "frank.pem", tls / "frank.key", "frank", ca=(tls / "ca.pem", tls / "ca.key"))
        make_certificate(tls / "mallory.pem", tls / "mallory.key", "mallory")
        page = """
            <?php
            echo $_SERVER['SSL_CLIENT_S_DN_CN'] ?? '-', ' ', $_SERVER['SSL_CLIENT_VERIFY'] ?? '-', ' ',
                $_SERVER['REMOTE_USER'] ?? '-', ' ', $_SERVER['HTTPS'] ?? 'off';
        """
        for d in ("tlsonly", "member", "maybe", "expr", "requiressl", "."):
            alice.write(f"{d}/page.php", page)
            alice.write(f"{d}/page.txt", "static")
        alice.write("htssl/.htaccess", "SSLRequireSSL\n")
        alice.write("denied.php", "<?php echo 'denied ', $_SERVER['REDIRECT_STATUS'], ' ', $_SERVER['REDIRECT_URL'];")
        alice.write("htssl/page.php", page)
        strict.write("page.php", page)
        alice.write("member/.htaccess", "RewriteEngine on\nRewriteRule ^inside$ page.php\n")
        alice.write("into/.htaccess", "AddOutputFilter INCLUDES .shtml\nDirectoryIndex /member/page.php\nRewriteEngine on\n"
                    "RewriteRule ^php$ /member/page.php\nRewriteRule ^txt$ /member/page.txt\n"
                    "ErrorDocument 404 /member/page.txt\nRedirect 404 /into/gone\n")
        alice.write("into/page.shtml", '[<!--#include virtual="/member/page.txt" -->]')
        alice.write("maybe/more/.htaccess", "SSLVerifyClient require\n")
        alice.write("maybe/more/page.txt", "static")
        alice.write("maybe/into/.htaccess", "RewriteEngine on\nRewriteRule ^txt$ /member/page.txt\n")
        return server.start()

    def cert(self, server, name):
        return (server.root / "tls" / f"{name}.pem", server.root / "tls" / f"{name}.key")

    @pytest.mark.parametrize("where", ["tlsonly", "htssl", "expr", "requiressl"])
    def test_only_over_tls(self, secure, where):
        assert secure.get(f"/{where}/page.php").status == 403
        found = secure.get(f"/{where}/page.php", tls=True)
        assert (found.status, found.text) == (200, "- NONE - on")

    @pytest.mark.parametrize("where", ["tlsonly", "member", "htssl", "requiressl"])
    def test_error_document_for_a_refusal(self, secure, where):
        """Whoever refuses: the error's text is asked for, never what was refused."""
        with secure.connect() as c:
            for headers, body in ([], b""), ([("Range", "bytes=0-1")], b""), ([], b"x" * 5000):
                c.request("POST" if body else "GET", f"/{where}/page.php", headers=headers, body=body)
                found = c.response()
                assert (found.status, found.text) == (403, f"denied 403 /{where}/page.php")
            assert c.get("/page.txt").text == "static"

    @pytest.mark.pool_only
    @pytest.mark.parametrize("path", ["/into/php", "/into/txt", "/into/gone", "/into/page.shtml", "/into/", "/maybe/into/txt",
                                      "/maybe/more/page.txt"])
    @pytest.mark.parametrize("h2", [False, True], ids=["h1", "h2"])
    def test_a_certificate_that_nobody_asks_for_is_missing(self, secure, path, h2):
        """Where a redirect or a part of a page leads into a Location that demands a certificate, stock httpd asks the client
        for it. A worker cannot, nor for a .htaccess."""
        if h2 and (secure.mpm == "prefork" or path.startswith("/maybe")):
            pytest.skip("no HTTP/2, or mod_ssl refuses it: no certificate can be asked for in the middle of it")
        at = len(secure.error_log())
        if h2:
            with H2(secure, tls=True) as c:
                found = c.get(path)
        else:
            found = secure.get(path, tls=True, tls_max=ssl.TLSVersion.TLSv1_2)
        assert "static" not in found.text and "NONE" not in found.text
        assert found.status == {"/into/gone": 404, "/into/page.shtml": 200}.get(path, 403)
        secure.wait_for_log("a redirect or a part of a page leads into, cannot be checked", after=at)

    def test_a_redirect_within_what_demands_a_certificate(self, secure):
        frank = self.cert(secure, "frank")
        found = secure.get("/member/inside", tls=True, client_cert=frank, tls_max=ssl.TLSVersion.TLSv1_2)
        assert (found.status, found.text) == (200, "frank SUCCESS - on")

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
    def test_client_certificate_per_location(self, secure, version):
        frank = self.cert(secure, "frank")
        assert secure.get("/page.php", tls=True, tls_max=version).text == "- NONE - on"
        found = secure.get("/member/page.php", tls=True, client_cert=frank, tls_max=version)
        assert (found.status, found.text) == (200, "frank SUCCESS - on")

    def test_client_certificate_per_location_is_demanded(self, secure):
        try:
            found = secure.get("/member/page.php", tls=True)
            assert found.status == 403
        except (Broken, OSError):
            pass  # ended by an alert, as stock httpd may
        assert secure.get("/member/page.php").status == 403
        try:
            found = secure.get("/member/page.txt", tls=True, client_cert=self.cert(secure, "mallory"))
            assert found.status == 403
        except (Broken, OSError):
            pass

    def test_optional_client_certificate(self, secure):
        assert secure.get("/maybe/page.php", tls=True).text.startswith("- NONE")
        found = secure.get("/maybe/page.php", tls=True, client_cert=self.cert(secure, "frank"))
        assert found.text.startswith("frank SUCCESS")

    def test_client_certificate_per_virtual_host(self, secure):
        with pytest.raises((Broken, OSError, AssertionError)):
            found = secure.get("/page.php", "strict", tls=True)
            assert found.status == 200
        found = secure.get("/page.php", "strict", tls=True, client_cert=self.cert(secure, "frank"))
        assert found.text == "frank SUCCESS frank on"
        secure.wait_for_log(r"^frank 200 /page\.php", name="access.log")

    def test_certificate_in_one_connection_with_other_places(self, secure):
        """The renegotiated certificate belongs to the connection; later requests still work."""
        with secure.connect(tls=True, client_cert=self.cert(secure, "frank"),
                            tls_max=ssl.TLSVersion.TLSv1_3) as c:
            assert c.get("/page.php").text.startswith("- ")
            assert c.get("/member/page.php").text.startswith("frank SUCCESS")
            assert c.get("/page.txt").text == "static"
