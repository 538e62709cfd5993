"""Sources, what each is allowed, and the crowd of connections."""

import pytest

from runtime.limits.crowd import Crowd, Member
from runtime.limits.networks import is_source, networks_of, source_of
from runtime.limits.token_bucket import SOURCES_LIMIT, Allowance


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::2", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_source_of_an_address(address: str, source: str) -> None:
    """An IPv4 address is a source; of IPv6 the /64, of which one machine has all addresses."""
    assert source_of(address) == source


@pytest.mark.parametrize(
    ("address", "network", "site"),
    [
        ("192.0.2.1", "192.0.2.0/24", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.0/24", "192.0.2.1"),
        ("2001:db8:0:ff::1", "2001:db8::/48", "2001:db8::/56"),
        ("2001:db8:0:100::1", "2001:db8::/48", "2001:db8:0:100::/56"),
        ("2001:db8:0:ffff:ffff::1", "2001:db8::/48", "2001:db8:0:ff00::/56"),
        ("2001:db8:1::1", "2001:db8:1::/48", "2001:db8:1::/56"),
        ("unix", "unix", "unix"),
    ],
)
def test_networks_of_an_address(address: str, network: str, site: str) -> None:
    """A customer has a /56 or a /48 of IPv6; an IPv4 address that IPv6 carries is an IPv4 address."""
    assert networks_of(source_of(address)) == (network, site)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", True),
        ("2001:db8::/64", True),
        ("192.0.2.1/32", False),
        ("192.0.2.0/24", False),
        ("2001:db8::/48", False),
        ("2001:db8::1", False),
        ("::ffff:192.0.2.1", False),
        ("2001:DB8::/64", False),
        ("unix", False),
        ("", False),
    ],
)
def test_texts_that_are_sources(text: str, expected: bool) -> None:
    """A source of an address is spelled in one way."""
    assert is_source(text) is expected


def test_allowance_is_used_up_and_comes_back() -> None:
    """A burst at once, then one for each that came back; never more than the burst."""
    allowance = Allowance(per_s=2, burst=3)

    assert [allowance.take("a", 0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert allowance.wait_s("a", 0.25) == 0.25
    assert [allowance.take("a", 0.5), allowance.take("a", 0.5)] == [0, 0.5]
    assert [allowance.take("a", 100) for _ in range(4)] == [0, 0, 0, 0.5]
    assert allowance.take("b", 100) == 0


def test_allowance_survives_a_clock_that_is_set_back() -> None:
    """Time that runs backwards gives nothing and takes nothing."""
    allowance = Allowance(per_s=1, burst=1)
    assert allowance.take("a", 1000) == 0
    assert allowance.take("a", 0) == 1
    assert allowance.take("a", 1001) == 0


def test_allowance_remembers_a_bounded_number_of_sources() -> None:
    """Past 4096 sources the one not heard of longest is forgotten."""
    allowance = Allowance(per_s=0.001, burst=1)
    for number in range(SOURCES_LIMIT + 1):
        assert allowance.take(str(number), 0) == 0

    assert allowance.take("1", 0) > 0
    assert allowance.take("0", 0) == 0


class Connections:
    """A crowd and the connections in it."""

    def __init__(self, limit: int) -> None:
        self.crowd = Crowd(limit)
        self.ended: list[str] = []

    def connect(self, name: str, source: str, worth: int = 2) -> bool:
        """Connect if there is room."""
        if not self.crowd.has_room_for(source):
            return False
        self.crowd.enter(Member(source, lambda: worth, lambda: self.ended.append(name)))
        return True


def test_crowd_gives_a_source_half() -> None:
    """One source has half of the places, another one the other half."""
    connections = Connections(4)

    assert [connections.connect(f"{n}", "a") for n in range(3)] == [True, True, False]
    assert [connections.connect(f"{n}", "b") for n in range(3)] == [True, True, False]
    assert not connections.connect("c", "c")
    assert connections.ended == []


def test_crowd_ends_what_is_worth_least_for_another_one() -> None:
    """Where all places are taken the largest source's oldest idle connection makes room, then who is slow to ask."""
    connections = Connections(5)
    for name, source, worth in (("busy", "a", 2), ("slow", "a", 1), ("idle", "a", 0), ("b", "b", 0), ("c", "c", 2)):
        assert connections.connect(name, source, worth)

    for name, ended in (("d", "idle"), ("e", "slow"), ("f", "b")):
        assert connections.connect(name, name)
        assert connections.ended[-1] == ended
    assert not connections.connect("g", "g")


def test_crowd_takes_nothing_from_who_has_less() -> None:
    """A source that comes back again and again ends its like, not the one connection of another."""
    connections = Connections(5)
    for name, source, worth in (("1", "a", 1), ("2", "a", 1), ("3", "b", 1), ("4", "b", 1), ("honest", "c", 0)):
        assert connections.connect(name, source, worth)

    assert connections.connect("5", "a", 1)
    assert connections.ended == ["1"]
    assert connections.connect("d", "d", 0)
    assert connections.ended == ["1", "2"]


def test_crowd_counts_those_who_left() -> None:
    """A connection that is gone leaves its place, once."""
    crowd = Crowd(2)
    leave = crowd.enter(Member("a", lambda: 2, lambda: None))
    crowd.enter(Member("b", lambda: 2, lambda: None))
    assert not crowd.has_room_for("a")
    leave()
    leave()
    assert crowd.has_room_for("a")
