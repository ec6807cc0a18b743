"""The server of a test: configuration, start, stop, logs, what is left of it."""

import os
import re
import shutil
import signal as signals
import socket
import subprocess
import tempfile
import textwrap
import time
from pathlib import Path

from .certificates import make_certificate
from .http1 import Broken, Conn
from .installed import (
    BASE_MODULES,
    FRONTEND,
    HTTPD,
    START_TIMEOUT,
    STOP_TIMEOUT,
    TEST_UIDS,
    UP,
    HarnessError,
    load_line,
    module_so,
)
from .processes import all_processes, descendants, read_process
from .tools import end_with_the_tests, eventually, free_port, run


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
            out.append(load_line(f"mpm_{self.mpm}"))
        # The order of a2enmod: alphabetical.
        out += [load_line(n, self.pool_so if n == "pool" else None) for n in sorted(self.modules)]
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
                preexec_fn=end_with_the_tests,
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
                # It listens before it has its signal handlers; the log line comes after both. With -X there is none,
                # and it listens before it has the controller of its pools.
                if self.mode != "single":
                    if self.count_log(UP):
                        return
                elif not (self.with_pool and any(site.pool for site in self.sites.values())):
                    return
                elif self.processes("controller") and self.processes("seed"):
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
        below = descendants(self.main)
        roles = {p.pid: p.role for p in below}
        for process in below:
            if process.role in ("controller", "keeper", "seed", "zygote") and roles.get(process.ppid) == process.role:
                process.role = "other"  # it has just been forked, and its parent's title still
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

    def kill(self, role, pool=None):
        """Ends every process of a role by SIGKILL; returns their pids. There is a controller, and a seed, soon. One that
        is ending may still take a message out of its socket: see gone()."""
        there = lambda: [p.pid for p in self.processes(role, pool)]
        found = eventually(there, 10, what=f"a {role}") if role in ("controller", "seed") else there()
        for pid in found:
            _kill(pid)
        return found

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

    def try_get(self, path, site="alice", **kw):
        """The answer, or None where the connection is refused or breaks."""
        try:
            return self.get(path, site, **kw)
        except (Broken, OSError):
            return None

    def answers(self, path="/who.php", site="alice", timeout=5):
        found = self.try_get(path, site, timeout=timeout)
        return found is not None and found.status == 200

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
