"""Directives at configtest: what is accepted, what is refused and how, what is warned of.

Needs a built module and httpd, and no server of the harness: `apache2 -t` on a configuration of one's own.
"""

import grp
import http.client
import os
import pwd
import re
import subprocess
import textwrap
import tempfile
import time
from pathlib import Path

import pytest

from harness import free_port

pytestmark = pytest.mark.pool_only

REPO = Path(__file__).resolve().parents[2]


def apxs(name):
    return subprocess.run(["apxs", "-q", name], capture_output=True, text=True, check=True).stdout.strip()


HTTPD = Path(apxs("SBINDIR")) / apxs("PROGNAME")
MODULES = Path(apxs("LIBEXECDIR"))


def module_so():
    if "MOD_POOL_SO" in os.environ:
        return Path(os.environ["MOD_POOL_SO"])
    built = REPO / "build/mod_pool.so"
    return built if built.exists() else REPO / "target/release/libmod_pool.so"


# Whose names the tests use, as far as they need one that exists.
USER = pwd.getpwuid(65534).pw_name
GROUP = grp.getgrgid(65534).gr_name
FRONTEND = "65534"


def load(*names):
    lines = []
    for name in names:
        if name == "pool":
            path = module_so()
        elif name == "php":
            found = sorted(MODULES.glob("libphp*.so"))
            if not found:
                pytest.skip("mod_php is not installed")
            path = found[-1]
        else:
            path = MODULES / f"mod_{name}.so"
        lines.append(f"LoadModule {name}_module {path}\n")
    return "".join(lines)


class Conf:
    """A configuration in a directory of its own."""

    def __init__(self, root, text, modules=(), mpm="mpm_event"):
        self.root = root
        self.port = free_port()
        self.file = root / "httpd.conf"
        names = [mpm, "authz_core", "pool", *modules]
        self.head = load(*names) + textwrap.dedent(
            f"""\
            ServerRoot {root}
            DefaultRuntimeDir {root}
            PidFile {root}/pid
            ErrorLog {root}/error.log
            ServerName server.test
            Listen 127.0.0.1:{self.port}
            User #{FRONTEND}
            Group #{FRONTEND}
            """
        )
        self.file.write_text(self.head + textwrap.dedent(text))

    def line_of(self, text):
        for number, line in enumerate(self.file.read_text().splitlines(), 1):
            if text in line:
                return number
        raise AssertionError(f"{text!r} is not in the configuration")

    def test(self, **kw):
        return subprocess.run([HTTPD, "-t", "-f", self.file], capture_output=True, text=True, timeout=30, **kw)


@pytest.fixture
def conf():
    # Not tmp_path: its parents are closed to the users that some tests change to.
    with tempfile.TemporaryDirectory(prefix="mod_pool-", dir="/tmp") as root:
        os.chmod(root, 0o755)
        yield lambda text, **kw: Conf(Path(root), text, **kw)


def accepted(conf, text, **kw):
    done = conf(text, **kw).test()
    assert done.returncode == 0 and "Syntax OK" in done.stderr, done.stderr
    return done.stderr.replace("Syntax OK", "").strip()


def refused(conf, text, *parts, **kw):
    done = conf(text, **kw).test()
    assert done.returncode != 0, done.stderr
    for part in parts:
        assert part in done.stderr, f"{part!r} is not in: {done.stderr}"
    return done.stderr


def block(*lines, name="p"):
    return "\n".join([f"<ServerPool {name}>", *lines, "</ServerPool>", ""])


# --- accepted ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "PoolUser #2001\nPoolGroup #2001",
        f"PoolUser {USER}",
        f"PoolUser {USER}\nPoolGroup {GROUP}",
        "PoolGroup #4294967294\nPoolUser #4294967294",
        *(
            f"PoolUser #2001\nPoolGroup #2001\n{line}"
            for line in [
                "PoolMaxProcesses 1",
                "PoolMaxProcesses 32768\nPoolMinSpare 32768",
                "PoolMinSpare 2",
                "PoolIdleTimeout 30",
                "PoolIdleTimeout 500ms",
                "PoolIdleTimeout 2min",
                "PoolMaxRequestsPerProcess 0",
                "PoolMaxRequestsPerProcess 500",
                "PoolQueueTimeout 1h",
                "PoolQueueLimit 0",
                "PoolMaxParked 0",
                "PoolMaxFrontendThreads 1",
                'PoolEnv TZ "Europe/Berlin, or so"',
                'PoolEnv EMPTY ""',
                "PoolEnv EMPTY",
                "PoolUmask 027",
                "pooluser #2002",
            ]
        ),
    ],
)
def test_accepted_in_a_block(conf, line):
    accepted(conf, "PoolMaxProcesses 32768\n" + block(*line.splitlines()))


