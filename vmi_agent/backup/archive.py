"""The tar file of a backup: the few forms of header that `backup` writes, and no others (POSIX.1-2017, pax, "ustar").

Python's tarfile reads whatever any tar ever wrote: sparse members, chained extended headers, links, negative sizes.
A backup comes from one writer, so its reader takes a strict subset:

    archive   = [manifest] *member end
    manifest  = a member whose name is `manifest`; always the first one
    member    = [extended] header content, padded with zeros to 512 octets
    extended  = one pax header, in front of the ledger alone: its exact time, or a size over 8 GiB
    end       = two blocks of zeros, then zeros up to a multiple of 10,240 octets

The archive is read once, front to back, so that the SHA-256 over it is that of the octets that were used.
"""

import io
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Protocol

from vmi_agent.ledger.schema import FILE_NAME

MANIFEST = "manifest"
# Every name that a backup may hold: nothing else is read from one.
MEMBER = re.compile(
    r"manifest|ledger\.sqlite|channel(-of-proxy)?\.pem"
    r"|ca/([1-9][0-9]{0,17}|requested)/[a-z-]+\.(pem|uri)|ca/[1-9][0-9]{0,17}/ephemeral"
)
MAX_SMALL_OCTETS = 1 << 20  # of any member but the ledger
MAX_MEMBERS = 10_000
MAX_EXTENDED_OCTETS = 1024

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_MAGIC = b"ustar\x0000"
_REGULAR, _EXTENDED = b"0", b"x"
_OCTAL = re.compile(rb"([0-7]{1,11})\0")
_CHECKSUM = re.compile(rb"([0-7]{6})\0 ")
_EXTENDED_RECORD = re.compile(rb"([1-9][0-9]{0,3}) ([a-z]+)=([^\n]*)\n")
# What Python's tarfile puts into a pax header of a regular file with a short name.
_EXTENDED_KEYS = frozenset({b"mtime", b"size", b"uid", b"gid", b"uname", b"gname"})
_GZIP = b"\x1f\x8b"


class Target(Protocol):
    """Takes the octets of a file."""

    def write(self, octets: bytes, /) -> int:
        """Take the next octets."""


class ArchiveRefused(Exception):
    """The octets are not an archive as `backup` writes it; the text says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file in the archive.

    Attributes:
        copy_to: writes the content to a file and returns its SHA-256 in hexadecimal. It can be called once, before the
            next member is asked for.
    """

    name: str
    size: int
    copy_to: Callable[[Target], str]


