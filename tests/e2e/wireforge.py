"""Frames of the data protocol, right and wrong, and a PHP script that sends them from inside a worker.

The layout is that of docs/protocol.md: a message is one datagram with one or more frames; a frame is
kind u8, flags u8, zero u16, exchange u32, length u32, payload; all numbers big-endian.
"""

import json
import struct

REQUEST, BODY, BODY_END = 1, 2, 3
HEAD, DATA, FILE, META, END, INTERIM, NEED_BODY, LOG, ABORT = range(16, 25)
MORE, FLUSH, LAST = 1, 2, 4

# A frontend counts the exchanges of each lending from (lend count << 16) | 1: the first request that a fresh worker
# gets, in its first lending, has this number.
FIRST = (1 << 16) | 1


def short(data):
    data = data.encode() if isinstance(data, str) else data
    return struct.pack(">H", len(data)) + data


def frame(kind, payload=b"", flags=0, exchange=FIRST, length=None, reserved=0):
    return struct.pack(">BBHII", kind, flags, reserved, exchange, len(payload) if length is None else length) + payload


def pairs(*items):
    # Code 0: the name follows, whatever it is.
    return struct.pack(">H", len(items)) + b"".join(b"\0" + short(n) + short(v) for n, v in items)


def head(status=200, *fields, line="", **kw):
    return frame(HEAD, struct.pack(">H", status) + short(line) + pairs(*fields), **kw)


def interim(status=103, *fields, line="", **kw):
    return frame(INTERIM, struct.pack(">H", status) + short(line) + pairs(*fields), **kw)


def data(body, **kw):
    return frame(DATA, body.encode() if isinstance(body, str) else body, **kw)


def file(offset, length, **kw):
    return frame(FILE, struct.pack(">QQ", offset, length), **kw)


def meta(user="", auth="", handler="", filename="", notes=(), env=(), **kw):
    return frame(META, short(user) + short(auth) + short(handler) + short(filename) + pairs(*notes) + pairs(*env), **kw)


def end(*trailers, processor=0, **kw):
    return frame(END, struct.pack(">H", processor) + pairs(*trailers), **kw)


def log(text, level=3, module="mod_php.c", status=0, source="", line=0, **kw):
    return frame(LOG, bytes([level]) + short(module) + struct.pack(">i", status) + short(source) + struct.pack(">I", line)
                 + short(text), **kw)


def abort(reason=3, text="", **kw):
    return frame(ABORT, bytes([reason]) + short(text), **kw)


def plan(*messages, then="hang", where="seqpacket"):
    """What forge.php shall do: send each message, then hang, exit, return, or fork a child that goes on sending.

    A message is bytes, or a dictionary: hex, fds (kinds of descriptors to attach), repeat, pause (seconds after it), flags (set on
    what was attached so far, after the pause).
    """
    out = []
    for m in messages:
        m = {"hex": m.hex()} if isinstance(m, bytes) else {**m, "hex": m["data"].hex()}
        m.pop("data", None)
        out.append(m)
    return json.dumps({"messages": out, "then": then, "where": where}).encode()


