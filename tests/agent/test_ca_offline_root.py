"""An issuing CA under a root that openssl keeps offline: its CSR, its chain, and the real agent serving with it."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from support.agents import always, open_agent, request
from support.ca_life_parts import NO_ACCESS, assert_private, audit_events, issue, now, verifies
from support.csrs import make_csr, openssl_csr, pem
from support.judges import assert_openssl_accepts, openssl, split_chain
from support.lint import findings
from support.offline_root import OfflineRoot, begin
from support.processes import SIGN_CSR, post, run, running_pair, start_agent

from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.ca import store as ca_store
from vmi_agent.cli.groups import noting
from vmi_agent.keys import CustodyError
from vmi_agent.keys.open import Access


def request_ca(state_dir: Path, key_type: str = "p256", access: Access = NO_ACCESS) -> bytes:
    """Ask for an issuing CA; return the CSR."""
    begin(state_dir)
    return ca_lifecycle.request_issuing_ca(state_dir, key_type, access, "VMI Issuing CA")


def install(state_dir: Path, chain: bytes, access: Access = NO_ACCESS) -> x509.Certificate:
    """Install what the root gave for it."""
    return ca_lifecycle.install_chain(state_dir, chain, access, now(), noting(state_dir))


def test_agent_under_an_offline_root(tmp_path: Path) -> None:
    """CSR and chain by command: an answer is leaf, issuing CA, root, in one string; and so for a second one."""
    state_dir = tmp_path / "agent"
    root = OfflineRoot(tmp_path / "root", "rsa2048")
    state = ["--state-dir", str(state_dir)]
    for generation, key_type in ((1, "p384"), (2, "ed25519")):
        asked = run("vmi-agent", "ca", "csr", *state, "--key-type", key_type)
        assert (asked.returncode, asked.stderr) == (0, "")
        assert openssl("req", "-verify", "-noout", "-subject", stdin=asked.stdout).strip().endswith("VMI Issuing CA")
        chain = tmp_path / "chain.pem"
        chain.write_bytes(root.sign(asked.stdout.encode()))
        installed = run("vmi-agent", "ca", "install-chain", *state, str(chain))
        assert (installed.returncode, installed.stderr) == (0, "")
        with running_pair(tmp_path) as pair:
            csr = openssl_csr(tmp_path).read_text()
            answer = post(pair.url + SIGN_CSR, json.dumps({"data": [csr]}))
            (text,) = answer.json["data"]
            published = subprocess.run(
                ["curl", "-sSf", f"{pair.url}/pki/{generation}.crl"], capture_output=True, check=True
            ).stdout
        certificates = [x509.load_pem_x509_certificate(each.encode()) for each in split_chain(text)]
        assert [each.issuer for each in certificates] == [each.subject for each in (*certificates[1:], root.root)]
        assert certificates[-1] == root.root
        assert_openssl_accepts(text, tmp_path)
        assert verifies(tmp_path, certificates[:2], root.root) == {"openssl": True, "gnutls": True}
        crl = x509.load_der_x509_crl(published)
        public_key = certificates[1].public_key()
        assert crl.is_signature_valid(public_key)  # type: ignore[arg-type]  # a CA's kind of key
        assert crl.issuer == certificates[1].subject
    shown = run("vmi-agent", "ca", "show", *state, "--json")
    assert json.loads(shown.stdout)["root_generation"] == 2
    assert len(json.loads(shown.stdout)["issuing"]) == 1
    assert ca_store.generations(state_dir) == [1, 2]
    assert_private(state_dir)


@pytest.mark.parametrize("key_type", ["p256", "p384", "rsa2048", "ed25519"])
def test_certificate_for_a_ca_csr_satisfies_lint(tmp_path: Path, key_type: str) -> None:
    """What openssl makes of the CSR, by the extensions that it asks for, has no fault, and neither have leaves."""
    made = OfflineRoot(tmp_path / "root").install(tmp_path / "agent", key_type)
    leaf = issue(tmp_path / "agent")[0]

    assert findings(made) == []
    assert findings(leaf) == []


@pytest.mark.parametrize("key_type", ["p256", "rsa2048", "ed25519", "mldsa65"])
def test_ca_csr_asks_for_what_a_ca_needs(tmp_path: Path, key_type: str) -> None:
    """Path length 0, keyCertSign and cRLSign, both critical, in a CSR whose signature verifies."""
    csr = x509.load_pem_x509_csr(request_ca(tmp_path, key_type))

    assert csr.is_signature_valid
    assert csr.extensions.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(True, 0)
    usage = csr.extensions.get_extension_for_class(x509.KeyUsage)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.crl_sign) == (True, True, True)


def test_ca_csr_again(tmp_path: Path) -> None:
    """Asked again before a chain came, it is the same key; afterwards another one."""
    root = OfflineRoot(tmp_path / "root")
    first, again = (x509.load_pem_x509_csr(request_ca(tmp_path / "agent")) for _ in range(2))
    install(tmp_path / "agent", root.sign(request_ca(tmp_path / "agent")))
    next_one = x509.load_pem_x509_csr(request_ca(tmp_path / "agent"))

    assert first.public_key() == again.public_key()
    assert first.public_key() != next_one.public_key()


def test_ocsp_of_an_issuing_ca(tmp_path: Path) -> None:
    """Requests name the issuing CA, not the root above it; openssl takes the answer."""
    root = OfflineRoot(tmp_path / "root")
    install(tmp_path / "agent", root.sign(request_ca(tmp_path / "agent")))
    with running_pair(tmp_path) as pair:
        answer = post(pair.url + SIGN_CSR, json.dumps({"CsrString": pem(make_csr())}))
        leaf, issuing, above = split_chain(answer.json["data"][0])
        for name, text in (("leaf", leaf), ("issuing", issuing), ("above", above)):
            (tmp_path / name).write_text(text)
        asked = ["ocsp", "-issuer", str(tmp_path / "issuing"), "-cert", str(tmp_path / "leaf")]
        told = openssl(*asked, "-url", f"{pair.url}/pki/ocsp", "-CAfile", str(tmp_path / "above"))

    assert f"{tmp_path / 'leaf'}: good" in told


def test_ca_init_while_an_issuing_ca_is_asked_for(tmp_path: Path) -> None:
    """Nor does `ca init` make one."""
    request_ca(tmp_path)
    done = run("vmi-agent", "ca", "init", "--state-dir", str(tmp_path))

    assert done.returncode == 1
    assert "vmi-agent ca install-chain" in done.stderr


@pytest.mark.parametrize(("name", "status"), [("", 2), ("a", 0), ("a" * 64, 0), ("a" * 65, 2), ("a\nb", 2)])
def test_ca_csr_for_a_name(tmp_path: Path, name: str, status: int) -> None:
    """A common name has 1 to 64 characters that a person can see (RFC 5280, appendix A.1)."""
    done = run("vmi-agent", "ca", "csr", "--state-dir", str(tmp_path), "--key-type", "p256", "--common-name", name)

    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_agent_while_an_issuing_ca_is_asked_for(tmp_path: Path) -> None:
    """Between `ca csr` and `ca install-chain` the agent makes no CA of its own: it says what is missing."""
    request_ca(tmp_path)
    with start_agent(tmp_path) as agent:
        assert "vmi-agent ca install-chain" in agent.wait_for("cannot start")["reason"]
        assert agent.wait() == 1

    assert ca_store.generations(tmp_path) == []


def test_ca_csr_on_a_full_disk(tmp_path: Path) -> None:
    """A key that could not be written is not there by half: the next time it is made anew."""
    begin(tmp_path)
    script = """if True:
        import resource, sys
        from pathlib import Path
        from vmi_agent.ca import lifecycle as ca_life
        from vmi_agent.keys.open import Access
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        ca_life.request_issuing_ca(Path(sys.argv[1]), "p256", Access(), "VMI Issuing CA")
    """
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr

    assert list((tmp_path / "ca" / "requested").iterdir()) == []
    assert request_ca(tmp_path).startswith(b"-----BEGIN CERTIFICATE REQUEST-----")


def test_install_chain_without_a_request(tmp_path: Path) -> None:
    """Nothing was asked for, or it is installed already: the way there is told."""
    root = OfflineRoot(tmp_path / "root")
    begin(tmp_path / "agent")
    with pytest.raises(CustodyError, match="Begin with: `vmi-agent ca csr --state-dir"):
        install(tmp_path / "agent", root.certificate.read_bytes())
    chain = root.sign(request_ca(tmp_path / "agent"))
    install(tmp_path / "agent", chain)
    with pytest.raises(CustodyError, match="Begin with: `vmi-agent ca csr --state-dir"):
        install(tmp_path / "agent", chain)


def test_install_chain_that_is_refused(tmp_path: Path) -> None:
    """After a chain that cannot serve, the right one can be installed."""
    root = OfflineRoot(tmp_path / "root")
    csr = request_ca(tmp_path / "agent")
    with pytest.raises(CustodyError, match="is not issued by"):
        install(tmp_path / "agent", root.sign(csr, with_root=False))
    assert ca_store.generations(tmp_path / "agent") == []
    install(tmp_path / "agent", root.sign(csr))

    assert len(issue(tmp_path / "agent")) == 3


def test_install_chain_twice_at_once(tmp_path: Path) -> None:
    """One of two installs the chain; the other is told that there is nothing to install."""
    chain = OfflineRoot(tmp_path / "root").sign(request_ca(tmp_path / "agent"))

    def install_with_the_other(_: int) -> str:
        try:
            return install(tmp_path / "agent", chain).subject.rfc4514_string()
        except CustodyError as error:
            return str(error)

    with ThreadPoolExecutor(2) as pool:
        outcomes = sorted(pool.map(install_with_the_other, range(2)))

    assert outcomes[0].startswith("CN=VMI Issuing CA")
    assert str(outcomes[1]).startswith("no issuing CA was asked for. Begin with: `vmi-agent ca csr --state-dir ")
    assert ca_store.generations(tmp_path / "agent") == [1]


def test_install_chain_after_one_that_was_killed(tmp_path: Path) -> None:
    """Nothing of a chain whose installation was killed stays: here a self-signed one, without any CA in between."""
    state_dir = tmp_path / "agent"
    chain = tmp_path / "chain.pem"
    chain.write_bytes(OfflineRoot(tmp_path / "root").sign(request_ca(state_dir)))
    script = """if True:
        import os, signal, sys
        from datetime import UTC, datetime
        from pathlib import Path
        from vmi_agent.ca import lifecycle as ca_life
        from vmi_agent.keys.open import Access
        die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        chain = Path(sys.argv[2]).read_bytes()
        ca_life.install_chain(Path(sys.argv[1]), chain, Access(), datetime.now(UTC), die)
    """
    done = subprocess.run([sys.executable, "-c", script, str(state_dir), str(chain)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert ca_store.generations(state_dir) == []

    requested = state_dir / "ca" / "requested"
    command = ["openssl", "req", "-x509", "-new", "-key", str(requested / "key.pem"), "-subj", "/CN=itself"]
    usage = "keyUsage=critical,keyCertSign,cRLSign"
    itself = subprocess.run([*command, "-days", "30", "-addext", usage], capture_output=True, check=True).stdout
    install(state_dir, itself)

    assert len(issue(state_dir)) == 2
    assert audit_events(state_dir)[0] == "ca installed under an offline root"


def test_install_chain_with_an_encrypted_key(tmp_path: Path) -> None:
    """The passphrase opens the requested key; without it nothing is installed."""
    access = Access(b"a passphrase")
    chain = OfflineRoot(tmp_path / "root").sign(request_ca(tmp_path / "agent", "p256", access))
    with pytest.raises(CustodyError, match="is encrypted"):
        install(tmp_path / "agent", chain)
    install(tmp_path / "agent", chain, access)

    assert len(issue(tmp_path / "agent", access)) == 3


def test_issuing_ca_after_a_root_of_its_own(tmp_path: Path) -> None:
    """An agent that had its own root goes under an offline one while it runs; both generations' CRLs are made."""
    begin(tmp_path / "agent")
    with open_agent(tmp_path / "agent", now) as agent:
        agent.issuing.issue(request(make_csr()), always)
        OfflineRoot(tmp_path / "root").install(tmp_path / "agent")
        assert agent.generations.look_for_newer()
        agent.publishing.refresh()

        assert len(agent.issuing.issue(request(make_csr()), always).chain) == 3
        assert agent.publishing.crl(1) is not None
        assert agent.publishing.crl(2) is not None
