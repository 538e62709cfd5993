"""Refusals on the pipe: the errors that a question can end with, as records and back."""

from types import MappingProxyType

from bmc_proxy.errors import (
    AccountsFailed,
    AuthFailed,
    AuthRequired,
    ExchangeError,
    Forbidden,
    NothingThere,
    PropertyReadOnly,
    PropertyRefused,
    TooManyRequests,
    VersionGone,
)
from bmc_proxy.workers.messages import RecordRefused, Refused

_PLAIN = MappingProxyType(
    {kind.__name__: kind for kind in (AccountsFailed, AuthFailed, AuthRequired, Forbidden, NothingThere, VersionGone)}
)
_READ_ONLY = PropertyReadOnly.__name__
_PROPERTY = PropertyRefused.__name__
_TOO_MANY = TooManyRequests.__name__


def to_record(error: ExchangeError) -> Refused:
    """Return what is told of an error."""
    match error:
        case PropertyRefused():
            return Refused(_PROPERTY, error.text, error.name, error.exists, 0.0)
        case PropertyReadOnly():
            return Refused(_READ_ONLY, error.text, error.name, False, 0.0)
        case TooManyRequests():
            return Refused(_TOO_MANY, "", "", False, float(error.retry_after_s))
    return Refused(type(error).__name__, "", "", False, 0.0)


def to_error(refused: Refused) -> ExchangeError:
    """Return the error. Raises RecordRefused where there is none of this kind."""
    if refused.kind == _PROPERTY:
        return PropertyRefused(refused.name, refused.text, refused.exists)
    if refused.kind == _READ_ONLY:
        return PropertyReadOnly(refused.name, refused.text)
    if refused.kind == _TOO_MANY:
        return TooManyRequests(refused.retry_after_s)
    if refused.kind not in _PLAIN:
        raise RecordRefused("a refusal of no kind that is known")
    return _PLAIN[refused.kind]()
