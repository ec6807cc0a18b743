"""Point 5: who reads the logs by machine finds in a pool's lines what it finds in stock httpd's."""

import re
import time
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from harness import ALICE, BOB, H2, Httpd, Site, eventually, run
from test_logging import BASIC, fill

REPO = Path(__file__).resolve().parents[2]

CLIENTS = {name: f"203.0.113.{i}" for i, name in enumerate((
    "unknown", "mismatch", "digest_unknown", "digest_mismatch", "digest_realm", "denied", "not_allowed", "no_file", "no_home",
    "no_script", "no_cgi", "rule", "shell", "bad_method", "bad_uri", "bot", "fopen", "knock", "unreadable", "referer",
), 10)}
DIGEST = ('Digest username="%s", realm="safe", nonce="%s", uri="/digest/x.txt", response="' + "0" * 32 + '", algorithm=MD5, '
          'qop=auth, nc=00000001, cnonce="abc"')

CONF = """
    ErrorLog @ROOT@/logs/@NAME@-error.log
    LogLevel core:info
    AddHandler cgi-script .cgi
    ScriptAlias /cgi-bin/ @DOCROOT@/cgi-bin/
    SecRuleEngine On
    SecRule ARGS:q "@streq attack" "id:77,phase:2,deny,status:403"
    <Location /digest>
        AuthType Digest
        AuthName safe
        AuthUserFile @DOCROOT@/.htdigest
        Require valid-user
    </Location>
    <Location /denied>
        Require all denied
    </Location>
    <Location /private/admin.txt>
        Require user somebody
    </Location>
"""
SERVER_CONF = """
    RemoteIPHeader X-From
    RemoteIPInternalProxy 127.0.0.1
    SecTmpDir /tmp
    SecDataDir /tmp
"""
MODULES = ["cgi", "auth_digest", "remoteip", "security2", "unique_id"]
COMBINED = r'%a %l %u %t \"%r\" %>s %O \"%{Referer}i\" \"%{User-Agent}i\"'

# Whom each filter of Debian's fail2ban finds in the error log, and in the access log.
ERROR_FILTERS = {
    "apache-auth": ["unknown", "mismatch", "digest_unknown", "digest_mismatch", "digest_realm", "denied", "not_allowed"],
    "apache-botsearch": ["no_file", "no_script", "referer"],
    "apache-modsecurity": ["rule"],
    "apache-nohome": ["no_home"],
    "apache-noscript": ["no_script"],
    "apache-overflows": ["bad_method"],
    # httpd 2.4.71 writes "stderr from" in front, which this filter does not know.
    "apache-shellshock": [],
}
ACCESS_FILTERS = {
    "apache-badbots": ["bot"],
    # Wants a word more than httpd's own formats have.
    "apache-fakegooglebot": [],
    "apache-pass": ["knock"],
    "php-url-fopen": ["fopen"],
}


def basic(user, word):
    from base64 import b64encode

    return "Authorization", "Basic " + b64encode(f"{user}:{word}".encode()).decode()


# What each client does: method, path, header fields.
DEEDS = {
    "unknown": ("GET", "/private/page.php", [basic("nobody", "x")]),
    "mismatch": ("GET", "/private/page.php", [basic("frank", "wrong")]),
    "digest_unknown": ("GET", "/digest/x.txt", [("Authorization", DIGEST % ("nobody", "@NONCE@"))]),
    "digest_mismatch": ("GET", "/digest/x.txt", [("Authorization", DIGEST % ("frank", "@NONCE@"))]),
    "digest_realm": ("GET", "/digest/x.txt", [("Authorization", (DIGEST % ("frank", "@NONCE@")).replace("safe", "other"))]),
    "denied": ("GET", "/denied/x.txt", []),
    "not_allowed": ("GET", "/private/admin.txt", [BASIC]),
    "no_file": ("GET", "/phpmyadmin/nowhere.txt", []),
    "no_home": ("GET", "/~nobody/index.html", []),
    "no_script": ("GET", "/wp-login.php", []),
    "no_cgi": ("GET", "/cgi-bin/nowhere.pl", []),
    "rule": ("GET", "/who.php?q=attack", []),
    "shell": ("GET", "/cgi-bin/shell.cgi", []),
    "bad_method": ("FROB", "/text.txt", []),
    "bad_uri": ("GET", "/%2e%2e/%2e%2e/etc/passwd", []),
    "bot": ("GET", "/text.txt", [("User-Agent", "EmailSiphon")]),
    "fopen": ("GET", "/text.txt?page=http://198.51.100.1/x", []),
    "knock": ("GET", "/knocking/", [BASIC, ("User-Agent", "me")]),
    "unreadable": ("GET", "/closed/text.txt", []),
    "referer": ("GET", "/phpmyadmin/gone.txt", [("Referer", "http://alice.test/a")]),
}


