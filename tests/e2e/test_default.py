"""The pool `default`: a server with stock mod_php, a threaded MPM and no pool configuration."""

import threading
import time

import pytest

from harness import ALICE, FRONTEND, H2, MODULE_DIR, Site, eventually, has_module, in_threads
from pages import SLEEP_PHP, at_once
from test_config import conf  # noqa: F401 - conf is a fixture

pytestmark = pytest.mark.pool_only

MPMS = ["pool", "event", "worker"]
WHO = "<?php echo posix_geteuid(), ' ', php_sapi_name();"


def make(httpd, mpm="pool", site=None, **kw):
    """A site that nothing is assigned to, with a script and a file of `User`."""
    site = site or Site("alice", pool=None, uid=FRONTEND)
    server = httpd(mpm=mpm, sites=[site], **kw)
    site.write("who.php", WHO)
    site.write("text.txt", "text", mode=0o644)
    return server


@pytest.mark.parametrize("mpm", MPMS)
def test_stock_php_just_works(httpd, mpm):
    server = make(httpd, mpm, log_format='%U %{pool-name}n')
    server.start()
    assert server.get("/who.php").text == f"{FRONTEND} apache2handler"
    assert server.get("/text.txt").text == "text"
    (worker, *_), (zygote,) = server.workers("default"), server.processes("zygote")
    assert (zygote.pool, set(worker.uids), set(worker.gids)) == ("default", {FRONTEND}, {FRONTEND})
    with H2(server, tls=True) as c:
        assert c.get("/who.php").text == f"{FRONTEND} apache2handler"
    eventually(lambda: len(server.access_log()) == 3)
    assert set(server.access_log()) == {"/who.php default", "/text.txt default"}
    assert server.count_log(r"<ServerPool default>: serves what is assigned to no pool") == 1


@pytest.mark.parametrize("mpm", MPMS)
def test_what_belongs_to_frontends_stays_there(httpd, mpm):
    server = make(
        httpd, mpm, modules=("status", "proxy", "proxy_http", "info"), log_format='%U %{pool-name}n',
        conf="""
            <Location /server-status>
                SetHandler server-status
                Require all granted
            </Location>
            <Location /server-info>
                SetHandler server-info
                Require all granted
            </Location>
            <Location /own>
                AssignServerPool none
            </Location>
            ProxyPass /proxied/ http://127.0.0.1:@PORT@/
        """,
        site=Site("alice", pool=None, uid=FRONTEND, conf="Alias /own @DOCROOT@\n"),
    )
    server.start()
    assert "ServerMPM" in server.get("/server-status?auto").text
    assert "mod_pool.c" in server.get("/server-info").text
    assert server.get("/own/text.txt").text == "text"
    assert not server.workers()
    # A script's text is never sent, and PHP never runs here.
    refused = server.get("/own/who.php")
    assert refused.status == 500 and "<?php" not in refused.text
    assert server.count_log("POOL112") == 1
    assert server.get("/proxied/who.php").text == f"{FRONTEND} apache2handler"
    eventually(lambda: len(server.access_log()) == 6)
    assert sorted(server.access_log()) == [
        "/own/text.txt -", "/own/who.php -", "/proxied/who.php -", "/server-info -", "/server-status -",
        "/who.php default",
    ]


@pytest.mark.skipif(not has_module("wsgi"), reason="mod_wsgi is not installed")
def test_wsgi_applications_stay_where_their_processes_are(httpd):
    site = Site("alice", pool=None, uid=FRONTEND, conf="WSGIScriptAlias /app @DOCROOT@/app.py\n")
    server = make(httpd, site=site, modules=("wsgi",))
    site.write("app.py", """
        import os
        def application(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"pid %d" % os.getpid()]
    """)
    server.start()
    pid = int(server.get("/app").text.split()[1])
    assert pid in [p.pid for p in server.processes("frontend")] and not server.workers()
    assert server.get("/who.php").text == f"{FRONTEND} apache2handler"


def test_a_declared_default_has_its_own_user_and_limits(httpd):
    server = make(
        httpd, site=Site("alice", pool=None),
        global_pool_conf=f"<ServerPool default>\nPoolUser #{ALICE}\nPoolGroup #{ALICE}\nPoolMaxProcesses 2\n</ServerPool>\n",
    )
    server.sites["alice"].write("sleep.php", SLEEP_PHP)
    for name in ("", "who.php", "text.txt", "sleep.php"):
        (server.sites["alice"].docroot / name).chmod(0o755)
    server.start()
    assert server.get("/who.php").text == f"{ALICE} apache2handler"
    assert "<ServerPool default>" not in server.error_log()
    # Six at once: two work, by two processes, and the others wait for their turn.
    found = in_threads(6, lambda _: server.get("/sleep.php?s=1", timeout=60))
    assert [r.status for r in found] == [200] * 6
    answers = [r.json() for r in found]
    assert at_once(answers) == 2
    assert len({a["pid"] for a in answers}) == len(server.workers("default")) == 2


def test_a_site_of_a_pool_is_not_the_defaults(httpd):
    server = httpd(mpm="pool", sites=[Site("alice"), Site("front", pool=None, uid=FRONTEND)])
    for site in server.sites.values():
        site.write("who.php", WHO)
    server.start()
    assert server.get("/who.php").text == f"{ALICE} apache2handler"
    assert server.get("/who.php", "front").text == f"{FRONTEND} apache2handler"


