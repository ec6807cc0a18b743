"""Modules that Debian has in packages of their own: what they do for a pool's request is what they do in stock httpd.

test_modules.py loads each; here are those that a pool treats in a way of its own.
"""

import re
import socket
import struct
import threading

import pytest

from harness import ALICE, H2, Site, eventually, has_module


def needs(*modules):
    lacking = [m for m in modules if not has_module(m)]
    return pytest.mark.skipif(bool(lacking), reason=f"not installed: {' '.join(lacking)}")


def ask(server, site, path, protocol, headers=()):
    if protocol == "h2":
        with H2(server, tls=True, host=site.host) as c:
            return c.get(path, headers=headers)
    return server.get(path, headers=headers)


@pytest.fixture(params=["http/1.1", "h2"])
def protocol(request, kind):
    if request.param == "h2" and kind["mpm"] == "prefork":
        pytest.skip("no HTTP/2 with prefork")
    return request.param


# -- addresses --


@needs("rpaf")
def test_an_address_that_a_module_of_the_frontend_writes_decides(httpd, protocol):
    """mod_rpaf writes into the connection's address, which is the user agent's as well, and leaves the text."""
    site = Site("alice", ALICE, conf="""
        <Location /far.txt>
            Require ip 9.8.7.6
        </Location>
        <Location /near.txt>
            Require ip 127.0.0.1
        </Location>
    """)
    server = httpd(sites=[site], modules=["rpaf"], conf="RPAFenable On\nRPAFproxy_ips 127.0.0.1\n")
    for name in ("far.txt", "near.txt"):
        site.write(name, name)
    server.start()
    behind = [("X-Forwarded-For", "9.8.7.6")]
    for path, headers, expected in (("/far.txt", behind, 200), ("/near.txt", behind, 403),
                                    ("/far.txt", (), 403), ("/near.txt", (), 200)):
        assert ask(server, site, path, protocol, headers).status == expected, (path, headers)


@needs("auth_gssapi")
def test_a_check_that_keeps_its_state_with_the_connection_is_made(httpd, protocol):
    site = Site("alice", ALICE, conf="""
        <Location /closed.txt>
            AuthType GSSAPI
            GssapiCredStore keytab:/nonexistent
            GssapiConnectionBound On
            Require valid-user
        </Location>
    """)
    server = httpd(sites=[site], modules=["auth_gssapi"])
    site.write("closed.txt", "closed")
    server.start()
    found = ask(server, site, "/closed.txt", protocol, [("Authorization", "Negotiate YII=")])
    assert found.status == 401 and found.get("WWW-Authenticate") == "Negotiate"
    server.wait_for_log(r"auth_gssapi:error.*failed to get server creds.*/nonexistent")


# -- heads --


class Uwsgi:
    """A server of the uwsgi protocol: its answer has a head of HTTP/1.1."""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as asked:
                (size,) = struct.unpack("<xHx", asked.read(4))
                pairs = asked.read(size)
                teapot = b"pot" in pairs
                connection.sendall(b"HTTP/1.1 %s\r\nContent-Type: text/x-odd\r\nX-Own: 1\r\n\r\nmade by uwsgi"
                                   % (b"418 Pot" if teapot else b"200 OK"))


@needs("uwsgi")
def test_a_handler_that_writes_its_own_head(httpd, protocol):
    backend = Uwsgi()
    site = Site("alice", ALICE, conf=f"""
        <Location /u>
            SetHandler uwsgi-handler
            uWSGISocket 127.0.0.1:{backend.port}
        </Location>
    """)
    server = httpd(sites=[site], modules=["uwsgi"]).start()
    try:
        for path, status in (("/u/page", 200), ("/u/pot", 418)):
            found = ask(server, site, path, protocol)
            assert (found.status, found.text) == (status, "made by uwsgi")
            assert (found.get("Content-Type"), found.get("X-Own")) == ("text/x-odd", "1")
    finally:
        backend.socket.close()


# -- memory --


@needs("oauth2")
def test_a_module_that_makes_shared_memory_while_the_configuration_is_read(httpd, protocol):
    site = Site("alice", ALICE, conf="""
        OAuth2TokenVerify introspect http://127.0.0.1:1/
        <Location /closed.txt>
            AuthType oauth2
            Require valid-user
        </Location>
    """)
    server = httpd(sites=[site], modules=["oauth2"])
    site.write("closed.txt", "closed")
    site.write("text.txt", "text")
    server.start()
    assert ask(server, site, "/text.txt", protocol).text == "text"
    found = ask(server, site, "/closed.txt", protocol)
    assert found.status == 401 and "invalid_request" in found.get("WWW-Authenticate")
    found = ask(server, site, "/closed.txt", protocol, [("Authorization", "Bearer x")])
    assert found.status == 401 and "invalid_token" in found.get("WWW-Authenticate")


