"""Looks for the numbers of a private key in the memory of a process.

Each number (RSA d, p, q and the CRT exponents; the EC scalar) is looked for as big-endian bytes, as DER has them,
and as little-endian bytes, as OpenSSL's limbs lie in memory on this machine; and the PEM text by a line of it.
"""

import re
import subprocess

from harness import may_look_into


def numbers_of(key_file, passphrase=None):
    """The secret numbers of a key, by name, as big-endian bytes."""
    argv = ["openssl", "pkey", "-in", str(key_file), "-text", "-noout"]
    if passphrase:
        argv += ["-passin", f"pass:{passphrase}"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout
    out = {}
    for name in ("privateExponent", "prime1", "prime2", "exponent1", "exponent2", "priv"):
        match = re.search(rf"^{name}:\n((?:    .*\n)+)", text, re.M)
        if match:
            out[name] = bytes.fromhex(re.sub(r"[\s:]", "", match[1])).lstrip(b"\0")
    assert out, f"no number found in {key_file}"
    return out


def needles(key_file, passphrase=None):
    """(name, bytes) pairs whose appearance in memory means that the key, or most of it, is there."""
    out = []
    for name, number in numbers_of(key_file, passphrase).items():
        # A window from the middle: a copy that lost its ends is found too.
        window = number[len(number) // 2 - 12 : len(number) // 2 + 12]
        out.append((f"{key_file.name} {name} big-endian", window))
        out.append((f"{key_file.name} {name} limbs", window[::-1]))
    lines = key_file.read_bytes().splitlines()
    full = [line for line in lines if len(line) == 64]
    out.append((f"{key_file.name} PEM", full[len(full) // 2]))
    return out


def writable_memory(pid):
    """The bytes of every mapping that a process could have written a secret into, piece by piece."""
    may_look_into(pid)
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            area, rights, _, _, _, *name = line.split(maxsplit=5)
            if "r" not in rights or (name and name[0].startswith(("[vvar", "[vsyscall", "[vdso"))):
                continue
            if "w" not in rights and name and name[0].startswith("/"):
                continue  # a file's own bytes
            start, end = (int(x, 16) for x in area.split("-"))
            overlap = b""
            while start < end:
                size = min(4 << 20, end - start)
                try:
                    memory.seek(start)
                    data = memory.read(size)
                except (OSError, ValueError, OverflowError):
                    break
                if not data:
                    break
                if data.count(0) != len(data):
                    yield overlap + data
                overlap = data[-64:]
                start += len(data)


def find(pid, wanted):
    """Names of the needles that are in the memory of the process; None when it ended before all was seen."""
    found = set()
    try:
        for data in writable_memory(pid):
            for name, needle in wanted:
                if name not in found and needle in data:
                    found.add(name)
    except (ProcessLookupError, FileNotFoundError):
        return found or None
    return found
