"""What is installed: httpd, its modules, the module under test; and whose servers these are."""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]

# Servers that run at the same time must not share users: each run ends what is left of its own. That holds for several
# runs on one machine, and for the processes among which pytest-xdist shares the tests of one run (gw0, gw1, ...).
UIDS_OF_ONE = 4
BESIDE = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
ALICE = int(os.environ.get("MOD_POOL_TEST_UID", "61001")) + UIDS_OF_ONE * BESIDE
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


def compile_module(name, into):
    """mod_NAME.so in a directory, of tests/e2e/mod_NAME.c."""
    if not shutil.which("apr-1-config"):
        pytest.skip("no apr-1-config")
    so = into / f"mod_{name}.so"
    flags = subprocess.run(["apr-1-config", "--includes", "--cppflags"], capture_output=True, text=True, check=True)
    subprocess.run([_apxs("CC"), "-shared", "-fPIC", "-pthread", f"-I{_apxs('INCLUDEDIR')}", *flags.stdout.split(),
                    "-o", so, REPO / f"tests/e2e/mod_{name}.c"], check=True)
    return so


def has_module(name):
    return name in STATIC or _module_file(name) is not None or name in debian_modules()


def _module_file(name):
    if name == "php":
        found = sorted(MODULE_DIR.glob("libphp*.so"))
        return found[-1] if found else None
    if name == "pool":
        return module_so()
    path = MODULE_DIR / (f"{name}.so" if name == "mpm_itk" else f"mod_{name}.so")
    return path if path.exists() else None


DEBIAN = Path("/etc/apache2/mods-available")


@functools.cache
def debian_modules():
    """What Debian's a2enmod knows of what is installed: the text of each .load file by its name."""
    def text_of(load):
        # One includes others of a2enmod's directory.
        return re.sub(r"Include mods-enabled/(\S+)", lambda m: text_of(DEBIAN / m[1]), load.read_text())

    found = {load.stem: text_of(load) for load in DEBIAN.glob("*.load")}
    files = {name: re.findall(r"^\s*LoadModule\s+\S+\s+(\S+)", text, re.M) for name, text in found.items()}
    return {name: found[name] for name, paths in files.items() if paths and all(Path(path).exists() for path in paths)}


def load_line(name, path=None):
    if name in STATIC:
        return ""
    if path is None and name in debian_modules():
        return debian_modules()[name] + "\n"
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
