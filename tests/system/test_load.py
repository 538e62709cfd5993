"""Two hundred HMCs at once, and an agent that is killed under them: real processes, real curls."""

import hashlib
import json
import signal
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support.judges import assert_openssl_accepts, split_chain
from support.needs import need
from support.processes import SIGN_CSR, Pair, port_of, post, run, running_pair, start_agent

HMCS = 200


@dataclass(frozen=True)
class Hmc:
    """One console: its key's public half, and its CSR."""

    csr: x509.CertificateSigningRequest
    body: str

    @property
    def csr_sha256(self) -> str:
        """The CSR's hash, as the ledger has it."""
        return hashlib.sha256(self.csr.public_bytes(serialization.Encoding.DER)).hexdigest()


def make_hmcs() -> list[Hmc]:
    """Return consoles with a key and a name each."""
    hmcs = []
    for number in range(HMCS):
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"hmc{number}")])
        key = ec.generate_private_key(ec.SECP256R1())
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        body = json.dumps({"data": [csr.public_bytes(serialization.Encoding.PEM).decode()]})
        hmcs.append(Hmc(csr, body))
    return hmcs


def start_curl(url: str, body: Path) -> subprocess.Popen[bytes]:
    """Start a curl that posts a file."""
    command = [need("curl"), "-s", "-m", "60", "-H", "Content-Type: application/json", "--data-binary", f"@{body}"]
    return subprocess.Popen([*command, url + SIGN_CSR], stdout=subprocess.PIPE)


def start_curls(url: str, hmcs: list[Hmc], directory: Path) -> list[subprocess.Popen[bytes]]:
    """Start one curl for each console, all at once."""
    for number, hmc in enumerate(hmcs):
        (directory / f"{number}.json").write_text(hmc.body)
    return [start_curl(url, directory / f"{number}.json") for number in range(len(hmcs))]


def answers_of(curls: list[subprocess.Popen[bytes]]) -> list[Any]:
    """Wait for the curls; return what each printed, as JSON."""
    return [json.loads(each.communicate(timeout=90)[0]) for each in curls]


def leaf_of(answer: Any) -> x509.Certificate:
    """Return the leaf of a good answer."""
    return x509.load_pem_x509_certificate(split_chain(answer["data"][0])[0].encode())


def listed(pair: Pair) -> list[dict[str, Any]]:
    """Return what `certs list` says was issued."""
    done = run("vmi-agent", "certs", "list", "--state-dir", str(pair.agent_state), "--json")
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def test_two_hundred_hmcs_at_once(tmp_path: Path) -> None:
    """200 concurrent curls with 200 CSRs: each gets the certificate for its own key, and the ledger has them all."""
    hmcs = make_hmcs()
    with running_pair(tmp_path) as pair:
        answers = answers_of(start_curls(pair.url, hmcs, tmp_path))
        rows = listed(pair)

    for hmc, answer in zip(hmcs, answers, strict=True):
        assert answer["status"] == "ok", answer
        leaf = leaf_of(answer)
        assert leaf.public_key() == hmc.csr.public_key()
        assert leaf.subject == hmc.csr.subject
    assert_openssl_accepts(answers[-1]["data"][0], tmp_path)
    assert {row["serial"] for row in rows} == {f"{leaf_of(answer).serial_number:034x}" for answer in answers}
    assert len(rows) == HMCS


@pytest.mark.parametrize("killed_after", [1, 40])
def test_agent_is_killed_under_two_hundred_hmcs(tmp_path: Path, killed_after: int) -> None:
    """SIGKILL in the middle: what any curl received is in the ledger, and a retry of the rest makes one for each."""
    hmcs = make_hmcs()
    with running_pair(tmp_path) as pair:
        curls = start_curls(pair.url, hmcs, tmp_path)
        for _ in range(killed_after):
            pair.agent.wait_for("signed")
        pair.agent.stop(signal.SIGKILL)
        answers = answers_of(curls)
        received = {n: answer for n, answer in enumerate(answers) if answer["status"] == "ok"}
        failed = {n: answer for n, answer in enumerate(answers) if answer["status"] == "error"}
        assert {answer["data"]["code"] for answer in failed.values()} == {"agent.unavailable"}

        with start_agent(pair.agent_state, pair.agent_port) as again:
            assert port_of(again.wait_for("ready")["listen"][0]) == pair.agent_port
            in_ledger = {row["serial"] for row in listed(pair)}
            assert {f"{leaf_of(answer).serial_number:034x}" for answer in received.values()} <= in_ledger
            pair.proxy.wait_for("agent connected")
            retried = {n: post(pair.url + SIGN_CSR, hmcs[n].body).json for n in failed}
            again_received = {n: post(pair.url + SIGN_CSR, hmcs[n].body).json for n in list(received)[:10]}
            rows = listed(pair)

    assert {answer["status"] for answer in retried.values()} == {"ok"}
    assert again_received == {n: received[n] for n in again_received}
    serials = Counter(row["csr_sha256"] for row in rows)
    assert serials == Counter(hmc.csr_sha256 for hmc in hmcs)
    for number, answer in (received | retried).items():
        assert leaf_of(answer).public_key() == hmcs[number].csr.public_key()
