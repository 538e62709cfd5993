"""Rotation under load, with real processes: no request fails, and every answer's chain ends in its own root."""

import http.client
import json
import subprocess
import threading
from collections import Counter
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID
from support.ca_life_parts import audit_events, stored
from support.csrs import make_csr, pem
from support.judges import assert_openssl_accepts, openssl, split_chain
from support.processes import IBM_ROOT, SIGN_CSR, curl, port_of, run, running_pair

from vmi_agent.ca import store as ca_store

STREAMS = 6
KEY_TYPES = ("p384", "rsa2048", "ed25519")
ANSWERS_BETWEEN = 5
PATIENCE_S = 60


class Streams:
    """Streams of requests, each on one connection, one after the other, until `stop`.

    Attributes:
        answers: status and body of each answer, with the number of its request.
    """

    def __init__(self, port: int) -> None:
        self.answers: list[tuple[int, int, bytes]] = []
        self._port = port
        self._changed = threading.Condition()
        self._stopped = False
        self._generations: list[Counter[str]] = [Counter() for _ in range(STREAMS)]
        self._threads = [threading.Thread(target=self._run, args=(each,)) for each in range(STREAMS)]
        for thread in self._threads:
            thread.start()

    def _run(self, stream: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        number = stream
        while not self._stopped:
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"hmc{number}")])
            body = json.dumps({"data": [pem(make_csr(subject=name))]})
            connection.request("POST", SIGN_CSR, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
            with self._changed:
                self.answers.append((answer.status, number, content))
                self._generations[stream][issuer_of(content)] += 1
                self._changed.notify_all()
            number += STREAMS
        connection.close()

    def wait_for(self, issuer: str, count: int) -> None:
        """Wait until each stream has so many answers of an issuer."""
        with self._changed:
            enough = lambda: all(each[issuer] >= count for each in self._generations)  # noqa: E731  # used once
            assert self._changed.wait_for(enough, PATIENCE_S), self._generations

    def stop(self) -> None:
        """Let each stream finish its request."""
        self._stopped = True
        for thread in self._threads:
            thread.join(PATIENCE_S)


def issuer_of(body: bytes) -> str:
    """Return the name of whoever issued the leaf in an answer; of a refusal, the refusal."""
    answer = json.loads(body)
    if answer["status"] != "ok":
        return str(answer)
    return x509.load_pem_x509_certificate(answer["data"][0].encode()).issuer.rfc4514_string()


def test_rotation_under_load(tmp_path: Path) -> None:
    """Two rotations, to other kinds of keys: all answered, each chain whole, each root's CRL good, the root told."""
    state_dir = tmp_path / "agent"
    made = run("vmi-agent", "ca", "init", "--state-dir", str(state_dir), "--key-type", KEY_TYPES[0])
    assert (made.returncode, made.stderr) == (0, "")
    roots = [stored(state_dir, 1, ca_store.ROOT_FILE)]
    told = []
    with running_pair(tmp_path) as pair:
        streams = Streams(port_of(pair.url))
        try:
            streams.wait_for(roots[0].subject.rfc4514_string(), ANSWERS_BETWEEN)
            for generation, key_type in enumerate(KEY_TYPES[1:], start=2):
                done = run("vmi-agent", "ca", "rotate", "--state-dir", str(state_dir), "--key-type", key_type)
                assert (done.returncode, done.stderr) == (0, "")
                pair.proxy.wait_for("root learned", root_generation=generation)
                told.append(curl(pair.url + IBM_ROOT).json["Certificate"])
                roots.append(stored(state_dir, generation, ca_store.ROOT_FILE))
                streams.wait_for(roots[-1].subject.rfc4514_string(), ANSWERS_BETWEEN)
        finally:
            streams.stop()
        crls = [
            subprocess.run(["curl", "-sSf", f"{pair.url}/pki/{n}.crl"], capture_output=True, check=True).stdout
            for n in (1, 2, 3)
        ]
        assert pair.agent.stop() == 0

    assert Counter(status for status, _, _ in streams.answers) == {200: len(streams.answers)}
    for _, number, content in streams.answers:
        texts = split_chain(json.loads(content)["data"][0])
        leaf, root = (x509.load_pem_x509_certificate(each.encode()) for each in texts)
        leaf.verify_directly_issued_by(root)
        assert root in roots
        assert leaf.subject.rfc4514_string() == f"CN=hmc{number}"
    for _, _, content in streams.answers[:: max(1, len(streams.answers) // 20)]:
        assert_openssl_accepts(json.loads(content)["data"][0], tmp_path)
    assert [x509.load_pem_x509_certificate(each.encode()) for each in told] == roots[1:]
    for generation, crl in enumerate(crls, start=1):
        path, root_path = tmp_path / "crl.der", state_dir / "ca" / str(generation) / "root.pem"
        path.write_bytes(crl)
        openssl("crl", "-inform", "DER", "-in", str(path), "-CAfile", str(root_path), "-noout")
        public_key = roots[generation - 1].public_key()
        assert x509.load_der_x509_crl(crl).is_signature_valid(public_key)  # type: ignore[arg-type]  # a CA's kind of key
    events = Counter(audit_events(state_dir))
    assert (events["ca rotated"], events["signed"]) == (2, len(streams.answers))
