"""What commands print for a person, with nothing in it that a terminal would obey or hide."""

import sys

import click

from runtime.printable import printable


def print_line(text: str, *, err: bool = False) -> None:
    """Print one line, escaped by `printable` for the encoding of the stream.

    Args:
        text: of any origin.
        err: print to standard error.
    """
    stream = sys.stderr if err else sys.stdout
    click.echo(printable(text, stream.encoding), err=err)
