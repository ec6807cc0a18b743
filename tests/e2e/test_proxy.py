"""Rules that send a pool's requests on to other servers: RewriteRule with [P], and handlers of mod_proxy."""

import re

import pytest

from backends import Backend, FastCgi, WebSocket, websocket_accept
from harness import ALICE, FRONTEND, H2, Site

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
    ("/v/https/x", "tls", "/r/x"),
    ("/v/balancer/x", "http", "/r/x"),
])
def test_the_frontend_itself_asks(proxy, path, target, seen):
    """ProxyPass, the rules of a Location that no pool has, and those to TLS or a balancer: the frontend's modules."""
    for backend in proxy.backends.values():
        backend.seen.clear()
    assert proxy.get(path).text == "from the backend\n"
    assert [(path, uid) for path, _, uid in proxy.backends[target].seen] == [(seen, proxy.user)]
    assert not [name for name, backend in proxy.backends.items() if backend.seen and name != target]


@pytest.mark.pool_only
@pytest.mark.parametrize("target", ["https", "wss", "ws", "balancer"])
def test_rule_of_a_tenant_to_what_only_a_frontend_can_is_refused_with_the_remedy(proxy, target):
    backends = [proxy.backends["http"], proxy.backends["tls"]]
    for backend in backends:
        backend.seen.clear()
    at = len(proxy.error_log())
    found = proxy.request("GET", f"/h/{target}/thing", headers=[("Upgrade", "websocket")] if "ws" in target else [])
    assert found.status == 500
    assert [b.seen for b in backends] == [[], []]
    log = proxy.error_log()[at:]
    lines = [line for line in log.splitlines() if "error]" in line]
    assert len(lines) == 1, log
    assert re.search(r"POOL116: \[pool alice pid \d+\] a server pool cannot send a request on to %s://.*"
                     r"use ProxyPass or a rule of the virtual host, which the frontend follows, or AssignServerPool "
                     r"none" % target, lines[0])


# The rules of a virtual host that lead to what only a frontend can speak to; what each URL leads to.
UPGRADES = """
    RewriteEngine on
    SSLProxyEngine on
    SSLProxyVerify none
    SSLProxyCheckPeerName off
    RewriteRule ^/closed - [F]
    RewriteRule ^/secure/(.*) https://127.0.0.1:{tls}/s/$1 [P,L]
    RewriteRule ^/many/(.*) balancer://{name}/m/$1 [P]
    RewriteRule ^/late/closed - [F]
    RewriteRule ^/late/(.*) balancer://{name}/m/$1 [P]
    RewriteRule ^/over/(.*) https://127.0.0.1:{tls}/s/$1 [P]
    RewriteRule ^/over/closed - [F]
    RewriteRule ^/env/(.*) - [E=UPSTREAM:https://127.0.0.1:{tls}/s/$1]
    RewriteCond %{{ENV:UPSTREAM}} .
    RewriteRule ^ %{{ENV:UPSTREAM}} [P]
    RewriteCond %{{HTTP:Upgrade}} websocket [NC]
    RewriteCond %{{REQUEST_URI}} ^/tls/
    RewriteRule ^/(.*) wss://127.0.0.1:{wss}/w/$1 [P,L]
    RewriteCond %{{HTTP:Upgrade}} websocket [NC]
    RewriteCond %{{HTTP:Connection}} upgrade [NC]
    RewriteRule ^/(.*) "ws://127.0.0.1:{ws}/w/$1" [proxy,last]
    Header always set X-Of-The-Host yes
    <Proxy balancer://{name}>
        BalancerMember http://127.0.0.1:{http}
    </Proxy>
    <Location /denied>
        Require all denied
    </Location>
"""
HOSTS = {
    "before": "ProxyPass / http://127.0.0.1:{http}/p/\n",
    "excluded": "ProxyPass / !\n",
    "alone": "",
}


