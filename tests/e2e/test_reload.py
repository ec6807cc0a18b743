"""Point 7: reload and stop as stock httpd does, without a request lost or a process left."""

import os
import re
import shutil
import signal
import subprocess
import threading
import time

import pytest

from harness import (ALICE, BOB, CAROL, H2, Broken, Later, Site, descendants, eventually, fds_of, in_threads, module_so,
                     read_process)
from pages import at_once, usual_pages


def make(httpd, mode="foreground", pool_conf="PoolIdleTimeout 60s", **kw):
    sites = [Site("alice", ALICE, pool_conf=pool_conf), Site("bob", BOB, pool_conf=pool_conf)]
    server = httpd(sites=sites, **kw)
    for site in sites:
        usual_pages(site)
    return server.start(mode)


class Load:
    """Clients that ask without a pause, and count what a client would call lost.

    Lost: a refused or broken fresh connection, another status than 200, an answer cut short. Not lost: the end of an
    idle keep-alive connection before any byte of an answer (RFC 9112, 9.3.1: the client asks again on a new one).
    """

    def __init__(self, server, keep_alive, clients=4, paths=("/who.php", "/text.txt")):
        self.server, self.keep_alive, self.paths = server, keep_alive, paths
        self.done, self.lost, self.closed_idle = 0, [], 0
        self.running = True
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.client, args=(i,), daemon=True) for i in range(clients)]

    def __enter__(self):
        for t in self.threads:
            t.start()
        return self

    def __exit__(self, *_):
        self.running = False
        for t in self.threads:
            t.join(30)

    def client(self, i):
        connection, used = None, 0
        while self.running:
            path, host = self.paths[i % len(self.paths)], ["alice.test", "bob.test"][i % 2]
            i += 1
            try:
                if connection is None:
                    connection, used = self.server.connect(timeout=20), 0
                headers = [] if self.keep_alive else [("Connection", "close")]
                connection.request("GET", path, host, headers)
                found = connection.response()
                if found.status != 200 or not found.complete:
                    self.lose(f"{path}: {found.status} complete={found.complete}")
                with self.lock:
                    self.done += 1
                used += 1
                if not self.keep_alive or found.closes:
                    connection.close()
                    connection = None
            except (Broken, OSError) as e:
                got = connection.buffer if connection else b""
                if used and not got:
                    with self.lock:
                        self.closed_idle += 1
                else:
                    self.lose(f"{path}: {e!r} after {used} requests")
                if connection:
                    connection.close()
                connection = None

    def lose(self, what):
        with self.lock:
            self.lost.append(what)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("keep_alive", [False, True], ids=["close", "keep-alive"])
def test_20_graceful_restarts_under_load_lose_nothing(httpd, keep_alive):
    server = make(httpd)
    with Load(server, keep_alive) as load:
        time.sleep(0.5)
        for _ in range(20):
            server.graceful()
            time.sleep(0.4)
    assert load.lost == []
    assert load.done > 500
    if server.with_pool:
        nothing_old_is_left(server)


def nothing_old_is_left(server):
    count = lambda role: len(server.processes(role))
    eventually(lambda: count("controller") == 1 and count("seed") == 1, 15, what="one controller and one seed")
    eventually(lambda: count("zygote") <= 2, 15, what="one zygote for each pool")
    limit = 40 if server.mpm == "prefork" else 3
    eventually(lambda: count("frontend") <= limit, 20, what="only young frontends")
    assert [p for p in server.processes("zombie") if p.state == "Z"] == []


@pytest.mark.pool_only
@pytest.mark.timeout(240)
def test_descriptors_and_memory_do_not_grow_with_reloads(httpd):
    server = make(httpd, pool_conf="PoolIdleTimeout 1s")

    def measure():
        for name in ("alice", "bob"):
            assert server.get("/who.php", name).status == 200
        nothing_old_is_left(server)
        eventually(lambda: server.of_uid(ALICE, BOB) == [], 10)
        time.sleep(0.5)
        out = {}
        for role in ("parent", "controller"):
            process = server.processes(role)[0]
            out[role] = (len(fds_of(process.pid)), int(process.status["VmRSS"].split()[0]))
        return out

    for _ in range(4):
        server.graceful()
    before = measure()
    for _ in range(16):
        server.graceful()
    after = measure()
    for role in ("parent", "controller"):
        assert after[role][0] <= before[role][0], (role, before, after)
        # kB; stock httpd's parent grows by a little with each reload, the controller has nothing to grow by
        allowed = 2048 if role == "parent" else 512
        assert after[role][1] <= before[role][1] + allowed, (role, before, after)


