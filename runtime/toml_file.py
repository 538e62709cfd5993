"""A TOML file that a person wrote."""

from pathlib import Path
from typing import Any

from runtime.errors import ConfigError


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file says.

    Raises:
        ConfigError: naming the file: it cannot be read, is not TOML in UTF-8, or has more depth or digits than is read.
    """
    import tomllib  # most starts have no such file

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: lists or tables too deep inside one another") from error
    except ValueError as error:  # what is left of it: int() takes no more digits (sys.set_int_max_str_digits)
        raise ConfigError(f"{path}: a number of too many digits") from error
