"""Logs that a tenant wants to be silent, or full: no line of an access log is kept back for what a worker says, and what
requests write into the error log is bounded for a pool and second, in all frontends together.

alice's PHP sends frames of her own (wireforge.py).
"""

import re
import time
from datetime import datetime

import pytest

import wireforge as w
from harness import ALICE, BOB, H2, Site, eventually, has_module, in_threads
from pages import FFI

pytestmark = pytest.mark.pool_only

# Each of these keeps a request out of its log where the frontend believes what the worker says; the formats name the same.
QUIET = {
    "env": "env=!dontlog",
    "env-quoted": '"env=!DontLog"',
    "expr-env": "\"expr=reqenv('dontlog') != '1'\"",
    "expr-variable": '"expr=%{ENV:dontlog} != \'1\'"',
    "expr-note": "\"expr=note('dontlog') != '1'\"",
    "expr-user": "\"expr=%{REMOTE_USER} != 'monitor'\"",
    "expr-type": "\"expr=%{AUTH_TYPE} != 'Basic'\"",
    "expr-handler": "\"expr=%{HANDLER} != 'quiet'\"",
    "expr-file": "\"expr=%{REQUEST_FILENAME} !~ m#/quiet#\"",
    "expr-script": "\"expr=!(%{SCRIPT_FILENAME} =~ m#/quiet#)\"",
}
FORMAT = r'"%U %{dontlog}e %{dontlog}n %{DONTLOG}e %u"'
SAID = {"user": "monitor", "auth": "Basic", "handler": "quiet", "filename": "/quiet/x",
        "notes": [("dontlog", "1"), ("DONTLOG", "1")], "env": [("dontlog", "1"), ("DontLog", "1")]}


def logs():
    return "".join(f"CustomLog @ROOT@/logs/quiet-{name}.log {FORMAT} {condition}\n" for name, condition in QUIET.items())


@pytest.fixture(scope="module")
def server(scratch, shared_httpd):
    macro = ""
    if has_module("macro"):
        macro = ("<Macro Quiet $file $name>\nCustomLog @ROOT@/logs/$file-macro.log %U env=!$name\n</Macro>\n"
                 "Use Quiet quiet dontlog\n")
    more = "GlobalLog @ROOT@/logs/quiet-global.log %U env=!dontlog\nCustomLog @ROOT@/logs/loud.log \"%U %{app}e\" env=app\n"
    sites = [Site("alice", ALICE, conf=FFI,
                  pool_conf=f"PoolMaxProcesses 4\nPoolIdleTimeout 60s\nPoolEnv SCRATCH {scratch}"),
             Site("bob", BOB)]
    server = shared_httpd(sites=sites, modules=["macro"] if macro else [], conf=logs() + more + macro)
    sites[0].write("forge.php", w.FORGE_PHP)
    sites[0].write("text.txt", "text")
    server.start()
    server.quiet = [*QUIET, "global", *(["macro"] if macro else [])]
    return server


@pytest.fixture(params=["h1", "h2"])
def ask(request, server):
    server.kill("worker", "alice")
    eventually(lambda: not server.workers("alice"), 5)
    if request.param == "h1":
        return lambda plan: server.request("POST", "/forge.php", body=plan)
    if server.mpm == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")

    def by_h2(plan):
        with H2(server, tls=True) as c:
            return c.get("/forge.php", method="POST", body=plan)
    return by_h2


def lines(server, name):
    return [line for line in server.log(f"{name}.log").splitlines() if line.startswith("/forge.php")]


@pytest.mark.parametrize("early", [False, True], ids=["at-its-end", "early"])
def test_no_worker_keeps_a_request_out_of_an_access_log(server, ask, early):
    before = {name: len(lines(server, f"quiet-{name}")) for name in server.quiet}
    begin = w.head(200) + w.data("x", flags=w.FLUSH)
    plan = w.plan(w.meta(**SAID) + begin, w.end(), then="exit") if early else \
        w.plan(begin, w.meta(**SAID) + w.end(), then="exit")
    assert ask(plan).text == "x"
    for name in server.quiet:
        eventually(lambda: len(lines(server, f"quiet-{name}")) == before[name] + 1, 5, what=f"a line in quiet-{name}.log")
    assert lines(server, "quiet-env")[-1] == "/forge.php - - - -"


