"""The proxy's configuration: one frozen value, judged when it is made."""

from dataclasses import dataclass
from pathlib import Path

from runtime.descriptions import LOCAL_ENDPOINTS, check_channel_type, has_tls, is_local, is_local_peer
from runtime.errors import ConfigError

DEFAULT_HTTPS = "tcp:8443"
CLIENT_USER_FIELDS = ("cn", "upn")
CHECKERS = ("accounts", "pam")


@dataclass(frozen=True, slots=True)
class HttpsConfig:
    """What the HTTPS listener shows and asks for.

    Attributes:
        certificate: chain in PEM, own certificate first; None for one that is made and kept in the state directory.
        key: in PEM, 0600; None where it stands in the same file.
        client_ca: whose client certificates let in; None where none do.
        client_user: one of `CLIENT_USER_FIELDS`: where a client certificate names the account.
        accept_clock: make a certificate although the clock is before the date of this software.
    """

    certificate: Path | None
    key: Path | None
    client_ca: Path | None
    client_user: str
    accept_clock: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """What `bmc-proxy serve` needs to know.

    Attributes:
        state_dir: accounts, the last root received, and a lock.
        agent: client endpoint descriptions: `tls:`, or without TLS loopback and unix sockets only.
        peer_uid: who may listen on an agent's unix socket; empty for this process's own user.
        https: server endpoint description of the HTTPS listener.
        http: server endpoint description of the plain listener, if there is to be one.
        anonymous_loopback: the plain listener answers without login.
        https_certificate, https_key, client_ca, client_user: see `HttpsConfig`.
        client_crl: a file or directory with CRLs of the CAs of `client_ca`; the agents' own CRLs are fetched from them.
        client_crl_grace_h: how long a CRL is relied on after its nextUpdate, in hours.
        checker: one of `CHECKERS`: who says that a password is right.
        pam_service: of /etc/pam.d.
        session_idle_s: how long a session lives unused.
        max_connections: over all sources; a single source may have half of them.
        requests_per_s: of one source that is known; a source that is not has a twentieth.
        max_waiting: how many requests wait for an agent that has room.
        deadline_s: how long a request may take, from its header's last octet to its answer; see `ExchangeRequest`.
        accept_clock: see `HttpsConfig`.
        workers: how many processes serve; with more than one each has its part of the three limits before.

    Raises:
        ConfigError: a value is refused.
    """

    state_dir: Path
    agent: tuple[str, ...]
    peer_uid: tuple[int, ...]
    https: str | None
    http: str | None
    anonymous_loopback: bool
    https_certificate: Path | None
    https_key: Path | None
    client_ca: Path | None
    client_user: str
    checker: str
    pam_service: str
    session_idle_s: int
    max_connections: int
    requests_per_s: int
    max_waiting: int
    deadline_s: int
    workers: int = 1
    accept_clock: bool = False
    client_crl: Path | None = None
    client_crl_grace_h: int = 0

    def __post_init__(self) -> None:
        if not self.agent:
            raise ConfigError("no agent: give at least one --agent ENDPOINT, such as tcp:127.0.0.1:7700")
        for description in self.agent:
            accepted = "tls:HOST:PORT, tcp:127.0.0.1:PORT or unix:PATH"
            check_channel_type("--agent", description, accepted)
            if not has_tls(description) and not is_local_peer(description):
                raise ConfigError(
                    f"--agent {description!r} is refused: plain TCP knows no peer, so the agent must be on this"
                    f" machine. Accepted: {accepted}."
                )
        if self.anonymous_loopback and self.http is None:
            raise ConfigError("--anonymous-loopback is refused without --http ENDPOINT, whose listener it is about")
        if self.anonymous_loopback and self.http is not None and not is_local(self.http):
            raise ConfigError(
                f"--anonymous-loopback is refused with --http {self.http!r}: without login only this machine may ask."
                f" Accepted with it: {LOCAL_ENDPOINTS}."
            )
        if self.http is not None and has_tls(self.http):
            raise ConfigError(f"--http {self.http!r} is refused: it is the plain listener. For TLS give --https.")
        if self.https is not None and self.https.startswith("unix:"):
            raise ConfigError(f"--https {self.https!r} is refused. Accepted: tcp:PORT, tcp:PORT:interface=ADDRESS.")
        if self.https_at is None:
            for option, value in (("--https-certificate", self.https_certificate), ("--client-ca", self.client_ca)):
                if value is not None:
                    raise ConfigError(f"{option} is refused without --https ENDPOINT, whose listener it is about")
        if self.client_user != CLIENT_USER_FIELDS[0] and self.client_ca is None:
            raise ConfigError(f"--client-user {self.client_user} is refused without --client-ca FILE")
        for option, is_given in (
            ("--client-crl", self.client_crl is not None),
            ("--client-crl-grace-h", self.client_crl_grace_h > 0),
        ):
            if is_given and self.client_ca is None:
                raise ConfigError(f"{option} is refused without --client-ca FILE")
        if self.https_key is not None and self.https_certificate is None:
            raise ConfigError("--https-key is refused without --https-certificate")

    @property
    def https_at(self) -> str | None:
        """Where HTTPS listens: where it was said, or by default where nothing is said of any listener."""
        return DEFAULT_HTTPS if self.https is None and self.http is None else self.https

    @property
    def https_config(self) -> HttpsConfig:
        """What concerns the HTTPS listener alone."""
        return HttpsConfig(self.https_certificate, self.https_key, self.client_ca, self.client_user, self.accept_clock)

    @property
    def uids(self) -> frozenset[int] | None:
        """Who may listen on an agent's unix socket; None for this process's own user."""
        return frozenset(self.peer_uid) or None
