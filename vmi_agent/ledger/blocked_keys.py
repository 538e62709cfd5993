"""The block list: public keys that are never certified, by the SHA-256 of their SubjectPublicKeyInfo in DER.

A key may be blocked for several reasons at once, each of which has a row: a certificate of it was revoked for
keyCompromise (for good), a certificate of it is on hold (until that one is released, or revoked for another reason), or
it was blocked by hand. The key is free when no row is left. Every change has its row in the audit, in the same
transaction: "keys blocked" and "key unblocked".

An RSA key is listed as the key of its modulus with the exponent 65537, and so blocked with every exponent
(`key_forms.listed_form`). Where nothing but a hash is known of a key, that hash is listed.

`export_blocked` and `import_blocked` carry the list over to a ledger that cannot know all of it, such as one that was
restored from an older backup.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from runtime.asn1 import der
from runtime.hints import command
from vmi_agent.certificate import SERIAL_OCTETS
from vmi_agent.ledger.audit import chain as audit_chain
from vmi_agent.ledger.audit.chain import Event
from vmi_agent.ledger.key_forms import key_forms, listed_form
from vmi_agent.ledger.schema import ISSUED
from vmi_agent.ledger.sql import AnyConnection, execute, execute_many, one_of

KEY_OCTETS = 32
# Of a block by hand, which belongs to no certificate.
BY_HAND = b""
# The reasons of those that belong to one (RFC 5280, 5.3.1).
COMPROMISED, ON_HOLD = BLOCKING = ("keyCompromise", "certificateHold")
MAX_REASON_CHARACTERS = 200

# The keys of one audit row, which stays below 3 KiB.
_KEYS_IN_ROW = 40
# SQLite takes this many parameters for certain.
_AT_ONCE = 500
_COLUMNS = "key_sha256, serial, reason, blocked_ms"
_PUT = (
    f"INSERT INTO blocked_key ({_COLUMNS}) VALUES (?, ?, ?, ?)"  # noqa: S608  # names of our own columns
    " ON CONFLICT (key_sha256, serial) DO UPDATE SET reason = excluded.reason, blocked_ms = excluded.blocked_ms"
)


class BlockListRefused(Exception):
    """The block list cannot be changed like this; the text says why and what to do."""


class Block(NamedTuple):
    """One reason why a key is blocked.

    Attributes:
        key_sha256: 32 octets.
        serial: of the certificate that the block belongs to, 17 octets; BY_HAND for none.
        reason: COMPROMISED or ON_HOLD for one that belongs to a certificate; otherwise any text.
        blocked_ms: since when, in milliseconds since 1970-01-01 UTC.
    """

    key_sha256: bytes
    serial: bytes
    reason: str
    blocked_ms: int


def blocked_among(connection: AnyConnection, keys: Sequence[bytes]) -> frozenset[bytes]:
    """Return those of these keys that are blocked, in whichever form of their encoding.

    Args:
        keys: SubjectPublicKeyInfos in DER, up to a few hundred.
    """
    # Every certificate comes through here, and most lists are empty.
    if not keys or not execute(connection, "SELECT 1 FROM blocked_key LIMIT 1"):
        return frozenset()
    forms = {key: key_forms(key) for key in keys}
    hashes = [each for some in forms.values() for each in some]
    statement = f"SELECT key_sha256 FROM blocked_key WHERE key_sha256 {one_of(hashes)}"  # noqa: S608  # question marks
    blocked = {found for (found,) in execute(connection, statement, hashes)}
    return frozenset(key for key, some in forms.items() if not blocked.isdisjoint(some))


def blocks_of(connection: AnyConnection, key_sha256: bytes) -> list[Block]:
    """Return all reasons why a key is blocked.

    Args:
        key_sha256: as the list has it, or of a key of a certificate in this ledger.
    """
    hashes = list(dict.fromkeys((key_sha256, _listed(connection, key_sha256))))
    statement = f"SELECT {_COLUMNS} FROM blocked_key WHERE key_sha256 {one_of(hashes)} ORDER BY serial"  # noqa: S608
    return [Block(*row) for row in execute(connection, statement, hashes)]


def list_blocks(connection: AnyConnection, after: Block | None = None, limit: int = -1) -> list[Block]:
    """Return blocks in the order of their keys, then serials.

    Args:
        after: the last one of the page before; None for the first page.
        limit: at most this many; -1 for all.
    """
    begin = (b"", b"") if after is None else (after.key_sha256, after.serial)
    statement = (
        f"SELECT {_COLUMNS} FROM blocked_key WHERE (key_sha256, serial) > (?, ?)"  # noqa: S608  # our own
        " ORDER BY key_sha256, serial LIMIT ?"
    )
    return [Block(*row) for row in execute(connection, statement, (*begin, limit))]


def block(connection: Connection, key_sha256: bytes, serial: bytes, reason: str, now_ms: int, by: str) -> None:
    """Block the key of a certificate that was revoked for keyCompromise or put on hold, unless that block stands.

    A block for keyCompromise takes the place of the certificate's hold, and never the other way round.

    Args:
        serial: of the certificate.
        reason: COMPROMISED or ON_HOLD.
        now_ms: in milliseconds since 1970-01-01 UTC.
        by: who does it, for the audit.
    """
    standing = _block_of(connection, key_sha256, serial)
    if standing is None or (standing.reason, reason) == (ON_HOLD, COMPROMISED):
        _put(connection, [Block(_listed(connection, key_sha256), serial, reason, now_ms)], now_ms, by)


def lift_hold(connection: Connection, key_sha256: bytes, serial: bytes, now_ms: int, by: str) -> None:
    """Remove the block of a certificate that is not on hold any more, if it has one. Arguments as for `block`."""
    standing = _block_of(connection, key_sha256, serial)
    if standing is not None and standing.reason == ON_HOLD:
        _remove(connection, standing, now_ms, by)


def block_by_hand(connection: Connection, keys: Sequence[bytes], reason: str, now_ms: int, by: str) -> list[bytes]:
    """Block keys by hand; return the hashes, as listed, of those that were not blocked by hand already.

    Args:
        keys: their hashes.
        reason: any text of 1 to `MAX_REASON_CHARACTERS` printable characters.
    """
    listed = _listed_of_issued(connection, keys)
    keys = list(dict.fromkeys(listed.get(key, key) for key in keys))
    standing: set[bytes] = set()
    for at in range(0, len(keys), _AT_ONCE):
        some = keys[at : at + _AT_ONCE]
        statement = f"SELECT key_sha256 FROM blocked_key WHERE serial = ? AND key_sha256 {one_of(some)}"  # noqa: S608
        standing.update(key for (key,) in execute(connection, statement, (BY_HAND, *some)))
    new = [key for key in keys if key not in standing]
    _put(connection, [Block(key, BY_HAND, reason, now_ms) for key in new], now_ms, by)
    return new


def unblock(connection: Connection, key_sha256: bytes, now_ms: int, by: str) -> None:
    """Free a key that was blocked by hand, or by the hold of a certificate that is not on hold in this ledger.

    Raises:
        BlockListRefused: it is not blocked, or stays blocked whatever is done by hand; nothing was changed.
    """
    blocks = blocks_of(connection, key_sha256)
    if not blocks:
        raise BlockListRefused(f"the key {key_sha256.hex()} is not blocked")
    for each in blocks:
        if each.reason == COMPROMISED and each.serial != BY_HAND:
            raise BlockListRefused(
                f"the key {key_sha256.hex()} stays blocked: its certificate {each.serial.hex()} was revoked for"
                " keyCompromise, which is for good. Use a new key."
            )
        if each.serial != BY_HAND and _is_on_hold(connection, each.serial):
            release = command("vmi-agent", f"certs release {each.serial.hex()}")
            raise BlockListRefused(
                f"the key {key_sha256.hex()} stays blocked while its certificate {each.serial.hex()} is on hold."
                f" Release that first: `{release}`"
            )
    for each in blocks:
        _remove(connection, each, now_ms, by)


def block_revoked(connection: Connection, now_ms: int, by: str) -> int:
    """Block the keys of all certificates that are revoked for keyCompromise or on hold, as a ledger of version 2 has.

    Returns:
        How many there are.
    """
    blocks = list(blocks_of_revocations(connection))
    _put(connection, blocks, now_ms, by)
    return len(blocks)


def blocks_of_revocations(connection: AnyConnection) -> Iterator[Block]:
    """Yield the blocks that follow from the revocations and holds in a ledger, which may be one of version 2."""
    statement = (
        "SELECT key_sha256, tbs, serial, reason, revoked_ms FROM issuance"
        " WHERE status = ? AND reason IN (1, 6) ORDER BY id"
    )
    for key_sha256, tbs, serial, reason, revoked_ms in execute(connection, statement, (ISSUED,)):
        yield Block(_listed_in(tbs, key_sha256), serial, COMPROMISED if reason == 1 else ON_HOLD, revoked_ms)


def export_blocked(connection: AnyConnection) -> Iterator[str]:
    """Yield the whole block list, one line of JSON for each block, without a line break.

    A line is `{"key_sha256":"…","serial":"…","reason":"…","blocked_ms":…}`; the serial is "" for a block by hand.
    """
    last: Block | None = None
    while page := list_blocks(connection, last, _AT_ONCE):
        yield from map(line_of, page)
        last = page[-1]


def line_of(block: Block) -> str:
    """Return a block as a line of an exported list."""
    fields = block._asdict() | {"key_sha256": block.key_sha256.hex(), "serial": block.serial.hex()}
    return json.dumps(fields, separators=(",", ":"))


def import_blocked(connection: Connection, lines: Iterable[str], now_ms: int, by: str) -> int:
    """Add the blocks of an exported list that are not in this ledger, in the transaction of the connection.

    Blocks that stand stay; only a hold is replaced by a keyCompromise of the same certificate.

    Args:
        lines: from `export_blocked`.
        now_ms: in milliseconds since 1970-01-01 UTC; the blocks keep their own times.
        by: who does it, for the audit.

    Returns:
        How many were added or replaced.

    Raises:
        BlockListRefused: a line is not one of such a list; its number is told.
    """
    blocks = (parse_line(line, number) for number, line in enumerate(lines, start=1))
    given = {(each.key_sha256, each.serial): each for each in blocks}
    standing: dict[tuple[bytes, bytes], str] = {}
    keys = [key for key, _ in given]
    for at in range(0, len(keys), _AT_ONCE):
        some = keys[at : at + _AT_ONCE]
        statement = f"SELECT key_sha256, serial, reason FROM blocked_key WHERE key_sha256 {one_of(some)}"  # noqa: S608
        standing.update(((key, serial), reason) for key, serial, reason in execute(connection, statement, some))
    new = [
        each
        for place, each in given.items()
        if place not in standing
        or (each.serial != BY_HAND and (standing[place], each.reason) == (ON_HOLD, COMPROMISED))
    ]
    _put(connection, new, now_ms, by)
    return len(new)


def parse_line(line: str, number: int = 1) -> Block:
    """Return the block of a line of an exported list.

    Raises:
        BlockListRefused: it is none; its number is told.
    """
    try:
        fields = json.loads(line)
        found = Block(
            bytes.fromhex(fields["key_sha256"]),
            bytes.fromhex(fields["serial"]),
            fields["reason"],
            fields["blocked_ms"],
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BlockListRefused(f"line {number} of the block list is not a block") from error
    is_sound = (
        len(found.key_sha256) == KEY_OCTETS
        and len(found.serial) in (0, SERIAL_OCTETS)
        and is_reason(found.reason)
        and (found.serial == BY_HAND or found.reason in (COMPROMISED, ON_HOLD))
        and type(found.blocked_ms) is int
        and 0 <= found.blocked_ms < 1 << 62
    )
    if not is_sound:
        raise BlockListRefused(f"line {number} of the block list is not a block")
    return found


def is_reason(value: object) -> bool:
    """Return whether a value may be a block's reason: one printable line, not too long."""
    return isinstance(value, str) and 1 <= len(value) <= MAX_REASON_CHARACTERS and value.isprintable()