def test_what_can_only_add_a_line_is_taken(server, ask):
    before = len(lines(server, "loud"))
    assert ask(w.plan(w.head(200) + w.data("x") + w.meta(env=[("app", "shown")]) + w.end(), then="exit")).text == "x"
    eventually(lambda: len(lines(server, "loud")) == before + 1, 5)
    assert lines(server, "loud")[-1] == "/forge.php shown"


def test_where_a_condition_computes_a_name_no_name_is_taken(scratch, httpd):
    site = Site("alice", ALICE, conf=FFI, pool_conf=f"PoolMaxProcesses 2\nPoolEnv SCRATCH {scratch}")
    server = httpd(sites=[site], conf=f"CustomLog @ROOT@/logs/cond.log {FORMAT} \"expr=reqenv('dont' . 'log') != '1'\"\n")
    site.write("forge.php", w.FORGE_PHP)
    server.start()
    plan = w.plan(w.head(200) + w.data("x") + w.meta(**SAID) + w.end(), then="exit")
    assert server.request("POST", "/forge.php", body=plan).text == "x"
    eventually(lambda: lines(server, "cond"), 5)
    # The notes of the same name decide nothing.
    assert lines(server, "cond") == ["/forge.php - 1 - monitor"]


def test_the_servers_own_conditions_hold(httpd):
    conf = ("SetEnvIf Request_URI quiet dontlog\nLogFormat \"%U %{dontlog}e\" it\n"
            "CustomLog @ROOT@/logs/cond.log it env=!dontlog\n")
    alice = Site("alice", ALICE, conf=conf)
    server = httpd(sites=[alice])
    for name in ("quiet.txt", "loud.txt"):
        alice.write(name, "x")
    alice.write("own/.htaccess", "SetEnv dontlog 1\n")
    alice.write("own/loud.txt", "x")
    server.start()
    for uri in ("/quiet.txt", "/own/loud.txt", "/loud.txt"):
        assert server.get(uri).status == 200
    eventually(lambda: "/loud.txt -" in server.log("cond.log").splitlines(), 5)
    assert server.log("cond.log").splitlines() == ["/own/loud.txt -", "/loud.txt -"]


# --- the error log ------------------------------------------------------------------------------------

# Of a pool, and of the one client that floods.
ALLOWANCE, RESERVE, LINE_COST = 64 * 1024, 2 * 1024, 128
SAY_PHP = "<?php for ($i = 0; $i < ($_GET['n'] ?? 1); $i++) error_log(str_pad($_GET['word'], $_GET['len'] ?? 0, '.')); echo 'ok';"
WHEN = re.compile(r"^\[(\w+ \w+ +\d+ [\d:]+)\.\d+ (\d+)\].*?(\bflood\.*|\[pool alice\] (\d+) lines dropped)", re.M)


@pytest.fixture
def talkers(httpd, kind):
    sites = [Site("alice", ALICE, pool_conf="PoolMaxProcesses 8"), Site("bob", BOB)]
    # Several frontends: they count together.
    several = None if kind["mpm"] == "prefork" else "StartServers 3\nThreadsPerChild 8\nServerLimit 3\nMaxRequestWorkers 24\n"
    server = httpd(sites=sites, modules=["remoteip"], mpm_conf=several, conf="RemoteIPHeader X-Client-IP\n")
    for site in sites:
        site.write("say.php", SAY_PHP)
    return server.start()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("length", [0, 2000])
