"""Small tools: ports, waiting, threads, commands."""

import contextlib
import ctypes
import itertools
import random
import signal as signals
import socket
import subprocess
import threading
import time

_libc = ctypes.CDLL(None, use_errno=True)


def end_with_the_tests():
    """In the new child: SIGTERM when the test process dies, however it dies."""
    _libc.prctl(1, signals.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG
    # A shell that starts the tests in the background has them ignore these, and whatever they start.
    for number in (signals.SIGINT, signals.SIGQUIT):
        signals.signal(number, signals.SIG_DFL)


def _become_subreaper():
    if _libc.prctl(36, 1, 0, 0, 0) != 0:  # PR_SET_CHILD_SUBREAPER
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


_become_subreaper()


PORTS_OF_ONE = 250
FIRST_PORT = 20000  # above those of the demo and of httpd's own suite


class _Ports:
    """Ports that nobody else is handed: neither by another process that runs tests, nor by the kernel.

    They lie below those that the kernel gives to clients. A process takes a block of them by a name that only one
    socket of the machine can have, and that goes with the process.
    """

    def __init__(self):
        with open("/proc/sys/net/ipv4/ip_local_port_range") as f:
            end = int(f.read().split()[0])
        self.lock = threading.Lock()
        self.owned = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        for first in range(FIRST_PORT, end - PORTS_OF_ONE + 1, PORTS_OF_ONE):
            try:
                self.owned.bind(f"\0mod_pool-test-ports-{first}")
            except OSError:
                continue
            # Not from the first on: the run before, which had this block, was at that one a moment ago.
            ports = range(first, first + PORTS_OF_ONE)
            self.ports = itertools.islice(itertools.cycle(ports), random.randrange(PORTS_OF_ONE), None)
            return
        raise AssertionError(f"no block of {PORTS_OF_ONE} ports is left between {FIRST_PORT} and {end}")

    def next(self):
        """In turn, so that a port is unused for as long as possible before it is handed out again. One with connections
        in TIME_WAIT only where there is no other: httpd can listen on it, not everybody can."""
        with self.lock:
            for reuse in (0, 1):
                for port in itertools.islice(self.ports, PORTS_OF_ONE):
                    with socket.socket() as s, contextlib.suppress(OSError):
                        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
                        s.bind(("127.0.0.1", port))
                        return port
        raise AssertionError(f"{PORTS_OF_ONE} ports are in use")


_ports = None


def free_port():
    """A port nobody listens on, and that this run has not handed out for a while."""
    global _ports
    if _ports is None:
        _ports = _Ports()
    return _ports.next()


def eventually(check, timeout=5.0, interval=0.05, what=None):
    """Calls `check` until it returns something true, and returns that."""
    deadline = time.monotonic() + timeout
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what or check}")
        time.sleep(interval)


class Later(threading.Thread):
    """Work that goes on beside the test."""

    def __init__(self, work, *arguments, **keywords):
        super().__init__(daemon=True)
        self.work = lambda: work(*arguments, **keywords)
        self.error = self.value = None
        self.start()

    def run(self):
        try:
            self.value = self.work()
        except BaseException as e:  # handed to the caller below
            self.error = e

    def result(self, timeout=20):
        self.join(timeout)
        if self.is_alive():
            raise AssertionError(f"still busy after {timeout} s")
        if self.error:
            raise self.error
        return self.value


def run(*argv, timeout=30, check=True, **kw):
    done = subprocess.run(
        [str(a) for a in argv], capture_output=True, timeout=timeout, **kw
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{argv}: {done.returncode}\n{done.stdout!r}\n{done.stderr!r}")
    return done


def in_threads(count, work, timeout=60):
    """Runs work(i) in `count` threads; returns the results in order, raises the first error."""
    results, errors = [None] * count, []

    def one(i):
        try:
            results[i] = work(i)
        except BaseException as e:  # handed to the caller below
            errors.append(e)

    threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(count)]
    for t in threads:
        t.start()
    deadline = time.monotonic() + timeout
    for t in threads:
        t.join(max(0.0, deadline - time.monotonic()))
    if any(t.is_alive() for t in threads):
        raise AssertionError(f"threads still busy after {timeout} s")
    if errors:
        raise errors[0]
    return results
