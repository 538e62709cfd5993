"""The published test vectors hold for both directions of the codec and for both roles of a connection."""

from collections import Counter
from typing import Any

import pytest
from support.octets import VECTORS
from support.vector_runner import LISTS, check, octets_of

ALL = [pytest.param(kind, vector, id=f"{kind}-{vector['description']}") for kind in LISTS for vector in VECTORS[kind]]


@pytest.mark.parametrize(("kind", "vector"), ALL)
def test_vector_holds(kind: str, vector: dict[str, Any]) -> None:
    """Octets decode to their fields and back, and each conversation ends as it should however its octets arrive."""
    check(VECTORS, kind, vector)


def test_vectors_have_a_name_each() -> None:
    """No two vectors of a list have one description."""
    for kind in LISTS:
        names = Counter(vector["description"] for vector in VECTORS[kind])
        assert [name for name, count in names.items() if count > 1] == []


def test_octets_of_repeated_ones() -> None:
    """{XX*N} stands for N times the octet XX."""
    assert octets_of("01{ff*3}02{00*1}") == b"\x01\xff\xff\xff\x02\x00"
