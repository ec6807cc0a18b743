"""Hooks of modules that work in the frontends: none that stock httpd would run for a request is lost unsaid.

Access checks of mod_fcgid and mod_wsgi stand in <Directory> and .htaccess; what mod_http2 and mod_logio do for a request
is seen by scripts, rules and logs. Each expectation here is what the reference (--reference) answers.
"""

import os
import re
import shutil
import signal
import subprocess
from base64 import b64encode
from pathlib import Path

import pytest

from harness import ALICE, H2, HTTPD, MODULE_DIR, REPO, Site, eventually, free_port, has_module
from test_config import apxs

REASON = "libapache2-mod-fcgid and libapache2-mod-wsgi-py3 are not installed"
checkers = pytest.mark.skipif(not (has_module("fcgid") and has_module("wsgi")), reason=REASON)

# A FastCGI authorizer: serves with the status in the file "verdict" beside it, and says who asked for what.
AUTHORIZER = r"""#!/usr/bin/python3
import os, socket, struct
here = os.path.dirname(os.path.abspath(__file__))
s = socket.socket(fileno=0)
def take(c, n):
    b = b""
    while len(b) < n:
        d = c.recv(n - len(b))
        if not d:
            return None
        b += d
    return b
def pairs(b):
    out, at = {}, 0
    while at < len(b):
        sizes = []
        for _ in range(2):
            if b[at] < 128:
                sizes.append(b[at]); at += 1
            else:
                sizes.append(struct.unpack(">I", b[at:at + 4])[0] & 0x7fffffff); at += 4
        name = b[at:at + sizes[0]].decode(); at += sizes[0]
        out[name] = b[at:at + sizes[1]].decode(); at += sizes[1]
    return out
while True:
    c, _ = s.accept()
    rid, params = 1, b""
    while True:
        h = take(c, 8)
        if not h:
            break
        _, kind, rid, n, pad, _ = struct.unpack("!BBHHBB", h)
        body = take(c, n + pad) if n + pad else b""
        if kind == 4 and n:
            params += body[:n]
        if kind == 4 and n == 0:
            env = pairs(params)
            wanted = open(here + "/verdict").read().split()
            ok = env.get("FCGI_APACHE_ROLE") not in wanted
            if env.get("FCGI_APACHE_ROLE") == "AUTHENTICATOR":
                ok = env.get("REMOTE_PASSWD") == "sesame"
            with open(here + "/asked", "a") as f:
                f.write("%s %d %s\n" % (env.get("FCGI_APACHE_ROLE"), os.getuid(), env.get("REMOTE_USER")))
            out = (b"Status: 200\r\n" if ok else b"Status: 403\r\n") + b"Content-Type: text/plain\r\nVariable-SEEN: yes\r\n\r\n"
            c.sendall(struct.pack("!BBHHBB", 1, 6, rid, len(out), 0, 0) + out + struct.pack("!BBHHBB", 1, 6, rid, 0, 0, 0)
                      + struct.pack("!BBHHBB", 1, 3, rid, 8, 0, 0) + struct.pack("!IB3x", 0, 0))
            break
    c.close()
"""
WSGI_CHECKS = """
import hashlib, os
def allow_access(environ, host):
    return not os.path.exists(os.path.join(os.path.dirname(__file__), "refuse"))
def check_password(environ, user, password):
    if user == "nobody":
        return None
    return password == "sesame"
def get_realm_hash(environ, user, realm):
    return hashlib.md5(("%s:%s:sesame" % (user, realm)).encode()).hexdigest() if user == "frank" else None
def groups_for_user(environ, user):
    return ["friends"] if user == "frank" else ["others"]
"""
FCGID = "FcgidIPCDir @ROOT@/run/fcgid\nFcgidProcessTableFile @ROOT@/run/fcgid_table\n"
ALIAS = """
    <AuthnProviderAlias wsgi other>
        WSGIAuthUserScript @ROOT@/sites/alice/checks/access.wsgi
    </AuthnProviderAlias>
"""
CHECKED = """
    <Directory @DOCROOT@/access>
        FcgidAccessChecker @DOCROOT@/checks/authorizer
    </Directory>
    <Directory @DOCROOT@/authz>
        AuthType Basic
        AuthName z
        AuthBasicProvider file
        AuthUserFile @DOCROOT@/.users
        FcgidAuthorizer @DOCROOT@/checks/authorizer
        Require valid-user
    </Directory>
    <Location /located>
        FcgidAccessChecker @DOCROOT@/checks/authorizer
    </Location>
    <Directory @DOCROOT@/wsgi>
        WSGIAccessScript @DOCROOT@/checks/access.wsgi
    </Directory>
    <Directory @DOCROOT@/user>
        AuthType Basic
        AuthName z
        AuthBasicProvider wsgi
        WSGIAuthUserScript @DOCROOT@/checks/access.wsgi
        Require valid-user
    </Directory>
    <Directory @DOCROOT@/alias>
        AuthType Basic
        AuthName z
        AuthBasicProvider other
        Require valid-user
    </Directory>
    <Directory @DOCROOT@/group>
        AuthType Basic
        AuthName z
        AuthBasicProvider wsgi
        WSGIAuthUserScript @DOCROOT@/checks/access.wsgi
        WSGIAuthGroupScript @DOCROOT@/checks/access.wsgi
        Require wsgi-group friends
    </Directory>
    <Directory @DOCROOT@/digest>
        AuthType Digest
        AuthName z
        AuthDigestProvider wsgi
        WSGIAuthUserScript @DOCROOT@/checks/access.wsgi
        Require valid-user
    </Directory>
"""
PLACES = [".", "access", "authz", "located", "wsgi", "user", "alias", "group", "digest", "ht-access", "ht-wsgi", "ht-user", "ht-authn"]


