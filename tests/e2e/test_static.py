"""`AssignServerPool none` over a directory that a tenant writes: what configtest says, and `none static`."""

import os

import pytest

from harness import ALICE, BOB, H2, Site
from test_config import conf  # noqa: F401 - conf is a fixture

pytestmark = pytest.mark.pool_only

PROTOCOLS = ["http/1.1", "h2"]

CONF = """
    <Location /free>
        AssignServerPool none @HOW@
    </Location>
    <Location /free/status>
        SetHandler server-status
    </Location>
    ProxyPass /free/proxied http://127.0.0.1:@PORT@/pool
    <Directory @DOCROOT@>
        AddHandler cgi-script .cgi
        AddOutputFilter INCLUDES .shtml
        AddOutputFilterByType DEFLATE text/plain
        AddType application/x-httpd-php .page
        Options +FollowSymLinks +MultiViews
        XBitHack on
    </Directory>
    <Files ".ht*">
        Require all denied
    </Files>
"""


def served(httpd, how):
    site = Site("alice", ALICE, conf=CONF)
    server = httpd(sites=[site], modules=["include", "cgi", "proxy", "proxy_http", "filter"], define={"HOW": how})
    for path in (site.docroot, server.root / "sites"):
        path.chmod(0o755)
    write = lambda path, text, mode=0o644: site.write(f"free/{path}", text, mode)
    site.mkdir("free/listed")
    site.mkdir("free/index")
    write("plain.txt", "plain " * 400)
    write("sub/.htaccess", """
        SetHandler server-status
        Header set X-From htaccess
        Options +ExecCGI +Includes
        AddHandler cgi-script .txt
        ErrorDocument 404 "mine"
        RewriteEngine on
        RewriteRule ^moved$ http://elsewhere.test/ [R]
    """)
    write("sub/plain.txt", "plain")
    write("broken/.htaccess", "NoSuchDirective\n")
    write("broken/plain.txt", "plain")
    write("run.cgi", "#!/bin/sh\necho Content-Type: text/plain\necho\nid -u\n", 0o755)
    write("run.php", "<?php echo posix_geteuid();")
    write("run.page", "<?php echo posix_geteuid();")
    write("exec.shtml", '[<!--#exec cmd="id -u" -->]')
    write("exec.html", '[<!--#exec cmd="id -u" -->]', 0o755)
    write("index/index.html", "index")
    write("negotiated.txt", "negotiated")
    (server.root / "secret.txt").write_text("of User only")
    (server.root / "secret.txt").chmod(0o400)
    os.chown(server.root / "secret.txt", server.user, server.user)
    (server.root / "bobs.txt").write_text("of bob")
    os.chown(server.root / "bobs.txt", BOB, BOB)
    (site.docroot / "free/of-root").mkdir()
    (site.docroot / "free/of-root/file.txt").write_text("of root")
    for name, target in {"secret": server.root / "secret.txt", "bobs": server.root / "bobs.txt", "own": "plain.txt",
                         "etc": "/etc", "chain": "secret", "dangling": "nothing", "device": "/dev/zero"}.items():
        os.symlink(target, site.docroot / "free" / name)
        os.chown(site.docroot / "free" / name, ALICE, ALICE, follow_symlinks=False)
    os.symlink(server.root / "bobs.txt", site.docroot / "free/by-root")  # the administrator's own
    os.mkfifo(site.docroot / "free/fifo", 0o644)
    for path, *_ in os.walk(site.docroot):
        os.chmod(path, 0o755)
    server.start()
    return server


def fetch(server, path, protocol, headers=()):
    if protocol == "h2":
        with H2(server, tls=True) as c:
            return c.get(path, headers=headers)
    return server.get(path, headers=headers)