class ArchiveReader:
    """Reads an archive front to back, in chunks of at most 1 MiB.

    Args:
        file: opened for reading, at its beginning.
        size: octets in the file; no member is longer.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._left = size
        self._digest = sha256()
        self._unread = 0

    def members(self) -> Iterator[Member]:
        """Yield the members in their order; after the last one, the end of the archive has been checked as well.

        Raises:
            ArchiveRefused: the next octets are not a member of a backup.
        """
        names: set[str] = set()
        while any(block := self._header()):
            kind, name, size = _parse(block)
            is_extended = kind == _EXTENDED
            if is_extended:
                if size > MAX_EXTENDED_OCTETS:
                    raise ArchiveRefused("it holds an extended header that no backup has")
                extended_size = _size_in(self._content(size))
                kind, name, size = _parse(self._read(_BLOCK))
                size = size if extended_size is None else extended_size
            if kind != _REGULAR or (is_extended and name != FILE_NAME):
                raise ArchiveRefused("it holds an extended header where no backup has one")
            if not MEMBER.fullmatch(name) or name in names or (name == MANIFEST and names):
                raise ArchiveRefused(f"it holds {name[:80]!a}, which no backup has there")
            if name != FILE_NAME and size > MAX_SMALL_OCTETS:
                raise ArchiveRefused(f"{name} has {size} octets; accepted up to {MAX_SMALL_OCTETS}")
            if len(names) == MAX_MEMBERS:
                raise ArchiveRefused(f"it holds more than {MAX_MEMBERS} files")
            if size > self._left:
                raise ArchiveRefused(f"it ends too soon: {name} has {size} octets, of which {self._left} are there")
            names.add(name)
            self._unread = size
            yield Member(name, size, self._copy)
            if self._unread:
                raise AssertionError("each member is to be read before the next one")
        self._check_end()

    @property
    def sha256(self) -> str:
        """The SHA-256, in hexadecimal, over all that was read: after the last member, over the whole file."""
        return self._digest.hexdigest()

    def _header(self) -> bytes:
        block = self._read(_BLOCK)
        if block.startswith(_GZIP):
            raise ArchiveRefused("it is compressed. Decompress it first: gunzip")
        return block

    def _copy(self, target: Target) -> str:
        digest, size = sha256(), self._unread
        while self._unread:
            chunk = self._read(min(_CHUNK, self._unread))
            self._unread -= len(chunk)
            digest.update(chunk)
            target.write(chunk)
        self._skip_padding(size)
        return digest.hexdigest()

    def _content(self, size: int) -> bytes:
        content = self._read(size)
        self._skip_padding(size)
        return content

    def _skip_padding(self, size: int) -> None:
        if any(self._read(-size % _BLOCK)):
            raise ArchiveRefused("it holds octets between its files")

    def _read(self, size: int) -> bytes:
        octets = self._file.read(size)
        if len(octets) != size:
            raise ArchiveRefused("it ends too soon")
        self._left -= size
        self._digest.update(octets)
        return octets

    def _check_end(self) -> None:
        """Read what follows the first block of zeros."""
        rest = self._file.read(tarfile.RECORDSIZE + 1)
        self._digest.update(rest)
        if len(rest) < _BLOCK:
            raise ArchiveRefused("it ends too soon")
        if any(rest) or len(rest) > tarfile.RECORDSIZE:
            raise ArchiveRefused("it holds octets behind its end")


def write(target: BinaryIO, manifest: bytes, ledger: Path, files: dict[str, bytes], made_s: int) -> str:
    """Write an archive; return its SHA-256 in hexadecimal.

    Args:
        ledger: the copy that goes into it.
        files: the contents of the others, by name.
        made_s: the time that each member gets, in seconds since 1970-01-01 UTC.
    """
    out = _Hashing(target)
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]  # it writes and does no more
        with open(ledger, "rb") as content:
            archive.addfile(_entry(MANIFEST, len(manifest), made_s), io.BytesIO(manifest))
            archive.addfile(_entry(FILE_NAME, os.fstat(content.fileno()).st_size, made_s), content)
        for name, octets in files.items():
            archive.addfile(_entry(name, len(octets), made_s), io.BytesIO(octets))
    return out.digest.hexdigest()


class _Hashing:
    """A file that is written to, and the digest over what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = sha256()

    def write(self, octets: bytes) -> int:
        self.digest.update(octets)
        return self._file.write(octets)


def _entry(name: str, size: int, made_s: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.size, entry.mtime = 0o600, size, made_s
    return entry


def _parse(block: bytes) -> tuple[bytes, str, int]:
    """Return type, name and size of a header (POSIX.1-2017, pax, "ustar Interchange Format")."""
    checksum = _CHECKSUM.fullmatch(block[148:156])
    if checksum is None or int(checksum[1], 8) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
        raise ArchiveRefused("it is not a tar file as backup writes it, or was damaged")
    kind, size = block[156:157], _OCTAL.fullmatch(block[124:136])
    if block[257:265] != _MAGIC or size is None or any(block[157:257]) or any(block[345:]):
        raise ArchiveRefused("it holds a header that no backup has")
    name, _, rest = block[:100].partition(b"\0")
    if kind not in (_REGULAR, _EXTENDED) or any(rest):
        raise ArchiveRefused(f"it holds {name[:80].decode('ascii', 'replace')!a}, which is not a plain file")
    return kind, name.decode("latin-1"), int(size[1], 8)


def _size_in(extended: bytes) -> int | None:
    """Return the size that a pax header gives ("pax Extended Header"); None where it gives none."""
    size, position, seen = None, 0, set()
    while position < len(extended):
        record = _EXTENDED_RECORD.match(extended, position)
        if record is None or int(record[1]) != len(record[0]) or record[2] not in _EXTENDED_KEYS or record[2] in seen:
            raise ArchiveRefused("it holds an extended header that no backup has")
        seen.add(record[2])
        if record[2] == b"size":
            if not re.fullmatch(rb"[1-9][0-9]{0,14}", record[3]):
                raise ArchiveRefused("it holds a size that is none")
            size = int(record[3])
        position = record.end()
    return size