def test_request_in_flight_survives_a_graceful_restart(httpd):
    server = make(httpd)
    server.get("/who.php")
    in_flight = Later(server.get, "/sleep.php?s=2.5")
    time.sleep(0.5)
    server.graceful()
    assert server.get("/who.php").status == 200
    assert in_flight.result().status == 200


def test_graceful_restart_starts_php_afresh(httpd):
    """As in stock httpd: php.ini is read again and opcache is empty, the httpd configuration being what it was."""
    site = Site("alice", ALICE, pool_conf="PoolIdleTimeout 60s")
    server = httpd(sites=[site], conf="PHPIniDir @ROOT@/conf/php\n")
    ini = server.root / "conf" / "php" / "php.ini"
    ini.parent.mkdir()
    ini.parent.chmod(0o755)

    def set_ini(size):
        ini.write_text(f"memory_limit={size}M\nopcache.validate_timestamps=0\n")
        ini.chmod(0o644)

    def look():
        return server.get("/ini.php").text

    set_ini(77)
    site.write("ini.php", "<?php echo ini_get('memory_limit'), ' one';")
    server.start()
    assert look() == "77M one"
    set_ini(78)
    site.write("ini.php", "<?php echo ini_get('memory_limit'), ' two';")
    assert look().startswith("77M")
    server.graceful()
    eventually(lambda: look() == "78M two", 5)
    time.sleep(0.3)
    assert {look() for _ in range(10)} == {"78M two"}


def test_log_rotation_with_a_graceful_restart(httpd):
    """What logrotate does: files renamed, then graceful; every process writes to the new ones, none keeps the old."""
    server = make(httpd)
    server.get("/who.php")
    logs = server.root / "logs"
    for name in ("error.log", "access.log"):
        (logs / name).rename(logs / f"{name}.1")
    server.signal(signal.SIGUSR1)
    server.wait_for_log("resuming normal operations", 20)
    eventually(server.answers, 5)
    server.wait_for_log("who.php|alice", name="access.log")
    if server.with_pool:
        server.sites["alice"].write("die.php", "<?php posix_kill(getmypid(), 9); sleep(5);")
        server.kill("zygote", "alice")
        assert server.get("/die.php").status == 502
        server.wait_for_log("die.php")
        server.wait_for_log("zygote died")  # the controller's own line
    rotated = lambda: [(p.role, link) for p in server.processes() for link in fds_of(p.pid).values()
                       if link.endswith(".log.1")]
    eventually(lambda: rotated() == [], 10, what="nobody holds the rotated logs")


def test_piped_error_log(httpd):
    """httpd starts the program; the controller writes through it too, and no second copy of it is started."""
    server = make(httpd, conf="ErrorLog \"|/bin/sh -c 'exec cat >> @ROOT@/logs/error.log'\"\n")
    for _ in range(2):
        at = len(server.error_log())
        assert server.get("/who.php").status == 200
        if server.with_pool:
            server.kill("zygote", "alice")
            server.wait_for_log("zygote died", after=at)
        eventually(lambda: len([p for p in server.processes() if p.title == "cat"]) == 1, 10, what="one log program")
        server.signal(signal.SIGUSR1)
        server.wait_for_log("resuming normal operations", 20, after=at)
        eventually(server.answers, 5)


@pytest.mark.pool_only
def test_changed_pool_user_takes_effect(httpd):
    server = make(httpd)
    alice = server.sites["alice"]
    alice.docroot.chmod(0o755)
    alice.write("uid.php", "<?php echo posix_geteuid();", mode=0o644)
    assert server.get("/uid.php").text == str(ALICE)
    alice.uid = alice.gid = CAROL
    server.graceful()
    eventually(lambda: server.get("/uid.php").text == str(CAROL), 5)
    nothing_old_is_left(server)
    eventually(lambda: server.of_uid(ALICE) == [], 10)


