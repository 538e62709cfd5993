"""Values of the tests of workers."""

from typing import Any

from twisted.internet.defer import Deferred

from bmc_proxy.workers.messages import SessionIs
from support.run_log import secret

PASSWORD = secret("pass-over-the-pipe")


def result_of(waiting: Deferred[Any]) -> Any:
    """Return the result or the error of what is done; None of what is not."""
    results: list[Any] = []
    waiting.addBoth(lambda result: results.append(getattr(result, "value", result)))
    return results[0] if results else None


SESSION = SessionIs("0123", "root", "id", None, "192.0.2.1", "00" * 32, secret("xsrf-of-the-session"))