def furnish(server):
    alice = server.sites["alice"]
    fill(alice)
    from hashlib import md5

    alice.write(".htdigest", "frank:safe:" + md5(b"frank:safe:sesame").hexdigest() + "\n")
    alice.write("digest/x.txt", "x")
    alice.write("private/admin.txt", "x")
    alice.write("knocking/.htaccess", f"AuthType Basic\nAuthName x\nAuthUserFile {alice.docroot}/.htpasswd\n"
                                      "Require valid-user\n")
    alice.write("knocking/index.html", "come in")
    alice.mkdir(alice.docroot / "closed", mode=0)
    alice.script("cgi-bin/shell.cgi", """
        #!/bin/sh
        echo '/bin/sh: warning: HTTP_X: ignoring function definition attempt' >&2
        printf 'Content-Type: text/plain\\r\\n\\r\\nok'
    """)


def ask(server, proto, name, method, path, headers):
    fields = [("X-From", CLIENTS[name]), *headers]
    if proto == "h2":
        with H2(server, tls=True) as h2:
            return h2.wait(h2.start(path, method, [(key.lower(), value) for key, value in fields]))
    return server.request(method, path, "alice", headers=fields, tls=proto == "tls")


def commit(server, proto):
    """Does all deeds. What was added to the error log and to the access log."""
    before = len(server.log("alice-error.log")), len(server.log("access.log"))
    challenge = ask(server, proto, "denied", "GET", "/digest/x.txt", [])
    nonce = re.search('nonce="([^"]+)"', challenge.get("WWW-Authenticate"))[1]
    for name, (method, path, headers) in DEEDS.items():
        ask(server, proto, name, method, path, [(key, value.replace("@NONCE@", nonce)) for key, value in headers])
    # httpd writes the access log of the last request after its answer.
    ask(server, proto, "denied", "GET", "/text.txt?the-end", [])
    eventually(lambda: "the-end" in server.log("access.log")[before[1]:], 5, what="the last line")
    time.sleep(0.3)
    return server.log("alice-error.log")[before[0]:], server.log("access.log")[before[1]:]


@cache
def stock():
    """The lines of stock prefork, by protocol."""
    sites = [Site("alice", ALICE, conf=CONF)]
    server = Httpd(mpm="prefork", with_pool=False, sites=sites, modules=MODULES, conf=SERVER_CONF, log_format=COMBINED)
    furnish(server)
    with server:
        return {proto: (*commit(server, proto), server.root) for proto in ("http", "tls")}


@pytest.fixture(scope="module")
def server(shared_httpd):
    server = shared_httpd(sites=[Site("alice", ALICE, conf=CONF)], modules=MODULES, conf=SERVER_CONF, log_format=COMBINED)
    furnish(server)
    return server.start()


@pytest.fixture(scope="module", params=["http", "tls", "h2"])
def lines(request, server, reference):
    """Error log, access log and root; of this server, and of stock httpd by HTTP/1.1: its prefork speaks no HTTP/2."""
    proto = request.param
    if proto == "h2" and reference:
        pytest.skip("httpd's prefork speaks no HTTP/2")
    errors, access = commit(server, proto)
    if proto == "h2":
        # What httpd itself says of a request by HTTP/2, before a pool has it, is about a "remote": as in stock httpd.
        errors, count = re.subn(r"\[remote (\S+\] AH10244: )", r"[client \1", errors)
        assert count == 1
        # One filter asks for HTTP/1.x.
        errors, access = (text.replace(" HTTP/2.0", " HTTP/1.1") for text in (errors, access))
    return (errors, access, server.root), stock()["http" if proto == "http" else "tls"]


def found(text, name, path, **options):
    """Addresses that a filter of fail2ban finds, and how often."""
    path.write_text(text)
    options = ",".join(f'{key}="{value}"' for key, value in options.items())
    out = run("fail2ban-regex", "-o", "ip", path, f"{name}[{options}]" if options else name, timeout=60, check=False)
    told = (out.stdout + out.stderr).decode()
    assert not re.search(r"ERROR|Traceback", told), told
    return Counter(out.stdout.decode().split())


