"""Point 5: what the access log and the error logs say, and what a tenant cannot do to them."""

import contextlib
import fcntl
import os
import re
import signal
import socket
import threading
import time
from base64 import b64encode
from hashlib import sha1
from pathlib import Path

import pytest

from harness import ALICE, BOB, H2, Later, Site, eventually, gone, has_module, in_threads
from pages import SLEEP_PHP, WHO_PHP, usual_pages

BASIC = ("Authorization", "Basic " + b64encode(b"frank:sesame").decode())

CONF = """
    AddHandler cgi-script .cgi
    ErrorLog @ROOT@/logs/@NAME@-error.log
    SetEnvIf Request_URI "quiet" dontlog
    SetEnv STATIC_ENV static
    RewriteEngine on
    RewriteRule ^/marked - [E=MARK:by-rewrite]
"""


def fill(site):
    site.write("who.php", WHO_PHP)
    site.write("sleep.php", SLEEP_PHP)
    site.write("text.txt", "0123456789")
    site.write("quiet.txt", "shh")
    site.write("marked.txt", "marked")
    digest = b64encode(sha1(b"sesame").digest()).decode()
    site.write(".htpasswd", f"frank:{{SHA}}{digest}\n")
    site.write("private/.htaccess", f"AuthType Basic\nAuthName x\nAuthUserFile {site.docroot}/.htpasswd\n"
                                    "Require valid-user\nSetEnv FROM_HTACCESS ht\n")
    site.write("private/page.php", "<?php apache_note('FROM_PHP', 'noted'); echo 'private';")
    site.write("setenv.php", "<?php apache_setenv('BY_SCRIPT', 'scripted'); echo 'x';")
    site.write("error.php", "<?php error_log('said by the script'); echo 'ok';")
    site.write("warn.php", "<?php echo $undefined; trigger_error('a warning', E_USER_WARNING); echo 'ok';")
    site.write("forge.php", """
        <?php
        error_log("first\\n[Sun Nov 22 00:00:00.000000 2026] [core:error] [pid 1:tid 1] forged line");
        error_log("escape \\x1b[31m and \\x00 nul");
        echo 'ok';
    """)
    site.write("stderr.php", "<?php fwrite(fopen('php://stderr', 'w'), \"to stderr\\n\"); echo 'ok';")
    site.script("stderr.cgi", """
        #!/bin/sh
        echo 'said by the cgi' >&2
        printf 'Content-Type: text/plain\\r\\n\\r\\nok'
    """)
    site.script("flood.cgi", """
        #!/bin/sh
        printf 'Content-Type: text/plain\\r\\n\\r\\n'
        i=0
        while [ $i -lt 20000 ]; do
            echo "flood $i xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" >&2
            i=$((i+1))
        done
        echo done
    """)
    site.write("flood.php", """
        <?php
        for ($i = 0; $i < 20000; $i++) error_log("flood $i " . str_repeat('y', 200));
        echo 'done';
    """)
    site.write("vhost.php", "<?php echo is_writable($_GET['f']) ? 'writable' : 'closed';")


LOG_FORMAT = (
    r"%v|%U%q|%m|%H|%u|%>s|%B|%f|%R|%{MARK}e|%{FROM_HTACCESS}e|%{BY_SCRIPT}e|%{FROM_PHP}n|"
    r"%{STATIC_ENV}e|%h|%{X-In}i|%{X-Out}o|%I|%D"
)
FIELDS = (
    "v uri method proto user status bytes file handler mark ht script note static host in out received took"
).split()


@pytest.fixture(scope="module")
def server(shared_httpd):
    sites = [Site("alice", ALICE, conf=CONF), Site("bob", BOB, conf=CONF)]
    server = shared_httpd(sites=sites, modules=["cgi"], log_format=LOG_FORMAT)
    for site in sites:
        fill(site)
    server.start()
    return server


def logged(server, uri, site="alice", **kw):
    """Asks for `uri` and returns its line in the access log, by field."""
    before = len(server.access_log())
    found = server.request(kw.pop("method", "GET"), uri, site, **kw)

    def look():
        for line in server.access_log()[before:]:
            fields = dict(zip(FIELDS, line.split("|")))
            if fields.get("uri") == uri:
                return fields

    return found, eventually(look, 5, what=f"{uri} in the access log")


