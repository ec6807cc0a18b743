"""What comes first where a virtual host has ProxyPass, rules and a pool: the order of stock httpd.

Each case is a virtual host, and what each of its URLs leads to: a status, `301 LOCATION`, `file TEXT`, or `backend PATH`
with what the backend was sent. The reference gives the same.
"""

import textwrap

import pytest

from backends import Backend
from harness import ALICE, FRONTEND, H2, Site, eventually, has_module, run
from test_config import conf  # noqa: F401 - conf is a fixture

ALL = "ProxyPass / http://127.0.0.1:@B@/p/\n"
API = "ProxyPass /api http://127.0.0.1:@B@/p\n"
ON = "RewriteEngine on\n"
ADMIN = ON + "RewriteRule ^/admin - [F]\n"

CASES = {
    "forbidden": (ADMIN + ALL, {
        "/admin": "403", "/admin/x?q=1": "403", "/%61dmin": "403", "//admin": "403", "/./admin": "403",
        "/x/../admin": "403", "/admin;v=1": "403", "/admin%20x": "403", "/%2561dmin": "backend /p/%2561dmin",
        "/ADMIN": "backend /p/ADMIN", "/;x/admin": "backend /p/;x/admin", "/other?q=1": "backend /p/other?q=1",
        "/": "backend /p/", "/admi%6e": "403", "/a%2Fdmin": "404",
    }),
    "nocase": (ON + "RewriteRule ^/admin - [F,NC]\n" + ALL, {"/ADMIN": "403", "/adm": "backend /p/adm"}),
    "statuses": (ON + """
        RewriteRule ^/gone - [G]
        RewriteRule ^/teapot - [R=406]
        RewriteRule ^/moved/(.*) http://elsewhere.test/$1 [R=301,L]
        RewriteRule ^/here/(.*) /there/$1 [R,NE]
        RewriteRule ^/remote/(.*) http://elsewhere.test/$1
        RewriteRule ^/bad\\sone - [R=400]
    """ + ALL, {
        "/gone": "410", "/teapot": "406", "/moved/a?b=c": "301 http://elsewhere.test/a?b=c",
        "/here/x": "302 @SELF@/there/x", "/remote/y": "302 http://elsewhere.test/y", "/bad%20one": "400",
        "/there/x": "backend /p/there/x",
    }),
    "files": (ON + """
        RewriteRule ^/absolute$ @DOCROOT@/real.txt
        RewriteRule ^/relative$ /real.txt
        RewriteRule ^/last$ /real.txt [L]
        RewriteRule ^/end$ /real.txt [END]
        RewriteRule ^/missing$ /no-such-file [L]
        RewriteRule ^/refused$ /denied/real.txt [L]
        RewriteRule ^/through$ /real.txt [PT]
    """ + ALL, {
        "/absolute": "file real", "/relative": "file real", "/last?q=1": "file real", "/end": "file real",
        "/missing": "404", "/refused": "403", "/through": "backend /p/real.txt", "/real.txt": "backend /p/real.txt",
    }),
    "through": (ON + """
        RewriteRule ^/short/(.*) /api/$1 [PT]
        RewriteRule ^/query/(.*) /api/q?a=$1 [PT]
        RewriteRule ^/add/(.*) /api/q?a=$1 [PT,QSA]
        RewriteRule ^/drop/(.*) /api/$1 [PT,QSD]
        RewriteRule ^/api/closed - [F]
        RewriteRule ^/turn/(.*) /api/closed/$1
        RewriteRule ^/api/closed - [F]
        RewriteRule ^/no/(.*) /api/$1 [L]
        RewriteRule ^/aliased/(.*) /alias/$1 [PT]
    """ + API + "Alias /alias @DOCROOT@\n", {
        "/short/x?q=1": "backend /p/x?q=1", "/query/x?q=1": "backend /p/q?a=x", "/add/x?q=1": "backend /p/q?a=x&q=1",
        "/drop/x?q=1": "backend /p/x", "/api/closed": "403", "/turn/x": "403", "/short/closed": "backend /p/closed",
        "/no/x": "404", "/aliased/real.txt": "file real", "/api/x": "backend /p/x", "/api": "backend /p",
        "/apix": "404", "/real.txt": "file real",
    }),
    "flags": (ON + """
        RewriteRule ^/skip - [S=1]
        RewriteRule ^/(skip|hit) - [F]
        RewriteCond %{QUERY_STRING} chain
        RewriteRule ^/chain - [C]
        RewriteRule ^/chain - [F]
        RewriteRule ^/n/(.*)b(.*) /n/$1$2 [N]
        RewriteRule ^/n/aa$ - [F]
        RewriteRule ^/end - [END]
        RewriteRule ^/end - [F]
        RewriteRule ^/last - [L]
        RewriteRule ^/last - [F]
        RewriteRule !^/(skip|chain|n|end|last|yes) - [R=406]
        RewriteCond %{HTTP_USER_AGENT} robot
        RewriteRule ^/yes - [F]
    """ + ALL, {
        "/skip": "backend /p/skip", "/hit": "403", "/chain": "backend /p/chain", "/chain?chain": "403",
        "/n/abba": "403", "/end": "backend /p/end", "/last": "backend /p/last", "/other": "406",
        "/yes": "backend /p/yes",
    }),
    "excluded": (ADMIN + """
        ProxyPass /real.txt !
        Redirect /moved http://elsewhere.test/new
        Alias /doc @DOCROOT@
        ProxyPass /doc !
    """ + ALL, {
        "/real.txt": "file real", "/admin": "403", "/doc/real.txt": "file real", "/moved": "backend /p/moved",
    }),
    "aliases": (ON + """
        RewriteRule ^/old/secret - [F]
        Redirect /old http://elsewhere.test/new
        ScriptAlias /cgi/ @DOCROOT@/cgi/
        AliasMatch ^/m/(.*) @DOCROOT@/$1
    """ + API, {
        "/old/secret": "403", "/old/x": "302 http://elsewhere.test/new/x", "/m/real.txt": "file real",
        "/cgi/script": "file from the script", "/api/x": "backend /p/x",
    }),
    "location": (ON + """
        RewriteRule ^/loc/secret - [F]
        <Location /loc>
            ProxyPass http://127.0.0.1:@B@/p
        </Location>
        <LocationMatch ^/match/(.*)>
            ProxyPassMatch http://127.0.0.1:@B@/p/$1
        </LocationMatch>
        RewriteRule ^/match/secret - [F]
        <Location /loc/denied>
            Require all denied
        </Location>
    """, {
        "/loc/secret": "403", "/loc/x": "backend /p/x", "/match/secret": "403", "/real.txt": "file real",
        "/loc/denied": "403",
    }),
    "match": (ADMIN + """
        ProxyPassMatch ^/(admin.*|x[0-9]+)$ http://127.0.0.1:@B@/p/$1
    """, {"/admin": "403", "/x12": "backend /p/x12", "/xy": "404"}),
    "map": (ON + """
        RewriteMap closed txt:@ROOT@/conf/closed.txt
        RewriteMap lower int:tolower
        RewriteMap ask prg:@ROOT@/conf/ask
        RewriteCond ${closed:%{REQUEST_URI}|no} =yes
        RewriteRule ^ - [F]
        RewriteRule ^/low/(.*) /api/${lower:$1} [PT]
        RewriteCond ${ask:%{REQUEST_URI}} =refuse
        RewriteRule ^/ask/ - [F]
    """ + ALL + API, {
        "/closed/by/map": "403", "/open": "backend /p/open", "/low/ABC": "backend /p/api/abc",
        "/ask/bad": "403", "/ask/good": "backend /p/ask/good",
    }),
    "inherit": (ON + "RewriteOptions Inherit\n" + ALL, {"/of-the-server": "403", "/x": "backend /p/x"}),
    "not-inherited": (ON + "RewriteRule ^/admin - [F]\n" + ALL, {"/of-the-server": "backend /p/of-the-server"}),
    "engine-off": ("RewriteEngine off\nRewriteRule ^/admin - [F]\n" + ALL, {"/admin": "backend /p/admin"}),
    "stat": (ON + """
        RewriteCond @ROOT@/conf/%{REQUEST_URI} !-f
        RewriteRule ^/(.*) /api/$1 [PT]
    """ + API, {"/seen.txt": "404", "/x": "backend /p/x"}),
    "ahead": (ON + """
        RewriteCond %{LA-U:REQUEST_FILENAME} real\\.txt$
        RewriteRule ^/m/ - [F]
        RewriteCond %{REQUEST_URI} -U
        RewriteRule ^/u/ - [F]
        RewriteCond @DOCROOT@%{REQUEST_URI} -F
        RewriteRule ^/f/ - [F]
        RewriteRule ^/e/ - [E=NAME:%{LA-U:REQUEST_FILENAME}]
        RewriteCond %{ENV:NAME} real\\.txt$
        RewriteRule ^/e/ - [F]
        RewriteCond expr "-U %{REQUEST_URI}"
        RewriteRule ^/x/ - [F]
        AliasMatch ^/[mue]/(.*) @DOCROOT@/$1
        ProxyPassMatch ^/[muefx]/(?!real|denied)(.*) http://127.0.0.1:@B@/p/$1
        <Location /x/denied>
            Require all denied
        </Location>
        ProxyPass /x/denied !
    """, {
        "/m/real.txt": "403", "/m/x": "backend /p/x", "/u/real.txt": "403", "/u/denied": "403",
        "/f/real.txt": "403", "/f/x": "backend /p/x", "/e/real.txt": "403", "/e/x": "backend /p/x",
        "/x/y": "403", "/x/denied": "403",
    }),
    "slashes": (ON + "RewriteRule ^/a/dmin - [F]\nAllowEncodedSlashes On\n" + ALL, {
        "/a%2Fdmin": "403", "/a/dmin": "403", "/b%2Fc": "backend /p/b/c", "/a/%2e%2e/a/dmin": "403",
        "/x%2F..%2Fa/dmin": "403",
    }),
    "undecoded": (ON + "RewriteRule ^/a/dmin - [F]\nAllowEncodedSlashes NoDecode\n" + ALL, {
        "/a%2Fdmin": "backend /p/a%2Fdmin", "/a/dmin": "403",
    }),
    "unmerged": (ADMIN + "MergeSlashes off\n" + ALL, {"//admin": "403", "/admin": "403"}),
    "no-proxy": (ON + "RewriteRule ^/real - [E=no-proxy:1]\n" + ALL, {
        "/real.txt": "file real", "/x": "backend /p/x",
    }),
    "interpolate": (ON + """
        RewriteRule ^/i/(\\w+)/secret - [F]
        RewriteRule ^/i/(\\w+) - [E=PART:$1]
        ProxyPassInterpolateEnv On
        ProxyPass /i http://127.0.0.1:@B@/${PART} interpolate
    """, {"/i/abc/x": "backend /abc/abc/x", "/i/abc/secret": "403"}),
    "servlet": (ADMIN + """
        ProxyPass /s http://127.0.0.1:@B@/p mapping=servlet
        RewriteRule ^/s/secret - [F]
    """, {"/admin": "403", "/s/x;v=1": "backend /p/x;v=1", "/s/secret": "backend /p/secret", "/real.txt": "file real"}),
    "encoded": (ADMIN + """
        ProxyPass /s http://127.0.0.1:@B@/p mapping=encoded
        RewriteRule ^/s/secret - [F]
    """, {"/admin": "403", "/s/a%2Fb": "backend /p/a%2Fb", "/s/secret": "backend /p/secret"}),
    "to-proxy": (ON + """
        RewriteRule ^/p/(.*) http://127.0.0.1:@B@/rule/$1 [P]
        RewriteRule ^/p/secret - [F]
        RewriteRule ^/q/secret - [F]
        RewriteRule ^/q/(.*) http://127.0.0.1:@B@/rule/$1 [P]
    """ + ALL, {
        "/p/x?q": "backend /rule/x?q", "/p/secret": "backend /rule/secret", "/q/secret": "403", "/x": "backend /p/x",
    }),
    "within": (ADMIN + API + """
        ErrorDocument 404 /api/missing
        ErrorDocument 406 /admin/406
        AddType text/html .shtml
        AddOutputFilter INCLUDES .shtml
    """, {
        "/page.shtml": "file [from the backend]", "/refused.shtml": "file [(none)]",
        "/no-such-file": "backend /p/missing", "/go": "backend /p/went", "/sent": "403",
        "/missing-too": "backend /p/missing", "/api/shtml": "backend /p/shtml",
    }),
    "fallback": (ADMIN + API + "FallbackResource /api/fallback\n", {
        "/real.txt": "file real", "/admin": "403", "/none": "backend /p/fallback",
    }),
    "denied": (ON + """
        RewriteRule ^/x/secret - [F]
        <Location /x>
            Require method POST
        </Location>
        <Proxy *>
            Require all granted
        </Proxy>
    """ + ALL, {"/x/y": "403", "/x/secret": "403", "/z": "backend /p/z"}),
    "expr": (ON + """
        RewriteCond expr "%{REQUEST_URI} =~ m#^/admin# && %{REQUEST_METHOD} == 'GET'"
        RewriteRule ^ - [F]
        <If "%{REQUEST_URI} =~ m#^/if/#">
            RewriteEngine on
            RewriteRule . - [F]
        </If>
    """ + ALL, {"/admin": "403", "/if/x": "403", "/x": "backend /p/x"}),
    "plain": (ALL, {"/x": "backend /p/x"}),
    "rules-only": (ADMIN, {"/admin": "403", "/real.txt": "file real"}),
}

