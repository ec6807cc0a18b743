"""Point 4, last sentence: CGI variables are the same as under prefork, every one of them.

Two servers, one with pools and one stock prefork, have the same tree and certificates. What a CGI and
a PHP script see is compared name by name. Under --reference both are prefork: that shows the mask is right.
"""

import os
import re
import shutil
from base64 import b64encode
from hashlib import sha1
from types import SimpleNamespace

import pytest

from harness import ALICE, Httpd, Site, make_certificate
from pages import ENV_CGI, SERVER_PHP

# What differs from request to request, or is said of the process.
MASKED = {"REMOTE_PORT", "UNIQUE_ID", "REQUEST_TIME", "REQUEST_TIME_FLOAT", "SSL_SESSION_ID",
          "SSL_SESSION_RESUMED", "SSL_CLIENT_V_REMAIN"}

CONF = """
    ServerAlias alias.test *.wild.test
    ServerAdmin root@alice.test
    AddHandler cgi-script .cgi
    ScriptAlias /bin/ @DOCROOT@/bin/
    SetEnv FROM_VHOST yes
    SetEnv EMPTY ""
    PassEnv PASSED_ON NEVER_SET
    SetEnvIf User-Agent "^Robot" IS_ROBOT=1
    SetEnvIfNoCase X-Case "^abc" SEEN_CASE
    BrowserMatch "Old" old_browser
    UnsetEnv TAKEN_AWAY
    RequestHeader set X-Added "by the vhost"
    RequestHeader edit X-Edit before after
    RewriteEngine on
    RewriteRule ^/pretty/(\\w+) /env.@EXT@?word=$1 [E=REWRITTEN:$1,QSA,PT]
    ErrorDocument 404 /env.php?missing
    RemoteIPHeader X-Client-IP
    RemoteIPInternalProxy 127.0.0.1
    <Location /auth>
        AuthType Basic
        AuthName here
        AuthUserFile @DOCROOT@/.htpasswd
        Require valid-user
        SetEnv IN_LOCATION 1
    </Location>
    <Location /passauth>
        CGIPassAuth on
    </Location>
    <Location /canonical>
        UseCanonicalName on
        UseCanonicalPhysicalPort on
    </Location>
    <If "%{HTTP:X-If} == 'yes'">
        SetEnv FROM_IF 1
    </If>
"""
TLS_CONF = """
    SSLCACertificateFile @ROOT@/tls/ca.pem
    SSLVerifyClient optional
    SSLOptions +StdEnvVars
    <Location /export>
        SSLOptions +StdEnvVars +ExportCertData
    </Location>
    <Location /nostd>
        SSLOptions -StdEnvVars
    </Location>
    <Location /fake>
        SSLUserName SSL_CLIENT_S_DN_CN
    </Location>
"""

DIRECTORIES = ["", "auth/", "passauth/", "canonical/", "export/", "nostd/", "fake/", "ht/"]


def fill(site):
    for directory in DIRECTORIES:
        site.write(directory + "env.php", SERVER_PHP)
        site.script(directory + "env.cgi", ENV_CGI)
    site.script("bin/env", ENV_CGI)
    site.write("ht/.htaccess", """
        SetEnv FROM_HTACCESS 1
        SetEnvIf Host . HOST_SEEN=1
        RequestHeader append X-Added "and htaccess"
        RewriteEngine on
        RewriteRule ^short\\.(\\w+)$ env.$1 [E=HT_REWRITTEN:1,L]
    """)
    digest = b64encode(sha1(b"sesame").digest()).decode()
    site.write(".htpasswd", f"frank:{{SHA}}{digest}\n")


def make(kind, tls_from=None):
    alice = Site("alice", ALICE, conf=CONF.replace("@EXT@", "php"), tls_conf=TLS_CONF)
    server = Httpd(
        sites=[alice], modules=["cgi", "remoteip", "unique_id", "actions"], conf="ServerTokens Full\n",
        env={"PASSED_ON": "from outside", "SECRET_OF_THE_PARENT": "never"}, **kind,
    )
    tls = server.root / "tls"
    if tls_from:
        shutil.copytree(tls_from.root / "tls", tls, dirs_exist_ok=True)
    else:
        make_certificate(tls / "ca.pem", tls / "ca.key", "test CA", is_ca=True)
        make_certificate(tls / "frank.pem", tls / "frank.key", "frank", ca=(tls / "ca.pem", tls / "ca.key"))
        server.make_certificate()
    fill(alice)
    return server


