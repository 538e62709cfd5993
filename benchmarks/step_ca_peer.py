"""step-ca with its database.

Its lightest way to let a caller in that is meant for single certificates is the JWK provisioner: each request brings a
one-time token (ES256) that names the subject. The tokens are made beforehand. step-ca checks one signature for that,
and remembers the token in its database; we look up a session.
"""

import base64
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import csr_pool
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from measure import new_key
from peers import Peer, free_port, listening, write_identity

PROVISIONER = "bench"
LEAF_LIFE = "8760h"
TOKEN_LIFE_S = 24 * 3600


class Tokens:
    """One-time tokens for all CSRs of a pool, for CAs that were not asked yet.

    Args:
        csrs: the pool's file.
        path: where they are written, one to a line.
    """

    def __init__(self, csrs: Path, path: Path) -> None:
        self.path = path
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._header = _encode({"alg": "ES256", "typ": "JWT", "kid": PROVISIONER})
        with path.open("w") as out:
            out.writelines(self._token(subject) + "\n" for subject in csr_pool.subjects(csrs))

    @property
    def public_jwk(self) -> dict[str, str]:
        """What step-ca checks them with (RFC 7517)."""
        numbers = self._key.public_key().public_numbers()
        point = {"x": _octets(numbers.x.to_bytes(32)), "y": _octets(numbers.y.to_bytes(32))}
        return {"use": "sig", "kty": "EC", "kid": PROVISIONER, "crv": "P-256", "alg": "ES256"} | point

    def _token(self, subject: str) -> str:
        now = int(time.time())
        claims = {
            "iss": PROVISIONER,
            "aud": "https://127.0.0.1/1.0/sign",
            "sub": subject,
            "sans": [subject],
            "iat": now,
            "nbf": now,
            "exp": now + TOKEN_LIFE_S,
            "jti": secrets.token_hex(16),
        }
        signed = f"{self._header}.{_encode(claims)}"
        r, s = decode_dss_signature(self._key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_octets(r.to_bytes(32) + s.to_bytes(32))}"


def _encode(value: object) -> str:
    return _octets(json.dumps(value, separators=(",", ":")).encode())


def _octets(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


@contextmanager
def step_ca(directory: Path, kind: str, program: Path, tokens: Tokens) -> Iterator[Peer]:
    """Run step-ca, whose issuing CA has a key of this kind.

    Args:
        program: what `install_peers` built.
    """
    root_key = new_key("p256")
    root = write_identity(directory / "root", "Root", root_key)
    write_identity(directory / "ca", "Issuing CA", new_key(kind), (root, root_key))
    port = free_port()
    provisioner = {"type": "JWK", "name": PROVISIONER, "key": tokens.public_jwk}
    claims = {"maxTLSCertDuration": LEAF_LIFE, "defaultTLSCertDuration": LEAF_LIFE}
    settings = {
        "root": "root.pem",
        "crt": "ca.pem",
        "key": "ca.key",
        "address": f"127.0.0.1:{port}",
        "dnsNames": ["127.0.0.1"],
        "db": {"type": "badgerv2", "dataSource": "db"},
        # The tokens are older than its start.
        "authority": {"provisioners": [provisioner], "claims": claims, "disableIssuedAtCheck": True},
    }
    (directory / "ca.json").write_text(json.dumps(settings))
    with listening([str(program.resolve()), "ca.json"], directory, port) as pid:
        yield Peer(
            "step-ca",
            f"https://127.0.0.1:{port}",
            "/1.0/sign",
            ('{"csr":', ',"ott":"', '"}'),
            {"step-ca": pid},
            None,
            status=201,
            one_time_tokens=tokens.path,
        )
