"""Networks: what of an address counts as one source, and which sources commonly belong to one party.

One machine commonly has all addresses of an IPv6 /64, one customer all of a /56 or a /48. So a source, which has an
allowance of its own, is an IPv4 address or an IPv6 /64; where sources are counted or take turns, those of one site and
of one network count together.
"""

import ipaddress
from functools import lru_cache
from typing import NamedTuple

_REMEMBERED = 4096
SITE_V6, NETWORK_V6, NETWORK_V4 = 56, 48, 24


@lru_cache(_REMEMBERED)
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


@lru_cache(_REMEMBERED)
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


def site_of(address: str) -> str:
    """Return what counts as one site: an IPv4 address, an IPv6 /56, "unix"."""
    return networks_of(source_of(address)).site


def is_source(text: str) -> bool:
    """Return whether a text is what `source_of` makes of an IP address."""
    try:
        subnet = ipaddress.ip_network(text)
    except ValueError:
        return False
    return source_of(str(subnet.network_address)) == text
