"""The CA as the agent uses it: for each root generation a key in custody, and the certificates above the leaves."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import AuthorityInformationAccessOID

from runtime.hints import command
from vmi_agent.ca import store as ca_store
from vmi_agent.ca.certificates import ocsp_responder_name
from vmi_agent.ca.reserved_names import ReservedNames
from vmi_agent.ca.self_check import SelfCheck
from vmi_agent.certificate import Issuer, extension
from vmi_agent.keys import Custody, CustodyError
from vmi_agent.keys.algorithms import signature_algorithm
from vmi_agent.keys.open import Access, open_key


class CaNotValid(CustodyError):
    """The CA has ended, or is not valid yet: what it signed would not verify."""


@dataclass(frozen=True, slots=True)
class Authority:
    """What issues.

    Attributes:
        generation: of its root, from 1.
        certificates: the CA's own, that of the key first, trust anchor last; one where the root signs leaves itself.
        crosses: cross-certificates with the generation before, in DER.
        chain: `certificates` in DER.
        issuer: what of it goes into every certificate that it issues.
        custody: signs for it.
        reserved: the names that no leaf may bear; all of the state directory's in the one that `Generations` issues
            with.
        self_check: reads back what it signed, under `certificate`.
        valid_from, valid_until: when all of `certificates` are valid, so that what it signs verifies.
    """

    generation: int
    certificates: tuple[x509.Certificate, ...]
    crosses: tuple[bytes, ...]
    chain: tuple[bytes, ...]
    issuer: Issuer
    custody: Custody
    reserved: ReservedNames = field(default_factory=ReservedNames, repr=False, compare=False)
    self_check: SelfCheck = field(init=False, repr=False, compare=False)
    valid_from: datetime = field(init=False, repr=False, compare=False)
    valid_until: datetime = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "self_check", SelfCheck(self.certificate))
        valid_from, valid_until = validity_of(self.certificates)
        object.__setattr__(self, "valid_from", valid_from)
        object.__setattr__(self, "valid_until", valid_until)

    @property
    def certificate(self) -> x509.Certificate:
        """The one whose key signs."""
        return self.certificates[0]

    @property
    def root(self) -> x509.Certificate:
        """The trust anchor."""
        return self.certificates[-1]

    def is_valid_at(self, now: datetime) -> bool:
        """Return whether what it signs verifies now."""
        return self.valid_from <= now < self.valid_until

    def check_valid(self, now: datetime) -> None:
        """Check that what it signs verifies.

        Raises:
            CaNotValid: it does not; the text says what to do.
        """
        if not self.is_valid_at(now):
            raise CaNotValid(validity_text(self.valid_from, self.valid_until, now))


def validity_of(certificates: Sequence[x509.Certificate]) -> tuple[datetime, datetime]:
    """Return from when until when all of these certificates are valid."""
    return (
        max(each.not_valid_before_utc for each in certificates),
        min(each.not_valid_after_utc for each in certificates),
    )


def validity_text(valid_from: datetime, valid_until: datetime, now: datetime) -> str:
    """Return what is to be said of a CA that is not valid now, and what to do; nothing of one that is valid."""
    rotate = command("vmi-agent", "ca rotate", opens_keys=True)
    if now < valid_from:
        return (
            f"the CA is not valid before {valid_from.isoformat()}: it was made while the clock was ahead, or the clock"
            f" is slow now. Nothing is signed. Set the clock, or make a new CA: `{rotate}`"
        )
    if now >= valid_until:
        return f"the CA ended at {valid_until.isoformat()}. Nothing is signed. Make a new one: `{rotate}`"
    return ""


def exists(state_dir: Path) -> bool:
    """Return whether the state directory holds a CA."""
    return bool(ca_store.generations(state_dir))


def load(state_dir: Path, generation: int, access: Access, publish_at: str | None = None) -> Authority:
    """Read one generation.

    Args:
        publish_at: the URL below which the proxy serves CRLs, OCSP and certificates; None where leaves name none.

    Raises:
        CustodyError: its key may not be used, or key and certificate do not belong together.
    """
    directory = ca_store.directory_of(state_dir, generation)
    if ca_store.is_ephemeral(directory):
        rotate = command("vmi-agent", "ca rotate", opens_keys=True)
        raise CustodyError(
            f"generation {generation} of the CA was ephemeral: its key is gone. Start with --ephemeral-ca, or make a"
            f" lasting CA: `{rotate}`"
        )
    return assemble(state_dir, generation, open_key(directory, access), publish_at)


def assemble(state_dir: Path, generation: int, custody: Custody, publish_at: str | None) -> Authority:
    """Put a key together with its certificates. Arguments and errors as for `load`."""
    directory = ca_store.directory_of(state_dir, generation)
    certificates = certificates_of(state_dir, generation)
    if certificates[0].public_key() != custody.public_key:
        raise CustodyError(f"key and certificate in {directory} do not belong together. Restore both from one backup.")
    crosses = [
        each.public_bytes(serialization.Encoding.DER)
        for name in (ca_store.NEW_WITH_OLD_FILE, ca_store.OLD_WITH_NEW_FILE)
        if (directory / name).exists()
        for each in ca_store.read_certificates(directory / name)
    ]
    return Authority(
        generation=generation,
        certificates=certificates,
        crosses=tuple(crosses),
        chain=tuple(each.public_bytes(serialization.Encoding.DER) for each in certificates),
        issuer=issuer_of(certificates[0], pointers(publish_at, generation)),
        custody=custody,
    )


def certificates_of(state_dir: Path, generation: int) -> tuple[x509.Certificate, ...]:
    """Return the CA's certificates of one generation, root last; no key is looked at.

    Raises:
        CustodyError: they cannot be read.
    """
    directory = ca_store.directory_of(state_dir, generation)
    issuing = directory / ca_store.ISSUING_FILE
    between = ca_store.read_certificates(issuing) if issuing.exists() else []
    return (*between, *ca_store.read_certificates(directory / ca_store.ROOT_FILE))


def reserved_names(state_dir: Path) -> ReservedNames:
    """Return the names of all generations' roots, issuing CAs and OCSP responders, ended ones included.

    A generation whose certificates cannot be read is left out: `Generations` has it logged.
    """
    names: list[x509.Name] = []
    for generation in ca_store.generations(state_dir):
        names.append(ocsp_responder_name(generation))
        with suppress(CustodyError):
            names += (each.subject for each in certificates_of(state_dir, generation))
    return ReservedNames(name.public_bytes() for name in names)


def issuer_of(certificate: x509.Certificate, pointers: tuple[bytes, ...] = ()) -> Issuer:
    """Return what of a CA certificate goes into those that it issues."""
    return Issuer(
        name=certificate.subject.public_bytes(),
        signature_algorithm=signature_algorithm(certificate.public_key()),
        key_identifier=certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest,
        not_after=certificate.not_valid_after_utc,
        pointers=pointers,
    )


def pointers(publish_at: str | None, generation: int) -> tuple[bytes, ...]:
    """Return the CRL distribution point and authority information access extensions (RFC 5280, 4.2.1.13, 4.2.2.1)."""
    if publish_at is None:
        return ()
    base = publish_at.rstrip("/")
    crl = x509.UniformResourceIdentifier(f"{base}/{generation}.crl")
    access = {
        AuthorityInformationAccessOID.OCSP: f"{base}/ocsp",
        AuthorityInformationAccessOID.CA_ISSUERS: f"{base}/{generation}.p7c",
    }
    return (
        extension(x509.CRLDistributionPoints([x509.DistributionPoint([crl], None, None, None)])),
        extension(
            x509.AuthorityInformationAccess(
                [x509.AccessDescription(oid, x509.UniformResourceIdentifier(url)) for oid, url in access.items()]
            )
        ),
    )


class Generations:
    """The generations of the CA that a running agent signs with.

    The newest one issues; the older ones go on making CRLs and OCSP answers until their root ends.

    Args:
        state_dir, access, publish_at: as for `load`.
        ephemeral: the current one, whose key is in memory only.
        tell: is told of an older generation that cannot be used.

    Raises:
        CustodyError: the newest one cannot be used.
    """

    def __init__(
        self,
        state_dir: Path,
        access: Access,
        publish_at: str | None,
        now: datetime,
        tell: Callable[[int, str], None],
        ephemeral: Authority | None = None,
    ) -> None:
        self._state_dir = state_dir
        self._access = access
        self._publish_at = publish_at
        self._tell = tell
        self._opened_at = now
        self._by_number: dict[int, Authority] = {}
        if ephemeral is None:
            newest = ca_store.newest(state_dir)
            ephemeral = load(state_dir, newest, access, publish_at)
        self.current = replace(ephemeral, reserved=reserved_names(state_dir))
        self._by_number[ephemeral.generation] = self.current
        for generation in ca_store.generations(state_dir):
            if generation not in self._by_number:
                self._add_older(generation)

    def get(self, generation: int) -> Authority | None:
        """Return a generation that signs CRLs, or None."""
        return self._by_number.get(generation)

    def all(self) -> list[Authority]:
        """Return all of them, oldest first."""
        return [self._by_number[number] for number in sorted(self._by_number)]

    def look_for_newer(self) -> bool:
        """Take the generations into use that were made since; return whether there were any.

        Raises:
            CustodyError: the newest one cannot be used. The one before goes on.
        """
        before, newest = self.current.generation, ca_store.newest(self._state_dir)
        if newest <= before:
            return False
        authority = load(self._state_dir, newest, self._access, self._publish_at)
        authority = replace(authority, reserved=reserved_names(self._state_dir))
        for generation in ca_store.generations(self._state_dir):
            if before < generation < newest:
                self._add_older(generation)
        self._by_number = self._by_number | {newest: authority}
        self.current = authority
        return True

    def close(self) -> None:
        """Let go of the keys; nothing is signed any more."""
        for authority in self._by_number.values():
            authority.custody.close()

    def _add_older(self, generation: int) -> None:
        if ca_store.is_ephemeral(ca_store.directory_of(self._state_dir, generation)):
            return  # with its key went its CRLs
        try:
            authority = load(self._state_dir, generation, self._access, self._publish_at)
        except CustodyError as error:
            self._tell(generation, str(error))
            return
        if authority.certificate.not_valid_after_utc > self._opened_at:
            # A new dictionary: other threads may be looking at the old one.
            self._by_number = self._by_number | {generation: authority}