def test_changed_configuration_takes_effect(httpd):
    server = make(httpd)
    alice = server.sites["alice"]
    alice.write("env.php", "<?php echo $_SERVER['GENERATION'] ?? 'none';")
    for generation in range(1, 5):
        alice.conf = f"SetEnv GENERATION {generation}"
        server.graceful()
        eventually(lambda: server.get("/env.php").text == str(generation), 5)
        # No frontend of the old generation may answer for long.
        time.sleep(0.3)
        assert [server.get("/env.php").text for _ in range(10)] == [str(generation)] * 10


def test_new_virtual_host_takes_effect(httpd):
    server = make(httpd)
    carol = Site("carol", CAROL)
    carol.server = server
    carol.docroot.mkdir()
    carol.docroot.chmod(0o700)
    os.chown(carol.docroot, *carol.owner)
    usual_pages(carol)
    server.sites["carol"] = carol
    with Load(server, True) as load:
        server.graceful()
        eventually(lambda: server.get("/text.txt", "carol").status == 200, 5)
    assert load.lost == []
    assert server.get("/who.php", "carol").json()["posix"] == carol.owner[0]


@pytest.mark.pool_only
def test_cap_holds_over_both_generations(httpd):
    server = make(httpd, pool_conf="PoolMaxProcesses 2\nPoolQueueTimeout 20s")
    server.get("/who.php")
    old = [Later(server.get, "/sleep.php?s=2") for _ in range(2)]
    time.sleep(0.5)
    server.sites["alice"].conf = "SetEnv CHANGED 1"
    server.graceful()
    young = in_threads(4, lambda _: server.get("/sleep.php?s=0.3"))
    assert at_once([a.json() for a in [*(o.result() for o in old), *young]]) <= 2


def test_broken_configuration_does_not_stop_the_server(httpd):
    server = make(httpd)
    good = server.conf_file.read_text()
    server.conf_file.write_text(good + "\nNoSuchDirective here\n")
    done = server.command("graceful")
    assert done.returncode != 0
    assert "NoSuchDirective" in done.stderr + done.stdout
    assert server.get("/who.php").status == 200
    server.conf_file.write_text(good)


# --- stop -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGWINCH])
@pytest.mark.parametrize("mode", ["foreground", "daemon"])
def test_stop_by_signal_leaves_nothing(httpd, mode, number):
    if mode == "daemon" and number == signal.SIGINT:
        pytest.skip("a daemon ignores SIGINT")
    server = make(httpd, mode)
    server.get("/who.php"), server.get("/who.php", "bob")
    start = time.monotonic()
    server.stop(number)
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("word", ["stop", "graceful-stop"])
def test_stop_by_command_leaves_nothing(httpd, word):
    server = make(httpd, "daemon")
    server.get("/who.php")
    assert server.command(word).returncode == 0
    server.wait_for_end()
    server.stop()


@pytest.mark.parametrize("word", ["graceful", "restart"])
def test_reload_by_command(httpd, word):
    server = make(httpd, "daemon")
    server.get("/who.php")
    for _ in range(3):
        at = len(server.error_log())
        assert server.command(word).returncode == 0
        server.wait_for_log("resuming normal operations", 20, after=at)
        eventually(server.answers, 5)
    assert server.is_running()


def test_restart_by_signal(httpd):
    server = make(httpd)
    for _ in range(3):
        at = len(server.error_log())
        server.signal(signal.SIGHUP)
        server.wait_for_log("resuming normal operations", 20, after=at)
        eventually(server.answers, 5)
    if server.with_pool:
        nothing_old_is_left(server)


def test_graceful_stop_finishes_the_request_in_flight(httpd):
    server = make(httpd)
    server.get("/who.php")
    in_flight = Later(server.get, "/sleep.php?s=2")
    time.sleep(0.5)
    server.stop(signal.SIGWINCH)
    found = in_flight.result(5)
    assert found.status == 200 and found.complete


def test_stop_does_not_wait_for_a_busy_script(httpd):
    server = make(httpd)
    server.get("/who.php")
    Later(server.try_get, "/sleep.php?s=30")
    time.sleep(0.5)
    server.signal(signal.SIGTERM)
    # A threaded httpd gives a busy frontend 10 s before it kills it. What comes then is ours: the controller's 1 s.
    server.wait_for_log("caught SIGTERM, shutting down", 15)
    start = time.monotonic()
    server.wait_for_end()
    assert time.monotonic() - start < 2
    server.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGWINCH])
