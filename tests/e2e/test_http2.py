"""HTTP/2 in a pool: variables, expressions, hints and pushes, trailers, responses that break off.

With and without TLS. What stock httpd can be asked is asked of stock mpm_event, and the answers are compared.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from backends import Raw
from harness import ALICE, H2, Site, eventually
from test_config import apxs

pytestmark = pytest.mark.pool_only

TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
VARIABLES = ["HTTP2", "H2PUSH", "H2_PUSH", "H2_PUSHED", "H2_PUSHED_ON", "H2_STREAM_ID", "H2_STREAM_TAG"]

ENV_CGI = r"""#!/bin/sh
printf 'Content-Type: text/plain\n'
case "$QUERY_STRING" in
    one) printf 'Link: </text.txt>; rel=preload\n' ;;
    two) printf 'Link: </text.txt>; rel=preload\nLink: </more/text.txt>; rel=preload\n' ;;
    list) printf 'Link: </text.txt>; rel=preload, </more/text.txt>; rel=preload; as=style\n' ;;
    nopush) printf 'Link: </text.txt>; rel=preload; nopush\n' ;;
    elsewhere) printf 'Link: <https://elsewhere.test/text.txt>; rel=preload\n' ;;
    script) printf 'Link: </env.cgi?pushed>; rel=preload\n' ;;
    refused) printf 'Status: 403 No\nLink: </text.txt>; rel=preload\n' ;;
    away) printf 'Location: /env.cgi\n' ;;
    out) printf 'Status: 302 Found\nLocation: http://alice.test/elsewhere\nLink: </text.txt>; rel=preload\n' ;;
esac
printf '\n'
env | grep -E '^(REDIRECT_)*(HTTP2|H2_?PUSH|H2_STREAM|SEEN|SERVER_PROTOCOL|HTTPS|REQUEST_SCHEME)' | sort
echo "said by the script" >&2
"""
CONF = """
    AddHandler cgi-script .cgi
    AddOutputFilter INCLUDES .shtml
    DirectoryIndex env.cgi
    ErrorDocument 404 /env.cgi
    ErrorDocument 403 /text.txt
    SetEnvIfExpr "%{HTTP2} == 'on'" SEEN_SERVER=1
    Header set X-Expr "expr=%{HTTP2}"
    Header always set X-Env "%{HTTP2}e,%{H2_STREAM_ID}e,%{H2_PUSH}e"
    Header set X-If 1 "expr=%{HTTP2} == 'on'"
    Header set X-Reqenv 1 "expr=reqenv('HTTP2') == 'on'"
    RequestHeader set X-Seen "expr=%{HTTP2}" early
    SetEnvIf X-Seen "(.*)" SEEN_EARLY=$1
    <If "%{HTTP2} == 'off'">
        Header set X-Off 1
    </If>
    <Location /only1>
        Require expr "%{HTTP2} == 'off'"
    </Location>
    <Location /byenv>
        Require expr "reqenv('HTTP2') == 'on'"
    </Location>
    <Location /push>
        H2PushResource /text.txt
        H2PushResource add /more/text.txt critical
    </Location>
    <Location /hint>
        H2EarlyHint Link "</text.txt>;rel=preload"
    </Location>
    <Location /quiet>
        H2Push off
    </Location>
    RewriteEngine on
    RewriteCond %{ENV:HTTP2} on
    RewriteRule ^/rule - [E=SEEN_RULE:1]
    RewriteCond expr "%{HTTP2} == 'on'"
    RewriteRule ^/rule - [E=SEEN_RULE_EXPR:1]
    RewriteCond %{HTTP2} on
    RewriteRule ^/rule - [E=SEEN_RULE_NAME:1]
    RewriteCond %{LA-U:ENV:HTTP2} on
    RewriteRule ^/rule - [E=SEEN_RULE_LATER:1]
    RewriteCond expr "%{HTTP2} == 'on'"
    RewriteRule ^/forbidden - [F]
"""
DIRECTORY = """
    SetEnvIfExpr "%{HTTP2} == 'on'" SEEN_DIR=1
    <If "%{HTTP2} == 'on'">
        SetEnv SEEN_IF 1
    </If>
    RewriteEngine on
    RewriteCond %{ENV:HTTP2} on
    RewriteRule env - [E=SEEN_DIR_RULE:1]
    RewriteCond expr "%{HTTP2} == 'on'"
    RewriteRule env - [E=SEEN_DIR_EXPR:1]
    RewriteCond %{HTTP2} on
    RewriteRule env - [E=SEEN_DIR_NAME:1]
    RewriteRule ^led$ env.cgi [L]
