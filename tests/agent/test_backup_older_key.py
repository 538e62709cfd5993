"""The key of an earlier generation, stolen before the CA was rotated, signs no backup that the new root vouches for."""

import base64
import json
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from support.agents import create_ca
from support.backups import FORGETTING, make_backup, members, write_tar
from support.ca_life_parts import NO_ACCESS, now, rotate, stored
from support.ca_life_parts import pem as pem_of

from runtime.errors import StartError
from vmi_agent.backup import restore as restoring
from vmi_agent.backup.backup import back_up
from vmi_agent.backup.restore import Check
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.cli.groups import noting


def restore(source: Path, target: Path, trusted: x509.Certificate) -> None:
    """Restore a backup where it is signed under this certificate."""
    restoring.restore(source, target, now(), Check(None, [trusted]), FORGETTING)


def key_of(state_dir: Path, generation: int) -> ec.EllipticCurvePrivateKey:
    """Return a generation's key."""
    pem = (state_dir / "ca" / str(generation) / "key.pem").read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def resign(
    backup: Path, certificates: list[x509.Certificate], key: ec.EllipticCurvePrivateKey, **changed: object
) -> Path:
    """Return the backup with a manifest that this key signed, showing these certificates."""
    contents = members(backup)
    kind, content, _, _ = contents["manifest"].split(b"\n")
    fields = json.loads(content) | changed | {"certificates": [pem_of(each) for each in certificates]}
    signed = kind + b"\n" + json.dumps(fields).encode() + b"\n"
    contents["manifest"] = signed + base64.b64encode(key.sign(signed, ec.ECDSA(hashes.SHA256()))) + b"\n"
    return write_tar(backup.with_suffix(".forged"), contents)


def redated(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, issuer: x509.Name) -> x509.Certificate:
    """Return a certificate for the same CA that this key signed, dated long before."""
    builder = x509.CertificateBuilder(issuer, certificate.subject, certificate.public_key(), 1)
    builder = builder.not_valid_before(certificate.not_valid_before_utc - timedelta(days=4000))
    builder = builder.not_valid_after(certificate.not_valid_after_utc)
    for each in certificate.extensions:
        builder = builder.add_extension(each.value, each.critical)
    return builder.sign(key, hashes.SHA256())


@pytest.mark.parametrize("whole", [False, True], ids=["of generation 1", "of both generations"])
def test_stolen_key_of_an_earlier_generation(tmp_path: Path, whole: bool) -> None:
    """The certificate that the new root signed for the old one leads from the new root to no backup."""
    state_dir = tmp_path / "agent"
    create_ca(state_dir, "p256", now() - timedelta(hours=1))
    backup = tmp_path / "backup.tar"
    if not whole:
        back_up(state_dir, backup, now())
    rotate(state_dir)
    if whole:
        back_up(state_dir, backup, now())
    stolen = key_of(state_dir, 1)
    roots = [stored(state_dir, generation, "root.pem") for generation in (1, 2)]
    crosses = [stored(state_dir, 2, name) for name in ("old-with-new.pem", "new-with-old.pem")]
    early = redated(roots[1], stolen, roots[0].subject)
    for certificates in ([roots[0], *crosses], [crosses[0], roots[0]], [roots[0], *crosses, roots[1], early]):
        forged = resign(backup, certificates, stolen)
        with pytest.raises(StartError, match=r"no certificate leads.*give the older root.*--sha256"):
            restore(forged, tmp_path / "restored", roots[1])
        forged.unlink()
    assert not (tmp_path / "restored").exists()


def test_signer_is_the_newest_generation_of_the_backup(tmp_path: Path) -> None:
    """A manifest that an earlier generation signed, or that names another root, is refused under each trusted root."""
    backup, state_dir = make_backup(tmp_path), tmp_path / "agent"
    roots = [stored(state_dir, generation, "root.pem") for generation in (1, 2)]
    older = resign(backup, [roots[0]], key_of(state_dir, 1))
    with pytest.raises(StartError, match="its newest generation did not sign it"):
        restore(older, tmp_path / "restored", roots[0])
    older.unlink()
    other = resign(backup, [roots[1]], key_of(state_dir, 2), root_sha256=roots[0].fingerprint(hashes.SHA256()).hex())
    with pytest.raises(StartError, match="names another root"):
        restore(other, tmp_path / "restored", roots[1])


def test_way_over_several_generations(tmp_path: Path) -> None:
    """Each older root vouches for a backup of the third generation, over the certificates that lead to it."""
    state_dir = tmp_path / "agent"
    create_ca(state_dir, "p256", now() - timedelta(hours=1))
    ca_lifecycle.rotate(state_dir, None, NO_ACCESS, now() - timedelta(minutes=30), noting(state_dir))
    rotate(state_dir)
    back_up(state_dir, tmp_path / "backup.tar", now())
    for generation in (1, 2, 3):
        restore(tmp_path / "backup.tar", tmp_path / f"by-{generation}", stored(state_dir, generation, "root.pem"))
