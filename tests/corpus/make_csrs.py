"""Make the corpus of hostile and odd CSRs anew: python tests/corpus/make_csrs.py [DIRECTORY]

The same files come out of every run, but for the signatures of ML-DSA keys, which are random.
What each file gets is in tests/support/corpus_table.py.
"""

import sys
from pathlib import Path

import field_names
import field_wishes
import odd_keys
import odd_shapes
import odd_subjects
import odd_wishes

DIRECTORY = Path(__file__).parent / "csrs"


def corpus() -> dict[str, bytes]:
    """Return every file's contents by its name."""
    found: dict[str, bytes] = {}
    for module in (odd_keys, odd_subjects, odd_wishes, odd_shapes, field_names, field_wishes):
        for name, contents in module.files().items():
            assert f"{name}.der" not in found, name
            found[f"{name}.der"] = contents
    return found


def main(directory: Path) -> None:
    """Write the corpus into a directory; what else lies there as .der goes."""
    directory.mkdir(exist_ok=True)
    made = corpus()
    for path in directory.glob("*.der"):
        if path.name not in made:
            path.unlink()
    for name, contents in made.items():
        (directory / name).write_bytes(contents)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DIRECTORY)
