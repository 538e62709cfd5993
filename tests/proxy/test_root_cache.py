"""The stored root: what is told, how old it is, and that the file is never half written."""

from pathlib import Path

import pytest

from bmc_proxy.pem import to_pem
from bmc_proxy.root_cache import FILE_NAME, RootCache

ROOT, OTHER = to_pem(b"\x30\x06\x30\x00\x30\x00\x03\x00"), to_pem(b"\x30\x06\x30\x00\x30\x00\x05\x00")


class Setting:
    """A clock and a list of reports."""

    def __init__(self) -> None:
        self.now = 1_000_000_000.0
        self.monotonic = 5.0
        self.reports: list[str] = []

    def open(self, state_dir: Path) -> RootCache:
        """Open the cache."""
        return RootCache(state_dir, lambda: self.now, lambda: self.monotonic, self.reports.append)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.monotonic += seconds


@pytest.fixture
def setting() -> Setting:
    """Return a fresh setting."""
    return Setting()


def test_root_cache_is_empty_at_first(tmp_path: Path, setting: Setting) -> None:
    """Before any agent presented a root there is none."""
    assert setting.open(tmp_path).last() is None


def test_root_cache_tells_the_age(tmp_path: Path, setting: Setting) -> None:
    """The age counts whole seconds since an agent last presented the root, across a restart."""
    cache = setting.open(tmp_path)
    cache.received(ROOT)
    setting.advance(61.5)

    assert cache.last() == (ROOT, 61)
    assert setting.open(tmp_path).last() == (ROOT, 61)


def test_root_cache_after_the_same_root_again(tmp_path: Path, setting: Setting) -> None:
    """The same root, presented again, is young again."""
    cache = setting.open(tmp_path)
    cache.received(ROOT)
    setting.advance(100)
    cache.received(ROOT)

    assert setting.open(tmp_path).last() == (ROOT, 0)


def test_root_cache_is_replaced_by_another_root(tmp_path: Path, setting: Setting) -> None:
    """Another root takes the place of the first, and nothing else is left in the directory."""
    cache = setting.open(tmp_path)
    cache.received(ROOT)
    cache.received(OTHER)

    assert setting.open(tmp_path).last() == (OTHER, 0)
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE_NAME]


def test_root_cache_that_cannot_be_written(tmp_path: Path, setting: Setting) -> None:
    """Where the file cannot be written, that is reported and the root is known all the same."""
    cache = setting.open(tmp_path)
    cache.received(ROOT)
    (tmp_path / FILE_NAME).unlink()
    tmp_path.rmdir()
    cache.received(OTHER)

    cache.received(OTHER)

    assert len(setting.reports) == 1
    assert cache.last() == (OTHER, 0)


@pytest.mark.parametrize("jump", [-1000, 1000])
def test_root_cache_on_a_clock_that_was_set(tmp_path: Path, setting: Setting, jump: float) -> None:
    """The age counts what passed; after a restart there is only the time of day, and no age is negative."""
    cache = setting.open(tmp_path)
    cache.received(ROOT)
    setting.advance(10)
    setting.now += jump

    assert cache.last() == (ROOT, 10)
    assert setting.open(tmp_path).last() == (ROOT, max(0, jump + 10))


@pytest.mark.parametrize("stored", ["", "hello\n", ROOT[:-30], ROOT + "x", ROOT * 2, "\xff"])
def test_root_cache_with_a_broken_file(tmp_path: Path, setting: Setting, stored: str) -> None:
    """A stored file that is not one whole certificate is reported and not told; the next root replaces it."""
    (tmp_path / FILE_NAME).write_bytes(stored.encode("latin-1"))
    cache = setting.open(tmp_path)

    assert cache.last() is None
    assert len(setting.reports) == 1
    cache.received(ROOT)
    assert setting.open(tmp_path).last() == (ROOT, 0)


def test_root_cache_that_could_not_be_written_once(tmp_path: Path, setting: Setting) -> None:
    """A root that did not get to the disk gets there when it is presented again; the old one is never called young."""
    cache = setting.open(tmp_path)
    cache.received(ROOT)
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).mkdir()  # a file cannot take its place
    cache.received(OTHER)
    (tmp_path / FILE_NAME).rmdir()
    (tmp_path / FILE_NAME).write_text(ROOT)
    cache.received(OTHER)

    assert len(setting.reports) == 1
    assert setting.open(tmp_path).last() == (OTHER, 0)
