"""A file system that stops answering: a raw FUSE server, and an overlayfs over it, in a user namespace of their own.

As a program: python3 stallfs.py DIRECTORY [FILE]. It mounts below DIRECTORY, opens files there, says "ready" on its
output, and answers the file systems' requests no more. DIRECTORY/give is a socket: whoever connects gets one descriptor,
by the byte he sends: f of the FUSE, o of the overlay. With FILE, a write(2) to it that takes its bytes from the FUSE
keeps that file's inode lock from then on. It ends with its standard input.
"""

import ctypes
import mmap
import os
import select
import socket
import struct
import sys
import threading
import time
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
SIZE = 1 << 20
OPEN_FILES = 24

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FLUSH, INIT, OPENDIR, BATCH_FORGET, RELEASEDIR = (
    1, 2, 3, 14, 15, 17, 18, 25, 26, 27, 42, 29)
ENOSYS, ENOENT = 38, 2


def checked(done):
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(source, target, kind, data):
    checked(libc.mount(source.encode(), str(target).encode(), kind.encode(), 0, data.encode()))


def is_possible():
    """Whether such a server can run here; a reason otherwise."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        return "it needs root and /dev/fuse"
    kinds = Path("/proc/filesystems").read_text()
    if "fuse\n" not in kinds:
        return "it needs FUSE"
    pid = os.fork()
    if pid == 0:
        os._exit(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0)
    return None if os.waitpid(pid, 0)[1] == 0 else "it needs user namespaces"


def attributes(node):
    mode = 0o40755 if node == 1 else 0o100644
    return struct.pack("<6Q10I", node, SIZE, SIZE // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def answer(opcode, node, body):
    """The answer's bytes, or an error's number."""
    match opcode:
        case 26:
            return struct.pack("<4I2H2I2H8I", 7, 31, 65536, 0, 12, 9, 65536, 1, 16, 0, *[0] * 8)
        case 1:
            if not body.startswith(b"file"):
                return ENOENT
            return struct.pack("<4Q2I", 2, 0, 60, 0, 0, 0) + attributes(2)
        case 3:
            return struct.pack("<Q2I", 0, 0, 0) + attributes(node)
        case 14 | 27:
            return struct.pack("<Q2I", 1, 0, 0)
        case 17:
            return struct.pack("<5Q4I6I", 100, 50, 50, 100, 50, 4096, 255, 4096, 0, *[0] * 6)
        case 18 | 29 | 25:
            return b""
        case 15:
            return b"x" * struct.unpack_from("<QQI", body)[2]
    return ENOSYS


class Server(threading.Thread):
    def __init__(self, device):
        super().__init__(daemon=True)
        self.device, self.stalled, self.held = device, False, False

    def run(self):
        while True:
            try:
                request = os.read(self.device, 1 << 20)
            except OSError:
                return
            length, opcode, unique, node = struct.unpack_from("<IIQQ", request)
            if opcode in (FORGET, BATCH_FORGET) or self.stalled:
                continue
            if opcode == READ and self.held:
                # The write that holds the lock waits for this.
                self.stalled = True
                continue
            found = answer(opcode, node, request[40:length])
            body = found if isinstance(found, bytes) else b""
            error = 0 if isinstance(found, bytes) else -found
            os.write(self.device, struct.pack("<IiQ", 16 + len(body), error, unique) + body)


def hold(fuse, file):
    """A write(2) to the file from memory that does not come."""
    memory = mmap.mmap(fuse, 4096, mmap.MAP_SHARED, mmap.PROT_READ)
    os.write(os.open(file, os.O_WRONLY), memory)


def users(base, control):
    """Opens files, and gives them away. Their last close waits for the server, so the server has none of them."""
    try:
        mount("overlay", base / "overlay", "overlay", f"lowerdir={base}/fuse:{base}/empty")
        places = ("fuse", "overlay")
    except OSError:
        places = ("fuse",)
    files = {place[:1].encode(): [os.open(base / place / "file", os.O_RDONLY) for _ in range(OPEN_FILES)]
             for place in places}
    if len(sys.argv) > 2:
        control.send(b"h")
        control.recv(1)
        if os.fork() == 0:
            hold(files[b"f"][0], sys.argv[2])
    else:
        control.send(b"s")
    control.recv(1)
    give = socket.socket(socket.AF_UNIX)
    give.bind(str(base / "give"))
    os.chmod(base / "give", 0o777)
    give.listen(50)
    print("ready", *places, flush=True)
    while control not in select.select([give, control], [], [])[0]:
        connection, _ = give.accept()
        with connection:
            socket.send_fds(connection, [b"x"], [files[connection.recv(1)].pop()])


def main():
    base = Path(sys.argv[1])
    for name in ("fuse", "empty", "overlay"):
        (base / name).mkdir(exist_ok=True)
    checked(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS))
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text("0 0 1")
    Path("/proc/self/gid_map").write_text("0 0 1")
    device = os.open("/dev/fuse", os.O_RDWR)
    mount("stall", base / "fuse", "fuse", f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other")
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        # The device's last close, with the server's end, ends all waiting.
        os.close(device)
        ours.close()
        users(base, theirs)
        os._exit(0)
    theirs.close()
    server = Server(device)
    server.start()
    while True:
        ready, _, _ = select.select([ours, sys.stdin], [], [])
        word = ours.recv(1) if ours in ready else b""
        if not word:
            os._exit(0)
        if word == b"h":
            server.held = True
            ours.send(b"x")
            while not server.stalled:
                time.sleep(0.01)
        server.stalled = True
        ours.send(b"x")


if __name__ == "__main__":
    main()
