"""Agent and proxy killed at random under load: what any client received is kept, once, and given again.

`make test` kills 20 times. The nightly form: VMI_CRASH_KILLS=200, with `pytest --timeout 3600`. A run prints its seed;
VMI_CRASH_SEED=… chooses the same moments and questions again.
"""

import hashlib
import http.client
import json
import os
import random
import signal
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support.crashes import kept, port_of_agent, seed
from support.faults import ForkedProcess, run_forked
from support.processes import SIGN_CSR, Process, port_of

CLIENTS = 8
KILLS = int(os.environ.get("VMI_CRASH_KILLS", "20"))
# Every so many kills it is the proxy.
PROXY_EVERY = 5
VERIFY_EVERY = 10
ANSWERS_BETWEEN = (1, 30)
RETRY_S = 0.2
# How far back a client asks again, and how many questions are asked again at the end: well within the ten minutes in
# which the same question gets the same certificate without a key.
BACK, AT_THE_END = 20, 200


@dataclass(frozen=True, slots=True)
class Question:
    """What a client posts: a body, and an Idempotency-Key or none."""

    body: str
    csr_sha256: bytes
    key: str | None


@dataclass
class Clients:
    """What the clients share: where the proxy is, and what each question was answered with.

    Attributes:
        answers: the leaves that came for each question, in DER.
        others: the codes of the answers that were none.
        is_over: no new questions; what was asked is asked on until it is answered.
        given_up: nothing any more.
    """

    port: int
    answers: dict[Question, set[bytes]] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)
    count: int = 0
    is_over: bool = False
    given_up: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def ask(self, question: Question) -> bool:
        """Post a question; return whether it was answered with a certificate, which is kept."""
        headers = {"Content-Type": "application/json"}
        if question.key is not None:
            headers["Idempotency-Key"] = question.key
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", SIGN_CSR, question.body, headers)
            answer = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException):
            answer = {"status": "cut off", "data": {"code": "cut off"}}
        finally:
            connection.close()
        is_good = answer["status"] == "ok"
        with self.changed:
            self.count += is_good
            if is_good:
                leaf = x509.load_pem_x509_certificates(answer["data"][0].encode())[0]
                self.answers.setdefault(question, set()).add(leaf.public_bytes(serialization.Encoding.DER))
            else:
                self.others[answer["data"]["code"]] += 1
            self.changed.notify_all()
        return bool(is_good)

    def wait_for_answers(self, count: int) -> None:
        """Wait until so many more came."""
        with self.changed:
            target = self.count + count
            assert self.changed.wait_for(lambda: self.count >= target, 60), f"no answers: {self.others}"


def question(name: str, key: ec.EllipticCurvePrivateKey, chance: random.Random) -> Question:
    """Return a new question, one in three of them with an Idempotency-Key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    body = json.dumps({"CsrString": csr.public_bytes(serialization.Encoding.PEM).decode()})
    digest = hashlib.sha256(csr.public_bytes(serialization.Encoding.DER)).digest()
    return Question(body, digest, name if chance.random() < 1 / 3 else None)


def ask_on(clients: Clients, number: int) -> None:
    """Ask new questions, and sometimes old ones, each until it is answered."""
    chance = random.Random(seed() + number)  # noqa: S311  # not a secret
    key = ec.generate_private_key(ec.SECP256R1())
    mine: list[Question] = []
    while not clients.is_over:
        if not mine or chance.random() < 2 / 3:  # else an old one
            mine.append(question(f"hmc{number}-{len(mine)}", key, chance))
            asked = mine[-1]
        else:
            asked = chance.choice(mine[-BACK:])
        while not clients.ask(asked) and not clients.given_up.wait(RETRY_S):
            pass


def start_agent(state: Path, port: int) -> Process:
    """Start an agent on the same port as before."""
    listen = ("--listen", f"tcp:{port}:interface=127.0.0.1", "--key-type", "p256")
    return ForkedProcess("vmi-agent", "serve", "--state-dir", str(state), *listen)


def start_proxy(state: Path, agent_port: int, port: int) -> Process:
    """Start a proxy on the same port as before."""
    http_at = ("--http", f"tcp:{port}:interface=127.0.0.1", "--anonymous-loopback", "--requests-per-s", "1000")
    return ForkedProcess(
        "bmc-proxy", "serve", "--state-dir", str(state), "--agent", f"tcp:127.0.0.1:{agent_port}", *http_at
    )


def end(process: Process, number: signal.Signals) -> None:
    """End a process, which has met no bug up to here."""
    with process:
        assert process.stop(number) == (0 if number is signal.SIGTERM else -number)
    assert "Traceback" not in "".join(process.lines)


def test_processes_are_killed_under_load(tmp_path: Path) -> None:
    """No certificate in a client's hands that the ledger lacks, no serial twice, one for each question, clean audit."""
    chance = random.Random(seed())  # noqa: S311  # not a secret
    print(f"VMI_CRASH_SEED={seed()} VMI_CRASH_KILLS={KILLS}")
    agent_state, proxy_state = tmp_path / "agent", tmp_path / "proxy"
    agent = start_agent(agent_state, 0)
    proxy: Process | None = None
    threads: list[threading.Thread] = []
    clients = Clients(0)
    try:
        agent_port = port_of_agent(agent)
        proxy = start_proxy(proxy_state, agent_port, 0)
        clients.port = port_of(proxy.wait_for("ready")["http"])
        threads = [threading.Thread(target=ask_on, args=(clients, n)) for n in range(CLIENTS)]
        for each in threads:
            each.start()
        for kill in range(1, KILLS + 1):
            clients.wait_for_answers(chance.randint(*ANSWERS_BETWEEN))
            if kill % PROXY_EVERY == 0:
                end(proxy, signal.SIGKILL)
                proxy = start_proxy(proxy_state, agent_port, clients.port)
            else:
                end(agent, signal.SIGKILL)
                if kill % VERIFY_EVERY == 1:
                    assert_all_kept(agent_state, clients)
                agent = start_agent(agent_state, agent_port)
        clients.wait_for_answers(CLIENTS)
        clients.is_over = True
        for each in threads:
            each.join()
        assert_all_kept(agent_state, clients)
        assert_one_for_each(agent_state, clients)
        end(agent, signal.SIGTERM)
        end(proxy, signal.SIGTERM)
    finally:
        clients.is_over = True
        clients.given_up.set()
        for process in (agent, proxy):
            if process is not None:
                with process:
                    process.send_signal(signal.SIGKILL)
        for each in threads:
            each.join()
    verified = run_forked("vmi-agent", "audit", "verify", "--state-dir", str(agent_state))
    assert (verified.returncode, verified.stderr) == (0, ""), verified
    print(
        f"{len(clients.answers)} questions, {clients.count} answers, others {dict(clients.others)}; {verified.stdout}"
    )


def assert_all_kept(state: Path, clients: Clients) -> None:
    """What clients received up to now is in the ledger, octet for octet; the audit is in order, no serial is twice."""
    with clients.changed:
        received = set().union(*clients.answers.values())
    assert received <= set(kept(state).certificates)


def assert_one_for_each(state: Path, clients: Clients) -> None:
    """Each question got one certificate, however often it was asked, and gets it now; there is no other one."""
    for asked in list(clients.answers)[-AT_THE_END:]:
        assert clients.ask(asked)
    assert {len(leaves) for leaves in clients.answers.values()} == {1}
    assert Counter(kept(state).certificates) == Counter(leaf for leaves in clients.answers.values() for leaf in leaves)
