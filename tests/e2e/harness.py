"""A real httpd for one test: written, started, looked at, stopped.

`Httpd` writes a configuration below a temporary ServerRoot, starts the installed httpd with stock
modules (and mod_pool unless it is the reference), and proves at the end that nothing of it is left.
`Conn` is a plain HTTP/1 client on a socket: it sends the bytes it is told to and reads exact responses.

The test process makes itself a subreaper, so whatever a server leaves behind becomes its child and
is found, under whatever title or environment it runs.
"""

import ctypes
import json
import os
import re
import select
import shutil
import signal as signals
import socket
import ssl
import subprocess
import tempfile
import textwrap
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

# Servers of several runs on one machine must not share users: each run ends what is left of its own.
ALICE = int(os.environ.get("MOD_POOL_TEST_UID", "61001"))
BOB = ALICE + 1
CAROL = ALICE + 2
FRONTEND = 33
TEST_UIDS = {ALICE, BOB, CAROL}

START_TIMEOUT = 20
UP = "resuming normal operations"
STOP_TIMEOUT = 20
CAP_SYS_PTRACE = 19


class HarnessError(AssertionError):
    """The server did not do what the harness itself needs."""


# --- what is installed -----------------------------------------------------------------------------


def _apxs(variable):
    return subprocess.run(
        ["apxs", "-q", variable], capture_output=True, text=True, check=True, timeout=20
    ).stdout.strip()


MODULE_DIR = Path(_apxs("LIBEXECDIR"))
HTTPD = Path(_apxs("SBINDIR")) / _apxs("PROGNAME")


def _static_modules():
    # `-l` opens no configuration, so it works where the distribution's own needs an environment.
    text = subprocess.run([HTTPD, "-l"], capture_output=True, text=True, timeout=20).stdout
    return {m.group(1) for m in re.finditer(r"^\s+(?:mod_)?(\w+)\.c$", text, re.M)}


STATIC = _static_modules()


def module_so():
    if "MOD_POOL_SO" in os.environ:
        return Path(os.environ["MOD_POOL_SO"])
    built = REPO / "build/mod_pool.so"
    return built if built.exists() else REPO / "target/release/libmod_pool.so"


def has_module(name):
    return name in STATIC or _module_file(name) is not None


def _module_file(name):
    if name == "php":
        found = sorted(MODULE_DIR.glob("libphp*.so"))
        return found[-1] if found else None
    if name == "pool":
        return module_so()
    path = MODULE_DIR / (f"{name}.so" if name == "mpm_itk" else f"mod_{name}.so")
    return path if path.exists() else None


def _load_line(name, path=None):
    if name in STATIC:
        return ""
    path = path or _module_file(name)
    if path is None:
        raise HarnessError(f"module {name} is not installed in {MODULE_DIR}")
    return f"LoadModule {name}_module {path}\n"


BASE_MODULES = """
    access_compat alias allowmethods auth_basic authn_core authn_file authz_core authz_groupfile
    authz_host authz_user autoindex deflate dir env filter headers include logio log_config mime
    negotiation php reqtimeout rewrite setenvif socache_shmcb status unixd
    ssl http2
""".split()


# --- small tools ------------------------------------------------------------------------------------


_libc = ctypes.CDLL(None, use_errno=True)


