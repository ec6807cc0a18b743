"""Servers behind httpd: HTTP on a port or a socket in the file system, and FastCGI."""

import base64
import hashlib
import http.server
import os
import socket
import socketserver
import ssl
import struct
import threading

from harness import free_port


class _Backend:
    """Listens on a free port, or at `path`, where everybody may connect; `tls`: certificate and key."""

    def __init__(self, path=None, tls=None):
        self.seen = []
        self.path = path
        self.port = None if path else free_port()
        base = socketserver.ThreadingUnixStreamServer if path else socketserver.ThreadingTCPServer
        self.server = base(str(path) if path else ("127.0.0.1", self.port), self.handler(), bind_and_activate=True)
        self.server.daemon_threads = True
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        if path:
            os.chmod(path, 0o777)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def uid_of(self, connection, address):
        if self.path:
            return struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        return uid_of_peer(address[1], self.port)


class Backend(_Backend):
    """Speaks HTTP and remembers its requests, and who connected."""

    def handler(outer):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                uid = outer.uid_of(self.connection, self.client_address)
                outer.seen.append((self.path, dict(self.headers), uid))
                length = int(self.headers.get("Content-Length", 0))
                body = b"from the backend\n" + self.rfile.read(length)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("X-Backend", "yes")
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def address_string(self):
                return "-"

            def log_message(self, *_):
                pass

        return Handler


class Raw(_Backend):
    """Answers a path with the bytes that `answers` has for it, whatever they are, and closes the connection."""

    def __init__(self, answers):
        self.answers = answers
        super().__init__()

    def handler(outer):
        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                path = self.rfile.readline().split()[1].decode()
                while self.rfile.readline().strip():
                    pass
                self.wfile.write(outer.answers[path])

        return Handler


class WebSocket(_Backend):
    """Takes the upgrade, and sends each frame's text back in capitals, until the client closes."""

    def handler(outer):
        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                line = self.rfile.readline().decode()
                fields = {}
                while (field := self.rfile.readline().decode().rstrip()):
                    name, _, value = field.partition(":")
                    fields[name.lower()] = value.strip()
                if not line:
                    return
                outer.seen.append((line.split()[1], fields, outer.uid_of(self.connection, self.client_address)))
                if fields.get("upgrade", "").lower() != "websocket" or "sec-websocket-key" not in fields:
                    self.wfile.write(b"HTTP/1.1 426 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    return
                self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                 b"Sec-WebSocket-Accept: " + websocket_accept(fields["sec-websocket-key"]) + b"\r\n\r\n")
                while len(head := self.rfile.read(2)) == 2:
                    length = head[1] & 0x7F
                    mask, text = self.rfile.read(4), self.rfile.read(length)
                    text = bytes(b ^ mask[i % 4] for i, b in enumerate(text))
                    if head[0] & 0x0F == 8:
                        self.wfile.write(b"\x88\x00")
                        return
                    self.wfile.write(bytes([head[0], length]) + text.upper())

        return Handler


def websocket_accept(key):
    return base64.b64encode(hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest())


class FastCgi(_Backend):
    """Answers each request with some of its parameters, and its body."""

    def handler(outer):
        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                params, body = b"", b""
                while True:
                    head = self.rfile.read(8)
                    if len(head) < 8:
                        return
                    _, kind, number, length, padding, _ = struct.unpack(">BBHHBB", head)
                    content = self.rfile.read(length)
                    self.rfile.read(padding)
                    if kind == 4:
                        params += content
                    elif kind == 5 and content:
                        body += content
                    elif kind == 5:
                        break
                values = dict(_pairs(params))
                outer.seen.append((values, outer.uid_of(self.connection, self.client_address)))
                text = f"fastcgi {values['REQUEST_METHOD']} {values['REQUEST_URI']} ".encode() + body
                out = b"Content-Type: text/plain\r\n\r\n" + text
                for kind, content in ((6, out), (6, b""), (3, bytes(8))):
                    self.wfile.write(struct.pack(">BBHHBB", 1, kind, number, len(content), 0, 0) + content)

        return Handler


def _pairs(data):
    at = 0

    def length():
        nonlocal at
        if data[at] < 128:
            at += 1
            return data[at - 1]
        at += 4
        return struct.unpack(">I", data[at - 4:at])[0] & 0x7FFFFFFF

    while at < len(data):
        n, v = length(), length()
        yield data[at:at + n].decode(), data[at + n:at + n + v].decode()
        at += n + v


def uid_of_peer(peer_port, own_port):
    """The uid of the process whose socket connects peer_port to own_port, from /proc/net/tcp."""
    for line in open("/proc/net/tcp").read().splitlines()[1:]:
        cells = line.split()
        if cells[1].endswith(f":{peer_port:04X}") and cells[2].endswith(f":{own_port:04X}"):
            return int(cells[7])
    return None
