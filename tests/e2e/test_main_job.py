"""Point 1: two sites, two users, one server, everything httpd can do, over every protocol."""

import grp
import hashlib
import json
import os
import pwd
from base64 import b64encode

import pytest

from backends import Backend
from harness import ALICE, BOB, H2, Site, has_module, in_threads, run
from pages import DIGEST_PHP, WHO_CGI, WHO_LUA, WHO_PHP, uid_of

MODULES = ["cgi", "dav", "dav_fs", "lua", "actions", "asis", "expires"]


def fill(site):
    """The same tree for each user: all of it readable by nobody else."""
    site.write("who.php", WHO_PHP)
    site.write("digest.php", DIGEST_PHP)
    site.script("who.cgi", WHO_CGI)
    site.write("who.lua", WHO_LUA)
    site.write("secret.txt", f"secret of {site.name}\n")
    site.write("index.html", f"home of {site.name}\n")
    site.write("listing/one.txt", "1")
    site.write("listing/two.txt", "22")
    site.write("phpindex/index.php", "<?php echo 'index by php';")
    site.write("dav/.keep", "")
    site.write("errors/404.html", f"{site.name} has no such page\n")
    site.write("rw/.htaccess", "RewriteEngine on\nRewriteRule ^pretty/(.*)$ target.php?x=$1 [QSA,L]\n")
    site.write("rw/target.php", "<?php echo 'x=', $_GET['x'], ' y=', $_GET['y'] ?? '-';")
    site.write("ini/.htaccess", "php_value memory_limit 77M\nphp_flag display_errors on\n")
    site.write("ini/show.php", "<?php echo ini_get('memory_limit'), ' ', ini_get('post_max_size');")
    site.write("closed/.htaccess", "Require all denied\n")
    site.write("closed/page.txt", "never")
    site.write(".htpasswd", "frank:{SHA}" + sha1("sesame") + "\n")
    site.write(
        "private/.htaccess",
        f"AuthType Basic\nAuthName here\nAuthUserFile {site.docroot}/.htpasswd\nRequire valid-user\n",
    )
    site.write("private/page.php", "<?php echo 'user ', $_SERVER['REMOTE_USER'];")


def sha1(word):
    return b64encode(hashlib.sha1(word.encode()).digest()).decode()


SITE_CONF = """
    AddHandler cgi-script .cgi
    AddHandler lua-script .lua
    ErrorDocument 404 /errors/404.html
    <IfModule php_module>
        php_admin_value post_max_size 33M
    </IfModule>
    <Location /dav>
        Dav On
    </Location>
"""


@pytest.fixture(scope="module")
def server(shared_httpd):
    sites = [Site("alice", ALICE, conf=SITE_CONF), Site("bob", BOB, conf=SITE_CONF)]
    server = shared_httpd(
        modules=MODULES, sites=sites, conf="DavLockDB @ROOT@/run/dav/lock\nDirectorySlash On\n"
    )
    for site in sites:
        fill(site)
    lock = server.root / "run" / "dav"
    lock.mkdir()
    lock.chmod(0o777)
    return server.start()


def expected_uid(server, name):
    return server.sites[name].owner[0]


SITES = ["alice", "bob"]
PROTOCOLS = [("1.0", False), ("1.1", False), ("1.1", True), ("2", True), ("2pk", False), ("2", False)]
IDS = ["http1.0", "http1.1", "tls", "h2", "h2c-prior-knowledge", "h2c-upgrade"]


def skip_without_h2(server, http):
    if http.startswith("2") and server.mpm == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")


# --- who serves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("http,tls", PROTOCOLS, ids=IDS)
def test_php_runs_as_the_pools_user(server, name, http, tls):
    skip_without_h2(server, http)
    who = json.loads(server.curl(path="/who.php", site=name, http=http, tls=tls).stdout)
    uid = expected_uid(server, name)
    assert who["site"] == f"{name}.test"
    assert who["status"]["Uid"].split() == [str(uid)] * 4
    assert who["status"]["Gid"].split() == [str(uid)] * 4
    assert who["posix"] in (uid, None)


