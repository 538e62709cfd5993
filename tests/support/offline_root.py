"""A root CA that openssl made and keeps, as an organisation has one offline."""

import subprocess
from pathlib import Path

from cryptography import x509

from runtime.state_dir import make as make_state_dir
from support.ca_life_parts import NO_ACCESS, now
from support.csrs import OPENSSL_KEYS
from support.needs import need
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.cli.groups import noting
from vmi_agent.keys.open import Access
from vmi_agent.ledger.ledger import Ledger
from vmi_agent.ledger.schema import FILE_NAME

_ROOT = """[req]
distinguished_name = name
x509_extensions = root
prompt = no
[name]
O = Example
CN = {name}
[root]
basicConstraints = critical,CA:TRUE{path_length}
keyUsage = critical,{usage}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""
_ISSUING = """basicConstraints = critical,CA:TRUE,pathlen:0
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


def openssl(*arguments: str) -> bytes:
    """Run openssl; return what it printed."""
    done = subprocess.run([need("openssl"), *arguments], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


class OfflineRoot:
    """A root with its key.

    Args:
        directory: made for it.
        key: as `csrs.OPENSSL_KEYS` has it.
        path_length: None for no limit.
        passphrase: encrypts its key.
        days: of its validity.
    """

    def __init__(
        self,
        directory: Path,
        key: str = "p256",
        *,
        path_length: int | None = None,
        passphrase: str | None = None,
        usage: str = "keyCertSign,cRLSign",
        name: str = "Example Root",
        days: int = 3650,
    ) -> None:
        directory.mkdir(mode=0o700)
        self._directory = directory
        self.key, self.certificate = directory / "root.key", directory / "root.pem"
        limit = "" if path_length is None else f",pathlen:{path_length}"
        configuration = directory / "openssl.cnf"
        configuration.write_text(_ROOT.format(path_length=limit, usage=usage, name=name))
        command = ["req", "-x509", "-new", *OPENSSL_KEYS[key], "-config", str(configuration), "-days", str(days)]
        command += ["-nodes"] if passphrase is None else ["-passout", f"pass:{passphrase}"]
        openssl(*command, "-keyout", str(self.key), "-out", str(self.certificate))
        self.key.chmod(0o600)

    @property
    def root(self) -> x509.Certificate:
        """The root itself."""
        return x509.load_pem_x509_certificate(self.certificate.read_bytes())

    def sign(self, csr: bytes, *, extensions: str = _ISSUING, days: int = 365, with_root: bool = True) -> bytes:
        """Return the certificate for a CSR in PEM, and the root behind it."""
        request, wanted = self._directory / "issuing.csr", self._directory / "issuing.ext"
        request.write_bytes(csr)
        wanted.write_text(extensions)
        command = ["x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey", str(self.key)]
        signed = openssl(*command, "-CAcreateserial", "-extfile", str(wanted), "-days", str(days))
        return signed + (self.certificate.read_bytes() if with_root else b"")

    def install(self, state_dir: Path, key_type: str = "p256", access: Access = NO_ACCESS) -> x509.Certificate:
        """Make an issuing CA of this root in a state directory; return its certificate."""
        begin(state_dir)
        csr = ca_lifecycle.request_issuing_ca(state_dir, key_type, access, "VMI Issuing CA")
        return ca_lifecycle.install_chain(state_dir, self.sign(csr), access, now(), noting(state_dir))

    def import_into(
        self, state_dir: Path, passphrase: bytes | None = None, access: Access = NO_ACCESS
    ) -> x509.Certificate:
        """Bring root and key into a state directory."""
        begin(state_dir)
        key, chain = self.key.read_bytes(), self.certificate.read_bytes()
        return ca_lifecycle.import_ca(state_dir, key, passphrase, chain, access, now(), noting(state_dir))


def begin(state_dir: Path) -> None:
    """Make the ledger of a state directory where there is none, as the commands do."""
    make_state_dir(state_dir)
    if not (state_dir / FILE_NAME).exists():
        Ledger(state_dir, now()).close()
