"""Records: what the two sides say to each other, one frozen dataclass per message (docs/protocol.md, 5).

A record checks its own values when it is made, with ValueError, whether our code makes it or the codec does.
"""

from dataclasses import dataclass
from enum import IntEnum

from protocol.errors import ErrorCode
from protocol.frames import VERSION

MAGIC = b"VMICERTX"
NO_IDEMPOTENCY_KEY = bytes(16)
# The name under which the agent's own audit and ledger tell of what the agent did by itself.
AGENT_ITSELF = "vmi-agent"
MAX_CHAIN_CERTIFICATES = 8
LEAST_MAX_RECORD = 65_536
# Octets of what is published that one record carries; of an OCSP request; of its response.
MAX_ERROR_TEXT = 512
MAX_PART = 32_768
MAX_OCSP_REQUEST = 4_096
MAX_OCSP_RESPONSE = 32_768


class Role(IntEnum):
    """Who a peer is: the asker (bmc_proxy) sends requests, the agent (vmi_agent) answers them."""

    ASKER = 1
    AGENT = 2


class PublicationKind(IntEnum):
    """What an agent publishes for each root generation."""

    CRL = 1
    CA_CERTIFICATES = 2


@dataclass(frozen=True, slots=True)
class Hello:
    """The first record in each direction: who speaks, what it can take.

    Attributes:
        role: see `Role`.
        window: how many requests the peer may have unanswered; 0 from an asker, which takes none.
        max_record: the largest payload of one record, in octets and over all its frames, that this side accepts;
            65,536 or more, which any answer to a CSR within its limit fits.
        boot_id: 16 random octets, new at every start of the process.
        clock_ms: this side's clock in milliseconds since 1970-01-01 UTC; for diagnosis only.
        root_generation: the agent's current trust anchor, rising by one with each new one; 0 from an asker.
        version_min, version_max: the range of protocol versions that this side speaks.
        magic: always `MAGIC`.
    """

    role: Role
    window: int
    max_record: int
    boot_id: bytes
    clock_ms: int
    root_generation: int
    version_min: int = VERSION
    version_max: int = VERSION
    magic: bytes = MAGIC

    def __post_init__(self) -> None:
        object.__setattr__(self, "role", Role(self.role))
        if self.magic != MAGIC:
            raise ValueError("HELLO without the magic: the peer does not speak this protocol")
        if self.version_min > self.version_max:
            raise ValueError("HELLO with an empty range of versions")
        if len(self.boot_id) != 16:
            raise ValueError("boot id is not 16 octets")
        if self.max_record < LEAST_MAX_RECORD:
            raise ValueError(f"max_record under {LEAST_MAX_RECORD} octets")


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? `token` comes back in the PONG."""

    token: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a PING, with its token."""

    token: int


@dataclass(frozen=True, slots=True)
class Drain:
    """From the agent: send no new request on this connection; those under way are still answered."""


@dataclass(frozen=True, slots=True)
class Status:
    """From the agent: one of these changed, so what the asker keeps may be out of date.

    Attributes:
        root_generation: the agent's current trust anchor.
        crl_number: rises whenever any CRL, of any generation, was made anew.
    """

    root_generation: int
    crl_number: int


@dataclass(frozen=True, slots=True)
class Error:
    """A request was not carried out (its request id), or the connection ends (request id 0).

    Attributes:
        code: what happened.
        retryable: the same request may succeed later.
        retry_after_ms: how long to wait before that; 0 where the sender cannot say.
        text: for a person; holds nothing secret and nothing of the peer's input, at most 512 octets of UTF-8.
    """

    code: ErrorCode
    retryable: bool
    retry_after_ms: int
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", ErrorCode(self.code))
        if self.retryable not in (0, 1):
            raise ValueError("retryable is neither 0 nor 1")
        object.__setattr__(self, "retryable", bool(self.retryable))
        if len(self.text.encode()) > MAX_ERROR_TEXT:
            raise ValueError(f"error text over {MAX_ERROR_TEXT} octets")


@dataclass(frozen=True, slots=True)
class SignCsr:
    """Sign this certificate signing request.

    Attributes:
        deadline_ms: how long the asker waits, counted from when the agent has read the record; 1 or more.
        idempotency_key: 16 octets; the same requester and key get the same certificate. All zero: no key.
        user: who asks, as the proxy authenticated it; at most 256 octets of UTF-8, as are the next two.
        method: how the proxy knows, such as "anonymous-loopback" or "token".
        address: where the request came from.
        csr: PKCS#10 in DER (RFC 2986).
    """

    deadline_ms: int
    idempotency_key: bytes
    user: str
    method: str
    address: str
    csr: bytes

    def __post_init__(self) -> None:
        _check_deadline(self.deadline_ms)
        if len(self.idempotency_key) != 16:
            raise ValueError("idempotency key is not 16 octets")
        if not self.user:
            raise ValueError("a request without a user")
        for text in (self.user, self.method, self.address):
            if len(text) > 64 and len(text.encode()) > 256:  # a character takes four octets at most
                raise ValueError("a requester field over 256 octets")

    @property
    def requester_fault(self) -> str | None:
        """Why no agent acts for this requester, or None where nothing is wrong.

        Names stand in an audit that people read, so each character must be visible, or the space U+0020: none of the
        Unicode categories Cc, Cf, Cn, Co, Cs, Zl, Zp, and no other Zs. And nobody but the agent is called as it is.
        """
        if not (self.user.isprintable() and self.method.isprintable() and self.address.isprintable()):
            return "a control, format or unassigned character in user, method or address"
        if self.user.casefold() == AGENT_ITSELF:
            return f"the user {AGENT_ITSELF} is the agent itself"
        return None


