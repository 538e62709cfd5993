"""The agent's configuration: one frozen value, judged when it is made."""

from dataclasses import dataclass
from pathlib import Path

from runtime.descriptions import LOCAL_ENDPOINTS, has_tls, is_local
from runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Config:
    """What `vmi-agent serve` needs to know.

    Attributes:
        state_dir: CA, ledger and lock.
        listen: server endpoint descriptions of the channel: `tls:`, or without TLS loopback and unix sockets only.
        peer_uid: who may connect to a unix socket; empty for this process's own user.
        signers: how many requests are judged and signed at the same time.
        window: how many unanswered requests one connection may have.
        max_requests: how many requests are under way or waiting, over all connections.
        key_type: of the CA that is made where there is none.
        profiles: the file of profiles; None for the one that is built in.

    Raises:
        ConfigError: a value is refused.
    """

    state_dir: Path
    listen: tuple[str, ...]
    peer_uid: tuple[int, ...]
    signers: int
    window: int
    max_requests: int
    key_type: str
    profiles: Path | None

    def __post_init__(self) -> None:
        if not self.listen:
            raise ConfigError("no listener: give at least one --listen ENDPOINT, such as tcp:7700:interface=127.0.0.1")
        for description in self.listen:
            if not has_tls(description) and not is_local(description):
                raise ConfigError(
                    f"--listen {description!r} is refused: plain TCP knows no peer, so it may only be reached from this"
                    f" machine. Accepted: tls:PORT, {LOCAL_ENDPOINTS}."
                )

    @property
    def uids(self) -> frozenset[int] | None:
        """Who may connect to a unix socket; None for this process's own user."""
        return frozenset(self.peer_uid) or None
