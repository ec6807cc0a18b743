"""One response for each request, whatever a worker sends: read by a reader that forgives nothing, directly, behind a real
reverse proxy that keeps its connections, and over HTTP/2. Behind each attack another site's visitor asks: he gets his own.

alice's PHP sends frames of her own (wireforge.py), bob is the other site.
"""

import random

import pytest

import wireforge as w
from harness import ALICE, BOB, H2, BrokeOff, Broken, Endless, Site, Strict, eventually
from pages import FFI

pytestmark = pytest.mark.pool_only

OFF_T_MAX = 2**63 - 1
VICTIM = "the victim's own answer"
POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"

PROXY = """
ProxyPreserveHost On
ProxyPass / http://127.0.0.1:@BACKEND@/ max=1 keepalive=On retry=0 timeout=15
"""
# One process of the proxy, and so one connection for all of its clients.
PROXY_MPM = "StartServers 1\nServerLimit 1\nThreadsPerChild 8\nMaxRequestWorkers 8\n"


@pytest.fixture(scope="module")
def server(scratch, shared_httpd):
    sites = [Site("alice", ALICE, conf=FFI,
                  pool_conf=f"PoolMaxProcesses 8\nPoolIdleTimeout 60s\nPoolEnv SCRATCH {scratch}"),
             Site("bob", BOB, pool_conf="PoolIdleTimeout 300s")]
    server = shared_httpd(sites=sites, conf="Timeout 8\n")
    server.scratch = scratch
    sites[0].write("forge.php", w.FORGE_PHP)
    sites[0].write("own.txt", "alice herself")
    sites[0].write("port.php", "<?php echo $_SERVER['REMOTE_PORT'];")
    sites[1].write("port.php", "<?php echo $_SERVER['REMOTE_PORT'];")
    sites[1].write("victim.txt", VICTIM)
    sites[1].write("victim.php", "<?php echo \"the victim's own answer\";")
    server.start()
    assert server.get("/victim.php", "bob").status == 200
    return server


@pytest.fixture(scope="module")
def proxy(server, shared_httpd):
    proxy = shared_httpd(mpm="event", with_pool=False, modules=("proxy", "proxy_http"), without=("http2",), conf=PROXY,
                         mpm_conf=PROXY_MPM, define={"BACKEND": server.port})
    proxy.start()
    return proxy


@pytest.fixture(autouse=True)
def alive(server):
    before = {p.pid for p in server.processes() if p.role in ("parent", "frontend", "controller", "seed")}
    fresh(server)
    yield
    assert before <= {p.pid for p in server.processes()}, "a process of the server has died"


def fresh(server):
    """The next request of alice's meets a worker that has served none: its exchange has the forge's number."""
    server.kill("worker", "alice")
    eventually(lambda: not server.workers("alice"), 5)


class Seen:
    def __init__(self, response=None, why=""):
        self.response, self.why = response, why

    @property
    def status(self):
        return self.response.status if self.response else 0

    def __repr__(self):
        return f"{self.response or self.why}"


def victim_alone(server):
    """On a connection of his own."""
    with server.connect(timeout=15) as c:
        c.request("GET", "/victim.txt", "bob.test", [("Connection", "close")])
        strict = Strict(c)
        assert strict.response().text == VICTIM
        strict.end()


def by_h1(server, plan, method="POST", version="HTTP/1.1"):
    """The attack, and behind it on the same connection two requests of the other site's visitor."""
    with server.connect(timeout=15) as c:
        c.request(method, "/forge.php", body=plan, version=version,
                  headers=[("Connection", "keep-alive")] if version == "HTTP/1.0" else [])
        c.request("GET", "/victim.txt", "bob.test")
        c.request("GET", "/victim.php", "bob.test", [("Connection", "close")])
        strict = Strict(c)
        try:
            seen = Seen(strict.response(method))
            if not strict.closes:
                for _ in range(2):
                    victim = strict.response()
                    assert (victim.status, victim.text) == (200, VICTIM), (seen, victim)
            strict.end()
        except Endless as e:
            return Seen(why=f"endless: {e}")
        except BrokeOff as e:
            # Nothing may follow, and nothing did.
            return Seen(why=f"broke off: {e}")
    return seen


