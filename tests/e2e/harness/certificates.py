"""Certificates, made by openssl."""

import os

from .tools import run


def make_certificate(cert, key, name, hosts=(), kind="ec", ca=None, passphrase=None,
                     is_ca=False):
    """A certificate by openssl: self-signed, or signed by `ca` = (certificate, key)."""
    algorithm = {
        "ec": ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"],
        "rsa": ["-newkey", "rsa:2048"],
    }[kind]
    secret = ["-passout", f"pass:{passphrase}"] if passphrase else ["-nodes"]
    names = ",".join(f"DNS:{h}" for h in [name, *hosts])
    sign = ["-CA", ca[0], "-CAkey", ca[1]] if ca else []
    run(
        "openssl", "req", "-x509", *algorithm, *secret, *sign, "-keyout", key, "-out", cert,
        "-days", "30", "-subj", f"/O=mod_pool test/CN={name}", "-addext", f"subjectAltName={names}",
        *([] if is_ca else ["-addext", "basicConstraints=CA:FALSE"]),
    )
    os.chmod(key, 0o600)