@pytest.mark.parametrize(
    "line",
    [
        "PoolMaxProcesses 400",
        "PoolMinSpare 1",
        "PoolIdleTimeout 10s",
        "PoolMaxRequestsPerProcess 1000",
        "PoolQueueTimeout 5s",
        "PoolQueueLimit 10",
        "PoolMaxParked 10",
        "PoolMaxFrontendThreads 10",
        "PoolEnv LANG C.UTF-8",
        "PoolUmask 022",
        "PoolModuleRole authz_core_module both",
        "PoolModuleRole mod_authz_core.c Worker",
        "PoolModuleRole pool_module both",
        '<ServerPool "quoted">\n</ServerPool>',
        "<IfModule mod_pool.c>\nPoolUmask 022\n</IfModule>",
    ],
)
def test_accepted_in_the_server_config(conf, line):
    accepted(conf, line)


ALICE = block("PoolUser #2001", "PoolGroup #2001", name="alice")


@pytest.mark.parametrize("value", ["alice", "none", "NONE"])
@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "<VirtualHost *:80>\n{}\n</VirtualHost>",
        "<Location /x>\n{}\n</Location>",
        "<LocationMatch ^/x>\n{}\n</LocationMatch>",
        '<If "true">\n{}\n</If>\n<ElseIf "true">\n{}\n</ElseIf>\n<Else>\n{}\n</Else>',
        '<VirtualHost *:80>\n<Location /x>\n<If "true">\n{}\n</If>\n</Location>\n</VirtualHost>',
        "<IfModule mod_pool.c>\n{}\n</IfModule>",
    ],
)
def test_assign_accepted(conf, around, value):
    text = around.replace("{}", f"AssignServerPool {value}")
    assert accepted(conf, ALICE + text) == ""
    # A pool may be defined behind its use.
    assert accepted(conf, text + "\n" + ALICE) == ""


def test_nested_blocks_and_macros(conf):
    text = """
        PoolMaxProcesses 400
        <Macro Tenant $name $id>
            <ServerPool $name>
                PoolUser #$id
                PoolGroup #$id
            </ServerPool>
        </Macro>
        <ServerPool hosting>
            Use Tenant alice 2001
            <ServerPool resellers>
                Use Tenant bob 2002
            </ServerPool>
            PoolMaxProcesses 100
        </ServerPool>
        <VirtualHost *:80>
            AssignServerPool bob
        </VirtualHost>
        """
    assert accepted(conf, text, modules=["macro"]) == ""


@pytest.mark.parametrize("line, says", [
    ("PoolUser nobody-of-that-name", "PoolUser nobody-of-that-name: there is no such user; create it"),
    ("PoolUser 2001", "PoolUser 2001: there is no such user; create it, or give a numeric id as #1234"),
    ("PoolUser #3999999999", "PoolUser #3999999999: uid 3999999999 has no passwd entry"),
    ("PoolUser #2001\nPoolGroup no-such-group", "PoolGroup no-such-group: there is no such group; create it"),
])
def test_a_missing_user_or_group_is_warned_of_or_with_poolstrict_an_error(conf, line, says):
    text = f"<ServerPool p>\n{line}\n</ServerPool>\n<VirtualHost *:80>\nAssignServerPool p\n</VirtualHost>\n"
    for strict in ("", "PoolStrict off\n"):
        said = accepted(conf, text + strict)
        assert says in said and "out of service" in said
    said = conf(text + "PoolStrict on\n").test()
    assert said.returncode != 0 and says in said.stderr and "PoolStrict on" in said.stderr