SERVER = """
    RewriteEngine on
    RewriteRule ^/of-the-server - [F]
"""

VARIANTS = ["assigned", "default"]


@pytest.fixture(scope="module", params=VARIANTS)
def mapped(request, shared_httpd, kind):
    """All cases in one server: each a virtual host, assigned to one pool or to none."""
    variant = request.param
    if variant == "default" and (not kind["with_pool"] or kind["mpm"] == "prefork"):
        pytest.skip("there is no pool `default`")
    backend = Backend()
    if variant == "assigned":
        sites = [Site(name, ALICE, pool="alice", declared=False) for name in CASES]
        pools = f"<ServerPool alice>\nPoolUser #{ALICE}\nPoolGroup #{ALICE}\n</ServerPool>\n"
    else:
        sites, pools = [Site(name, FRONTEND, pool=None) for name in CASES], ""
    server = shared_httpd(
        sites=sites, modules=["proxy", "proxy_http", "include", "cgi"], global_pool_conf=pools, conf=SERVER,
        define={"B": backend.port},
    )
    for site in sites:
        site.conf = textwrap.dedent(CASES[site.name][0])
        site.write("real.txt", "real")
        site.write("denied/real.txt", "real")
        site.write("denied/.htaccess", "Require all denied")
        site.write("f/real.txt", "real")
        site.script("cgi/script", "#!/bin/sh\necho Content-Type: text/plain\necho\necho from the script\n")
        site.write("page.shtml", '[<!--#include virtual="/api/x" -->]')
        site.write("refused.shtml", '[<!--#config errmsg="(none)" --><!--#include virtual="/admin/x" -->]')
    within = server.sites["within"]
    within.write(".htaccess", ON + "RewriteRule ^go$ /api/went [L]\nRewriteRule ^sent$ /admin/x [L]\n")
    write = lambda name, text, mode: (server.root / "conf" / name).write_text(text) and (
        server.root / "conf" / name).chmod(mode)
    write("closed.txt", "/closed/by/map yes\n", 0o644)
    write("seen.txt", "", 0o644)
    write("ask", "#!/bin/sh\nwhile read -r key; do case $key in /ask/bad) echo refuse;; *) echo fine;; esac; done\n",
          0o755)
    server.start()
    server.backend = backend
    yield server
    backend.stop()