def by_proxy(server, plan, proxy, method="POST"):
    """The same through a proxy: alice's visitor and bob's have connections of their own, and share the one behind it."""
    with proxy.connect(timeout=15) as c:
        c.request(method, "/forge.php", body=plan)
        strict = Strict(c)
        try:
            seen = Seen(strict.response(method))
        except Endless as e:
            seen = Seen(why=f"endless: {e}")
        except BrokeOff as e:
            seen = Seen(why=f"broke off: {e}")
    for path in ("/victim.txt", "/victim.php"):
        victim = by_proxy_once(proxy, path)
        # Behind a whole response the proxy may use the connection before it hears of its end, as of one of stock httpd's
        # whose child has died: that request it answers itself.
        if victim.status == 502 and "Error reading from remote server" in victim.text and not seen.why:
            victim = by_proxy_once(proxy, path)
        assert (victim.status, victim.text) == (200, VICTIM), (seen, victim)
    return seen


def by_proxy_once(proxy, path):
    with proxy.connect(timeout=15) as c:
        c.request("GET", path, "bob.test", [("Connection", "close")])
        strict = Strict(c)
        victim = strict.response()
        strict.end()
        return victim


def by_h2(server, plan, method="POST"):
    """Over TLS: streams of one connection."""
    with H2(server, tls=True, timeout=15) as c:
        stream = c.start("/forge.php", method=method, body=plan)
        victim = c.wait(c.start("/victim.txt", host="bob.test"))
        assert (victim.status, victim.text) == (200, VICTIM)
        state = c.streams[stream]
        while not state["ended"] and len(state["body"]) < 1 << 20:
            c.step()
        if not state["ended"]:
            c.h2.reset_stream(stream)
            seen = Seen(why="endless")
        else:
            seen = Seen(c.wait(stream))
            if not seen.response.complete:
                seen = Seen(why="reset")
        late = c.get("/victim.php", host="bob.test")
        assert (late.status, late.text) == (200, VICTIM)
        return seen


@pytest.fixture(params=["h1", "proxy", "h2"])
def attack(request, server, proxy):
    if request.param == "h2" and server.mpm == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")
    way = {"h1": by_h1, "proxy": lambda *a, **kw: by_proxy(*a, proxy=proxy, **kw), "h2": by_h2}[request.param]
    return lambda *messages, **kw: way(server, w.plan(*messages, then="exit"), **kw)


def files(*lengths, begin=b"", end=b"", kind="huge"):
    """FILE frames in one message, each with its descriptor."""
    return {"data": begin + b"".join(w.file(0, n) for n in lengths) + end, "fds": [kind] * len(lengths)}


OK = w.head(200, ("Content-Type", "text/plain"))


def test_visitors_of_both_sites_share_the_connection_behind_the_proxy(proxy):
    """If they do not, the tests with the proxy prove nothing."""
    ports = {proxy.get("/port.php", site).text for site in ("alice", "bob") * 3}
    assert len(ports) == 1 and ports.pop().isdigit()


def test_the_forge_can_answer_at_all(attack):
    seen = attack(OK + w.data("forged") + w.end())
    assert (seen.status, seen.response.text) == (200, "forged"), seen

# Lengths that add up past what a length can say: 2^64 + 5, 2^64, 2^63, each as one message with its head, in messages of
# their own, and behind bytes that the client has seen.
SUMS = {
    "2^64+5": (OFF_T_MAX, OFF_T_MAX, 7),
    "2^64": (OFF_T_MAX, OFF_T_MAX, 2),
    "2^64-1": (OFF_T_MAX, OFF_T_MAX, 1),
    "2^63+4": (OFF_T_MAX, 5),
    "2^63": (OFF_T_MAX, 1),
    "2^65": (OFF_T_MAX, OFF_T_MAX, OFF_T_MAX, OFF_T_MAX),
    "small-first": (5, OFF_T_MAX, OFF_T_MAX),
}