@pytest.mark.pool_only
@pytest.mark.parametrize("name", SITES)
def test_supplementary_groups_are_the_pools(server, name):
    # A numeric user without a passwd entry has no group but its own.
    who = server.get("/who.php", name).json()
    assert set(who["status"]["Groups"].split()) <= {str(server.sites[name].gid)}


@pytest.fixture
def person():
    """A user with a name and two groups, for as long as the test runs."""
    tag = os.urandom(3).hex()
    name, more = f"mpt{tag}", f"mptmore{tag}"
    run("groupadd", more)
    try:
        run("useradd", "--no-create-home", "--user-group", "--groups", more, "--shell", "/bin/false", name)
        try:
            yield pwd.getpwnam(name), grp.getgrnam(more)
        finally:
            run("userdel", name, check=False)
            run("groupdel", name, check=False)
    finally:
        run("groupdel", more, check=False)


@pytest.mark.pool_only
def test_a_named_user_has_his_supplementary_groups(httpd, person):
    user, more = person
    site = Site("alice", user.pw_uid, gid=user.pw_gid, declared=False)
    server = httpd(sites=[site], global_pool_conf=f"<ServerPool alice>\nPoolUser {user.pw_name}\n</ServerPool>\n")
    site.write("who.php", WHO_PHP)
    # Readable through the second group only.
    shared = site.write("shared.txt", "for the group", mode=0o640)
    os.chown(shared, 0, more.gr_gid)
    server.start()
    status = server.get("/who.php").json()["status"]
    assert status["Uid"].split() == [str(user.pw_uid)] * 4
    assert status["Gid"].split() == [str(user.pw_gid)] * 4
    assert str(more.gr_gid) in status["Groups"].split()
    assert set(status["Groups"].split()) <= {str(user.pw_gid), str(more.gr_gid)}
    assert server.get("/shared.txt").text == "for the group"


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("http,tls", PROTOCOLS, ids=IDS)
def test_cgi_runs_as_the_pools_user(server, name, http, tls):
    skip_without_h2(server, http)
    text = server.curl(path="/who.cgi", site=name, http=http, tls=tls).stdout.decode()
    assert uid_of(text) == [expected_uid(server, name)] * 4


@pytest.mark.parametrize("name", SITES)
def test_lua_runs_as_the_pools_user(server, name):
    assert uid_of(server.get("/who.lua", name).text) == [expected_uid(server, name)] * 4


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("http,tls", PROTOCOLS, ids=IDS)
def test_private_file_is_served(server, name, http, tls):
    skip_without_h2(server, http)
    done = server.curl(path="/secret.txt", site=name, http=http, tls=tls)
    assert done.stdout.decode() == f"secret of {name}\n"


@pytest.mark.pool_only
def test_the_other_users_file_is_not_served(httpd):
    alice = Site("alice", ALICE, conf="Alias /bob @ROOT@/sites/bob\nAddHandler cgi-script .cgi\n")
    bob = Site("bob", BOB)
    server = httpd(sites=[alice, bob], modules=["cgi"])
    bob.write("secret.txt", "secret of bob\n")
    alice.write(
        "steal.php",
        f"<?php echo var_export(@file_get_contents('{bob.docroot}/secret.txt'), true);",
    )
    alice.script(
        "steal.cgi",
        f"#!/bin/sh\necho\ncat {bob.docroot}/secret.txt 2>&1 || echo refused\n",
    )
    server.start()
    stolen = server.get("/bob/secret.txt", "alice")
    assert stolen.status == 403
    assert b"secret of bob" not in stolen.body
    assert server.get("/steal.php", "alice").text == "false"
    assert "refused" in server.get("/steal.cgi", "alice").text
    assert server.get("/secret.txt", "bob").text == "secret of bob\n"