def test_a_flood_over_many_requests_is_bounded_for_a_second(talkers, length):
    server = talkers
    assert server.get("/say.php?word=first").text == "ok"
    until = time.monotonic() + 4
    sent = [0] * 6

    def flood(number):
        while time.monotonic() < until:
            assert server.get(f"/say.php?n=150&word=flood&len={length}").text == "ok"
            sent[number] += 150

    in_threads(6, flood, timeout=60)
    found = lambda: WHEN.findall(server.error_log())
    told = lambda: sum(int(n) for *_, n in found() if n)
    written = lambda: sum(1 for *_, n in found() if not n)
    # Nothing is lost without a word: what is not written is told.
    eventually(lambda: written() + told() == sum(sent), 10, what="an account of all lines")
    assert told() > 0, "that was no flood"
    per_second, reports = {}, {}
    for when, year, what, n in found():
        counts = reports if n else per_second
        counts[when] = counts.get(when, 0) + (1 if n else len(what) + LINE_COST)
    # The seconds of the clock in the log and of the one that counts do not begin together.
    assert max(per_second.values()) <= 2 * (ALLOWANCE + RESERVE), per_second
    first, last = (datetime.strptime(f"{t}", "%a %b %d %H:%M:%S") for t in (min(per_second), max(per_second)))
    assert sum(per_second.values()) <= (ALLOWANCE + RESERVE) * ((last - first).total_seconds() + 2), per_second
    assert sum(reports.values()) <= (last - first).total_seconds() + 3, reports
    # Others write on meanwhile, and so does alice afterwards.
    assert server.get("/say.php?word=hello-alice").text == "ok"
    server.wait_for_log("hello-alice")


@pytest.mark.timeout(120)
def test_the_flood_of_one_pool_silences_no_other(talkers):
    server = talkers
    until = time.monotonic() + 3

    def flood(_):
        while time.monotonic() < until:
            server.get("/say.php?n=150&word=flood&len=2000")

    def speak(_):
        number = 0
        while time.monotonic() < until:
            assert server.get(f"/say.php?word=bob-says-{number}.", "bob").text == "ok"
            number += 1
            time.sleep(0.05)
        return number

    number = in_threads(5, lambda n: speak(n) if n == 0 else flood(n), timeout=60)[0]
    assert number > 5
    for n in range(number):
        assert f"bob-says-{n}." in server.error_log()
    assert "[pool bob]" not in re.sub(r"pool bob pid", "", server.error_log())


@pytest.mark.timeout(120)
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_lines_about_one_client_silence_no_other_client(talkers, tls):
    """What bans those who guess passwords finds them, while somebody else makes the pool log all that it may."""
    server = talkers
    until = time.monotonic() + 3
    ask = lambda address, query: server.get(f"/say.php?{query}", headers=[("X-Client-IP", address)], tls=tls)

    def flood(_):
        while time.monotonic() < until:
            assert ask("198.51.100.7", "n=150&word=flood").text == "ok"

    def fail(_):
        number = 0
        while time.monotonic() < until:
            assert ask("192.0.2.1", f"word=failure-{number}.").text == "ok"
            number += 1
            time.sleep(0.1)
        return number

    number = in_threads(5, lambda n: fail(n) if n == 0 else flood(n), timeout=60)[0]
    assert number > 5
    server.wait_for_log(r"\[pool alice\] \d+ lines dropped")
    for n in range(number):
        assert re.search(rf"\[client 192\.0\.2\.1:\d+\] .*failure-{n}\.", server.error_log()), n


def test_ordinary_logging_is_whole(talkers):
    server = talkers
    for n in range(40):
        assert server.get(f"/say.php?word=line-{n}.").text == "ok"
    for n in range(40):
        server.wait_for_log(rf"line-{n}\.")
    assert "lines dropped" not in server.error_log()


@pytest.mark.timeout(120)
def test_the_words_of_an_abort_count_too(scratch, httpd):
    site = Site("alice", ALICE, conf=FFI, pool_conf=f"PoolMaxProcesses 2\nPoolEnv SCRATCH {scratch}")
    server = httpd(sites=[site])
    site.write("forge.php", w.FORGE_PHP)
    server.start()
    # Lines use the allowance up, then the abort has words to say.
    flood = [{"data": w.log("flood".ljust(8000, ".")), "repeat": 20}]
    assert server.request("POST", "/forge.php", body=w.plan(*flood, w.abort(3, "w" * 8000), then="exit")).status == 502
    line = server.wait_for_log("POOL10[34].*gave up.*")[0]
    assert len(line) < 1000 and "too much is logged" in line