def asked(server, case, path, protocol, headers=()):
    server.backend.seen.clear()
    host = server.sites[case].host
    if protocol == "h2":
        with H2(server, tls=True, host=host) as c:
            return c.get(path, headers=[(k.lower(), v) for k, v in headers])
    return server.request("GET", path, host, headers=headers)


def outcome(server, found):
    """As the cases say it."""
    seen = [path for path, *_ in server.backend.seen]
    if found.status == 200 and len(seen) == 1 and found.text == "from the backend\n":
        return f"backend {seen[0]}"
    if found.status == 200:
        return f"file {found.text.strip()}".replace("[from the backend\n]", "[from the backend]")
    if 300 <= found.status < 400:
        location = found.get("Location").replace(f":{server.port}/", "/").replace(f":{server.tls_port}/", "/")
        return f"{found.status} {location}"
    assert not seen, "the backend was asked all the same"
    return str(found.status)


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
@pytest.mark.parametrize("case, path", [(case, path) for case, (_, paths) in CASES.items() for path in paths])
def test_order(mapped, kind, case, path, protocol):
    if protocol == "h2" and kind["mpm"] == "prefork":
        pytest.skip("no HTTP/2 with prefork")
    scheme = "https" if protocol == "h2" else "http"
    expected = CASES[case][1][path].replace("@SELF@", f"{scheme}://{mapped.sites[case].host}")
    assert outcome(mapped, asked(mapped, case, path, protocol)) == expected


