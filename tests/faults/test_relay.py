"""Both processes with a relay between them that delays, stalls, cuts and forges: nothing lost, nobody stuck.

`VMI_RELAY_SEEDS=200` tries that many plans of faults for each kind of channel, instead of one; `VMI_RELAY_SEED`
begins with another one than 1, which is how a seed that found something is tried again.
"""

import http.client
import json
import os
import random
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from support.judges import split_chain
from support.process_figures import descriptors, memory_octets, wait_until_descriptors
from support.processes import SIGN_CSR, Process, give_credentials, port_of, start_proxy
from support.relay import Relay, relay_to
from support.relay_plan import FAITHFUL, FORGING, Kind, plan_of

from runtime.asn1.der import csr_subject_and_key, leaf_subject_and_key
from runtime.clock import utc_now
from vmi_agent.ca import authority
from vmi_agent.certificate import assemble
from vmi_agent.ledger.audit.verify import verify
from vmi_agent.ledger.queries import Filter, list_certificates
from vmi_agent.ledger.schema import reading

SEEDS = int(os.environ.get("VMI_RELAY_SEEDS", "1"))
FIRST_SEED = int(os.environ.get("VMI_RELAY_SEED", "1"))
CLIENTS = 8
WARM_UP = 5
DEADLINE_S = 1
# A promise is no measurement: a machine that is busy otherwise may take this longer to write an answer and to read it.
GRACE_S = 10
# However much of a plan has befallen by then.
STORM_S = 20
# A frame that is not finished (10 s) or a silence (15 s and 5 s) may have to be noticed, and a pause between attempts
# to connect waited for (3 s, and its jitter).
RECOVERY_S = 20 + 5 + DEADLINE_S + GRACE_S
MEMORY_OCTETS = 12 << 20


@dataclass(frozen=True)
class Asked:
    """A CSR, and the answer to it."""

    csr: x509.CertificateSigningRequest
    status: int
    code: str
    request_id: str
    chain: str = ""

    @property
    def der(self) -> bytes:
        """The CSR in DER."""
        return self.csr.public_bytes(serialization.Encoding.DER)

    def certificates(self) -> list[x509.Certificate]:
        """Return the chain, leaf first."""
        return [x509.load_pem_x509_certificate(each.encode()) for each in split_chain(self.chain)]


@dataclass
class Ends:
    """Both processes, what lies between them, and what was asked so far."""

    agent: Process
    proxy: Process
    relay: Relay
    agent_state: Path
    http_port: int
    asked: list[Asked] = field(default_factory=list)

    @property
    def roots(self) -> list[x509.Certificate]:
        """The CA's certificates, which are one."""
        return list(authority.certificates_of(self.agent_state, 1))

    @property
    def processes(self) -> tuple[Process, Process]:
        """Both."""
        return self.agent, self.proxy


@contextmanager
def ends(directory: Path, *, with_tls: bool = False) -> Iterator[Ends]:
    """Run both with a relay between them until the end of the `with`; they are connected when this yields."""
    scheme = "tcp"
    if with_tls:
        give_credentials(directory)
        scheme = "tls"
    state = directory / "agent"
    listen = f"{scheme}:0:interface=127.0.0.1"
    command = ["vmi-agent", "serve", "--state-dir", str(state), "--listen", listen, "--key-type", "p256"]
    options = ["--deadline-s", str(DEADLINE_S), "--requests-per-s", "10000"]
    with (
        Process(*command) as agent,
        relay_to(port_of(agent.wait_for("ready")["listen"][0])) as relay,
        start_proxy(directory / "proxy", [f"{scheme}:127.0.0.1:{relay.port}"], *options) as proxy,
    ):
        http_port = port_of(proxy.wait_for("ready")["http"])
        proxy.wait_for("root learned")
        yield Ends(agent, proxy, relay, state, http_port)


