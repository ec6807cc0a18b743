"""What a pool's process must not have from those that started it: keyrings, protection, precedence, directory, groups."""

import contextlib
import ctypes
import grp
import os
import pathlib
import platform
import shutil
import signal
import subprocess

import pytest

from harness import ALICE, BOB, Site, compile_module
from pages import FFI, WHO_PHP

pytestmark = pytest.mark.pool_only

KEYCTL, ADD_KEY = (219, 217) if platform.machine() == "aarch64" else (250, 248)
JOIN, REVOKE, SETPERM, CLEAR, SEARCH, READ = 1, 3, 5, 7, 10, 11
SESSION, USER, USER_SESSION, PROCESS, THREAD = -3, -4, -5, -2, -1
libc = ctypes.CDLL(None, use_errno=True)

KEYS_PHP = """
<?php
$c = FFI::cdef('long syscall(long n, ...);');
$keyctl = fn(...$arguments) => $c->syscall(@KEYCTL@, ...$arguments);
$out = [];
if (isset($_GET['add'])) {
    $key = $c->syscall(@ADD_KEY@, 'user', $_GET['add'], 'of ' . $_SERVER['SERVER_NAME'], 20, -3);
    $out['perm'] = $keyctl(5, $key, 0x3f3f0000);
    $out['added'] = $key;
}
foreach (array_filter(explode(',', $_GET['find'] ?? '')) as $name)
    foreach ([-1, -2, -3, -4, -5] as $ring) $out['found'][] = $keyctl(10, $ring, 'user', $name, 0);
foreach (array_filter(explode(',', $_GET['keys'] ?? '')) as $key) {
    $buffer = FFI::new('char[100]');
    $out['read'][] = $keyctl(11, (int)$key, FFI::addr($buffer), 99);
    $out['revoked'][] = $keyctl(3, (int)$key);
    $out['linked'][] = $keyctl(8, (int)$key, -3);
    $out['cleared'][] = $keyctl(7, (int)$key);
}
if (isset($_GET['clear'])) $out['clear'] = [$keyctl(7, -3), $keyctl(3, -3)];
$out['session'] = $keyctl(0, -3, 0);
header('Content-Type: application/json');
echo json_encode($out);
""".replace("@KEYCTL@", str(KEYCTL)).replace("@ADD_KEY@", str(ADD_KEY))


def keyctl(*arguments):
    return libc.syscall(KEYCTL, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])


def find(name, ring=SESSION):
    return keyctl(SEARCH, ring, b"user", name.encode(), 0)


def make(httpd, **kw):
    sites = [Site(n, u, conf=FFI, pool_conf="PoolIdleTimeout 300s") for n, u in (("alice", ALICE), ("bob", BOB))]
    server = httpd(sites=sites, **kw)
    for site in sites:
        site.write("who.php", WHO_PHP)
        site.write("keys.php", KEYS_PHP)
    return server


@contextlib.contextmanager
def set_and_restored(get, set_to, value):
    before = get()
    try:
        set_to(value)
    except OSError as e:
        pytest.skip(f"this container forbids it: {e}")
    try:
        yield
    finally:
        set_to(before)


def of_pools(server):
    for site in server.sites:
        assert server.get("/who.php", site).status == 200
    found = server.processes("zygote") + server.workers()
    assert {p.pool for p in found} == {"alice", "bob"} and {p.role for p in found} == {"zygote", "worker"}
    return found


# --- keyrings ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def roots_key():
    """A key of root's in the session keyring that httpd is started with, and that keyring."""
    ring = keyctl(JOIN, None)
    if ring < 0:
        pytest.skip("keyctl(2) is forbidden here, to pools too")
    key = libc.syscall(ADD_KEY, b"user", b"mod_pool-root", b"of root", ctypes.c_size_t(7), ctypes.c_long(SESSION))
    assert key > 0 and keyctl(SETPERM, key, 0x3F3F0000) == 0 and find("mod_pool-root") == key
    return key, ring