def same(lines, what, name, tmp_path, names, change=lambda text: text):
    """The filter finds these clients in the lines of both servers, each once."""
    expected = Counter(CLIENTS[name] for name in names)
    for found_here, root in ((each[what], each[2]) for each in lines):
        options = {"webroot": f"{root}/sites/alice/"} if name == "apache-botsearch" else {}
        assert found(change(found_here), name, tmp_path / "log", **options) == expected


@pytest.mark.parametrize("name", ERROR_FILTERS)
def test_a_filter_of_fail2ban_finds_in_the_error_log_whom_it_finds_in_stock_httpds(lines, name, tmp_path):
    same(lines, 0, name, tmp_path, ERROR_FILTERS[name])


@pytest.mark.parametrize("name", ACCESS_FILTERS)
def test_a_filter_of_fail2ban_finds_in_the_access_log_whom_it_finds_in_stock_httpds(lines, name, tmp_path):
    same(lines, 1, name, tmp_path, ACCESS_FILTERS[name])


def test_a_filter_with_an_anchor_at_the_end_finds_it_too(lines, tmp_path):
    """As httpd wrote it before 2.4.63."""
    same(lines, 0, "apache-shellshock", tmp_path, ["shell"], lambda text: re.sub("stderr from [^ ]+: ", "", text))


def test_lines_of_requests_are_byte_for_byte_those_of_stock_httpd(lines):
    """But for time, process, number and path. The log of a pool has also what modules say when its processes start."""

    def masked(text, root):
        text = re.sub(r"(?m)^\[[^]]+\] (\[\w+:\w+\]) \[pid (\d+):tid \d+\]", r"\1", text)
        text = re.sub(r'\[unique_id "[^"]+"\]', "", text).replace(str(root), "ROOT")
        text = re.sub(r'\[line "\d+"\]', "", text)
        return [line for line in text.splitlines() if " [pool alice pid " not in line or "203.0.113" in line]

    pools, stocks = [masked(errors, root) for errors, _, root in lines]
    assert pools == stocks
    assert len(stocks) == 17
    assert any(line.startswith("[core:crit] (13)Permission denied: [client ") for line in stocks)


LEVELS = """
    LogLevel warn
    <Directory @DOCROOT@/told>
        LogLevel rewrite:trace3 authz_core:debug
        RewriteEngine On
        RewriteRule ^r$ page.txt
    </Directory>
    <Directory @DOCROOT@/told/hushed>
        LogLevel crit
        Require all denied
    </Directory>
"""


def leveled(server):
    """Lines of the levels that only a <Directory> asks for, without what differs from server to server."""
    alice = server.sites["alice"]
    alice.write("told/page.txt", "page")
    alice.write("told/hushed/page.txt", "hushed")
    alice.write("refused/.htaccess", "LogLevel debug\n")
    at = len(server.error_log())
    assert (server.get("/told/r").text, server.get("/told/hushed/page.txt").status) == ("page", 403)
    with H2(server, tls=True) if server.mpm != "prefork" else server.connect(tls=True) as c:
        assert c.get("/told/r").text == "page"
    assert server.get("/refused/").status == 500
    server.wait_for_log("LogLevel not allowed here", after=at)
    # A pool says nothing above crit.
    lines = server.error_log()[at:].replace(str(server.root), "ROOT").replace("[core:alert]", "[core:crit]").splitlines()
    lines = [re.sub(r"^\[[^]]+\] (\[\S+\]) \[pid \d+:tid \d+\]", r"\1", line) for line in lines if "[ssl:" not in line]
    return [re.sub(r":\d+\] |sid#\w+|rid#\w+", "] ", line) for line in lines]


def test_loglevel_of_a_directory_holds_and_lines_name_their_source(httpd):
    stock = Httpd(mpm="prefork", with_pool=False, sites=[Site("alice", ALICE, conf=LEVELS)])
    with stock:
        expected = leveled(stock)
    server = httpd(sites=[Site("alice", ALICE, conf=LEVELS)])
    server.start()
    assert leveled(server) == expected
    assert sum(line.startswith("[rewrite:trace3] mod_rewrite.c(") for line in expected) > 1
    assert sum(line.startswith("[authz_core:debug] mod_authz_core.c(") for line in expected) > 1
    assert not any("hushed" in line for line in expected)


# --- other readers ---------------------------------------------------------------------------------

