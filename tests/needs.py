"""Programs that the tests need and that pip cannot install."""

import shutil

import pytest


def need(program: str) -> str:
    """Return the program's name, or skip the test with what to install; on CI a skip is a failure (conftest)."""
    if shutil.which(program) is None:
        pytest.skip(f"install {program}: apt-get install {program}")
    return program
