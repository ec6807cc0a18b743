"""What the benchmarks share: the servers that are compared, their accounts of processor time, and wrk.

All servers serve the same files with the same settings. What is measured, and what is reported, is for the callers.
"""

import http.client
import itertools
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parent
os.environ["PATH"] += ":/usr/sbin:/sbin"

MODULES = Path("/usr/lib/apache2/modules")
WORKERS = 16
HELLO = b"Hello, World!\n"
STATIC = b"s" * 1024


def fail(text):
    sys.exit(f"bench: {text}")


# ===== Processor time of a server =====


class CgroupV2:
    """The kernel's own sum over a control group: every process that was ever in it, to the microsecond."""

    label = "cgroup v2 cpu.stat"

    def __init__(self, name):
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        mount = next(fields[1] for fields in mounts if fields[2] == "cgroup2")
        self.path = Path(mount) / f"mod_pool-bench-{os.getpid()}-{name}"
        self.path.mkdir()
        self.seconds()

    def enter(self):
        """Called in a process of the server before it execs."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def started(self, pid):
        """Called in the benchmark once it has."""

    def seconds(self):
        found = re.search(r"^usage_usec (\d+)", (self.path / "cpu.stat").read_text(), re.M)
        return int(found[1]) / 1e6

    def pids(self):
        return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]

    def close(self):
        for _ in range(50):
            try:
                self.path.rmdir()
                return
            except OSError:
                time.sleep(0.1)


class CgroupV1(CgroupV2):
    """The same from the older cpuacct controller, to the nanosecond."""

    label = "cgroup v1 cpuacct.usage"

    def __init__(self, name):
        self.path = Path("/sys/fs/cgroup/cpuacct") / f"mod_pool-bench-{os.getpid()}-{name}"
        self.path.mkdir()
        self.seconds()

    def seconds(self):
        return int((self.path / "cpuacct.usage").read_text()) / 1e9


class ProcFiles:
    """Without control groups: utime, stime and those of reaped children, of each process of the server."""

    label = "/proc/PID/stat (10 ms steps)"

    def __init__(self, name):
        self.mark = f"MOD_POOL_BENCH={os.getpid()}-{name}"
        self.known = set()

    def enter(self):
        os.environ.update([self.mark.split("=")])

    def started(self, pid):
        self.known.add(pid)

    def pids(self):
        """What we started, what has our mark in its environment, and the descendants of those. A process that sets
        its title may write over its environment."""
        parents = {}
        for directory in Path("/proc").glob("[0-9]*"):
            pid = int(directory.name)
            try:
                parents[pid] = int((directory / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if self.mark.encode() in (directory / "environ").read_bytes().split(b"\0"):
                    self.known.add(pid)
            except OSError:
                pass
        grown = True
        while grown:
            more = {pid for pid, parent in parents.items() if parent in self.known} - self.known
            self.known |= more
            grown = bool(more)
        self.known &= parents.keys()
        return sorted(self.known)

    def seconds(self):
        ticks = 0
        for pid in self.pids():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                ticks += sum(int(field) for field in fields[11:15])
            except OSError:
                pass
        return ticks / os.sysconf("SC_CLK_TCK")

    def close(self):
        pass


NUMBERS = itertools.count()


def account(name):
    """Numbered: a server may be started again."""
    name = f"{next(NUMBERS)}-{name}"
    for kind in (CgroupV2, CgroupV1):
        try:
            return kind(name)
        except (OSError, StopIteration, TypeError):
            pass
    return ProcFiles(name)


# ===== Servers =====


class Server:
    """One of the servers to compare: its processes, its configuration, its account of processor time."""

    def __init__(self, name, root, port):
        """`root`: the directory in which it gets one of its own."""
        self.name, self.root, self.port = name, root / name, port
        # Where it speaks HTTP/2 over TLS, if it does.
        self.tls_port = None
        self.root.mkdir()
        self.processes = []
        self.account = account(name)

    def start(self, command):
        with open(self.root / "output.log", "ab") as output:
            self.processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output,
                                                   stderr=subprocess.STDOUT, preexec_fn=self.account.enter,
                                                   start_new_session=True))
        self.account.started(self.processes[-1].pid)

    def wait_ready(self, path="/hello.php"):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if any(process.poll() is not None for process in self.processes):
                break
            try:
                if self.get(path)[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        self.give_up("does not answer")

    def give_up(self, why):
        for log in ("output.log", "error.log", "fpm.log"):
            if (self.root / log).exists():
                print("".join((self.root / log).read_text(errors="replace").splitlines(True)[-15:]), file=sys.stderr)
        fail(f"{self.name} {why}; its logs are above")

    def get(self, path, host="localhost", body=None, timeout=20):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        headers = {"Host": host, "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/octet-stream"
        connection.request("GET" if body is None else "POST", path, body, headers)
        response = connection.getresponse()
        data = response.read()
        connection.close()
        return response.status, data

    def check(self, path, expected, **how):
        """An answer has to be right before it is worth measuring."""
        status, data = self.get(path, **how)
        if status != 200 or data != expected:
            self.give_up(f"answers {path} with {status} and {data[:80]!r}")

    def check_php(self, uid=None):
        """That PHP runs as this user, with opcache. Returns how it runs."""
        found, sapi, opcache = self.get("/who.php")[1].decode().split()
        if uid is not None and int(found) != uid:
            self.give_up(f"runs PHP as user {found}")
        if opcache != "1":
            self.give_up("has no opcache")
        return f"{sapi}, user {found}"

    @property
    def httpd(self):
        """httpd's parent process."""
        return self.processes[-1].pid

    def stop(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        # The group holds only what this server started.
        for pid in self.account.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.account.close()


def tls_lines(server):
    """Of a virtual host at the port for TLS."""
    key, certificate = server.root / "key.pem", server.root / "certificate.pem"
    if not key.exists():
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                        "-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)], check=True,
                       capture_output=True)
    return f"SSLEngine on\nSSLCertificateFile {certificate}\nSSLCertificateKeyFile {key}\nProtocols h2 http/1.1\n"