def test_stop_signal_to_the_whole_group_ends_everything(httpd, number):
    server = make(httpd)
    server.get("/who.php")
    os.killpg(server.main, number)
    server.wait_for_end()
    server.stop()


@pytest.mark.pool_only
@pytest.mark.parametrize("mode", ["daemon", "single", "foreground"])
def test_death_of_the_parent_ends_everything(httpd, mode):
    server = make(httpd, mode)
    server.get("/who.php")
    os.kill(server.main, signal.SIGKILL)
    server.wait_for_end()
    left = server.wait_until_nothing_is_left(8)
    server.stopped = True
    for p in left:
        os.kill(p.pid, signal.SIGKILL)
    assert [p.title for p in left] == []


@pytest.mark.pool_only
def test_death_of_the_controller_in_single_process_mode(httpd):
    """httpd's one process serves requests and supervises nobody: the controller's keeper starts another one."""
    server = make(httpd, "single")
    for _ in range(3):
        old = [server.get("/who.php").json()["pid"], server.processes("controller")[0].pid]
        os.kill(old[-1], signal.SIGKILL)
        eventually(lambda: server.answers(), 8, what="an answer")
        eventually(lambda: all(read_process(pid) is None for pid in old), 5, what="controller and worker are reaped")
    # The last answer may be that of the worker before: its lease is closed when the frontend knows of the death.
    one_of_each = lambda: [len(server.processes(role)) for role in ("keeper", "controller", "seed")] == [1, 1, 1]
    eventually(one_of_each, 8, what="one keeper, controller and seed")
    assert [a.status for a in in_threads(6, lambda _: server.get("/who.php"))] == [200] * 6
    assert [p for p in descendants(server.main) if p.state == "Z"] == []
    server.stop()


@pytest.mark.pool_only
def test_quit_to_the_whole_group_in_single_process_mode(httpd):
    """Ctrl-\\: httpd with threads takes no notice of it under -X, so the pools must not end either."""
    server = make(httpd, "single")
    assert server.get("/who.php").status == 200
    roles = lambda: {r: [p.pid for p in server.processes(r)] for r in ("keeper", "controller", "seed", "zygote")}
    before = roles()
    os.killpg(os.getpgid(server.main), signal.SIGQUIT)
    time.sleep(1.5)
    if server.mpm == "prefork":
        server.wait_for_end()
    else:
        assert roles() == before and all(before.values())
        assert server.get("/who.php").status == 200
    server.stop()


@pytest.mark.pool_only
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_end_of_the_keeper_in_single_process_mode(httpd, number):
    server = make(httpd, "single")
    assert server.get("/who.php").status == 200
    os.kill(server.processes("keeper")[0].pid, number)
    if number == signal.SIGTERM:
        eventually(lambda: server.of_uid(ALICE, BOB) == [], 8, what="the pools end with it")
    else:
        assert server.get("/who.php").status == 200
    server.stop()


def test_ctrl_c_to_the_whole_group_ends_everything(httpd):
    server = make(httpd)
    server.get("/who.php")
    os.killpg(server.main, signal.SIGINT)
    server.wait_for_end()
    server.stop()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP])
def test_reload_signal_to_the_whole_group(httpd, number):
    """What `killall -USR1` does: every process gets it, not the parent alone."""
    server = make(httpd)
    server.get("/who.php")
    at = len(server.error_log())
    os.killpg(server.main, number)
    server.wait_for_log("resuming normal operations", 20, after=at)
    eventually(server.answers, 8)
    assert [a.status for a in in_threads(4, lambda _: server.get("/who.php", "bob"))] == [200] * 4


@pytest.mark.pool_only
def test_stray_signals_to_controller_and_seed_are_ignored(httpd):
    server = make(httpd)
    server.get("/who.php")
    before = [p.pid for role in ("controller", "seed") for p in server.processes(role)]
    for pid in before:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGWINCH, signal.SIGPIPE):
            os.kill(pid, number)
    time.sleep(0.5)
    assert [p.pid for role in ("controller", "seed") for p in server.processes(role)] == before
    assert server.get("/who.php").status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_single_process_mode(httpd, number):
    server = make(httpd, "single")
    for _ in range(3):
        found = server.get("/who.php")
        assert found.json()["site"] == "alice.test"
    if server.with_pool:
        assert found.json()["posix"] == ALICE
    server.stop(number)