def skip_h2(kind, protocol):
    if protocol == "h2" and kind["mpm"] == "prefork":
        pytest.skip("no HTTP/2 with prefork")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_static_is_files_and_nothing_else(httpd, kind, protocol):
    skip_h2(kind, protocol)
    server = served(httpd, "static")
    get = lambda path, **kw: fetch(server, f"/free/{path}", protocol, **kw)
    plain = "plain " * 400
    for path, text in {"plain.txt": plain, "sub/plain.txt": "plain", "broken/plain.txt": "plain", "own": plain,
                       "index/": "index", "of-root/file.txt": "of root", "negotiated": "negotiated"}.items():
        found = get(path)
        assert (found.status, found.text.strip(), found.get("X-From")) == (200, text.strip(), None), path
    # The text of what would have been run by a filter; a tenant's comment, no more.
    for path in ("exec.shtml", "exec.html"):
        assert get(path).text == '[<!--#exec cmd="id -u" -->]', path
    for path in ("run.cgi", "run.php", "run.page", "secret", "bobs", "chain", "by-root/x", "etc/hostname", "fifo",
                 "device", "listed/", "status", "sub/.htaccess"):
        found = get(path)
        assert found.status in (403, 404), (path, found.status)
        assert not {"of User", "of bob", "geteuid", "id -u"} & {w for w in ("of User", "of bob", "geteuid", "id -u")
                                                                  if w in found.text}, path
    assert get("by-root").text == "of bob"
    assert get("dangling").status in (403, 404)
    assert get("sub/moved").status == get("none").status == 404
    assert get("sub/none").text != "mine"
    assert get("plain.txt", headers=[("accept-encoding", "gzip")]).get("Content-Encoding") == "gzip"
    found = get("plain.txt", headers=[("range", "bytes=6-10")])
    assert (found.status, found.text) == (206, "plain")
    etag = get("plain.txt").get("ETag")
    assert etag and get("plain.txt", headers=[("if-none-match", etag)]).status == 304
    assert get("plain.txt/more").status == 404
    log = server.error_log()
    for says in ("run.cgi: the configuration has a handler for it (cgi-script)",
                 "run.php: the configuration has a handler for it (application/x-httpd-php)",
                 "secret: a symbolic link leads to a file of another owner", "listed/: it is a directory"):
        assert log.count(f"free/{says}") == 1 and "POOL130" in log, says


def test_what_the_servers_own_rules_map_goes_there(httpd):
    """ProxyPass is the administrator's, and leads to no file."""
    server = served(httpd, "static")
    assert server.get("/free/proxied").status == 404  # this server's own /pool, over HTTP
    assert server.wait_for_log(r'alice.test 404 .*"GET /pool HTTP', name="access.log")


def test_without_static_a_tenant_rules(httpd):
    """What the word is against: the same directory, without it."""
    server = served(httpd, "")
    assert server.get("/free/sub/plain.txt").get("X-From") == "htaccess"
    assert server.get("/free/secret").text == "of User only"
    assert server.get("/free/run.cgi").text.strip() == str(server.user)
    assert server.get("/free/exec.shtml").text.strip() == f"[{server.user}\n]"
    assert server.get("/free/broken/plain.txt").status == 500


VHOST = """
    <ServerPool p>
        PoolUser #62399
        PoolGroup #62399
    </ServerPool>
    <VirtualHost *:80>
        DocumentRoot {root}/docs
        AssignServerPool p
        {more}
        <Location {url}>
            AssignServerPool none {how}
        </Location>
    </VirtualHost>
"""
SAYS = "AssignServerPool none at "


