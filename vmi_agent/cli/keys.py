"""`vmi-agent keys`: the block list, of public keys that are never certified."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from runtime.clock import milliseconds, utc_now
from runtime.errors import StartError
from vmi_agent.cli.groups import as_json, iso, main, operator, print_json_array, settings, tell
from vmi_agent.cli.hexadecimal import KEY_SHA256, digits_of
from vmi_agent.cli.key_files import hashes_in
from vmi_agent.errors import LedgerUnavailable
from vmi_agent.ledger import blocked_keys
from vmi_agent.ledger.blocked_keys import BY_HAND, KEY_OCTETS, MAX_REASON_CHARACTERS, Block, is_reason
from vmi_agent.ledger.queries import PAGE
from vmi_agent.ledger.schema import FIRST_WITH_BLOCK_LIST, reading, writing

# The keys of one transaction, so that a running agent gets to sign in between.
BATCH = 2000


class _Reason(click.ParamType[str]):
    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not is_reason(value):
            self.fail(f"a reason has 1 to {MAX_REASON_CHARACTERS} printable characters", param, ctx)
        return str(value)


@main.group()
def keys() -> None:
    """Block public keys, so that they are never certified."""


@keys.command("list")
@settings.common
@as_json
@tell
def keys_list(state_dir: Path, as_json: bool) -> None:
    """Print what is blocked: the key's hash, since when, by which certificate or by hand, and why.

    Example: vmi-agent keys list --state-dir /var/lib/vmi-agent --json
    """
    if as_json:
        print_json_array(_fields(each) for each in _all(state_dir))
        return
    for each in _all(state_dir):
        fields = _fields(each)
        whose = "by hand" if each.serial == BY_HAND else f"certificate {fields['serial']}"
        click.echo(f"{fields['key_sha256']}  {fields['blocked_at']}  {whose}  {fields['reason']}")


@keys.command("block")
@settings.common
@click.argument("file_or_hash", metavar="FILE-OR-HASH")
@click.option(
    "--reason", type=_Reason(), metavar="TEXT", default="unspecified", show_default=True, help="Why, for the list."
)
@tell
def keys_block(state_dir: Path, file_or_hash: str, reason: str) -> None:
    """Block a public key: FILE is a certificate, a CSR, a public key, or a list of hashes, one a line.

    HASH is the SHA-256 of the key's SubjectPublicKeyInfo in DER, in hexadecimal.

    Example: vmi-agent keys block --state-dir /var/lib/vmi-agent leaked-keys.txt --reason "leaked with firmware 1.2"
    """
    digits = digits_of(file_or_hash)
    if len(digits) == 2 * KEY_OCTETS and set(digits) <= set("0123456789abcdef"):
        found = [bytes.fromhex(digits)]
    else:
        found = hashes_in(Path(file_or_hash))
    found = list(dict.fromkeys(found))
    blocked = _block(state_dir, found, reason)
    if not blocked:
        what = f"the key {found[0].hex()} is" if len(found) == 1 else f"all {len(found)} keys are"
        raise StartError(f"{what} blocked by hand already. Nothing was changed.")
    if len(found) == 1:
        click.echo(f"blocked: {blocked[0].hex()}")
    else:
        click.echo(f"blocked: {len(blocked)} keys; blocked by hand before: {len(found) - len(blocked)}")


@keys.command("unblock")
@settings.common
@click.argument("key_sha256", metavar="HASH", type=KEY_SHA256)
@tell
def keys_unblock(state_dir: Path, key_sha256: str) -> None:
    """Take a key that was blocked by hand off the list. HASH is as `keys list` prints it.

    Example: vmi-agent keys unblock --state-dir /var/lib/vmi-agent HASH
    """
    with writing(state_dir, least_version=FIRST_WITH_BLOCK_LIST) as connection:
        blocked_keys.unblock(connection, bytes.fromhex(key_sha256), milliseconds(utc_now()), operator())
    click.echo(f"unblocked: {key_sha256}")


def _block(state_dir: Path, found: list[bytes], reason: str) -> list[bytes]:
    """Block keys, a batch in each transaction; return those, as listed, that were not blocked by hand already."""
    blocked: list[bytes] = []
    for at in range(0, len(found), BATCH):
        try:
            with writing(state_dir, least_version=FIRST_WITH_BLOCK_LIST) as connection:
                some, now_ms = found[at : at + BATCH], milliseconds(utc_now())
                new = blocked_keys.block_by_hand(connection, some, reason, now_ms, operator())
        except LedgerUnavailable as error:
            if not at:
                raise
            raise LedgerUnavailable(
                f"{error}. Blocked before that: {len(blocked)} keys. Repeat the command."
            ) from error
        blocked += new
    return blocked


def _all(state_dir: Path) -> Iterator[Block]:
    """Yield the whole list, a page at a time: a look that stays open keeps SQLite's log from being emptied."""
    last: Block | None = None
    while True:
        with reading(state_dir, least_version=FIRST_WITH_BLOCK_LIST) as connection:
            page = blocked_keys.list_blocks(connection, last, PAGE)
        yield from page
        if len(page) < PAGE:
            return
        last = page[-1]


def _fields(block: Block) -> dict[str, object]:
    return {
        "key_sha256": block.key_sha256.hex(),
        "blocked_at": iso(datetime.fromtimestamp(block.blocked_ms / 1000, UTC)),
        "serial": None if block.serial == BY_HAND else block.serial.hex(),
        "reason": block.reason,
    }
