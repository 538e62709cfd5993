"""Health: an agent that fails is asked after the others for a while, and longer where it goes on failing.

Nothing is ever shut out: an agent that is the only one with room is asked, however it did before.
"""

from dataclasses import dataclass

# About as long as a restart takes; and a failing agent is looked at often enough to be useful soon after it is mended.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
# A pause is so much shorter or longer, by chance, so that proxies do not come back to an agent all at once.
JITTER = 0.25


@dataclass(frozen=True, slots=True)
class Health:
    """How an agent did lately.

    Attributes:
        pause_s: the last pause that it was given; 0 where it answered since.
        until: when that pause ends, in the seconds of the clock that the functions below are given.
    """

    pause_s: float = 0.0
    until: float = 0.0

    def is_ailing(self, now: float) -> bool:
        """Return whether others are to be asked first."""
        return now < self.until


def after_failure(health: Health, now: float, chance: float) -> Health:
    """Return the health after a failure: a first pause, or one twice the last.

    What else fails during a pause lengthens nothing: one mishap fails everything that is under way.

    Args:
        chance: at random in 0 … 1.
    """
    if health.is_ailing(now):
        return health
    pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * health.pause_s))
    return Health(pause_s, now + pause_s * (1 + JITTER * (2 * chance - 1)))


def after_answer(health: Health, now: float) -> Health:
    """Return the health after an answer as it should be: what failed before is forgotten once its pause is over."""
    return health if health.is_ailing(now) else Health()