@pytest.mark.pool_only
def test_symbolic_link_into_the_other_home_is_refused(httpd):
    alice, bob = Site("alice", ALICE), Site("bob", BOB)
    server = httpd(sites=[alice, bob])
    bob.write("secret.txt", "secret of bob\n")
    (alice.docroot / "link.txt").symlink_to(bob.docroot / "secret.txt")
    server.start()
    assert server.get("/link.txt", "alice").status == 403


def test_cgi_where_only_mod_cgid_is_loaded(httpd):
    alice = Site("alice", ALICE, conf="AddHandler cgi-script .cgi\nScriptAlias /bin/ @DOCROOT@/bin/\n")
    bob = Site("bob", BOB, conf="AddHandler cgi-script .cgi\n")
    server = httpd(sites=[alice, bob], modules=["cgid"], conf="ScriptSock @ROOT@/run/cgisock\n")
    for site in (alice, bob):
        site.script("who.cgi", WHO_CGI)
        site.script("bin/who", WHO_CGI)
    server.start()
    for site in (alice, bob):
        found = server.get("/who.cgi", site.name)
        assert found.status == 200
        assert uid_of(found.text) == [site.owner[0]] * 4
    assert uid_of(server.get("/bin/who", "alice").text) == [alice.owner[0]] * 4


@pytest.mark.pool_only
def test_one_address_two_names_never_mix(server):
    with server.connect() as c:
        for _ in range(10):
            for name in SITES:
                who = c.get("/who.php", f"{name}.test").json()
                assert who["posix"] == expected_uid(server, name)


@pytest.mark.pool_only
def test_frontend_is_not_the_one_who_served(server):
    who = server.get("/who.php").json()
    worker = [p for p in server.workers("alice") if p.pid == who["pid"]]
    assert worker, f"{who['pid']} is no worker of alice: {server.processes()}"
    assert "mod_pool: worker alice" in who["title"]


# --- what .htaccess and the modules do --------------------------------------------------------------


@pytest.mark.parametrize("name", SITES)
def test_htaccess_rewrite(server, name):
    assert server.get("/rw/pretty/abc?y=2", name).text == "x=abc y=2"


@pytest.mark.parametrize("name", SITES)
def test_htaccess_php_value_and_the_hosts_php_admin_value(server, name):
    assert server.get("/ini/show.php", name).text == "77M 33M"


def test_htaccess_php_value_does_not_stay_for_the_next_request(server):
    server.get("/ini/show.php")
    for _ in range(4):
        with server.connect() as c:
            assert c.get("/ini/show.php").text == "77M 33M"
            other = c.get("/who.php").json()
            assert other["pid"]
    server.sites["alice"].write("plainini.php", "<?php echo ini_get('memory_limit');")
    assert server.get("/plainini.php").text == "128M"


@pytest.mark.parametrize("name", SITES)
def test_htaccess_require_all_denied(server, name):
    found = server.get("/closed/page.txt", name)
    assert (found.status, b"never" in found.body) == (403, False)


def test_htaccess_basic_auth(server):
    assert server.get("/private/page.php").status == 401
    assert server.get("/private/page.php").get("WWW-Authenticate") == 'Basic realm="here"'
    good = ("Authorization", "Basic " + b64encode(b"frank:sesame").decode())
    bad = ("Authorization", "Basic " + b64encode(b"frank:wrong").decode())
    assert server.get("/private/page.php", headers=[bad]).status == 401
    assert server.get("/private/page.php", headers=[good]).text == "user frank"


def test_autoindex(server):
    found = server.get("/listing/")
    assert found.status == 200
    assert "one.txt" in found.text and "two.txt" in found.text


def test_dir_index_and_trailing_slash(server):
    assert server.get("/", "bob").text == "home of bob\n"
    assert server.get("/phpindex/").text == "index by php"
    moved = server.get("/phpindex")
    assert moved.status == 301
    assert moved.get("Location") == "http://alice.test/phpindex/"


def test_trailing_slash_redirect_over_tls_stays_https(server):
    moved = server.get("/phpindex", tls=True)
    assert (moved.status, moved.get("Location")) == (301, "https://alice.test/phpindex/")