@pytest.fixture(scope="module", params=["assigned", "default"])
def upgrades(request, shared_httpd, kind):
    if request.param == "default" and (not kind["with_pool"] or kind["mpm"] == "prefork"):
        pytest.skip("there is no pool `default`")
    if request.param == "assigned":
        sites = [Site(name, ALICE, pool="alice", declared=False) for name in HOSTS]
        pools = f"<ServerPool alice>\nPoolUser #{ALICE}\nPoolGroup #{ALICE}\n</ServerPool>\n"
    else:
        sites, pools = [Site(name, FRONTEND, pool=None) for name in HOSTS], ""
    server = shared_httpd(sites=sites, modules=MODULES, global_pool_conf=pools)
    server.make_certificate()
    pair = (server.certificate, server.key)
    server.backends = {"http": Backend(), "tls": Backend(tls=pair), "ws": WebSocket(), "wss": WebSocket(tls=pair)}
    ports = {name: backend.port for name, backend in server.backends.items()}
    for site in sites:
        site.conf = (UPGRADES + HOSTS[site.name]).format(name=site.name, **ports)
        site.write("file.txt", "of the pool\n")
    server.start()
    yield server
    for backend in server.backends.values():
        backend.stop()


def seen_by(server):
    found = [(name, path, uid) for name, b in server.backends.items() for path, _, uid in b.seen]
    for backend in server.backends.values():
        backend.seen.clear()
    return found


def open_websocket(connection, path, host):
    connection.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n"
                    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode())
    return connection.head()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path, backend", [("/chat?room=1", "ws"), ("/tls/chat", "wss")])
def test_rule_of_a_virtual_host_to_a_websocket(upgrades, host, path, backend, tls):
    seen_by(upgrades)
    with upgrades.connect(tls=tls) as c:
        found = open_websocket(c, path, upgrades.sites[host].host)
        assert found.status == 101
        assert found.get("Sec-WebSocket-Accept").encode() == websocket_accept("dGhlIHNhbXBsZSBub25jZQ==")
        for text in (b"hello", b"x" * 100, b"bye"):
            c.send(bytes([0x81, 0x80 | len(text)]) + bytes(4) + text)
            assert c.exactly(2 + len(text))[0] == bytes([0x81, len(text)]) + text.upper()
        c.send(b"\x88\x80" + bytes(4))
        assert c.exactly(2)[0] == b"\x88\x00"
        assert c.is_closed()
    assert seen_by(upgrades) == [(backend, "/w" + path, upgrades.user)]


@pytest.mark.parametrize("host", HOSTS)
def test_a_websocket_is_refused_where_the_host_refuses_it(upgrades, host):
    seen_by(upgrades)
    for path in ("/closed", "/denied/x", "/%63losed", "//closed"):
        with upgrades.connect() as c:
            assert open_websocket(c, path, upgrades.sites[host].host).status == 403, path
    assert seen_by(upgrades) == []


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
@pytest.mark.parametrize("host", HOSTS)
def test_rule_of_a_virtual_host_to_tls_and_to_a_balancer(upgrades, kind, host, protocol):
    if protocol == "h2" and kind["mpm"] == "prefork":
        pytest.skip("no HTTP/2 with prefork")
    name = upgrades.sites[host].host

    def ask(path, body):
        if protocol == "h2":
            with H2(upgrades, tls=True, host=name) as c:
                return c.get(path, method="POST", body=body)
        return upgrades.request("POST", path, host, body=body)

    seen_by(upgrades)
    for path, backend, at in (("/secure/a?q=1", "tls", "/s/a?q=1"), ("/many/b", "http", "/m/b"),
                              ("/late/c%20d", "http", "/m/c%20d"), ("/over/e", "tls", "/s/e"),
                              ("/over/closed", "tls", "/s/closed"), ("/env/f", "tls", "/s/f")):
        found = ask(path, b"and its body")
        assert (found.status, found.text) == (200, "from the backend\nand its body"), path
        assert found.get("X-Of-The-Host") == "yes"
        assert seen_by(upgrades) == [(backend, at, upgrades.user)], path
    for path in ("/closed", "/late/closed", "/secure/../closed"):
        assert ask(path, b"").status == 403, path
    assert seen_by(upgrades) == []
    if host != "before":
        assert upgrades.get("/file.txt", site=host).text == "of the pool\n"
        assert seen_by(upgrades) == []
