"""The vectors alone notice the mistakes that a stranger's codec could have."""

import subprocess
import sys

from support.protocol_mutations import HERE, VECTORS, all_caught, named

# docs/reliability.md has the figure as well.
LEAST_CAUGHT = 93


def test_vectors_catch_single_faults() -> None:
    """The codec without a fault passes; of the mistakes of protocol_faults.toml each is caught by a vector."""
    faults = named()
    sound, *caught = all_caught([None, *faults])

    assert sound == ""
    assert [fault.what for fault, each in zip(faults, caught, strict=True) if not each] == []
    assert len(faults) >= LEAST_CAUGHT
    # The vectors were judged, and not the runner's own imports.
    assert [each for each in caught if "ImportError" in each or "SyntaxError" in each] == []


def test_runner_names_the_vector_that_does_not_hold() -> None:
    """The runner ends with status 1 and one line for the first vector that the codec gets wrong."""
    wrong = VECTORS.read_text(encoding="utf-8").replace(
        '"description": "DRAIN", "type": 4', '"description": "DRAIN", "type": 3'
    )
    command = [sys.executable, str(HERE / "vector_runner.py"), "/dev/stdin"]
    done = subprocess.run(command, input=wrong, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (1, "records: DRAIN: AssertionError: type\n", "")
