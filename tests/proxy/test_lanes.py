"""Lanes: which strangers are new, and for how long they are not."""

import pytest

from bmc_proxy.auth.lanes import RETRY_AFTER_S, Lane, Strangers
from runtime.limits.token_bucket import SOURCES_LIMIT

WINDOW_S = 300.0
NETWORK, SITE, SEEN = Lane.NEW_NETWORK, Lane.NEW_SITE, Lane.SEEN


@pytest.mark.parametrize(
    ("sources", "lanes"),
    [
        (["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.3.1"], [NETWORK, SEEN, SITE, NETWORK]),
        (["2001:db8::/64", "2001:db8:0:ff::/64", "2001:db8:0:100::/64"], [NETWORK, SEEN, SITE]),
        (["2001:db8::/64", "2001:db8:1::/64"], [NETWORK, NETWORK]),
        (["unix", "unix"], [NETWORK, SEEN]),
    ],
)
def test_lanes_of_strangers(sources: list[str], lanes: list[Lane]) -> None:
    """A /24 or /48 is new once, and then each address or /56 in it is."""
    strangers = Strangers(WINDOW_S)
    assert [strangers.lane_of(source, 0) for source in sources] == lanes


def test_stranger_is_new_again_after_the_window() -> None:
    """That is as long after its first check, however many it sent meanwhile."""
    strangers = Strangers(WINDOW_S)
    assert strangers.lane_of("192.0.2.1", 0) is NETWORK
    assert strangers.lane_of("192.0.2.1", WINDOW_S - 0.1) is SEEN
    assert strangers.lane_of("192.0.2.1", WINDOW_S) is NETWORK


@pytest.mark.parametrize("lane", [NETWORK, SITE])
def test_displaced_stranger_is_new_again_after_retry_after(lane: Lane) -> None:
    """A check that had no turn costs a client that waits as long as it is asked to nothing; a flood does not wait."""
    strangers = Strangers(WINDOW_S)
    if lane is SITE:
        strangers.lane_of("192.0.2.9", 0)
    assert strangers.lane_of("192.0.2.1", 0) is lane
    strangers.was_displaced("192.0.2.1", lane, 1)
    assert strangers.lane_of("192.0.2.1", RETRY_AFTER_S + 0.9) is SEEN
    assert strangers.lane_of("192.0.2.1", RETRY_AFTER_S + 1) is lane


def test_displaced_stranger_that_was_seen_is_still_seen() -> None:
    """Being displaced makes nobody new that was not."""
    strangers = Strangers(WINDOW_S)
    strangers.lane_of("192.0.2.1", 0)
    strangers.was_displaced("192.0.2.1", SEEN, 1)
    assert strangers.lane_of("192.0.2.1", RETRY_AFTER_S + 1) is SEEN


def test_strangers_are_remembered_in_a_bounded_number() -> None:
    """Past 4096 networks the one noted longest ago is forgotten."""
    strangers = Strangers(WINDOW_S)
    sources = [f"10.{number // 256}.{number % 256}.1" for number in range(SOURCES_LIMIT + 1)]
    for source in sources:
        assert strangers.lane_of(source, 0) is NETWORK
    assert strangers.lane_of(sources[1], 0) is SEEN
    assert strangers.lane_of(sources[0], 0) is NETWORK
