"""What passes between the site and a dialect: a call, a reply, a problem."""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from bmc_proxy.exchange import Requester


@dataclass(frozen=True, slots=True)
class Call:
    """One request, read whole.

    Attributes:
        request_id: 16 hexadecimal characters, in every error body, in the log and in X-Request-Id.
        body: at most `site.BODY_LIMIT` octets.
        told: fields that a handler adds to the request's log line.
    """

    request_id: str
    requester: Requester
    body: bytes
    idempotency_key: str | None
    told: dict[str, str]


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered: a status, a JSON body, and headers beside those that every answer has."""

    status: int
    body: Mapping[str, object]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """What went wrong, before a dialect words it.

    Attributes:
        status: HTTP status.
        code: stable, such as "csr.malformed".
        text: what to change.
        headers: that go with it, such as Retry-After or Allow.
        in_body: the body itself could not be read, so nothing in it was judged.
    """

    status: int
    code: str
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)
    in_body: bool = False


Handler = Callable[[Call], Coroutine[Any, Any, Reply]]


class Dialect(Protocol):
    """One API family.

    Attributes:
        prefix: of its paths.
        routes: path, then method, to handler.
    """

    @property
    def prefix(self) -> str: ...

    @property
    def routes(self) -> Mapping[str, Mapping[str, Handler]]: ...

    def word(self, problem: Problem, request_id: str) -> Reply:
        """Return the problem in this family's shape, with its code and the request id."""
