"""What a response says of its connection, and its status: as stock prefork beside it says, request by request.

The lists of cases are one for both servers; what stock httpd does with each is asked, and not written down.
"""

import pytest

from harness import ALICE, Broken, H2, Httpd, Site, compile_module, eventually

CONF = """
    AddHandler cgi-script .cgi
    Header unset X-Nothing
    RewriteEngine on
    RewriteRule ^/rule-keep/(.*)$ /$1 [E=nokeepalive:1,PT]
    RewriteRule ^/rule-old/(.*)$ /$1 [E=downgrade-1.0:1,E=force-response-1.0:1,PT]
    SetEnvIf X-Vhost "^keep$" nokeepalive
    SetEnvIf X-Vhost "^down$" downgrade-1.0
    SetEnvIf X-Vhost "^force$" force-response-1.0
    BrowserMatch "^Old" nokeepalive downgrade-1.0 force-response-1.0
    <Location /located/keep>
        SetEnvIf Host . nokeepalive
    </Location>
    <Directory @DOCROOT@/dir/down>
        SetEnvIf Host . downgrade-1.0
    </Directory>
    <Directory @DOCROOT@/dir/force>
        SetEnvIf Host . force-response-1.0
    </Directory>
    <Directory @DOCROOT@/dir/both>
        SetEnvIf Host . downgrade-1.0 force-response-1.0
    </Directory>
    <Directory @DOCROOT@/dir/close>
        Header set Connection close
    </Directory>
    <Directory @DOCROOT@/dir/always>
        Header always set Connection close
    </Directory>
    <Directory @DOCROOT@/dir/unset>
        Header unset Upgrade
    </Directory>
"""
PAGE = "<?php echo 'page';"
SAYS = "<?php header('Connection: ' . $_GET['c']); if (isset($_GET['l'])) header('Content-Length: 4'); echo 'says';"
EARLY = """
<?php
header('Connection: close'); header('Content-Length: 5');
echo 'early';
while (ob_get_level()) ob_end_flush();
flush();
usleep(700000);
touch(__DIR__ . '/worked-on');
"""
STATUS = """
<?php
if (isset($_GET['line'])) header('HTTP/1.1 ' . $_GET['line']); else http_response_code((int)$_GET['s']);
echo 'body of the script';
"""
PLACES = ["located/keep", "dir/down", "dir/force", "dir/both", "dir/close", "dir/always", "dir/unset", "ht/keep", "ht/down",
          "ht/both", "ht/env"]


def fill(site):
    for place in ["", *PLACES]:
        site.write(f"{place}/page.php".lstrip("/"), PAGE)
        site.write(f"{place}/text.txt".lstrip("/"), "text")
        site.script(f"{place}/page.cgi".lstrip("/"), "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\nContent-Length: 3\\r\\n\\r\\ncgi'\n")
    site.write("ht/keep/.htaccess", "SetEnvIf Host . nokeepalive\n")
    site.write("ht/down/.htaccess", "SetEnvIf Host . downgrade-1.0\n")
    site.write("ht/both/.htaccess", "SetEnvIf Host . downgrade-1.0 force-response-1.0\n")
    site.write("ht/env/.htaccess", "RewriteEngine on\nRewriteRule . - [E=nokeepalive:1]\n")
    site.write("says.php", SAYS)
    site.write("early.php", EARLY)
    site.write("status.php", STATUS)
    site.script("closes.cgi", "#!/bin/sh\nprintf 'Connection: close\\r\\nContent-Type: text/plain\\r\\nContent-Length: 3\\r\\n\\r\\ncgi'\n")


def make(**kw):
    site = Site("alice", ALICE, conf=CONF)
    server = Httpd(sites=[site], modules=["cgi"], log_format="%>s %U%q", **kw)
    fill(site)
    return server.start()


@pytest.fixture(scope="module")
def server(kind):
    server = make(**kind)
    yield server
    server.destroy()


