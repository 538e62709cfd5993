"""Which token, and how to log in to it."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from runtime.files import FileRefused, read_secret
from vmi_agent.keys import CustodyError


@dataclass(frozen=True, slots=True)
class Token:
    """Which token, and how to log in to it.

    Attributes:
        module: absolute path of the token's library.
        label: of the token.
        pin: of its normal user; never shown.
    """

    module: str | os.PathLike[str]
    label: str
    pin: str = field(repr=False)


def read_pin(path: Path) -> str:
    """Return the PIN in a file: its one line, without the line's end.

    Raises:
        CustodyError: the file is missing, open to other users, empty, or more than one line.
    """
    try:
        lines = read_secret(path).decode().splitlines()
    except OSError as error:
        raise CustodyError(f"PIN file {path}: {error.strerror}") from error
    except FileRefused as error:
        raise CustodyError(f"PIN file {error}") from error
    except UnicodeDecodeError:
        raise CustodyError(f"PIN file {path} is not UTF-8. Write the PIN into it, and nothing else.") from None
    if len(lines) != 1 or not lines[0]:
        raise CustodyError(f"PIN file {path} is not one line. Write the PIN into it, and nothing else.")
    return lines[0]