"""
PAGE = ('<!--#echo var="HTTP2" --> <!--#echo var="H2_STREAM_ID" --> <!--#if expr="%{HTTP2} == \'on\'" -->yes<!--#endif -->'
        '<!--#include virtual="env.cgi" -->')
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: </text.txt>; rel=preload\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"
ANSWERS = {
    "/plain": OK + b"Content-Length: 5\r\n\r\nabout",
    "/hint": HINT + OK + b"Content-Length: 5\r\n\r\nabout",
    "/trailers": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabout\r\n0\r\nX-Trail: behind\r\n\r\n",
    "/short": OK + b"Content-Length: 100\r\n\r\nonly a part",
    "/cut": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabout\r\n",
}
NPH = """#!/bin/sh
case $0 in *hint*) printf 'HTTP/1.1 103 Early Hints\\r\\nLink: </text.txt>; rel=preload\\r\\n\\r\\n' ;; esac
printf 'HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\nLink: </more/text.txt>; rel=preload\\r\\n\\r\\ndone'
"""


def serve(make, backend, hints="on", **kind):
    site = Site("alice", ALICE, conf=f"{CONF}\nProxyPass /front http://127.0.0.1:{backend.port}\n")
    log = "|".join(["%U%q", "%>s", *(f"%{{{name}}}e" for name in VARIABLES), "%{HTTP2}x", "%{SEEN_SERVER}e", "%{X-Check}^ti"])
    more = f"""
        H2EarlyHints {hints}
        ErrorLogFormat "[%l] %E: %M (%{{HTTP2}}e %{{H2_STREAM_ID}}e %{{H2_STREAM_TAG}}e)"
        CustomLog @ROOT@/logs/http2.log %U%q "expr=%{{HTTP2}} == 'on'"
        CustomLog @ROOT@/logs/byenv.log %U%q env=HTTP2
    """
    server = make(sites=[site], modules=["cgi", "proxy", "proxy_http", "proxy_http2"], log_format=log, conf=more, **kind)
    for place in (".", "rule", "only1", "byenv", "push", "hint", "quiet", "more", "dir", "forbidden"):
        site.script(f"{place}/env.cgi", ENV_CGI)
        site.write(f"{place}/text.txt", "text")
        site.write(f"{place}/page.shtml", PAGE)
    site.write("dir/.htaccess", DIRECTORY)
    site.write("worker/.htaccess", f"RewriteEngine on\nRewriteRule (.*) http://127.0.0.1:{backend.port}/$1 [P]\n")
    site.write("h2c/.htaccess", f"RewriteEngine on\nRewriteRule (.*) h2c://127.0.0.1:{server.port}/$1 [P]\n")
    site.write("h2/.htaccess", f"RewriteEngine on\nRewriteRule (.*) h2://127.0.0.1:{server.tls_port}/$1 [P]\n")
    site.script("trailers.cgi", "#!/bin/sh\nprintf 'Content-Type: text/plain\\n\\n'; cat\n")
    for name in ("hint", "plain"):
        site.script(f"nph-{name}.cgi", NPH)
    return server.start()


@pytest.fixture(scope="module")
def backend():
    server = Raw(ANSWERS)
    yield server
    server.stop()


STOCK = {"mpm": "event", "with_pool": False}


@pytest.fixture(scope="module")
def both(shared_httpd, kind, backend):
    """This server, and stock httpd with the same sites."""
    if kind["mpm"] == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")
    return serve(shared_httpd, backend), serve(shared_httpd, backend, **STOCK)


@pytest.fixture(scope="module")
def both_without_hints(shared_httpd, kind, backend):
    if kind["mpm"] == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")
    return serve(shared_httpd, backend, hints="off"), serve(shared_httpd, backend, hints="off", **STOCK)


def pushed_by(c):
    """The responses to what the server has promised."""
    return [c.wait(stream) for stream in [s for s in c.streams if s % 2 == 0]]


def tag(text):
    """Processes and connections have other numbers in the other server."""
    return re.sub(r"\b\d+-\d+-(\d+)\b", r"N-N-\1", text)


def told(found):
    fields = sorted((k, v) for k, v in found.headers if k.startswith("x-") or k in ("link", "location", "push-policy"))
    interim = [sorted((k, v) for k, v in fields if k in (":status", "link")) for fields in found.interim]
    return found.status, tag(found.text), fields, interim, found.trailers, found.complete


def asked(server, tls, path, push=True):
    """The first and the second response of a connection, with what is pushed."""
    with H2(server, tls=tls, push=push) as c:
        found = [c.get(path), *pushed_by(c), c.get(path)]
        return sorted(c.pushed), [told(r) for r in found]


PATHS = ["/env.cgi", "/dir/env.cgi", "/dir/led", "/dir/", "/rule/env.cgi", "/page.shtml", "/dir/page.shtml", "/only1/env.cgi",
         "/only1/text.txt", "/byenv/text.txt", "/forbidden/text.txt", "/none", "/text.txt", "/env.cgi?away", "/env.cgi?refused"]


@TLS
@pytest.mark.parametrize("path", PATHS)
def test_variables_and_expressions(both, path, tls):
    got, stock = [asked(server, tls, path) for server in both]
    assert got == stock
    first, second = got[1]
    if path == "/env.cgi":
        assert "HTTP2=on\n" in first[1] and "H2_STREAM_ID=3\n" in second[1] and "SEEN_SERVER=1\n" in second[1]
    if path == "/dir/env.cgi":
        assert {"SEEN_DIR=1", "SEEN_IF=1", "SEEN_DIR_EXPR=1"} <= set(first[1].split())
    assert first[0] == (403 if re.match("/(only1|byenv|forbidden)|.*refused", path) else 404 if path == "/none" else 200)


PUSHES = {
    "/env.cgi?one": ["/text.txt"],
    "/env.cgi?two": ["/more/text.txt", "/text.txt"],
    "/env.cgi?list": ["/more/text.txt", "/text.txt"],
    "/env.cgi?script": ["/env.cgi?pushed"],
    "/env.cgi?out": ["/text.txt"],
    "/env.cgi?nopush": [],
    "/env.cgi?elsewhere": [],
    "/env.cgi?refused": [],
    "/quiet/env.cgi?one": [],
    "/push/env.cgi": ["/more/text.txt", "/text.txt"],
    "/push/text.txt": ["/more/text.txt", "/text.txt"],
    "/push/none": ["/more/text.txt", "/text.txt"],
    "/hint/env.cgi": ["/text.txt"],
    "/worker/hint": ["/text.txt"],
    "/front/hint": ["/text.txt"],
}


@TLS
@pytest.mark.parametrize("push", [True, False], ids=["push", "nopush"])
@pytest.mark.parametrize("path", PUSHES)
def test_hints_and_pushes(both, path, push, tls):
    got, stock = [asked(server, tls, path, push) for server in both]
    if path == "/push/none":
        # The error's script is a second request to stock httpd, which hints again.
        got, stock = [(pushed, [r[:3] for r in found]) for pushed, found in (got, stock)]
    assert got == stock
    assert got[0] == (PUSHES[path] if push else [])
    if re.match("/(push/env|hint|worker|front)", path):
        assert [(":status", "103") in fields for fields in got[1][0][3]] == [True]


@TLS
def test_hints_that_are_off_push_all_the_same(both_without_hints, tls):
    for path in ("/push/env.cgi", "/hint/env.cgi", "/nph-hint.cgi", "/worker/hint"):
        got, stock = [asked(server, tls, path) for server in both_without_hints]
        assert got == stock
        assert got[0] and not any(found[3] for found in got[1])


@TLS
def test_a_script_that_writes_its_own_hints(both, tls):
    for path in ("/nph-hint.cgi", "/nph-plain.cgi"):
        got, stock = [asked(server, tls, path) for server in both]
        assert got == stock
    assert got[0] == ["/more/text.txt"] and got[1][0][1] == "done"


@TLS
def test_trailers(both, tls):
    for server in both:
        with H2(server, tls=tls) as c:
            found = c.get("/worker/trailers")
            assert (found.text, found.trailers) == ("about", [("x-trail", "behind")])
            stream = c.start("/trailers.cgi", method="POST", body=b"body", trailers=[("x-check", "c0ffee")])
            assert c.wait(stream).text == "body"
        server.wait_for_log(r"(?m)^/trailers\.cgi\|200\|.*\|c0ffee$", name="access.log")


@TLS
def test_a_rule_of_a_directory_leads_to_an_http2_backend(both, tls):
    """Without TLS only: a pool's process does not speak it (docs/pitfalls.md)."""
    for server in both:
        with H2(server, tls=tls) as c:
            assert c.get("/h2c/text.txt", host="alice.test").text == "text"
    with H2(both[0], tls=tls) as c:
        assert c.get("/h2/text.txt").status == 500
    both[0].wait_for_log(r"POOL116: .* h2://")


