"""The work queue: one task at a time, in fair turns and bounded places, done though its client hung up."""

from collections.abc import Callable
from functools import partial

import pytest
from conftest import LogWatch
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from bmc_proxy.auth.lanes import LEAST_PLACES, Lane, Place
from bmc_proxy.auth.work_queue import CONNECTIONS, WAIT_LIMIT_S, WorkQueue
from bmc_proxy.errors import AuthFailed, TooManyRequests

SOURCE = "192.0.2.1"
PLACES = Lane.SEEN.places(CONNECTIONS)


class Work:
    """A queue on a clock, and work that is done when the test says so."""

    def __init__(self, at_once: int = 1, connections: int = CONNECTIONS) -> None:
        self.clock = Clock()
        self.queue = WorkQueue(self.clock, at_once, connections)
        self.begun: list[str] = []
        self.results: dict[str, object] = {}
        self.waits: dict[str, Deferred[str]] = {}
        self._done: dict[str, Deferred[str]] = {}

    def put(self, name: str, place: Place) -> None:
        """Put a task into the queue."""

        async def work() -> str:
            self.begun.append(name)
            self._done[name] = Deferred()
            return await self._done[name]

        def ended(result: object) -> None:
            self.results[name] = getattr(result, "value", result)

        self.waits[name] = Deferred.fromCoroutine(self.queue.run(place, work))
        self.waits[name].addBoth(ended)

    def end(self, name: str | None = None) -> None:
        """End a task, by default the one that began last."""
        self._done.pop(name or self.begun[-1]).callback(f"end of {name or self.begun[-1]}")

    def fail(self, name: str, error: Exception) -> None:
        """Let a task fail."""
        self._done.pop(name).errback(error)

    def refused(self) -> list[str]:
        """Return the names of the tasks that were refused."""
        return [name for name, result in self.results.items() if isinstance(result, TooManyRequests)]

    def began_after(self, name: str) -> int:
        """End tasks until one has begun; return how many others began before it from now on."""
        count = len(self.begun)
        while name not in self.begun:
            self.end()
        return len(self.begun) - count - 1


def seen(source: str = SOURCE, user: str = "root", keys: tuple[str, ...] = ()) -> Place:
    """Return the place of a stranger that was seen before."""
    return Place.of_stranger(Lane.SEEN, user, source, keys)


def new(source: str) -> Place:
    """Return the place of a stranger of a network that was not seen."""
    return Place.of_stranger(Lane.NEW_NETWORK, "root", source)


def flooded(sources: Callable[[int], str], count: int = 1000) -> Work:
    """Return a queue in which strangers that were seen fill every place."""
    work = Work()
    for number in range(count):
        work.put(f"flood {number}", seen(sources(number), f"user{number}"))
    assert work.queue.waiting == PLACES
    return work


def one_network(number: int) -> str:
    """Return one of 140 addresses of a /24."""
    return f"198.51.100.{number % 140}"


def many_networks(number: int) -> str:
    """Return an address of one of 140 networks."""
    return f"198.51.{number % 140}.1"


def test_tasks_run_one_at_a_time() -> None:
    """The second begins when the first has ended."""
    work = Work()
    work.put("first", seen())
    work.put("second", seen())
    assert work.begun == ["first"]
    work.end("first")
    assert work.begun == ["first", "second"]
    assert work.results == {"first": "end of first"}
    work.end("second")
    assert work.results["second"] == "end of second"


def test_lane_is_bounded() -> None:
    """A lane holds its places beside the task that runs; with one more, one is refused, and it runs no more."""
    work = Work()
    for number in range(1 + PLACES):
        work.put(f"{number}", seen())
    assert work.refused() == []
    work.put("late", seen())
    assert work.refused() == ["late"]
    work.end()
    work.put("later", seen())
    assert work.refused() == ["late"]


