"""Serial numbers and hashes on the command line, as people paste them."""

import re
from typing import Any

import click

from vmi_agent.certificate import SERIAL_OCTETS
from vmi_agent.ledger.blocked_keys import KEY_OCTETS


def digits_of(text: str) -> str:
    """Return the lower-case digits of what `openssl` prints: with colons, with 0x or `serial=` before it."""
    digits = text.strip().lower().removeprefix("serial=").removeprefix("0x")
    return digits.replace(":", "")


class Hexadecimal(click.ParamType[str]):
    """Up to, or exactly, this many octets; kept as lower-case digits."""

    name = "hexadecimal"

    def __init__(self, most_octets: int, *, exactly: bool = False) -> None:
        self._digits = 2 * most_octets
        self._exactly = exactly

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the digits, or fail with what is accepted."""
        digits = self._shortened(digits_of(str(value)))
        fits = len(digits) == self._digits if self._exactly else 1 <= len(digits) <= self._digits
        if not fits or not re.fullmatch(r"[0-9a-f]*", digits):
            size = str(self._digits) if self._exactly else f"1 to {self._digits}"
            self.fail(f"{value!r} is not {size} hexadecimal digits", param, ctx)
        return digits

    def _shortened(self, digits: str) -> str:
        return digits


class _Serial(Hexadecimal):
    """A whole serial number, before which zeros mean nothing."""

    def _shortened(self, digits: str) -> str:
        return digits.lstrip("0") if len(digits) > self._digits else digits


SERIAL = _Serial(SERIAL_OCTETS)
SERIAL_PREFIX = Hexadecimal(SERIAL_OCTETS)
KEY_SHA256 = Hexadecimal(KEY_OCTETS, exactly=True)