@pytest.mark.parametrize("name", SITES)
def test_error_document(server, name):
    found = server.get("/nowhere", name)
    assert (found.status, found.text) == (404, f"{name} has no such page\n")


def test_dav_put_propfind_delete(server):
    alice = server.sites["alice"]
    assert server.request("PUT", "/dav/new.txt", body=b"by dav").status == 201
    written = alice.docroot / "dav" / "new.txt"
    assert written.read_bytes() == b"by dav"
    assert written.stat().st_uid == alice.owner[0]
    assert written.stat().st_gid == alice.owner[1]
    found = server.request("PROPFIND", "/dav/", headers=[("Depth", "1")])
    assert found.status == 207
    assert "/dav/new.txt" in found.text
    assert server.request("PUT", "/dav/new.txt", body=b"twice").status == 204
    assert server.request("DELETE", "/dav/new.txt").status == 204
    assert not written.exists()


def test_asis(httpd):
    alice = Site("alice", ALICE, conf="AddHandler send-as-is .asis\n")
    server = httpd(sites=[alice], modules=["asis"])
    alice.write("x.asis", "Status: 207 Strange\nX-As: is\nContent-Type: text/plain\n\nbody\n")
    server.start()
    found = server.get("/x.asis")
    assert (found.status, found.reason, found.get("X-As"), found.text) == (207, "Strange", "is", "body\n")


def test_php_post_reaches_the_script(server):
    alice = server.sites["alice"]
    alice.write("post.php", "<?php echo $_POST['a'], '|', $_FILES['f']['size'] ?? 'none';")
    found = server.request(
        "POST", "/post.php", body=b"a=hello", headers=[("Content-Type", "application/x-www-form-urlencoded")]
    )
    assert found.text == "hello|none"
    found = server.curl("-F", "a=multi", "-F", "f=@/etc/passwd", path="/post.php").stdout.decode()
    assert found.startswith("multi|") and int(found.split("|")[1]) > 0


@pytest.mark.pool_only
def test_uploaded_file_belongs_to_the_pool(server):
    alice = server.sites["alice"]
    alice.write(
        "up.php",
        "<?php move_uploaded_file($_FILES['f']['tmp_name'], __DIR__.'/up.bin'); echo fileowner(__DIR__.'/up.bin');",
    )
    found = server.curl("-F", "f=@/etc/passwd", path="/up.php").stdout.decode()
    assert found == str(ALICE)


def test_custom_headers_and_cookies_survive(server):
    server.sites["alice"].write(
        "cookies.php",
        "<?php setcookie('a','1'); setcookie('b','2'); header('X-One: 1'); header('X-One: 2', false);"
        "http_response_code(409); echo $_COOKIE['in'] ?? '-';",
    )
    found = server.get("/cookies.php", headers=[("Cookie", "in=there")])
    assert (found.status, found.reason, found.text) == (409, "Conflict", "there")
    assert [c.split(";")[0] for c in found.all("Set-Cookie")] == ["a=1", "b=2"]
    assert found.all("X-One") in (["1", "2"], ["1, 2"])


def test_status_line_of_the_scripts_own(server):
    server.sites["alice"].write("teapot.php", "<?php header('HTTP/1.1 418 Short and stout'); echo 'tea';")
    found = server.get("/teapot.php")
    assert (found.status, found.reason, found.text) == (418, "Short and stout", "tea")


# --- connections ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_keep_alive_serves_many_requests(server, tls):
    with server.connect(tls=tls) as c:
        for i in range(30):
            path = ["/secret.txt", "/who.php", "/listing/", "/nowhere", "/who.cgi"][i % 5]
            found = c.get(path)
            assert found.complete
            assert found.status == (404 if path == "/nowhere" else 200)
            assert not found.closes


def test_http10_closes_and_with_keep_alive_stays(server):
    with server.connect() as c:
        c.request("GET", "/secret.txt", version="HTTP/1.0")
        found = c.response()
        assert found.text == "secret of alice\n"
        assert c.is_closed()
    with server.connect() as c:
        for _ in range(3):
            c.request("GET", "/secret.txt", headers=[("Connection", "keep-alive")], version="HTTP/1.0")
            found = c.response()
            assert found.text == "secret of alice\n"
            assert "keep-alive" in found.get("Connection").lower()


