"""The fuzz targets run: each over its committed corpus, and a little further. FUZZ_RUNS inputs, where that is set."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "fuzz"
RUNS = int(os.environ.get("FUZZ_RUNS", "500"))


@pytest.mark.parametrize("target", sorted(FUZZ.glob("fuzz_*.py")), ids=lambda path: path.stem)
def test_fuzz_target(target: Path, tmp_path: Path) -> None:
    """A bounded number of inputs, grown from the corpus, find nothing."""
    pytest.importorskip("atheris", reason="pip install atheris (Linux)")
    corpus = tmp_path / "corpus"
    shutil.copytree(FUZZ / "corpus" / target.stem.removeprefix("fuzz_"), corpus)
    assert any(corpus.iterdir())

    command = [sys.executable, str(target), f"-runs={RUNS}", "-seed=1", f"-artifact_prefix={tmp_path}/", str(corpus)]
    done = subprocess.run(command, cwd=FUZZ.parent, capture_output=True, text=True, errors="replace", check=False)

    assert done.returncode == 0, done.stderr[-4000:]
