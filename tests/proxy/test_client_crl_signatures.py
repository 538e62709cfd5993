"""Signatures of CRLs: of every kind of key that a CA of ours or of openssl's may have, and those that are none."""

from pathlib import Path

import pytest
from support.agents import Time, open_agent
from support.client_cas import ClientCa
from support.judges import openssl
from support.revoking import crl_der, issue, revoke

from bmc_proxy.auth.client_crls import CrlRefused, authorities_in, load_authorities, read_crl
from runtime.asn1 import der
from vmi_agent.keys import KEY_TYPES


@pytest.mark.parametrize("key_type", sorted(KEY_TYPES))
def test_crl_of_an_agent_with_each_kind_of_key(tmp_path: Path, key_type: str) -> None:
    """The CRL and the CA certificates that an agent publishes belong together, whatever its CA's key."""
    time = Time()
    with open_agent(tmp_path, time, key_type=key_type) as agent:
        leaf = issue(agent)
        revoke(agent, leaf, time)
        agent.publishing.refresh()
        certificates = agent.publishing.certificates(1)
        assert certificates is not None
        published = authorities_in(certificates.der)
        issuer, crl = read_crl(crl_der(agent), published.issuers)

    assert (crl.serials, published.roots) == (frozenset({leaf.serial_number}), ())
    assert issuer == published.issuers[0].id
    assert crl.number == agent.publishing.newest_number


@pytest.mark.parametrize("sign_with", [(), ("-sigopt", "rsa_padding_mode:pss")], ids=["PKCS #1", "PSS"])
def test_crl_of_an_rsa_key(tmp_path: Path, sign_with: tuple[str, ...]) -> None:
    """openssl's CRLs in both paddings are verified."""
    ca = ClientCa(tmp_path / "ca", key="rsa2048")
    path = ca.crl(tmp_path / "crl.pem", options=sign_with)

    _, crl = read_crl(to_der(path), load_authorities(ca.certificate))
    assert crl.serials == frozenset()


@pytest.mark.parametrize("at", ["signature", "key identifier", "outer algorithm"])
def test_crl_that_was_changed(tmp_path: Path, at: str) -> None:
    """One changed octet of what is signed, of the signature, or of the algorithm's name outside, refuses it."""
    ca = ClientCa(tmp_path / "ca")
    tbs, algorithm, signature = der.children(to_der(ca.crl(tmp_path / "crl.pem")))
    match at:
        case "signature":
            signature = signature[:-1] + bytes((signature[-1] ^ 1,))
        case "key identifier":
            tbs = tbs[:-10] + bytes((tbs[-10] ^ 1,)) + tbs[-9:]
        case "outer algorithm":
            algorithm = algorithm.replace(bytes.fromhex("2a8648ce3d040302"), bytes.fromhex("2a8648ce3d040303"))
    changed = der.wrap(der.SEQUENCE, tbs, algorithm, signature)

    with pytest.raises(CrlRefused):
        read_crl(changed, load_authorities(ca.certificate))


def to_der(path: Path) -> bytes:
    """Return a CRL of openssl's in DER."""
    der_path = path.with_suffix(".der")
    openssl("crl", "-in", str(path), "-outform", "DER", "-out", str(der_path))
    return der_path.read_bytes()
