"""No leaf bears the name of one of our CAs or OCSP responders, in any spelling that readers take for the same."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID
from support.agents import START, Agent, always, open_agent, request
from support.ca_life_parts import delegate_of, now, rotate
from support.csrs import make_csr, resign
from support.judges import openssl
from support.offline_root import OfflineRoot

from runtime.asn1 import der
from vmi_agent.ca import store as ca_store
from vmi_agent.ca.authority import reserved_names
from vmi_agent.ca.reserved_names import ReservedNames, prepare
from vmi_agent.certificate import Issuer, assemble, certificate_tbs
from vmi_agent.errors import Refused

CN, O = bytes.fromhex("0603550403"), bytes.fromhex("060355040a")  # noqa: E741  # its name
UTF8, PRINTABLE, TELETEX, BMP = 0x0C, 0x13, 0x14, 0x1E
SET = 0x31
ORGANIZATION = "VMI Certificate Exchange"


def attribute(kind: bytes, text: str, tag: int = UTF8) -> bytes:
    """Return an AttributeTypeAndValue."""
    return der.wrap(der.SEQUENCE, kind, der.wrap(tag, text.encode("utf-16-be" if tag == BMP else "utf-8")))


def name(*parts: bytes) -> bytes:
    """Return a Name with one attribute in each of its sets."""
    return der.wrap(der.SEQUENCE, *(der.wrap(SET, part) for part in parts))


def wide(text: str) -> str:
    """Return the text in the compatibility characters that are as wide as Chinese ones."""
    return "".join(chr(ord(character) + 0xFEE0) if character.isalnum() else character for character in text)


# What becomes of each text, the string type, and whether openssl takes the name for the same.
SPELLINGS: dict[str, tuple[Callable[[str], str], int, bool]] = {
    "as it is": (str, UTF8, True),
    "PrintableString": (str, PRINTABLE, True),
    "TeletexString": (str, TELETEX, True),
    "BMPString": (str, BMP, True),
    "other case": (str.swapcase, UTF8, True),
    "two spaces": (lambda text: text.replace(" ", "  "), UTF8, True),
    "a space in front": (lambda text: f" {text}", UTF8, True),
    "spaces behind": (lambda text: f"{text}   ", UTF8, True),
    "all of these": (lambda text: f" {text.upper().replace(' ', '   ')} ", BMP, True),
    "compatibility characters": (wide, UTF8, False),
    "Roman numerals": (lambda text: text.replace("VMI", "\u2164\u216f\u2160"), UTF8, False),
}
OTHERS: dict[str, Callable[[str], tuple[bytes, ...]]] = {
    "a letter more": lambda text: (attribute(O, ORGANIZATION), attribute(CN, f"{text}x")),
    "a space less": lambda text: (attribute(O, ORGANIZATION), attribute(CN, text.replace(" ", ""))),
    "without the organization": lambda text: (attribute(CN, text),),
    "another organization": lambda text: (attribute(O, "IBM"), attribute(CN, text)),
    "the other way round": lambda text: (attribute(CN, text), attribute(O, ORGANIZATION)),
    "an attribute more": lambda text: (attribute(O, ORGANIZATION), attribute(O, "HMC"), attribute(CN, text)),
    "another attribute": lambda text: (attribute(O, ORGANIZATION), attribute(O, text)),
}


@pytest.fixture(scope="module")
def rotated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Agent, list[x509.Certificate]]]:
    """Yield an agent that saw two rotations, and the roots of its three generations."""
    state_dir = tmp_path_factory.mktemp("rotated")
    with open_agent(state_dir, now) as agent:
        roots = [agent.generations.current.root]
        for _ in range(2):
            roots.append(rotate(state_dir))
            assert agent.generations.look_for_newer()
        yield agent, roots


def common_name(certificate: x509.Certificate) -> str:
    """Return a subject's common name."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def is_refused(agent: Agent, subject: bytes) -> bool:
    """Return whether a subject is refused for being one of ours; anything else is issued."""
    try:
        agent.issuing.issue(request(resign(make_csr(), subject=subject)), always)
    except Refused as refused:
        assert refused.text.startswith("The subject is that of a CA or OCSP responder of this agent")
        return True
    return False


