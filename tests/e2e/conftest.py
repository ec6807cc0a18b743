"""Options, fixtures and the last line of the end-to-end tests."""

import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))

import harness  # noqa: E402
import sharing  # noqa: E402

TEST_TIMEOUT = 90


def pytest_addoption(parser):
    parser.addoption("--reference", action="store_true",
                     help="run against stock prefork + mod_php, without mod_pool")
    if importlib.util.find_spec("pytest_timeout") is None:
        parser.addoption("--timeout", type=float, help="seconds for a test that names none itself")
    parser.addoption("--scale", action="store_true", help="also what takes minutes and all of the machine: thousands of pools")
    parser.addoption("--mpm", help="event (as usual), pool (mod_pool itself), worker or prefork; a threaded reference has no PHP")


def pytest_configure(config):
    config.addinivalue_line("markers", "pool_only: says something about pools; no reference exists")
    config.addinivalue_line("markers", "timeout(seconds): longer than the usual time limit")
    config.addinivalue_line("markers", "serial: takes the machine from other tests; tests/run has it run behind them, alone")
    config.addinivalue_line("markers", "scale: runs with --scale only")
    if os.geteuid() != 0:
        pytest.exit("these tests start servers that change users: run them as root", 2)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    if not config.getoption("--scale"):
        left_out = [item for item in items if item.get_closest_marker("scale")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    if hasattr(config, "workerinput"):
        sharing.share_out(items)
    if config.getoption("--reference"):
        skip = pytest.mark.skip(reason="not for the reference server")
        for item in items:
            if item.get_closest_marker("pool_only"):
                item.add_marker(skip)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return sharing.scheduler(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item):
    if item.config.pluginmanager.hasplugin("timeout"):
        yield
        return
    marker = item.get_closest_marker("timeout")
    limit = int(marker.args[0] if marker else item.config.getoption("--timeout", None) or TEST_TIMEOUT)

    def too_long(*_):
        raise TimeoutError(f"the test took longer than {limit} s")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for server in harness.Httpd.live:
            report.sections.append((f"error log of {server.root}", server.tail()))


@pytest.fixture(scope="session")
def reference(request):
    return request.config.getoption("--reference")


@pytest.fixture(scope="session")
def kind(request):
    """The arguments that make a server the one under test, or the reference."""
    if request.config.getoption("--reference"):
        return {"mpm": request.config.getoption("--mpm") or "prefork", "with_pool": False}
    return {"mpm": request.config.getoption("--mpm") or "event", "with_pool": True}


@pytest.fixture
def httpd(kind):
    """Makes servers for one test and destroys them after it."""
    yield from _servers(kind)


@pytest.fixture(scope="module")
def shared_httpd(kind):
    """The same, for a server that all tests of a file share."""
    yield from _servers(kind)


def _servers(kind):
    made = []

    def make(**kw):
        server = harness.Httpd(**{**kind, **kw})
        made.append(server)
        return server

    yield make
    problems = []
    for server in reversed(made):
        try:
            server.destroy()
        except AssertionError as e:
            problems.append(e)
    if problems:
        raise problems[0]


def pytest_unconfigure(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    count = lambda *keys: sum(
        len([r for r in reporter.stats.get(key, []) if getattr(r, "when", "") != "teardown" or key == "error"])
        for key in keys
    )
    print(f"{count('passed')} passed, {count('failed', 'error')} failed, {count('skipped')} skipped")


@pytest.fixture(scope="module")
def scratch():
    """Not on FUSE, as a container's own files may be: a frontend takes none of those, and a file that is replaced while
    it is opened may be an I/O error there."""
    path = Path(tempfile.mkdtemp(prefix="mod_pool-", dir="/dev/shm"))
    os.chown(path, harness.ALICE, harness.ALICE)
    yield path
    shutil.rmtree(path)