@pytest.fixture(scope="module")
def pair(kind):
    tested = make(kind)
    stock = make({"mpm": "prefork", "with_pool": False}, tls_from=tested)
    try:
        yield tested.start(), stock.start()
    finally:
        try:
            tested.destroy()
        finally:
            stock.destroy()


def ask(server, path, frank=False, method="GET", host="alice.test", **kw):
    if frank:
        kw["client_cert"] = (server.root / "tls/frank.pem", server.root / "tls/frank.key")
    found = server.request(method, path, host, **kw)
    if found.get("Content-Type").startswith("application/json"):
        env = {k: str(v) for k, v in found.json().items()}
    else:
        assert found.status in (200, 404), found
        assert found.get("Content-Type") == "application/octet-stream"
        env = dict(e.split("=", 1) for e in found.body.decode("latin-1").split("\0") if e)
    return {k: "*" if k.removeprefix("REDIRECT_") in MASKED else plain(server, v) for k, v in env.items()}


def plain(server, value):
    """The value without what differs between two servers. A port is a number of its own, not a part of another one."""
    value = value.replace(str(server.root), "ROOT")
    for name in ("tls_port", "port"):
        if number := getattr(server, name):
            value = re.sub(rf"(?<!\d){number}(?!\d)", name.upper(), value)
    return value


def test_a_serial_number_that_contains_a_port_is_left_alone():
    server = SimpleNamespace(root="/r", port=38432, tls_port=44300)
    assert plain(server, "197847842038432223582793") == "197847842038432223582793"
    assert plain(server, "http://a.test:38432/r:44300") == "http://a.test:PORTROOT:TLS_PORT"


def difference(left, right):
    """What is only here, only there, or differs; readable in a failed assertion."""
    out = []
    for key in sorted(left.keys() | right.keys()):
        if left.get(key) != right.get(key):
            out.append(f"{key}: pool {left.get(key)!r}, prefork {right.get(key)!r}")
    return out


BASIC = ("Authorization", "Basic " + b64encode(b"frank:sesame").decode())
ROBOT = ("User-Agent", "Robot/1.0 Old")
FORM = ("Content-Type", "application/x-www-form-urlencoded")

