"""Directories in which something secret is put together before it gets its name."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import StartError
from runtime.file_lock import try_lock


@contextmanager
def staging_directory(directory: Path) -> Iterator[Path]:
    """Give an empty directory for this user alone, which is gone afterwards unless it was renamed.

    Its name is always the same, so that what a killed process left there, keys among it, is gone with the next run.

    Raises:
        StartError: another process is using it, or something else has its name.
        OSError: it cannot be made.
    """
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileExistsError, NotADirectoryError) as error:
        raise StartError(f"{directory} is in the way. Remove it.") from error
    try:
        state = os.fstat(descriptor)
        if state.st_uid != os.geteuid():
            raise StartError(f"{directory} belongs to uid {state.st_uid}. Remove it.")
        if not try_lock(descriptor) or not _is_at(directory, state):
            raise StartError(f"{directory} is in use by another process. Wait for its end.")
        try:
            os.fchmod(descriptor, stat.S_IRWXU)
            _empty(directory)
            yield directory
        finally:
            if _is_at(directory, state):
                shutil.rmtree(directory)
    finally:
        os.close(descriptor)


def _is_at(directory: Path, state: os.stat_result) -> bool:
    """Return whether a directory still has its name."""
    try:
        return os.path.samestat(directory.lstat(), state)
    except FileNotFoundError:
        return False


def _empty(directory: Path) -> None:
    for each in directory.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each)
        else:
            each.unlink()