def basic(user, password="sesame"):
    return [("Authorization", "Basic " + b64encode(f"{user}:{password}".encode()).decode())]


def fill(site):
    for place in PLACES:
        site.write(f"{place}/p.php", "<?php echo 'served ', $_SERVER['SEEN'] ?? '-', ' ', $_SERVER['REMOTE_USER'] ?? '-';")
        site.write(f"{place}/p.txt", "served")
    site.script("checks/authorizer", AUTHORIZER)
    site.write("checks/access.wsgi", WSGI_CHECKS)
    verdict(site, "")
    passwd = subprocess.run(["openssl", "passwd", "-apr1", "sesame"], capture_output=True, text=True, check=True).stdout
    site.write(".users", f"frank:{passwd}")
    site.write("ht-access/.htaccess", f"FcgidAccessChecker {site.docroot}/checks/authorizer\n")
    site.write("ht-wsgi/.htaccess", f"WSGIAccessScript {site.docroot}/checks/access.wsgi\n")
    site.write("ht-user/.htaccess", f"AuthType Basic\nAuthName z\nAuthBasicProvider wsgi\n"
               f"WSGIAuthUserScript {site.docroot}/checks/access.wsgi\nRequire valid-user\n")
    site.write("ht-authn/.htaccess", f"AuthType Basic\nAuthName z\nAuthBasicAuthoritative off\n"
               f"AuthBasicProvider file\nAuthUserFile {site.docroot}/.none\n"
               f"FcgidAuthenticator {site.docroot}/checks/authorizer\nRequire valid-user\n")
    site.write(".none", "")


def verdict(site, roles, wsgi=False):
    """The roles in which the authorizer refuses everybody, and whether mod_wsgi's script does."""
    site.write("checks/verdict", roles)
    refuse = site.docroot / "checks/refuse"
    if wsgi:
        site.write("checks/refuse", "")
    elif refuse.exists():
        refuse.unlink()


@pytest.fixture(scope="module")
def checked(shared_httpd):
    alice = Site("alice", ALICE, conf=CHECKED)
    server = shared_httpd(sites=[alice], modules=["fcgid", "wsgi", "auth_digest", "cgi"], conf=FCGID + ALIAS)
    fill(alice)
    return server.start()


def ask(server, protocol, path, headers=()):
    if protocol == "h2":
        if server.mpm == "prefork":
            pytest.skip("prefork has no HTTP/2")
        with H2(server, tls=True) as client:
            found = client.get(path, headers=[(k.lower(), v) for k, v in headers])
    else:
        found = server.request("GET", path, headers=headers, tls=True)
    return found.status, found.text


PROTOCOLS = pytest.mark.parametrize("protocol", ["http/1.1", "h2"])