# --- access log -------------------------------------------------------------------------------------


def test_static_file(server):
    found, line = logged(server, "/text.txt?q=1", headers=[("X-In", "in")])
    assert (line["v"], line["method"], line["proto"], line["status"]) == ("alice.test", "GET", "HTTP/1.1", "200")
    assert line["bytes"] == str(len(found.body)) == "10"
    assert line["file"] == f"{server.sites['alice'].docroot}/text.txt"
    assert (line["user"], line["host"], line["in"]) == ("-", "127.0.0.1", "in")
    assert int(line["received"]) > 50


def test_php_has_its_handler_and_file(server):
    found, line = logged(server, "/who.php")
    assert line["handler"] == "application/x-httpd-php"
    assert line["file"] == f"{server.sites['alice'].docroot}/who.php"
    assert line["bytes"] == str(len(found.body))


def test_user_and_environment_of_htaccess(server):
    _, line = logged(server, "/private/page.php", headers=[BASIC])
    assert (line["user"], line["status"], line["ht"], line["note"]) == ("frank", "200", "ht", "noted")
    _, line = logged(server, "/private/page.php")
    assert (line["user"], line["status"]) == ("-", "401")


def test_environment_of_rewrite_and_script(server):
    assert logged(server, "/marked.txt")[1]["mark"] == "by-rewrite"
    line = logged(server, "/setenv.php")[1]
    assert (line["script"], line["static"], line["mark"]) == ("scripted", "static", "-")


BROKEN_OFF_PHP = """
<?php
apache_note('FROM_PHP', 'noted');
apache_setenv('BY_SCRIPT', 'early');
if ($_GET['n'] == 'big') echo str_repeat('x', 3000000);
for ($i = 0; $i < 100; $i++) {
    echo str_repeat('x', 1000);
    flush();
    if ($_GET['n'] == 'die' && $i == 2) posix_kill(getmypid(), 9);
    usleep(50000);
}
"""


@pytest.mark.parametrize("n", ["gone", "big", "die"])
@pytest.mark.parametrize("h2", [False, True], ids=["h1", "h2"])
def test_a_response_that_breaks_off_is_logged_like_any_other(server, n, h2):
    """By the client, who goes away, or by the death of the worker."""
    breaks_off(server, n, h2)


@pytest.mark.pool_only
@pytest.mark.parametrize("n", ["gone", "big", "die"])
def test_a_parked_response_that_breaks_off_is_logged_like_any_other(httpd, n):
    server = httpd(sites=[Site("alice", ALICE, conf=CONF)], mpm="pool", modules=["cgi"], log_format=LOG_FORMAT)
    fill(server.sites["alice"])
    server.start()
    breaks_off(server, n, False)


def breaks_off(server, n, h2):
    if n == "die" and not server.with_pool:
        pytest.skip("httpd logs nothing then")
    if h2 and server.mpm == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")
    alice = server.sites["alice"]
    alice.write("private/broken.php", BROKEN_OFF_PHP)
    uri = f"/private/broken.php?n={n}&h2={int(h2)}"
    before = len(server.access_log())
    if h2:
        server.curl("-H", ": ".join(BASIC), "--max-time", "1", path=uri, http="2pk", check=False)
    else:
        with server.connect() as c:
            c.request("GET", uri, "alice.test", [BASIC])
            c.sock.recv(100)
            if n == "die":
                time.sleep(1)
    uris = lambda: [dict(zip(FIELDS, x.split("|"))) for x in server.access_log()[before:]]
    line = eventually(lambda: next((f for f in uris() if f["uri"] == uri), None), 10, what="a line in the access log")
    assert (line["user"], line["status"]) == ("frank", "200")
    assert line["file"].endswith("/private/broken.php")
    assert "php" in line["handler"]
    assert (line["script"], line["note"]) == ("early", "noted")


