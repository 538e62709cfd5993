"""Parts of an agent for the tests, all of them real."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from protocol.records import NO_IDEMPOTENCY_KEY, SignCsr
from vmi_agent import authority
from vmi_agent.authority import Authority
from vmi_agent.issuing import Issuing
from vmi_agent.ledger import Ledger
from vmi_agent.profile import Profile

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


@contextmanager
def issuing(
    state_dir: Path, time: Time, *, key_type: str = "p256", profile: Profile | None = None
) -> Iterator[tuple[Issuing, Authority]]:
    """Open a CA, made on the first time, with its ledger; close them at the end."""
    ca = authority.load(state_dir) if authority.exists(state_dir) else authority.create(state_dir, key_type, time())
    ledger = Ledger(state_dir)
    try:
        yield Issuing(ca, ledger, (profile or Profile(),), time), ca
    finally:
        ledger.close()