def test_http10_php_response_is_not_chunked(server):
    with server.connect() as c:
        c.request("GET", "/who.php", version="HTTP/1.0")
        found = c.response()
        assert found.get("Transfer-Encoding") is None
        assert json.loads(found.body)["pid"]


def test_pipelined_requests_are_answered_in_order(server):
    paths = ["/secret.txt", "/who.php", "/rw/pretty/p?y=1", "/nowhere", "/listing/one.txt", "/who.cgi"] * 3
    with server.connect() as c:
        c.send("".join(f"GET {p} HTTP/1.1\nHost: alice.test\n\n" for p in paths))
        found = [c.response() for _ in paths]
    assert all(f.complete for f in found)
    assert [f.status for f in found] == [404 if p == "/nowhere" else 200 for p in paths]
    for path, f in zip(paths, found):
        if path == "/secret.txt":
            assert f.text == "secret of alice\n"
        if path.startswith("/rw"):
            assert f.text == "x=p y=1"


def test_pipelined_requests_to_two_sites(server):
    with server.connect() as c:
        c.send("".join(f"GET /secret.txt HTTP/1.1\nHost: {n}.test\n\n" for n in SITES * 5))
        assert [c.response().text for _ in range(10)] == [f"secret of {n}\n" for n in SITES * 5]


def test_pipelined_posts_keep_their_bodies_apart(server):
    with server.connect() as c:
        bodies = [b"x" * n for n in (1, 100, 5000, 70000, 3)]
        for body in bodies:
            c.request("POST", "/digest.php", body=body)
        assert [c.response().json()["bytes"] for _ in bodies] == [len(b) for b in bodies]


@pytest.mark.parametrize("tls", [False, True], ids=["h2c", "h2"])
def test_http2_streams_at_once(server, tls):
    skip_without_h2(server, "2")
    with H2(server, tls=tls) as c:
        streams = {}
        for i in range(24):
            path = ["/secret.txt", "/who.php", "/who.cgi", "/nowhere"][i % 4]
            streams[c.start(path)] = path
        for stream, path in streams.items():
            found = c.wait(stream)
            assert found.status == (404 if path == "/nowhere" else 200), path
            if path == "/secret.txt":
                assert found.text == "secret of alice\n"
            if path == "/who.php":
                assert found.json()["posix"] == expected_uid(server, "alice")


def test_http2_post(server):
    skip_without_h2(server, "2")
    with H2(server) as c:
        for size in (1, 1000, 16000, 300000):
            assert c.get("/digest.php", method="POST", body=b"b" * size).json()["bytes"] == size


def test_http2_serves_both_sites_on_one_connection(server):
    skip_without_h2(server, "2")
    with H2(server) as c:
        a, b = c.start("/secret.txt", host="alice.test"), c.start("/secret.txt", host="bob.test")
        assert c.wait(b).text == "secret of bob\n"
        assert c.wait(a).text == "secret of alice\n"


def test_upgrade_to_h2c_is_offered(server):
    skip_without_h2(server, "2")
    assert "h2c" in (server.get("/secret.txt", headers=[("Connection", "close")]).get("Upgrade") or "")


def test_upgrade_to_h2c_is_done(server):
    skip_without_h2(server, "2")
    done = server.curl("-w", " by HTTP/%{http_version}", path="/secret.txt", http="2")
    assert done.stdout.decode() == "secret of alice\n by HTTP/2"


# --- what stays in front ----------------------------------------------------------------------------


@pytest.fixture
def backend():
    backend = Backend()
    yield backend
    backend.stop()