@pytest.fixture(scope="module")
def keys(roots_key, shared_httpd):
    return make(shared_httpd).start()


def test_keys_of_the_server_are_out_of_reach(keys, roots_key):
    key, ring = roots_key
    out = keys.get(f"/keys.php?find=mod_pool-root&keys={key},{ring}").json()
    assert out["session"] not in (ring, 0)
    for what in ("found", "read", "revoked", "linked", "cleared"):
        assert set(out[what]) == {-1}, (what, out)
    assert find("mod_pool-root") == key


def test_keys_of_another_pool_are_out_of_reach(keys, roots_key):
    added = keys.get("/keys.php?add=mod_pool-alice", "alice").json()
    assert added["added"] > 0 and added["perm"] == 0
    key, ring = added["added"], added["session"]
    out = keys.get(f"/keys.php?find=mod_pool-alice&keys={key},{ring}", "bob").json()
    assert out["session"] != ring
    for what in ("found", "read", "revoked", "linked", "cleared"):
        assert set(out[what]) == {-1}, (what, out)
    # Nor do they come to root.
    assert find("mod_pool-alice") == -1
    # What is one's own works, and can be undone, which touches nobody else.
    own = keys.get("/keys.php?find=mod_pool-alice", "alice").json()
    assert key in own["found"]
    assert keys.get("/keys.php?clear=1", "bob").json()["clear"][0] == 0
    assert key in keys.get("/keys.php?find=mod_pool-alice", "alice").json()["found"]
    assert find("mod_pool-root") == roots_key[0]


# --- what a unit of systemd or a shell may have given httpd -------------------------------------------


def test_protection_from_the_oom_killer_is_not_for_pools(httpd):
    path = "/proc/self/oom_score_adj"
    write = lambda value: pathlib.Path(path).write_text(value)
    with set_and_restored(pathlib.Path(path).read_text, write, "-500"):
        server = make(httpd).start()
    assert open(f"/proc/{server.main}/oom_score_adj").read().strip() == "-500"
    for p in of_pools(server):
        assert open(f"/proc/{p.pid}/oom_score_adj").read().strip() == "0", p.title
    alice = server.sites["alice"]
    alice.write("back.php", f"<?php echo json_encode(@file_put_contents('{path}', '-500')), file_get_contents('{path}');")
    assert server.get("/back.php").text.strip() == "false0"


def test_worse_chances_with_the_oom_killer_are_kept(httpd):
    path = "/proc/self/oom_score_adj"
    write = lambda value: pathlib.Path(path).write_text(value)
    with set_and_restored(pathlib.Path(path).read_text, write, "300"):
        server = make(httpd).start()
    for p in of_pools(server):
        assert open(f"/proc/{p.pid}/oom_score_adj").read().strip() == "300", p.title


def test_precedence_is_not_for_pools(httpd):
    nice = lambda: os.getpriority(os.PRIO_PROCESS, 0)
    with set_and_restored(nice, lambda value: os.setpriority(os.PRIO_PROCESS, 0, value), -5):
        server = make(httpd).start()
    assert os.getpriority(os.PRIO_PROCESS, server.main) == -5
    for p in of_pools(server):
        assert os.getpriority(os.PRIO_PROCESS, p.pid) == 0, p.title


def test_a_policy_of_real_time_is_not_for_pools(httpd):
    policy = lambda: (os.sched_getscheduler(0), os.sched_getparam(0))
    with set_and_restored(policy, lambda value: os.sched_setscheduler(0, *value), (os.SCHED_RR, os.sched_param(1))):
        server = make(httpd).start()
    assert os.sched_getscheduler(server.main) == os.SCHED_RR
    for p in of_pools(server):
        assert os.sched_getscheduler(p.pid) in (os.SCHED_OTHER, os.SCHED_BATCH), p.title


