"""Fuzz target: the codec. The first octet is a type code, the rest a payload.

Whatever decodes is encoded to the same octets, as far as this version knows the record's fields; the result decodes to
an equal record, joins to itself however it is split, and no part of it passes for the whole. Extension fields behind it
change nothing, or are refused where they are critical. Only RemoteProtocolError leaves.
"""

import sys

import atheris

with atheris.instrument_imports(include=["protocol"]):
    from protocol.assembly import RecordAssembly, split_record
    from protocol.codec import decode_record, encode_record
    from protocol.errors import ErrorCode, RemoteProtocolError
    from protocol.records import Error, Record

OPTIONAL, CRITICAL = bytes.fromhex("7fff0002abcd"), bytes.fromhex("80000000")


def decoded(type_code: int, payload: bytes) -> Record | ErrorCode:
    """Return the record, or the code that it is refused with."""
    try:
        return decode_record(type_code, payload)
    except RemoteProtocolError as error:
        assert error.code in (ErrorCode.BAD_RECORD, ErrorCode.UNSUPPORTED)
        return error.code


def one_input(data: bytes) -> None:
    """Run one input."""
    type_code, payload = data[0] if data else 0, data[1:]
    record = decoded(type_code, payload)
    if isinstance(record, ErrorCode):
        return
    again_code, again = encode_record(record)
    assert again_code == type_code
    if isinstance(record, Error):  # whose code may be one that this version reads as FAILED
        assert payload[2:].startswith(again[2:])
    else:
        assert payload.startswith(again)
    assert decoded(type_code, again) == record
    assert decoded(type_code, again + OPTIONAL) == record
    assert decoded(type_code, again + CRITICAL) is ErrorCode.UNSUPPORTED
    for end in range(max(0, len(again) - 64), len(again)):
        assert decoded(type_code, again[:end]) is ErrorCode.BAD_RECORD
    assembly = RecordAssembly(len(again))
    joined = [assembly.join(frame) for frame in split_record(type_code, 1, again)]
    assert joined[-1] == again
    assert assembly.held_octets == 0


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