def test_proxypass_stays_in_the_frontend(httpd, backend):
    alice = Site("alice", ALICE, conf="ProxyPass /api http://127.0.0.1:@BACKEND@/b\nAddHandler cgi-script .cgi\n")
    server = httpd(sites=[alice], modules=["proxy", "proxy_http", "cgi"], define={"BACKEND": backend.port})
    alice.write("who.php", WHO_PHP)
    server.start()
    found = server.get("/api/thing?q=1")
    assert (found.status, found.text, found.get("X-Backend")) == (200, "from the backend\n", "yes")
    path, headers, uid = backend.seen[0]
    assert path == "/b/thing?q=1"
    assert headers["X-Forwarded-Host"] == "alice.test"
    assert uid == server.user
    assert server.get("/who.php").json()["posix"] == alice.owner[0]


@pytest.mark.pool_only
def test_proxypass_alone_starts_no_process_of_the_pool(httpd, backend):
    alice = Site("alice", ALICE, conf="ProxyPass /api http://127.0.0.1:@BACKEND@/b\n")
    server = httpd(sites=[alice], modules=["proxy", "proxy_http"], define={"BACKEND": backend.port})
    server.start()
    assert server.get("/api/thing").status == 200
    assert server.of_uid(ALICE) == []


def test_rewrite_to_proxy_in_the_virtual_host(httpd, backend):
    alice = Site("alice", ALICE, conf="RewriteEngine on\nRewriteRule ^/p/(.*) http://127.0.0.1:@BACKEND@/r/$1 [P]\n")
    server = httpd(sites=[alice], modules=["proxy", "proxy_http"], define={"BACKEND": backend.port})
    server.start()
    assert server.get("/p/x").text == "from the backend\n"
    assert backend.seen[0][0] == "/r/x"


def test_rewrite_to_a_tls_backend_is_never_sent_in_the_clear(httpd, backend):
    alice = Site("alice", ALICE, conf="""
        SSLProxyEngine on
        SSLProxyVerify none
        RewriteEngine on
        RewriteRule ^/p/(.*) https://127.0.0.1:@BACKEND@/r/$1 [P]
    """)
    server = httpd(sites=[alice], modules=["proxy", "proxy_http"], define={"BACKEND": backend.port})
    server.start()
    assert server.get("/p/x").status in (500, 502)  # it does not speak TLS
    assert backend.seen == []


@pytest.mark.pool_only
def test_assign_none_stays_in_the_frontend(httpd):
    # Away from the DocumentRoot: as in any httpd, a User who cannot search that directory may not serve from there.
    alice = Site("alice", ALICE, conf="""
        Alias /server-status /nowhere
        <Location /server-status>
            SetHandler server-status
            AssignServerPool none
            Require all granted
        </Location>
    """)
    server = httpd(sites=[alice])
    server.start()
    found = server.get("/server-status?auto")
    assert found.status == 200
    assert "BusyWorkers" in found.text
    assert server.of_uid(ALICE) == []


@pytest.mark.pool_only
def test_location_and_if_assign_another_pool(httpd):
    alice = Site("alice", ALICE, conf="""
        <Location /b>
            AssignServerPool bob
        </Location>
        <If "%{QUERY_STRING} == 'as=bob'">
            AssignServerPool bob
        </If>
    """)
    bob = Site("bob", BOB)
    server = httpd(sites=[alice, bob])
    page = "<?php echo posix_geteuid();"
    alice.docroot.chmod(0o755)
    for name in ("x.php", "b/x.php"):
        alice.write(name, page, mode=0o644)
    (alice.docroot / "b").chmod(0o755)
    server.start()
    assert server.get("/x.php").text == str(ALICE)
    assert server.get("/b/x.php").text == str(BOB)
    assert server.get("/x.php?as=bob").text == str(BOB)
    # A path that only looks different is the same place.
    assert server.get("/%62/x.php").text == str(BOB)
    assert server.get("/y/../b/x.php").text == str(BOB)


# --- modules that look at every request -------------------------------------------------------------

SECURITY_RULES = """
    SecRuleEngine On
    SecRequestBodyAccess On
    SecResponseBodyAccess On
    SecResponseBodyMimeType text/plain text/html
    SecRule REQUEST_HEADERS:X-Attack "@streq one" "id:1001,phase:1,deny,status:406"
    SecRule ARGS_POST:attack "@streq two" "id:1002,phase:2,deny,status:409"
    SecRule RESPONSE_BODY "@contains leaked-secret" "id:1004,phase:4,deny,status:451"
"""


