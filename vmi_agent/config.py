"""The agent's configuration: frozen values, judged when they are made."""

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from runtime.descriptions import LOCAL_ENDPOINTS, check_channel_type, has_tls, is_local
from runtime.errors import ConfigError
from vmi_agent.keys.open import Access
from vmi_agent.maintenance import AnchorTo


@dataclass(frozen=True, slots=True)
class PublishingConfig:
    """What the CA publishes beside leaves.

    Attributes:
        publish_at: the URL below which a proxy serves it; None where leaves name none.
        crl_validity: from thisUpdate to nextUpdate of a CRL.
        crl_period: how often one is made anew; shorter than `crl_validity`.

    Raises:
        ConfigError: a value is refused.
    """

    publish_at: str | None
    crl_validity: timedelta
    crl_period: timedelta

    def __post_init__(self) -> None:
        if self.publish_at is not None and not _is_plain_url(self.publish_at):
            raise ConfigError(
                f"--publish-at {self.publish_at!r} is refused. Accepted: an http: URL without query, such as"
                " http://bmc.example.com/pki (http, as who checks a certificate cannot check another one first: RFC"
                " 5280, 8)."
            )
        if self.crl_period >= self.crl_validity:
            hours = self.crl_validity // timedelta(hours=1)
            raise ConfigError(f"--crl-period-hours must be less than --crl-validity-hours, which is {hours}")


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
        ephemeral_ca: make a new root at this start, whose key is in memory only.
        shared: other agents of this machine may serve from the same state directory.
        access: opens the CA's keys.
        publishing: CRLs and where they are.
        anchor_to: where the audit's head is written down.
        keep_expired: how long certificates are kept after their end; None for ever.
        profiles: the file of profiles; None for the one that is built in.
        accept_clock: start although the clock is before the date of this software.

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
    ephemeral_ca: bool
    shared: bool
    access: Access = field(repr=False)
    publishing: PublishingConfig
    anchor_to: AnchorTo
    keep_expired: timedelta | None
    profiles: Path | None
    accept_clock: bool = False

    def __post_init__(self) -> None:
        if not self.listen:
            raise ConfigError("no listener: give at least one --listen ENDPOINT, such as tcp:7700:interface=127.0.0.1")
        if self.ephemeral_ca and self.shared:
            raise ConfigError(
                "--ephemeral-ca and --shared are both given: no other agent has a key that is in memory only. Leave one"
                " out."
            )
        for description in self.listen:
            accepted = f"tls:PORT, {LOCAL_ENDPOINTS}"
            check_channel_type("--listen", description, accepted)
            if not has_tls(description) and not is_local(description):
                raise ConfigError(
                    f"--listen {description!r} is refused: plain TCP knows no peer, so it may only be reached from this"
                    f" machine. Accepted: {accepted}."
                )

    @property
    def uids(self) -> frozenset[int] | None:
        """Who may connect to a unix socket; None for this process's own user."""
        return frozenset(self.peer_uid) or None


def _is_plain_url(text: str) -> bool:
    """Return whether a text is an http: URL without user, query and fragment, in printable ASCII."""
    try:
        url = urlsplit(text)
    except ValueError:  # an address in brackets that is none
        return False
    is_plain = text.isascii() and text.isprintable() and " " not in text
    return (
        is_plain
        and url.scheme == "http"
        and bool(url.hostname)
        and not ("@" in url.netloc or url.query or url.fragment)
    )
