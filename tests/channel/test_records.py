"""Records: they come through the codec unchanged, and refuse values that the protocol forbids."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.assembly import MAX_UNFINISHED_RECORDS, RecordAssembly, split_record
from protocol.codec import decode_record, encode_record
from protocol.errors import ErrorCode, LocalProtocolError, RemoteProtocolError
from protocol.frames import MAX_PAYLOAD, Frame
from protocol.records import (
    MAX_OCSP_REQUEST,
    MAX_OCSP_RESPONSE,
    MAX_PART,
    Cancel,
    Chain,
    Drain,
    Error,
    GetChain,
    GetOcsp,
    GetPublished,
    Hello,
    OcspAnswer,
    Ping,
    Pong,
    PublicationKind,
    Published,
    Record,
    Role,
    SignCsr,
    Signed,
    Status,
)

u16, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (16, 32, 64))
deadlines = st.integers(1, 2**32 - 1)
kinds = st.sampled_from(PublicationKind)
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
        deadline_ms=deadlines,
        idempotency_key=st.binary(min_size=16, max_size=16),
        user=st.text(min_size=1, max_size=60),
        method=words,
        address=words,
        csr=st.binary(max_size=200),
    ),
    st.builds(Signed, csr_sha256=st.binary(min_size=32, max_size=32), root_generation=u64, chain=chains),
    st.builds(GetChain, deadline_ms=deadlines),
    st.builds(Chain, root_generation=u64, chain=chains),
    st.just(Cancel()),
    st.builds(Status, root_generation=u64, crl_number=u64),
    st.builds(GetPublished, deadline_ms=deadlines, kind=kinds, root_generation=u64, known_version=u64, offset=u32),
    st.builds(
        Published,
        kind=kinds,
        root_generation=u64,
        version=st.integers(1, 2**64 - 1),
        next_update_ms=u64,
        total=st.integers(1000, 2**32 - 1),
        offset=st.integers(0, 800),
        part=st.binary(min_size=1, max_size=200),
    ),
    st.builds(GetOcsp, deadline_ms=deadlines, request=st.binary(min_size=1, max_size=200)),
    st.builds(OcspAnswer, expires_ms=u64, response=st.binary(min_size=1, max_size=200)),
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


def published(*, version: int = 1, total: int = 0, offset: int = 0, part: bytes = b"") -> Published:
    """Return a PUBLISHED."""
    return Published(PublicationKind.CRL, 1, version, 0, total, offset, part)


def test_published_at_the_limits_of_its_part() -> None:
    """A part holds 32,768 octets and may end where the whole does; one more of either is refused."""
    published(total=MAX_PART + 7, offset=7, part=bytes(MAX_PART))
    published()
    with pytest.raises(ValueError, match="32768"):
        published(total=MAX_PART + 1, part=bytes(MAX_PART + 1))
    with pytest.raises(ValueError, match="past the end"):
        published(total=MAX_PART + 6, offset=7, part=bytes(MAX_PART))


@pytest.mark.parametrize("wrong", [{"version": 0}, {"total": 1}, {"offset": 1}, {"total": 1, "offset": 1}])
def test_published_that_says_nothing(wrong: dict[str, Any]) -> None:
    """Every PUBLISHED has a version, and brings octets unless there are none to bring."""
    with pytest.raises(ValueError, match=r"version 0|without octets|past the end"):
        published(**wrong)


@pytest.mark.parametrize(
    "make",
    [
        lambda octets: Hello(Role.AGENT, 1, 65_536, octets[:16], 0, 0),
        lambda octets: SignCsr(1, octets[:16], "user", "", "", b""),
        lambda octets: Signed(octets[:32], 1, (b"leaf", b"root")),
    ],
    ids=["HELLO", "SIGN_CSR", "SIGNED"],
)
def test_fixed_octets_at_their_size(make: Callable[[bytes], Record]) -> None:
    """A boot id and an idempotency key have 16 octets, a hash 32; a packed field would cut or fill others silently."""
    make(bytes(32))
    with pytest.raises(ValueError, match="octets"):
        make(bytes(15))


def test_ocsp_records_at_the_limits_of_their_octets() -> None:
    """An OCSP request holds 4,096 octets, a response 32,768; neither may be empty or longer."""
    GetOcsp(1, bytes(MAX_OCSP_REQUEST))
    OcspAnswer(0, bytes(MAX_OCSP_RESPONSE))
    for size in (0, MAX_OCSP_REQUEST + 1):
        with pytest.raises(ValueError, match="4096"):
            GetOcsp(1, bytes(size))
    for size in (0, MAX_OCSP_RESPONSE + 1):
        with pytest.raises(ValueError, match="32768"):
            OcspAnswer(0, bytes(size))


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