@checkers
@PROTOCOLS
@pytest.mark.parametrize("file", ["p.php", "p.txt"])
def test_checks_that_refuse_everybody(checked, protocol, file):
    site = checked.sites["alice"]
    verdict(site, "ACCESS_CHECKER AUTHORIZER", wsgi=True)
    said = {place: ask(checked, protocol, f"/{place}/{file}", basic("frank"))[0]
            for place in ["access", "authz", "located", "ht-access", "wsgi", "ht-wsgi"]}
    assert said == {"access": 401, "authz": 401, "located": 401, "ht-access": 401, "wsgi": 403, "ht-wsgi": 403}
    said = {place: ask(checked, protocol, f"/{place}/{file}", basic("frank", "wrong"))[0]
            for place in ["authz", "user", "alias", "group", "ht-user", "ht-authn"]}
    assert set(said.values()) == {401}, said
    assert ask(checked, protocol, f"/group/{file}", basic("henry"))[0] == 401
    assert ask(checked, protocol, f"/digest/{file}")[0] == 401
    # A site without checks, and a pool that asks for them now and then, go on.
    assert ask(checked, protocol, f"/{file}")[0] == 200


@checkers
@PROTOCOLS
def test_checks_that_let_pass(checked, protocol):
    site = checked.sites["alice"]
    verdict(site, "")
    expected = {"access": "yes -", "authz": "yes frank", "located": "yes -", "ht-access": "yes -", "wsgi": "- -",
                "ht-wsgi": "- -", "user": "- frank", "alias": "- frank", "group": "- frank", "ht-user": "- frank",
                "ht-authn": "yes frank"}
    said = {place: ask(checked, protocol, f"/{place}/p.php", basic("frank")) for place in expected}
    assert said == {place: (200, f"served {text}") for place, text in expected.items()}
    uid = site.owner[0]
    asked = (site.docroot / "checks/asked").read_text().splitlines()
    assert {line.split()[1] for line in asked} == {str(uid)}
    assert {"ACCESS_CHECKER", "AUTHORIZER", "AUTHENTICATOR"} == {line.split()[0] for line in asked}


@checkers
def test_digest_by_mod_wsgi(checked):
    url = f"http://127.0.0.1:{checked.port}/digest/p.php"
    found = subprocess.run(["curl", "-s", "--digest", "-u", "frank:sesame", "-H", "Host: alice.test", url, "-w", "%{http_code}"],
                           capture_output=True, text=True, timeout=20)
    assert found.stdout == "served - frank200"


