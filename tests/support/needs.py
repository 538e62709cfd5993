"""Programs that the tests need and that pip cannot install beside ours."""

import shutil
import sys
from pathlib import Path

import pytest

# Debian's packages, where they are named otherwise.
_PACKAGES = {
    "cc": "gcc libc6-dev",
    "certtool": "gnutls-bin",
    "ocsptool": "gnutls-bin",
    "flock": "util-linux",
    "go": "golang-go",
    "prlimit": "util-linux",
    "setpriv": "util-linux",
    "softhsm2-util": "softhsm2",
}


def need(program: str) -> str:
    """Return the program's name, or skip the test with what to install; on CI a skip is a failure (conftest)."""
    if shutil.which(program) is None:
        pytest.skip(f"install {program}: apt-get install {_PACKAGES.get(program, program)}")
    return program


def need_scanner() -> str:
    """Return the TLS scanner, which has an environment of its own, or skip the test as `need` does."""
    path = Path(sys.executable).parent.parent / "scanner" / "bin" / "sslyze"
    if not path.exists():
        pytest.skip("install sslyze: make scanner")
    return str(path)


def need_library(name: str, package: str) -> str:
    """Return a shared library of a Debian package, or skip the test as `need` does."""
    found = sorted(Path("/usr/lib").glob(f"*/{name}"))
    if not found:
        pytest.skip(f"install {package}: apt-get install {package}")
    return str(found[0])