def test_the_handler_is_that_of_the_request_before_its_redirects(server):
    alice = server.sites["alice"]
    alice.write("moved/.htaccess", "RewriteEngine on\nRewriteRule ^old$ /who.php\n")
    line = logged(server, "/moved/old")[1]
    assert (line["handler"], line["status"]) == ("redirect-handler", "200")
    assert line["file"].endswith("/who.php")


@pytest.mark.parametrize("uri,status", [("/nowhere", "404"), ("/private/", "401"), ("/text.txt/x", "404")])
def test_error_status(server, uri, status):
    assert logged(server, uri)[1]["status"] == status


def test_304_and_head_have_no_bytes(server):
    etag = server.get("/text.txt").get("ETag")
    _, line = logged(server, "/text.txt?304", headers=[("If-None-Match", etag)])
    assert (line["status"], line["bytes"]) == ("304", "0")
    _, line = logged(server, "/text.txt?head", method="HEAD")
    assert (line["method"], line["bytes"]) == ("HEAD", "0")


def test_duration_covers_the_script(server):
    _, line = logged(server, "/sleep.php?s=0.3")
    assert 300_000 <= int(line["took"]) < 3_000_000


def test_one_line_per_request(server):
    before = len(server.access_log())
    with server.connect() as c:
        for i in range(20):
            c.get(f"/text.txt?n={i}")
    eventually(lambda: len(server.access_log()) >= before + 20, 5)
    time.sleep(0.3)
    uris = [line.split("|")[1] for line in server.access_log()[before:]]
    assert uris == [f"/text.txt?n={i}" for i in range(20)]


def test_line_of_an_http2_request(server):
    if server.mpm == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")
    with H2(server) as c:
        c.get("/who.php?h2=1")
    line = server.wait_for_log(r"^alice\.test\|/who\.php\?h2=1\|GET\|HTTP/2\.0\|-\|200\|", name="access.log")
    assert line


def test_conditional_log_by_environment(httpd):
    alice = Site("alice", ALICE, conf=CONF + "CustomLog @ROOT@/logs/cond.log test env=!dontlog\n"
                                             "CustomLog @ROOT@/logs/mark.log test env=MARK\n")
    server = httpd(sites=[alice], modules=["cgi"], log_format="%U %>s")
    fill(alice)
    server.start()
    with server.connect() as c:
        for path in ("/quiet.txt", "/marked.txt", "/text.txt"):
            assert c.get(path).status == 200
    server.wait_for_log(r"/text\.txt", name="cond.log")
    assert server.log("cond.log") == "/marked.txt 200\n/text.txt 200\n"
    assert server.log("mark.log") == "/marked.txt 200\n"


def test_the_type_of_a_response_is_that_of_prefork(httpd):
    """Loggers find it in the request: without parameters in a format, and as CONTENT_TYPE in a condition."""
    alice = Site("alice", ALICE, conf=CONF + 'CustomLog @ROOT@/logs/type.log "%U %{Content-Type}o"\n'
                                             "CustomLog @ROOT@/logs/plain.log %U \"expr=%{CONTENT_TYPE} =~ m#^text/plain#\"\n")
    server = httpd(sites=[alice], modules=["cgi"])
    fill(alice)
    alice.write("charset.php", "<?php header('Content-Type: text/plain; charset=utf-8'); echo 'x';")
    server.start()
    paths = ["/text.txt", "/charset.php", "/who.php", "/nowhere"]
    with server.connect() as c:
        for path in paths:
            c.get(path)
        assert c.get("/charset.php").get("Content-Type") == "text/plain; charset=utf-8"
    eventually(lambda: server.log("type.log").count("\n") == 5, 5)
    lines = server.log("type.log").splitlines()
    assert lines[:2] == ["/text.txt text/plain", "/charset.php text/plain"]
    assert lines[3:] == ["/nowhere text/html", "/charset.php text/plain"]
    assert server.log("plain.log").split() == ["/text.txt", "/charset.php", "/charset.php"]