def hash_of(subject: bytes) -> str:
    """Return the hash by which openssl looks for an issuer, which is of a name's canonical form."""
    csr = x509.load_der_x509_csr(make_csr())
    key_info = csr.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    issuer = Issuer(subject, bytes.fromhex("300a06082a8648ce3d040302"), bytes(20), START)
    leaf = assemble(certificate_tbs(issuer, b"\x01", START, START, subject, key_info, ()), bytes(64))
    pem = x509.load_der_x509_certificate(leaf).public_bytes(serialization.Encoding.PEM)
    return openssl("x509", "-noout", "-subject_hash", stdin=pem.decode())


@pytest.mark.parametrize("generation", [1, 2, 3])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_generations_name_is_refused(
    rotated: tuple[Agent, list[x509.Certificate]], spelling: str, generation: int
) -> None:
    """The name of each root, ended or not, is refused in every spelling that openssl takes for it, and some more."""
    agent, roots = rotated
    change, tag, is_openssls = SPELLINGS[spelling]
    root = roots[generation - 1]

    subject = name(attribute(O, change(ORGANIZATION), tag), attribute(CN, change(common_name(root)), tag))

    assert (hash_of(subject) == hash_of(root.subject.public_bytes())) == is_openssls
    assert is_refused(agent, subject)


@pytest.mark.parametrize("other", OTHERS)
def test_other_names_are_issued(rotated: tuple[Agent, list[x509.Certificate]], other: str) -> None:
    """A name that differs in more than its spelling is nobody's."""
    agent, roots = rotated

    assert not is_refused(agent, name(*OTHERS[other](common_name(roots[0]))))


def test_ocsp_responders_name_is_refused(rotated: tuple[Agent, list[x509.Certificate]]) -> None:
    """The name of each generation's OCSP responder is refused; a generation that there is not has none."""
    agent, roots = rotated
    delegate = delegate_of(agent, agent.generations.current)
    assert common_name(delegate) == f"VMI OCSP responder {len(roots)}"

    assert is_refused(agent, delegate.subject.public_bytes())
    assert is_refused(agent, name(attribute(CN, "vmi  ocsp responder 1")))
    assert not is_refused(agent, name(attribute(CN, "VMI OCSP responder 4")))


def test_names_of_an_issuing_ca_and_its_root_are_refused(tmp_path: Path) -> None:
    """Under an offline root, the issuing CA's name and the root's are refused."""
    root = OfflineRoot(tmp_path / "root")
    issuing_ca = root.install(tmp_path / "agent")
    other_case = [x509.NameAttribute(each.oid, str(each.value).swapcase()) for each in issuing_ca.subject]
    with open_agent(tmp_path / "agent", now) as agent:
        assert is_refused(agent, x509.Name(other_case).public_bytes())
        assert is_refused(agent, name(attribute(O, "example"), attribute(CN, "Example  Root")))
        assert not is_refused(agent, name(attribute(O, "example"), attribute(CN, "Example Root 2")))


def test_reserved_names_leave_out_what_cannot_be_read(tmp_path: Path) -> None:
    """A generation whose certificate is damaged keeps the others' names reserved."""
    with open_agent(tmp_path, now) as agent:
        root = agent.generations.current.root
    rotate(tmp_path)
    (ca_store.directory_of(tmp_path, 2) / ca_store.ROOT_FILE).write_text("damaged")

    names = reserved_names(tmp_path)

    assert (((CN[2:], "VMI OCSP RESPONDER 2"),),) in names
    assert (((O[2:], ORGANIZATION),), ((CN[2:], common_name(root)),)) in names


def test_reserved_names_take_any_name() -> None:
    """A CA's name with an attribute that is no text, or with none at all, is nobody else's."""
    odd = der.wrap(der.SEQUENCE, CN, bytes.fromhex("0302000f"))
    broken = der.wrap(der.SEQUENCE, CN, der.wrap(BMP, b"odd"))
    names = ReservedNames([name(), name(odd), name(broken)])

    assert (((CN[2:], "hmc1"),),) not in names


@pytest.mark.parametrize(
    ("one", "other"),
    [("Straße", "STRASSE"), ("ﬁn", "FIN"), ("Ko\u0308ln", "KÖLN"), ("１", "1"), (" a  b ", "A B"), ("ſ", "S")],
)
def test_prepare_makes_alike(one: str, other: str) -> None:
    """Texts that RFC 4518 prepares to the same are the same."""
    assert prepare(one) == prepare(other)


@pytest.mark.parametrize(("one", "other"), [("a b", "ab"), ("o", "ö"), ("Консоль", "Kонсоль"), ("1", "l")])
def test_prepare_keeps_apart(one: str, other: str) -> None:
    """Texts that only look alike are not the same."""
    assert prepare(one) != prepare(other)
