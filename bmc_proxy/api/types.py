"""What passes between the site and a dialect: a route, a call, a reply, a problem."""

from collections.abc import Callable, Coroutine, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.api.preconditions import NONE, Preconditions
from bmc_proxy.auth.accounts import Privilege
from bmc_proxy.auth.principal import Caller
from bmc_proxy.errors import AuthRequired
from bmc_proxy.signing import Requester

LOGIN_BODY_LIMIT = 4 * 1024
CSR_BODY_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Call:
    """One request, read whole.

    Attributes:
        request_id: 16 hexadecimal characters, in every error body, in the log and in X-Request-Id.
        caller: who asks; None on a route that needs nobody.
        address: where the request came from.
        body: at most the route's `body_limit` octets.
        argument: the last part of the path, or its rest, on a route that ends with one.
        told: fields that a handler adds to the request's log line.
        deadline: by when a handler has something to answer.
        connection: that it came over.
        preconditions: that were found to hold; a change judges them again when it is made.
    """

    request_id: str
    caller: Caller | None
    address: str
    body: bytes
    idempotency_key: str | None
    argument: str
    told: dict[str, str]
    deadline: Deadline
    connection: Hashable
    preconditions: Preconditions = NONE

    @property
    def requester(self) -> Requester:
        """Who asks, as the agent is told."""
        caller = self.known_caller
        return Requester(caller.user, caller.method, caller.address, self.connection)

    @property
    def known_caller(self) -> Caller:
        """Who asks, on a route that needs somebody."""
        if self.caller is None:
            raise AuthRequired
        return self.caller


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered: a status, a body, headers beside those that every answer has or in their stead, and cookies.

    Octets go out as they are, at the client's pace; anything else goes as JSON. If-Match and If-None-Match of a GET are
    judged by the `ETag`.
    """

    status: int
    body: Mapping[str, object] | bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    cookies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """What went wrong, before a dialect words it.

    Attributes:
        status: HTTP status.
        code: stable, such as "csr.malformed".
        text: what to change.
        headers: that go with it, such as Retry-After or Allow.
        in_body: the body itself could not be read, so nothing in it was judged.
        about: the property of the body that it is about.
    """

    status: int
    code: str
    text: str
    headers: Mapping[str, str] = field(default_factory=dict)
    in_body: bool = False
    about: str | None = None


Handler = Callable[[Call], Coroutine[Any, Any, Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    """What one method does at one path.

    Attributes:
        needs: the privileges that a caller must have; None where anybody may ask.
        judge: raises Forbidden where a caller may not ask this of the path's argument.
        body_limit: in octets.
        too_large: the code that is told of a larger body.
        content_type: of the body, where it says what it is.
        etag: returns the current ETag of what a method other than GET is about; None where that has none.
    """

    answer: Handler
    needs: frozenset[Privilege] | None = frozenset({Privilege.LOGIN})
    body_limit: int = LOGIN_BODY_LIMIT
    too_large: str = "http.body_too_large"
    judge: Callable[[Caller, str], None] | None = None
    content_type: str = "application/json"
    etag: Callable[[Call], Coroutine[Any, Any, str]] | None = None

    def admit(self, caller: Caller, argument: str) -> None:
        """Raise Forbidden or AuthRequired where the caller may not ask this."""
        if self.needs is not None:
            caller.must_have(self.needs)
        if self.judge is not None:
            self.judge(caller, argument)


Routes = Mapping[str, Mapping[str, Route]]


class Dialect(Protocol):
    """One API family.

    Attributes:
        prefixes: of its paths.
        headers: that all of its answers have beside the site's.
        routes: path, then method, to route. A path that ends with "/{}" takes one more part, which is `Call.argument`,
            and one that ends with "/{*}" takes all the rest, slashes as well.
    """

    @property
    def prefixes(self) -> tuple[str, ...]: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def routes(self) -> Routes: ...

    def word(self, problem: Problem, request_id: str) -> Reply:
        """Return the problem in this family's shape, with its code and the request id."""
