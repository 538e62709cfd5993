"""The published test vectors hold for both directions of the codec and for both roles of a connection."""

from typing import Any

import pytest
from octets import VECTORS, connection, encode, events_of, feed, sent_records

from protocol.codec import decode_record
from protocol.errors import ErrorCode, RemoteProtocolError
from protocol.records import Error, Record, Role


def by_description(kind: str) -> list[Any]:
    """Return one list of the vectors as test parameters."""
    return [pytest.param(vector, id=vector["description"]) for vector in VECTORS[kind]]


def fields_of(record: Record) -> dict[str, object]:
    """Return a record's fields as the vectors write them."""

    def plain(value: object) -> object:
        match value:
            case bytes():
                return value.hex()
            case tuple():
                return [plain(item) for item in value]
            case int():
                return int(value)
        return value

    return {name: plain(getattr(record, name)) for name in type(record).__dataclass_fields__}


@pytest.mark.parametrize("vector", by_description("records") + by_description("tolerated"))
def test_decoding_a_vector_gives_its_fields(vector: dict[str, Any]) -> None:
    """Whatever a vector's octets are, they decode to the fields beside them."""
    [(request_id, record)] = sent_records(bytes.fromhex(vector["octets"]))

    assert request_id == vector["request_id"]
    assert fields_of(record) == vector["fields"]


@pytest.mark.parametrize("vector", by_description("records"))
def test_encoding_a_vector_gives_its_octets(vector: dict[str, Any]) -> None:
    """A record is encoded to the vector's octets, all of them."""
    octets = bytes.fromhex(vector["octets"])

    record = decode_record(vector["type"], octets[16:])

    assert encode(record, vector["request_id"]) == octets


@pytest.mark.parametrize("trailing", [b"", bytes(40)], ids=["alone", "with trailing octets"])
@pytest.mark.parametrize("one_by_one", [False, True], ids=["whole", "octet by octet"])
@pytest.mark.parametrize("vector", by_description("refused"))
def test_refusing_a_vector(vector: dict[str, Any], one_by_one: bool, trailing: bytes) -> None:
    """Each fault is found however the octets arrive, answered by the one ERROR it calls for, and nothing follows it."""
    receiver = connection(Role[vector["role"].upper()])
    receiver.receive_data(bytes.fromhex(vector["before"]), now=0.0)
    events_of(receiver)
    receiver.data_to_send()

    about_connection = vector["about"] == "connection"
    found = feed(
        receiver, bytes.fromhex(vector["octets"]) + (trailing if about_connection else b""), one_by_one=one_by_one
    )

    [(request_id, error)] = sent_records(receiver.data_to_send())
    assert isinstance(error, Error)
    assert error.code is ErrorCode(vector["code"])
    assert error.retryable is False
    if about_connection:
        [fault] = found
        assert isinstance(fault, RemoteProtocolError)
        assert fault.code is error.code
        assert request_id == 0
        assert receiver.closed
    else:
        assert found == []
        assert request_id == vector["request_id"]
        assert not receiver.closed