@pytest.mark.parametrize("name, makes, url, more, how, found", [
    ("its own", {"docs": (62399, 0o755)}, "/x", "", "", "docs"),
    ("for its group", {"docs": (0, 0o775, 62399)}, "/x", "", "", "docs"),
    ("for all", {"docs": (0, 0o777)}, "/x", "", "", "docs"),
    ("sticky", {"docs": (0, 0o1777)}, "/", "", "", "docs"),
    ("above", {"docs": (0, 0o755), "docs/a": (62399, 0o755), "docs/a/b": (0, 0o755)}, "/a/b", "", "", "docs/a"),
    ("below", {"docs": (0, 0o755), "docs/a": (0, 0o755), "docs/a/b": (62399, 0o755)}, "/a", "", "", "docs/a/b"),
    ("beside", {"docs": (0, 0o755), "docs/b": (62399, 0o755)}, "/a", "", "", None),
    ("nobody's", {"docs": (0, 0o755), "docs/a": (0, 0o755)}, "/", "", "", None),
    ("static", {"docs": (62399, 0o755)}, "/x", "", "static", None),
    ("alias away", {"docs": (62399, 0o755)}, "/x", 'Alias "/x" "/nowhere"', "", None),
    ("alias into", {"docs": (0, 0o755), "t": (62399, 0o755)}, "/x", 'Alias /x "{root}/t"', "", "t"),
    ("alias below", {"docs": (0, 0o755), "t": (62399, 0o755)}, "/x", "Alias /x/y {root}/t", "", "t"),
    ("alias beside", {"docs": (0, 0o755), "t": (62399, 0o755)}, "/x", "Alias /xy {root}/t", "", None),
    ("pattern", {"docs": (0, 0o755), "t": (62399, 0o755)}, '~ "^/x"', "Alias /y {root}/t", "", "t"),
    ("link", {"docs": (0, 0o755), "t": (62399, 0o755)}, "/l", "", "", "t"),
])
def test_configtest_warns(conf, name, makes, url, more, how, found):  # noqa: F811
    config = conf("", modules=("alias",))
    for path, (uid, mode, *gid) in makes.items():
        (config.root / path).mkdir()
        os.chown(config.root / path, uid, *(gid or [0]))
        (config.root / path).chmod(mode)
    if name == "link":
        os.symlink("../t", config.root / "docs/l")
    text = VHOST.format(root=config.root, more=more.format(root=config.root), url=url, how=how)
    config.file.write_text(config.head + text)
    done = config.test()
    assert done.returncode == 0, done.stderr
    if found is None:
        assert SAYS not in done.stderr
        return
    whose = "everybody" if name in ("for all", "sticky") else "pool p"
    line = config.line_of("AssignServerPool none")
    assert done.stderr.count(SAYS) == 1
    assert f"{SAYS}{config.file}:{line}: leads to {config.root}/{found}, which {whose} can write" in done.stderr
    assert "say AssignServerPool none static" in done.stderr


@pytest.mark.parametrize("words, says", [("none statik", "none can be followed by static only"),
                                         ("p static", "a pool is one name"), ("none static x", "AssignServerPool")])
def test_other_words_are_refused(conf, words, says):  # noqa: F811
    done = conf(VHOST.format(root="/", more="", url="/", how="").replace("Pool none ", f"Pool {words}")).test()
    assert done.returncode != 0 and says in done.stderr


def test_the_examples_of_the_documents_are_safe_ones(conf):  # noqa: F811
    """Each block of configuration with `none` in the documents, over a directory of a tenant."""
    import re
    import textwrap

    from test_config import REPO

    seen = 0
    for file in [*REPO.glob("docs/*.md"), REPO / "README.md"]:
        for block in re.findall(r"```apache\n(.*?)```", file.read_text(), re.S):
            if not re.search(r"AssignServerPool +none", block):
                continue
            seen += 1
            config = conf("", modules=("alias", "status", "authz_host"))
            (config.root / "docs").mkdir(exist_ok=True)
            os.chown(config.root / "docs", 62399, 62399)
            block = re.sub(r"AssignServerPool (?!none)\S+", "AssignServerPool p", block)
            block = block.replace("</VirtualHost>", f"DocumentRoot {config.root}/docs\n</VirtualHost>")
            pool = "<ServerPool p>\nPoolUser #62399\nPoolGroup #62399\n</ServerPool>\n"
            config.file.write_text(config.head + pool + textwrap.dedent(block))
            done = config.test()
            assert SAYS not in done.stderr and done.returncode == 0, (file, done.stderr)
    assert seen >= 1