@pytest.mark.parametrize("name", SUMS)
def test_lengths_that_add_up_past_what_a_length_can_say(attack, server, name):
    seen = attack(files(*SUMS[name], begin=OK, end=w.end()))
    assert seen.status == 502, seen
    server.wait_for_log("POOL104.*more body than a length can say")


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("length", ["5", "7", str(OFF_T_MAX)])
def test_such_lengths_behind_a_content_length(attack, name, length):
    seen = attack(files(*SUMS[name], begin=w.head(200, ("Content-Length", length)), end=w.end()))
    assert seen.status == 502, seen


@pytest.mark.parametrize("first", [w.FLUSH, 0], ids=["flushed", "queued"])
def test_such_lengths_in_messages_of_their_own(attack, first):
    seen = attack(OK + w.data("begun", flags=first), files(OFF_T_MAX), files(OFF_T_MAX), files(7, end=w.end()))
    assert seen.response is None or seen.status == 502, seen


def test_data_behind_the_longest_file(attack):
    seen = attack(files(OFF_T_MAX, begin=OK, end=w.data(b"\r\n" + POISON) + w.end()))
    assert seen.status == 502, seen


BAD_LENGTHS = ["", "+5", "-5", " 5", "5 ", "\t5", "0x5", "5,5", "5, 5", "5.0", "5e0", "9223372036854775808",
               "18446744073709551621", "99999999999999999999999", "\u0665", "five"]


@pytest.mark.parametrize("value", BAD_LENGTHS)
@pytest.mark.parametrize("status", [200, 204, 304])
def test_a_length_that_others_may_read_differently(attack, value, status):
    seen = attack(w.head(status, ("Content-Length", value)) + (w.data("hello") if status == 200 else b"") + w.end())
    assert seen.status == 502, seen


@pytest.mark.parametrize("value", ["5", "05", "0000000000000000000000000000005"])
def test_a_length_reaches_the_client_as_everybody_writes_it(attack, value):
    seen = attack(w.head(200, ("Content-Length", value)) + w.data("hello", flags=w.FLUSH), w.end())
    assert (seen.status, seen.response.body) == (200, b"hello"), seen
    lengths = seen.response.all("content-length")
    assert lengths in (["5"], []), lengths


def test_two_lengths(attack):
    for two in (("5", "5"), ("5", "50")):
        seen = attack(w.head(200, ("Content-Length", two[0]), ("content-length", two[1])) + w.data("hello") + w.end())
        assert seen.status == 502, seen


