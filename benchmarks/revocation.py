"""How long a revocation takes, and the CRL after it, with ever more certificates revoked already.

    python benchmarks/revocation.py [--rows 100000] [--key-type p384]

The rows are put into a ledger in a temporary directory directly, with an audit row each; what is measured is what the
agent and `vmi-agent certs revoke` run. The last column is what a starting agent needs to take all of them in.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path

from sqlalchemy import Connection, insert, update

from runtime.clock import milliseconds, utc_now
from runtime.state_dir import make as make_state_dir
from vmi_agent.ca import lifecycle as ca_lifecycle
from vmi_agent.ca.authority import Generations
from vmi_agent.certificate import new_serial
from vmi_agent.keys import KEY_TYPES
from vmi_agent.keys.open import Access
from vmi_agent.ledger import revocation
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.ledger import Ledger
from vmi_agent.ledger.revocation import Reason
from vmi_agent.ledger.schema import ISSUED, issuance, writing
from vmi_agent.revocation.publisher import Publishing

BATCH = 1000
TIMES = 20
TIMES_OF_REFRESH = 5
VALIDITY, PERIOD = timedelta(days=7), timedelta(days=1)
# As long as those of a leaf with a P-256 key under a P-384 CA.
TBS, SIGNATURE = bytes(450), bytes(103)


def issue(state_dir: Path, count: int) -> list[bytes]:
    """Put rows of issued certificates into the ledger; return their serials."""
    now = datetime.now(UTC)
    serials = [new_serial() for _ in range(count)]
    for first in range(0, count, BATCH):
        with writing(state_dir) as connection:
            batch = serials[first : first + BATCH]
            connection.execute(insert(issuance), [_row(serial, now) for serial in batch])
            audit_chain.append(
                connection, [Event("signed", milliseconds(now), {"serial": each.hex()}) for each in batch]
            )
    return serials


def _row(serial: bytes, now: datetime) -> dict[str, object]:
    digest = sha256(serial).digest()
    return {
        "serial": serial,
        "status": ISSUED,
        "root_generation": 1,
        "profile": "default",
        "user": "hmc",
        "method": "basic",
        "address": "192.0.2.1",
        "request_digest": digest,
        "csr_sha256": digest,
        "key_sha256": digest,
        "subject": "CN=hmc",
        "not_before": int(now.timestamp()),
        "not_after": int((now + timedelta(days=365)).timestamp()),
        "recorded_ms": milliseconds(now),
        "issued_ms": milliseconds(now),
        "tbs": TBS,
        "signature": SIGNATURE,
    }


def revoke_many(state_dir: Path, serials: list[bytes]) -> None:
    """Revoke without measuring, many in one transaction; what is written is what `revocation.revoke` writes."""
    now_ms = milliseconds(utc_now())
    for first in range(0, len(serials), BATCH):
        with writing(state_dir) as connection:
            before = audit_chain.read_head(connection).last_id
            batch = serials[first : first + BATCH]
            audit_chain.append(connection, [Event("revoked", now_ms, {"serial": serial.hex()}) for serial in batch])
            for number, serial in enumerate(batch, before + 1):
                values = {"reason": Reason.superseded, "revoked_ms": now_ms, "revocation": number}
                connection.execute(update(issuance).where(issuance.c.serial == serial).values(values))


def revoke_one(serial: bytes, connection: Connection) -> None:
    """Revoke as the command does."""
    revocation.revoke(connection, serial, Reason.keyCompromise, milliseconds(utc_now()), "benchmark")


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_ms(times: list[float]) -> str:
    """Return median, least and most, in milliseconds."""
    return " / ".join(f"{each * 1000:.1f}" for each in (statistics.median(times), min(times), max(times)))


def measure(state_dir: Path, rows: int, key_type: str) -> None:
    """Print one line for each count of certificates revoked before."""
    make_state_dir(state_dir)
    ledger = Ledger(state_dir, utc_now())
    try:
        ca_lifecycle.create(state_dir, key_type, Access(), utc_now(), ledger.note)
        generations = Generations(state_dir, Access(), None, utc_now(), lambda *_: None)
        serials = issue(state_dir, rows + 10 * TIMES)
        publishing = Publishing(generations, ledger, VALIDITY, PERIOD, utc_now)
        revoked = 0
        print(f"{key_type} CA, {rows} certificates; milliseconds as median / least / most")
        print("revoked before | one revocation | refresh after it | CRL octets | start")
        for count in sorted({each for each in (0, 1_000, 10_000, rows) if each <= rows}):
            revoke_many(state_dir, serials[revoked:count])
            revoked = max(revoked, count)
            publishing.refresh()
            revoking: list[float] = []
            refreshing: list[float] = []
            for _ in range(TIMES):
                revoking.append(seconds(partial(ledger.change, partial(revoke_one, serials[revoked]))))
                revoked += 1
                if len(refreshing) < TIMES_OF_REFRESH:
                    refreshing.append(seconds(publishing.refresh))
            starting = Publishing(generations, ledger, VALIDITY, PERIOD, utc_now)
            start = seconds(starting.refresh)
            made = starting.crl(1)
            assert made is not None
            columns = (str(count), in_ms(revoking), in_ms(refreshing), str(len(made.der)), f"{start * 1000:.0f}")
            print(" | ".join(columns), flush=True)
        generations.close()
    finally:
        ledger.close()


def main() -> None:
    """Measure in a temporary directory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--key-type", choices=KEY_TYPES, default="p384")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        measure(Path(directory) / "agent", options.rows, options.key_type)


if __name__ == "__main__":
    main()