def test_a_misspelt_directive_in_a_pool_is_unknown(conf):
    made = conf("<ServerPool p>\nPoolUser #2001\nPoolGroup #2001\nPoolMaxProceses 3\n</ServerPool>\n")
    said = made.test()
    assert said.returncode != 0
    assert "Invalid command 'PoolMaxProceses', perhaps misspelled or defined by a module not included" in said.stderr
    assert f"line {made.line_of('PoolMaxProceses')} of" in said.stderr, said.stderr


# --- refused: each names directive, value and remedy ----------------------------------------------------


@pytest.mark.parametrize(
    "line, value, remedy",
    [
        ("PoolUser root", "root: uid 0 is refused", "name an unprivileged user"),
        ("PoolUser #0", "#0: uid 0 is refused", "name an unprivileged user"),
        ("PoolUser #-1", "#-1: not a numeric id", "give #"),
        ("PoolUser #4294967296", "#4294967296: not a numeric id", "give #"),
        ("PoolGroup root", "root: gid 0 is refused", "name an unprivileged group"),
        ("PoolGroup #0", "#0: gid 0 is refused", "name an unprivileged group"),
        ("PoolGroup #2001", "#2001: has no effect without PoolUser", "add PoolUser"),
        ("PoolMaxProcesses 0", "0: not a whole number from 1 to 32768", "give one in this range"),
        ("PoolMaxProcesses -1", "-1: not a whole number", "give one in this range"),
        ("PoolMaxProcesses 1000000", "1000000: not a whole number", "give one in this range"),
        ("PoolMaxProcesses many", "many: not a whole number", "give one in this range"),
        ("PoolMinSpare -1", "-1: not a whole number from 0 to 32768", "give one in this range"),
        ("PoolMinSpare 99999999999999999999", "99999999999999999999: not", "give one in this range"),
        ("PoolMinSpare 9", "9 of <ServerPool p>", "lower the one or raise the other"),
        ("PoolIdleTimeout 0", "0: not a time from 100ms to 168h", "give a number with the unit"),
        ("PoolIdleTimeout -1s", "-1s: not a time", "give a number with the unit"),
        ("PoolIdleTimeout 1y", "1y: not a time", "give a number with the unit"),
        ("PoolIdleTimeout 99999h", "99999h: not a time", "give a number with the unit"),
        ("PoolMaxRequestsPerProcess -5", "-5: not a whole number from 0", "give one in this range"),
        ("PoolMaxRequestsPerProcess 2e3", "2e3: not a whole number", "give one in this range"),
        ("PoolQueueTimeout 0", "0: not a time from 1ms to 1h", "give a number with the unit"),
        ("PoolRequestTimeout 0", "0: not a time from 100ms to 168h", "give a number with the unit"),
        ("PoolKillGrace 2h", "2h: not a time from 1ms to 1h", "give a number with the unit"),
        ("PoolQueueTimeout 2h", "2h: not a time", "give a number with the unit"),
        ("PoolQueueLimit -1", "-1: not a whole number from 0 to 100000", "give one in this range"),
        ("PoolQueueLimit 100001", "100001: not a whole number", "give one in this range"),
        ("PoolMaxParked -1", "-1: not a whole number from 0 to 1000000", "give one in this range"),
        ("PoolMaxParked 1000001", "1000001: not a whole number", "give one in this range"),
        ("PoolMaxFrontendThreads 0", "0: not a whole number from 1 to 20000", "give one in this range"),
        ("PoolMaxFrontendThreads 20001", "20001: not a whole number", "give one in this range"),
        ("PoolEnv 1A x", "1A: not the name of an environment variable", "use letters"),
        ("PoolEnv A=B x", "A=B: not the name of an environment variable", "use letters"),
        ("PoolUmask 9", "9: not an octal number from 0 to 0777", "give one such as 027"),
        ("PoolUmask 7777", "7777: not an octal number", "give one such as 027"),
        ("PoolUmask -1", "-1: not an octal number", "give one such as 027"),
        ("PoolModuleRole authz_core_module both", "authz_core_module both: cannot stand in <ServerPool p>", "move it"),
        ("AssignServerPool none", "none: cannot stand in <ServerPool p>", "move it"),
        ("DocumentRoot /tmp", "/tmp: cannot stand in <ServerPool p>", "move it"),
    ],
)
def test_refused_in_a_block(conf, line, value, remedy):
    directive = line.split()[0]
    more = [] if directive in ("PoolUser", "PoolGroup") else ["PoolUser #2001", "PoolGroup #2001"]
    refused(conf, block(*more, line), f"{directive} {value}", "; ", remedy)