def test_variables_that_each_script_has_are_logged_where_a_log_asks(httpd):
    names = ["REQUEST_METHOD", "SCRIPT_NAME", "HTTP_HOST", "QUERY_STRING", "REDIRECT_STATUS", "HTTPS", "SSL_PROTOCOL"]
    form = "|".join(f"%{{{name}}}e" for name in names)
    alice = Site("alice", ALICE, conf=CONF + f'CustomLog @ROOT@/logs/env.log "%U|{form}"\n'
                                             "CustomLog @ROOT@/logs/tls.log %U env=HTTPS\n"
                                             "ErrorDocument 404 /who.php\n",
                 tls_conf="SSLOptions +StdEnvVars\n")
    server = httpd(sites=[alice], modules=["cgi"])
    fill(alice)
    server.start()
    for count, (path, tls) in enumerate((("/who.php?a=b", False), ("/who.php", True), ("/text.txt", True), ("/nowhere", False)), 1):
        server.get(path, tls=tls)
        # A line is written behind its response; that of the next connection could come first.
        eventually(lambda: server.log("env.log").count("\n") == count, 5)
    lines = server.log("env.log").splitlines()
    assert lines[0] == "/who.php|GET|/who.php|alice.test|a=b|-|-|-"
    assert re.fullmatch(r"/who\.php\|GET\|/who\.php\|alice\.test\|\|-\|on\|TLSv1\.[23]", lines[1]), lines[1]
    assert re.fullmatch(r"/text\.txt\|-\|-\|-\|-\|-\|on\|TLSv1\.[23]", lines[2]), lines[2]
    assert lines[3] == "/nowhere|GET|/who.php|alice.test||404|-|-"
    assert server.log("tls.log").split() == ["/who.php", "/text.txt"]


@pytest.mark.pool_only
class TestPoolNotes:
    @pytest.fixture(scope="class")
    def noted(self, shared_httpd):
        alice = Site("alice", ALICE, pool_conf="PoolMaxProcesses 1\nPoolIdleTimeout 60s")
        server = shared_httpd(
            sites=[alice], log_format="%U%q|%{pool-name}n|%{pool-pid}n|%{pool-wait}n|%{pool-cold}n|%u"
        )
        fill(alice)
        return server.start()

    def line(self, server, uri):
        return server.wait_for_log("^" + re.escape(uri) + r"\|(.*)\|(.*)\|(.*)\|(.*)\|", name="access.log").groups()

    def test_name_pid_wait_cold(self, noted):
        first = noted.get("/who.php?n=1").json()["pid"]
        name, pid, wait, cold = self.line(noted, "/who.php?n=1")
        assert (name, int(pid)) == ("alice", first)
        assert int(wait) > 0
        assert cold not in ("-", "", "0")
        noted.get("/who.php?n=2")
        name, pid, wait, cold = self.line(noted, "/who.php?n=2")
        assert (name, int(pid)) == ("alice", first)
        assert cold in ("-", "", "0")
        assert int(wait) < 100_000

    def test_wait_says_how_long_a_request_queued(self, noted):
        noted.get("/who.php")
        in_threads(2, lambda i: noted.get(f"/sleep.php?s=0.5&i={i}"))
        waits = sorted(int(self.line(noted, f"/sleep.php?s=0.5&i={i}")[2]) for i in range(2))
        assert waits[0] < 300_000
        assert 300_000 < waits[1] < 2_000_000


@pytest.mark.pool_only
def test_a_script_cannot_lie_about_the_pool(httpd):
    alice = Site("alice", ALICE)
    server = httpd(sites=[alice], log_format="%U|%{pool-name}n|%{pool-pid}n")
    alice.write("lie.php", "<?php apache_note('pool-name', 'bob'); apache_note('pool-pid', '1'); echo getmypid();")
    server.start()
    pid = server.get("/lie.php").text
    server.wait_for_log(rf"^/lie\.php\|alice\|{pid}$", name="access.log")


@pytest.mark.pool_only
def test_notes_that_steer_httpd_have_no_effect(httpd):
    """A worker may not switch the frontend's logging or keep-alive by a note or variable."""
    alice = Site("alice", ALICE)
    server = httpd(sites=[alice], log_format="%U %s")
    alice.write("steer.php", """
        <?php
        foreach (['error-notes', 'ssl-access-forbidden', 'short-lingering-close'] as $n) apache_note($n, '<b>x</b>');
        http_response_code(404);
    """)
    server.start()
    with server.connect() as c:
        assert c.get("/steer.php").status == 404
        assert c.get("/steer.php").status == 404