def hosts_of(server, site, lines):
    """The virtual hosts of a site: at the plain port, and the first one also at the one for TLS."""
    hosts = f"<VirtualHost *>\nServerName {site.host}\n{lines}</VirtualHost>\n"
    if server.tls_port and site.host == "localhost":
        hosts += f"<VirtualHost *:{server.tls_port}>\nServerName {site.host}\n{lines}{tls_lines(server)}</VirtualHost>\n"
    return hosts


def httpd_configuration(server, www, mpm, rest):
    """What all servers have in common, with `mpm` and `rest` for what they have not.

    A directive in `rest` counts, where one here has said something else.
    """
    load = "".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so\n"
                   for name in ("authz_core", "mime", "dir", "alias", "env", "setenvif"))
    if server.tls_port:
        load += "".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so\n" for name in ("socache_shmcb", "ssl", "http2"))
        load += f'SSLSessionCache "shmcb:{server.root}/sessions(512000)"\nListen 127.0.0.1:{server.tls_port}\n'
    return f"""
ServerRoot        "{server.root}"
ServerName        localhost
DefaultRuntimeDir "{server.root}"
PidFile           "{server.root}/httpd.pid"
ErrorLog          "{server.root}/error.log"
LogLevel          warn
User              www-data
Group             www-data
Listen            127.0.0.1:{server.port}
{mpm}
{load}
TypesConfig       /etc/mime.types
Timeout           60
KeepAlive         On
KeepAliveTimeout  5
MaxKeepAliveRequests 0
LogFormat         "%h %l %u %t \\"%r\\" %>s %O \\"%{{Referer}}i\\" \\"%{{User-Agent}}i\\"" combined
CustomLog         "{server.root}/access.log" combined
DocumentRoot      "{www}"
<Directory "/">
    AllowOverride None
    Require all denied
</Directory>
<Directory "{www}">
    Require all granted
</Directory>
{rest}
"""


# a2enmod's own mpm_event.conf.
THREADS = """
StartServers 2
MinSpareThreads 25
MaxSpareThreads 75
ThreadsPerChild 25
MaxRequestWorkers 150
MaxConnectionsPerChild 0
"""
EVENT = f"\nLoadModule mpm_event_module {MODULES}/mod_mpm_event.so"


def mod_php(php):
    return f"""
LoadModule php_module {php['libphp']}
PHPIniDir "{php['ini']}"
<FilesMatch "\\.php$">
    SetHandler application/x-httpd-php
</FilesMatch>
"""


