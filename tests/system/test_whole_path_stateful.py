"""Everything between the HTTP edge and the disk, in memory, with each part failing as it likes.

`VMI_STATEFUL_EXAMPLES=2000` tries that many histories instead of a few.
"""

import json
import os
import shutil
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select
from support.octets import AGENT_HELLO
from support.whole_path import DEADLINE_S, MAX_REQUESTS, MAX_WAITING, WINDOW, WholePath, make_ca
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from bmc_proxy.errors import AgentBusy, AgentFailed, AgentTimeout, AgentUnavailable, RequestRefused
from bmc_proxy.signing import Requester
from protocol.errors import ErrorCode
from protocol.frames import HEADER_OCTETS, MAX_PAYLOAD
from runtime.clock import milliseconds
from vmi_agent.ca.authority import certificates_of
from vmi_agent.certificate import assemble
from vmi_agent.errors import LedgerUnavailable, SelfCheckFailed
from vmi_agent.keys import CustodyError
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.verify import verify
from vmi_agent.ledger.issuances import REPLAY_WINDOW_MS
from vmi_agent.ledger.revocation import Reason, RevocationRefused, revoke
from vmi_agent.ledger.schema import ISSUED, issuance, reading

EXAMPLES = int(os.environ.get("VMI_STATEFUL_EXAMPLES", "25"))
CSRS = 12
USERS = ("hmc1", "hmc2")
KEYS = (None, "one", "two")
# Nobody pulls the plug here: what is to survive a crash need not wait for a disk.
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108  # a directory of our own is made in it
# So much must be enough for every deadline, every wait of the protocol and every pause between two connections.
REST_S = 40.0
NEVER_BEFORE = CSRS  # the CSR that nobody asked with