@TLS
@pytest.mark.parametrize("path", ["/env.cgi", "/text.txt", "/dir/led", "/page.shtml", "/push/env.cgi", "/none", "/front/plain"])
def test_logs(both, path, tls):
    said = []
    for server in both:
        names = ["access.log", "http2.log", "byenv.log"]
        before = {name: len(server.log(name)) for name in [*names, "error.log"]}
        with H2(server, tls=tls, push=True) as c:
            c.get(path)
            pushed_by(c)
        server.request("GET", path, tls=tls)
        # The line of the request by HTTP/1.1 is the last.
        eventually(lambda: re.search(r"(?m)^\S+\|\d+(\|-){7}", server.log("access.log")[before["access.log"]:]))
        lines = [sorted(tag(server.log(name)[before[name]:]).splitlines()) for name in names]
        errors = [tag(line) for line in server.error_log()[before["error.log"]:].splitlines() if "said by" in line]
        said.append((lines, sorted(re.search(r"said by.*", line)[0] for line in errors)))
    assert said[0] == said[1]
    assert any("|on|" in line for line in said[0][0][0]) and path in said[0][0][1] and path in said[0][0][2]


# --- responses that break off -------------------------------------------------------------------------


BEGINS = "<?php header('Content-Type: text/plain'); echo 'begun'; ob_flush(); flush(); usleep(300000); "
BROKEN = {
    "killed.php": BEGINS + "posix_kill(getmypid(), 9);",
    "killed-at-length.php": BEGINS.replace("echo", "header('Content-Length: 100'); echo", 1) + "posix_kill(getmypid(), 9);",
    "short.php": BEGINS.replace("echo", "header('Content-Length: 100'); echo", 1),
}
LATE = ["late?500&flush", "late?502&flush", "late?408", "late?silent", "late?silent&flush"]
PROXIED = ["worker/short", "worker/cut", "front/short", "front/cut"]