@pytest.mark.parametrize("connections", [1, CONNECTIONS, 10_000])
def test_queue_leaves_connections_to_others(connections: int) -> None:
    """All lanes together have places for three quarters of the connections, and a few where there are hardly any."""
    places = sum(lane.places(connections) for lane in Lane)
    assert places == max(4 * LEAST_PLACES, connections * 3 // 4)


@pytest.mark.parametrize("sources", [one_network, many_networks])
@pytest.mark.parametrize(
    "place",
    [
        Place.of_known("root", "203.0.113.1"),
        Place.of_known("root", "198.51.100.7"),
        new("203.0.113.1"),
        Place.of_stranger(Lane.NEW_SITE, "root", "198.51.100.200"),
    ],
    ids=["known", "known in the network of the flood", "new network", "new site in the network of the flood"],
)
def test_login_beside_a_flood_is_next(sources: Callable[[int], str], place: Place) -> None:
    """Whatever strangers that were seen send, one task at most begins before that of anybody else."""
    work = flooded(sources)
    for _ in range(10):
        work.end()
    work.put("administrator", place)
    assert work.began_after("administrator") <= 1
    assert "administrator" not in work.results


def test_login_from_another_network_that_was_seen_waits_for_one_of_each() -> None:
    """Behind 140 addresses of one network a caller that failed before waits for one of them, and is never displaced."""
    work = flooded(one_network)
    work.put("administrator", seen("203.0.113.1"))
    for number in range(1000):
        work.put(f"more {number}", seen(one_network(number), f"other{number}"))
    assert work.began_after("administrator") <= 1
    assert "administrator" not in work.results


def test_networks_of_ipv6_take_turns_as_one() -> None:
    """All of a /48 is one branch: 140 of its /64s cost a caller of another network one turn."""
    work = flooded(lambda number: f"2001:db8:0:{number % 140:x}::/64")
    work.put("administrator", seen("2001:db8:1::/64"))
    assert work.began_after("administrator") <= 1


def test_latest_new_network_is_first() -> None:
    """A hundred networks that were not seen hold up nobody that comes after them from another one."""
    work = Work()
    for number in range(101):
        work.put(f"flood {number}", new(many_networks(number)))
    work.put("administrator", new("203.0.113.1"))
    assert work.began_after("administrator") == 0
    assert work.refused() == []


def test_new_networks_past_the_places_displace_the_oldest() -> None:
    """Where more come than there are places, the ones that waited longest are refused."""
    work = Work()
    places = Lane.NEW_NETWORK.places(CONNECTIONS)
    for number in range(1 + places + 2):
        work.put(f"{number}", new(f"10.0.{number}.1"))
    assert work.begun == ["0"]
    assert work.refused() == ["1", "2"]


def test_known_callers_take_turns_by_account() -> None:
    """An account whose owner floods with its right password, from many sources, costs another account one turn."""
    work = Work()
    for number in range(1000):
        work.put(f"reader {number}", Place.of_known("reader", many_networks(number)))
    work.put("administrator", Place.of_known("root", SOURCE))
    assert work.began_after("administrator") <= 1
    assert "administrator" not in work.results


def test_lanes_share_the_turns() -> None:
    """With all lanes busy the known have half of the turns, and no lane has none."""
    work = Work()
    for number in range(40):
        work.put(f"k{number}", Place.of_known("root", SOURCE))
        work.put(f"n{number}", new(many_networks(number)))
        work.put(f"i{number}", Place.of_stranger(Lane.NEW_SITE, "root", f"203.0.113.{number}"))
        work.put(f"s{number}", seen(one_network(number)))
    work.end()
    first = len(work.begun)
    for _ in range(32):
        work.end()
    counts = {lane: sum(name.startswith(lane) for name in work.begun[first:]) for lane in "knis"}
    assert counts == {"k": 16, "n": 8, "i": 4, "s": 4}


@pytest.mark.parametrize("place", [seen(), new(SOURCE), Place.of_known("root", SOURCE)], ids=["seen", "new", "known"])
def test_task_that_waits_too_long_is_refused(place: Place) -> None:
    """After ten seconds, up to which it may begin; it is not run any more, and leaves its place to others."""
    work = Work()
    for name in ("runs", "in time", "late"):
        work.put(name, place)
    work.clock.advance(WAIT_LIMIT_S - 0.1)
    work.end()
    assert len(work.begun) == 2
    assert work.refused() == []
    work.clock.advance(0.1)
    assert len(work.refused()) == 1
    assert work.queue.waiting == 0
    work.end()
    assert len(work.begun) == 2
    assert work.clock.getDelayedCalls() == []


def test_keys_keep_tasks_apart() -> None:
    """Tasks that share no key run at once; what has two keys begins when both are free."""
    work = Work(at_once=8)
    for name, keys in (("ax", ("a", "x")), ("bx", ("b", "x")), ("by", ("b", "y"))):
        work.put(name, seen(f"192.0.2.{len(work.waits)}", keys=keys))
    assert work.begun == ["ax", "by"]
    work.end("ax")
    assert work.begun == ["ax", "by"]
    work.end("by")
    assert work.begun == ["ax", "by", "bx"]


def test_quarter_is_kept_for_the_known() -> None:
    """Of eight at once strangers get six; a known caller begins at once beside them, and strangers after an end."""
    work = Work(at_once=8)
    for number in range(9):
        work.put(f"stranger {number}", seen(f"192.0.2.{number}"))
    assert len(work.begun) == 6
    for number in range(3):
        work.put(f"known {number}", Place.of_known("root", f"192.0.2.{number}"))
    assert work.begun[6:] == ["known 0", "known 1"]
    work.end("stranger 0")
    assert work.begun[8:] == ["known 2"]
    work.end("stranger 1")
    assert work.begun[9:] == ["stranger 6"]
    for name in ("known 0", "known 1", "known 2"):
        work.end(name)
    assert work.begun[10:] == ["stranger 7"]
    work.end("stranger 2")
    assert work.begun[11:] == ["stranger 8"]


def test_closed_queue_refuses() -> None:
    """Once closed, what runs ends; what waits in any lane, and what comes, is refused."""
    work = Work()
    work.put("runs", seen())
    for name, place in (("seen", seen()), ("new", new(SOURCE)), ("known", Place.of_known("root", SOURCE))):
        work.put(name, place)
    work.queue.close()
    work.put("late", seen())
    assert sorted(work.refused()) == ["known", "late", "new", "seen"]
    work.end("runs")
    assert work.results["runs"] == "end of runs"
    assert work.begun == ["runs"]


def test_tasks_that_end_at_once_leave_nothing_behind() -> None:
    """A whole lane whose work fails without waiting is done in its order, not nested, and others have a turn again."""
    work = Work(connections=100_000)
    work.put("first", seen())
    order: list[int] = []

    async def refuse(number: int) -> str:
        order.append(number)
        raise AuthFailed

    for number in range(2000):
        waiting = Deferred.fromCoroutine(work.queue.run(seen(), partial(refuse, number)))
        waiting.addErrback(lambda failure: failure.trap(AuthFailed))
    work.end("first")

    assert order == list(range(2000))
    work.put("last", seen())
    assert work.begun == ["first", "last"]


def test_work_is_done_for_a_client_that_hung_up() -> None:
    """Giving up the wait neither ends the work nor lets the next task begin, and a task that waits is done as well."""
    work = Work()
    for name in ("first", "second", "third"):
        work.put(name, seen())
    work.waits["first"].cancel()
    work.waits["second"].cancel()
    assert isinstance(work.results["first"], CancelledError)
    assert work.begun == ["first"]
    work.end("first")
    assert work.begun == ["first", "second"]
    work.end("second")
    work.end("third")
    assert work.results["third"] == "end of third"


@pytest.mark.parametrize("hangs_up", [True, False])
def test_failure_of_work_reaches_the_client_or_the_log(log_watch: LogWatch, hangs_up: bool) -> None:
    """An error goes to the client that waits; where it hung up, a bug is logged and a refusal is not."""
    work = Work()
    for name in ("refusal", "bug"):
        work.put(name, seen())
        if hangs_up:
            log_watch.expect_error("nobody waits for")
            work.waits[name].cancel()
    work.fail("refusal", AuthFailed())
    work.fail("bug", ZeroDivisionError())

    expected = [CancelledError] * 2 if hangs_up else [AuthFailed, ZeroDivisionError]
    assert [type(result) for result in work.results.values()] == expected
    assert log_watch.texts().count("work that nobody waits for failed") == hangs_up
