"""What the audit says of intents and signatures."""

from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.issuances import AlreadyIssued, Intent, Outcome, Recorded, Resumed, Signature, facts_of
from vmi_agent.ledger.retention import events_of as closing_events


def events_of(intent: Intent, outcome: Outcome) -> list[Event]:
    """Return what tells of an intent's outcome; of a conflict nothing: it is told as the refusal that it leads to."""
    match outcome:
        case Recorded(closed_off):
            signing = Event("signing", intent.recorded_ms, facts_of(intent))
            return [*closing_events(closed_off, intent.recorded_ms), signing]
        case Resumed(serial=serial):
            return [_asked_again("signing resumed", serial, intent)]
        case AlreadyIssued(serial=serial):
            return [_asked_again("signed before", serial, intent)]
    return []


def signed(signature: Signature) -> Event:
    """Return what tells of a certificate's first signature."""
    fields = {
        "serial": signature.serial.hex(),
        "certificate_sha256": signature.certificate_sha256.hex(),
        "not_after": signature.not_after,
    }
    return Event("signed", signature.issued_ms, fields)


def _asked_again(name: str, serial: bytes, intent: Intent) -> Event:
    fields = {
        "serial": serial.hex(),
        "user": intent.user,
        "method": intent.method,
        "address": intent.address,
        "csr_sha256": intent.csr_sha256.hex(),
    }
    return Event(name, intent.recorded_ms, fields)