class Client:
    """An HMC on a connection of its own, which it keeps."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S + GRACE_S)

    def ask(self, csr: x509.CertificateSigningRequest) -> Asked:
        """Ask for a certificate; the answer comes within the deadline."""
        body = json.dumps({"data": [csr.public_bytes(serialization.Encoding.PEM).decode()]})
        begun = time.monotonic()
        self._connection.request("POST", SIGN_CSR, body, {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        told = json.loads(answer.read())
        assert time.monotonic() - begun < DEADLINE_S + GRACE_S, "answered after its deadline"
        request_id = answer.headers["X-Request-Id"]
        if answer.status != 200:
            return Asked(csr, answer.status, told["data"]["code"], request_id)
        return Asked(csr, 200, "", request_id, told["data"][0])

    def close(self) -> None:
        """Hang up; nothing more was to come."""
        stream = self._connection.sock
        if stream is not None:  # it is None where the answer was the connection's last
            stream.setblocking(False)
            with pytest.raises(BlockingIOError):
                stream.recv(1)
        self._connection.close()


def new_csr() -> x509.CertificateSigningRequest:
    """Return a CSR with a key and a name of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, os.urandom(8).hex())])
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())


def ask_until_spent(ends: Ends, seed: int, number: int) -> list[Asked]:
    """Ask one question after the other, some of them twice, until all that was planned has befallen."""
    chance = random.Random(f"{seed} {number}")  # noqa: S311  # it has to come out the same every time
    client = Client(ends.http_port)
    asked = [client.ask(new_csr())]
    end = time.monotonic() + STORM_S
    while not ends.relay.spent.is_set() and time.monotonic() < end:
        last = asked[-1]
        is_retried = chance.random() < (0.2 if last.status == 200 else 0.8)
        asked.append(client.ask(last.csr if is_retried else new_csr()))
        if asked[-1].status == 503:
            ends.relay.spent.wait(0.05)  # nobody asks again at once
    client.close()
    return asked


def ask_until_signed(ends: Ends) -> list[Asked]:
    """Ask the same question until it is answered with a certificate, as it must be before long."""
    client = Client(ends.http_port)
    csr = new_csr()
    end = time.monotonic() + RECOVERY_S
    asked = [client.ask(csr)]
    while asked[-1].status != 200:
        assert time.monotonic() < end, f"not recovered: {Counter(each.code for each in asked)}"
        threading.Event().wait(0.1)  # nobody asks again at once
        asked.append(client.ask(csr))
    client.close()
    return asked


def storm(ends: Ends, seed: int, kinds: Collection[Kind], judge: Callable[[Asked], None]) -> None:
    """Let one plan befall the channel while all clients ask, then see that it recovers."""
    plan = plan_of(seed, kinds)
    try:
        ends.relay.begin(plan)
        with ThreadPoolExecutor(CLIENTS) as pool:
            asked = [one for each in pool.map(partial(ask_until_spent, ends, seed), range(CLIENTS)) for one in each]
        ends.relay.heal()
        asked += ask_until_signed(ends)
        ends.asked += asked
        assert len({each.request_id for each in asked}) == len(asked)
        for each in asked:
            judge(each)
    except BaseException as error:
        error.add_note(f"VMI_RELAY_SEED={seed} {plan}")
        raise


def ask_some(ends: Ends, _number: int) -> list[Asked]:
    """Ask a few questions."""
    client = Client(ends.http_port)
    asked = [client.ask(new_csr()) for _ in range(WARM_UP)]
    client.close()
    return asked


