"""Processes, as /proc shows them, and control groups."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from .installed import CAP_SYS_PTRACE
from .tools import eventually


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


ROLE = re.compile(r"mod_pool: (controller|keeper|stand-in|seed|zygote|worker|log writer)\b ?(\S*)")


def read_process(pid):
    """What /proc says of one process; None once it is gone."""
    try:
        base = Path(f"/proc/{pid}")
        status = dict(
            line.split(":\t", 1)
            for line in (base / "status").read_text(errors="replace").split("\n")  # a name can be any bytes
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


def gone(*pids):
    """None of the processes runs any more."""
    return all((p := read_process(pid)) is None or p.state == "Z" for pid in pids)


def parents():
    """pid -> ppid of every process: much cheaper to read than what all_processes reads."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as f:
                    found[int(entry)] = int(f.read().rpartition(b")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                pass
    return found


def descendants(root, table=None):
    """Children first, then theirs; of `table`, or as they are now."""
    ppids = parents() if table is None else {pid: process.ppid for pid, process in table.items()}
    children = {}
    for pid, ppid in ppids.items():
        children.setdefault(ppid, []).append(pid)
    out, todo = [], [root]
    while todo:
        for pid in children.get(todo.pop(), []):
            process = read_process(pid) if table is None else table[pid]
            todo.append(pid)
            if process:
                out.append(process)
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


class MemoryGroup:
    """A control group of its own, whose processes the kernel's OOM killer ends beyond `limit` bytes.

    Skips the test where this machine gives us none: in a container /sys/fs/cgroup cannot be written as a rule.
    """

    def __init__(self, name, limit):
        top = Path("/sys/fs/cgroup")
        unified = (top / "cgroup.controllers").exists()
        self.path = (top if unified else top / "memory") / name
        try:
            self.path.mkdir()
        except OSError as e:
            pytest.skip(f"needs a memory cgroup that can be written: {e}")
        try:
            if unified:
                (self.path / "memory.swap.max").write_text("0")
                (self.path / "memory.max").write_text(str(limit))
            else:
                (self.path / "memory.limit_in_bytes").write_text(str(limit))
            self.events = self.path / ("memory.events" if unified else "memory.oom_control")
            self.kills()
        except (OSError, AttributeError) as e:
            self.path.rmdir()
            pytest.skip(f"needs the memory controller of cgroups: {e}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # It goes when the last of its processes has been reaped.
        eventually(self._removed, 5, what=f"{self.path} can be removed")

    def _removed(self):
        try:
            self.path.rmdir()
        except OSError:
            return False
        return True

    def take(self, pid):
        (self.path / "cgroup.procs").write_text(str(pid))

    def kills(self):
        """How many processes the OOM killer has ended in it."""
        return int(re.search(r"^oom_kill (\d+)$", self.events.read_text(), re.M)[1])
