"""The proxy's configuration: one frozen value, judged when it is made."""

from dataclasses import dataclass
from pathlib import Path

from runtime.endpoints import LOCAL_ENDPOINTS, is_local, is_local_peer
from runtime.lifecycle import ConfigError


@dataclass(frozen=True, slots=True)
class Config:
    """What `bmc-proxy serve` needs to know.

    Attributes:
        state_dir: the last root received, and a lock.
        agents: Twisted client endpoint descriptions; on this machine only, as long as the channel is not authenticated.
        http: server endpoint description of the plain listener; loopback or unix socket only, as long as there are no
            accounts.
        anonymous_loopback: the plain listener answers without login.
        deadline_s: how long a request may take.

    Raises:
        ConfigError: a value is refused.
    """

    state_dir: Path
    agents: tuple[str, ...]
    http: str | None
    anonymous_loopback: bool
    deadline_s: int

    def __post_init__(self) -> None:
        if not self.agents:
            raise ConfigError("no agent: give at least one --agent ENDPOINT, such as tcp:127.0.0.1:7700")
        for description in self.agents:
            if not is_local_peer(description):
                raise ConfigError(
                    f"--agent {description!r} is refused: the channel is not authenticated, so the agent must be on"
                    " this machine. Accepted: tcp:127.0.0.1:PORT or unix:PATH."
                )
        if self.http is None:
            raise ConfigError("no listener: give --http ENDPOINT, such as tcp:8080:interface=127.0.0.1")
        if not is_local(self.http):
            raise ConfigError(
                f"--http {self.http!r} is refused: there is no access control yet, so only loopback and unix sockets"
                f" are served. Accepted: {LOCAL_ENDPOINTS}."
            )
        if not self.anonymous_loopback:
            raise ConfigError(
                "--http needs --anonymous-loopback: there are no accounts yet, so all who reach it may sign."
            )
