"""Events: what `Connection.next_event` tells its owner."""

from dataclasses import dataclass

from protocol.records import Answer, Error, Hello, Request, Status


@dataclass(frozen=True, slots=True)
class PeerReady:
    """The peer's HELLO is here: requests may flow."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """Agent only: a request that is owed exactly one `answer`."""

    request_id: int
    record: Request


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """Agent only: the asker stopped waiting. The request is still owed its answer."""

    request_id: int


@dataclass(frozen=True, slots=True)
class AnswerReceived:
    """Asker only: the answer to a request that is waited for."""

    request_id: int
    record: Answer


@dataclass(frozen=True, slots=True)
class LateAnswer:
    """Asker only: an answer that nobody waits for any more; it was dropped."""

    request_id: int


@dataclass(frozen=True, slots=True)
class PeerDraining:
    """Asker only: no new request is taken on this connection."""


@dataclass(frozen=True, slots=True)
class StatusReceived:
    """Asker only: the agent has another root, or another CRL."""

    status: Status


@dataclass(frozen=True, slots=True)
class PeerFailed:
    """The peer found fault with this side and closes; `error` says why."""

    error: Error


@dataclass(frozen=True, slots=True)
class FramesPassed:
    """So many frames have brought no event that others may be served before the next ones are read."""


Event = (
    PeerReady
    | RequestReceived
    | RequestCancelled
    | AnswerReceived
    | LateAnswer
    | PeerDraining
    | StatusReceived
    | PeerFailed
    | FramesPassed
)
