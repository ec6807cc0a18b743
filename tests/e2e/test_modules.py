"""Each module that is installed here, beside a pool: the pool starts and serves, and goes on after a reload.

Which modules there are is found on the machine. What is not tried has its reason in `NOT_HERE`.
"""

import re
import pytest

from harness import ALICE, MODULE_DIR, Site
from harness.installed import BASE_MODULES, STATIC, debian_modules

pytestmark = pytest.mark.pool_only

NOT_HERE = {
    "mpm_event": "an MPM", "mpm_worker": "an MPM", "mpm_prefork": "an MPM",
    "mpm_itk": "no pool works beside it: test_packages.py",
    "pool": "it is what is tested",
    "cgid": "test_main_job.py has it; it and mod_cgi exclude each other",
    "lbmethod_heartbeat": "it needs a file of mod_heartmonitor, which needs another server",
    "mod_mono": "its shared memory has one name for all servers of a machine", "mod_mono_auto": "the same",
    "authn_yubikey": "it refuses each page without TLS",
    "netcgi_apache": "Debian's .load file names a record that the module does not have",
    "qos": "Debian's does not load: it is not linked with libpcre, which it uses",
}
# What a module does not start without, or what makes it make what it has: shared memory, files, daemons.
NEEDS = {
    "jk": "JkWorkersFile @ROOT@/workers\nJkLogFile @ROOT@/logs/jk\nJkShmFile @ROOT@/logs/jk-shm\n",
    "upload_progress": "UploadProgressSharedMemorySize 1024000\n",
    "auth_digest": "AuthDigestShmemSize 100000\n",
    "authnz_ldap": "LDAPSharedCacheSize 100000\n",
    "ldap": "LDAPSharedCacheSize 100000\nLDAPSharedCacheFile @ROOT@/logs/ldap\n",
    "session_crypto": "SessionCryptoPassphrase secret\n",
    "dav_fs": "DAVLockDB @ROOT@/logs/dav\n",
    "log_forensic": "ForensicLog @ROOT@/logs/forensic\n",
    "fcgid": "FcgidIPCDir @ROOT@/run/fcgid\nFcgidProcessTableFile @ROOT@/run/fcgid/shm\n",
    "cache_disk": "CacheRoot @ROOT@/logs\n",
    "cache_socache": "CacheSocache shmcb\n",
    "auth_cas": "CASCookiePath @ROOT@/run/\nCASLoginURL https://x.test/\nCASValidateURL https://x.test/\n",
    "authn_socache": "AuthnCacheSOCache shmcb\n",
    "proxy_balancer": "<Proxy balancer://b>\nBalancerMember http://127.0.0.1:1\n</Proxy>\n",
    "proxy_hcheck": "<Proxy balancer://b>\nBalancerMember http://127.0.0.1:1 hcmethod=TCP\n</Proxy>\n",
    "md": "MDomain x.test\nMDStoreDir @ROOT@/md\n",
}
# Beside those that their .load file names.
DEPENDS = {"proxy_hcheck": ["proxy_http"], "proxy_balancer": ["lbmethod_byrequests"],
           "heartmonitor": ["slotmem_shm"], "auth_form": ["request", "session", "session_cookie"], "dav_lock": ["dav"],
           "authz_svn": ["dav_svn"], "log_sql_dbi": ["log_sql"], "log_sql_mysql": ["log_sql"], "log_sql_ssl": ["log_sql"]}


def names():
    named = debian_modules()
    found = {path.name[4:-3] for path in MODULE_DIR.glob("mod_*.so") if not any(path.name in text for text in named.values())}
    found |= {name for name in named if not re.fullmatch(r"php[\d.]*", name)}
    return sorted(found - set(NOT_HERE) - set(BASE_MODULES))


def dependencies(name, seen=()):
    """Modules to be loaded before, in order, itself last."""
    found = re.search(r"^# ?Depends: (.*)$", debian_modules().get(name, ""), re.M)
    ordered = []
    for other in [*(found[1].split() if found else []), *DEPENDS.get(name, [])]:
        if other not in seen:
            ordered += [n for n in dependencies(other, (*seen, name)) if n not in ordered]
    return [*ordered, name]


def make(httpd, modules, **kw):
    site = Site("alice", ALICE)
    wanted, conf = [], ""
    for module in modules:
        for name in dependencies(module):
            if name not in wanted and name not in STATIC and name not in BASE_MODULES:
                wanted.append(name)
                conf += NEEDS.get(name, "")
    server = httpd(sites=[site], modules=wanted, conf=conf, **kw)
    (server.root / "workers").write_text("worker.list=a\nworker.a.type=ajp13\nworker.a.host=127.0.0.1\nworker.a.port=1\n")
    for name in ("md", "run/fcgid"):
        (server.root / name).mkdir(exist_ok=True, parents=True)
        (server.root / name).chmod(0o777)
    site.write("page.php", "<?php echo 'page';")
    site.write("text.txt", "text")
    return server.start()


def serves(server):
    assert (server.get("/page.php").status, server.get("/page.php").text) == (200, "page")
    assert (server.get("/text.txt").status, server.get("/text.txt").text) == (200, "text")
    bad = [line for line in server.error_log().splitlines() if re.search(r":(crit|alert|emerg)\]|fail to start", line)]
    assert bad == []


@pytest.mark.parametrize("module", names())
def test_a_pool_serves_beside_a_module(httpd, module):
    serves(make(httpd, [module], mpm="event"))


GROUP = 12
# Stock httpd does not start with mod_parser3 beside mod_neko.
ALONE = ["parser3"]
GROUPED = [name for name in names() if name not in ALONE]


@pytest.mark.timeout(90)
@pytest.mark.parametrize("first", range(0, len(GROUPED), GROUP))
def test_a_pool_serves_beside_many_modules_as_the_mpm_and_after_a_reload(httpd, first):
    server = make(httpd, GROUPED[first:first + GROUP], mpm="pool")
    serves(server)
    server.graceful()
    serves(server)
