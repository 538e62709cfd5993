"""Single faults of a codec, and whether the published vectors notice them: a measure of the vectors, not of the codec.

Each fault is made in a copy of `protocol`, and `vector_runner.py` run beside that copy in a process of its own.
`named` are mistakes that somebody who writes a peer from docs/protocol.md could make. `systematic` makes every fault of
four plain kinds in every file: a comparison or a condition turned, a constant one more, a statement left out.

    python tests/support/protocol_mutations.py [--systematic]
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PACKAGE = ROOT / "protocol"
VECTORS = ROOT / "docs" / "protocol-vectors.json"
RUNNER = HERE / "vector_runner.py"
FAULTS = HERE / "protocol_faults.toml"
# A fault may make the runner wait for something that never comes.
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Mutation:
    """One fault.

    Attributes:
        file: of the package.
        old: stands in it once.
        new: stands there instead.
        what: the mistake that it stands for.
    """

    file: str
    old: str
    new: str
    what: str


def named() -> list[Mutation]:
    """Return the mistakes of protocol_faults.toml."""
    with FAULTS.open("rb") as file:
        return [Mutation(**each) for each in tomllib.load(file)["faults"]]


def caught_by_vectors(mutation: Mutation | None) -> str:
    """Return what the vectors say of a codec with this fault, or without any: the first that does not hold, or ""."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / PACKAGE.name
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutation is not None:
            path = copy / mutation.file
            text = path.read_text(encoding="utf-8")
            assert text.count(mutation.old) == 1, f"{mutation.file}: {text.count(mutation.old)} times {mutation.old!r}"
            path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        return _run(directory)


def all_caught(mutations: Sequence[Mutation | None]) -> list[str]:
    """Return what `caught_by_vectors` does for each, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(caught_by_vectors, mutations))


def _run(directory: str) -> str:
    # -S: no site-packages, so that nothing but the copy and the standard library is there.
    command = [sys.executable, "-S", str(RUNNER), str(VECTORS)]
    environment = {**os.environ, "PYTHONPATH": directory, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        return "the runner did not end"
    return "" if done.returncode == 0 else done.stdout.strip() or done.stderr.strip().splitlines()[-1]


def systematic() -> Iterator[Mutation]:
    """Yield a fault of each plain kind at each place of the package where there can be one."""
    for path in sorted(PACKAGE.glob("*.py")):
        if path.name == "der.py":  # no part of the channel
            continue
        text = path.read_text(encoding="utf-8")
        for old_node, new_node, what in _faults(ast.parse(text)):
            lines = text.splitlines(keepends=True)
            yield _replaced(path.name, text, lines, old_node, ast.unparse(new_node), what)


_TURNED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}


def _faults(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Compare(left, [operator], comparators):
                turned = ast.Compare(left, [_TURNED[type(operator)]()], comparators)
                yield node, turned, "comparison turned"
            case ast.Compare(left, [first, second], comparators):
                yield node, ast.Compare(left, [_TURNED[type(first)](), second], comparators), "comparison turned"
                yield node, ast.Compare(left, [first, _TURNED[type(second)]()], comparators), "comparison turned"
            case ast.Constant(int() as value) if not isinstance(value, bool):
                yield node, ast.Constant(value + 1), "constant one more"
            case ast.If(test) | ast.While(test) | ast.IfExp(test):
                yield test, ast.UnaryOp(ast.Not(), test), "condition turned"
            case ast.Expr(ast.Call()) | ast.AugAssign() | ast.Delete():
                yield node, ast.Pass(), "statement left out"


def _replaced(file: str, text: str, lines: Sequence[str], node: ast.AST, new: str, what: str) -> Mutation:
    """Return a fault at this place; the whole file is its `old`, so that the place is the one that is meant."""
    assert isinstance(node, ast.expr | ast.stmt)
    assert node.end_lineno is not None
    assert node.end_col_offset is not None

    def at(line: int, column: int) -> int:
        before = sum(len(each) for each in lines[: line - 1])
        return before + len(lines[line - 1].encode()[:column].decode())

    start, end = at(node.lineno, node.col_offset), at(node.end_lineno, node.end_col_offset)
    told = f"line {node.lineno}: {what}: {text[start:end].splitlines()[0]} -> {new}"
    return Mutation(file, text, text[:start] + (new if what == "statement left out" else f"({new})") + text[end:], told)


def main() -> None:
    """Print what was caught, what was not, and how many."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "--systematic", action="store_true", help="the plain faults at every place, instead of the named ones"
    )
    mutations = list(systematic()) if parser.parse_args().systematic else named()
    results = all_caught(mutations)
    for mutation, result in zip(mutations, results, strict=True):
        print(f"caught: {result}" if result else "NOT CAUGHT", f"{mutation.file}: {mutation.what}", sep="\n    ")
    print(f"{sum(map(bool, results))} of {len(results)} caught")


if __name__ == "__main__":
    main()