def _end_with_the_tests():
    """In the new child: SIGTERM when the test process dies, however it dies."""
    _libc.prctl(1, signals.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG


def _become_subreaper():
    if _libc.prctl(36, 1, 0, 0, 0) != 0:  # PR_SET_CHILD_SUBREAPER
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")


_become_subreaper()


_handed_out = set()


def free_port():
    """A port nobody listens on, and that this run has not handed out before."""
    while True:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        if port not in _handed_out:
            _handed_out.add(port)
            return port


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


def run(*argv, timeout=30, check=True, **kw):
    done = subprocess.run(
        [str(a) for a in argv], capture_output=True, timeout=timeout, **kw
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{argv}: {done.returncode}\n{done.stdout!r}\n{done.stderr!r}")
    return done


# --- processes --------------------------------------------------------------------------------------


@dataclass
class Process:
    pid: int
    ppid: int
    state: str
    uids: tuple  # real, effective, saved, file system
    gids: tuple
    groups: tuple
    title: str
    exe: str
    status: dict
    role: str = "?"
    pool: str = ""

    @property
    def uid(self):
        return self.uids[1]


ROLE = re.compile(r"mod_pool: (controller|keeper|seed|zygote|worker)\b ?(\S*)")


def read_process(pid):
    """What /proc says of one process; None once it is gone."""
    try:
        base = Path(f"/proc/{pid}")
        status = dict(
            line.split(":\t", 1)
            for line in (base / "status").read_text().splitlines()
            if ":\t" in line
        )
        title = (base / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        try:
            exe = os.readlink(base / "exe")
        except PermissionError:
            exe = title.split(" ")[0]  # see may_look_into
        except OSError:
            exe = ""
    except (FileNotFoundError, ProcessLookupError):
        return None
    ids = lambda key: tuple(int(x) for x in status.get(key, "").split())
    found = Process(
        pid=pid,
        ppid=int(status["PPid"]),
        state=status["State"][0],
        uids=ids("Uid"),
        gids=ids("Gid"),
        groups=ids("Groups"),
        title=title.strip(),
        exe=exe,
        status={k: v.strip() for k, v in status.items()},
    )
    match = ROLE.search(found.title)
    if match:
        found.role, found.pool = match.group(1), match.group(2)
    return found


def all_processes():
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            process = read_process(int(entry))
            if process:
                found[process.pid] = process
    return found


def descendants(root, table=None):
    table = all_processes() if table is None else table
    children = {}
    for process in table.values():
        children.setdefault(process.ppid, []).append(process)
    out, todo = [], [root]
    while todo:
        for child in children.get(todo.pop(), []):
            out.append(child)
            todo.append(child.pid)
    return out


def may_look_into(pid):
    """Skips the test where /proc does not show root what another user's process has open and mapped: in a container
    without this capability."""
    try:
        os.readlink(f"/proc/{pid}/exe")
    except PermissionError:
        capabilities = int(re.search(r"^CapEff:\s*(\w+)", Path("/proc/self/status").read_text(), re.M)[1], 16)
        if capabilities & 1 << CAP_SYS_PTRACE:
            raise
        pytest.skip("needs CAP_SYS_PTRACE: docker run --cap-add SYS_PTRACE")
    except OSError:
        pass


def fds_of(pid):
    """fd number -> link target, as far as /proc shows them."""
    may_look_into(pid)
    out = {}
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                out[int(fd)] = os.readlink(f"/proc/{pid}/fd/{fd}")
            except OSError:
                pass
    except OSError:
        pass
    return out


# --- sites ------------------------------------------------------------------------------------------


@dataclass
class Site:
    """One virtual host `NAME.test`, on the plain and the TLS port, assigned to the pool `pool`.

    `conf` goes into both virtual hosts, `tls_conf` into the TLS one only, `pool_conf` into the
    ServerPool block. `pool=None` means: assigned to nothing. `declared=False`: the test writes the
    ServerPool block itself.
    """

    name: str
    uid: int = ALICE
    gid: int | None = None
    conf: str = ""
    plain_conf: str = ""
    tls_conf: str = ""
    pool_conf: str = ""
    pool: str | None = "="
    declared: bool = True
    server: "Httpd" = field(default=None, repr=False)

    def __post_init__(self):
        if self.gid is None:
            self.gid = self.uid
        if self.pool == "=":
            self.pool = self.name

    @property
    def host(self):
        return f"{self.name}.test"

    @property
    def docroot(self):
        return self.server.root / "sites" / self.name

    @property
    def home(self):
        """A directory of the site's user outside the document root."""
        return self.server.root / "home" / self.name

    @property
    def owner(self):
        """Who has to own files so that requests can read them: the reference has one user only."""
        if self.server.with_pool and self.pool:
            return self.uid, self.gid
        return self.server.user, self.server.group

    def write(self, path, content, mode=0o600, base=None):
        target = (base or self.docroot) / path
        self.mkdir(target.parent)
        if isinstance(content, str):
            content = textwrap.dedent(content).lstrip("\n").encode()
        target.write_bytes(content)
        target.chmod(mode)
        os.chown(target, *self.owner)
        return target

    def script(self, path, content, base=None):
        return self.write(path, content, mode=0o700, base=base)

    def mkdir(self, directory, mode=0o700):
        directory = self.docroot / directory
        missing = []
        while not directory.exists():
            missing.append(directory)
            directory = directory.parent
        for path in reversed(missing):
            path.mkdir()
            path.chmod(mode)
            os.chown(path, *self.owner)


# --- the server -------------------------------------------------------------------------------------


class Httpd:
    """One httpd with its own ServerRoot, ports and logs.

    In `conf` and the sites' texts these words are replaced: @ROOT@ @PORT@ @TLS@ @BACKEND@ (whatever
    `define` says), and in a site's texts also @DOCROOT@ @HOME@ @NAME@.
    """

    live = []

    def __init__(
        self,
        tmpdir=None,
        mpm="event",
        with_pool=True,
        modules=(),
        without=(),
        conf="",
        sites=(),
        global_pool_conf="",
        user=FRONTEND,
        group=FRONTEND,
        log_format=None,
        mpm_conf=None,
        env=None,
        define=None,
    ):
        self.mpm = mpm
        self.with_pool = with_pool
        self.user, self.group = user, group
        self.own_root = tmpdir is None
        self.root = Path(tmpdir) if tmpdir else Path(tempfile.mkdtemp(prefix="mod_pool-", dir="/tmp"))
        self.root.chmod(0o755)
        for name in ("conf", "logs", "run", "sites", "home", "tls"):
            (self.root / name).mkdir(exist_ok=True)
            (self.root / name).chmod(0o755)
        self.tag = self.root.name.replace("-", "_")
        self.port, self.tls_port = free_port(), free_port()
        self.env = dict(env or {})
        self.define = dict(define or {})
        self.sites = {}
        for site in sites:
            site.server = self
            self.sites[site.name] = site
            for directory in (site.docroot, site.home):
                directory.mkdir(exist_ok=True)
                directory.chmod(0o700)
                os.chown(directory, *site.owner)
        self.modules = [m for m in BASE_MODULES if m not in without]
        self.modules += [m for m in modules if m not in self.modules]
        if with_pool:
            self.modules.append("pool")
        elif mpm != "prefork" and "php" in self.modules:
            self.modules.remove("php")  # it refuses a threaded server
        self.extra = conf
        self.global_pool_conf = global_pool_conf
        self.pool_so = None  # another file than module_so(), for tests that replace it
        self.log_format = log_format or '%v %s %B \\"%r\\"'
        self.mpm_conf = mpm_conf
        self.main = None  # pid of the httpd parent
        self.child = None  # Popen, where it runs in the foreground
        self.stopped = True
        self.known_before = set()
        Httpd.live.append(self)

    # -- configuration --

    @property
    def conf_file(self):
        return self.root / "conf" / "httpd.conf"

    @property
    def pid_file(self):
        return self.root / "run" / "httpd.pid"

    def _fill(self, text, site=None):
        words = {"ROOT": self.root, "PORT": self.port, "TLS": self.tls_port, **self.define}
        if site:
            words |= {"DOCROOT": site.docroot, "HOME": site.home, "NAME": site.name}
        for key, value in words.items():
            text = text.replace(f"@{key}@", str(value))
        return text

    def _mpm_text(self):
        if self.mpm_conf is not None:
            return self.mpm_conf
        if self.mpm == "prefork":
            return "StartServers 4\nMinSpareServers 2\nMaxSpareServers 8\nMaxRequestWorkers 40\n"
        if self.mpm in ("event", "worker", "pool"):
            return (
                "StartServers 1\nMinSpareThreads 8\nMaxSpareThreads 100\nThreadsPerChild 32\n"
                "MaxRequestWorkers 96\nServerLimit 3\n"
            )
        return ""

    def conf_text(self):
        out = []
        if self.mpm and self.mpm != "pool":  # mod_pool is the MPM where no other one is loaded
            out.append(_load_line(f"mpm_{self.mpm}"))
        # The order of a2enmod: alphabetical.
        out += [_load_line(n, self.pool_so if n == "pool" else None) for n in sorted(self.modules)]
        out.append(
            f"""
            ServerRoot {self.root}
            DefaultRuntimeDir {self.root}/run
            PidFile {self.pid_file}
            ServerName server.test
            User #{self.user}
            Group #{self.group}
            Listen 127.0.0.1:{self.port}
            Listen 127.0.0.1:{self.tls_port}
            ErrorLog {self.root}/logs/error.log
            LogLevel warn {"pool:info" if self.with_pool else ""}
            LogFormat "{self.log_format}" test
            CustomLog {self.root}/logs/access.log test
            Timeout 20
            KeepAliveTimeout 5
            ServerTokens Prod
            HttpProtocolOptions Strict
            """
        )
        out.append(self._mpm_text())
        if "mime" in self.modules:
            out.append("TypesConfig /etc/mime.types\n")
        if "dir" in self.modules:
            out.append("DirectoryIndex index.html index.php\n")
        if "php" in self.modules:
            out.append(
                '<FilesMatch "\\.php$">\nSetHandler application/x-httpd-php\n</FilesMatch>\n'
            )
        if "http2" in self.modules:
            out.append("Protocols h2 h2c http/1.1\n" if self.mpm != "prefork" else "")
        if "ssl" in self.modules:
            out.append(f"SSLSessionCache shmcb:{self.root}/run/sslcache(512000)\n")
            self.make_certificate()
        if "reqtimeout" in self.modules:
            out.append("RequestReadTimeout header=20-40,minrate=500 body=20,minrate=500\n")
        out.append("<Directory />\nRequire all denied\nAllowOverride None\n</Directory>\n")
        for site in self.sites.values():
            # Once per directory, not per virtual host: sites may share a host's tree.
            out.append(
                f"<Directory {site.docroot}>\nRequire all granted\nAllowOverride All\n"
                "Options FollowSymLinks ExecCGI Includes Indexes\n</Directory>\n"
            )
        out.append(self._fill(self.extra))
        if self.with_pool:
            out.append(self._fill(self.global_pool_conf))
            seen = set()
            for site in self.sites.values():
                if site.pool and site.declared and site.pool not in seen:
                    seen.add(site.pool)
                    out.append(
                        f"<ServerPool {site.pool}>\n  PoolUser #{site.uid}\n  PoolGroup #{site.gid}\n"
                        f"{self._fill(site.pool_conf, site)}\n</ServerPool>\n"
                    )
        for site in self.sites.values():
            assign = f"AssignServerPool {site.pool}\n" if self.with_pool and site.pool else ""
            common = (
                f"ServerName {site.host}\nDocumentRoot {site.docroot}\n{assign}"
                f"{self._fill(site.conf, site)}\n"
            )
            out.append(
                f"<VirtualHost 127.0.0.1:{self.port}>\n{common}"
                f"{self._fill(site.plain_conf, site)}\n</VirtualHost>\n"
            )
            if "ssl" in self.modules:
                out.append(
                    f"<VirtualHost 127.0.0.1:{self.tls_port}>\n{common}SSLEngine on\n"
                    f"SSLCertificateFile {self.certificate}\nSSLCertificateKeyFile {self.key}\n"
                    f"{self._fill(site.tls_conf, site)}\n</VirtualHost>\n"
                )
        return "\n".join(textwrap.dedent(part) for part in out)

    @property
    def certificate(self):
        return self.root / "tls" / "server.pem"

    @property
    def key(self):
        return self.root / "tls" / "server.key"

    def make_certificate(self):
        if not self.certificate.exists():
            make_certificate(
                self.certificate, self.key, "server.test", [s.host for s in self.sites.values()]
            )

    def write_conf(self):
        text = self.conf_text()
        if not self.conf_file.exists() or self.conf_file.read_text() != text:
            self.conf_file.write_text(text)

    def argv(self, *more):
        return [str(HTTPD), "-f", str(self.conf_file), "-D", f"TEST_{self.tag}", *more]

    def _environment(self):
        env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C"}
        return env | self.env

    def configtest(self):
        self.write_conf()
        return subprocess.run(
            self.argv("-t"), capture_output=True, text=True, timeout=30, env=self._environment()
        )

    # -- start and stop --

    def start(self, mode="foreground"):
        """mode: foreground (-DFOREGROUND), daemon (-k start), single (-X)."""
        self.write_conf()
        self.mode = mode
        if self.with_pool and not module_so().exists():
            raise HarnessError(f"{module_so()} does not exist: build it, or set MOD_POOL_SO")
        self.stopped = False
        self.known_before = set(all_processes())
        console = open(self.root / "logs" / "console.log", "ab")
        if mode == "daemon":
            done = subprocess.run(
                self.argv("-k", "start"),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                timeout=START_TIMEOUT,
                env=self._environment(),
            )
            if done.returncode != 0:
                raise HarnessError(f"-k start: exit {done.returncode}\n{self.tail()}")
            self.main = int(
                eventually(
                    lambda: self.pid_file.exists() and self.pid_file.read_text().strip(),
                    START_TIMEOUT,
                    what="a pid file",
                )
            )
        else:
            flag = {"foreground": ["-D", "FOREGROUND"], "single": ["-X"]}[mode]
            self.child = subprocess.Popen(
                self.argv(*flag),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
                env=self._environment(),
                preexec_fn=_end_with_the_tests,
            )
            self.main = self.child.pid
        console.close()
        self.wait_until_it_accepts()
        return self

    def is_running(self):
        if self.child is not None:
            return self.child.poll() is None
        process = read_process(self.main)
        return process is not None and process.state != "Z"

    def wait_until_it_accepts(self, timeout=START_TIMEOUT):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if not self.is_running():
                raise HarnessError(f"httpd ended at its start\n{self.tail()}")
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                # It listens before it has its signal handlers; the log line comes after both.
                if self.mode == "single" or self.count_log(UP):
                    return
            except OSError:
                pass
            time.sleep(0.03)
        raise HarnessError(f"httpd does not accept within {timeout} s\n{self.tail()}")

    def signal(self, number):
        os.kill(self.main, number)

    def command(self, word):
        """What apachectl does: a second httpd that signals the first."""
        return subprocess.run(
            self.argv("-k", word),
            capture_output=True,
            text=True,
            timeout=STOP_TIMEOUT,
            env=self._environment(),
        )

    def graceful(self, wait=True):
        """SIGUSR1; waits until the parent says it has resumed with the new configuration."""
        self.write_conf()
        before = self.count_log(UP)
        self.signal(signals.SIGUSR1)
        if wait:
            eventually(
                lambda: self.count_log(UP) > before,
                START_TIMEOUT,
                what="the end of a graceful restart",
            )

    def wait_for_end(self, timeout=STOP_TIMEOUT):
        """Waits until the parent has ended; returns its wait status where it is our child."""
        if self.child is not None:
            return self.child.wait(timeout)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:  # a daemon ends up as our child too: we are its subreaper
                pid, status = os.waitpid(self.main, os.WNOHANG)
                if pid:
                    return os.waitstatus_to_exitcode(status)
            except ChildProcessError:
                if read_process(self.main) is None:
                    return None
            time.sleep(0.03)
        raise HarnessError(f"httpd {self.main} has not ended within {timeout} s")

    def stop(self, number=signals.SIGTERM, expect_clean=True):
        """Ends the server and proves that no process of it is left."""
        if self.stopped:
            return
        self.stopped = True
        problems = []
        if self.main and self.is_running():
            self.signal(number)
        try:
            if self.main:
                self.wait_for_end()
        except (HarnessError, subprocess.TimeoutExpired) as e:
            problems.append(str(e))
            for process in [read_process(self.main), *descendants(self.main)]:
                if process:
                    problems.append(f"still there: {process.pid} {process.role} {process.title}")
            os.kill(self.main, signals.SIGKILL)
            self.wait_for_end()
        left = self.wait_until_nothing_is_left()
        for process in left:
            problems.append(
                f"left over: pid {process.pid} ppid {process.ppid} uid {process.uid} "
                f"state {process.state} {process.title or process.exe}"
            )
            _kill(process.pid)
        reap_orphans()
        if problems and expect_clean:
            raise HarnessError("\n".join(problems))

    def wait_until_nothing_is_left(self, timeout=5):
        deadline = time.monotonic() + timeout
        while True:
            reap_orphans()
            left = self.leftovers()
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.05)

    def leftovers(self):
        """Processes of this server that outlived its parent: below us or anywhere, by tag or uid."""
        table = all_processes()
        others = set()
        for server in Httpd.live:
            if server is not self and not server.stopped and server.main:
                others.add(server.main)
                others |= {p.pid for p in descendants(server.main, table)}
        below = {p.pid for p in descendants(os.getpid(), table)}
        out = []
        for process in table.values():
            if process.pid in others or process.pid == os.getpid():
                continue
            if process.pid in self.known_before:
                continue
            tagged = f"TEST_{self.tag}" in process.title
            ours = process.pid in below and (
                process.exe.startswith(str(HTTPD)) or "mod_pool:" in process.title
            )
            # Another run of these tests may use the same uids: only what descends from us counts.
            if tagged or ours or (process.pid in below and process.uid in TEST_UIDS):
                out.append(process)
        return out

    def destroy(self):
        try:
            self.stop()
        finally:
            if self in Httpd.live:
                Httpd.live.remove(self)
            if self.own_root and not os.environ.get("MOD_POOL_KEEP"):
                shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self):
        return self if not self.stopped else self.start()

    def __exit__(self, kind, value, trace):
        if kind is None:
            self.destroy()
        else:
            try:
                self.tail_at_failure = self.tail()
                self.destroy()
            except HarnessError as e:
                print(f"(while stopping: {e})")

    # -- looking --

    def processes(self, role=None, pool=None):
        """Every process of the running server: parent, frontends, controller, seed, zygotes, workers."""
        out = []
        main = read_process(self.main)
        if main:
            main.role = "parent"
            out.append(main)
        for process in descendants(self.main):
            if process.role == "?":
                if process.ppid == self.main and process.exe.startswith(str(HTTPD)):
                    process.role = "frontend"
                else:
                    process.role = "other"
            out.append(process)
        return [
            p
            for p in out
            if (role is None or p.role == role)
            and (pool is None or p.pool == pool)
            and (p.state != "Z" or role == "zombie")
        ]

    def workers(self, pool=None):
        return self.processes("worker", pool)

    def of_uid(self, *uids):
        return [p for p in self.processes() if set(p.uids) & set(uids)]

    def log(self, name="error.log"):
        path = self.root / "logs" / name
        return path.read_text(errors="replace") if path.exists() else ""

    def error_log(self):
        return self.log("error.log")

    def access_log(self):
        return self.log("access.log").splitlines()

    def count_log(self, regex, name="error.log"):
        return len(re.findall(regex, self.log(name)))

    def wait_for_log(self, regex, timeout=5, name="error.log", after=0):
        return eventually(
            lambda: re.search(regex, self.log(name)[after:], re.M),
            timeout,
            what=f"/{regex}/ in {name}",
        )

    def tail(self, lines=40):
        text = self.log("console.log").splitlines()[-10:] + self.error_log().splitlines()[-lines:]
        return "\n".join(text)

    # -- talking --

    def connect(self, tls=False, **kw):
        return Conn(self.tls_port if tls else self.port, tls=tls, **kw)

    def get(self, path, site="alice", **kw):
        return self.request("GET", path, site, **kw)

    def request(self, method, path, site="alice", headers=(), body=b"", tls=False, timeout=20,
                version="HTTP/1.1", **kw):
        """One request on a connection of its own."""
        site = self.sites.get(site, site)
        host = site if isinstance(site, str) else site.host
        with self.connect(tls=tls, timeout=timeout, server_name=host, **kw) as c:
            c.request(method, path, host, [("Connection", "close"), *headers], body, version)
            return c.response(method)

    def curl(self, *args, path="/", site="alice", tls=False, http="1.1", check=True, timeout=30):
        """curl against one site; http is 1.0, 1.1, 2 (h2 by ALPN or upgrade) or 2pk (h2c)."""
        host = self.sites[site].host if site in self.sites else site
        port = self.tls_port if tls else self.port
        flag = {"1.0": "--http1.0", "1.1": "--http1.1", "2": "--http2",
                "2pk": "--http2-prior-knowledge"}[http]
        return run(
            "curl", "-sS", "-k", flag, "--max-time", timeout - 2, "--noproxy", "*",
            "--resolve", f"{host}:{port}:127.0.0.1", *args,
            f"{'https' if tls else 'http'}://{host}:{port}{path}",
            timeout=timeout, check=check,
        )


def _kill(pid):
    try:
        os.kill(pid, signals.SIGKILL)
    except ProcessLookupError:
        pass


def reap_orphans():
    """Waits for dead children that fell to us as a subreaper, and for those only."""
    known = {s.child.pid for s in Httpd.live if s.child is not None}
    for process in descendants(os.getpid()):
        if process.ppid == os.getpid() and process.state == "Z" and process.pid not in known:
            if process.pid in _own_children:
                continue
            try:
                os.waitpid(process.pid, os.WNOHANG)
            except ChildProcessError:
                pass


_own_children = set()


def background(*argv, **kw):
    """A helper process of a test, which the harness must not reap."""
    child = subprocess.Popen([str(a) for a in argv], **kw)
    _own_children.add(child.pid)
    return child


# --- certificates -----------------------------------------------------------------------------------


def make_certificate(cert, key, name, hosts=(), kind="ec", ca=None, passphrase=None,
                     is_ca=False):
    """A certificate by openssl: self-signed, or signed by `ca` = (certificate, key)."""
    algorithm = {
        "ec": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
        "rsa": ["-newkey", "rsa:2048"],
    }[kind]
    secret = ["-passout", f"pass:{passphrase}"] if passphrase else ["-nodes"]
    names = ",".join(f"DNS:{h}" for h in [name, *hosts])
    sign = ["-CA", ca[0], "-CAkey", ca[1]] if ca else []
    run(
        "openssl", "req", "-x509", *algorithm, *secret, *sign, "-keyout", key, "-out", cert,
        "-days", "30", "-subj", f"/O=mod_pool test/CN={name}", "-addext", f"subjectAltName={names}",
        *([] if is_ca else ["-addext", "basicConstraints=CA:FALSE"]),
    )
    os.chmod(key, 0o600)


# --- HTTP/1 -----------------------------------------------------------------------------------------


@dataclass
class Response:
    status: int
    reason: str
    version: str
    headers: list
    body: bytes = b""
    interim: list = field(default_factory=list)
    trailers: list = field(default_factory=list)
    complete: bool = True  # False: the connection ended before the framing said so

    def get(self, name, default=None):
        for key, value in self.headers:
            if key.lower() == name.lower():
                return value
        return default

    def all(self, name):
        return [v for k, v in self.headers if k.lower() == name.lower()]

    @property
    def closes(self):
        """The server has announced that the connection ends (`Connection: Upgrade, close` says so too)."""
        tokens = ",".join(self.all("Connection")).lower().split(",")
        return "close" in (t.strip() for t in tokens)

    @property
    def text(self):
        return self.body.decode("utf-8", "replace")

    def json(self):
        return json.loads(self.body)


class Broken(AssertionError):
    """The peer sent what is not HTTP, or ended before a whole response."""


class Conn:
    """A connection to the server. Sends what it is told; reads one response at a time."""

    def __init__(self, port, tls=False, timeout=20, server_name="alice.test", alpn=None,
                 client_cert=None, host="127.0.0.1", rcvbuf=None, tls_max=None):
        self.raw = socket.socket()
        if rcvbuf:
            self.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.raw.settimeout(timeout)
        self.raw.connect((host, port))
        self.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = self.raw
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            if alpn:
                context.set_alpn_protocols(alpn)
            if tls_max:
                context.maximum_version = tls_max
            context.post_handshake_auth = True
            if client_cert:
                context.load_cert_chain(*client_cert)
            self.sock = context.wrap_socket(self.raw, server_hostname=server_name)
        self.buffer = b""
        self.at_end = False
        self.timeout = timeout
        self.outgoing = None  # what send_while_reading still has to send
        self.unsent = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def reset(self):
        """Closes with RST, as a client that vanished."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def send(self, data):
        if isinstance(data, str):
            data = data.replace("\n", "\r\n").encode()
        self.sock.sendall(data)

    def send_while_reading(self, parts):
        """Sends `parts` whenever the socket takes bytes while a response is being read.

        One thread does both: a TLS connection must not be read and written by two at once.
        """
        self.outgoing = iter(parts)

    @property
    def sent_all(self):
        return self.outgoing is None and not self.unsent

    def _send_some(self):
        while True:
            if not self.unsent:
                self.unsent = memoryview(next(self.outgoing, b""))
                if not self.unsent:
                    self.outgoing, self.unsent = None, b""
                    return
            try:
                self.unsent = self.unsent[self.sock.send(self.unsent):]
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                return
            except OSError:  # the peer wants no more; its answer may still be there
                self.outgoing, self.unsent = None, b""
                self.refused = True
                return

    def _receive_while_sending(self):
        deadline = time.monotonic() + self.timeout
        self.sock.setblocking(False)
        try:
            while True:
                if self.outgoing is not None:
                    self._send_some()
                try:
                    return self.sock.recv(262144)
                except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    pass
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("neither bytes to read nor room to write")
                writers = [self.sock] if self.outgoing is not None else []
                select.select([self.sock], writers, [], left)
        finally:
            self.sock.settimeout(self.timeout)

    def half_close(self):
        socket.socket.shutdown(self.sock, socket.SHUT_WR)

    def request(self, method, path, host="alice.test", headers=(), body=b"", version="HTTP/1.1"):
        lines = [f"{method} {path} {version}", f"Host: {host}"]
        lines += [f"{k}: {v}" for k, v in headers]
        if body and not any(k.lower() in ("content-length", "transfer-encoding") for k, _ in headers):
            lines.append(f"Content-Length: {len(body)}")
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode() + body)

    def get(self, path, host="alice.test", headers=()):
        self.request("GET", path, host, headers)
        return self.response("GET")

    # -- reading --

    def more(self):
        if self.at_end:
            return False
        try:
            if self.outgoing is not None:
                data = self._receive_while_sending()
            else:
                data = self.sock.recv(262144)
        except (ConnectionResetError, BrokenPipeError, ssl.SSLError) as e:
            if isinstance(e, TimeoutError):
                raise
            data = b""
        if not data:
            self.at_end = True
            return False
        self.buffer += data
        return True

    def line(self):
        while b"\n" not in self.buffer:
            if not self.more():
                raise Broken(f"end of the connection within a line: {self.buffer[:200]!r}")
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.rstrip(b"\r").decode("latin-1")

    def exactly(self, count):
        parts, have = [], 0
        while have < count:
            if not self.buffer and not self.more():
                return b"".join(parts), False
            take, self.buffer = self.buffer[: count - have], self.buffer[count - have:]
            parts.append(take)
            have += len(take)
        return b"".join(parts), True

    def header_block(self):
        headers = []
        while True:
            line = self.line()
            if not line:
                return headers
            if ":" not in line:
                raise Broken(f"not a header line: {line!r}")
            name, value = line.split(":", 1)
            headers.append((name, value.strip()))

    def head(self):
        """One status line and its headers; the body is not touched."""
        line = self.line()
        match = re.fullmatch(r"(HTTP/1\.[01]) (\d{3}) ?(.*)", line)
        if not match:
            raise Broken(f"not a status line: {line!r}")
        return Response(int(match[2]), match[3], match[1], self.header_block())

    def response(self, method="GET"):
        """The next final response, with the interim ones before it."""
        interim = []
        while True:
            found = self.head()
            if found.status >= 200 or found.status == 101:
                break
            interim.append(found)
        found.interim = interim
        self.body_of(found, method)
        return found

    def chunk(self):
        """One chunk of a chunked body; b'' is the last one, None a broken end."""
        try:
            size = int(self.line().split(";")[0], 16)
        except Broken:
            return None
        if size == 0:
            return b""
        data, whole = self.exactly(size)
        if not whole or self.line() != "":
            return None
        return data

    def body_of(self, found, method="GET"):
        if method == "HEAD" or found.status in (204, 304) or found.status < 200:
            return
        coding = (found.get("Transfer-Encoding") or "").lower()
        if coding == "chunked":
            parts = []
            while True:
                data = self.chunk()
                if data is None:
                    found.complete = False
                    break
                if data == b"":
                    try:
                        found.trailers = self.header_block()
                    except Broken:
                        found.complete = False
                    break
                parts.append(data)
            found.body = b"".join(parts)
        elif coding:
            raise Broken(f"unexpected Transfer-Encoding {coding}")
        elif found.get("Content-Length") is not None:
            lengths = found.all("Content-Length")
            if len(lengths) != 1 or not lengths[0].isdigit():
                raise Broken(f"Content-Length {lengths}")
            found.body, found.complete = self.exactly(int(lengths[0]))
        else:
            while self.more():
                pass
            found.body, self.buffer = self.buffer, b""

    def is_closed(self, timeout=5):
        """True when the server ends the connection, without any byte more."""
        self.sock.settimeout(timeout)
        try:
            while self.more():
                if self.buffer:
                    return False
        except TimeoutError:
            return False
        return True

    def read_all(self):
        while self.more():
            pass
        data, self.buffer = self.buffer, b""
        return data


# --- HTTP/2 -----------------------------------------------------------------------------------------


class H2:
    """HTTP/2 by python-h2, prior knowledge or TLS: several streams on one connection."""

    def __init__(self, server, tls=False, host="alice.test", timeout=20):
        import h2.config
        import h2.connection
        import h2.settings

        self.host, self.tls = host, tls
        self.conn = server.connect(tls=tls, alpn=["h2"] if tls else None, server_name=host,
                                   timeout=timeout)
        if tls and self.conn.sock.selected_alpn_protocol() != "h2":
            raise Broken("the server did not choose h2")
        config = h2.config.H2Configuration(header_encoding="utf-8", validate_inbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.h2.update_settings({h2.settings.SettingCodes.ENABLE_PUSH: 0})
        self.streams = {}
        self.goaway = None
        self.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.conn.close()

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            self.conn.sock.sendall(data)

    def start(self, path, method="GET", headers=(), body=b"", host=None):
        stream = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":path", path), (":authority", host or self.host),
                  (":scheme", "https" if self.tls else "http"), *headers]
        self.h2.send_headers(stream, fields, end_stream=not body)
        self.streams[stream] = {"status": None, "headers": [], "body": b"", "ended": False,
                                "reset": None, "interim": []}
        self.flush()
        while body and not self.streams[stream]["ended"]:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                self.step()
                continue
            piece, body = body[:room], body[room:]
            self.h2.send_data(stream, piece, end_stream=not body)
            self.flush()
        return stream

    def step(self):
        import h2.events as ev

        data = self.conn.sock.recv(65536)
        if not data:
            raise Broken("HTTP/2 connection ended")
        for event in self.h2.receive_data(data):
            state = self.streams.get(getattr(event, "stream_id", None))
            if isinstance(event, ev.ResponseReceived):
                state["headers"] = list(event.headers)
                state["status"] = int(dict(event.headers)[":status"])
            elif isinstance(event, ev.InformationalResponseReceived):
                state["interim"].append(list(event.headers))
            elif isinstance(event, ev.DataReceived):
                state["body"] += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, ev.StreamEnded):
                state["ended"] = True
            elif isinstance(event, ev.StreamReset):
                if state is not None:
                    state["reset"], state["ended"] = event.error_code, True
            elif isinstance(event, ev.ConnectionTerminated):
                self.goaway = event.error_code
        self.flush()

    def wait(self, stream):
        while not self.streams[stream]["ended"]:
            self.step()
        state = self.streams[stream]
        return Response(
            state["status"] or 0, "", "HTTP/2",
            [(k, v) for k, v in state["headers"] if not k.startswith(":")],
            state["body"], interim=state["interim"], complete=state["reset"] is None,
        )

    def get(self, path, **kw):
        return self.wait(self.start(path, **kw))


# --- many at once -----------------------------------------------------------------------------------


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