# --- error logs -------------------------------------------------------------------------------------


def errors(server, site="alice"):
    return server.log(f"{site}-error.log")


@pytest.mark.parametrize("path,regex", [
    ("/error.php", r"said by the script"),
    ("/stderr.cgi", r"said by the cgi"),
    ("/warn.php", r"PHP Warning.*a warning"),
])
def test_errors_land_in_the_log_of_their_virtual_host(server, path, regex):
    for site, other in (("alice", "bob"), ("bob", "alice")):
        at, at_other = len(errors(server, site)), len(errors(server, other))
        assert server.get(path, site).text.endswith("ok")
        server.wait_for_log(regex, name=f"{site}-error.log", after=at)
        assert not re.search(regex, errors(server, other)[at_other:])


LAST_WORDS_PHP = """
<?php
error_log('last words ' . $_GET['n']);
if ($_GET['n'] == 'warning') echo $undefined;
if ($_GET['n'] == 'sleep') { sleep(4); header('X-After: yes'); http_response_code(201); echo 'slept'; }
else posix_kill(getmypid(), 9);
"""


@pytest.mark.parametrize("n", ["kill", "warning"])
def test_what_a_script_says_before_it_dies_is_in_the_log(server, n):
    server.sites["alice"].write("words.php", LAST_WORDS_PHP)
    at = len(errors(server))
    found = server.try_get(f"/words.php?n={n}")
    assert found is None or found.status == 502
    server.wait_for_log(rf"last words {n}", name="alice-error.log", after=at)
    if n == "warning":
        server.wait_for_log("PHP Warning.*undefined", name="alice-error.log", after=at)
    assert server.count_log(f"last words {n}", "alice-error.log") == 1


def test_what_a_script_says_is_in_the_log_while_it_runs(server):
    """At once, as httpd itself logs; and the script may still choose status and fields behind it."""
    server.sites["alice"].write("words.php", LAST_WORDS_PHP)
    at = len(errors(server))
    start = time.monotonic()
    asking = Later(server.get, "/words.php?n=sleep")
    server.wait_for_log("last words sleep", name="alice-error.log", after=at)
    assert time.monotonic() - start < 2
    found = asking.result()
    assert (found.status, found.get("X-After"), found.text) == (201, "yes", "slept")


@pytest.mark.pool_only
def test_error_lines_carry_client_pool_and_pid(httpd):
    """The client always, as in stock httpd; pool and pid where the format asks for them (test_log_parsers.py has more)."""
    asked = CONF + r'ErrorLogFormat "[%w] [client\ %a] %M"'
    server = httpd(sites=[Site("alice", ALICE, conf=asked), Site("bob", BOB, conf=CONF)], modules=["cgi"])
    for site in server.sites.values():
        fill(site)
    server.start()
    server.get("/error.php")
    line = server.wait_for_log(r"^.*said by the script.*$", name="alice-error.log")[0]
    found = re.fullmatch(r"\[pool alice pid (\d+)\] \[client 127\.0\.0\.1:\d+\] said by the script", line)
    assert found and int(found[1]) in {p.pid for p in server.workers("alice")}, line
    server.get("/error.php", "bob")
    line = server.wait_for_log(r"^.*said by the script.*$", name="bob-error.log")[0]
    assert re.fullmatch(r"\[[^]]+\] \[php:notice\] \[pid \d+:tid \d+\] \[client 127\.0\.0\.1:\d+\] said by the script", line), line


def test_denied_request_is_logged_at_its_virtual_host(server):
    server.sites["alice"].write("denied/.htaccess", "Require all denied\n")
    server.sites["alice"].write("denied/x.txt", "x")
    at = len(errors(server))
    assert server.get("/denied/x.txt").status == 403
    server.wait_for_log(r"AH01630: client denied by server configuration: .*/denied/x\.txt",
                        name="alice-error.log", after=at)