def _listed(connection: AnyConnection, key_sha256: bytes) -> bytes:
    return _listed_of_issued(connection, [key_sha256]).get(key_sha256, key_sha256)


def _listed_of_issued(connection: AnyConnection, keys: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return the hashes under which the list keeps those of these keys that a certificate in this ledger has."""
    listed: dict[bytes, bytes] = {}
    for at in range(0, len(keys), _AT_ONCE):
        some = keys[at : at + _AT_ONCE]
        statement = f"SELECT key_sha256, tbs FROM issuance WHERE key_sha256 {one_of(some)} GROUP BY key_sha256"  # noqa: S608
        listed.update((key, _listed_in(tbs, key)) for key, tbs in execute(connection, statement, some))
    return listed


def _listed_in(tbs: bytes, key_sha256: bytes) -> bytes:
    try:
        return listed_form(der.children(tbs)[6])
    except (ValueError, IndexError):  # damaged, which `audit verify` finds: the hash stands in a column of its own
        return key_sha256


def _block_of(connection: AnyConnection, key_sha256: bytes, serial: bytes) -> Block | None:
    return next((each for each in blocks_of(connection, key_sha256) if each.serial == serial), None)


def _is_on_hold(connection: AnyConnection, serial: bytes) -> bool:
    statement = "SELECT 1 FROM issuance WHERE serial = ? AND reason = 6"
    return bool(execute(connection, statement, (serial,)))


def _put(connection: Connection, blocks: Sequence[Block], now_ms: int, by: str) -> None:
    if not blocks:
        return
    execute_many(connection, _PUT, blocks)
    alike: dict[tuple[bytes, str, int], list[bytes]] = defaultdict(list)
    for each in blocks:
        alike[each.serial, each.reason, each.blocked_ms].append(each.key_sha256)
    events = []
    for (serial, reason, blocked_ms), keys in alike.items():
        for at in range(0, len(keys), _KEYS_IN_ROW):
            some = keys[at : at + _KEYS_IN_ROW]
            fields: dict[str, object] = {"count": len(some), "keys": [key.hex() for key in some], "reason": reason}
            if serial != BY_HAND:
                fields["serial"] = serial.hex()
            if blocked_ms != now_ms:
                fields["blocked_ms"] = blocked_ms
            events.append(Event("keys blocked", now_ms, fields | {"by": by}))
    audit_chain.append(connection, events)


def _remove(connection: Connection, gone: Block, now_ms: int, by: str) -> None:
    statement = "DELETE FROM blocked_key WHERE key_sha256 = ? AND serial = ?"
    execute_many(connection, statement, [(gone.key_sha256, gone.serial)])
    fields: dict[str, object] = {"key": gone.key_sha256.hex(), "reason": gone.reason}
    if gone.serial != BY_HAND:
        fields["serial"] = gone.serial.hex()
    audit_chain.append(connection, [Event("key unblocked", now_ms, fields | {"by": by})])