# -- logs --


SLOW = "LogSlowEnabled On\nLogSlowFileName @ROOT@/logs/slow\nLogSlowBufferedLogs Off\nLogSlowLongRequestTime 0\n"


@needs("log_slow")
def test_a_log_that_root_opens_is_written_by_the_frontend(httpd, protocol):
    site = Site("alice", ALICE)
    server = httpd(sites=[site], modules=["log_slow"], conf=SLOW)
    site.write("page.php", "<?php echo 'page';")
    server.start()
    assert ask(server, site, "/page.php", protocol).text == "page"
    log = server.root / "logs/slow"
    eventually(lambda: log.read_text(), what="a line")
    assert [line.split("reqinfo: ")[1].split()[1] for line in log.read_text().splitlines()] == ["/page.php"]


@pytest.mark.pool_only
@needs("log_slow")
def test_a_module_that_does_not_start_is_named(httpd):
    server = httpd(sites=[Site("alice", ALICE)], modules=["log_slow"], conf=SLOW + "PoolModuleRole mod_log_slow.c worker\n")
    server.start()
    assert server.get("/").status == 503
    server.wait_for_log(r"pool alice: its processes fail to start.*mod_log_slow\.c does not start as the pool's user "
                        r"\(open_logs\).*PoolModuleRole mod_log_slow\.c frontend")


PERL = """
    <Perl>
        use Apache2::RequestRec ();
        package Once;
        sub handler { my $r = shift; open(my $f, ">>", "@ROOT@/logs/once"); print $f $r->uri, "\\n"; close $f; return -1; }
        package Moves;
        sub handler { my $r = shift; return -1 unless $r->uri =~ m{^/moved/}; $r->filename("@DOCROOT@/who.php"); return 0; }
    </Perl>
"""


@needs("perl")
def test_a_logger_in_perl_logs_each_request_once(httpd, protocol):
    site = Site("alice", ALICE, conf=PERL + "<Location /logged>\nPerlLogHandler Once\n</Location>\n")
    server = httpd(sites=[site], modules=["perl"])
    once = server.root / "logs/once"
    once.touch()
    once.chmod(0o666)
    (server.root / "logs").chmod(0o755)
    site.write("logged/a.txt", "a")
    site.write("logged/b.php", "<?php echo 'b';")
    server.start()
    for path in ("/logged/a.txt", "/logged/b.php", "/logged/none"):
        ask(server, site, path, protocol)
    eventually(lambda: len(once.read_text().splitlines()) >= 3, what="three lines")
    assert sorted(once.read_text().splitlines()) == ["/logged/a.txt", "/logged/b.php", "/logged/none"]


# -- mapping --


@needs("perl")
def test_what_perl_maps_the_pool_serves(httpd, protocol):
    """mod_perl asks for a place before all others in translate_name."""
    site = Site("alice", ALICE, conf=PERL + "PerlTransHandler Moves\n")
    server = httpd(sites=[site], modules=["perl"])
    site.write("who.php", "<?php echo posix_geteuid();")
    site.write(".htaccess", "Header set X-Own 1\n")
    server.start()
    found = ask(server, site, "/moved/page", protocol)
    assert (found.status, found.text, found.get("X-Own")) == (200, str(site.owner[0]), "1")


# -- what configtest says --


@pytest.mark.pool_only
@needs("mpm_itk")
def test_mpm_itk_is_refused_beside_pools(httpd):
    server = httpd(sites=[Site("alice", ALICE)], modules=["mpm_itk"], mpm="prefork")
    tested = server.configtest()
    assert tested.returncode != 0
    assert re.search(r"mpm_itk\.c: .*cannot reach pools; do not load it", tested.stdout + tested.stderr)


@pytest.mark.pool_only
@needs("passenger")
def test_what_works_in_frontends_only_is_told(httpd):
    tested = httpd(sites=[Site("alice", ALICE)], modules=["passenger"]).configtest()
    assert tested.returncode == 0
    assert re.search(r"mod_passenger\.c works in the frontends only: its hooks map_to_storage, fixups, handler do not run",
                     tested.stdout + tested.stderr)
