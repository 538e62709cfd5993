"""Notices for whoever runs a proxy."""

from twisted.logger import Logger

_log = Logger()


def not_usable(what: str, reason: str) -> None:
    """Log why something of the state directory cannot be used."""
    _log.warn(f"{what} not usable", reason=reason)