@pytest.mark.parametrize("count", ["", "a b c"])
@pytest.mark.parametrize(
    "directive",
    [
        *"PoolUser PoolGroup PoolMaxProcesses PoolMinSpare PoolIdleTimeout PoolMaxRequestsPerProcess".split(),
        *"PoolQueueTimeout PoolQueueLimit PoolMaxParked PoolMaxFrontendThreads PoolEnv PoolUmask".split(),
        *"PoolRequestTimeout PoolKillGrace".split(),
    ],
)
def test_refused_number_of_arguments(conf, directive, count):
    refused(conf, block(f"{directive} {count}"), f"{directive} takes")


@pytest.mark.parametrize(
    "name, value, remedy",
    [
        ("none", "<ServerPool none>: this name has a meaning of its own", "choose another"),
        ("ROOT", "<ServerPool ROOT>: this name has a meaning of its own", "choose another"),
        ("-a", "<ServerPool -a>: a pool's name starts with", "choose such a name"),
        ("a/b", "<ServerPool a/b>: a pool's name has 1 to 64 letters", "choose such a name"),
        ("x" * 65, f"<ServerPool {'x' * 65}>: a pool's name has 1 to 64 letters", "choose such a name"),
        ("", "<ServerPool >: takes one name", "write <ServerPool name>"),
        ("a b", "<ServerPool a b>: takes one name", "write <ServerPool name>"),
    ],
)
def test_refused_names(conf, name, value, remedy):
    refused(conf, block(name=name), value, remedy)


def test_refused_duplicate_name(conf):
    text = block(name="twice") + block(name="other") + block(block(name="twice"), name="parent")
    c = conf(text)
    done = c.test()
    assert done.returncode != 0
    assert "<ServerPool twice>: a pool of this name is defined already at" in done.stderr
    assert f"{c.file}:{c.line_of('<ServerPool twice>')};" in done.stderr
    assert "give this one another name" in done.stderr


def test_refused_unclosed(conf):
    refused(conf, "<ServerPool p\n</ServerPool>\n", "<ServerPool p: the closing '>' is missing")
    refused(conf, "<ServerPool p>\n", "<ServerPool> was not closed")
    refused(conf, "</ServerPool>\n", "</ServerPool>")


@pytest.mark.parametrize(
    "line, says",
    [
        (f"PoolUser {USER}", f"PoolUser {USER}: belongs to one pool; write it in a <ServerPool> block"),
        (f"PoolGroup {GROUP}", f"PoolGroup {GROUP}: belongs to one pool; write it in a <ServerPool> block"),
        ("PoolModuleRole mod_nothing.c both", "PoolModuleRole mod_nothing.c both: no such module is loaded; write"),
        ("PoolModuleRole authz_core_module parent", "mod_authz_core.c parent: not a role; give frontend, worker"),
        ("PoolModuleRole core_module frontend", "core.c frontend: every process needs this module; remove the line"),
        ("PoolModuleRole pool_module frontend", "mod_pool.c frontend: every process needs this module; remove the line"),
        ("PoolModuleRole http_core.c worker", "http_core.c worker: every process needs this module; remove the line"),
        ("PoolModuleRole mpm_event_module both", "event.c both: this module works in frontends only; remove the line"),
    ],
)
def test_refused_in_the_server_config(conf, line, says):
    refused(conf, line, says)


SETTINGS = [
    "PoolMaxProcesses 5",
    "PoolMinSpare 1",
    "PoolIdleTimeout 5s",
    "PoolMaxRequestsPerProcess 5",
    "PoolQueueTimeout 5s",
    "PoolQueueLimit 5",
    "PoolMaxParked 5",
    "PoolMaxFrontendThreads 5",
    "PoolEnv A b",
    "PoolUmask 022",
    "PoolModuleRole authz_core_module both",
    "PoolUser #2001",
    "PoolGroup #2001",
    "<ServerPool p>\n</ServerPool>",
]


