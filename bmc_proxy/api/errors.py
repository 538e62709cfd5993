"""The only map from errors to HTTP."""

from http import HTTPStatus
from math import ceil

from bmc_proxy.api.types import Problem
from bmc_proxy.errors import (
    AccountsFailed,
    AgentBusy,
    AgentFailed,
    AgentTimeout,
    AgentUnavailable,
    AuthFailed,
    AuthRequired,
    BodyMalformed,
    CertificateRevoked,
    CsrBodyMalformed,
    CsrMalformed,
    CsrTooLarge,
    ExchangeError,
    Forbidden,
    NothingThere,
    PropertyReadOnly,
    PropertyRefused,
    RequestRefused,
    TooManyRequests,
    VersionGone,
)
from protocol.errors import ErrorCode

# An agent that restarts is back within seconds; shipped firmware says 60.
UNAVAILABLE_RETRY_AFTER_S = 5
BUSY_RETRY_AFTER_S = 1

_REFUSALS = {
    ErrorCode.CSR_MALFORMED: (400, "csr.malformed"),
    ErrorCode.CSR_TOO_LARGE: (413, "csr.too_large"),
    ErrorCode.CSR_BAD_SIGNATURE: (400, "csr.bad_signature"),
    ErrorCode.CSR_WEAK_KEY: (400, "csr.weak_key"),
    ErrorCode.CSR_POLICY: (400, "csr.policy"),
    ErrorCode.CSR_BLOCKED_KEY: (400, "csr.blocked_key"),
    ErrorCode.REQUEST_CONFLICT: (409, "request.conflict"),
}


def from_error(error: ExchangeError) -> Problem:
    """Return what an error of the exchange is to HTTP."""
    match error:
        case AuthRequired():
            return Problem(401, "auth.required", error.text)
        case CertificateRevoked():
            return Problem(401, "auth.certificate_revoked", error.text)
        case AuthFailed():
            return Problem(401, "auth.failed", error.text)
        case Forbidden():
            return Problem(403, "auth.forbidden", error.text)
        case TooManyRequests(retry_after_s=seconds):
            return Problem(429, "http.too_many_requests", error.text, _retry_after(max(1, ceil(seconds))))
        case AccountsFailed():
            return Problem(500, "proxy.failed", error.text)
        case NothingThere():
            return not_found()
        case PropertyRefused(exists=exists, name=name):
            return Problem(400, "account.exists" if exists else "account.invalid", error.text, about=name or None)
        case PropertyReadOnly(name=name):
            return Problem(400, "account.not_writable", error.text, about=name or None)
        case VersionGone():
            return Problem(412, "http.precondition_failed", error.text)
        case CsrMalformed():
            return Problem(400, "csr.malformed", error.text, in_body=isinstance(error, CsrBodyMalformed))
        case BodyMalformed():
            return Problem(400, "http.bad_body", error.text, in_body=True)
        case CsrTooLarge():
            return Problem(413, "csr.too_large", error.text)
        case RequestRefused(code=code):
            status, name = _REFUSALS[code]
            return Problem(status, name, error.text)
        case AgentUnavailable():
            return Problem(503, "agent.unavailable", error.text, _retry_after_agent(error, UNAVAILABLE_RETRY_AFTER_S))
        case AgentBusy():
            return Problem(503, "agent.busy", error.text, _retry_after_agent(error, BUSY_RETRY_AFTER_S))
        case AgentTimeout():
            return Problem(503, "agent.timeout", error.text, _retry_after_agent(error, UNAVAILABLE_RETRY_AFTER_S))
        case AgentFailed():
            return Problem(502, "agent.failed", error.text, _retry_after_agent(error, 0))
    return failed()


def not_found() -> Problem:
    """No route has this path."""
    return Problem(404, "http.not_found", "There is nothing at this path.")


def method_not_allowed(allowed: str) -> Problem:
    """The path exists, for other methods: `allowed`, as the Allow header lists them."""
    return Problem(405, "http.method_not_allowed", f"Use {allowed} for this path.", {"Allow": allowed})


def wrong_content_type(wanted: str) -> Problem:
    """The body is said to be something else than what the route takes."""
    return Problem(415, "http.unsupported_media_type", f"Send the body with Content-Type: {wanted}.")


def bad_idempotency_key(limit: int) -> Problem:
    """The Idempotency-Key header is not usable; `limit` is in octets."""
    return Problem(400, "http.bad_idempotency_key", f"Send one Idempotency-Key of 1 to {limit} ASCII characters.")


def unmodified() -> Problem:
    """If-None-Match of a request that would change something names the version that is there."""
    return Problem(412, "http.precondition_failed", "The resource is as If-None-Match says that it must not be.")


def cross_site() -> Problem:
    """A page of another site sent this, in a browser that knows the way in."""
    return Problem(403, "http.cross_site", "A page of another site may not ask for this.")


def body_too_large(code: str, limit: int) -> Problem:
    """The body is over its limit, in octets; the rest of it is not read. What was to be in it names the code."""
    return Problem(413, code, f"The body is larger than {limit} octets.")


def too_slow(limit_s: float) -> Problem:
    """The request was not there in time."""
    return Problem(408, "http.too_slow", f"Send the whole request within {limit_s:.0f} seconds.")


def header_too_large(limit: int) -> Problem:
    """Request line and headers, or what frames a chunked body, are over their limit, in octets."""
    text = f"The request's headers, or the extensions and trailers of its chunks, are larger than {limit} octets."
    return Problem(431, "http.header_too_large", text)


def target_too_long(limit: int) -> Problem:
    """The request line alone is over the limit of the whole header, in octets."""
    return Problem(414, "http.target_too_long", f"The request line is larger than {limit} octets.")


def no_room() -> Problem:
    """More bodies come at once than are kept in memory, and most of them from where this one comes."""
    text = "Too much is being sent at once. Send fewer or smaller bodies at a time."
    return Problem(503, "http.busy", text, _retry_after(BUSY_RETRY_AFTER_S))


def unknown_coding() -> Problem:
    """The body is in a transfer coding that is not known here (RFC 9112, 6.1)."""
    return Problem(501, "http.not_implemented", "Send the body as it is, or with Transfer-Encoding: chunked alone.")


def not_http() -> Problem:
    """The request is not HTTP/1.1 that has one meaning only (RFC 9112)."""
    return Problem(400, "http.bad_request", "The request is not well-formed HTTP/1.1.")


def failed() -> Problem:
    """A bug of ours; the log has it under the request id."""
    return Problem(500, "proxy.failed", "The proxy failed. Its log says why.")


def reason(status: int) -> str:
    """Return the status's reason phrase."""
    return HTTPStatus(status).phrase


def _retry_after_agent(error: ExchangeError, least_s: int) -> dict[str, str]:
    """Return the header for what the agent says, in whole seconds and no fewer than these; none for 0."""
    seconds = max(least_s, ceil(error.retry_after_ms / 1000))
    return _retry_after(seconds) if seconds else {}


def _retry_after(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(seconds)}