@pytest.mark.pool_only
def test_a_line_break_cannot_forge_a_line(server):
    at = len(errors(server))
    server.get("/forge.php")
    server.wait_for_log("forged line", name="alice-error.log", after=at)
    text = errors(server)[at:]
    assert not re.search(r"^\[Sun Nov 22 00:00:00", text, re.M)
    assert "\x1b" not in text and "\0" not in text


@pytest.mark.pool_only
def test_stderr_of_php_does_not_reach_another_log(server):
    before = errors(server, "bob") + server.log("console.log")
    assert server.get("/stderr.php").text == "ok"
    time.sleep(0.5)
    assert errors(server, "bob") + server.log("console.log") == before


@pytest.mark.pool_only
@pytest.mark.skipif(not has_module("security2"), reason="mod_security2 is not installed")
def test_what_modules_log_at_a_pools_start_keeps_module_and_level(httpd):
    server = httpd(sites=[Site("alice", ALICE)], modules=["security2", "unique_id"],
                   conf="SecTmpDir /tmp\nSecDataDir /tmp\n")
    fill(server.sites["alice"])
    server.start()
    at = len(server.error_log())
    pid = server.get("/who.php").json()["pid"]
    line = server.wait_for_log(r"^.*\[pool alice pid (\d+)\] ModSecurity for Apache.*$", after=at)
    assert "[security2:notice]" in line[0] and int(line[1]) != pid
    told = server.error_log()[at:]
    assert "[pool:error]" not in told
    assert len(re.findall(r"ModSecurity: APR compiled version", told)) == 1


@pytest.mark.pool_only
def test_a_script_cannot_forge_the_front_of_a_line_by_its_standard_error(server):
    at = len(errors(server))
    text = "<4 mod_ssl.c> [pool bob pid 1] forged\\n<0 core.c\\x1b> half\\n<0 core.c> the end is near\\n"
    alice = server.sites["alice"]
    alice.write("mark.php", f'<?php fwrite(fopen("php://stderr", "w"), "{text}"); echo getmypid();')
    pid = server.get("/mark.php").text
    # Module and level it may choose, in its own log and behind its own name.
    line = server.wait_for_log(r"^.*forged$", name="alice-error.log", after=at)[0]
    assert re.search(rf"\[ssl:warn\] .*\[pool alice pid {pid}\] \[pool bob pid 1\] forged$", line), line
    line = server.wait_for_log(r"^.* half$", name="alice-error.log", after=at)[0]
    assert re.search(rf"\[pool:error\] .*\[pool alice pid {pid}\] <0 core", line), line
    # What is above crit goes to every terminal, by way of syslog.
    assert "[core:crit]" in server.wait_for_log(r"^.* the end is near$", name="alice-error.log", after=at)[0]
    assert "forged" not in errors(server, "bob")


@pytest.mark.pool_only
def test_lines_of_cgi_have_a_module_where_only_mod_cgid_is_loaded(httpd):
    server = httpd(sites=[Site("alice", ALICE, conf=CONF)], modules=["cgid"], conf="ScriptSock @ROOT@/run/cgisock\n")
    fill(server.sites["alice"])
    server.start()
    assert server.get("/stderr.cgi").text.endswith("ok")
    line = server.wait_for_log("^.*said by the cgi", name="alice-error.log")[0]
    assert "[cgid:error]" in line and "AH01215" in line


@pytest.mark.pool_only
def test_several_virtual_hosts_of_a_pool(httpd):
    """What belongs to a request gets into the log of its virtual host, the rest into that of the first one."""
    sites = [Site(name, ALICE, conf=CONF, pool="alice") for name in ("one", "two", "three")]
    server = httpd(sites=sites, modules=["cgi"])
    server.start()
    script = "<?php error_log('by error_log'); fwrite(fopen('php://stderr', 'w'), \"by stderr\\n\"); echo 'ok';"
    sites[1].write("both.php", script)
    assert server.get("/both.php", "two").text == "ok"
    server.wait_for_log("by error_log", name="two-error.log")
    server.wait_for_log("by stderr", name="one-error.log")
    assert not re.search("by (stderr|error_log)", server.log("three-error.log") + server.error_log())


