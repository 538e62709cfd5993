"""Lanes of the work queue: which task waits where, by what is known of its source.

- KNOWN: changes of accounts by a caller that is logged in, and checks for an account from a source that logged in to it
  before. Branches by account first: a caller gets in here only under a name whose password it has had.
- NEW_NETWORK: the first check from a network within some minutes, the latest first. However many tries a flood sends,
  each of its networks is new once, and a network that comes after it waits for none of them.
- NEW_SITE: the first check from a site of a network that is not new.
- SEEN: every further check.

In the last two, branches are network, site, source, and the name last, as anybody can make names up.
"""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum, unique

from runtime.limits.fair_queue import Path
from runtime.limits.networks import networks_of
from runtime.limits.token_bucket import SOURCES_LIMIT

LEAST_PLACES = 8
# Of a task that was displaced.
RETRY_AFTER_S = 5


@unique
class Lane(Enum):
    """Where a task waits."""

    KNOWN = "known"
    NEW_NETWORK = "new network"
    NEW_SITE = "new site"
    SEEN = "seen"

    def places(self, connections: int) -> int:
        """Return how many tasks may wait here. Each keeps a connection busy: all together three quarters of them."""
        return max(LEAST_PLACES, connections // (4 if self in (Lane.KNOWN, Lane.NEW_NETWORK) else 8))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a task stands.

    Attributes:
        path: its branches in the lane, the outermost first.
        keys: no two tasks that have one in common run at the same time.
    """

    lane: Lane
    path: Path
    keys: Collection[str] = ()

    @classmethod
    def of_known(cls, user: str, source: str, keys: Collection[str] = ()) -> "Place":
        """Return the place of a caller that is logged in, or was logged in from this source before."""
        return cls(Lane.KNOWN, (user, *networks_of(source), source), keys)

    @classmethod
    def of_stranger(cls, lane: Lane, user: str, source: str, keys: Collection[str] = ()) -> "Place":
        """Return the place of a login from a source that nobody logged in from to this account."""
        return cls(lane, (*networks_of(source), source, user), keys)


class Strangers:
    """The networks and sites that were seen lately; past `SOURCES_LIMIT` of each, the latest.

    Args:
        window_s: how long one counts as seen.
    """

    def __init__(self, window_s: float) -> None:
        self._networks = _Recent(window_s)
        self._sites = _Recent(window_s)

    def lane_of(self, source: str, now: float) -> Lane:
        """Return the lane of a check from a source, whose network and site have been seen from now on."""
        network, site = networks_of(source)
        is_new_network, is_new_site = self._networks.note(network, now), self._sites.note(site, now)
        if is_new_network:
            return Lane.NEW_NETWORK
        return Lane.NEW_SITE if is_new_site else Lane.SEEN

    def was_displaced(self, source: str, lane: Lane, now: float) -> None:
        """Have the source count as new again after `RETRY_AFTER_S`: its check in a lane was displaced.

        Not at once: a flood that sends again at once would stay new.
        """
        network, site = networks_of(source)
        if lane is not Lane.SEEN:
            self._sites.forget(site, now + RETRY_AFTER_S)
        if lane is Lane.NEW_NETWORK:
            self._networks.forget(network, now + RETRY_AFTER_S)


class _Recent:
    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._noted_at: OrderedDict[str, float] = OrderedDict()  # the oldest first

    def note(self, name: str, now: float) -> bool:
        """Note a name, and return True, unless it was noted within the window, which that does not prolong."""
        noted_at = self._noted_at.get(name)
        if noted_at is not None and noted_at <= now < noted_at + self._window_s:
            return False
        self._noted_at[name] = now
        self._noted_at.move_to_end(name)
        if len(self._noted_at) > SOURCES_LIMIT:
            self._noted_at.popitem(last=False)
        return True

    def forget(self, name: str, at: float) -> None:
        if name in self._noted_at:
            self._noted_at[name] = at - self._window_s