@pytest.mark.parametrize("how", [
    dict(mpm="pool", without=("php",)),
    dict(mpm="event", without=("php",)),
    dict(mpm="prefork"),
    dict(mpm="pool", conf="AssignServerPool none\n"),
])
def test_nothing_starts_where_default_has_nothing_to_serve(httpd, how):
    server = make(httpd, **how)
    server.start()
    assert server.get("/text.txt").text == "text"
    assert {p.role for p in server.processes()} == {"parent", "frontend"}
    assert "default" not in server.error_log()


@pytest.mark.parametrize("mpm", ["pool", "event"])
def test_default_comes_and_goes_with_php_at_a_reload(httpd, mpm):
    server = make(httpd, mpm, without=("php",))
    server.start()
    assert server.get("/text.txt").text == "text" and not server.processes("controller")
    source, php = (200, WHO), (200, f"{FRONTEND} apache2handler")

    def answer():
        found = server.get("/who.php")
        return found.status, found.text

    def reloaded():
        """Every answer until the frontends of before are gone, and ten of the new ones."""
        before = {p.pid for p in server.processes("frontend")}
        server.graceful()
        meanwhile, end = [], time.monotonic() + 20
        while before & {p.pid for p in server.processes("frontend")}:
            assert time.monotonic() < end, "a frontend of before the reload stays"
            meanwhile.append(answer())
        return meanwhile, [answer() for _ in range(10)]

    assert answer() == source  # what httpd does without PHP
    for _ in range(2):
        server.modules.append("php")
        meanwhile, after = reloaded()
        assert set(meanwhile) <= {source, php} and after == [php] * 10
        server.modules.remove("php")
        meanwhile, after = reloaded()
        assert set(meanwhile) <= {source, php} and after == [source] * 10
        assert server.get("/text.txt").text == "text"
        eventually(lambda: not server.workers() and not server.processes("zygote"), 10)


@pytest.mark.parametrize("mpm", ["pool", "event"])
def test_a_reload_with_php_never_sends_a_script(httpd, mpm):
    """Every answer while the server reloads again and again is what PHP says, with PHP loaded before and after."""
    server = make(httpd, mpm)
    server.start()
    stop = threading.Event()

    def ask(_):
        answers = []
        while not stop.is_set():
            found = server.get("/who.php")
            answers.append((found.status, found.text))
        return answers

    def reload():
        try:
            for n in range(4):
                server.extra += f"# {n}\n"
                server.graceful()
                time.sleep(0.3)
        finally:
            stop.set()

    rows = in_threads(4, lambda i: ask(i) if i else reload())[1:]
    assert all(rows)
    assert {answer for row in rows for answer in row} == {(200, f"{FRONTEND} apache2handler")}


WARNED = "<ServerPool default>: serves what is assigned to no pool, because PHP cannot run in frontends with threads"


def test_configtest_warns_of_the_frontends_own_user(conf):
    if not list(MODULE_DIR.glob("libphp*.so")):
        pytest.skip("mod_php is not installed")
    said = conf("", modules=["php"]).test()
    assert said.returncode == 0 and said.stderr.count(WARNED) == 1
    assert "(User, uid 65534)" in said.stderr and "could reach the frontends' files and sockets" in said.stderr
    assert "give it a user of its own: <ServerPool default> with PoolUser" in said.stderr
    own = "<ServerPool default>\nPoolUser #61234\nPoolGroup #61234\n</ServerPool>\n"
    for text, mpm in ((own, "mpm_event"), ("AssignServerPool none\n", "mpm_event"), ("", "mpm_prefork")):
        said = conf(text, modules=["php"], mpm=mpm).test()
        assert (said.returncode, said.stderr) == (0, "Syntax OK\n")
    declared = conf("<ServerPool default>\nPoolMaxProcesses 4\n</ServerPool>\n", modules=["php"]).test()
    assert declared.returncode == 0 and WARNED in declared.stderr and "nothing can be assigned" not in declared.stderr
    said = conf("<ServerPool default>\n</ServerPool>\n").test()
    assert said.returncode == 0 and "<ServerPool default>: has no PoolUser and runs as" in said.stderr


def test_a_default_that_would_be_root_is_refused(conf):
    said = conf("Group #0\n", modules=["php"]).test()
    assert said.returncode != 0
    assert "Group #0: the pool default" in said.stderr and "declare <ServerPool default> with PoolUser" in said.stderr


def test_nobody_warns_of_a_pool_that_no_request_can_reach(conf):  # noqa: F811
    pool = f"<ServerPool alice>\nPoolUser #{ALICE}\nPoolGroup #{ALICE}\n</ServerPool>\n"
    host = "<VirtualHost {}>\nServerName {}.test\n{}\n</VirtualHost>\n"
    assigned = "AssignServerPool alice"
    php = f"LoadModule php_module {sorted(MODULE_DIR.glob('libphp*.so'))[0]}\n"

    def warns(*hosts):
        made = conf(php + pool + "".join(host.format(*h) for h in hosts))
        made.file.write_text(made.file.read_text().replace("@PORT@", str(made.port)))
        said = made.test()
        assert said.returncode == 0, said.stderr
        return "<ServerPool default>: serves" in said.stderr

    assert not warns(("*:@PORT@", "a", assigned), ("*:@PORT@", "b", "AssignServerPool none"))
    assert not warns(("*", "a", assigned))
    assert not warns(("_default_:*", "a", assigned))
    assert warns(("*:@PORT@", "a", assigned), ("*:@PORT@", "b", ""))
    assert warns(("127.0.0.2:@PORT@", "a", assigned)), "the main server is left for other addresses"
    assert warns(("*:1", "a", assigned)), "and for other ports"