@pytest.mark.parametrize("line", SETTINGS)
def test_settings_are_refused_in_a_virtual_host(conf, line):
    directive, value = line.split()[:2]
    refused(
        conf,
        f"<VirtualHost *:80>\n{line}\n</VirtualHost>",
        f"{directive} {value.rstrip('>')}",
        "cannot stand in a <VirtualHost> section; write it in the server config",
    )


@pytest.mark.parametrize("line", SETTINGS)
@pytest.mark.parametrize("section", ["Directory /tmp", "Location /", "Files x", 'If "true"'])
def test_settings_are_refused_in_a_directory(conf, line, section):
    directive, value = line.split()[:2]
    end = section.split()[0]
    refused(
        conf,
        f"<{section}>\n{line}\n</{end}>",
        f"{directive} {value.rstrip('>')}",
        f"cannot stand in a <{end}> section; write it in the server config",
    )


@pytest.mark.parametrize(
    "around, section",
    [
        ("<Directory /tmp>\n{}\n</Directory>", "<Directory>"),
        ('<DirectoryMatch "^/tmp">\n{}\n</DirectoryMatch>', "<DirectoryMatch>"),
        ("<Files x>\n{}\n</Files>", "<Files>"),
        ('<FilesMatch "x">\n{}\n</FilesMatch>', "<FilesMatch>"),
        ('<Directory /tmp>\n<If "true">\n{}\n</If>\n</Directory>', "<Directory>"),
        ('<Directory /tmp>\n<Files x>\n<If "true">\n{}\n</If>\n</Files>\n</Directory>', "<Files>"),
        ("<Location />\n<Limit GET>\n{}\n</Limit>\n</Location>", "<Limit>"),
        ("<Proxy *>\n{}\n</Proxy>", "<Proxy>"),
    ],
)
@pytest.mark.parametrize("value", ["alice", "none"])
def test_assign_refused(conf, around, section, value):
    text = ALICE + around.replace("{}", f"AssignServerPool {value}")
    refused(
        conf,
        text,
        f"AssignServerPool {value}: cannot stand in a {section} section",
        "write it in the server config, <VirtualHost>, <Location> or <If>",
        modules=["proxy"],
    )


@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "<VirtualHost *:80>\n{}\n</VirtualHost>",
        '<VirtualHost *:80>\n<Location />\n<If "true">\n{}\n</If>\n</Location>\n</VirtualHost>',
    ],
)
def test_assign_refuses_an_unknown_pool(conf, around):
    c = conf(ALICE + around.replace("{}", "AssignServerPool alcie"))
    done = c.test()
    assert done.returncode != 0
    assert "AssignServerPool alcie: there is no such pool; known are alice; correct the name" in done.stderr
    assert f"{c.file}:{c.line_of('alcie')}" in done.stderr


def test_assign_needs_some_pool(conf):
    refused(conf, "AssignServerPool x", "AssignServerPool x: no pool is defined; define it with <ServerPool>")
    refused(conf, "AssignServerPool root", "AssignServerPool root: no pool is defined")


def test_assign_needs_a_user(conf):
    text = block("PoolUser #2001", "PoolGroup #2001", block(name="sub"))
    refused(conf, text + "AssignServerPool sub", "AssignServerPool sub: the pool has no PoolUser", "add PoolUser to")


def test_chroot_is_refused(conf):
    text = "ChrootDir /tmp\n"
    said = refused(conf, ALICE + text)
    assert re.search(r"ChrootDir /tmp at \S+:\d+: .* would see more than the frontends.*; remove it, ", said), said
    accepted(conf, text)


def test_every_error_of_the_whole_is_told_at_once(conf):
    text = block("PoolMinSpare 99", "PoolUser #2001", "PoolGroup #2001")
    said = refused(conf, text + "AssignServerPool x\n<Location />\nAssignServerPool y\n</Location>")
    for part in ("PoolMinSpare 99", "AssignServerPool x", "AssignServerPool y"):
        assert part in said


