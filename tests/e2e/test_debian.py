"""docs/debian.md on a copy of /etc/apache2, with scripts/install, a2enmod and a2dismod. tests/debian does it for real."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness import HTTPD, MODULE_DIR, REPO, module_so

LOADS = sorted(Path("/etc/apache2/mods-available").glob("php*.load"))

LACKS = [
    what for what, is_there in [
        ("a2enmod and a2dismod", Path("/usr/sbin/a2enmod").exists()),
        ("a php*.load in /etc/apache2/mods-available (mod_php)", LOADS),
    ] if not is_there
]

pytestmark = [
    pytest.mark.pool_only,
    pytest.mark.skipif(
        bool(LACKS),
        reason="not tested: scripts/install, and a2enmod pool, pool_beside and pool_php, which change the MPM and back, as "
               f"docs/debian.md has it; needs {' and '.join(LACKS)}",
    ),
]


class Debian:
    def __init__(self, root):
        self.etc, self.state, modules = root / "apache2", root / "state", root / "modules"
        shutil.copytree("/etc/apache2", self.etc, symlinks=True)
        shutil.copytree("/var/lib/apache2", self.state, symlinks=True)
        modules.mkdir()
        for module in MODULE_DIR.iterdir():
            (modules / module.name).symlink_to(module)
        (modules / "mod_pool.so").unlink(missing_ok=True)
        (modules / "mod_pool.so").symlink_to(module_so().resolve())
        # Says where things are, and installs nothing.
        apxs = root / "apxs"
        apxs.write_text(
            f'#!/bin/sh\ncase "$1 $2" in\n"-q LIBEXECDIR") echo {modules};;\n"-q SYSCONFDIR") echo {self.etc};;\nesac\n'
        )
        apxs.chmod(0o755)
        self.env = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C", "APXS": str(apxs),
            "APACHE_CONFDIR": str(self.etc), "APACHE_STATE_DIRECTORY": str(self.state),
        }
        self.php = LOADS[-1].stem
        # Stock, whatever this machine happens to have enabled; installed twice would not be a first time.
        self.run(REPO / "scripts/install", "remove")
        (modules / "mod_pool.so").symlink_to(module_so().resolve())
        self.run("a2dismod", "-q", "-f", "mpm_itk", "mpm_event", "mpm_worker", "wsgi", "fcgid", check=False)
        self.run("a2enmod", "mpm_prefork", self.php)

    def run(self, *words, check=True):
        done = subprocess.run([str(w) for w in words], env=self.env, capture_output=True, text=True, timeout=60, cwd=REPO)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def apache(self, *words):
        line = f". {self.etc}/envvars; exec {HTTPD} -d {self.etc} {' '.join(words)} 2>&1"
        return self.run("sh", "-c", line, check=False).stdout

    def mpm(self):
        assert "Syntax OK" in self.apache("-t")
        loaded = [m for m in ("prefork", "event", "worker") if f"mpm_{m}_module" in self.apache("-M")]
        said = re.search(r"Server MPM:\s+(\S+)", self.apache("-V"))[1]
        assert loaded == ([] if said == "pool" else [said])
        return said

    def files(self):
        return {p.relative_to(self.etc): p.read_bytes() for p in sorted(self.etc.rglob("*")) if p.is_file()}


@pytest.fixture
def debian(tmp_path):
    return Debian(tmp_path)


def test_pool_becomes_the_mpm_and_steps_back(debian):
    before = debian.files()
    debian.run("scripts/install")
    assert debian.mpm() == "prefork"
    for _ in range(2):
        debian.run("a2enmod", "pool")
        assert debian.mpm() == "pool" and "php_module" in debian.apache("-M")
        assert "<ServerPool default>: serves what is assigned to no pool" in debian.apache("-t")
        # What the scripts of packages do.
        debian.run("a2enmod", "-m", "mpm_prefork", debian.php)
        debian.run("a2dismod", "-m", debian.php)
        debian.run("a2enmod", "-m", debian.php)
        debian.run("scripts/install")
        assert debian.mpm() == "pool" and "php_module" in debian.apache("-M")
        debian.run("a2dismod", "pool")
        assert debian.mpm() == "prefork" and "php_module" in debian.apache("-M")
    debian.run("scripts/install", "remove")
    assert debian.files() == before
    assert debian.mpm() == "prefork"


def test_the_other_mpms_yield_too(debian):
    debian.run("scripts/install")
    debian.run("a2dismod", debian.php, "mpm_prefork")
    for mpm in ("mpm_event", "mpm_worker"):
        debian.run("a2enmod", mpm)
        assert debian.mpm() == mpm[4:]
        debian.run("a2enmod", "pool")
        assert debian.mpm() == "pool"
        debian.run("a2dismod", "pool")
        debian.run("a2dismod", mpm)
    debian.run("a2enmod", "pool")
    assert debian.mpm() == "pool"  # also where there is none


def test_an_mpm_that_does_not_yield_is_found(debian):
    debian.run("scripts/install")
    debian.run("a2enmod", "pool")
    load = debian.etc / "mods-available/mpm_prefork.load"
    ours = load.read_text()
    assert ours.startswith("# Conflicts: mpm_event mpm_worker\n")  # which a2enmod reads
    load.write_text("\n".join(line for line in ours.splitlines() if "IfFile" not in line and "mod_pool" not in line) + "\n")
    said = debian.apache("-t")
    assert "PoolMPM on: the MPM prefork is loaded too" in said and "docs/debian.md" in said
    debian.run("scripts/install")
    assert debian.mpm() == "pool" and load.read_text() == ours


def test_beside_event_with_php(debian):
    debian.run("scripts/install")
    debian.run("a2dismod", debian.php, "mpm_prefork")
    debian.run("a2enmod", "pool_php")
    assert debian.mpm() == "event" and "php_module" in debian.apache("-M")
    refused = debian.run("a2enmod", "pool", check=False)
    assert refused.returncode != 0 and "Module pool_beside is enabled" in refused.stderr