@dataclass(frozen=True, slots=True)
class Signed:
    """The certificate for a SIGN_CSR.

    Attributes:
        csr_sha256: SHA-256 over the DER of the CSR that this answers, 32 octets.
        root_generation: the trust anchor that the chain ends in.
        chain: certificates in DER, leaf first, root last; 2 … 8 of them.
    """

    csr_sha256: bytes
    root_generation: int
    chain: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if len(self.csr_sha256) != 32:
            raise ValueError("csr_sha256 is not 32 octets")
        _check_chain(self.chain, least=2)


@dataclass(frozen=True, slots=True)
class GetChain:
    """Ask for the CA's own certificates. `deadline_ms` as in SIGN_CSR."""

    deadline_ms: int

    def __post_init__(self) -> None:
        _check_deadline(self.deadline_ms)


@dataclass(frozen=True, slots=True)
class Chain:
    """The CA's certificates in DER, issuing CA first, root last; 1 … 8 of them (one where the root signs itself)."""

    root_generation: int
    chain: tuple[bytes, ...]

    def __post_init__(self) -> None:
        _check_chain(self.chain, least=1)


@dataclass(frozen=True, slots=True)
class Cancel:
    """The asker no longer waits for the request of this request id. Advisory: the request is still answered once."""


@dataclass(frozen=True, slots=True)
class GetPublished:
    """Ask for a part of what the agent publishes for a root generation.

    Attributes:
        deadline_ms: as in SIGN_CSR.
        kind: see `PublicationKind`.
        root_generation: whose.
        known_version: the version that the asker has whole; 0 where it has none.
        offset: of the first octet that is wanted.
    """

    deadline_ms: int
    kind: PublicationKind
    root_generation: int
    known_version: int
    offset: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", PublicationKind(self.kind))
        _check_deadline(self.deadline_ms)


@dataclass(frozen=True, slots=True)
class Published:
    """A part of what is published, or word that the version which the asker has is the current one.

    Attributes:
        kind, root_generation: as they were asked for.
        version: 1 or more; another one for other octets of this kind and generation.
        next_update_ms: when the next version is due, in ms since 1970-01-01 UTC; 0 where no time is set.
        total: octets of the whole; 0 where `version` is the one that the asker has.
        offset: where `part` begins.
        part: at most `MAX_PART` octets of DER, at least one unless `total` is 0.
    """

    kind: PublicationKind
    root_generation: int
    version: int
    next_update_ms: int
    total: int
    offset: int
    part: bytes

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", PublicationKind(self.kind))
        if self.version < 1:
            raise ValueError("version 0")
        if len(self.part) > MAX_PART:
            raise ValueError(f"a part over {MAX_PART} octets")
        if self.offset + len(self.part) > self.total:
            raise ValueError("a part that reaches past the end")
        if self.total and not self.part:
            raise ValueError("a part without octets")


@dataclass(frozen=True, slots=True)
class GetOcsp:
    """Ask for the response to an OCSP request (RFC 6960, 4.1).

    Attributes:
        deadline_ms: as in SIGN_CSR.
        request: 1 … 4,096 octets, an OCSPRequest in DER as far as the asker knows.
    """

    deadline_ms: int
    request: bytes

    def __post_init__(self) -> None:
        _check_deadline(self.deadline_ms)
        if not 1 <= len(self.request) <= MAX_OCSP_REQUEST:
            raise ValueError(f"an OCSP request that is empty or over {MAX_OCSP_REQUEST} octets")


@dataclass(frozen=True, slots=True)
class OcspAnswer:
    """The response to a GET_OCSP.

    Attributes:
        expires_ms: until when the same request may be answered with this, in ms since 1970-01-01 UTC; 0: not at all.
        response: an OCSPResponse in DER (RFC 6960, 4.2), of an error as well; 1 … 32,768 octets.
    """

    expires_ms: int
    response: bytes

    def __post_init__(self) -> None:
        if not 1 <= len(self.response) <= MAX_OCSP_RESPONSE:
            raise ValueError(f"an OCSP response that is empty or over {MAX_OCSP_RESPONSE} octets")


Request = SignCsr | GetChain | GetPublished | GetOcsp
Answer = Signed | Chain | Published | OcspAnswer | Error
Record = Hello | Ping | Pong | Drain | Status | Cancel | Request | Answer


def _check_deadline(deadline_ms: int) -> None:
    if deadline_ms < 1:
        raise ValueError("deadline of 0 ms")


def _check_chain(chain: tuple[bytes, ...], least: int) -> None:
    if not least <= len(chain) <= MAX_CHAIN_CERTIFICATES:
        raise ValueError(f"chain of {len(chain)} certificates, accepted {least} to {MAX_CHAIN_CERTIFICATES}")
    if not all(chain):
        raise ValueError("an empty certificate in the chain")