# What widely used readers of httpd's error log take a line for: each is anchored at the front, some at the client.
READERS = {
    "logstash, HTTPD24_ERRORLOG": r"^\[[^]]+\] \[(?:\w+)?:\w+\] \[pid \d+(:tid \d+)?\]( \(\d+\)[^:]*:)?"
                                  r"( \[client (?P<ip>[\d.]+):\d+\])( (?P<code>AH\d+):)? (?P<text>.*)$",
    "lnav, error_log": r"^\[(?P<time>[^]]+)\] \[(?:[^:]+):(?:\w+)\] (?:\[pid \d+(?::tid \d+)?\] )?(?:\(\d+\)[^:]*: )?"
                       r"\[client (?P<ip>[\d.]+):\d+\] (?:(?P<code>AH\d+): )?(?P<text>.*)$",
    "OSSEC, apache24": r"^\[[^]]+\] \[\w+:\w+\] \[pid \d+:tid \d+\] (?:\(\d+\)[^:]*: )?\[client (?P<ip>\S+):\d+\] "
                       r"(?:(?P<code>AH\d+): )?(?P<text>.*)$",
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_finds_client_code_and_text_as_in_stock_httpds(lines, name):
    def parts(text, root):
        found = [re.match(READERS[name], line) for line in text.splitlines() if "[client " in line]
        assert all(found) and found
        return [(m["ip"], m["code"], re.sub(r'\[(unique_id|line) "[^"]+"\]', "", m["text"]).replace(str(root), "ROOT"))
                for m in found]

    pools, stocks = [parts(errors, root) for errors, _, root in lines]
    assert pools == stocks


# --- who wrote it ----------------------------------------------------------------------------------

WHO = "<?php fwrite(fopen('php://stderr', 'w'), \"by stderr\\n\"); error_log('by error_log'); echo getmypid();"


@pytest.mark.pool_only
@pytest.mark.parametrize("tls", [False, True])
def test_an_item_of_the_error_logs_format_tells_pool_and_process(httpd, tls):
    form = r'ErrorLogFormat "[%-m:%l] [%w] {%{name}w} <%-{pid}w> [client\ %a] %M"'
    once = r'ErrorLogFormat request "once: %+{name}w pid %{pid}w %L"'
    server = httpd(sites=[Site("alice", ALICE), Site("bob", BOB)], modules=["unique_id"], conf=f"{form}\n{once}\n")
    for site in server.sites.values():
        site.write("who.php", WHO)
        site.write(".htaccess", "RewriteEngine on\nRewriteRule ^looped$ /looped")
    server.start()
    for site in ("alice", "bob"):
        if tls:
            with H2(server, tls=True, host=f"{site}.test") as h2:
                pid = h2.get("/who.php").text
        else:
            pid = server.get("/who.php", site).text
        line = server.wait_for_log(rf"^.*{pid}.* by error_log$")[0]
        assert re.fullmatch(rf"\[php:notice\] \[pool {site} pid {pid}\] {{{site}}} <{pid}> \[client 127\.0\.0\.1:\d+\] "
                            "by error_log", line), line
        # Of standard error no client is known: nothing of the line is mistaken for one.
        line = server.wait_for_log(rf"^.*{pid}.* by stderr$")[0]
        assert line == f"[pool:error] [pool {site} pid {pid}] {{{site}}} <{pid}> stderr: by stderr"
        server.wait_for_log(rf"^once: {site} pid {pid} \S+$")
    # httpd's own lines have none; lines of mod_pool that speak of a pool name it in their text.
    server.get("/%2e%2e/", "alice")
    line = server.wait_for_log("^.*invalid URI path.*$")[0]
    assert re.match(r"\[core:error\] <-> \[client", line), line


@pytest.mark.pool_only
def test_the_formats_of_the_manual_do_what_it_says(httpd, tmp_path):
    manual = (REPO / "docs" / "directives.md").read_text()
    usual, once = re.findall("^ErrorLogFormat .*$", manual, re.M)
    server = httpd(sites=[Site("alice", ALICE, conf=CONF + usual), Site("bob", BOB, conf=CONF + once)],
                   modules=MODULES, conf=SERVER_CONF)
    for site in server.sites.values():
        site.write("who.php", WHO)
    server.start()
    for site in ("alice", "bob"):
        pid = server.get("/who.php", site, headers=[("Referer", "http://x.test/")]).text
        said = server.wait_for_log(r"^.* by error_log.*$", name=f"{site}-error.log")[0]
        front = r"\[\w{3} \w{3} [ \d]\d [\d:.]{15} \d{4}\] "
        who = rf"\[pool {site} pid {pid}\] " if site == "alice" else ""
        assert re.fullmatch(rf"{front}\[php:notice\] \[pid \d+:tid \d+\] {who}\[client 127\.0\.0\.1:\d+\] by error_log"
                            r", referer: http://x\.test/", said), said
        if site == "bob":
            server.wait_for_log(rf"^{front}pool bob pid {pid} \[request \S+\]$|^{front}\[pool bob pid {pid}\] \[request \S+\]$",
                                name="bob-error.log")


@pytest.mark.pool_only
@pytest.mark.parametrize("form, text", [
    ('ErrorLogFormat "%{nme}w %M"', "%{nme}w"),
    ('ErrorLogFormat connection "%{user}w"', "%{user}w"),
    ('ErrorLogFormat request "%L %{PID}w"', "%{PID}w"),
])
def test_an_item_that_mod_pool_does_not_know_is_refused(httpd, form, text):
    server = httpd(sites=[Site("alice", ALICE, conf=form)])
    server.write_conf()
    found = server.configtest()
    assert found.returncode != 0
    assert f"ErrorLogFormat: {text}: mod_pool knows %w, %{{name}}w and %{{pid}}w" in (found.stdout + found.stderr)


# --- forgery ---------------------------------------------------------------------------------------

STRANGER = "198.51.100.99"
FORGED = [
    "[client {ip}:1] AH01618: user x not found: /",
    "AH01618: user x not found: /, referer: [client {ip}:1]",
    "\n[Mon Nov 30 00:00:00.000000 2026] [core:error] [pid 1:tid 1] [client {ip}:1] AH01630: client denied by server configuration: /",
    "\r[Mon Nov 30 00:00:00.000000 2026] [core:error] [pid 1:tid 1] [client {ip}:1] AH01630: client denied by server configuration: /",
    "\x1b[2K\x1b[G[core:error] [pid 1:tid 1] [client {ip}:1] AH01630: client denied by server configuration: /",
    "[pool bob pid 1] [client {ip}:1] AH01618: user x not found: /",
    "] [client {ip}:1] ModSecurity: Access denied with code 403",
    "[client {ip}] ModSecurity: Access denied with code 403",
    "[core:error] [pid 1:tid 1] [client {ip}:1] script '/x.php' not found or unable to stat",
    "x" * 7000 + "\n[Mon Nov 30 00:00:00.000000 2026] [core:error] [pid 1:tid 1] [client {ip}:1] AH00128: File does not exist: /~x",
    "<3 mod_authz_core.c> [client {ip}:1] AH01630: client denied by server configuration: /",
    "[Mon Nov 30 00:00:00.000000 2026] [core:error] [pid 1:tid 1] [client {ip}:1] AH01630: client denied by server configuration: /",
]


@pytest.mark.pool_only
@pytest.mark.parametrize("form", ["", r'ErrorLogFormat "[%{u}t] [%-m:%l] [pid %P:tid %T] [client\ %a] %M [%w]"'])
def test_no_text_of_a_script_is_taken_for_a_line_about_another_client(httpd, form, tmp_path):
    """By error_log() it speaks of its own client, as under stock httpd; by standard error, of none."""
    server = httpd(sites=[Site("alice", ALICE, conf=CONF), Site("bob", BOB)], modules=MODULES, conf=SERVER_CONF + form)
    furnish(server)
    texts = [text.format(ip=STRANGER) for text in FORGED]
    alice = server.sites["alice"]
    alice.write("texts", "\0".join(texts))
    alice.write("say.php", """
        <?php
        $err = fopen('php://stderr', 'w');
        foreach (explode("\\0", file_get_contents('texts')) as $text) { error_log($text); fwrite($err, $text . "\\n"); }
        fwrite($err, "the end\\n");
        echo 'said';
    """)
    server.start()
    assert server.get("/say.php", headers=[("X-From", CLIENTS["denied"])]).text == "said"
    server.wait_for_log("the end", name="alice-error.log")
    log = server.log("alice-error.log")
    # Each text has come, by both ways.
    assert log.count(STRANGER) == 2 * len(texts), log
    for name in ERROR_FILTERS:
        hosts = set(found(log, name, tmp_path / "error.log", **({"webroot": ""} if "botsearch" in name else {})))
        assert STRANGER not in hosts, name
    hosts = set(found(log, "apache-auth", tmp_path / "error.log"))
    assert hosts == {CLIENTS["denied"]}
    for line in log.splitlines():
        front = re.match(r"\[\w{3} \w{3} [^]]+\] \[\w+:\w+\] \[pid (\d+):tid \d+\] ", line)
        assert front and front[1] != "1", line
        rest = line[front.end():]
        assert rest.startswith((f"[client {CLIENTS['denied']}:0] ", "[pool alice pid ", "stderr: ")), line
    assert STRANGER not in server.log("error.log")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", log)
