"""A real httpd for one test: written, started, looked at, stopped.

`Httpd` writes a configuration below a temporary ServerRoot, starts the installed httpd with stock
modules (and mod_pool unless it is the reference), and proves at the end that nothing of it is left.
`Conn` is a plain HTTP/1 client on a socket: it sends the bytes it is told to and reads exact responses.

The test process makes itself a subreaper, so whatever a server leaves behind becomes its child and
is found, under whatever title or environment it runs.
"""

from .certificates import make_certificate
from .http1 import Broken
from .http2 import H2
from .installed import ALICE, BOB, CAROL, FRONTEND, HTTPD, MODULE_DIR, REPO, compile_module, has_module, module_so
from .processes import MemoryGroup, descendants, fds_of, gone, may_look_into, read_process
from .server import Httpd, background
from .sites import Site
from .strict import BrokeOff, Endless, NotHttp, Strict
from .tools import Later, eventually, free_port, in_threads, run

__all__ = [
    "ALICE", "BOB", "BrokeOff", "Broken", "CAROL", "Endless", "FRONTEND", "H2", "HTTPD", "Httpd", "Later", "MODULE_DIR", "MemoryGroup",
    "NotHttp", "REPO", "Site", "Strict", "background", "compile_module", "descendants", "eventually", "fds_of", "free_port", "gone", "has_module",
    "in_threads", "make_certificate", "may_look_into", "module_so", "read_process", "run",
]
