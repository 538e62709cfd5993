"""How an exchange can fail, in terms that no dialect and no wire knows."""

from protocol.errors import ErrorCode


class ExchangeError(Exception):
    """Base. `text` may be shown to whoever asked: it says what to change and echoes nothing of the input.

    Attributes:
        repeatable: another agent may answer the same request otherwise.
        retry_after_ms: when to ask again, as far as the agent says; 0 where it does not.
    """

    repeatable = False
    retry_after_ms = 0

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class AuthRequired(ExchangeError):
    """No credential that lets in came with the request."""

    def __init__(self, text: str = "Log in at /login, or send X-Auth-Token or Basic credentials.") -> None:
        super().__init__(text)


class CertificateRevoked(ExchangeError):
    """The only credential is a client certificate that was revoked."""

    def __init__(self) -> None:
        super().__init__("The client certificate is revoked. Show another one, or log in with a password or token.")


class AuthFailed(ExchangeError):
    """User name and password let nobody in; which of the reasons it was is not told."""

    def __init__(self) -> None:
        super().__init__("Check user name and password. Five failures lock an account for 300 seconds.")


class Forbidden(ExchangeError):
    """Whoever asks may not."""

    def __init__(self, text: str = "This needs an account with another role.") -> None:
        super().__init__(text)


class TooManyRequests(ExchangeError):
    """This source asks for more than it may.

    Attributes:
        retry_after_s: when it may again.
    """

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("Too many requests or failed logins from this address. Wait, then try again.")
        self.retry_after_s = retry_after_s


class AccountsFailed(ExchangeError):
    """The file of accounts cannot be read or written; the log says why."""

    def __init__(self) -> None:
        super().__init__("The proxy cannot change its accounts. Its log says why.")


class NothingThere(ExchangeError):
    """There is no such account or session."""

    def __init__(self) -> None:
        super().__init__("There is nothing at this path.")


class PropertyRefused(ExchangeError):
    """A property of a request's body has a value that is not taken.

    Attributes:
        name: of the property, as the dialect spells it.
        exists: the value is taken by another resource already.
    """

    def __init__(self, name: str, text: str, exists: bool = False) -> None:
        super().__init__(text)
        self.name = name
        self.exists = exists


class PropertyReadOnly(ExchangeError):
    """A property of a request's body is one that nobody can set here.

    Attributes:
        name: of the property, as the dialect spells it.
    """

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


class VersionGone(ExchangeError):
    """The resource is no longer as the request says that it was when its client saw it."""

    def __init__(self) -> None:
        super().__init__("The resource has changed. GET it again, and send the ETag that it has now.")


class BodyMalformed(ExchangeError):
    """The request's body is not what this route takes."""


class CsrMalformed(ExchangeError):
    """No single CSR could be read from what was sent."""


class CsrBodyMalformed(CsrMalformed):
    """The request's body is in none of the forms in which a CSR comes."""


class CsrTooLarge(ExchangeError):
    """The CSR is over its limit."""


class RequestRefused(ExchangeError):
    """The agent judged the request and refused it.

    Attributes:
        code: one of the CSR_* codes or REQUEST_CONFLICT.
    """

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class AgentUnavailable(ExchangeError):
    """No agent is connected, or the connection broke before the answer."""

    repeatable = True

    def __init__(
        self,
        text: str = "The host is not ready: no signing agent is connected. Try again later.",
        *,
        retry_after_ms: int = 0,
    ) -> None:
        super().__init__(text)
        self.retry_after_ms = retry_after_ms


class AgentBusy(ExchangeError):
    """The agent has as many requests as it takes."""

    repeatable = True

    def __init__(self, retry_after_ms: int = 0) -> None:
        super().__init__("The host has as many requests as it takes. Try again later.")
        self.retry_after_ms = retry_after_ms


class AgentTimeout(ExchangeError):
    """The deadline passed. A retry with the same CSR gets the certificate if it was made after all."""

    repeatable = True

    def __init__(
        self, text: str = "The host did not answer in time. Try again with the same CSR.", *, retry_after_ms: int = 0
    ) -> None:
        super().__init__(text)
        self.retry_after_ms = retry_after_ms


class AgentFailed(ExchangeError):
    """The agent failed inside, or gave an answer that cannot be right."""

    def __init__(
        self,
        text: str = "The host failed to sign. Nothing is wrong with the request.",
        *,
        repeatable: bool = True,
        retry_after_ms: int = 0,
    ) -> None:
        super().__init__(text)
        self.repeatable = repeatable
        self.retry_after_ms = retry_after_ms


class NotPublished(AgentFailed):
    """The agent has nothing of what was asked for, or does not know the question: for a CSR that is a failure."""

    def __init__(self) -> None:
        super().__init__(repeatable=False)