# What a worker might say to be read twice. Each is refused, or is one whole response of its own.
TRICKS = {
    "transfer-encoding": [w.head(200, ("Transfer-Encoding", "chunked")) + w.data(b"0\r\n\r\n" + POISON) + w.end()],
    "transfer-encoding-and-length": [w.head(200, ("Transfer-Encoding", "chunked"), ("Content-Length", "5"))
                                     + w.data("hello") + w.end()],
    "obs-fold": [w.head(200, ("X", "a\r\n b")) + w.data("x") + w.end()],
    "bare-cr": [w.head(200, ("X", "a\rContent-Length: 0")) + w.data("x") + w.end()],
    "bare-lf": [w.head(200, ("X", "a\nContent-Length: 0")) + w.data("x") + w.end()],
    "nul": [w.head(200, ("X", "a\0b")) + w.data("x") + w.end()],
    "field-without-name": [w.head(200, ("", "x")) + w.data("x") + w.end()],
    "field-with-space": [w.head(200, ("Content-Length ", "0")) + w.data("x") + w.end()],
    "status-line-crlf": [w.head(200, line="200 OK\r\nContent-Length: 0\r\n\r\n" + POISON.decode()) + w.end()],
    "status-line-cr": [w.head(200, line="200 O\rK") + w.data("x") + w.end()],
    "status-line-short": [w.head(200, line="200") + w.data("x") + w.end()],
    "status-line-of-http": [w.head(200, line="HTTP/1.0 200 OK") + w.data("x") + w.end()],
    "status-line-tab": [w.head(200, line="200\tOK") + w.data("x") + w.end()],
    "status-line-high": [w.head(200, line="200 Gr\u00fc\u00dfe") + w.data("x") + w.end()],
    "interim-with-body": [w.interim(103) + w.data(POISON) + OK + w.end()],
    "interim-with-length": [w.interim(103, ("Content-Length", "50"), ("Transfer-Encoding", "chunked"))
                            + OK + w.data("x") + w.end()],
    "interim-behind-head": [OK + w.interim(103) + w.data("x") + w.end()],
    "interim-101": [w.interim(101, ("Upgrade", "x")) + w.data(POISON)],
    "many-interims": [w.interim(103, ("Link", "</a>")) * 32 + OK + w.data("x") + w.end()],
    "204-with-data": [w.head(204) + w.data(POISON) + w.end()],
    "204-with-length": [w.head(204, ("Content-Length", str(len(POISON)))) + w.end()],
    "204-with-length-and-data": [w.head(204, ("Content-Length", str(len(POISON)))) + w.data(POISON) + w.end()],
    "304-with-data": [w.head(304, ("Content-Length", "5")) + w.data(POISON) + w.end()],
    "304-with-length": [w.head(304, ("Content-Length", "50")) + w.end()],
    "205-with-data": [w.head(205) + w.data(POISON) + w.end()],
    "205-with-length": [w.head(205, ("Content-Length", str(len(POISON)))) + w.data(POISON, flags=w.FLUSH), w.end()],
    "205-empty": [w.head(205, ("Content-Length", "0")) + w.end()],
    "206-without-range": [w.head(206, ("Content-Range", "bytes 0-4/5")) + w.data("hello") + w.end()],
    "trailers-with-framing": [OK + w.data("x", flags=w.FLUSH), w.end(("Content-Length", "5"), ("Transfer-Encoding", "x"))],
    "trailers-with-crlf": [OK + w.data("x", flags=w.FLUSH), w.end(("X", "a\r\n\r\n" + POISON.decode()))],
    "connection-keep-alive": [w.head(200, ("Connection", "keep-alive"), ("Keep-Alive", "max=9")) + w.data("x")
                              + w.end()],
    "second-head": [OK + w.data("x") + w.head(200) + w.data("poison") + w.end()],
    "second-response": [OK + w.data("x") + w.end() + OK + w.data("poison") + w.end()],
    "second-response-later": [OK + w.data("x") + w.end(), OK + w.data("poison") + w.end()],
    "too-much": [w.head(200, ("Content-Length", "5")) + w.data(b"hello" + POISON) + w.end()],
    "too-much-later": [w.head(200, ("Content-Length", "5")) + w.data("hello", flags=w.FLUSH), w.data(POISON) + w.end()],
    "too-little": [w.head(200, ("Content-Length", "500")) + w.data("x", flags=w.FLUSH), w.end()],
    "no-end": [w.head(200, ("Content-Length", "500")) + w.data("x", flags=w.FLUSH)],
    "no-end-and-no-length": [OK + w.data("x", flags=w.FLUSH)],
    "violation-behind-the-whole-body": [w.head(200, ("Content-Length", "5")) + w.data("hello", flags=w.FLUSH),
                                        w.head(200) + w.data(POISON)],
    "abort-behind-the-whole-body": [w.head(200, ("Content-Length", "5")) + w.data("hello", flags=w.FLUSH), w.abort()],
    "head-in-parts": [w.frame(w.HEAD, b"\0\xc8\0\0", flags=w.MORE), w.frame(w.HEAD, b"\0\0") + w.data("x") + w.end()],
}


@pytest.mark.parametrize("name", TRICKS)
def test_a_trick_makes_no_second_response(attack, name):
    attack(*TRICKS[name])


@pytest.mark.parametrize("name", TRICKS)
@pytest.mark.parametrize("method,version", [("HEAD", "HTTP/1.1"), ("POST", "HTTP/1.0")], ids=["head", "http10"])
def test_a_trick_makes_no_second_response_to_others_either(server, name, method, version):
    by_h1(server, w.plan(*TRICKS[name], then="exit"), method, version)


def test_a_head_request_through_the_proxy(server, proxy):
    for messages in ([w.head(200, ("Content-Length", "50")) + w.end()],
                     [w.head(200, ("Content-Length", "3")) + w.data(POISON) + w.end()],
                     [files(OFF_T_MAX, OFF_T_MAX, 7, begin=OK, end=w.end())]):
        by_proxy(server, w.plan(*messages, then="exit"), proxy, method="HEAD")


