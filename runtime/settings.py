"""Settings: each command-line option is also an environment variable and a key of the TOML file.

The option wins, then the environment, then the file, then the default (click's own order). All keys of a program are
known to all its commands, so one file serves `serve` and the administrative commands alike.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from runtime import hints
from runtime.errors import ConfigError
from runtime.toml_file import read_toml

LOG_FORMATS = ("text", "json")

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Settings:
    """The options of one program.

    Args:
        prefix: of its environment variables, such as "VMI_AGENT".
        state_dir_help: what the program keeps in its state directory.
    """

    def __init__(self, prefix: str, state_dir_help: str) -> None:
        self._prefix = prefix
        self._state_dir_help = state_dir_help
        self._accepted: dict[str, click.Option] = {}

    def option(self, flag: str, **attributes: Any) -> Callable[[_Command], _Command]:
        """Return a decorator like `click.option`, for an option that can come from all three places."""
        key = flag.removeprefix("--").replace("-", "_")
        attributes.setdefault("envvar", f"{self._prefix}_{key.upper()}")
        attributes.setdefault("show_envvar", True)
        self._accepted[key] = click.Option([flag], **attributes)
        return click.option(flag, **attributes)

    def common(self, command: _Command) -> _Command:
        """Add `--state-dir` and `--config`, which every command takes."""
        command = self.option(
            "--state-dir",
            required=True,
            metavar="DIR",
            type=click.Path(file_okay=False, path_type=Path),
            help=self._state_dir_help,
            callback=self._remember,
        )(command)
        return click.option(
            "--config",
            metavar="FILE",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            is_eager=True,
            expose_value=False,
            callback=self._read_file,
            envvar=f"{self._prefix}_CONFIG",
            show_envvar=True,
            help="TOML file with the same keys as the options, '-' written '_'.",
        )(command)

    def log_format(self, command: _Command) -> _Command:
        """Add `--log-format`, which every `serve` takes."""
        return self.option(
            "--log-format",
            type=click.Choice(LOG_FORMATS),
            default="text",
            show_default=True,
            help="Of the log lines on stderr.",
        )(command)

    def _remember(self, _context: click.Context, _parameter: click.Parameter, state_dir: Path) -> Path:
        hints.remember(self._prefix.lower().replace("_", "-"), {"--state-dir": state_dir})
        return state_dir

    def _read_file(self, context: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
        if path is None:
            return
        try:
            values = read_toml(path)
        except ConfigError as error:
            raise click.BadParameter(str(error), context, param_hint="--config") from error
        for key, value in values.items():
            option = self._accepted.get(key)
            if option is None:
                known = ", ".join(sorted(self._accepted))
                raise click.UsageError(f"{path}: unknown key {key!r} (value {value!r}); accepted keys: {known}")
            if not _is_accepted(option, value, context):
                raise click.UsageError(f"{path}: key {key!r} has the value {value!r}; accepted: {_describe(option)}")
        context.default_map = values


def _is_accepted(option: click.Option, value: object, context: click.Context) -> bool:
    """Return whether a value of the file has the option's TOML type and is one that the option takes."""
    if option.multiple is not isinstance(value, list):
        return False
    items = value if isinstance(value, list) else [value]
    # bool is an int to Python, and not to anybody who writes a configuration file.
    if any(type(item) is not _toml_type(option) for item in items):
        return False
    # Neither an option nor the environment could hold it; to the system, a path would end there.
    if any("\0" in item for item in items if isinstance(item, str)):
        return False
    try:
        for item in items:
            option.type.convert(item, option, context)
    except click.BadParameter:
        return False
    return True


def _toml_type(option: click.Option) -> type:
    if option.is_flag:
        return bool
    return int if isinstance(option.type, click.types.IntParamType) else str


def _describe(option: click.Option) -> str:
    match option.type:
        case _ if option.is_flag:
            text = "true or false"
        case click.Choice(choices=choices):
            text = "one of " + ", ".join(f'"{choice}"' for choice in choices)
        case click.IntRange(min=least, max=most):
            text = f"a whole number from {least} to {most}"
        case _:
            text = "a string" if option.metavar is None else f"a string: {option.metavar}"
    return f"a list, each item {text}" if option.multiple else text
