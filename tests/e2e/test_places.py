"""Directives that name what httpd's own user can write and a pool's user cannot: each pool gets a place of its own."""

import os
import shutil
import stat

import pytest

from harness import ALICE, BOB, Site, eventually, has_module

needs_security = pytest.mark.skipif(not has_module("security2"), reason="mod_security is not installed")
SECURITY = ["unique_id", "security2"]
COUNTS = """
    SecRuleEngine On
    SecRequestBodyAccess On
    SecDataDir @ROOT@/sec
    SecAction "id:1,phase:2,nolog,pass,initcol:ip=%{REMOTE_ADDR},setvar:ip.m=+1,expirevar:ip.m=600"
    SecRule IP:M "@gt 3" "id:2,phase:2,deny,status:429,log,msg:'too many'"
"""


def make(httpd, conf, modules, sites=(("alice", ALICE),), **kw):
    sites = [Site(name, uid, pool_conf="PoolMaxProcesses 4\nPoolIdleTimeout 60s", **kw) for name, uid in sites]
    server = httpd(sites=sites, modules=modules, conf=conf)
    for site in sites:
        site.write("page.php", "<?php echo 'page';")
        site.write("upload.php", "<?php echo $_FILES['f']['size'] ?? 'none';")
    # As Debian has them: the server's own, not open to others.
    for name in ("sec", "lock"):
        directory = server.root / name
        directory.mkdir(exist_ok=True)
        directory.chmod(0o700)
        shutil.chown(directory, server.user, server.group)
    return server


def statuses(server, n, site="alice", path="/page.php", **kw):
    return [server.get(path, site, **kw).status for _ in range(n)]


def counts(server, site="alice", tls=False):
    """mod_security stores a count after the response is sent: of requests right behind one another some may not be counted."""
    found = statuses(server, 8, site, tls=tls)
    return found == sorted(found) and found[:3] == [200] * 3 and found[-1] == 429


# --- mod_security's collections ---------------------------------------------------------------------


@needs_security
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_rules_that_count_requests_count(httpd, tls):
    server = make(httpd, COUNTS, SECURITY).start()
    assert counts(server, tls=tls)
    assert "Failed to access DBM file" not in server.error_log()


@needs_security
@pytest.mark.pool_only
def test_each_pool_has_its_own_count_which_survives_reloads(httpd):
    server = make(httpd, COUNTS, SECURITY, (("alice", ALICE), ("bob", BOB))).start()
    assert counts(server, "alice") and counts(server, "bob")
    server.graceful()
    assert statuses(server, 2) == [429, 429]
    own = server.root / "run" / "mod_pool"
    for path, uid, mode in ((own, 0, 0o711), (own / f"alice.{ALICE}", 0, 0o711),
                            (own / f"alice.{ALICE}" / "SecDataDir", ALICE, 0o700),
                            (own / f"bob.{BOB}" / "SecDataDir", BOB, 0o700)):
        found = path.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (uid, mode), path
    assert {f.stat().st_uid for f in (own / f"alice.{ALICE}" / "SecDataDir").iterdir()} == {ALICE}
    assert "Failed to access DBM file" not in server.error_log()


@needs_security
@pytest.mark.pool_only
@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_place_that_others_could_change_is_refused(httpd, mode):
    server = make(httpd, COUNTS, SECURITY)
    (server.root / "run").chmod(mode)
    found = server.configtest()
    assert found.returncode != 0
    assert "SecDataDir" in found.stderr and "run can be written by others than root" in found.stderr
    assert "let DefaultRuntimeDir be a directory that only root can change" in found.stderr


@needs_security
@pytest.mark.pool_only
@pytest.mark.parametrize("mode,tag,why", [(0o777, "POOL126", "run can be written by others than root"),
                                          (0o700, "POOL125", "cannot reach the directory")])
def test_without_a_place_the_rules_do_not_pass_silently(httpd, mode, tag, why):
    server = make(httpd, COUNTS, SECURITY).start()
    (server.root / "run").chmod(mode)
    assert statuses(server, 1) == [503]
    server.wait_for_log(f"pool alice: its processes fail to start.*{tag}.*{why}")
    (server.root / "run").chmod(0o755)
    eventually(lambda: statuses(server, 1) == [200], 10, what="the pool serves again")


