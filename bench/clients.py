"""The benchmark's own clients, each a process of its own: started with one of the functions' names and its arguments.

crowd holds connections. load asks again and again on a few and knows of each request what became of it, which wrk does
not: wrk forgets a request whose connection was closed, and how long it had waited.
"""

import contextlib
import errno
import gc
import json
import re
import select
import socket
import struct
import sys
import time

# Not in the socket module before Python 3.12: a port of ours is needed for this pair of addresses only.
IP_BIND_ADDRESS_NO_PORT = 24
# So many connections are on their way at a time. Few where answers are waited for: mpm_event ends idle connections while all
# threads of a process are busy. A listener's backlog is 511.
AT_ONCE = {"answer": 8, "sent": 200}
# Without any progress for so long, crowd goes on with those it has.
PATIENCE = 10
# Without an answer for so long, a request is lost.
NO_ANSWER = 10
# load's first second is not counted: all of its connections come at once.
WARM_UP = 1


def get(path, host):
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: crowd\r\n\r\n".encode()


# ===== crowd =====


def crowd(port, count, until, host, *paths):
    """Opens `count` connections, one request on each, and holds them until its input ends.

    until: "answer", each has got its answer; "sent", each request has been sent, and nothing is read. Says in one line how
    many have come so far, and after each line of its input what has become of them.
    """
    count = int(count)
    requests = [get(path, host) for path in paths]
    events = select.epoll()
    pending, held = {}, []
    started, progress = 0, time.monotonic()
    while len(held) < count and time.monotonic() - progress < PATIENCE:
        while started < count and len(pending) < AT_ONCE[until]:
            one = socket.socket()
            one.setblocking(False)
            one.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            # Not the address of the other clients, so that its ports do not run out.
            one.bind(("127.0.0.2", 0))
            with contextlib.suppress(BlockingIOError):
                one.connect(("127.0.0.1", int(port)))
            pending[one.fileno()] = one
            events.register(one.fileno(), select.EPOLLOUT)
            started += 1
        for fd, event in events.poll(0.5):
            one = pending[fd]
            if event & select.EPOLLOUT and not event & (select.EPOLLERR | select.EPOLLHUP):
                one.send(requests[len(held) % len(requests)])
                if until == "answer":
                    events.modify(fd, select.EPOLLIN)
                    continue
            elif event & select.EPOLLIN:
                answer = Answer()
                with contextlib.suppress(OSError):
                    # Small, and from this machine: it comes as a whole.
                    answer.add(one.recv(65536))
                if answer.state != "complete" or answer.status != 200:
                    sys.exit(f"crowd: {bytes(answer.data[:200])!r} for an answer")
            else:
                sys.exit("crowd: a connection failed with " + errno.errorcode.get(
                    one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "no error"))
            events.unregister(fd)
            held.append(pending.pop(fd))
            progress = time.monotonic()
    print(len(held), flush=True)
    for _ in sys.stdin:
        states = {"silent": 0, "begun": 0, "answered": 0, "closed": 0}
        for one in held:
            states[look(one)] += 1
        print(json.dumps(states), flush=True)


def look(connection):
    """What has come on a connection since its request was sent, or answered. Leaves it there."""
    try:
        data = connection.recv(65536, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return "silent"
    except OSError:
        return "closed"
    if not data:
        return "closed"
    answer = Answer()
    answer.add(data)
    return "begun" if answer.state == "begun" and answer.status in (0, 200) else "answered"


# ===== load =====


class Answer:
    """One response, as it comes. Its state: begun, complete, wrong (cannot be read)."""

    HEAD = re.compile(rb"HTTP/1\.1 (\d\d\d) ")
    LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.I)
    CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.I)
    CLOSE = re.compile(rb"\r\nconnection: *close\r\n", re.I)

    def __init__(self):
        self.data = b""
        self.status, self.body, self.close, self.state = 0, b"", False, "begun"

    def add(self, data):
        self.data += data
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return
        head, rest = self.data[:end + 2], self.data[end + 4:]
        found = self.HEAD.match(head)
        if not found:
            self.state = "wrong"
            return
        self.status, self.close = int(found[1]), bool(self.CLOSE.search(head))
        length = self.LENGTH.search(head)
        if length:
            if len(rest) >= int(length[1]):
                self.body = rest
                self.state = "complete" if len(rest) == int(length[1]) else "wrong"
        elif self.CHUNKED.search(head):
            self.read_chunks(rest)
        else:
            self.state = "wrong"

    def read_chunks(self, rest):
        body = b""
        while True:
            line, found, rest = rest.partition(b"\r\n")
            if not found:
                return
            size = int(line, 16)
            if len(rest) < size + 2:
                return
            body += rest[:size]
            rest = rest[size + 2:]
            if size == 0:
                self.body, self.state = body, "wrong" if rest else "complete"
                return