@pytest.fixture(scope="module")
def stock():
    server = make(mpm="prefork", with_pool=False, without=["http2"])
    yield server
    server.destroy()


def seen(server, path, version="HTTP/1.1", headers=(), method="GET"):
    """What the client gets, and whether its connection serves another request."""
    with server.connect() as c:
        c.request(method, path, version=version, headers=headers)
        found = c.response(method)
        tokens = [t.strip().lower() for t in ",".join(found.all("Connection")).split(",") if t.strip()]
        # Where the server under test offers HTTP/2 and the other one does not.
        tokens = sorted(t for t in tokens if t != "upgrade")
        # httpd knows the length of a program's output if the program has ended by then: chance decides.
        chunked = None if "cgi" in path else found.get("Transfer-Encoding")
        return (found.version, found.status, found.reason, tokens, chunked, found.text, serves_on(c, version, headers))


def serves_on(c, version, headers):
    try:
        c.request("GET", "/text.txt", version=version, headers=headers)
        return c.response().text == "text"
    except (Broken, OSError):
        return False


PATHS = ["page.php", "text.txt", "page.cgi", "closes.cgi", "says.php?c=close", "says.php?c=close&l", "says.php?c=Close",
         "rule-keep/page.php", "rule-old/page.php", "rule-old/text.txt",
         *(f"{place}/{name}" for place in PLACES for name in ("page.php", "text.txt", "page.cgi"))]
CLIENTS = {
    "1.1": {},
    "1.0": {"version": "HTTP/1.0"},
    "1.0-alive": {"version": "HTTP/1.0", "headers": [("Connection", "keep-alive")]},
    "closing": {"headers": [("Connection", "close")]},
    "alive": {"headers": [("Connection", "keep-alive")]},
    "via": {"headers": [("Via", "1.1 somebody")]},
    "vhost-keep": {"headers": [("X-Vhost", "keep")]},
    "vhost-down": {"headers": [("X-Vhost", "down")]},
    "vhost-force": {"headers": [("X-Vhost", "force")], "version": "HTTP/1.0"},
    "old": {"headers": [("User-Agent", "Old thing")]},
}


@pytest.mark.parametrize("client", CLIENTS)
def test_the_connection_is_as_stock_says(server, stock, client):
    # Without a length an HTTP/1.0 connection ends, and see above.
    by_chance = [p for p in PATHS if "page.cgi" in p and (client != "1.1" or "down" in p)]
    all_paths = client in ("1.1", "1.0-alive", "alive")
    paths = [p for p in PATHS if p not in by_chance and (all_paths or "text" not in p)]
    asked = {path: seen(stock, f"/{path}", **CLIENTS[client]) for path in paths}
    assert {path: seen(server, f"/{path}", **CLIENTS[client]) for path in paths} == asked


def test_a_page_that_answers_at_once_is_complete_for_its_client(server):
    done = server.sites["alice"].docroot / "worked-on"
    done.unlink(missing_ok=True)
    with server.connect() as c:
        c.request("GET", "/early.php")
        found = c.response()
        assert (found.text, found.closes, done.exists()) == ("early", True, False)
        assert c.is_closed(5)
    eventually(done.exists)


def test_of_a_list_close_alone_is_taken(server):
    """What else a tenant calls a field of the connection is not passed on (docs/pitfalls.md)."""
    with server.connect() as c:
        c.request("GET", "/says.php?c=X-Own,%20close")
        found = c.response()
        assert (found.text, found.all("Connection")) == ("says", ["close"])
        assert c.is_closed(5)
    for value in ("Keep-Alive", "X-Own", "closed", "Upgrade"):
        with server.connect() as c:
            c.request("GET", f"/says.php?c={value}")
            assert not c.response().closes
            c.request("GET", "/page.php", headers=[("Connection", "close")])
            assert c.response().closes


STATUSES = ["s=419", "s=599", "s=600", "s=999", "s=200", "s=299", "s=402", "s=418", "s=451", "s=500", "s=42",
            "s=1000", "line=601%20Update", "line=601", "line=404", "line=404%20Gone%20away", "line=419%20Own",
            "line=999%20Last", "line=250%20With%20words", "line=700"]


