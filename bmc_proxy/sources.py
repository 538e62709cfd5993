"""Sources: where requests come from, and how much each may ask for, in bounded memory.

One machine commonly has all addresses of an IPv6 /64, one customer all of a /56 or a /48. So a source, which has an
allowance of its own, is an IPv4 address or an IPv6 /64; where sources are counted or take turns, those of one site and
of one network count together.
"""

import ipaddress
from collections import OrderedDict
from functools import lru_cache
from typing import NamedTuple

SOURCES_LIMIT = 4096
SITE_V6, NETWORK_V6, NETWORK_V4 = 56, 48, 24


@lru_cache(SOURCES_LIMIT)
def source_of(address: str) -> str:
    """Return what counts as one source: an IPv4 address, an IPv6 /64, "unix"."""
    try:
        host = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(host, ipaddress.IPv6Address):
        if host.ipv4_mapped is not None:
            return str(host.ipv4_mapped)
        return str(ipaddress.ip_network((host, 64), strict=False))
    return str(host)


class Networks(NamedTuple):
    """The networks around a source.

    Attributes:
        network: an IPv4 /24, an IPv6 /48: the most that one party commonly has.
        site: the IPv4 address itself, an IPv6 /56: the least that one party commonly has.
    """

    network: str
    site: str


@lru_cache(SOURCES_LIMIT)
def networks_of(source: str) -> Networks:
    """Return the networks around a source, which is around itself where it is no address."""
    try:
        subnet = ipaddress.ip_network(source)
    except ValueError:
        return Networks(source, source)
    if isinstance(subnet, ipaddress.IPv4Network):
        return Networks(str(subnet.supernet(new_prefix=NETWORK_V4)), source)
    return Networks(str(subnet.supernet(new_prefix=NETWORK_V6)), str(subnet.supernet(new_prefix=SITE_V6)))


def path_of(address: str) -> tuple[str, str, str]:
    """Return the outermost branches of an address in a fair queue: its network, its site, and the source itself."""
    source = source_of(address)
    return (*networks_of(source), source)


def is_source(text: str) -> bool:
    """Return whether a text is what `source_of` makes of an IP address."""
    try:
        subnet = ipaddress.ip_network(text)
    except ValueError:
        return False
    return source_of(str(subnet.network_address)) == text


class Allowance:
    """A token bucket per source: `burst` at once, then `per_s` a second.

    Args:
        per_s: tokens that come back in a second.
        burst: tokens at most, which a source has that was not seen before.
    """

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, source: str, now: float) -> float:
        """Return in how many seconds a token is there; 0 for now. Takes none."""
        return max(0.0, (1 - self._level(source, now)) / self._per_s)

    def take(self, source: str, now: float) -> float:
        """Take a token and return 0, or take none and return in how many seconds there is one."""
        level = self._level(source, now)
        if level < 1:
            return (1 - level) / self._per_s
        self._levels[source] = (level - 1, now)
        self._levels.move_to_end(source)
        if len(self._levels) > SOURCES_LIMIT:
            self._levels.popitem(last=False)
        return 0.0

    def give_back(self, source: str) -> None:
        """Give a token back that was taken."""
        if source in self._levels:
            level, seen = self._levels[source]
            self._levels[source] = (min(self._burst, level + 1), seen)

    def _level(self, source: str, now: float) -> float:
        level, seen = self._levels.get(source, (self._burst, now))
        # A clock that was set back gives nothing, and takes nothing.
        return min(self._burst, level + max(0.0, now - seen) * self._per_s)