def test_the_working_directory_is_not_where_root_stood(httpd, tmp_path):
    """It may be open to all, below one that is not: a relative path would lead into it."""
    hidden = tmp_path / "hidden"
    inner = hidden / "inner"
    inner.mkdir(parents=True)
    hidden.chmod(0o700)
    inner.chmod(0o755)
    (inner / "secret").write_text("secret")
    with set_and_restored(os.getcwd, os.chdir, inner):
        server = make(httpd).start()
    for p in of_pools(server):
        assert os.readlink(f"/proc/{p.pid}/cwd") == "/", p.title


def test_no_signal_stays_ignored(httpd):
    """Neither those that the controller ignores nor what httpd was started with, those of real time included. Two are
    ignored as in prefork's children."""
    with set_and_restored(lambda: signal.getsignal(40), lambda to: signal.signal(40, to), signal.SIG_IGN):
        server = make(httpd).start()
    assert int(server.processes("controller")[0].status["SigIgn"], 16) & 1 << 39
    for p in of_pools(server):
        as_ever = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1
        assert int(p.status["SigIgn"], 16) & ~as_ever == 0, p.title
        assert int(p.status["SigBlk"], 16) == 0, p.title


# --- groups -----------------------------------------------------------------------------------------


@pytest.fixture
def member():
    """A user in the system's databases who is a member of these groups."""
    uid = ALICE + 7
    name = f"modpool{uid}"
    run = lambda *argv: subprocess.run(argv, check=True, capture_output=True)
    if shutil.which("useradd") is None:
        pytest.skip("no useradd here")
    made = []

    def make_member(*groups):
        run("useradd", "--no-create-home", "--non-unique", "-u", str(uid), "-U", "-G", ",".join(groups), name)
        made.append(name)
        return name

    yield make_member
    for name in made:
        run("userdel", "-f", name)


def test_a_user_with_roots_group_is_refused(httpd, member):
    name = member("root")
    server = httpd(sites=[], conf=f"<ServerPool site>\nPoolUser {name}\n</ServerPool>\n")
    found = server.configtest()
    assert found.returncode != 0
    assert f"PoolUser {name} of <ServerPool site>" in found.stderr and "is a member of group 0" in found.stderr
    assert f"gpasswd -d {name} root" in found.stderr


def test_a_user_with_groups_of_others_is_told(httpd, member):
    name = member("www-data", "games")
    games = grp.getgrnam("games").gr_gid
    conf = f"""
        <ServerPool site>
            PoolUser {name}
        </ServerPool>
        <ServerPool gamers>
            PoolUser #{BOB}
            PoolGroup games
        </ServerPool>
    """
    server = httpd(sites=[], conf="Group www-data\n" + conf)
    found = server.configtest()
    assert found.returncode == 0, found.stderr
    assert f"the users of the pools site are members of group {grp.getgrnam('www-data').gr_gid}, which is that of the" in found.stderr
    assert f"the users of the pools site are members of group {games}, which is the group of the pools gamers" in found.stderr


def test_threads_that_workers_will_not_have_are_told(httpd, tmp_path):
    """They are copies of one thread only; what another one held at that time stays held in them."""
    so = compile_module("threads", tmp_path)
    site = Site("alice", ALICE)
    server = httpd(sites=[site], conf=f"LoadModule threads_module {so}\n")
    site.write("page.php", "<?php echo 'page';")
    server.start()
    for _ in range(3):
        assert server.get("/page.php").text == "page"
    server.wait_for_log(r"\[pool alice pid \d+\] mod_pool: POOL127: .*\(agent\).*PoolModuleRole", 5)
    assert server.count_log("POOL127") == 1


def test_a_zygote_with_one_thread_is_not_worth_a_line(httpd):
    site = Site("alice", ALICE)
    server = httpd(sites=[site])
    site.write("page.php", "<?php echo 'page';")
    server.start()
    assert server.get("/page.php").text == "page"
    assert server.count_log("POOL127") == 0