# --- warned of ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, says",
    [
        (
            ALICE + block("PoolUser #2001", "PoolGroup #2002"),
            "PoolUser of <ServerPool p> at .*: uid 2001 is that of <ServerPool alice> too; .* give each a user",
        ),
        (
            block(f"PoolUser #{FRONTEND}", f"PoolGroup #{FRONTEND}"),
            r"PoolUser of <ServerPool p> at .*: uid 65534 is that of the frontends \(User\).* give the pool a user",
        ),
        (
            "CoreDumpDirectory /tmp\n" + block(f"PoolUser #{FRONTEND}", f"PoolGroup #{FRONTEND}"),
            r"PoolUser of <ServerPool p> at .* a user of its own; while it has none, frontends leave no core in Core",
        ),
        (
            "PoolMaxProcesses 10\n" + block("PoolMaxProcesses 11", ALICE),
            "PoolMaxProcesses 11 of <ServerPool p> at .*: all pools together may have 10 only.* lower the one",
        ),
        (
            block("PoolMaxProcesses 3", block("PoolUser #1", "PoolGroup #1", "PoolMaxProcesses 4", name="q")),
            "PoolMaxProcesses 4 of <ServerPool q> at .*: its parent p may have 3 only.* lower the one",
        ),
        (
            block("PoolMaxProcesses 1", "PoolMinSpare 1", ALICE, ALICE.replace("alice", "b").replace("2001", "2002")),
            "PoolMaxProcesses 1 of <ServerPool p> at .*: PoolMinSpare of the pools in it adds up to 2; lower",
        ),
        (block(name="empty"), "<ServerPool empty> at .*: has neither PoolUser nor sub pools.* remove the block"),
    ],
)
def test_warnings(conf, text, says):
    said = accepted(conf, text)
    assert len(re.findall(says, said)) == 1, said


# --- the surroundings -----------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up being root")
def test_without_root_only_ones_own_id(conf):
    own = {"user": 2001, "group": 2001, "extra_groups": []}
    mine = conf(ALICE + "AssignServerPool alice")
    done = mine.test(**own)
    assert done.returncode == 0, done.stderr
    assert "Syntax OK" in done.stderr
    # A remedy that can be had: without root there is no user of its own.
    assert "start httpd as root, and give the pool a user of its own" in done.stderr
    other = conf(ALICE.replace("2001", "2002"))
    done = other.test(**own)
    assert done.returncode != 0
    assert "PoolUser #2002 of <ServerPool alice> at" in done.stderr
    assert "httpd is not started by root" in done.stderr
    assert "start httpd as root, or give #2001" in done.stderr


@pytest.mark.skipif(not Path("/usr/bin/strace").exists(), reason="needs strace")
def test_configtest_starts_no_process(conf):
    c = conf(ALICE + "PoolMinSpare 2\nAssignServerPool alice")
    calls = "execve,fork,vfork,clone,clone3,setuid,setresuid"
    trace = c.root / "trace"
    subprocess.run(["strace", "-f", "-e", f"trace={calls}", "-o", trace, HTTPD, "-t", "-f", c.file], check=True)
    made = [line for line in trace.read_text().splitlines() if re.search(r"\d+\s+\w+\(", line)]
    assert len(made) == 1 and "execve(" in made[0], made


def test_configtest_starts_nothing_that_stays(conf):
    c = conf(ALICE + "PoolMinSpare 2\nAssignServerPool alice")
    c.test()
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(c.root).encode() in read(p)]
    assert left == []
    assert sorted(p.name for p in c.root.iterdir()) == ["httpd.conf"]


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


SERVER = "write it in the server config, outside of any other section than <ServerPool>"


