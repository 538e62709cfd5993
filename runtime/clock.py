"""The time of day, and how far it is trusted.

The time of day may be wrong and may jump. Timers and sessions use a monotonic clock; the time of day decides only what
is written into certificates, CRLs and the audit, and whether one of these is valid now.
"""

from datetime import UTC, datetime, timedelta

from runtime.build_date import BUILD_DATE
from runtime.errors import StartError

# What is signed here is dated back so far, for verifiers whose clocks are slow. What is dated further ahead than this
# was made while the clock was ahead.
BACK_DATE = timedelta(minutes=5)


def utc_now() -> datetime:
    """Return the time of day, aware, in UTC."""
    return datetime.now(UTC)


def milliseconds(moment: datetime) -> int:
    """Return a time in milliseconds since 1970-01-01 UTC."""
    return int(moment.timestamp() * 1000)


def is_before_build(now: datetime) -> bool:
    """Return whether the clock cannot be right: it is before the date of this software."""
    return now < BUILD_DATE


def refuse_before_build(now: datetime, *, accepted: bool) -> None:
    """Refuse a clock that cannot be right, such as that of a machine without a battery.

    Args:
        now: aware UTC time.
        accepted: the operator gave `--accept-clock`.

    Raises:
        StartError: the clock is before the date of this software; the text says what to do.
    """
    if is_before_build(now) and not accepted:
        raise StartError(early_clock_text(now))


def early_clock_text(now: datetime) -> str:
    """Return what an operator is to do about a clock that is before the date of this software."""
    return (
        f"the clock says {now.isoformat(timespec='seconds')}, which is before this software was built"
        f" ({BUILD_DATE.date()}): what is made now would be dated wrong. Set the clock, or wait for NTP; to use this"
        " clock all the same: --accept-clock"
    )