class Client:
    """One kept-alive connection on which a request follows the other."""

    def __init__(self):
        self.socket = None

    def connect(self, port, events, clients):
        if self.socket:
            clients.pop(self.socket.fileno())
            # Reset: a port in TIME_WAIT for each connection would use them up.
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.socket.close()
        self.socket = socket.socket()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            self.socket.connect(("127.0.0.1", port))
        clients[self.socket.fileno()] = self
        events.register(self.socket.fileno(), select.EPOLLOUT)
        self.connected, self.answers, self.answer = False, 0, Answer()

    def send(self, request):
        self.answer = Answer()
        with contextlib.suppress(ConnectionError):
            self.socket.send(request)


def load(port, host, path, connections, seconds, expected):
    """A closed loop, as wrk's, on so many connections. Says in a line when it begins to count, and at the end in one of
    JSON what came of it.

    Lost is a request that a new connection did not answer, or not within 10 s, or not to the end, or not with 200 and the
    body that is expected. A kept-alive connection that ends before the first byte of an answer is what HTTP/1.1 allows
    between two requests, and a client sees only then: the request is sent again on a new connection, and its time goes
    on. These are counted as resent. A request that was under way when the time is over is not counted.
    """
    port, expected, request = int(port), expected.encode(), get(path, host)
    lost = {"not 200": 0, "wrong body": 0, "broken off": 0, "no answer on a new connection": 0, "no answer in 10 s": 0,
            "no connection": 0}
    times, resent = [], 0
    clients, events, everyone = {}, select.epoll(), [Client() for _ in range(int(connections))]
    gc.disable()
    for one in everyone:
        one.connect(port, events, clients)
    start = now = looked = time.perf_counter()
    counts_from, end = start + WARM_UP, float("inf")
    for one in everyone:
        one.since = now
    while now < end:
        ready = events.poll(0.1)
        now = time.perf_counter()
        if now >= counts_from:
            print("counting", flush=True)
            times, resent, lost = [], 0, dict.fromkeys(lost, 0)
            start, counts_from, end = now, float("inf"), now + float(seconds)
        for fd, _ in ready:
            one = clients.get(fd)
            if one is None:
                continue
            if not one.connected:
                if one.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    lost["no connection"] += 1
                    renew(one, True, False, port, events, clients, request)
                else:
                    one.connected = True
                    events.modify(fd, select.EPOLLIN)
                    one.send(request)
                continue
            try:
                data = one.socket.recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            answer, again = one.answer, False
            if data:
                answer.add(data)
                if answer.state == "begun":
                    continue
                what = None
                if answer.state == "wrong":
                    what = "wrong body"
                elif answer.status != 200:
                    what = "not 200"
                elif answer.body != expected:
                    what = "wrong body"
                fresh = answer.close or answer.state == "wrong"
            else:
                fresh = True
                again = not answer.data and one.answers > 0
                what = "broken off" if answer.data else "no answer on a new connection"
            if again:
                resent += 1
            elif what:
                lost[what] += 1
            else:
                times.append(time.perf_counter() - one.since)
                one.answers += 1
            renew(one, fresh, again, port, events, clients, request)
        if now - looked > 1:
            looked = now
            for one in everyone:
                if now - one.since > NO_ANSWER:
                    lost["no answer in 10 s"] += 1
                    renew(one, True, False, port, events, clients, request)
    times.sort()
    print(json.dumps({
        "requests": len(times), "seconds": now - start, "errors": sum(lost.values()), "lost": lost, "resent": resent,
        "p50": share(times, 0.5), "p99": share(times, 0.99), "longest": share(times, 1)}), flush=True)


def renew(one, fresh, again, port, events, clients, request):
    """The next request, or the same once more."""
    if not again:
        one.since = time.perf_counter()
    if fresh:
        # It is sent when the connection is there.
        one.connect(port, events, clients)
    else:
        one.send(request)


def share(ordered, part):
    """In microseconds."""
    return round(ordered[min(len(ordered) - 1, int(len(ordered) * part))] * 1e6) if ordered else 0


if __name__ == "__main__":
    {"crowd": crowd, "load": load}[sys.argv[1]](*sys.argv[2:])