@pytest.mark.pool_only
def test_a_worker_cannot_write_any_log_file(server):
    for name in ("error.log", "access.log", "alice-error.log", "bob-error.log"):
        assert server.get(f"/vhost.php?f={server.root}/logs/{name}").text == "closed"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("script", ["/flood.cgi", "/flood.php"])
def test_flooding_ones_own_log_stalls_nobody_else(server, script):
    if not server.with_pool and script == "/flood.php":
        pytest.skip("the reference has no pools to keep apart")
    slowest = 0.0
    box = []
    flood = threading.Thread(target=lambda: box.append(server.get(script, timeout=100)), daemon=True)
    flood.start()
    until = time.monotonic() + 3
    while flood.is_alive() and time.monotonic() < until:
        start = time.monotonic()
        assert server.get("/text.txt", "bob").status == 200
        slowest = max(slowest, time.monotonic() - start)
    flood.join(100)
    assert box and box[0].text.strip().endswith("done")
    assert slowest < 1.5


SLOW_LOGGER = """
#!/bin/sh
# Reads much less than a pool may write to its standard error.
while dd bs=1000 count=1 2>/dev/null | grep -q .; do sleep 0.5; done
"""


@pytest.mark.pool_only
@pytest.mark.timeout(120)
def test_flooding_a_log_that_is_written_slowly_stalls_nobody_else(httpd):
    alice = Site("alice", ALICE, conf='ErrorLog "|@ROOT@/slow"\n')
    bob = Site("bob", BOB)
    server = httpd(sites=[alice, bob])
    fill(alice), fill(bob)
    logger = server.root / "slow"
    logger.write_text(SLOW_LOGGER.lstrip())
    logger.chmod(0o755)
    alice.write("stderr-flood.php", """
        <?php
        $e = fopen('php://stderr', 'w');
        while (!connection_aborted()) { for ($i = 0; $i < 60; $i++) fwrite($e, str_repeat('z', 1000) . "\\n");
                                        echo ' '; flush(); sleep(1); }
    """)
    server.start()
    assert server.get("/text.txt", "bob").status == 200
    with server.connect() as c:
        c.request("GET", "/stderr-flood.php", "alice.test")
        # More than the logger's pipe takes.
        time.sleep(3)
        slowest = 0.0
        until = time.monotonic() + 6
        while time.monotonic() < until:
            # A new worker has to be asked of the controller.
            eventually(lambda old=server.kill("worker", "bob"): gone(*old), 10)
            start = time.monotonic()
            assert server.get("/text.txt", "bob", timeout=60).status == 200
            slowest = max(slowest, time.monotonic() - start)
        assert slowest < 1.5


def test_piped_error_log_gets_the_lines(httpd):
    alice = Site("alice", ALICE, plain_conf="""
        ErrorLog "|/usr/bin/tee -a @ROOT@/logs/piped.log"
        CustomLog "|/usr/bin/tee -a @ROOT@/logs/piped-access.log" test
    """)
    bob = Site("bob", BOB)
    server = httpd(sites=[alice, bob], log_format="%v %U")
    fill(alice), fill(bob)
    server.start()
    assert server.get("/error.php").text == "ok"
    server.wait_for_log("said by the script", name="piped.log")
    server.wait_for_log(r"^alice\.test /error\.php$", name="piped-access.log")
    assert server.get("/error.php", "bob").text == "ok"
    server.wait_for_log("said by the script", name="error.log")
    assert server.count_log("said by the script", "piped.log") == 1
    # One logger for each of the two pipes: neither the seed nor a zygote started more.
    loggers = [p for p in server.processes() if p.title.startswith("/usr/bin/tee")]
    assert [p.uid for p in loggers] == [0, 0]


@pytest.mark.pool_only
def test_error_log_format_applies(httpd):
    alice = Site("alice", ALICE, conf=CONF)
    server = httpd(sites=[alice], modules=["cgi"],
                   conf='ErrorLogFormat "FORMAT [%l] %v [client %a] %M"\n')
    fill(alice)
    server.start()
    server.get("/error.php")
    server.wait_for_log(r"^FORMAT \[\w+\] alice\.test \[client 127\.0\.0\.1:\d+\] .*said by the script",
                        name="alice-error.log")


