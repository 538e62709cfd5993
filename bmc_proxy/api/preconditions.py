"""Conditions that a request sets: If-Match and If-None-Match (RFC 9110, 13.1 and 13.2)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bmc_proxy.errors import VersionGone

# entity-tag (RFC 9110, 8.8.3); in a list of them (5.6.1) commas and white space stand between.
_TAG = re.compile(rb'(?:W/)?"[!#-~\x80-\xff]*"')
_BETWEEN = b" \t,"


@dataclass(frozen=True, slots=True)
class Tags:
    """What one of the two headers names.

    Attributes:
        is_any: it is "*".
        tags: each with its quotes; none where the value is no list of tags.
    """

    is_any: bool
    tags: frozenset[str]

    def match_strongly(self, etag: str | None) -> bool:
        """Return whether the current version is named (RFC 9110, 8.8.3.2): a weak tag names none.

        Args:
            etag: of the current representation; None where there is none.
        """
        return etag is not None and (self.is_any or etag in self.tags)

    def match_weakly(self, etag: str | None) -> bool:
        """Return whether the current version is named, whatever stands before its quotes."""
        tags = {tag.removeprefix("W/") for tag in self.tags}
        return etag is not None and (self.is_any or etag.removeprefix("W/") in tags)


@dataclass(frozen=True, slots=True)
class Preconditions:
    """The conditions of one request; None for a header that is not there."""

    match: Tags | None
    none_match: Tags | None

    def exclude(self, etag: str | None) -> bool:
        """Return whether If-None-Match rules the current version out.

        Args:
            etag: of the current representation; None where there is none.

        Raises:
            VersionGone: If-Match does not.
        """
        if self.match is not None and not self.match.match_strongly(etag):
            raise VersionGone
        return self.none_match is not None and self.none_match.match_weakly(etag)

    @property
    def versions(self) -> frozenset[str] | None:
        """What the current version must be one of, without quotes; None where any will do."""
        if self.match is None or self.match.is_any:
            return None
        return frozenset(tag.strip('"') for tag in self.match.tags if not tag.startswith("W/"))


NONE = Preconditions(None, None)


def preconditions_in(match: Sequence[bytes], none_match: Sequence[bytes]) -> Preconditions:
    """Return the conditions that a request sets, given the values of its If-Match and its If-None-Match headers."""
    if not match and not none_match:
        return NONE
    return Preconditions(_tags(match), _tags(none_match))


def _tags(values: Sequence[bytes]) -> Tags | None:
    if not values:
        return None
    value = b", ".join(values).strip(b" \t")
    if value == b"*":
        return Tags(True, frozenset())
    found = [] if _TAG.sub(b"", value).strip(_BETWEEN) else _TAG.findall(value)
    return Tags(False, frozenset(tag.decode("latin-1") for tag in found))
