"""A mutator that changes DER element by element and leaves the lengths around them right."""

import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from runtime.asn1 import der

_DEEPEST = 24
_MOST_MUTATIONS = 4
_FAR = bytes.fromhex("80ffffffff")
_CONTENTS = (b"", b"\0", b"\xff", b"\x01", b"\x7f", b"\x80", b"a" * 64, b"a" * 65, b"\xd8\0", bytes(200), b"*.a", _FAR)
_TAGS = (0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0C, 0x13, 0x16, 0x1C, 0x1E, 0x30, 0x31, 0x80, 0x82, 0x87, 0xA0, 0xA3)


@dataclass
class Element:
    """An element: with parts, or with contents where it cannot be taken apart."""

    tag: int
    contents: bytes = b""
    parts: list["Element"] = field(default_factory=list)

    def octets(self) -> bytes:
        """Return its DER."""
        return der.wrap(self.tag, self.contents, *(part.octets() for part in self.parts))

    def all(self) -> list["Element"]:
        """Return itself and all below it."""
        return [self, *(each for part in self.parts for each in part.all())]


def read(octets: bytes, depth: int = 0) -> list[Element]:
    """Take apart elements that stand one after the other, and what is DER inside them, strings and bits included.

    Raises:
        DerError: they are none.
    """
    found, at = [], 0
    while at < len(octets):
        tag, start, end = der.read(octets, at)
        found.append(_element(tag, octets[start:end], depth))
        at = end
    return found


def _element(tag: int, contents: bytes, depth: int) -> Element:
    # An extension's value is DER inside an OCTET STRING, a key's often DER inside a BIT STRING.
    if depth < _DEEPEST and contents and (tag & 0x20 or tag == der.OCTET_STRING):
        try:
            return Element(tag, parts=read(contents, depth + 1))
        except der.DerError:
            pass
    return Element(tag, contents)


def elements_of(files: Iterable[bytes]) -> list[tuple[int, bytes]]:
    """Return tag and contents of all elements in some files, for `mutate` to put in elsewhere; each once."""
    found = set()
    for octets in files:
        with suppress(der.DerError):
            found |= {(each.tag, each.octets()) for part in read(octets) for each in part.all()}
    return sorted((tag, whole[der.read(whole)[1] :]) for tag, whole in found)


def mutate(octets: bytes, most: int, seed: int, donors: Sequence[tuple[int, bytes]] = ()) -> bytes:
    """Return other DER, at most so many octets of it, or the same where these are none.

    Args:
        seed: of all that is drawn.
        donors: from `elements_of`.
    """
    draw = random.Random(seed)  # noqa: S311  # a fuzzer's choices are no secret
    try:
        top = Element(0, parts=read(octets))
    except der.DerError:
        return octets[:most]
    for _ in range(draw.randint(1, _MOST_MUTATIONS)):
        _change(top, draw, donors)
    changed = b"".join(part.octets() for part in top.parts)
    if draw.random() < 0.03 and changed:  # not all inputs are DER
        at = draw.randrange(len(changed))
        changed = changed[:at] + draw.choice((b"", bytes((draw.randrange(256),)))) + changed[at + 1 :]
    return changed if len(changed) <= most else octets[:most]


def _change(top: Element, draw: random.Random, donors: Sequence[tuple[int, bytes]]) -> None:
    parents = [each for each in top.all() if each.parts]
    if not parents:
        return
    parent = draw.choice(parents)
    at = draw.randrange(len(parent.parts))
    chosen = parent.parts[at]
    match draw.randrange(10):
        case 0:
            del parent.parts[at]
        case 1:
            parent.parts.insert(at, chosen)
        case 2:
            other = draw.randrange(len(parent.parts))
            parent.parts[at], parent.parts[other] = parent.parts[other], chosen
        case 3:
            parent.parts[at] = Element(draw.choice(_TAGS), chosen.contents, chosen.parts)
        case 4:
            parent.parts[at] = Element(draw.choice(_TAGS), parts=[chosen])
        case 5 | 6 if donors:
            some = draw.choices(donors, k=16)
            alike = [each for each in some if each[0] == chosen.tag]
            parent.parts[at : at + draw.randrange(2)] = [Element(*draw.choice(alike or some))]
        case _:
            # The copy leaves alone the other places where a duplicated element stands.
            parent.parts[at] = Element(chosen.tag, _other_contents(chosen, draw))


def _other_contents(chosen: Element, draw: random.Random) -> bytes:
    contents = bytearray(chosen.contents or b"".join(part.octets() for part in chosen.parts))
    at = draw.randrange(len(contents) + 1)
    match draw.randrange(5):
        case 0:
            return draw.choice(_CONTENTS)
        case 1 if contents:
            contents[at % len(contents)] ^= 1 << draw.randrange(8)
        case 2 if contents:
            contents[at % len(contents)] = draw.randrange(256)
        case 3:
            contents[at:at] = draw.choice(_CONTENTS)
        case _:
            del contents[at : at + draw.randint(1, 8)]
    return bytes(contents)
