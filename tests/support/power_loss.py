"""What a machine finds again after its power failed, from the calls that a process made (`faults.c`).

A model of a disk and of the operating system's cache before it, stricter than most file systems are:

- What was written is in the cache; a sync of the file puts its pages on the disk, size included. A sync that failed
  puts nothing there, and its pages count as clean afterwards: a later sync does not make up for it.
- A name that was made, changed or removed is on the disk after a sync of its directory.
- Whatever was not synced may be on the disk or not: each page by itself, the names of a directory in their order.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from support.faults import Call

PAGE = 4096


@dataclass(eq=False)
class File:
    """A file in the cache, and on the disk."""

    cached: bytearray = field(default_factory=bytearray)
    stored: bytearray = field(default_factory=bytearray)
    dirty: set[int] = field(default_factory=set)
    is_cut: bool = False

    def write(self, offset: int, data: bytes) -> None:
        """Write into the cache."""
        end = offset + len(data)
        if end > len(self.cached):
            self.cached.extend(bytes(end - len(self.cached)))
        self.cached[offset:end] = data
        self.dirty.update(range(offset // PAGE, (end + PAGE - 1) // PAGE))

    def truncate(self, size: int) -> None:
        """Cut the file off, or make it longer, in the cache."""
        self.is_cut = self.is_cut or size < len(self.cached)
        self.cached = self.cached[:size] + bytes(max(0, size - len(self.cached)))
        self.dirty = {page for page in self.dirty if page * PAGE < size}

    def sync(self) -> None:
        """Put what is dirty on the disk."""
        self.stored = self.after_loss(lambda: True)
        self.fail()

    def fail(self) -> None:
        """Forget that there is anything to put on the disk."""
        self.dirty.clear()
        self.is_cut = False

    def after_loss(self, keeps: Callable[[], bool]) -> bytearray:
        """Return what the disk holds where only some of what is dirty got there."""
        stored = self.stored[:]
        if self.is_cut and keeps():
            stored = stored[: len(self.cached)]
        for page in sorted(self.dirty):
            if keeps():
                start, end = page * PAGE, min((page + 1) * PAGE, len(self.cached))
                stored.extend(bytes(max(0, end - len(stored))))
                stored[start:end] = self.cached[start:end]
        return stored


@dataclass(eq=False)
class Directory:
    """A directory in the cache, what is in it on the disk, and the changes in between."""

    cached: dict[str, "File | Directory"] = field(default_factory=dict)
    stored: dict[str, "File | Directory"] = field(default_factory=dict)
    changes: list[tuple[str, "File | Directory | None"]] = field(default_factory=list)

    def change(self, *changes: "tuple[str, File | Directory | None]") -> None:
        """Give names to files, or take names away, in the cache."""
        _apply(self.cached, changes)
        self.changes += changes

    def sync(self) -> None:
        """Put the names on the disk."""
        _apply(self.stored, self.changes)
        self.changes.clear()

    def after_loss(self, count: int) -> "dict[str, File | Directory]":
        """Return the names that the disk holds where so many of the changes got there."""
        names = dict(self.stored)
        _apply(names, self.changes[:count])
        return names


def _apply(names: "dict[str, File | Directory]", changes: "Sequence[tuple[str, File | Directory | None]]") -> None:
    for name, node in changes:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Disk:
    """The disk below a directory, from a state of it that is all stored, and what is called from then on.

    Args:
        directory: as it is now.
        data: the file that will hold what is written.
    """

    def __init__(self, directory: Path, data: Path) -> None:
        self._under = directory.resolve()
        self._data = data
        self._read = 0
        self._root = _stored(directory)

    def make(self, call: Call) -> None:
        """Make a call of the process's, in the order of its log."""
        match call.name:
            case "write" | "pwrite" if call.result > 0:
                self._file(call.path).write(int(call.more), self._next_data(call.result))
            case "ftruncate" | "truncate" if call.result >= 0:
                self._file(call.path).truncate(int(call.more))
            case "fsync" | "fdatasync":
                node = self._node(call.path)
                if call.result == 0:
                    node.sync()
                elif isinstance(node, File):
                    node.fail()
            case "create" if call.result >= 0:
                self._change(call.path, File())
            case "mkdir" if call.result == 0:
                self._change(call.path, Directory())
            case "unlink" | "rmdir" if call.result == 0:
                self._change(call.path, None)
            case "link" if call.result == 0:
                self._change(call.more, self._node(call.path))
            case "rename" if call.result == 0:
                old, new = PurePath(call.path), PurePath(call.more)
                assert old.parent == new.parent, "a rename across directories"
                self._directory(call.path).change((new.name, self._node(call.path)), (old.name, None))

    def write_to(self, directory: Path, chance: random.Random | None) -> None:
        """Write what is found again into a new directory: nothing that was not synced, or some of it by chance."""
        _write(self._root, directory, chance)

    def _node(self, path: str) -> File | Directory:
        node: File | Directory = self._root
        for name in PurePath(path).relative_to(self._under).parts:
            assert isinstance(node, Directory)
            node = node.cached[name]
        return node

    def _file(self, path: str) -> File:
        node = self._node(path)
        assert isinstance(node, File)
        return node

    def _directory(self, path: str) -> Directory:
        node = self._node(str(PurePath(path).parent))
        assert isinstance(node, Directory)
        return node

    def _change(self, path: str, node: File | Directory | None) -> None:
        self._directory(path).change((PurePath(path).name, node))

    def _next_data(self, size: int) -> bytes:
        with open(self._data, "rb") as file:
            file.seek(self._read)
            self._read += size
            return file.read(size)


def _stored(directory: Path) -> Directory:
    """Return a directory as it is, all of it stored."""
    names: dict[str, File | Directory] = {}
    for each in directory.iterdir():
        content = b"" if each.is_dir() else each.read_bytes()
        names[each.name] = _stored(each) if each.is_dir() else File(bytearray(content), bytearray(content))
    return Directory(dict(names), dict(names))


def _write(node: Directory, path: Path, chance: random.Random | None) -> None:
    path.mkdir(mode=0o700)
    count = chance.randint(0, len(node.changes)) if chance else 0

    def keeps() -> bool:
        return chance is not None and chance.random() < 0.5

    for name, child in node.after_loss(count).items():
        if isinstance(child, Directory):
            _write(child, path / name, chance)
        else:
            (path / name).touch(mode=0o600)
            (path / name).write_bytes(child.after_loss(keeps))