@pytest.mark.parametrize(
    "line, remedy",
    [
        ("AssignServerPool none", "write it in the server config, <VirtualHost>, <Location> or <If>"),
        ("<ServerPool p>", SERVER),
        ("PoolModuleRole core_module both", SERVER),
        ("PoolEnv A b", SERVER),
        ("PoolMPM on", "write it in the server config"),
        *((f"{directive} 1", SERVER) for directive in "PoolUser PoolGroup PoolMaxProcesses PoolMinSpare".split()),
        *((f"{directive} 1", SERVER) for directive in "PoolIdleTimeout PoolMaxRequestsPerProcess".split()),
        *((f"{directive} 1", SERVER) for directive in "PoolQueueTimeout PoolQueueLimit PoolMaxParked".split()),
        *((f"{directive} 1", SERVER) for directive in "PoolMaxFrontendThreads PoolUmask".split()),
        *((f"{directive} 1", SERVER) for directive in "PoolRequestTimeout PoolKillGrace".split()),
    ],
)
@pytest.mark.parametrize("wish", ["AllowOverride All", "AllowOverride Indexes", "AllowOverrideList @"])
def test_refused_in_htaccess(conf, wish, line, remedy):
    directive = line.strip("<>").split()[0]
    if "<" in line and "@" in wish:
        pytest.skip("AllowOverrideList takes no sections")
    status, log = with_htaccess(conf, wish.replace("@", directive), line)
    said = line if line.count(" ") < 2 else line.rsplit(" ", 1)[0]
    assert status == 500
    assert f"{said}: cannot stand in .htaccess; {remedy}" in log, log


@pytest.mark.parametrize("line", ["AssignServerPool none", "PoolEnv A b", "<ServerPool p>"])
def test_in_htaccess_it_is_skipped_where_overrides_are_not_fatal(conf, line):
    status, log = with_htaccess(conf, "AllowOverride All Nonfatal=Override", line)
    assert status == 200
    assert re.search(r":warn\].* cannot stand in .htaccess; write it in the server config", log), log


def with_htaccess(conf, wish, line):
    """Asks a server for a page beside an .htaccess with this line; returns its status and the error log."""
    c = conf("")
    docs = c.root / "docs"
    docs.mkdir()
    (docs / ".htaccess").write_text(line + ("\n</ServerPool>\n" if "<" in line else "\n"))
    (docs / "index.html").write_text("hello")
    c.file.write_text(c.head + f"DocumentRoot {docs}\n<Directory {docs}>\n{wish}\n</Directory>\n")
    argv = [HTTPD, "-D", "FOREGROUND", "-f", c.file]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            status = get(c.port, "/index.html")
        finally:
            server.terminate()
    return status, (c.root / "error.log").read_text()


def get(port, path):
    end = time.monotonic() + 10
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


# --- copies of other modules' directives ------------------------------------------------------------------

SSL = {
    "SSLOptions": "+StdEnvVars",
    "SSLRequireSSL": "",
    "SSLRequire": "%{SSL_CIPHER_USEKEYSIZE} >= 128",
    "SSLVerifyClient": "none",
    "SSLVerifyDepth": "1",
    "SSLCipherSuite": "HIGH",
}


@pytest.mark.parametrize("directive", SSL)
def test_ssl_directives_stay_mod_ssls(conf, directive):
    line = f"<Location />\n{directive} {SSL[directive]}\n</Location>"
    accepted(conf, line, modules=["socache_shmcb", "ssl"])
    refused(conf, line, f"Invalid command '{directive}', perhaps misspelled or defined by a module not included")


@pytest.mark.parametrize(
    "line, says",
    [
        ("SSLOptions +Nothing", "SSLOptions: Illegal option 'Nothing'"),
        ("SSLRequire a b c ==", "SSLRequire: "),
        ("SSLVerifyClient a b", "SSLVerifyClient takes one argument"),
        ("SSLVerifyDepth -1", "SSLVerifyDepth: Invalid argument '-1'"),
    ],
)
@pytest.mark.parametrize("order", [["ssl", "pool"], ["pool", "ssl"]])
def test_ssl_errors_are_mod_ssls(conf, line, says, order):
    c = conf("")
    # The MPM stays in front: without one before it mod_pool would be the MPM.
    head = c.head.replace(load("pool"), "")
    for name in reversed(["mpm_event", "socache_shmcb", *order]):
        head = load(name) + head.replace(load(name), "")
    c.file.write_text(f"{head}\n<Location />\n{line}\n</Location>\n")
    done = c.test()
    assert done.returncode != 0 and says in done.stderr, done.stderr


def test_php_ini_dir_stays_mod_phps(conf):
    refused(conf, "PHPIniDir /etc", "Invalid command 'PHPIniDir', perhaps misspelled")
    accepted(conf, "PHPIniDir /etc", modules=["php"], mpm="mpm_prefork")