@pytest.mark.skipif(not has_module("security2"), reason="mod_security2 is not installed")
class TestSecurity2:
    @pytest.fixture(scope="class")
    def guarded(self, shared_httpd):
        alice = Site("alice", ALICE, conf=SECURITY_RULES)
        server = shared_httpd(
            sites=[alice], modules=["security2", "unique_id"], conf="SecTmpDir /tmp\nSecDataDir /tmp\n"
        )
        alice.write("ok.php", "<?php header('Content-Type: text/plain'); echo 'fine ', $_POST['attack'] ?? '';")
        alice.write("leak.php", "<?php header('Content-Type: text/plain'); echo 'a leaked-secret here';")
        alice.write("plain.txt", "static\n")
        return server.start()

    @pytest.mark.parametrize("path", ["/ok.php", "/plain.txt"])
    def test_phase_1(self, guarded, path):
        assert guarded.get(path, headers=[("X-Attack", "one")]).status == 406
        assert guarded.get(path, headers=[("X-Attack", "none")]).status == 200

    def test_phase_2(self, guarded):
        form = [("Content-Type", "application/x-www-form-urlencoded")]
        assert guarded.request("POST", "/ok.php", headers=form, body=b"attack=two").status == 409
        assert guarded.request("POST", "/ok.php", headers=form, body=b"attack=no").text == "fine no"

    def test_phase_4(self, guarded):
        found = guarded.get("/leak.php")
        assert found.status == 451
        assert b"leaked-secret" not in found.body


def test_remoteip_address_reaches_the_script(httpd):
    alice = Site("alice", ALICE, conf="""
        RemoteIPHeader X-Forwarded-For
        RemoteIPInternalProxy 127.0.0.1
        <Location /only>
            Require ip 203.0.113.7
        </Location>
    """)
    server = httpd(sites=[alice], modules=["remoteip"], log_format="%a %{c}a %s %U")
    alice.write("ip.php", "<?php echo $_SERVER['REMOTE_ADDR'], ' ', $_SERVER['HTTP_X_FORWARDED_FOR'] ?? '-';")
    alice.write("only/ip.php", "<?php echo $_SERVER['REMOTE_ADDR'];")
    alice.write("ht/.htaccess", "Require ip 203.0.113.7\n")
    alice.write("ht/ip.php", "<?php echo $_SERVER['REMOTE_ADDR'];")
    server.start()
    via = [("X-Forwarded-For", "203.0.113.7")]
    assert server.get("/ip.php", headers=via).text == "203.0.113.7 -"
    assert server.get("/ip.php").text == "127.0.0.1 -"
    for path in ("/only/ip.php", "/ht/ip.php"):
        assert server.get(path).status == 403, path
        assert server.get(path, headers=via).text == "203.0.113.7", path
    server.wait_for_log(r"^203\.0\.113\.7 127\.0\.0\.1 200 /ip\.php", name="access.log")


def test_unique_id_never_repeats(httpd):
    alice = Site("alice", ALICE, pool_conf="PoolMaxProcesses 4\nPoolMinSpare 4")
    server = httpd(sites=[alice], modules=["unique_id"])
    alice.write("id.php", "<?php echo $_SERVER['UNIQUE_ID'], ' ', getmypid();")
    server.start()

    def some(_):
        out = []
        with server.connect() as c:
            for _ in range(300):
                found = c.get("/id.php")
                out.append(found.text.split())
                if found.closes:
                    break
        return out

    # Connections end after MaxKeepAliveRequests (100): ask again until there are enough.
    seen = []
    while len(seen) < 4000:
        for part in in_threads(8, some):
            seen += part
    ids = [i for i, _ in seen]
    assert len(set(ids)) == len(ids)
    if server.with_pool:
        assert 2 <= len({pid for _, pid in seen}) <= 4