@needs_security
@pytest.mark.pool_only
def test_what_another_user_has_put_there_is_not_used(httpd):
    server = make(httpd, COUNTS, SECURITY)
    planted = server.root / "run" / "mod_pool"
    planted.mkdir(exist_ok=True)
    os.chown(planted, BOB, BOB)
    found = server.configtest()
    assert found.returncode != 0 and f"mod_pool belongs to uid {BOB}, not to root" in found.stderr


# --- its other directories and files -----------------------------------------------------------------


@needs_security
def test_a_large_upload_needs_a_directory_for_it(httpd):
    conf = """
        SecRuleEngine On
        SecRequestBodyAccess On
        SecRequestBodyInMemoryLimit 1000
        SecTmpDir @ROOT@/sec
        SecUploadDir @ROOT@/sec
        SecRule REQBODY_ERROR|MULTIPART_STRICT_ERROR "!@eq 0" "id:3,phase:2,deny,status:400"
    """
    server = make(httpd, conf, SECURITY).start()
    content = b"x" * 300_000
    body = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + content + b"\r\n--b--\r\n"
    found = server.request("POST", "/upload.php", "alice", body=body,
                           headers=[("Content-Type", "multipart/form-data; boundary=b")])
    assert (found.status, found.text) == (200, "300000")


# A whole database of countries (GeoIP, first format): one node, both branches of which are Germany.
GERMANY = (16_776_960 + 56).to_bytes(3, "little") * 2 + b"\0" * 100


@needs_security
@pytest.mark.parametrize("code,status", [("DE", 403), ("FR", 200)])
def test_the_country_of_an_address_is_found(httpd, code, status):
    conf = f"""
        SecRuleEngine On
        SecGeoLookupDb @ROOT@/conf/geo.dat
        SecRule REMOTE_ADDR "@geoLookup" "chain,id:5,phase:2,deny,status:403"
        SecRule GEO:COUNTRY_CODE "@streq {code}"
    """
    server = make(httpd, conf, SECURITY)
    (server.root / "conf" / "geo.dat").write_bytes(GERMANY)
    server.start()
    assert statuses(server, 3) == [status] * 3


@needs_security
@pytest.mark.pool_only
def test_a_database_that_the_pool_cannot_read_is_told(httpd):
    server = make(httpd, "SecRuleEngine On\nSecGeoLookupDb @ROOT@/conf/geo.dat\n", SECURITY)
    file = server.root / "conf" / "geo.dat"
    file.write_bytes(GERMANY)
    file.chmod(0o600)
    server.start()
    assert statuses(server, 1) == [503]
    server.wait_for_log("pool alice: its processes fail to start.*POOL125: SecGeoLookupDb.*Permission denied")


# --- lock files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mutex", ["file:@ROOT@/lock default", "flock:@ROOT@/lock default", '"fcntl:@ROOT@/lock" default',
                                   "file:@ROOT@/lock authdigest-client", "file default",
                                   "pthread default", "sem default"])
def test_lock_files_are_made_where_the_pool_can(httpd, mutex):
    server = make(httpd, f"Mutex {mutex}\n", ["auth_digest"]).start()
    assert statuses(server, 2) == [200, 200]
    if "authdigest" not in mutex and server.with_pool and mutex.split(":")[0].strip('"') in ("file", "flock", "fcntl"):
        assert (server.root / "run" / "mod_pool" / f"alice.{ALICE}" / "Mutex").stat().st_uid == ALICE


# --- what is left as it is: it fails, and says so ---------------------------------------------------


@pytest.mark.pool_only
def test_a_lock_database_that_cannot_be_opened_lets_nothing_pass(httpd):
    server = make(httpd, "DavLockDB @ROOT@/lock/db\n<Location />\nDav On\n</Location>\n", ["dav", "dav_fs"]).start()
    assert server.request("PUT", "/new.txt", "alice", body=b"new").status == 500
    server.wait_for_log(r"\[dav:error\].*Could not open the lock database")
    assert not (server.sites["alice"].docroot / "new.txt").exists()


@pytest.mark.pool_only
def test_a_cache_of_credentials_that_cannot_be_made_is_told(httpd):
    server = make(httpd, "AuthnCacheSOCache dbm:@ROOT@/lock/cache\nAuthnCacheEnable\n", ["authn_socache", "socache_dbm"]).start()
    assert statuses(server, 1) == [503]
    server.wait_for_log("pool alice.*AH00804: Cannot create socache DBM file")
