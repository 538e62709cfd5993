"""Host names and mailboxes as they may stand in a certificate: in the one spelling that readers agree about."""

import re

import idna

from vmi_agent.policy.visible import is_visible

MOST_MAILBOX_CHARACTERS = 254  # RFC 5321, 4.5.3.1.3: a path of 256, less its two angle brackets

_LABEL_PATTERN = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_LABEL = re.compile(rf"{_LABEL_PATTERN}\Z")
_HOST = re.compile(rf"(?=.{{1,253}}\Z){_LABEL_PATTERN}(?:\.{_LABEL_PATTERN})*\Z")
# What inet_aton, and with it browsers and resolvers, take for the last part of an IPv4 address: 10.9.2313 or 0x0a.1.
_NUMBER = re.compile(r"(?:[0-9]+|0[xX][0-9A-Fa-f]*)\Z")
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_DOT_STRING = re.compile(rf"(?=.{{1,64}}\Z){_ATOM}(?:\.{_ATOM})*\Z")  # RFC 5321, 4.1.2 and 4.5.3.1.1
_A_LABEL_PREFIX = "xn--"


def host_fault(host: str) -> str | None:
    """Return what is wrong with a host name, to follow "a name that", or None where nothing is.

    Host names are letters, digits and hyphens (RFC 1034, 3.5; RFC 1123, 2.1), without wildcard, underscore or trailing
    dot. The last label is no number, so that none is an address in any spelling (RFC 9525, 3). Labels that begin with
    xn-- are A-labels (RFC 5890, 2.3.2.1) of text that a person can see.
    """
    if not _HOST.match(host):
        return "is not a plain host name (RFC 1034, 3.5; no wildcard, underscore or trailing dot)"
    if _NUMBER.match(host.rpartition(".")[2]):
        return "reads as an IP address, since its last label is a number (RFC 1123, 2.1)"
    if _A_LABEL_PREFIX in host.lower() and not all(map(_is_sound_label, host.lower().split("."))):
        return "has a label in xn-- that does not decode to visible text (RFC 5890, 2.3.2.1)"
    return None


def is_label(text: str) -> bool:
    """Return whether a text is one label of a host name, such as a domainComponent (RFC 4519, 2.4) is."""
    return _LABEL.match(text) is not None and _is_sound_label(text.lower())


def mailbox_fault(mailbox: str) -> str | None:
    """Return what is wrong with a mailbox, to follow "a mailbox that", or None where nothing is.

    It is a Dot-string, an @ and a host name, in ASCII (RFC 5321, 4.1.2). Quoted local parts and address literals are
    refused: software disagrees about where they end, and an address literal would pass by what is asked of addresses.
    """
    local, at, host = mailbox.rpartition("@")
    if not at or not _DOT_STRING.match(local) or len(mailbox) > MOST_MAILBOX_CHARACTERS:
        return "is not plain name@host (RFC 5321, 4.1.2; a name of dot-separated words, without quotes)"
    fault = host_fault(host)
    return fault and f"has a host that {fault}"


def _is_sound_label(label: str) -> bool:
    if not label.startswith(_A_LABEL_PREFIX):
        return True
    try:
        # Only what IDNA 2008 allows decodes, and only from the one A-label that it encodes to.
        text = idna.ulabel(label)
        return idna.alabel(text) == label.encode() and is_visible(text)
    except idna.IDNAError:
        return False
