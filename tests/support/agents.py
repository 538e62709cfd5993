"""Parts of an agent for the tests, all of them real."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from protocol.records import NO_IDEMPOTENCY_KEY, SignCsr
from runtime.state_dir import make as make_state_dir
from vmi_agent.ca import authority
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.ca import store as ca_store
from vmi_agent.ca.authority import Authority, Generations
from vmi_agent.handlers import Dispatch, Outcome
from vmi_agent.issuance.issue import Issued, Issuing
from vmi_agent.issuance.scheduler import Walk, alone
from vmi_agent.keys.open import Access
from vmi_agent.ledger.ledger import Ledger
from vmi_agent.policy.profile import Profile
from vmi_agent.revocation.ocsp import OcspResponder
from vmi_agent.revocation.ocsp_signer import Responders
from vmi_agent.revocation.publisher import Publishing

START = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


class Time:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> None:
        """Let time pass, as `timedelta` takes it."""
        self.now += timedelta(**by)


def request(csr: bytes, *, user: str = "hmc1", key: bytes = NO_IDEMPOTENCY_KEY, deadline_ms: int = 30_000) -> SignCsr:
    """Return a SIGN_CSR."""
    return SignCsr(deadline_ms, key, user, "test", "192.0.2.1", csr)


def always() -> None:
    """Somebody still waits."""


def create_ca(state_dir: Path, key_type: str = "p256", now: datetime = START) -> Authority:
    """Make a CA, the next generation of its state directory."""
    make_state_dir(state_dir)
    ledger = Ledger(state_dir, now)
    try:
        ca_lifecycle.create(state_dir, key_type, Access(), now, ledger.note)
    finally:
        ledger.close()
    return load_ca(state_dir)


def load_ca(state_dir: Path) -> Authority:
    """Load the newest generation."""
    return authority.load(state_dir, ca_store.newest(state_dir), Access())


@dataclass
class Alone:
    """Issues for one request at a time, in the thread of the caller."""

    issuing: Issuing
    ledger: Ledger

    def issue(self, request: SignCsr, still_wanted: Callable[[], None]) -> Issued:
        """Do what `Issuing.issue` does, to its end."""
        return alone(self.issuing.issue(request, still_wanted), self.ledger)


@dataclass
class Agent:
    """The parts of an agent, as `vmi_agent.app` puts them together.

    Attributes:
        failures: what it reported as its own.
    """

    ledger: Ledger
    generations: Generations
    issuing: Alone
    publishing: Publishing
    responder: OcspResponder
    dispatch: Dispatch
    failures: list[BaseException]

    def go(self, function: Callable[..., Walk[Any]], *arguments: Any) -> Any:
        """Go the way of a coroutine function to its end, in the thread of the caller."""
        return alone(function(*arguments), self.ledger)

    def sign(self, request: SignCsr, csr_sha256: bytes, still_wanted: Callable[[], None]) -> Outcome:
        """Do what `Dispatch.sign` does, to its end."""
        outcome: Outcome = self.go(self.dispatch.sign, request, csr_sha256, still_wanted)
        return outcome


@contextmanager
def open_agent(
    state_dir: Path,
    time: Time,
    *,
    key_type: str = "p256",
    profile: Profile | None = None,
    access: Access | None = None,
    publish_at: str | None = None,
    alone: bool = True,
) -> Iterator[Agent]:
    """Open the parts of an agent, with a CA that is made on the first time; close them at the end.

    Args:
        alone: no other agent has the state directory open.
    """
    access = access or Access()
    make_state_dir(state_dir)
    ledger = Ledger(state_dir, time(), alone=alone)
    try:
        if not authority.exists(state_dir):
            ca_lifecycle.create(state_dir, key_type, access, time(), ledger.note)
        failures: list[BaseException] = []
        generations = Generations(state_dir, access, publish_at, time(), lambda *_: None)
        issuing = Issuing(lambda: generations.current, (profile or Profile(),), time)
        publishing = Publishing(generations, ledger, timedelta(days=7), timedelta(days=1), time)
        responders = Responders(state_dir, access.passphrase, ledger, time)
        responder = OcspResponder(generations, responders, ledger, time, failures.append)
        report = lambda error, _: failures.append(error)  # noqa: E731  # one line, used once
        dispatch = Dispatch(generations, issuing, publishing, responder, time, report)
        yield Agent(ledger, generations, Alone(issuing, ledger), publishing, responder, dispatch, failures)
        generations.close()
    finally:
        ledger.close()


@contextmanager
def issuing(
    state_dir: Path, time: Time, *, key_type: str = "p256", profile: Profile | None = None
) -> Iterator[tuple[Alone, Authority]]:
    """Open an agent's issuing alone, with the CA that it issues under."""
    with open_agent(state_dir, time, key_type=key_type, profile=profile) as agent:
        yield agent.issuing, agent.generations.current
