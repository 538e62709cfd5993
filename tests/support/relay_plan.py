"""What is to befall a stream: plans of faults, each made of a seed alone."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What can befall a stream."""

    DELAY = "delay"  # one direction waits
    STALL = "stall"  # both do
    DRIP = "drip"  # so many octets arrive one by one
    CUT = "cut"  # the connection ends in good order, in mid-frame or not
    RESET = "reset"  # it is torn down, and what was under way is lost
    HALF_CLOSE = "half-close"  # this direction ends, the other one goes on
    SECOND_FRAME = "second frame"  # a whole frame arrives twice
    DUPLICATE = "duplicate"  # so many octets arrive twice
    FLIP = "flip"  # one bit is another


# What leaves each octet as it was: no more than this can befall a stream on loopback or a unix socket.
FAITHFUL = (Kind.DELAY, Kind.STALL, Kind.DRIP, Kind.CUT, Kind.RESET, Kind.HALF_CLOSE)
# What makes other octets of them, and what TLS is there for.
FORGING = (Kind.DUPLICATE, Kind.FLIP)
_ENDS = frozenset({Kind.CUT, Kind.RESET, Kind.HALF_CLOSE})


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that befalls one direction of one connection.

    Attributes:
        to_agent: which direction.
        at: how many octets of it pass before.
        count: octets that drip or arrive twice; the number of the bit that flips.
        seconds: how long a wait is.
    """

    kind: Kind
    to_agent: bool
    at: int
    count: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What befalls one connection after the other; those that come later are left alone.

    Attributes:
        seed: what it was made of.
        faults: of each connection.
        refused_s: how long nobody is let in after the end of each connection.
    """

    seed: int
    faults: tuple[tuple[Fault, ...], ...]
    refused_s: tuple[float, ...]


def plan_of(seed: int, kinds: Iterable[Kind], connections: int = 3, longest_s: float = 1.5) -> Plan:
    """Return the plan of a seed, always the same for the same arguments.

    Args:
        longest_s: of a delay, of a stall; most are much shorter.
    """
    chance = random.Random(seed)  # noqa: S311  # it has to come out the same every time
    kinds = sorted(kinds)
    ends = [kind for kind in kinds if kind in _ENDS]

    def fault(kind: Kind, earliest: int = 0) -> Fault:
        # In the HELLO, in the first few records, or far into the stream.
        [reach] = chance.choices((60, 2_000, 60_000), (1, 4, 4))
        at = earliest + int(reach * chance.random())
        return Fault(kind, chance.random() < 0.5, at, chance.randrange(1, 1_000), longest_s * chance.random() ** 2)

    faults = []
    for _ in range(connections):
        some = [fault(chance.choice(kinds)) for _ in range(chance.randrange(4))]
        if ends:  # else the next connection might never come
            some.append(fault(chance.choice(ends), max((each.at for each in some), default=0)))
        faults.append(tuple(sorted(some, key=lambda each: each.at)))
    refused_s = tuple(chance.random() if chance.random() < 0.3 else 0.0 for _ in range(connections))
    return Plan(seed, tuple(faults), refused_s)