@dataclass
class PoolSite:
    """A virtual host with processes of its own: a pool of mod_pool's, or one of php-fpm's."""

    name: str
    host: str
    uid: int
    processes: int = WORKERS
    idle: str = "120s"
    # php-fpm: all processes from the start, else from none and back to none.
    static: bool = True
    # mod_pool only: more directives of the pool, and of the virtual host.
    pool: str = ""
    virtual_host: str = ""


def start_httpd(server, text):
    path = server.root / "httpd.conf"
    path.write_text(text)
    server.start([shutil.which("apache2"), "-d", str(server.root), "-f", str(path), "-DFOREGROUND"])


def start_pool(server, www, php, sites, mpm=EVENT + THREADS, rest=""):
    """mod_pool; it is the MPM if `mpm` loads none."""
    pools = hosts = ""
    for site in sites:
        pools += f"""
<ServerPool {site.name}>
    PoolUser         "#{site.uid}"
    PoolGroup        "#{site.uid}"
    PoolMaxProcesses {site.processes}
    PoolIdleTimeout  {site.idle}
{site.pool}</ServerPool>
"""
        hosts += hosts_of(server, site, f"    AssignServerPool {site.name}\n{site.virtual_host}")
    module = f"LoadModule pool_module {TOP / 'build' / 'mod_pool.so'}\n"
    start_httpd(server, httpd_configuration(server, www, mpm, mod_php(php) + module + pools + hosts + rest))


def start_fpm(server, www, php, sites, mpm=EVENT + THREADS, rest=""):
    sections = [f"[global]\nerror_log = {server.root}/fpm.log\ndaemonize = no\n"]
    hosts = ""
    for site in sites:
        manager = f"pm = static\npm.max_children = {site.processes}\n"
        if not site.static:
            manager = (f"pm = ondemand\npm.max_children = {site.processes}\n"
                       f"pm.process_idle_timeout = {site.idle}\n")
        socket = server.root / f"{site.name}.sock"
        sections.append(f"[{site.name}]\nuser = {site.uid}\ngroup = {site.uid}\nlisten = {socket}\n"
                        f"listen.owner = www-data\nlisten.group = www-data\nlisten.mode = 0660\n{manager}")
        hosts += hosts_of(server, site, f"""
    <FilesMatch "\\.php$">
        SetHandler "proxy:unix:{socket}|fcgi://localhost"
    </FilesMatch>
""")
    (server.root / "fpm.conf").write_text("\n".join(sections))
    server.start([php["fpm"], "-F", "-R", "-c", f"{php['ini']}/php.ini", "-y", str(server.root / "fpm.conf")])
    proxy = "".join(f"LoadModule {name}_module {MODULES}/mod_{name}.so\n"
                    for name in ("proxy", "proxy_fcgi"))
    start_httpd(server, httpd_configuration(server, www, mpm, proxy + hosts + rest))


def need(fpm=True, pool=True):
    """Fails if what a benchmark needs is not there. Returns where PHP is."""
    if os.getuid() != 0:
        fail("run it as root: the servers run their sites as other users")
    for tool in ("wrk", "h2load", "openssl", "apache2"):
        if not shutil.which(tool):
            fail(f"there is no {tool}; 'make bench' installs it")
    libphp = sorted(MODULES.glob("libphp*.so"))
    found = sorted(Path("/usr/sbin").glob("php-fpm[0-9]*"))
    if not libphp or (fpm and not found):
        fail("there is no mod_php or no php-fpm; 'make bench' installs them")
    if pool and not (TOP / "build" / "mod_pool.so").exists():
        fail("there is no build/mod_pool.so; run 'make build'")
    return {"libphp": libphp[-1], "fpm": str(found[-1]) if found else ""}


