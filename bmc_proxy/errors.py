"""How an exchange can fail, in terms that no dialect and no wire knows."""

from protocol.errors import ErrorCode


class ExchangeError(Exception):
    """Base. `text` may be shown to whoever asked: it says what to change and echoes nothing of the input."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class CsrMalformed(ExchangeError):
    """No single CSR could be read from what was sent."""


class BodyMalformed(CsrMalformed):
    """The request's body is in none of the accepted forms."""


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

    def __init__(self, text: str = "The host is not ready: no signing agent is connected. Try again later.") -> None:
        super().__init__(text)


class AgentBusy(ExchangeError):
    """The agent has as many requests as it takes.

    Attributes:
        retry_after_ms: what the agent says; 0 where it does not.
    """

    def __init__(self, retry_after_ms: int = 0) -> None:
        super().__init__("The host has as many requests as it takes. Try again later.")
        self.retry_after_ms = retry_after_ms


class AgentTimeout(ExchangeError):
    """The deadline passed. A retry with the same CSR gets the certificate if it was made after all."""

    def __init__(self) -> None:
        super().__init__("The host did not answer in time. Try again with the same CSR.")


class AgentFailed(ExchangeError):
    """The agent failed inside, or gave an answer that cannot be right."""

    def __init__(self, text: str = "The host failed to sign. Nothing is wrong with the request.") -> None:
        super().__init__(text)
