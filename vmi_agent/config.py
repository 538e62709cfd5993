"""The agent's configuration: one frozen value, judged when it is made."""

from dataclasses import dataclass
from pathlib import Path

from runtime.endpoints import LOCAL_ENDPOINTS, is_local
from runtime.lifecycle import ConfigError


@dataclass(frozen=True, slots=True)
class Config:
    """What `vmi-agent serve` needs to know.

    Attributes:
        state_dir: CA, ledger and lock.
        listen: Twisted server endpoint descriptions of the channel; loopback TCP or unix sockets only, as long as the
            channel carries no authentication of its own.
        signers: how many requests are judged and signed at the same time.
        window: how many unanswered requests one connection may have.
        max_requests: how many requests are under way or waiting, over all connections.
        key_type: of the CA that is made where there is none.

    Raises:
        ConfigError: a value is refused.
    """

    state_dir: Path
    listen: tuple[str, ...]
    signers: int
    window: int
    max_requests: int
    key_type: str

    def __post_init__(self) -> None:
        if not self.listen:
            raise ConfigError("no listener: give at least one --listen ENDPOINT, such as tcp:7700:interface=127.0.0.1")
        for description in self.listen:
            if not is_local(description):
                raise ConfigError(
                    f"--listen {description!r} is refused: the channel is not authenticated, so it may only be reached"
                    f" from this machine. Accepted: {LOCAL_ENDPOINTS}."
                )