FORGE_PHP = r"""
<?php
ignore_user_abort(true);
$plan = json_decode(file_get_contents('php://input'), true);
$c = FFI::cdef('
    typedef long ssize_t; typedef unsigned long size_t;
    struct iovec { void *base; size_t len; };
    struct msghdr { void *name; unsigned namelen; struct iovec *iov; size_t iovlen; void *control; size_t controllen;
                    int flags; };
    ssize_t sendmsg(int, const struct msghdr *, int);
    int getsockopt(int, int, int, void *, unsigned *);
    int open(const char *, int, int); int memfd_create(const char *, unsigned); int mkfifo(const char *, unsigned);
    int ftruncate(int, long); int unlink(const char *); int fork(void); void _exit(int); int usleep(unsigned);
    int pipe(int *); int dup(int); int fcntl(int, int, long);
    int socket(int, int, int); int connect(int, const void *, unsigned); int epoll_create1(int); int inotify_init1(int);
    ssize_t recvmsg(int, struct msghdr *, int); ssize_t send(int, const void *, size_t, int);
');
function sockets($c, $where) {
    $out = [];
    for ($fd = 3; $fd < 1024; $fd++) {
        $type = FFI::new('int'); $len = FFI::new('unsigned'); $len->cdata = 4;
        if ($c->getsockopt($fd, 1, 3, FFI::addr($type), FFI::addr($len)) != 0) continue;
        if ($where == 'all' || $type->cdata == 5) $out[] = $fd;
    }
    return $out;
}
function descriptor($c, $kind) {
    $dir = getenv('SCRATCH');
    switch ($kind) {
        case 'fifo': @unlink("$dir/fifo"); $c->mkfifo("$dir/fifo", 0600); return $c->open("$dir/fifo", 2, 0);
        case 'fifo-read': @unlink("$dir/fifo"); $c->mkfifo("$dir/fifo", 0600); return $c->open("$dir/fifo", 0x800, 0);
        case 'device': return $c->open('/dev/zero', 0, 0);
        case 'null': return $c->open('/dev/null', 0, 0);
        case 'tty': return $c->open('/dev/ptmx', 2, 0);
        case 'directory': return $c->open($dir, 0x10000, 0);
        case 'path': file_put_contents("$dir/f", str_repeat('p', 5000)); return $c->open("$dir/f", 0x200000, 0);
        case 'read-write': file_put_contents("$dir/f", str_repeat('w', 5000)); return $c->open("$dir/f", 2, 0);
        case 'write-only': file_put_contents("$dir/f", str_repeat('w', 5000)); return $c->open("$dir/f", 1, 0);
        case 'short': file_put_contents("$dir/s", 'short'); return $c->open("$dir/s", 0, 0);
        case 'good': file_put_contents("$dir/g", str_repeat('g', 5000)); return $c->open("$dir/g", 0, 0);
        case 'huge':
            // As long as a file can be: what its range promises, it has. It begins with what an attacker would have read.
            $fd = $c->open("$dir/huge", 0x42, 0600); $c->ftruncate($fd, PHP_INT_MAX);
            $start = fopen("$dir/huge", 'c');
            fwrite($start, "XXXXX\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison");
            return $c->open("$dir/huge", 0, 0);
        case 'locked':
            // A hundred locks of its description: F_OFD_SETLK, F_RDLCK.
            file_put_contents("$dir/l", str_repeat('l', 5000)); $fd = $c->open("$dir/l", 0, 0);
            $locks = FFI::cdef('int fcntl(int, int, void *);');
            for ($i = 0; $i < 100; $i++) {
                $lock = FFI::new('char[32]'); FFI::memcpy($lock, pack('ssx4qqlx4', 0, 0, 2 * $i, 1, 0), 32);
                if ($locks->fcntl($fd, 37, FFI::cast('void *', FFI::addr($lock))) != 0) throw new Exception('no lock');
            }
            return $fd;
        case 'memfd': $fd = $c->memfd_create('x', 0); $c->ftruncate($fd, 1 << 60); return $fd;
        case 'proc': return $c->open('/proc/self/status', 0, 0);
        case 'sysfs': return $c->open('/sys/kernel/mm/transparent_hugepage/enabled', 0, 0);
        case 'socket': return sockets($c, 'seqpacket')[0];
        case 'epoll': return $c->epoll_create1(0);
        case 'inotify': return $c->inotify_init1(0);
        case 'held': return $c->open(getenv('STALL') . '/held', 0, 0);
        case 'direct': return $c->open(getenv('STALL') . '/held', 0x4000, 0);
        case 'fuse': return given($c, getenv('STALL') . '/give', 'f');
        case 'overlay': return given($c, getenv('STALL') . '/give', 'o');
        case 'pipe': $p = FFI::new('int[2]'); $c->pipe(FFI::cast('int *', FFI::addr($p))); return $p[0];
    }
    throw new Exception($kind);
}
function given($c, $path, $kind) {
    // A descriptor of stallfs.py.
    $s = $c->socket(1, 1, 0);
    $address = FFI::new('char[110]'); FFI::memcpy($address, pack('v', 1) . $path, 2 + strlen($path));
    if ($c->connect($s, FFI::addr($address), 110) != 0) throw new Exception($path);
    $byte = FFI::new('char[1]'); $byte[0] = $kind; $c->send($s, FFI::addr($byte), 1, 0);
    $iov = $c->new('struct iovec'); $iov->base = FFI::cast('void *', FFI::addr($byte)); $iov->len = 1;
    $control = FFI::new('char[24]');
    $m = $c->new('struct msghdr'); $m->iov = FFI::addr($iov); $m->iovlen = 1;
    $m->control = FFI::cast('void *', FFI::addr($control)); $m->controllen = 24;
    if ($c->recvmsg($s, FFI::addr($m), 0) < 0) throw new Exception($path);
    return unpack('l', FFI::string($control, 24), 16)[1];
}
function send($c, $fd, $bytes, $fds) {
    $n = strlen($bytes);
    $buf = FFI::new('char[' . max(1, $n) . ']'); if ($n) FFI::memcpy($buf, $bytes, $n);
    $iov = $c->new('struct iovec'); $iov->base = FFI::cast('void *', FFI::addr($buf)); $iov->len = $n;
    $m = $c->new('struct msghdr'); $m->iov = FFI::addr($iov); $m->iovlen = 1;
    if ($fds) {
        $len = 16 + 4 * count($fds); $space = (int)(ceil($len / 8) * 8);
        $control = FFI::new("char[$space]");
        $cmsg = pack('Pll', $len, 1, 1); foreach ($fds as $f) $cmsg .= pack('l', $f);
        FFI::memcpy($control, $cmsg, $len);
        $m->control = FFI::cast('void *', FFI::addr($control)); $m->controllen = $space;
    }
    return $c->sendmsg($fd, FFI::addr($m), 0x4000);
}
function note($what) {
    // Whole or not at all: this process may be killed at any time.
    $log = getenv('SCRATCH') . '/forge';
    file_put_contents("$log.new", json_encode($what));
    rename("$log.new", "$log.log");
}
$targets = sockets($c, $plan['where']);
note(['pid' => getmypid(), 'targets' => $targets]);
if ($plan['then'] == 'fork') {
    if ($c->fork() != 0) { echo 'parent'; return; }
    $c->usleep(1000000);
}
$results = [];
foreach ($plan['messages'] as $m) {
    $bytes = hex2bin($m['hex']);
    $fds = array_map(fn($k) => descriptor($c, $k), $m['fds'] ?? []);
    $sent_fds = array_merge($sent_fds ?? [], $fds);
    for ($i = 0; $i < ($m['repeat'] ?? 1); $i++) {
        foreach ($targets as $fd) $results[] = $r = send($c, $fd, $bytes, $fds);
        if (isset($m['pause'])) $c->usleep((int)(1e6 * $m['pause']));
        if (isset($m['flags'])) foreach ($sent_fds as $f) $c->fcntl($f, 4, $m['flags']);
    }
}
note(['pid' => getmypid(), 'targets' => $targets, 'sent' => array_slice($results, 0, 20)]);
switch ($plan['then']) {
    case 'hang': sleep(60); break;
    case 'exit': case 'fork': $c->_exit(0);
    case 'return': echo 'own answer'; break;
}
"""