def test_php_display_and_fatal_error(server):
    alice = server.sites["alice"]
    alice.write("fatal.php", "<?php undefined_function();")
    at = len(errors(server))
    assert server.get("/fatal.php").status == 500
    server.wait_for_log(r"PHP Fatal error: .*undefined_function", name="alice-error.log", after=at)


@contextlib.contextmanager
def only_one(directory, patience=80):
    """Keeps other processes that run these tests from what there is one of on a machine."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        def take():
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        eventually(take, patience, what=f"{directory}, which another test has")
        yield
    finally:
        os.close(descriptor)


@pytest.fixture
def syslogd():
    """Makes what syslogd is to its clients, where this machine has none: called, it gives the lines that came."""
    path, lines = Path("/dev/log"), []
    with only_one(path.parent), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        try:
            with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
                other.connect(str(path))
            s.bind(str(path))
        except ConnectionRefusedError:  # a run that was killed has left it
            path.unlink()
            s.bind(str(path))
        except OSError as e:
            pytest.skip(f"needs a machine without syslogd: {e}")
        path.chmod(0o666)
        s.setblocking(False)

        def read():
            with contextlib.suppress(BlockingIOError):
                while True:
                    lines.append(s.recv(65536).decode())
            return lines

        yield read
        path.unlink()


@pytest.mark.pool_only
@pytest.mark.parametrize("mpm", ["event", "pool"])
def test_what_the_controller_says_goes_to_syslog_where_the_error_log_does(httpd, mpm, syslogd):
    server = httpd(sites=[Site("alice", ALICE)], mpm=mpm)
    usual_pages(server.sites["alice"])
    server.sites["alice"].write("error.php", "<?php error_log('by the script'); echo 'ok';")
    server.start()
    server.extra += "ErrorLog syslog:local3:web\nLogLevel notice\n"
    server.write_conf()
    server.signal(signal.SIGUSR1)
    eventually(lambda: any("by the script" in line for line in syslogd()) or not server.get("/error.php"), 10)
    said = lambda text: [line for line in syslogd() if text in line]
    # <155>: local3, error.
    form = r"<155>\w{3} [ \d]\d [\d:]{8} web\[(\d+)\]: \[pool:error\] \[pid \1\] mod_pool: the seed of configuration 2 died: signal 9"
    eventually(lambda: len(server.processes("seed")) == 1, 10, what="the end of the first one")
    server.kill("seed")
    eventually(lambda: said("the seed of"), what="the controller's line")
    assert [bool(re.fullmatch(form, line)) for line in said("the seed of")] == [True]
    server.kill("controller")
    eventually(lambda: server.processes("controller") and server.processes("seed"), 10)
    server.kill("seed")
    eventually(lambda: len(said("died: signal 9")) == 2, what="the next controller's line")
    # Back to a file.
    at = len(server.error_log())
    server.extra = ""
    before = {p.pid for p in server.processes("seed")}
    server.graceful()
    eventually(lambda: {p.pid for p in server.processes("seed")} - before, 10, what="the seed of configuration 3")
    server.kill("seed")
    server.wait_for_log("mod_pool: the seed of configuration 3 died", after=at)
    assert len(said("died: signal 9")) == 2


@pytest.mark.pool_only
@pytest.mark.parametrize("mpm", ["event", "pool"])
def test_with_one_process_each_controller_and_its_keeper_say_it_to_syslog(httpd, mpm, syslogd):
    """httpd says once where the error log is, to the keeper: nobody else starts controllers."""
    server = httpd(sites=[Site("alice", ALICE)], mpm=mpm, conf="ErrorLog syslog:local3:web\nLogLevel notice\n")
    usual_pages(server.sites["alice"])
    server.start(mode="single")
    said = lambda text: [line for line in syslogd() if text in line]
    server.kill("controller")
    eventually(lambda: said("the controller died: signal 9"), what="the keeper's line")
    eventually(lambda: server.processes("controller") and server.processes("seed"), 10)
    server.kill("seed")
    eventually(lambda: said("the seed of configuration 1 died: signal 9"), what="the next controller's line")