# --- random sequences ---------------------------------------------------------------------------------

LENGTHS = [0, 1, 5, 7, 1000, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 6, 2**63 - 1, 2**63, 2**64 - 5, 2**64 - 1]


def some_head(r):
    status = r.choice([200] * 12 + [204, 304, 205, 206, 404, 500, 100, 600])
    fields = []
    if r.random() < 0.5:
        value = str(r.choice([0, 5, 5, 5, 7, 12, 1005, *LENGTHS]))
        if r.random() < 0.1:
            value = r.choice(BAD_LENGTHS)
        fields.append((r.choice(["Content-Length", "content-length"]), value))
    if r.random() < 0.05:
        fields.append(r.choice([("Transfer-Encoding", "chunked"), ("Content-Length", "5"), ("Connection", "close"),
                                ("X", "a\r\nContent-Length: 5")]))
    return w.head(status, *fields, flags=w.FLUSH if r.random() < 0.1 else 0)


def some_frame(r, stage):
    """Bytes of a frame and how many descriptors it brings."""
    flags = w.FLUSH if r.random() < 0.3 else 0
    usual = {"waiting": ["head"] * 6 + ["interim", "log", "meta"],
             "body": ["data"] * 4 + ["file"] * 5 + ["log", "meta"] + ["end"] * 2,
             "over": ["nothing"]}[stage]
    if r.random() < 0.06:
        usual = ["head", "data", "file", "interim", "end", "abort", "garbage", "need", "data-of-http"]
    what = r.choice(usual)
    if what == "head":
        return what, some_head(r), 0
    if what == "data":
        return what, w.data(b"d" * r.choice([0, 1, 5, 7, 20_000]), flags=flags), 0
    if what == "data-of-http":
        return what, w.data(b"\r\n0\r\n\r\n" + POISON, flags=flags), 0
    if what == "file":
        return what, w.file(r.choice([0, 0, 0, 5]), r.choice(LENGTHS), flags=flags), 1
    if what == "interim":
        return what, w.interim(r.choice([103, 103, 102, 199, 100]), ("Link", "</a>")), 0
    if what == "end":
        return what, w.end(*([("X-T", "1")] if r.random() < 0.2 else [])), 0
    if what == "garbage":
        return what, bytes(r.randrange(256) for _ in range(r.randrange(1, 40))), 0
    return what, {"log": w.log("x"), "meta": w.meta("u"), "abort": w.abort(r.choice([1, 2, 3, 4, 9])),
                  "need": w.frame(w.NEED_BODY), "nothing": b""}[what], 0


def some_sequence(r):
    messages, stage = [], "waiting"
    for _ in range(r.randrange(1, 5)):
        data, fds = b"", 0
        for _ in range(r.randrange(1, 6)):
            what, frame, brings = some_frame(r, stage)
            if fds + brings > 4:
                break
            data, fds = data + frame, fds + brings
            stage = {"head": "body", "end": "over"}.get(what, stage)
        if data:
            messages.append({"data": data, "fds": ["huge"] * fds})
    return messages


@pytest.mark.timeout(300)
@pytest.mark.parametrize("way,count", [("h1", 250), ("proxy", 150), ("h2", 60)])
def test_random_sequences_make_no_second_response(server, proxy, way, count):
    if way == "h2" and server.mpm == "prefork":
        pytest.skip("mod_http2 does nothing under prefork")
    r = random.Random(f"splitting {way}")
    seen = {}
    for number in range(count):
        plan = w.plan(*some_sequence(r), then="exit")
        try:
            found = by_proxy(server, plan, proxy) if way == "proxy" else {"h1": by_h1, "h2": by_h2}[way](server, plan)
        except (AssertionError, Broken) as e:
            raise AssertionError(f"sequence {number}: {plan.decode()}") from e
        outcome = found.status or found.why.split(":")[0]
        seen[outcome] = seen.get(outcome, 0) + 1
    # The sequences are worth something only if they come to every kind of end.
    assert seen.get(200, 0) > count // 50 and seen.get(502, 0) > count // 10, seen
    victim_alone(server)
    print(seen)