@contextmanager
def directory(php):
    """A temporary directory with the files to serve in www and PHP's settings."""
    root = Path(tempfile.mkdtemp(prefix="mod_pool-bench.", dir="/tmp"))
    try:
        root.chmod(0o755)
        www = root / "www"
        shutil.copytree(HERE / "www", www)
        (www / "static.txt").write_bytes(STATIC)
        php["ini"] = root / "php"
        php["ini"].mkdir()
        (php["ini"] / "php.ini").write_text(
            "; the same for all\nopcache.enable = 1\nopcache.memory_consumption = 64\nopcache.jit = off\n"
            "display_errors = Off\nlog_errors = On\npost_max_size = 8M\n")
        for path in [www, *www.iterdir(), php["ini"], php["ini"] / "php.ini"]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def raise_open_files(number):
    """For this process and all that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number), max(hard, number)))
    except (OSError, ValueError):
        fail(f"cannot have {number} open files in a process, the limit is {hard}; raise it (ulimit -Hn)")


# ===== wrk =====


def wrk(server, path, arguments, connections, seconds):
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", str(HERE / "load.lua"),
               f"http://127.0.0.1:{server.port}{path}", "--", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    found = re.search(r"^RESULT (.*)$", done.stdout, re.M)
    if not found:
        fail(f"wrk said: {done.stdout}{done.stderr}")
    return json.loads(found[1])


def h2load(server, path, streams, connections, seconds):
    """HTTP/2 over TLS. It tells no percentiles."""
    command = ["h2load", "-t1", f"-c{connections}", f"-m{streams}", f"-D{max(1, round(seconds))}",
               f"https://127.0.0.1:{server.tls_port}{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60)
    took = re.search(r"^finished in ([0-9.]+)(ms|s)", done.stdout, re.M)
    counts = re.search(r"^status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", done.stdout, re.M)
    failed = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", done.stdout)
    if not (took and counts and failed) or "Application protocol: h2" not in done.stdout:
        fail(f"h2load said: {done.stdout}{done.stderr}")
    good, *bad = map(int, counts.groups())
    return {"requests": good, "seconds": float(took[1]) / (1000 if took[2] == "ms" else 1), "p50": 0, "p99": 0,
            "errors": sum(bad) + sum(map(int, failed.groups()))}


def load(server, path, arguments, connections, seconds):
    if arguments and arguments[0] == "h2":
        return h2load(server, path, arguments[1], connections, seconds)
    return wrk(server, path, arguments, connections, seconds)


def turn(server, path, arguments, connections, seconds):
    """One measurement: a short warm-up, then the load with the server's processor time around it."""
    load(server, path, arguments, connections, 1)
    before = server.account.seconds()
    result = load(server, path, arguments, connections, seconds)
    # A worker may still be logging the last requests.
    time.sleep(0.05)
    return per_request(result, server.account.seconds() - before)


def per_request(result, cpu):
    requests = max(result["requests"], 1)
    return {"rate": result["requests"] / result["seconds"], "cpu": cpu / requests * 1e6, "p50": result["p50"],
            "p99": result["p99"], "errors": result["errors"]}


# ===== What a report says of the machine =====


def version(command, pattern):
    text = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(pattern, text.stdout + text.stderr)
    return found[1] if found else "?"


AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")


@contextmanager
def equal_shares():
    """Every process competes by itself. With autogroups each session has the same share, and a pool's worker is a session
    of its own, where all of php-fpm's or prefork's processes are one."""
    before = AUTOGROUP.read_text() if AUTOGROUP.exists() else None
    if before is not None:
        AUTOGROUP.write_text("0")
    try:
        yield
    finally:
        if before is not None:
            AUTOGROUP.write_text(before)


def shares():
    """What was in force, for the report."""
    if not AUTOGROUP.exists():
        return "this kernel has no sched_autogroup"
    return "sched_autogroup off" if AUTOGROUP.read_text().strip() == "0" else "SCHED_AUTOGROUP ON: THE SHARES ARE UNEQUAL"


def machine(php):
    return (f"{time.strftime('%Y-%m-%d')}, {shares()}, {os.cpu_count()} processors, Linux {platform.release()}, "
            f"{version(['apache2', '-v'], r'(Apache/[0-9.]+)')}, PHP {version([php['fpm'] or 'php', '-v'], r'PHP ([0-9.]+)')}, "
            f"{version(['wrk', '-v'], r'(wrk [^ ]+)')} and {version(['h2load', '--version'], r'(h2load .+)')} (1 thread) on the "
            "same machine")


def write_report(name, text, numbers):
    (TOP / "build").mkdir(exist_ok=True)
    (TOP / "build" / f"{name}.md").write_text(text)
    (TOP / "build" / f"{name}.json").write_text(json.dumps(numbers, indent=1))
    print(text)


def run(main):
    """A benchmark's end by a signal is an ordinary one: the servers are stopped, and the machine is as it was."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with equal_shares():
            main()
    except KeyboardInterrupt:
        sys.exit(130)