def test_second_start_on_the_same_pid_file_is_refused(httpd):
    server = make(httpd, "daemon")
    server.get("/who.php")
    done = server.command("start")
    assert "already running" in done.stdout + done.stderr
    assert server.get("/who.php").status == 200


def test_quick_start_and_stop(httpd):
    """A stop that comes before the controller and seed are up must not leave them behind."""
    server = make(httpd)
    server.stop()
    for pause in (0, 0.02, 0.05, 0.1, 0.2, 0.4):
        server.write_conf()
        server.stopped = False
        server.child = subprocess.Popen(
            server.argv("-D", "FOREGROUND"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )
        server.main = server.child.pid
        time.sleep(pause)
        server.stop(signal.SIGTERM)


# --- a new module file ------------------------------------------------------------------------------


@pytest.mark.pool_only
def test_replacing_the_module_file_and_reloading_goes_on_serving(httpd):
    sites = [Site("alice", ALICE, pool_conf="PoolIdleTimeout 1s"), Site("bob", BOB)]
    server = httpd(sites=sites)
    for site in sites:
        usual_pages(site)
    server.pool_so = server.root / "run" / "mod_pool.so"
    shutil.copy(module_so(), server.pool_so)
    server.start()
    assert server.get("/who.php").status == 200
    # A package upgrade: another file under the same name.
    new = server.root / "run" / "mod_pool.so.new"
    new.write_bytes(module_so().read_bytes() + b"\0" * 64)
    new.chmod(0o755)
    new.rename(server.pool_so)
    for _ in range(2):
        server.graceful()
        time.sleep(0.5)
        for name in ("alice", "bob"):
            eventually(lambda: server.get("/who.php", name).status == 200, 8)
    eventually(lambda: server.of_uid(ALICE) == [], 8)
    assert server.get("/who.php").status == 200
    assert read_process(server.main) is not None
    assert not re.search(r"segfault|Segmentation", server.error_log())


@pytest.mark.pool_only
def test_naming_another_module_file_and_reloading_goes_on_serving(httpd):
    sites = [Site("alice", ALICE), Site("bob", BOB)]
    server = httpd(sites=sites)
    for site in sites:
        usual_pages(site)
    files = [server.root / "run" / name for name in ("mod_pool-1.so", "mod_pool-2.so")]
    for file in files:
        shutil.copy(module_so(), file)
    server.pool_so = files[0]
    server.start()
    assert server.get("/who.php").status == 200
    for file in (files[1], files[0], files[1]):
        server.pool_so = file
        server.graceful()
        for name in ("alice", "bob"):
            eventually(lambda: server.get("/who.php", name).status == 200, 8)
    assert "Syntax error" not in server.error_log() + server.log("console.log")


def test_a_customer_who_is_gone_stops_nobody(httpd):
    """His user was deleted: start and reload work, his site says so, the others serve. Once he is back, a reload helps."""
    gone = Site("alice", ALICE, declared=False)
    block = "<ServerPool alice>\n{}\nPoolMinSpare 1\n</ServerPool>\n"
    sites = [gone, Site("bob", BOB)]
    server = httpd(sites=sites, conf="@GONE@", define={"GONE": block.format("PoolUser gone-customer")})
    for site in sites:
        site.write("who.php", "<?php echo posix_geteuid();")
    server.start()
    for round in (1, 2):
        with H2(server, tls=True) as c:
            answers = [server.get("/who.php", "alice"), server.get("/", "alice"), c.get("/who.php")]
        for answer in answers:
            assert answer.status == 503 and answer.get("Retry-After") == "300"
        assert server.get("/who.php", "bob").text == str(BOB)
        said = r"POOL140: .*pool alice.*503: the pool is out of service: PoolUser gone-customer: there is no such user"
        eventually(lambda: server.count_log(said) == 3 * round)
        assert server.count_log(r"its processes fail to start") == 0
        server.graceful()
    server.define["GONE"] = block.format(f"PoolUser #{ALICE}\nPoolGroup #{ALICE}")
    server.graceful()
    eventually(lambda: server.get("/who.php", "alice").text == str(ALICE))