CASES = {
    "plain": dict(path="/env.EXT"),
    "query": dict(path="/env.EXT?a=1&b=%41%20c&=&d"),
    "question-only": dict(path="/env.EXT?"),
    "path-info": dict(path="/env.EXT/more/info%20here?x=%2f"),
    "path-info-dots": dict(path="/env.EXT/a/../b//c"),
    "double-slash": dict(path="//env.EXT"),
    "encoded-name": dict(path="/%65nv.EXT?z"),
    "http10": dict(path="/env.EXT", version="HTTP/1.0"),
    "alias-host": dict(path="/env.EXT", host="alias.test"),
    "wild-host": dict(path="/env.EXT", host="any.wild.test"),
    "host-with-port": dict(path="/env.EXT", host="alice.test:8080"),
    "host-upper-case": dict(path="/env.EXT", host="ALICE.test"),
    "canonical-name": dict(path="/canonical/env.EXT", host="alias.test:8080"),
    "absolute-uri": dict(path="http://alice.test/env.EXT?abs"),
    "headers": dict(path="/env.EXT", headers=[
        ROBOT, ("X-Case", "ABCdef"), ("X-Edit", "before"), ("Proxy", "evil"), ("X_Under", "dropped"),
        ("X-Twice", "1"), ("X-Twice", "2"), ("Cookie", "a=1"), ("Cookie", "b=2"), ("Accept", "*/*"),
        ("X-Empty", ""), ("X-If", "yes"), ("Referer", "http://r.test/\u00e9".encode().decode("latin-1")
                                          .encode("ascii", "replace").decode()),
        ("Accept-Encoding", "gzip, br"), ("TE", "trailers"), ("Upgrade-Insecure-Requests", "1")]),
    "hop-by-hop": dict(path="/env.EXT", headers=[("Connection", "close, X-Hop"), ("X-Hop", "v"),
                                                 ("Keep-Alive", "300")]),
    "auth": dict(path="/auth/env.EXT", headers=[BASIC]),
    "authorization-unused": dict(path="/env.EXT", headers=[BASIC]),
    "authorization-bearer": dict(path="/env.EXT", headers=[("Authorization", "Bearer abc")]),
    "authorization-passed": dict(path="/passauth/env.EXT", headers=[("Authorization", "Bearer abc")]),
    "post": dict(path="/env.EXT?q", method="POST", body=b"a=b", headers=[FORM]),
    "post-empty": dict(path="/env.EXT", method="POST", headers=[("Content-Length", "0"), FORM]),
    "post-chunked": dict(path="/env.EXT", method="POST", body=b"3\r\na=b\r\n0\r\n\r\n",
                         headers=[("Transfer-Encoding", "chunked"), FORM]),
    "put": dict(path="/env.EXT", method="PUT", body=b"x", headers=[("Content-Type", "text/plain")]),
    "expect": dict(path="/env.EXT", method="POST", body=b"x", headers=[("Expect", "100-continue")]),
    "htaccess": dict(path="/ht/env.EXT"),
    "htaccess-rewrite": dict(path="/ht/short.EXT?keep=1"),
    "remoteip": dict(path="/env.EXT", headers=[("X-Client-IP", "203.0.113.9")]),
    "remoteip-v6": dict(path="/env.EXT", headers=[("X-Client-IP", "2001:db8::7")]),
}
TLS_CASES = {
    "client-certificate": dict(path="/env.EXT", frank=True),
    "export-cert-data": dict(path="/export/env.EXT", frank=True),
    "no-std-env-vars": dict(path="/nostd/env.EXT", frank=True),
    "user-name": dict(path="/fake/env.EXT", frank=True),
}


