"""Intents of the ledger, each other than the rest."""

from vmi_agent.ledger import issuances


def make_intent(number: int) -> issuances.Intent:
    """Return an intent that differs from every other."""
    octets = number.to_bytes(32)
    return issuances.Intent(
        serial=octets[-17:],
        tbs=b"tbs",
        root_generation=1,
        profile="test",
        user="hmc",
        method="test",
        address="test",
        idempotency_key=bytes(16),
        csr_sha256=octets,
        key_sha256=octets,
        subject="",
        not_before=0,
        not_after=0,
        recorded_ms=0,
        public_key_info=octets,
    )
