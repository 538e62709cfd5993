"""A request's deadline: when it must be answered, and how much of that an agent is told."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from bmc_proxy.errors import AgentTimeout

# An agent looks at its deadline for the last time right before it records an intent; a signature, two writes to a disk
# and the way back come after that. What it begins at the last moment is to be here in time, and so is its own word that
# it was too late, without which its place is taken until it says so. Of a short budget no more than a tenth.
MARGIN_S = 0.25
MARGIN_SHARE = 0.1

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a request must be answered.

    Attributes:
        clock: the reactor, or a `Clock`.
        ends_at: in that clock's seconds.
    """

    clock: IReactorTime
    ends_at: float

    @classmethod
    def after(cls, clock: IReactorTime, seconds: float) -> "Deadline":
        """Return the deadline that is so far away."""
        return cls(clock, clock.seconds() + seconds)

    def earlier(self, by_s: float) -> "Deadline":
        """Return one that leaves so much time after it."""
        return Deadline(self.clock, self.ends_at - by_s)

    @property
    def left_s(self) -> float:
        """How much time is left; 0 where there is none."""
        return max(0.0, self.ends_at - self.clock.seconds())

    def for_agent_ms(self) -> int:
        """Return the deadline that an agent is given now: what is left, less a margin. Raises AgentTimeout for none."""
        left_s = self.left_s
        left_ms = int((left_s - min(MARGIN_S, left_s * MARGIN_SHARE)) * 1000)
        if left_ms < 1:
            raise AgentTimeout
        return left_ms

    async def limit(self, work: Deferred[_Result]) -> _Result:
        """Wait for the work; at the deadline cancel it and raise AgentTimeout."""
        return await self.give_up(work, work.cancel)

    async def give_up(self, work: Awaitable[_Result], cancel: Callable[[], None]) -> _Result:
        """Wait for the work; at the deadline call `cancel`, which ends the wait, and raise AgentTimeout."""
        timer = self.clock.callLater(self.left_s, cancel)
        try:
            return await work
        except CancelledError as error:
            if timer.active():
                raise  # somebody else did not want it any more
            raise AgentTimeout from error
        finally:
            if timer.active():
                timer.cancel()
