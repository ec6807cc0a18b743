"""Rules that send a pool's requests on to other servers: RewriteRule with [P], and handlers of mod_proxy."""

import re

import pytest

from backends import Backend, FastCgi
from harness import ALICE, Site

MODULES = ["proxy", "proxy_http", "proxy_fcgi", "proxy_wstunnel", "proxy_balancer", "lbmethod_byrequests",
           "slotmem_shm"]

RULES = """
    RewriteEngine on
    RewriteRule ^/?{where}/http/(.*) http://127.0.0.1:{http}/r/$1 [P]
    RewriteRule ^/?{where}/unix/(.*) unix:{root}/run/http.sock|http://backend/r/$1 [P]
    RewriteRule ^/?{where}/fcgi/(.*) fcgi://127.0.0.1:{fcgi}/r/$1 [P]
    RewriteRule ^/?{where}/ufcgi/(.*) unix:{root}/run/fcgi.sock|fcgi://backend/r/$1 [P]
    RewriteRule ^/?{where}/https/(.*) https://127.0.0.1:{tls}/r/$1 [P]
    RewriteRule ^/?{where}/ws/(.*) ws://127.0.0.1:{http}/r/$1 [P]
    RewriteRule ^/?{where}/wss/(.*) wss://127.0.0.1:{tls}/r/$1 [P]
    RewriteRule ^/?{where}/balancer/(.*) balancer://some/r/$1 [P]
"""

CONF = """
    SSLProxyEngine on
    SSLProxyVerify none
    SSLProxyCheckPeerName off
    <Location /handler>
        SetHandler "proxy:unix:{root}/run/fcgi.sock|fcgi://localhost"
    </Location>
    <Location /front>
        AssignServerPool none
    </Location>
    <Proxy balancer://some>
        BalancerMember http://127.0.0.1:{http}
    </Proxy>
    ProxyPass /passed-tls/ https://127.0.0.1:{tls}/p/
    ProxyPass /passed/ http://127.0.0.1:{http}/p/
"""

PLACES = {"server": "v", "htaccess": "h"}


@pytest.fixture(scope="module")
def proxy(shared_httpd, reference):
    http, fcgi = Backend(), FastCgi()
    site = Site("alice", ALICE, conf="")
    server = shared_httpd(sites=[site], modules=MODULES)
    unix_http, unix_fcgi = Backend(server.root / "run/http.sock"), FastCgi(server.root / "run/fcgi.sock")
    server.make_certificate()
    tls = Backend(tls=(server.certificate, server.key))
    words = {"http": http.port, "tls": tls.port, "fcgi": fcgi.port, "root": server.root}
    site.conf = RULES.format(where="v", **words) + CONF.format(**words)
    if reference:
        site.conf = site.conf.replace("AssignServerPool none", "")
    site.conf += RULES.format(where="front", **words)
    site.write(".htaccess", RULES.format(where="h", **words))
    site.write("handler/page", "")
    server.start()
    server.backends = {"http": http, "unix": unix_http, "fcgi": fcgi, "ufcgi": unix_fcgi, "tls": tls}
    yield server
    for backend in server.backends.values():
        backend.stop()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target", ["http", "unix"])
def test_rule_to_http(proxy, place, target):
    backend = proxy.backends[target]
    backend.seen.clear()
    found = proxy.request("POST", f"/{PLACES[place]}/{target}/thing?q=1", body=b"and its body")
    assert (found.status, found.text) == (200, "from the backend\nand its body")
    path, headers, uid = backend.seen[0]
    assert path == "/r/thing?q=1"
    assert headers["X-Forwarded-Host"] == "alice.test"
    # A rule of the pool's is followed by the pool's user, and what he may connect to counts.
    assert uid == proxy.sites["alice"].owner[0]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target", ["fcgi", "ufcgi"])
def test_rule_to_fastcgi(proxy, place, target):
    backend = proxy.backends[target]
    backend.seen.clear()
    found = proxy.request("POST", f"/{PLACES[place]}/{target}/thing?q=1", body=b"and its body")
    assert found.status == 200
    assert found.text == f"fastcgi POST /{PLACES[place]}/{target}/thing?q=1 and its body"
    values, uid = backend.seen[0]
    assert values["QUERY_STRING"] == "q=1"
    assert uid == proxy.sites["alice"].owner[0]


def test_handler_to_fastcgi(proxy):
    backend = proxy.backends["ufcgi"]
    backend.seen.clear()
    found = proxy.request("POST", "/handler/page", body=b"x")
    assert (found.status, found.text) == (200, "fastcgi POST /handler/page x")
    # As of a rule: the pool's user connects.
    assert [uid for _, uid in backend.seen] == [proxy.sites["alice"].owner[0]]


@pytest.mark.parametrize("path, target, seen", [
    ("/passed/x", "http", "/p/x"),
    ("/passed-tls/x", "tls", "/p/x"),
    ("/front/http/x", "http", "/r/x"),
    ("/front/https/x", "tls", "/r/x"),
    ("/front/balancer/x", "http", "/r/x"),
])
def test_the_frontend_itself_asks(proxy, path, target, seen):
    """ProxyPass, and the rules of a Location that no pool has: mod_proxy and mod_ssl of the frontend."""
    for backend in proxy.backends.values():
        backend.seen.clear()
    assert proxy.get(path).text == "from the backend\n"
    assert [(path, uid) for path, _, uid in proxy.backends[target].seen] == [(seen, proxy.user)]
    assert not [name for name, backend in proxy.backends.items() if backend.seen and name != target]


@pytest.mark.pool_only
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target", ["https", "wss", "ws", "balancer"])
def test_rule_to_what_only_a_frontend_can_is_refused_with_the_remedy(proxy, place, target):
    backends = [proxy.backends["http"], proxy.backends["tls"]]
    for backend in backends:
        backend.seen.clear()
    at = len(proxy.error_log())
    found = proxy.request("GET", f"/{PLACES[place]}/{target}/thing",
                          headers=[("Upgrade", "websocket")] if "ws" in target else [])
    assert found.status == 500
    assert [b.seen for b in backends] == [[], []]
    log = proxy.error_log()[at:]
    lines = [line for line in log.splitlines() if "error]" in line]
    assert len(lines) == 1, log
    assert re.search(r"POOL116: \[pool alice pid \d+\] a server pool cannot send a request on to %s://.*"
                     r"use ProxyPass, which the frontend follows, or AssignServerPool none" % target, lines[0])
