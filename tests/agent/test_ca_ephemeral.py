"""`--ephemeral-ca`: a new root with each start, whose key nothing but the process's memory ever held."""

import json
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509 import ocsp
from support.agents import open_agent
from support.ca_life_parts import assert_private, audit_events, now, stored
from support.csrs import openssl_csr
from support.judges import assert_openssl_accepts, split_chain
from support.processes import IBM_ROOT, SIGN_CSR, Pair, Process, curl, port_of, post, run, start_agent, start_proxy

from vmi_agent.ca import store as ca_store
from vmi_agent.keys import CustodyError

EPHEMERAL = "--ephemeral-ca"


def ask(url: str, directory: Path) -> list[x509.Certificate]:
    """Have a certificate signed; return its chain."""
    answer = post(url + SIGN_CSR, json.dumps({"data": [openssl_csr(directory).read_text()]}))
    assert_openssl_accepts(answer.json["data"][0], directory)
    return [x509.load_pem_x509_certificate(each.encode()) for each in split_chain(answer.json["data"][0])]


def ask_ocsp(url: str, leaf: x509.Certificate, issuer: x509.Certificate) -> ocsp.OCSPResponse:
    """Ask for a leaf's status."""
    request = ocsp.OCSPRequestBuilder().add_certificate(leaf, issuer, hashes.SHA256()).build()
    command = ["curl", "-sSf", "-H", "Content-Type: application/ocsp-request", "--data-binary", "@-", url + "/pki/ocsp"]
    octets = request.public_bytes(serialization.Encoding.DER)
    return ocsp.load_der_ocsp_response(subprocess.run(command, input=octets, capture_output=True, check=True).stdout)


def root_of(url: str) -> x509.Certificate:
    """Return the root that the proxy tells."""
    return x509.load_pem_x509_certificate(curl(url + IBM_ROOT).json["Certificate"].encode())


def assert_no_key_on_disk(directory: Path) -> None:
    """Look into every file for a private key."""
    with_key = [str(each) for each in directory.rglob("*") if each.is_file() and b"PRIVATE KEY" in each.read_bytes()]
    assert with_key == []


def test_ephemeral_ca_over_two_starts_and_a_rotation(tmp_path: Path) -> None:
    """Each start has a root of its own, which the proxy learns; rotated, the CA is a lasting one."""
    state_dir = tmp_path / "agent"
    with start_agent(state_dir, 0, EPHEMERAL) as agent:
        port = port_of(agent.wait_for("ready", root_generation=1)["listen"][0])
        with start_proxy(tmp_path / "proxy", [f"tcp:127.0.0.1:{port}"]) as proxy:
            pair = Pair(agent, proxy, tmp_path, port, f"http://127.0.0.1:{port_of(proxy.wait_for('ready')['http'])}")
            proxy.wait_for("root learned", root_generation=1)
            first = ask(pair.url, tmp_path)
            assert ask_ocsp(pair.url, *first).certificate_status is ocsp.OCSPCertStatus.GOOD
            assert_no_key_on_disk(state_dir)
            assert agent.stop() == 0

            with start_agent(state_dir, port, EPHEMERAL) as again:
                again.wait_for("ready", root_generation=2)
                proxy.wait_for("root learned", root_generation=2)
                second = ask(pair.url, tmp_path)
                assert root_of(pair.url) == second[1]
                assert second[1] not in (first[1], None)
                refused = ask_ocsp(pair.url, *first)
                assert refused.response_status is ocsp.OCSPResponseStatus.UNAUTHORIZED
                assert ask_ocsp(pair.url, *second).certificate_status is ocsp.OCSPCertStatus.GOOD
                assert_no_key_on_disk(state_dir)

                rotated = run("vmi-agent", "ca", "rotate", "--state-dir", str(state_dir))
                assert (rotated.returncode, rotated.stderr) == (0, "")
                proxy.wait_for("root learned", root_generation=3)
                assert root_of(pair.url) == ask(pair.url, tmp_path)[1]
                assert again.stop() == 0

            with start_agent(state_dir, port) as lasting:
                lasting.wait_for("ready", root_generation=3)
                assert stored(state_dir, 3, ca_store.ROOT_FILE) == root_of(pair.url)
                assert not any("older generation" in line for line in lasting.lines)
                assert lasting.stop() == 0
    assert_private(state_dir)
    assert audit_events(state_dir).count("ca made, ephemeral") == 2


def test_start_without_the_ephemeral_key(tmp_path: Path) -> None:
    """Started without the option, the agent says that the key is gone, and the two ways on."""
    with start_agent(tmp_path, 0, EPHEMERAL) as agent:
        agent.wait_for("ready")
        assert agent.stop() == 0
    with start_agent(tmp_path) as agent:
        assert agent.wait() == 1

    told = "".join(agent.lines)
    assert "Start with --ephemeral-ca" in told
    assert "vmi-agent ca rotate" in told
    with pytest.raises(CustodyError, match="was ephemeral"), open_agent(tmp_path, now):
        pass


def test_ephemeral_ca_of_a_kind_of_key(tmp_path: Path) -> None:
    """--key-type goes with it."""
    listen = ["--listen", "tcp:0:interface=127.0.0.1"]
    with Process("vmi-agent", "serve", "--state-dir", str(tmp_path), *listen, EPHEMERAL, "--key-type", "p256") as agent:
        agent.wait_for("ready", root_generation=1)
        assert agent.stop() == 0

    assert stored(tmp_path, 1, ca_store.ROOT_FILE).signature_algorithm_oid._name == "ecdsa-with-SHA256"
    assert sorted(each.name for each in (tmp_path / "ca" / "1").iterdir()) == ["ephemeral", "root.pem"]


def test_ephemeral_ca_never_replaces_a_lasting_one(tmp_path: Path) -> None:
    """An option that was left in a unit file does not end a CA that is to last."""
    done = run("vmi-agent", "ca", "init", "--state-dir", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    listen = ["--listen", "tcp:0:interface=127.0.0.1"]
    with Process("vmi-agent", "serve", "--state-dir", str(tmp_path), *listen, EPHEMERAL) as agent:
        assert "would replace for good" in agent.wait_for("cannot start")["reason"]
        assert agent.wait() == 1

    assert ca_store.generations(tmp_path) == [1]