def storms(ends: Ends, kinds: Collection[Kind], judge: Callable[[Asked], None]) -> None:
    """Let one plan after the other befall the channel: neither memory nor descriptors grow with them."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        ends.asked += [one for each in pool.map(partial(ask_some, ends), range(CLIENTS)) for one in each]
    assert {each.status for each in ends.asked} == {200}
    memory = [memory_octets(each) for each in ends.processes]
    # The clients' connections are not all seen to end by now.
    opened = [descriptors(each) for each in ends.processes]
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS):
        storm(ends, seed, kinds, judge)
        for process, count in zip(ends.processes, opened, strict=True):
            wait_until_descriptors(process, count)
    for process, before in zip(ends.processes, memory, strict=True):
        assert memory_octets(process) - before < MEMORY_OCTETS


def assert_own_certificate(ends: Ends, asked: Asked) -> None:
    """A certificate is for this CSR's subject and key, and verifies under the CA's root; else it says what to do."""
    if asked.status == 200:
        leaf, *_, root = asked.certificates()
        assert leaf.public_key() == asked.csr.public_key()
        assert leaf.subject == asked.csr.subject
        assert [root] == ends.roots
        leaf.verify_directly_issued_by(root)
    else:
        assert asked.status == 503
        assert asked.code in {"agent.unavailable", "agent.timeout", "agent.busy"}


def assert_kept(ends: Ends) -> None:
    """What was handed out is in the ledger, one for each question; the audit is whole, and no log tells of a bug."""
    rows = list_certificates(ends.agent_state, Filter(), utc_now())
    in_ledger = {assemble(row.tbs, row.signature) for row in rows}
    handed_out: dict[bytes, set[bytes]] = {}
    for each in ends.asked:
        if each.status == 200:
            leaf = each.certificates()[0].public_bytes(serialization.Encoding.DER)
            handed_out.setdefault(each.der, set()).add(leaf)
    assert handed_out
    assert {leaf for leaves in handed_out.values() for leaf in leaves} <= in_ledger
    assert max(len(leaves) for leaves in handed_out.values()) == 1
    assert_no_bug_told(ends)


def assert_no_bug_told(ends: Ends, *expected: str) -> None:
    """The audit is whole; both processes end in good order, and their logs hold no error but those expected."""
    with reading(ends.agent_state) as connection:
        verify(connection)
    for process in ends.processes:
        assert process.stop() == 0
        told = [json.loads(line) for line in process.lines]
        assert [each for each in told if "traceback" in each] == []
        errors = {each["event"] for each in told if each["level"] in ("error", "critical")}
        assert errors <= set(expected)


def test_channel_faults(tmp_path: Path) -> None:
    """Delays, stalls, cuts in mid-frame, drips, half-closed streams and second frames: each request gets its answer."""
    with ends(tmp_path) as both:
        storms(both, {*FAITHFUL, Kind.SECOND_FRAME}, partial(assert_own_certificate, both))
        assert_kept(both)


def test_channel_faults_with_tls(tmp_path: Path) -> None:
    """Over TLS no forged octet arrives: flipped bits and octets that come twice cut the connection like any cut."""
    with ends(tmp_path, with_tls=True) as both:
        storms(both, {*FAITHFUL, *FORGING}, partial(assert_own_certificate, both))
        assert_kept(both)


def test_channel_forgeries(tmp_path: Path) -> None:
    """Where nothing protects the octets, a forged one fails a request, or stands in what is answered; but a certificate
    is never for another's key or name, and the channel recovers as ever.
    """

    def judge(asked: Asked) -> None:
        if asked.status != 200:
            assert asked.status in (400, 502, 503), asked
            return
        # Whether it verifies is not looked at: a flipped bit in the signature is seen by whoever uses the certificate.
        leaf = ssl.PEM_cert_to_DER_cert(split_chain(asked.chain)[0])
        assert leaf_subject_and_key(leaf) == csr_subject_and_key(asked.der)

    with ends(tmp_path) as both:
        storms(both, {*FORGING, Kind.CUT}, judge)
        assert_no_bug_told(both, "agent answered for another CSR", "agent's certificates are no chain")


def test_plan_of_a_seed() -> None:
    """A seed is always the same plan, and another one another; every kind comes about."""
    plans = [plan_of(seed, Kind) for seed in range(50)]
    assert plans == [plan_of(seed, Kind) for seed in range(50)]
    assert len({plan.faults for plan in plans}) == len(plans)
    assert {fault.kind for plan in plans for faults in plan.faults for fault in faults} == set(Kind)
