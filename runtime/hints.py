"""Commands that error texts name, written so that they work when they are pasted into a shell.

Every command takes `--state-dir`, and an error that is raised deep inside does not know where this process keeps its
state, nor how it opens its keys. So the command line notes once what it was given (`remember`), and the code that words
an error asks for the command.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path

_options: dict[str, dict[str, str]] = {}


def remember(program: str, options: Mapping[str, str | Path]) -> None:
    """Note options that this process was given for a program, such as "vmi-agent": paths are made absolute."""
    known = _options.setdefault(program, {})
    known.update({name: str(it.absolute()) if isinstance(it, Path) else it for name, it in options.items()})


def given(program: str, option: str, otherwise: str) -> str:
    """Return the value that this process was given for an option, quoted for a shell."""
    return shlex.quote(_options.get(program, {}).get(option, otherwise))


def command(program: str, words: str, *, opens_keys: bool = False) -> str:
    """Return a command as it is typed, with the state directory of this process.

    Args:
        program: such as "vmi-agent". Where this process was given no state directory for it, DIR stands for one.
        words: what follows, quoted for a shell where it needs to be; its own options stay behind the state directory.
        opens_keys: the command takes the options that open keys, so those that this process was given go with it.
    """
    known = {"--state-dir": "DIR"} | _options.get(program, {})
    given = [f"{name} {shlex.quote(it)}" for name, it in known.items() if opens_keys or name == "--state-dir"]
    name, *own = words.split(" --", 1)
    return " ".join([program, name, *given, *(f"--{each}" for each in own)])
