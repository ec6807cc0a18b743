"""A reader of HTTP/1.1 that forgives nothing: who reads otherwise would be out of step with it.

`Strict` takes the bytes of a `Conn` and gives one response for each request, in their order. What RFC 9112 lets a
recipient repair or guess is an error here: a bare LF or CR, a folded line, two lengths, a length that is not written as
everybody writes it, both framings at once, a length where there is no body, bytes that no response owns.
"""

import re

from .http1 import Response

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5][0-9]{2}) ([\t\x20-\x7e\x80-\xff]*)")
VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
LENGTH = re.compile(rb"0|[1-9][0-9]{0,18}")
CHUNK_SIZE = re.compile(rb"0|[1-9a-fA-F][0-9a-fA-F]{0,15}")
LONGEST_LINE = 70_000


class NotHttp(AssertionError):
    """The bytes are no response, or more than one."""


class BrokeOff(Exception):
    """The connection has ended within a response, as its framing shows."""


class Endless(Exception):
    """The body is longer than the test wants to read."""


class Strict:
    """Reads responses from a connection. `most`: bytes of a body after which it gives up."""

    def __init__(self, conn, most=4 << 20):
        self.conn, self.most = conn, most
        self.closes = False

    def line(self):
        while b"\r\n" not in self.conn.buffer:
            if len(self.conn.buffer) > LONGEST_LINE:
                raise NotHttp(f"no end of line: {self.conn.buffer[:80]!r}")
            if not self.conn.more():
                raise BrokeOff(f"within a line: {self.conn.buffer[:80]!r}")
        line, self.conn.buffer = self.conn.buffer.split(b"\r\n", 1)
        if b"\r" in line or b"\n" in line or b"\0" in line:
            raise NotHttp(f"a bare CR, LF or NUL: {line[:200]!r}")
        return line

    def fields(self):
        found = []
        while line := self.line():
            name, colon, value = line.partition(b":")
            if not colon or not TOKEN.fullmatch(name) or not VALUE.fullmatch(value):
                raise NotHttp(f"no field: {line[:200]!r}")
            found.append((name.decode(), value.strip(b" \t").decode("latin-1")))
        return found

    def exactly(self, count):
        if count > self.most:
            # As much as shows that it really comes.
            self.exactly(self.most)
            raise Endless(str(count))
        while len(self.conn.buffer) < count:
            if not self.conn.more():
                raise BrokeOff(f"{len(self.conn.buffer)} of {count} bytes")
        data, self.conn.buffer = self.conn.buffer[:count], self.conn.buffer[count:]
        return data

    def head(self):
        if not self.conn.buffer and not self.conn.more():
            raise BrokeOff("no response")
        line = self.line()
        match = STATUS_LINE.fullmatch(line)
        if not match:
            raise NotHttp(f"no status line: {line[:200]!r}")
        return Response(int(match[1]), match[2].decode("latin-1"), "HTTP/1.1", self.fields())

    def response(self, method="GET"):
        """The next final response. BrokeOff where the connection ends within it."""
        assert not self.closes, "asked for a response behind the last one"
        interim = []
        while (found := self.head()).status < 200:
            if found.status == 101 or found.all("Content-Length") or found.all("Transfer-Encoding"):
                raise NotHttp(f"an interim response with framing: {found}")
            interim.append(found)
        found.interim = interim
        self.closes = found.closes
        codings, lengths = found.all("Transfer-Encoding"), found.all("Content-Length")
        if codings and lengths or len(codings) > 1 or len(lengths) > 1:
            raise NotHttp(f"more than one framing: {found.headers}")
        if codings and codings != ["chunked"]:
            raise NotHttp(f"an unknown coding: {codings}")
        if lengths and (not LENGTH.fullmatch(lengths[0].encode()) or int(lengths[0]) >= 1 << 63):
            raise NotHttp(f"no length: {lengths}")
        if found.status == 204 and (codings or lengths):
            raise NotHttp(f"a length of no body: {found.headers}")
        if method == "HEAD" or found.status in (204, 304):
            return found
        if codings:
            self.chunks(found)
        elif lengths:
            found.body = self.exactly(int(lengths[0]))
        elif not self.closes:
            raise NotHttp(f"a body without a length on a connection that goes on: {found}")
        else:
            while self.conn.more():
                if len(self.conn.buffer) > self.most:
                    raise Endless("no length")
            found.body, self.conn.buffer = self.conn.buffer, b""
        return found

    def chunks(self, found):
        parts, have = [], 0
        while True:
            line = self.line()
            if not CHUNK_SIZE.fullmatch(line) or int(line, 16) >= 1 << 63:
                raise NotHttp(f"no size of a chunk: {line[:80]!r}")
            size = int(line, 16)
            if size == 0:
                found.trailers = self.fields()
                found.body = b"".join(parts)
                return
            have += size
            parts.append(self.exactly(size))
            if self.line() != b"":
                raise NotHttp("a chunk that is longer than its size")
            if have > self.most:
                raise Endless("chunks")

    def end(self):
        """Nothing more may come, and the connection ends."""
        while self.conn.more():
            pass
        if self.conn.buffer:
            raise NotHttp(f"bytes behind the last response: {self.conn.buffer[:200]!r}")
