"""A virtual host of a test: its files and its configuration."""

import os
import textwrap
from dataclasses import dataclass, field

from .installed import ALICE


@dataclass
class Site:
    """One virtual host `NAME.test`, on the plain and the TLS port, assigned to the pool `pool`.

    `conf` goes into both virtual hosts, `tls_conf` into the TLS one only, `pool_conf` into the
    ServerPool block. `pool=None` means: assigned to nothing. `declared=False`: the test writes the
    ServerPool block itself.
    """

    name: str
    uid: int = ALICE
    gid: int | None = None
    conf: str = ""
    plain_conf: str = ""
    tls_conf: str = ""
    pool_conf: str = ""
    pool: str | None = "="
    declared: bool = True
    server: "Httpd" = field(default=None, repr=False)

    def __post_init__(self):
        if self.gid is None:
            self.gid = self.uid
        if self.pool == "=":
            self.pool = self.name

    @property
    def host(self):
        return f"{self.name}.test"

    @property
    def docroot(self):
        return self.server.root / "sites" / self.name

    @property
    def home(self):
        """A directory of the site's user outside the document root."""
        return self.server.root / "home" / self.name

    @property
    def owner(self):
        """Who has to own files so that requests can read them: the reference has one user only."""
        if self.server.with_pool and self.pool:
            return self.uid, self.gid
        return self.server.user, self.server.group

    def write(self, path, content, mode=0o600, base=None):
        target = (base or self.docroot) / path
        self.mkdir(target.parent)
        if isinstance(content, str):
            content = textwrap.dedent(content).lstrip("\n").encode()
        target.write_bytes(content)
        target.chmod(mode)
        os.chown(target, *self.owner)
        return target

    def script(self, path, content, base=None):
        return self.write(path, content, mode=0o700, base=base)

    def mkdir(self, directory, mode=0o700):
        directory = self.docroot / directory
        missing = []
        while not directory.exists():
            missing.append(directory)
            directory = directory.parent
        for path in reversed(missing):
            path.mkdir()
            path.chmod(mode)
            os.chown(path, *self.owner)