@pytest.fixture
def one(httpd, kind):
    """One virtual host with a backend; the case's words are replaced in `conf`."""
    backend = Backend()

    def make(conf, pool="=", modules=(), files=(), **kw):
        site = Site("alice", ALICE if pool else FRONTEND, conf=textwrap.dedent(conf), pool=pool)
        server = httpd(sites=[site], modules=["proxy", "proxy_http", *modules], define={"B": backend.port}, **kw)
        server.backend = backend
        site.write("real.txt", "real")
        return server

    yield make
    backend.stop()


PROTOCOLS = ["http/1.1", "h2"]


def skip_h2(kind, protocol):
    if protocol == "h2" and kind["mpm"] == "prefork":
        pytest.skip("no HTTP/2 with prefork")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_rules_leave_in_a_request_is_there_once(one, kind, protocol):
    """Variables, cookies, fields: of a request that goes to the backend and of one that the pool serves."""
    skip_h2(kind, protocol)
    server = one(ON + """
        RewriteCond %{HTTP:X-Wish} wish
        RewriteRule ^/ - [E=WISH:%0]
        RewriteRule ^/ - [E=WHO:rule,CO=taste:sweet:alice.test]
        RewriteRule ^/real - [E=KIND:file]
        RewriteRule ^/via/(.*) /api/$1 [PT]
        RequestHeader set X-Who %{WHO}e
        Header set X-Kind %{KIND}e env=KIND
    """ + API, log_format='%U|%q|%{WHO}e|%{KIND}e|%{WISH}e|%>s|%{Set-Cookie}o')
    for path, kind_of in (("/real.txt?a=b", "file"), ("/via/x?a=b", None), ("/nothing", None)):
        found = asked(server.start() if server.main is None else server, "alice", path, protocol, [("X-Wish", "wish")])
        assert [c.split(";")[0] for c in found.all("Set-Cookie")] == ["taste=sweet"], path
        assert found.get("X-Kind") == kind_of
        vary = [v for v in ",".join(found.all("Vary")).replace(" ", "").split(",") if v]
        # mod_proxy puts the backend's fields in the place of those, an error drops them.
        assert vary == (["X-Wish"] if path.startswith("/real") else []), path
        if path.startswith("/via"):
            (seen, headers, _), = server.backend.seen
            assert (seen, headers.get("X-Who")) == ("/p/x?a=b", "rule")
    cookie = "taste=sweet; path=/; domain=alice.test"
    eventually(lambda: len(server.access_log()) == 3)
    assert sorted(server.access_log()) == [
        f"/api/x|?a=b|rule|-|wish|200|{cookie}", f"/nothing||rule|-|wish|404|{cookie}",
        f"/real.txt|?a=b|rule|file|wish|200|{cookie}"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("pool", ["=", None])
def test_express_comes_behind_the_rules_too(one, kind, pool, protocol):
    skip_h2(kind, protocol)
    server = one(ADMIN + "ProxyExpressEnable on\nProxyExpressDBMFile @ROOT@/conf/express\n", pool=pool,
                 modules=["proxy_express"])
    (server.root / "conf/express.txt").write_text(f"alice.test http://127.0.0.1:{server.backend.port}\n")
    run("httxt2dbm", "-i", server.root / "conf/express.txt", "-o", server.root / "conf/express")
    for file in (server.root / "conf").glob("express*"):
        file.chmod(0o644)
    server.start()
    assert outcome(server, asked(server, "alice", "/admin", protocol)) == "403"
    assert outcome(server, asked(server, "alice", "/x", protocol)) == "backend /x"


@pytest.mark.skipif(not has_module("wsgi"), reason="mod_wsgi is not installed")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_wsgi_comes_behind_rules_and_redirects(one, kind, protocol):
    """Where nothing is assigned, WSGIScriptAlias stays in the frontend."""
    skip_h2(kind, protocol)
    server = one(ON + """
        RewriteRule ^/app/secret - [F]
        Redirect /app/old http://elsewhere.test/new
        Alias /app/file @DOCROOT@/real.txt
        WSGIScriptAlias /app @ROOT@/conf/app.wsgi
        <Directory @ROOT@/conf>
            Require all granted
        </Directory>
    """ + API, pool=None, modules=["wsgi"])
    script = server.root / "conf/app.wsgi"
    script.write_text("def application(env, start):\n"
                      "    start('200 OK', [('Content-Type', 'text/plain')])\n    return [b'from wsgi']\n")
    script.chmod(0o644)
    server.start()
    for path, expected in {"/app/x": "file from wsgi", "/app/secret": "403", "/app/file": "file real",
                           "/app/old/x": "302 http://elsewhere.test/new/x", "/api/x": "backend /p/x",
                           "/real.txt": "file real"}.items():
        assert outcome(server, asked(server, "alice", path, protocol)) == expected, path


@pytest.mark.pool_only
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_rule_that_looks_ahead_leads_to_the_worker(one, kind, protocol):
    """There ProxyPass follows as the pool's user, and what only a frontend can do is refused, with the remedy."""
    skip_h2(kind, protocol)
    server = one(ON + """
        RewriteCond %{LA-U:REMOTE_USER} =mallory
        RewriteRule ^/(api|tls)/ - [F]
        ProxyPass /tls https://127.0.0.1:@B@/p
        SSLProxyEngine on
    """ + API)
    server.start()
    assert outcome(server, asked(server, "alice", "/api/x", protocol)) == "backend /p/x"
    assert [uid for *_, uid in server.backend.seen] == [ALICE]
    assert outcome(server, asked(server, "alice", "/tls/x", protocol)) == "500"
    assert server.count_log(r"POOL116: \[pool alice pid \d+\] a server pool cannot send a request on to https://") == 1


@pytest.mark.pool_only
@pytest.mark.parametrize("directive, module", [("LuaHookTranslateName /x.lua f early", "lua"),
                                               ("PerlTransHandler Some::Handler", "perl")])
def test_code_that_would_come_before_proxypass_is_refused(conf, directive, module):  # noqa: F811
    text = f"""
        <ServerPool p>
            PoolUser #65534
        </ServerPool>
        <ServerPool none-such>
            PoolUser #65533
        </ServerPool>
        <VirtualHost *:80>
            AssignServerPool {{assigned}}
            ProxyPass / http://127.0.0.1:1/
        </VirtualHost>
        {directive}
    """
    if not has_module(module):
        pytest.skip(f"mod_{module} is not installed")
    modules = ("proxy", "rewrite", module)
    done = conf(text.format(assigned="p"), modules=modules).test()
    says = f"{directive} at "
    assert done.returncode != 0
    assert says in done.stderr and f"say PoolModuleRole mod_{module}.c frontend" in done.stderr
    for more in (f"PoolModuleRole mod_{module}.c worker\n", f"PoolModuleRole mod_{module}.c frontend\n"):
        assert says not in conf(more + text.format(assigned="p"), modules=modules).test().stderr
    assert says in conf(text.format(assigned="none-such"), modules=modules).test().stderr
    for none in ("none", '"none"', "none static"):
        assert says not in conf(text.format(assigned=none), modules=modules).test().stderr
    without = text.format(assigned="p").replace(directive, "")
    assert "translate_name" not in conf(without, modules=modules).test().stderr


@pytest.mark.pool_only
@pytest.mark.skipif(not has_module("wsgi"), reason="mod_wsgi is not installed")
def test_wsgi_applications_stay_in_the_frontend(httpd):
    """In a virtual host with a pool, behind the rules, aliases and redirects that stock httpd asks first."""
    site = Site("alice", ALICE, conf=f"""
        RewriteEngine on
        RewriteRule ^/app/secret - [F]
        RewriteRule ^/through/(.*) /app/$1 [PT]
        RewriteRule ^/app/page /text.txt
        Redirect /app/moved http://elsewhere.test/
        Alias /app/alias @DOCROOT@/text.txt
        WSGIScriptAlias /app @ROOT@/apps/app.py
        WSGIScriptAliasMatch ^/other-(\\w+) @ROOT@/apps/app.py
        <Directory @ROOT@/apps>
            Require all granted
        </Directory>
        <Location /app/closed>
            Require all denied
        </Location>
    """)
    server = httpd(sites=[site], modules=["wsgi"])
    site.write("text.txt", "text")
    site.write("who.php", "<?php echo posix_geteuid();")
    apps = server.root / "apps"
    apps.mkdir()
    (apps / "app.py").write_text(textwrap.dedent("""
        import os
        def application(environ, start_response):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"%d %s" % (os.geteuid(), environ["PATH_INFO"].encode())]
    """))
    apps.chmod(0o755)
    (apps / "app.py").chmod(0o644)
    server.start()
    paths = {
        "/app": (200, f"{FRONTEND} "), "/app/x": (200, f"{FRONTEND} /x"), "/through/y": (200, f"{FRONTEND} /y"),
        "/other-z": (200, f"{FRONTEND} "), "/app/secret": (403, None), "/app/closed": (403, None), "/app/moved": (302, None),
        "/app/alias": (200, "text"), "/app/page": (200, "text"), "/who.php": (200, str(ALICE)), "/text.txt": (200, "text"),
        "/applied": (404, None),
    }
    for path, (status, text) in paths.items():
        found = server.get(path)
        assert (found.status, found.text if text else None) == (status, text), path
    with H2(server, tls=True) as c:
        for path, (status, text) in paths.items():
            found = c.get(path)
            assert (found.status, found.text if text else None) == (status, text), path