@cache
def csr(number: int) -> bytes:
    """Return one of the CSRs, in DER."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"hmc{number}")])
    key = ec.generate_private_key(ec.SECP256R1())
    made = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.DER)


@cache
def ca() -> Path:
    """Return a state directory with a CA, which lives as long as the tests."""
    directory = Path(tempfile.mkdtemp())
    _LEFT_BEHIND.append(directory)
    return make_ca(directory / "ca")


_LEFT_BEHIND: list[Path] = []


@dataclass
class Question:
    """What an HMC asked, and what became of it.

    Attributes:
        revoked_before: the serials that were revoked when it was asked.
        results: a leaf in DER, or what was raised; there should be one.
    """

    user: str
    csr: int
    key: str | None
    asked_at: float
    revoked_before: frozenset[bytes]
    deferred: "Deferred[list[str]]"
    is_hung_up: bool = False
    results: list[bytes | BaseException] = field(default_factory=list)


@implementer(ILogObserver)
class WholePathMachine(RuleBasedStateMachine):
    """The HMCs, and what they may expect."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[str] = []
        globalLogPublisher.addObserver(self)
        self.directory = Path(tempfile.mkdtemp(dir=IN_MEMORY))
        self.questions: list[Question] = []
        self.handed_out: list[tuple[Question, bytes]] = []
        self.revoked: set[bytes] = set()
        self.had_trouble = False  # of the kind that an agent tells of

    def __call__(self, event: LogEvent) -> None:
        """Remember what tells of a bug."""
        if event.get("log_level", LogLevel.info) >= LogLevel.error or "log_failure" in event:
            failure = event.get("log_failure")
            self.errors.append(formatEvent(event) + ("" if failure is None else failure.getTraceback()))

    @initialize(links=st.sampled_from([1, 1, 2]), steps=st.integers(0, 3))
    def start(self, links: int, steps: int) -> None:
        """An agent and a proxy start, and two HMCs have asked."""
        self.path = WholePath(self.directory, ca(), links)
        self.root = certificates_of(self.path.state_dir, 1)[-1]
        self.path.come_to_rest(1.0)
        for number, user in enumerate(USERS):
            self.ask_for(user, number, KEYS[number])
        self.get_on(steps)

    # What HMCs do

    def ask_for(self, user: str, number: int, key: str | None) -> Question:
        """Ask, and remember what comes of it."""
        asking = self.path.ask(csr(number), Requester(user, "test", "192.0.2.1"), key)
        asked_at = self.path.clock.seconds()
        question = Question(user, number, key, asked_at, frozenset(self.revoked), asking)
        self.questions.append(question)

        def signed(chain: list[str]) -> None:
            leaf = ssl.PEM_cert_to_DER_cert(chain[0])
            question.results.append(leaf)
            self.handed_out.append((question, leaf))

        def failed(failure: Failure) -> None:
            assert failure.value is not None
            question.results.append(failure.value)

        asking.addCallbacks(signed, failed).addErrback(self.path.bugs.append)
        self.path.look()
        return question

    @rule(
        user=st.sampled_from(USERS),
        numbers=st.lists(st.integers(0, CSRS - 1), min_size=1, max_size=4),
        key=st.sampled_from(KEYS),
        is_well=st.booleans(),
    )
    def ask(self, user: str, numbers: list[int], key: str | None, is_well: bool) -> None:
        """An HMC asks, for one certificate or for several at once, some of the time when everything is well."""
        if is_well:
            self.be_well()
        for number in numbers:
            self.ask_for(user, number, key)

    @precondition(lambda self: self.questions)
    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        """An HMC asks what it asked before."""
        before = data.draw(st.sampled_from(self.questions[-6:]), "question")
        self.ask_for(before.user, before.csr, before.key)

    @precondition(lambda self: self.open_questions())
    @rule(data=st.data())
    def hang_up(self, data: st.DataObject) -> None:
        """An HMC hangs up."""
        question = data.draw(st.sampled_from(self.open_questions()), "question")
        question.is_hung_up = True
        question.deferred.cancel()
        self.path.look()

    def open_questions(self) -> list[Question]:
        """Return what is not answered."""
        return [question for question in self.questions if not question.results]

    # What the network does

    @precondition(lambda self: self.path.streams)
    @rule(data=st.data(), to_agent=st.booleans(), octets=st.sampled_from([1, 15, 16, 17, 100, 700, 5_000, 1 << 20]))
    def move(self, data: st.DataObject, to_agent: bool, octets: int) -> None:
        """Octets arrive."""
        number = data.draw(st.integers(0, len(self.path.streams) - 1), "stream")
        self.path.move(number, to_agent=to_agent, octets=octets)

    @precondition(lambda self: self.path.streams)
    @rule(data=st.data(), how=st.sampled_from(["proxy hears", "agent hears", "silence", "nobody let in"]))
    def cut(self, data: st.DataObject, how: str) -> None:
        """A connection breaks, one end hears of it first or none does; or for a time no other one can be made."""
        stream = data.draw(st.sampled_from(self.path.streams), "stream")
        match how:
            case "silence":
                stream.silence()
            case "nobody let in":
                self.path.reachable_from = self.path.clock.seconds() + data.draw(st.sampled_from([0.5, 5.0, 30.0]))
            case _:
                stream.cut(agent_first=how == "agent hears")
        self.path.look()

    @rule(seconds=st.sampled_from([0.1, 1.0, 4.5, 11.0, 21.0, 601.0]), octets_arrive=st.booleans())
    def wait(self, seconds: float, octets_arrive: bool) -> None:
        """Time passes."""
        self.path.pass_time(seconds, octets_arrive=octets_arrive)

    # What the agent does

    @rule(data=st.data(), how=st.sampled_from(["one thread", "octets", "a step", "two steps", "all steps", "well"]))
    def go_on(self, data: st.DataObject, how: str) -> None:
        """The agent's threads get on, one or all of them, with or without what arrives meanwhile."""
        agent = self.path.agent
        if how == "well":
            self.be_well()
        elif how != "one thread":
            self.get_on({"octets": 0, "a step": 1, "two steps": 2, "all steps": 4}[how])
        elif agent is not None and agent.works:
            agent.step(data.draw(st.integers(0, len(agent.works) - 1), "thread"))
        self.path.look()

    def get_on(self, steps: int) -> None:
        """All octets arrive, and each thread of the agent takes so many steps."""
        self.path.deliver_all()
        for _ in range(steps):
            self.path.step_all()
        self.path.deliver_all()

    def be_well(self) -> None:
        """For a time everything is as it should be."""
        self.path.heal()
        self.path.come_to_rest(2.0)

    @precondition(lambda self: self.path.agent is not None)
    @rule(trouble=st.sampled_from(["key away", "key wrong", "ledger away", "none"]))
    def trouble(self, trouble: str) -> None:
        """The CA's key is away or signs wrongly, the ledger cannot be written, or all are back."""
        assert self.path.agent is not None
        self.path.find_ledger()
        self.path.agent.custody.state = trouble.removeprefix("key ") if trouble.startswith("key") else "good"
        if trouble == "ledger away":
            self.path.lose_ledger()
        self.had_trouble |= trouble != "none"

    @rule(how=st.sampled_from(["crash", "stop", "drain"]), arrives=st.sampled_from([0, 20, 1_000, 1 << 20]))
    def end_agent(self, how: str, arrives: int) -> None:
        """The agent's process is killed, or told to end and drains; where there is none, one is started."""
        if self.path.agent is None:
            self.path.start_agent()
        elif how == "crash":
            self.path.crash_agent(arrives)
        elif how == "stop":
            self.path.stop_agent()
        else:
            self.path.agent.drain()
        self.path.look()

    @precondition(lambda self: self.path.agent is not None and self.handed_out)
    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        """A certificate that an HMC has is revoked."""
        assert self.path.agent is not None
        _, leaf = data.draw(st.sampled_from(self.handed_out[-6:]), "certificate")
        serial = x509.load_der_x509_certificate(leaf).serial_number.to_bytes(17)
        now_ms = milliseconds(self.path.time())
        try:
            self.path.agent.parts.ledger.change(
                lambda connection: revoke(connection, serial, Reason.superseded, now_ms, "tester")
            )
        except (LedgerUnavailable, RevocationRefused):
            return
        self.revoked.add(serial)

    # What must hold at any moment

    @invariant()
    def nothing_unexpected(self) -> None:
        """No exception came out anywhere, and no failure was logged."""
        if not hasattr(self, "path"):
            return
        assert self.path.bugs == []
        assert self.errors == []

    @invariant()
    def every_deadline_is_kept(self) -> None:
        """Nobody waits past the deadline, and nobody is answered twice."""
        for question in self.questions:
            assert len(question.results) <= 1
            if not question.results:
                assert self.path.clock.seconds() < question.asked_at + DEADLINE_S

    @invariant()
    def memory_is_bounded(self) -> None:
        """What is held for anybody is within what was granted."""
        if not hasattr(self, "path"):
            return
        for link in self.path.agent_links:
            assert link.unanswered <= WINDOW
        assert self.path.door.waiting <= MAX_WAITING
        if self.path.agent is not None:
            server = self.path.agent.server
            assert server.admission.under_way + server.admission.waiting <= MAX_REQUESTS
            for channel in server.channels:
                assert channel.connection.held_octets <= AGENT_HELLO.max_record + HEADER_OCTETS + MAX_PAYLOAD
                assert channel.connection.unanswered <= WINDOW + 1

    # The end

    def teardown(self) -> None:
        """Whatever there was, everything comes to rest, and the promises were kept."""
        try:
            if hasattr(self, "path"):
                self.judge()
        finally:
            globalLogPublisher.removeObserver(self)
            if hasattr(self, "path") and self.path.agent is not None:
                self.path.agent.end()
            shutil.rmtree(self.directory)

    def judge(self) -> None:
        """Bring everything to rest, then look at what each HMC got and at what the ledger holds."""
        self.recover()
        for question in self.questions:
            [result] = question.results
            self.judge_result(question, result)
        left = self.path.close()
        self.nothing_unexpected()
        assert left == []
        assert self.path.unrecorded == []
        assert {type(each) for each in self.path.failures} <= {CustodyError, SelfCheckFailed}
        with reading(self.path.state_dir) as connection:
            verify(connection)
            rows = connection.execute(select(issuance).order_by(issuance.c.id)).all()
            told = [(row.event.decode(), json.loads(row.fields)) for row in audit_chain.rows(connection)]
        self.judge_ledger(rows, told)
        self.judge_replays()

    def recover(self) -> None:
        """All is well again and time passes: everything asked is answered, and a new question gets its certificate."""
        path = self.path
        path.heal()
        path.come_to_rest(REST_S)
        assert path.agent is not None
        question = self.ask_for("last", NEVER_BEFORE, None)
        path.come_to_rest(1.0)
        assert isinstance(question.results[0], bytes), question.results
        assert path.agent.server.admission.under_way + path.agent.server.admission.waiting == 0
        assert path.door.waiting == 0
        for link in path.agent_links:
            assert link.connected
            assert link.unanswered == 0
        for channel in path.agent.server.channels:
            assert channel.connection.unanswered == 0
            assert channel.connection.held_octets == 0

    def judge_result(self, question: Question, result: bytes | BaseException) -> None:
        """A certificate is for this question, and what is no certificate says why with reason."""
        match result:
            case bytes():
                leaf = x509.load_der_x509_certificate(result)
                wanted = x509.load_der_x509_csr(csr(question.csr))
                assert leaf.public_key() == wanted.public_key()
                assert leaf.subject == wanted.subject
                leaf.verify_directly_issued_by(self.root)
                assert leaf.serial_number.to_bytes(17) not in question.revoked_before
            case CancelledError():
                assert question.is_hung_up
            case RequestRefused(code=code):
                assert code is ErrorCode.REQUEST_CONFLICT
                assert any(
                    (each.user, each.key) == (question.user, question.key) and each.csr != question.csr
                    for each in self.questions
                )
            case AgentFailed():
                assert self.had_trouble
            case _:
                assert isinstance(result, AgentUnavailable | AgentTimeout | AgentBusy)

    def judge_ledger(self, rows: Sequence[Any], told: list[tuple[str, dict[str, Any]]]) -> None:
        """What was handed out is there as issued, recorded before it was signed, and one for each question."""
        issued = {assemble(row.tbs, row.signature) for row in rows if row.status == ISSUED}
        assert {leaf for _, leaf in self.handed_out} <= issued
        places: dict[str, list[str]] = {}
        for event, fields in told:
            if event in ("signing", "signed"):
                places.setdefault(fields["serial"], []).append(event)
        for row in rows:
            expected = ["signing", "signed"] if row.status == ISSUED else ["signing"]
            assert places[row.serial.hex()] == expected
        newest: dict[bytes, Any] = {}
        for row in rows:
            if row.status != ISSUED:
                continue
            before = newest.get(row.request_digest)
            if before is not None and row.recorded_ms - before.recorded_ms < REPLAY_WINDOW_MS:
                assert before.revoked_ms is not None
                assert before.revoked_ms <= row.recorded_ms
            newest[row.request_digest] = row

    def judge_replays(self) -> None:
        """The same key got the same certificate, unless that was revoked."""
        by_key: dict[tuple[str, str], list[bytes]] = {}
        for question, leaf in self.handed_out:
            if question.key is not None:
                by_key.setdefault((question.user, question.key), []).append(leaf)
        for leaves in by_key.values():
            serials = [x509.load_der_x509_certificate(leaf).serial_number.to_bytes(17) for leaf in leaves]
            assert len(set(serials) - self.revoked) <= 1


TestWholePath = WholePathMachine.TestCase
TestWholePath.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