@checkers
@pytest.mark.pool_only
def test_what_a_check_has_started_ends_with_its_worker(httpd):
    alice = Site("alice", ALICE, conf=CHECKED, pool_conf="PoolMaxProcesses 1\nPoolEnv TMPDIR @HOME@/tmp")
    server = httpd(sites=[alice], modules=["fcgid", "wsgi", "auth_digest"], conf=FCGID + ALIAS)
    fill(alice)
    tmp = alice.home / "tmp"
    tmp.mkdir()
    os.chown(tmp, *alice.owner)
    server.start()
    # Who has not asked for a check has no process of one, and no Python.
    assert server.get("/p.php").status == 200
    [worker] = server.workers("alice")
    assert "mod_fcgid" in Path(f"/proc/{worker.pid}/maps").read_text()
    alone = {p.pid for p in server.of_uid(ALICE)}
    assert server.get("/access/p.php").status == 200
    assert server.get("/wsgi/p.php").status == 200
    [again] = server.workers("alice")
    assert again.pid == worker.pid
    started = {p.pid for p in server.of_uid(ALICE)} - alone
    assert len(started) == 2, "a manager and a checker"
    assert len(list(tmp.iterdir())) == 1
    # None of them holds this worker's lease: the frontend hears of its death at once.
    connected = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:] if line.split()[5] == "03"}
    # Standard error is a socket, too, and is handed on.
    numbers = [n for n in os.listdir(f"/proc/{worker.pid}/fd") if n != "2"]
    links = {os.readlink(f"/proc/{worker.pid}/fd/{n}") for n in numbers} - {os.readlink(f"/proc/{worker.pid}/fd/2")}
    lease = {link for link in links if link.startswith("socket:") and link[8:-1] in connected}
    assert len(lease) == 1, lease
    for pid in started:
        held = {os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd")}
        assert not held & lease, f"{pid} holds a socket of the worker's"
    os.kill(worker.pid, 9)
    eventually(lambda: not started & {p.pid for p in server.of_uid(ALICE)}, timeout=10, what="they end")
    assert server.get("/access/p.php").status == 200


@checkers
@pytest.mark.pool_only
@PROTOCOLS
def test_a_check_that_cannot_be_made_refuses(httpd, protocol):
    alice = Site("alice", ALICE, conf=CHECKED, pool_conf="PoolEnv TMPDIR /nowhere")
    server = httpd(sites=[alice], modules=["fcgid", "wsgi", "auth_digest"],
                   conf=FCGID + ALIAS + "WSGIImportScript @ROOT@/conf/all.wsgi process-group=%{GLOBAL} application-group=%{GLOBAL}\n")
    fill(alice)
    (server.root / "conf/all.wsgi").write_text("")
    server.start()
    for place in ["access", "authz", "located", "ht-access", "wsgi", "ht-wsgi", "user", "alias", "group", "ht-user"]:
        before = server.count_log("POOL133")
        assert ask(server, protocol, f"/{place}/p.txt", basic("frank"))[0] == 500, place
        module, directive = ("mod_fcgid", "FcgidAccessChecker") if place in ("access", "authz", "located", "ht-access") \
            else ("mod_wsgi", "WSGIA")
        server.wait_for_log(rf"POOL133: \[pool alice pid \d+\] {directive}.*{module} does not start.*AssignServerPool none")
        assert server.count_log("POOL133") == before + 1
    assert ask(server, protocol, "/p.txt")[0] == 200


@checkers
@pytest.mark.pool_only
def test_daemons_of_mod_wsgi_are_not_started_in_a_pool(httpd):
    alice = Site("alice", ALICE, conf=CHECKED)
    server = httpd(sites=[alice], modules=["fcgid", "wsgi", "auth_digest"],
                   conf=FCGID + ALIAS + "WSGIDaemonProcess app processes=1 threads=1\n")
    fill(alice)
    server.start()
    assert server.get("/wsgi/p.php").status == 200
    of_alice = server.of_uid(ALICE)
    assert len(of_alice) == 2, f"a zygote and a worker: {of_alice}"


# -- mod_http2, mod_logio, mod_ssl --

STREAM_CGI = r"""#!/bin/sh
printf 'Content-Type: text/plain\n'
case "$QUERY_STRING" in
    link) printf 'Link: </pushed.txt>;rel=preload\n' ;;
    away) printf 'Location: /env.cgi\n' ;;
esac
printf '\n'
env | grep -E '(HTTP2|H2|IN_IF|SEEN)' | grep -v UNIQUE | sort
"""
STREAM_CONF = """
    <Location /early>
        H2EarlyHint Link "</hint.css>;rel=preload"
        H2PushResource /pushed.txt
    </Location>
    <Location /ttfb>
        LogIOTrackTTFB on
    </Location>
    <If "%{HTTP2} == 'on'">
        SetEnv IN_IF 1
    </If>
    <Directory @DOCROOT@/off>
        Require expr "%{HTTP2} == 'off'"
    </Directory>
    <Directory @DOCROOT@/on>
        Require expr "%{HTTP2} == 'on'"
    </Directory>
"""


def with_streams(httpd, **kind):
    alice = Site("alice", ALICE, conf=STREAM_CONF)
    server = httpd(sites=[alice], modules=["cgi"], conf="H2EarlyHints on\nH2Push on\n",
                   log_format="%U|%{HTTP2}e|%{H2_STREAM_ID}e|%^FB", **kind)
    for place in [".", "off", "on", "early", "ttfb", "rule", "ht-off"]:
        alice.script(f"{place}/env.cgi", STREAM_CGI)
    for place in [".", "off", "on", "ht-off"]:
        alice.write(f"{place}/p.txt", "served")
    alice.write("pushed.txt", "pushed")
    alice.write("hint.css", "pushed")
    alice.write(".htaccess", "AddHandler cgi-script .cgi\nAddOutputFilter INCLUDES .shtml\nOptions +Includes\n")
    alice.write("ht-off/.htaccess", "Require expr \"%{HTTP2} == 'off'\"\n")
    alice.write("rule/.htaccess", """
        RewriteEngine on
        RewriteCond %{ENV:HTTP2} on
        RewriteRule env - [E=SEEN_ENV:1]
        RewriteCond expr "%{HTTP2} == 'on'"
        RewriteRule env - [E=SEEN_EXPR:1]
    """)
    alice.write("page.shtml", '<!--#echo var="HTTP2" --> <!--#include virtual="/env.cgi" -->')
    return server.start()


@pytest.fixture(scope="module")
def streams(shared_httpd, kind):
    stock = {"mpm": "event", "with_pool": False}
    return with_streams(shared_httpd), with_streams(shared_httpd, **stock)


def variables(text):
    return re.sub(r"(STREAM_TAG=)\d+-\d+-", r"\1N-N-", text)


@pytest.mark.pool_only
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("path", ["/env.cgi", "/env.cgi?link", "/env.cgi?away", "/rule/env.cgi", "/page.shtml", "/early/env.cgi",
                                  "/on/env.cgi", "/on/p.txt", "/off/env.cgi", "/off/p.txt", "/ht-off/p.txt"])
def test_http2_in_scripts_rules_and_expressions(streams, path, tls):
    said = []
    for server in streams:
        with H2(server, tls=tls) as client:
            first, second = client.get(path), client.get(path)
        said.append([(r.status, variables(r.text) if r.status == 200 else "") for r in (first, second)])
    assert said[0] == said[1]
    if path == "/env.cgi":
        assert "HTTP2=on" in said[0][0][1] and "IN_IF=1" in said[0][0][1] and "H2_STREAM_ID=3" in said[0][1][1]
    assert said[0][0][0] == (403 if "off/" in path else 200)


@pytest.mark.pool_only
@pytest.mark.parametrize("path", ["/env.cgi", "/rule/env.cgi", "/on/p.txt", "/off/p.txt", "/ht-off/p.txt"])
def test_http1_has_none_of_it(streams, path):
    said = [server.request("GET", path, tls=True) for server in streams]
    assert [r.status for r in said] == [403 if path.startswith("/on/") else 200] * 2
    assert said[0].status == 403 or (said[0].text == said[1].text and "HTTP2" not in said[0].text)


@pytest.mark.pool_only
@pytest.mark.parametrize("path", ["/early/env.cgi", "/env.cgi?link", "/env.cgi", "/early/none"])
def test_hints_and_pushes(streams, path):
    said = []
    for server in streams:
        with H2(server, tls=True, push=True) as client:
            stream = client.start(path)
            found = client.wait(stream)
            interim = [sorted((k, v) for k, v in fields if k in (":status", "link")) for fields in found.interim]
            links = [v for k, v in found.headers if k == "link"]
            for pushed in [s for s in client.streams if s % 2 == 0]:
                assert client.wait(pushed).text == "pushed"
            pushes = re.search("H2_?PUSH=(.*)", found.text) if found.status == 200 else None
            said.append((found.status, interim, links, sorted(client.pushed), pushes and pushes.group(1)))
    assert said[0] == said[1]
    if path == "/early/env.cgi":
        assert said[0][1] and said[0][3] == ["/hint.css", "/pushed.txt"] and said[0][4] == "on"
    if path == "/env.cgi?link":
        assert said[0][3] == ["/pushed.txt"]


@pytest.mark.pool_only
def test_logs_tell_stream_and_time_to_first_byte(streams):
    for server in streams:
        with H2(server, tls=True) as client:
            client.get("/ttfb/env.cgi")
            client.get("/env.cgi")
        server.request("GET", "/ttfb/env.cgi")
        server.wait_for_log(r"(?m)^/ttfb/env.cgi\|on\|1\|\d+$", name="access.log")
        server.wait_for_log(r"(?m)^/env.cgi\|on\|3\|-$", name="access.log")
        server.wait_for_log(r"(?m)^/ttfb/env.cgi\|-\|-\|\d+$", name="access.log")


def test_strict_require(httpd):
    """What SSLRequireSSL refuses, `Satisfy any` lets a user pass, and StrictRequire does not."""
    alice = Site("alice", ALICE)
    server = httpd(sites=[alice], modules=["access_compat"])
    passwd = subprocess.run(["openssl", "passwd", "-apr1", "sesame"], capture_output=True, text=True, check=True).stdout
    alice.write(".users", f"frank:{passwd}")
    for place, options in [("strict", "+StrictRequire"), ("lax", "-StrictRequire")]:
        alice.write(f"{place}/p.txt", "served")
        alice.write(f"{place}/.htaccess", f"SSLOptions {options}\nSSLRequireSSL\nSatisfy any\nAuthType Basic\nAuthName z\n"
                    f"AuthUserFile {alice.docroot}/.users\nRequire valid-user\n")
    server.start()
    said = {place: server.request("GET", f"/{place}/p.txt", headers=basic("frank")).status for place in ("strict", "lax")}
    assert said == {"strict": 403, "lax": 200}


# -- checks that look at the URL --

@pytest.fixture(scope="module", params=["hook", "provider"])
def by_url(request, shared_httpd, tmp_path_factory):
    """A server with tests/e2e/mod_urlcheck.c, the only module whose check httpd must not skip for redirects and parts."""
    if not shutil.which("apr-1-config"):
        pytest.skip("no apr-1-config")
    so = tmp_path_factory.mktemp("urlcheck") / "mod_urlcheck.so"
    flags = subprocess.run(["apr-1-config", "--includes", "--cppflags"], capture_output=True, text=True, check=True)
    subprocess.run([apxs("CC"), "-shared", "-fPIC", *(["-DBY_HOOK"] if request.param == "hook" else []),
                    f"-I{apxs('INCLUDEDIR')}", *flags.stdout.split(), "-o", so, Path(__file__).with_name("mod_urlcheck.c")],
                   check=True)
    # Where only a <Directory> matches, stock httpd asks once for all files in it.
    location = "SetEnv seen 1" if request.param == "hook" else "Require url-not-hidden"
    conf = (f"AddOutputFilter INCLUDES .shtml\n<Location /checked>\n{location}\n</Location>\n<Directory @DOCROOT@/checked>\n"
            "RewriteEngine On\nRewriteRule ^way$ hidden.txt\nRewriteRule ^open$ plain.txt\n</Directory>\n")
    alice = Site("alice", ALICE, conf=conf)
    server = shared_httpd(sites=[alice], modules=["include"], without=["allowmethods"],
                          conf=f"LoadModule urlcheck_module {so}\n")
    alice.write("checked/plain.txt", "plain")
    alice.write("checked/hidden.txt", "hidden")
    alice.write("checked/page.shtml", '[<!--#include virtual="hidden.txt" -->][<!--#include virtual="plain.txt" -->]')
    return server.start()


def test_a_check_of_the_url_is_made_for_redirects_and_parts(by_url):
    status = {path: by_url.get(f"/checked/{path}").status for path in ("plain.txt", "open", "hidden.txt", "way")}
    assert status == {"plain.txt": 200, "open": 200, "hidden.txt": 403, "way": 403}
    assert by_url.get("/checked/page.shtml").text == "[[an error occurred while processing this directive]][plain]"


@pytest.mark.parametrize("without", [[], ["allowmethods"]], ids=["a-check-of-the-url", "none"])
def test_checks_of_an_error_document_are_those_of_stock_httpd(httpd, without):
    """Stock httpd asks again for a document with the same configuration only if some module's check looks at the URL, as
    that of mod_allowmethods does."""
    conf = "<Location /closed>\nRequire all denied\nErrorDocument 403 /closed/why.php\n</Location>\n"
    alice = Site("alice", ALICE, conf=conf)
    server = httpd(sites=[alice], without=without)
    alice.write("closed/why.php", "<?php echo 'why';")
    alice.write("closed/page.php", "<?php echo 'page';")
    server.start()
    found = server.get("/closed/page.php")
    assert found.status == 403 and (found.text == "why") == bool(without), found.text


# -- what configtest says --


@pytest.mark.skipif(not has_module("perl"), reason="libapache2-mod-perl2 is not installed")
@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
def test_mod_perl_starts_in_a_pool_and_its_handlers_refuse(httpd, kind, protocol):
    """mod_perl makes its interpreter in open_logs; an access check in Perl is made, as the pool's user."""
    if protocol == "h2" and kind["mpm"] == "prefork":
        pytest.skip("no HTTP/2 with prefork")
    server = httpd(sites=[Site("alice", ALICE, conf="""
        <Perl>
            use Apache2::RequestRec ();
            use Apache2::RequestIO ();
            package Closed;
            sub handler { my $r = shift; return $r->uri =~ /closed/ ? 403 : 0; }
            package Who;
            sub handler { my $r = shift; $r->content_type("text/plain"); $r->print("perl $>"); return 0; }
        </Perl>
        <Location />
            PerlAccessHandler Closed
        </Location>
        <Location /perl>
            SetHandler perl-script
            PerlResponseHandler Who
        </Location>
    """)], modules=["perl"])
    site = server.sites["alice"]
    site.write("page.php", "<?php echo 'php';")
    site.write("closed.txt", "closed")
    server.start()

    def ask_for(path):
        if protocol == "h2":
            with H2(server, tls=True, host=site.host) as c:
                return c.get(path)
        return server.get(path)

    for path, expected in (("/perl", (200, f"perl {site.owner[0]}")), ("/page.php", (200, "php"))):
        found = ask_for(path)
        assert (found.status, found.text) == expected
    for path in ("/closed.txt", "/closed.php", "/perl/closed"):
        assert ask_for(path).status == 403, path


@pytest.mark.pool_only
@pytest.mark.parametrize("module, hook", [
    ("access_compat", "access_checker"), ("auth_basic", "check_user_id"), ("authn_file", "authn_provider"),
    ("authz_host", "authz_provider"), ("authz_core", "auth_checker"), ("auth_digest", "check_user_id"),
])
def test_a_check_in_frontends_only_is_refused(httpd, module, hook):
    server = httpd(sites=[Site("alice", ALICE)], modules=[module], conf=f"PoolModuleRole {module}_module frontend\n")
    tested = server.configtest()
    text = tested.stdout + tested.stderr
    assert tested.returncode != 0
    assert re.search(rf"PoolModuleRole mod_{module}.c frontend: .*{hook}.*PoolModuleRole mod_{module}.c worker", text), text


@pytest.mark.pool_only
def test_another_hook_in_frontends_only_is_a_warning(httpd):
    server = httpd(sites=[Site("alice", ALICE)], conf="PoolModuleRole env_module frontend\n")
    tested = server.configtest()
    text = tested.stdout + tested.stderr
    assert tested.returncode == 0
    assert re.search(r"PoolModuleRole mod_env.c frontend: its hooks fixups do not run", text), text


def installed():
    """Name and file of each module on this machine."""
    for path in sorted(MODULE_DIR.glob("*.so")):
        names = set(re.findall(rb"[\0](\w+_module)(?=\0)", path.read_bytes()))
        yield path, sorted(n.decode() for n in names)


def all_hooks(root):
    """What mod_info says of a stock httpd with every module that loads and starts: module -> its hooks."""
    port = free_port()
    base = ["mpm_prefork", "authz_core", "info", "proxy", "dav", "ldap", "session", "cache", "watchdog", "slotmem_shm", "dbd"]
    paths = {p.name: p for p, _ in installed()}
    lines = [f"LoadModule {n}_module {paths[f'mod_{n}.so']}" for n in base if f"mod_{n}.so" in paths]
    def conf(more):
        text = (f"ServerRoot {root}\nDefaultRuntimeDir {root}\nPidFile {root}/pid\nErrorLog {root}/error\nServerName x\n"
                f"Listen 127.0.0.1:{port}\nMutex pthread\n" + "\n".join([*lines, *more]) + "\nUser #33\nGroup #33\n"
                "<IfModule mod_mime.c>\nTypesConfig /dev/null\n</IfModule>\n"
                "<IfModule mod_fcgid.c>\n" + FCGID.replace("@ROOT@/run", str(root)) + "</IfModule>\n"
                f"<IfModule mod_cgid.c>\nScriptSock {root}/sock\n</IfModule>\n"
                "<Location />\nSetHandler server-info\nRequire all granted\n</Location>\n")
        (root / "conf").write_text(text)
        return [str(HTTPD), "-f", str(root / "conf")]
    left = []
    for path, names in installed():
        if path.name.startswith(("mod_mpm", "mod_pool")) or any(f"/{path.name}" in line for line in lines):
            continue
        for name in names:
            line = f"LoadModule {name} {path}"
            if subprocess.run([*conf([line]), "-t"], capture_output=True).returncode == 0:
                left.append(line)
                break
    while True:
        started = subprocess.run([*conf(left), "-X", "-t"], capture_output=True, text=True)
        if started.returncode == 0:
            break
        # One that does not go together with another.
        bad = re.search(r"(/\S+\.so)", started.stderr)
        assert bad, started.stderr
        left = [line for line in left if bad.group(1) not in line]
    # In a session of its own, whose every process is ended: some of these modules have daemons.
    httpd = subprocess.Popen([*conf(left), "-D", "FOREGROUND"], start_new_session=True)
    try:
        def fetch():
            found = subprocess.run(["curl", "-s", f"http://127.0.0.1:{port}/i?hooks"], capture_output=True, text=True)
            return found.stdout if "Request Hooks" in found.stdout else None
        page = eventually(fetch, timeout=20, what=f"it starts: {(root / 'error').read_text() if (root / 'error').exists() else ''}")
    finally:
        os.killpg(httpd.pid, signal.SIGKILL)
        httpd.wait(timeout=20)
    hooks = {}
    for title, body in re.findall(r"<dt><strong>(.*?):</strong>(.*?)</dt>", page, re.S):
        for module in re.findall(r'href="\?(.*?)"', body):
            hooks.setdefault(module, set()).add(title)
    return hooks


# What mod_info calls them; the others run in the frontend in any case, or not for a request.
TITLES = {
    "Translate Name": "translate_name", "Map to Storage": "map_to_storage", "Header Parse": "header_parser",
    "Check Access": "access_checker_ex", "Check Access (legacy)": "access_checker", "Verify User ID": "check_user_id",
    "Note Authentication Failure": "note_auth_failure", "Verify User Access": "auth_checker", "Check Type": "type_checker",
    "Fixups": "fixups", "Insert Filters": "insert_filter", "Insert Errors": "insert_error_filter",
    "Content Handlers": "handler", "Extend Expression Parser": "expr_lookup",
}
ELSEWHERE = {
    # before translate_name, or behind the response: httpd runs them in the frontend
    "Pre-Config", "Check Configuration", "Test Configuration", "Post Configuration", "Open Logs", "Pre-MPM", "MPM",
    "Drop Privileges", "Retrieve Optional Functions", "Child Init", "Pre-Connection", "Create Connection",
    "Process Connection", "Create Request", "Pre-Read Request", "Post-Read Request", "HTTP Scheme", "Default Port",
    "Quick Handler", "Pre-Translate Name", "Transaction Logging", "Generate Log ID",
    # of no request
    "Monitor", "Child Status", "End Generation", "Error Logging", "Query MPM Attributes", "Query MPM Name",
    "Register Timed Callback", "Set Management Items", "Protocol Propose", "Protocol Switch", "Protocol Get",
    "Get MPM Name",
}


@pytest.mark.pool_only
@pytest.mark.timeout(180)
def test_every_hook_of_a_frontend_module_is_decided(scratch):
    found = all_hooks(scratch)
    assert {"mod_http2.c", "mod_ssl.c", "mod_logio.c"} <= set(found), sorted(found)
    classes = (REPO / "src/httpd/classes.rs").read_text()
    frontend = set(re.findall(r'"(\w+\.c)"', re.search(r"const FRONTEND.*?\];", classes, re.S).group(0)))
    served = set(re.findall(r'"(\w+\.c)"', re.search(r"const SERVED_BY.*?\];", classes, re.S).group(0)))
    table = (REPO / "src/httpd/dispositions.rs").read_text()
    rows = set(re.findall(r'\("(\w+\.c)", "(\w+)", (?:Frontend|Worker|Documented|Lost|Refused)\)', table))
    rows |= {(module, "handler") for module in served}
    titles = {title for of_module in found.values() for title in of_module}
    assert not titles - set(TITLES) - ELSEWHERE, "mod_info shows a hook that is new here"
    used = {(module, TITLES[title]) for module in frontend & set(found) for title in found[module] if title in TITLES}
    assert len(used) > 15, used
    assert not used - rows, "nobody has decided what becomes of these"
