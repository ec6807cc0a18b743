"""A process that cannot be killed: it waits in the kernel for the mutex of a pipe, which another one holds.

The process itself is made to do so, by ptrace(2): no object of the server's is needed for it.
"""

import contextlib
import ctypes
import os
import platform
import signal
import socket

import pytest

from .processes import read_process
from .tools import eventually

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]

CONT, SINGLESTEP, GETREGS, SETREGS, ATTACH, DETACH = 7, 9, 12, 13, 16, 17
READ, SPLICE, PIDFD_OPEN, PIDFD_GETFD = 0, 275, 434, 438
WORDS = "r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs gs ds es fs_ gs_".split()


class _Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in WORDS]


def _ptrace(request, pid, data=None):
    if _libc.ptrace(request, pid, None, data) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request}")


def _wait_for_stop(pid):
    status = os.waitpid(pid, 0x40000000)[1]  # __WALL
    assert os.WIFSTOPPED(status), status


@contextlib.contextmanager
def held(write):
    """The write end of a pipe: meanwhile somebody has the pipe's mutex."""
    if platform.machine() != "x86_64":
        pytest.skip("the number of splice(2) and the registers are those of x86_64")
    silent, other = socket.socketpair()
    holder = os.fork()
    if holder == 0:
        _libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        _libc.syscall(SPLICE, silent.fileno(), None, write, None, 4096, 0)
        os._exit(0)
    try:
        eventually(lambda: open(f"/proc/{holder}/syscall").read().startswith(f"{SPLICE} "), 5, what="the pipe is held")
        yield
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        silent.close(), other.close()


@contextlib.contextmanager
def held_pipe():
    """The read end of a pipe whose mutex somebody has."""
    read, write = os.pipe()
    try:
        with held(write):
            yield read
    finally:
        os.close(read), os.close(write)


def read_for_ever(pid, pipe):
    """Has a process that waits in a system call take the pipe, and read it."""
    _ptrace(ATTACH, pid)
    _wait_for_stop(pid)
    registers = _Registers()
    _ptrace(GETREGS, pid, ctypes.byref(registers))
    instruction = registers.rip - 2
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(instruction)
        assert memory.read(2) == b"\x0f\x05", "it does not wait in a system call"

    def prepare(number, a, b, c):
        registers.rax, registers.rdi, registers.rsi, registers.rdx = number, a, b, c
        registers.orig_rax, registers.rip = 2**64 - 1, instruction
        _ptrace(SETREGS, pid, ctypes.byref(registers))

    def call(number, a, b, c):
        prepare(number, a, b, c)
        _ptrace(SINGLESTEP, pid)
        _wait_for_stop(pid)
        after = _Registers()
        _ptrace(GETREGS, pid, ctypes.byref(after))
        result = ctypes.c_longlong(after.rax).value
        assert result >= 0, os.strerror(-result)
        return result

    here = call(PIDFD_OPEN, os.getpid(), 0, 0)
    fd = call(PIDFD_GETFD, here, pipe, 0)
    prepare(READ, fd, registers.rsp - 4096, 1)
    _ptrace(DETACH, pid)
    eventually(lambda: read_process(pid).state == "D", 5, what="it waits")
