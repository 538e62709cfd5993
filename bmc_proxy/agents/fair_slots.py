"""Slots: a bounded number of askers at a time, and the others in fair turns."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from twisted.internet.defer import Deferred

from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.agents.queue import busy
from runtime.limits.admission import Admission, Entrant
from runtime.limits.fair_queue import Path


class FairSlots:
    """The slots of one kind of work.

    Args:
        now: seconds, of the clock of the askers' deadlines.
        at_once: how many slots there are.
        waiting: how many askers wait for one.
    """

    def __init__(self, now: Callable[[], float], at_once: int, waiting: int) -> None:
        self._at_once = at_once
        self._admission = Admission(now, self._has_room, waiting)

    @asynccontextmanager
    async def slot(self, path: Path, octets: int, deadline: Deadline) -> AsyncIterator[None]:
        """Hold a slot, waiting for it where there is none. An asker that is cancelled leaves at once.

        Args:
            path: the asker's branches, the outermost first.
            octets: that it holds while it waits.
            deadline: before which a slot is of use.

        Raises:
            AgentBusy: there is no room, or not before the deadline.
        """

        def leave(_has_slot: Deferred[None]) -> None:
            self._admission.withdraw(entrant)

        has_slot: Deferred[None] = Deferred(leave)
        entrant = Entrant(
            path,
            octets,
            deadline.ends_at,
            lambda: has_slot.callback(None),
            lambda wait_s: has_slot.errback(busy(wait_s)),
        )
        self._admission.enter(entrant)
        await has_slot
        try:
            yield
        finally:
            self._admission.leave(entrant)

    def _has_room(self) -> bool:
        return self._admission.under_way < self._at_once