@pytest.mark.parametrize("ext", ["cgi", "php"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_environment_is_that_of_prefork(pair, case, ext, tls):
    compare(pair, {**CASES[case], "tls": tls}, ext)


@pytest.mark.parametrize("ext", ["cgi", "php"])
@pytest.mark.parametrize("case", TLS_CASES)
def test_environment_over_tls_is_that_of_prefork(pair, case, ext):
    env = compare(pair, {**TLS_CASES[case], "tls": True}, ext)
    if case == "client-certificate":
        assert env["SSL_CLIENT_S_DN_CN"] == "frank"
        assert env["HTTPS"] == "on"
    if case == "export-cert-data":
        assert "BEGIN CERTIFICATE" in env["SSL_CLIENT_CERT"]


def compare(pair, case, ext):
    case = {**case, "path": case["path"].replace("EXT", ext)}
    tested, stock = (ask(server, **case) for server in pair)
    assert difference(tested, stock) == []
    assert tested["GATEWAY_INTERFACE"] == "CGI/1.1"
    return tested


@pytest.mark.parametrize("path", ["/bin/env", "/bin/env/tail?x", "/pretty/word?more=1", "/no/such?q=1"])
def test_environment_after_rewrite_alias_and_error(pair, path):
    tested, stock = (ask(server, path) for server in pair)
    assert difference(tested, stock) == []


@pytest.mark.parametrize("ext", ["cgi", "php"])
def test_two_requests_on_a_connection_do_not_mix(pair, ext):
    """What the first request set must not be there in the second."""
    for server in pair:
        with server.connect() as c:
            c.get("/ht/short." + ext, headers=[ROBOT, ("X-If", "yes"), BASIC])
            found = c.get("/env." + ext)
        for name in ("FROM_HTACCESS", "HT_REWRITTEN", "IS_ROBOT", "FROM_IF", "REDIRECT_STATUS", "PHP_AUTH_USER"):
            assert not re.search(rb'(^|\0|")' + name.encode() + rb'[="]', found.body), name


@pytest.mark.parametrize("ext", ["cgi", "php"])
def test_the_parents_environment_does_not_reach_a_script(pair, ext):
    assert "SECRET_OF_THE_PARENT" not in ask(pair[0], f"/env.{ext}")


# A virtual host of the frontend's, where one Location is a pool's.
MIXED_CONF = """
    AddHandler cgi-script .cgi
    AddType text/html .shtml
    AddOutputFilter INCLUDES .shtml
    RewriteEngine on
    <Location /front/cgi>
        ErrorDocument 404 /pool/env.cgi?error=1
    </Location>
    <Location /front/php>
        ErrorDocument 404 /pool/env.php?error=1
    </Location>
    <Location /front/code>
        ErrorDocument 404 /pool/code.php
    </Location>
    <Location /front/twice>
        ErrorDocument 404 /pool/twice/rewritten/cgi?error=1
    </Location>
    <Location /pool/twice>
        ErrorDocument 404 /pool/env.cgi?in-the-pool
    </Location>
    Action env-cgi /pool/env.cgi
    AddHandler env-cgi .acted
    AddHandler type-map .var
    <IfModule mod_pool.c>
        AssignServerPool none
        <Location /pool>
            AssignServerPool alice
        </Location>
    </IfModule>
"""
URI_CGI = "#!/bin/sh\nprintf 'Content-Type: text/html\\r\\n\\r\\n'\necho \"$REQUEST_URI $SCRIPT_NAME $QUERY_STRING $DOCUMENT_URI\"\n"
URI_PHP = "<?php foreach (['REQUEST_URI', 'SCRIPT_NAME', 'QUERY_STRING'] as $n) echo $_SERVER[$n], ' ';"


def make_mixed(kind):
    alice = Site("alice", ALICE, pool=None, conf=MIXED_CONF)
    block = f"<ServerPool alice>\nPoolUser #{ALICE}\nPoolGroup #{ALICE}\n</ServerPool>\n"
    server = Httpd(sites=[alice], modules=["actions", "cgi", "include"], global_pool_conf=block, **kind)
    alice.write("pool/env.php", SERVER_PHP)
    alice.script("pool/env.cgi", ENV_CGI)
    alice.write("pool/uri.php", URI_PHP)
    alice.script("pool/uri.cgi", URI_CGI)
    alice.write("pool/.htaccess", """
        RewriteEngine on
        RewriteRule ^line/(.*) env.cgi [L,E=LINE:%{THE_REQUEST}]
        RewriteRule ^twice/rewritten/(cgi|php) env.$1?again [L,QSA,E=SEEN:<%{ENV:REDIRECT_URL}|%{ENV:REDIRECT_STATUS}>]
        RewriteRule ^twice/thrice/(.*) twice/local.cgi?$1 [L]
    """)
    for ext in ("cgi", "php"):
        alice.script("pool/twice/local.cgi", "#!/bin/sh\nprintf 'Location: /pool/env.%s?local\\r\\n\\r\\n' $QUERY_STRING\n")
        alice.write(f"pool/twice/{ext}.var", f"URI: map\n\nURI: ../env.{ext}\nContent-Type: text/html\n")
        alice.write(f"pool/twice/{ext}/.htaccess", f"DirectoryIndex /pool/env.{ext}\n")
    alice.write("pool/twice/file.acted", "")
    alice.write("pool/code.php", "<?php echo http_response_code();")
    alice.write("front/rw/.htaccess", """
        RewriteEngine on
        RewriteRule ^(cgi|php)/(.*)$ /pool/env.$1?rest=$2 [L,QSA]
        RewriteRule ^line/(.*)$ /pool/line/x [L]
        RewriteRule ^twice/(.*) /pool/twice/$1 [L]
    """)
    alice.script("front/local.cgi", "#!/bin/sh\nprintf 'Location: /pool/env.%s?local=1\\r\\n\\r\\n' $QUERY_STRING\n")
    alice.write("front/page.shtml", """<!--#include virtual="/pool/uri.cgi?a=1" -->
        <!--#include virtual="/pool/uri.php?a=1" -->""")
    for top, directories, files in os.walk(alice.docroot):
        for name in directories + files:
            os.chmod(os.path.join(top, name), 0o755)
    alice.docroot.chmod(0o755)
    return server


@pytest.fixture(scope="module")
def mixed(kind):
    tested, stock = make_mixed(kind), make_mixed({"mpm": "prefork", "with_pool": False})
    try:
        yield tested.start(), stock.start()
    finally:
        try:
            tested.destroy()
        finally:
            stock.destroy()


@pytest.mark.parametrize("ext", ["cgi", "php"])
@pytest.mark.parametrize("case", [
    dict(path="/front/EXT/missing%20page?q=1"),
    dict(path="/front/EXT/missing", method="POST", body=b"x=y", headers=[FORM]),
    dict(path="//front/./EXT/missing"),
    dict(path="/front/rw/EXT/some/thing?q=1&r=%2f"),
    dict(path="/front/rw/EXT/posted", method="POST", body=b"x=y", headers=[FORM]),
    dict(path="http://alice.test/front/rw/EXT/absolute?q"),
    dict(path="/front/local.cgi?EXT"),
], ids=["error", "error-post", "error-odd", "rewrite", "rewrite-post", "absolute", "local"])
def test_environment_after_a_redirect_into_a_pool(mixed, case, ext):
    case = {**case, "path": case["path"].replace("EXT", ext)}
    tested, stock = (ask(server, **case) for server in mixed)
    assert difference(tested, stock) == []
    assert "/front/" in tested["REQUEST_URI"]


def test_request_line_after_a_redirect_into_a_pool(mixed):
    """A redirect of the frontend's, and another one of the worker's behind it."""
    tested, stock = (ask(server, "/front/rw/line/y?z=1") for server in mixed)
    assert tested["REQUEST_URI"] == stock["REQUEST_URI"] == "/front/rw/line/y?z=1"
    assert tested["REDIRECT_LINE"] == stock["REDIRECT_LINE"] == "GET /front/rw/line/y?z=1 HTTP/1.1"


@pytest.mark.parametrize("path", [
    "rewritten/cgi", "rewritten/php", "missing", "local.cgi?cgi", "local.cgi?php", "file.acted", "cgi.var", "php.var",
    "cgi/", "php/", "thrice/cgi", "thrice/php",
])
@pytest.mark.parametrize("query", ["", "q=1"])
def test_environment_after_redirects_into_a_pool_and_within(mixed, path, query):
    """A redirect of the frontend's, and one or two of the worker's behind it."""
    path = f"/front/rw/twice/{path}" + (f"?{query}" if query and "?" not in path else "")
    tested, stock = (ask(server, path) for server in mixed)
    assert difference(tested, stock) == []


def test_environment_after_an_error_outside_of_a_pool_and_a_redirect_within(mixed):
    tested, stock = (ask(server, "/front/twice/missing?q=1") for server in mixed)
    assert difference(tested, stock) == []


def test_an_error_document_knows_the_status(mixed):
    """PHP has it from the request, not from a variable."""
    for server in mixed:
        found = server.get("/front/code/missing")
        assert (found.status, found.text) == (404, "404")


def test_environment_of_a_part_included_from_a_pool(mixed):
    tested, stock = (server.get("/front/page.shtml").text for server in mixed)
    assert tested == stock
    assert "/front/page.shtml /pool/uri.cgi a=1" in tested


@pytest.mark.pool_only
def test_pool_env_and_umask(httpd):
    alice = Site("alice", ALICE, conf="AddHandler cgi-script .cgi\n",
                 pool_conf='PoolEnv TMPDIR /tmp/for-alice\nPoolUmask 0027')
    server = httpd(sites=[alice], modules=["cgi"])
    alice.write("env.php", """
        <?php
        touch(__DIR__.'/made');
        echo getenv('TMPDIR'), ' ', decoct(fileperms(__DIR__.'/made') & 0777);
    """)
    server.start()
    assert server.get("/env.php").text == "/tmp/for-alice 640"


# --- the environment of the processes themselves ------------------------------------------------------

OF_OTHERS = {
    "HOME": "/root", "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash", "MAIL": "/var/mail/root", "PWD": "/root/secret",
    "OLDPWD": "/root", "INVOCATION_ID": "0123", "JOURNAL_STREAM": "8:1234", "CREDENTIALS_DIRECTORY": "/run/credentials/httpd",
    "SYSTEMD_EXEC_PID": "1", "LISTEN_FDNAMES": "web", "WATCHDOG_USEC": "1000000000", "RUNTIME_DIRECTORY": "/run/httpd",
    "SSH_CONNECTION": "192.0.2.1 5 192.0.2.2 22", "SSH_AUTH_SOCK": "/tmp/agent", "SUDO_USER": "admin", "SUDO_COMMAND": "start",
    "XDG_RUNTIME_DIR": "/run/user/0", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/user/0/bus", "KRB5CCNAME": "/tmp/krb5cc_0",
}
KEPT = {"LANG": "C", "TZ": "UTC", "SITE_KEY": "for all", "ORACLE_HOME": "/opt/oracle"}
GETENV_PHP = """<?php
echo json_encode(['own' => getenv(), 'exec' => explode("\\0", rtrim(shell_exec('cat /proc/self/environ'), "\\0"))]);
"""


@pytest.mark.pool_only
def test_the_processes_have_the_home_of_their_own_user(httpd):
    """Of the user and the session that started httpd, and of its service manager, a pool's processes have nothing."""
    import grp
    import pwd

    nobody = pwd.getpwnam("nobody")
    group = grp.getgrgid(nobody.pw_gid).gr_name
    sites = [Site("alice", ALICE), Site("bob", nobody.pw_uid, nobody.pw_gid, declared=False),
             Site("carol", ALICE + 2, pool_conf="PoolEnv HOME /srv/carol\nPoolEnv SSH_KEPT said")]
    block = f"<ServerPool bob>\nPoolUser nobody\nPoolGroup {group}\n</ServerPool>\n"
    server = httpd(sites=sites, global_pool_conf=block, modules=["cgi"], env=OF_OTHERS | KEPT)
    for site in sites:
        site.write("getenv.php", GETENV_PHP)
    server.start()
    of_nobody = {"HOME": nobody.pw_dir, "USER": "nobody", "LOGNAME": "nobody", "SHELL": nobody.pw_shell}
    expected = {"alice": {"HOME": "/"}, "bob": of_nobody, "carol": {"HOME": "/srv/carol", "SSH_KEPT": "said"}}
    for name, own in expected.items():
        found = server.get("/getenv.php", name).json()
        started = dict(entry.split("=", 1) for entry in found["exec"])
        for seen in (found["own"], started):
            # A shell between them sets this one itself.
            seen = {n: v for n, v in seen.items() if n in OF_OTHERS | KEPT | own and (n, v) != ("PWD", "/")}
            seen.pop("PWD", None) if seen.get("PWD", "").startswith(str(server.root)) else None
            assert {n: v for n, v in seen.items() if n != "OLDPWD" or v.startswith("/root")} == own | KEPT
        assert found["own"]["PATH"] == server._environment()["PATH"]


SIGNALS_PHP = """<?php
function signals($text) {
    preg_match_all('/^Sig(Blk|Ign):\\s*(\\w+)/m', $text, $found);
    return array_combine($found[1], $found[2]);
}
echo json_encode([signals(file_get_contents('/proc/self/status')), signals(shell_exec('exec cat /proc/self/status'))]);
"""
SIGNALS_CGI = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'; exec cat /proc/self/status\n"


@pytest.mark.pool_only
def test_the_dispositions_of_signals_are_those_of_prefork(httpd):
    """Ignored and blocked signals pass on to programs: what stock httpd's child and its programs have, and no other."""
    of_terminal = 0b110  # SIGINT and SIGQUIT: as whoever started the tests has them
    named = (1 << 31) - 1  # those of real time, too; a pool has none of them ignored (test_inherited.py)
    seen = []
    for kw in ({}, {"mpm": "prefork", "with_pool": False, "without": ["http2"]}):
        site = Site("alice", ALICE, conf="AddHandler cgi-script .cgi\n")
        server = httpd(sites=[site], modules=["cgi"], **kw)
        site.write("signals.php", SIGNALS_PHP)
        site.script("signals.cgi", SIGNALS_CGI)
        server.start()
        texts = dict(re.findall(r"^Sig(Blk|Ign):\s*(\w+)", server.get("/signals.cgi").text, re.M))
        sets = [*server.get("/signals.php").json(), texts]
        seen.append([{name: int(mask, 16) & named & ~of_terminal for name, mask in one.items()} for one in sets])
    assert seen[0] == seen[1]
    assert all(one["Ign"] for one in seen[1])