@pytest.mark.parametrize("query", STATUSES)
def test_the_status_is_as_stock_says(server, stock, query):
    path = f"/status.php?{query}"
    asked = seen(stock, path)
    assert asked[-2] == "body of the script"
    got = seen(server, path)
    if query in ("s=42", "s=1000"):
        # A frontend takes no such number from a worker, and says and logs 500 (docs/pitfalls.md).
        assert (got[:3], got[5]) == (asked[:3], asked[5])
    else:
        assert got == asked
        logged = [eventually(lambda s=s: [x for x in s.access_log() if x.endswith(path)])[-1] for s in (stock, server)]
        assert logged[0] == logged[1]


def test_a_response_that_is_interim_for_ever_is_none(server):
    assert server.get("/status.php?s=103").status == 500


def needs_h2(server):
    if server.mpm == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")


def test_over_http2_all_of_it_is_a_stream(server):
    needs_h2(server)
    with H2(server, tls=True) as c:
        for path in ("/page.php", "/says.php?c=close", "/ht/both/page.php", "/dir/close/text.txt", "/rule-old/page.php",
                     "/closes.cgi", "/page.php"):
            found = c.get(path)
            names = {name.lower() for name, _ in found.headers}
            assert (found.status, found.complete) == (200, True), path
            assert not names & {"connection", "keep-alive", "upgrade", "transfer-encoding"}, path
        for query, status in (("s=419", 419), ("s=599", 599), ("line=601%20Update", 601), ("s=999", 999)):
            found = c.get(f"/status.php?{query}")
            # What httpd's own HTTP/2 makes of such a number is its own affair; nothing of it is the connection's.
            assert not found.complete or (found.status, found.text) == (status, "body of the script")
        assert c.get("/page.php").text == "page"
        assert c.goaway is None


def test_the_offer_of_another_protocol_can_be_taken_back(server):
    needs_h2(server)
    with server.connect() as c:
        c.request("GET", "/page.php")
        found = c.response()
        assert "h2c" in (found.get("Upgrade") or "") and "Upgrade" in found.all("Connection")
    for name in ("page.php", "text.txt", "page.cgi"):
        with server.connect() as c:
            c.request("GET", f"/dir/unset/{name}")
            found = c.response()
            assert (found.status, found.get("Upgrade")) == (200, None)
    with server.connect() as c:
        c.request("GET", "/says.php?c=close")
        found = c.response()
        assert "h2c" in found.get("Upgrade") and found.all("Connection") == ["close"]


# --- errors behind the head ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def late(kind, tmp_path_factory):
    """A server with the handler of tests/e2e/mod_lateerror.c: an error of this status behind head and body."""
    so = compile_module("lateerror", tmp_path_factory.mktemp("lateerror"))
    site = Site("alice", ALICE, conf="<Location /late>\nSetHandler late-error\n</Location>\n")
    server = Httpd(sites=[site], conf=f"LoadModule lateerror_module {so}\n", **kind)
    site.write("page.php", PAGE)
    yield server.start()
    server.destroy()


@pytest.mark.pool_only
@pytest.mark.parametrize("flushed", ["", "&flush"])
@pytest.mark.parametrize("status", [400, 403, 408, 413, 500, 502, 503, 504])
def test_an_error_behind_the_head_ends_the_response_visibly(late, status, flushed):
    with late.connect() as c:
        c.request("GET", f"/late?{status}{flushed}")
        try:
            found = c.response()
            whole = found.complete and found.text == "begun"
        except Broken:
            whole = False
        assert not whole
    assert late.get("/page.php").text == "page"
    if late.mpm != "prefork":
        with H2(late, tls=True) as c:
            found = c.get(f"/late?{status}{flushed}")
            assert not found.complete or found.status == 502
            assert c.get("/page.php").text == "page"
