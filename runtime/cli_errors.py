"""Commands that say in one line why they did nothing."""

import os
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import click

from runtime.errors import ConfigError, StartError
from runtime.printable import printable

_Arguments = ParamSpec("_Arguments")
_Command = Callable[_Arguments, None]


def telling(*in_the_way: type[Exception]) -> Callable[[_Command[_Arguments]], _Command[_Arguments]]:
    """Return a decorator for a command: one line, and exit status 2 for a refused setting, 1 for what is in the way.

    Nothing that the command makes is open to other users.

    Args:
        in_the_way: the errors that are told so, beside StartError and OSError; any other is a bug, with a traceback.
    """

    told: tuple[type[Exception], ...] = (StartError, OSError, *in_the_way)

    def decorate(command: _Command[_Arguments]) -> _Command[_Arguments]:
        @wraps(command)
        def tell(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> None:
            os.umask(0o077)
            try:
                command(*arguments, **options)
            except ConfigError as error:
                raise click.UsageError(printable(str(error))) from error
            except BrokenPipeError:
                raise  # whoever read has read enough: click ends without a word
            except told as error:
                raise click.ClickException(printable(str(error))) from error

        return tell

    return decorate
