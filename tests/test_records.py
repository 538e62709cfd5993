"""Records: they come through the codec unchanged, and refuse values that the protocol forbids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.assembly import MAX_UNFINISHED_RECORDS, RecordAssembly, split_record
from protocol.codec import decode_record, encode_record
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.frame import MAX_PAYLOAD, Frame
from protocol.records import Cancel, Chain, Drain, Error, GetChain, Hello, Ping, Pong, Record, Role, SignCsr, Signed

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
words = st.text(max_size=60)
chains = st.lists(st.binary(min_size=1, max_size=50), min_size=2, max_size=8).map(tuple)

records: st.SearchStrategy[Record] = st.one_of(
    st.builds(
        Hello,
        role=st.sampled_from(Role),
        window=u16,
        max_record=st.integers(65_536, 2**32 - 1),
        boot_id=st.binary(min_size=16, max_size=16),
        clock_ms=u64,
        root_generation=u64,
        version_min=st.integers(0, 1),
        version_max=st.integers(1, 255),
    ),
    st.builds(Ping, token=u64),
    st.builds(Pong, token=u64),
    st.just(Drain()),
    st.builds(Error, code=st.sampled_from(ErrorCode), retryable=st.booleans(), retry_after_ms=u32, text=words),
    st.builds(
        SignCsr,
        deadline_ms=st.integers(1, 2**32 - 1),
        idempotency_key=st.binary(min_size=16, max_size=16),
        user=st.text(min_size=1, max_size=60),
        method=words,
        address=words,
        csr=st.binary(max_size=200),
    ),
    st.builds(Signed, csr_sha256=st.binary(min_size=32, max_size=32), root_generation=u64, chain=chains),
    st.builds(GetChain, deadline_ms=st.integers(1, 2**32 - 1)),
    st.builds(Chain, root_generation=u64, chain=chains),
    st.just(Cancel()),
)


@given(records)
def test_codec_round_trip(record: Record) -> None:
    """Every record decodes to what was encoded."""
    code, payload = encode_record(record)

    assert decode_record(code, payload) == record


@given(records, st.data())
def test_codec_with_a_record_cut_short(record: Record, data: st.DataObject) -> None:
    """No prefix of a payload decodes to a record: a cut never passes for something else."""
    code, payload = encode_record(record)
    if payload:
        cut = data.draw(st.integers(0, len(payload) - 1))
        with pytest.raises(RemoteProtocolError) as caught:
            decode_record(code, payload[:cut])
        assert caught.value.code is ErrorCode.BAD_RECORD


@given(st.integers(0, 255), st.binary(max_size=200))
def test_codec_with_any_octets(code: int, payload: bytes) -> None:
    """Any octets decode to a record that encodes, or are refused as the peer's fault; nothing else is raised."""
    try:
        record = decode_record(code, payload)
    except RemoteProtocolError as error:
        assert error.code in (ErrorCode.BAD_RECORD, ErrorCode.UNSUPPORTED)
    else:
        assert decode_record(*encode_record(record)) == record


def test_encode_record_with_a_number_out_of_range() -> None:
    """A number that does not fit its field is this side's fault."""
    with pytest.raises(LocalProtocolError, match="Ping"):
        encode_record(Ping(2**64))


def test_sign_csr_at_the_limits_of_its_texts() -> None:
    """256 octets of UTF-8 fit a requester field, 257 do not, however many characters they are."""
    SignCsr(1, bytes(16), "ü" * 128, "", "", b"")
    with pytest.raises(ValueError, match="256"):
        SignCsr(1, bytes(16), "ü" * 128 + "u", "", "", b"")


def test_error_at_the_limit_of_its_text() -> None:
    """An ERROR's text holds 512 octets, not 513."""
    Error(ErrorCode.FAILED, True, 0, "x" * 512)
    with pytest.raises(ValueError, match="512"):
        Error(ErrorCode.FAILED, True, 0, "x" * 513)


@pytest.mark.parametrize("size", [0, 1, MAX_PAYLOAD, MAX_PAYLOAD + 1, 3 * MAX_PAYLOAD])
def test_split_record_is_joined_again(size: int) -> None:
    """A payload of any size splits into full frames and joins to itself."""
    payload = bytes(at % 251 for at in range(size))
    assembly = RecordAssembly(4 * MAX_PAYLOAD)

    joined = [assembly.join(each) for each in split_record(0x11, 5, payload)]

    assert joined == [None] * (len(joined) - 1) + [payload]
    assert assembly.held_octets == 0


def test_record_assembly_with_frames_of_others_between() -> None:
    """Records of several frames may be interleaved."""
    assembly = RecordAssembly(100)

    joined = [
        assembly.join(Frame(0x11, 1, b"a", more=True)),
        assembly.join(Frame(0x11, 2, b"x", more=True)),
        assembly.join(Frame(0x02, 0, b"ping")),
        assembly.join(Frame(0x11, 1, b"b")),
        assembly.join(Frame(0x11, 2, b"y")),
    ]

    assert joined == [None, None, b"ping", b"ab", b"xy"]


def test_record_assembly_at_its_limit_of_octets() -> None:
    """Unfinished records hold max_record octets together, and a single record is as large; one more is refused."""
    assembly = RecordAssembly(10)
    assert assembly.join(Frame(0x11, 1, b"12345", more=True)) is None
    assert assembly.join(Frame(0x11, 2, b"12345")) == b"12345"
    assert assembly.join(Frame(0x11, 3, b"1234567890")) == b"1234567890"
    assert assembly.join(Frame(0x11, 4, b"12345", more=True)) is None
    with pytest.raises(RemoteProtocolError, match="10 octets"):
        assembly.join(Frame(0x11, 5, b"1", more=True))
    with pytest.raises(RemoteProtocolError, match="10 octets"):
        RecordAssembly(10).join(Frame(0x11, 1, bytes(11)))


def test_record_assembly_at_its_limit_of_records() -> None:
    """Sixteen records may be unfinished, a seventeenth is refused."""
    assembly = RecordAssembly(1000)
    for request_id in range(1, MAX_UNFINISHED_RECORDS + 1):
        assert assembly.join(Frame(0x11, request_id, b"x", more=True)) is None
    with pytest.raises(RemoteProtocolError, match="16"):
        assembly.join(Frame(0x11, 17, b"x", more=True))
