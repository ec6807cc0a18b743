"""HTTP/1 on a plain socket."""

import json
import re
import select
import socket
import ssl
import time
from dataclasses import dataclass, field


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