@pytest.fixture(scope="module")
def breaking(shared_httpd, kind, backend, tmp_path_factory):
    """With the handler of mod_lateerror.c."""
    if kind["mpm"] == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")
    if not shutil.which("apr-1-config"):
        pytest.skip("no apr-1-config")
    so = tmp_path_factory.mktemp("lateerror") / "mod_lateerror.so"
    flags = subprocess.run(["apr-1-config", "--includes", "--cppflags"], capture_output=True, text=True, check=True)
    subprocess.run([apxs("CC"), "-shared", "-fPIC", f"-I{apxs('INCLUDEDIR')}", *flags.stdout.split(),
                    "-o", so, Path(__file__).with_name("mod_lateerror.c")], check=True)
    site = Site("alice", ALICE, conf="<Location /late>\nSetHandler late-error\n</Location>\n"
                f"ProxyPass /front http://127.0.0.1:{backend.port}\n")
    server = shared_httpd(sites=[site], modules=["proxy", "proxy_http"], conf=f"LoadModule lateerror_module {so}\n", **kind)
    for name, script in BROKEN.items():
        site.write(name, script)
    site.write("text.txt", "text")
    site.write("page.php", BEGINS.replace("300000", "600000") + "echo ' and ended';")
    site.write("worker/.htaccess", f"RewriteEngine on\nRewriteRule (.*) http://127.0.0.1:{backend.port}/$1 [P]\n")
    return server.start()


@TLS
def test_what_breaks_off_resets_its_stream_and_no_other(breaking, tls):
    with H2(breaking, tls=tls) as c:
        other = c.start("/page.php")
        streams = {path: c.start(f"/{path}") for path in [*BROKEN, *LATE, *PROXIED]}
        found = {path: c.wait(stream) for path, stream in streams.items()}
        # Before its head has left, it may become an error of its own.
        seems_whole = {path for path, r in found.items() if r.complete and r.status != 502}
        assert not seems_whole
        assert all((r.status, r.complete, r.body[:5]) == (200, False, b"begun") for path, r in found.items() if path in BROKEN)
        assert c.wait(other).text == "begun and ended"
        assert c.get("/text.txt").text == "text"
        assert c.goaway is None
