"""Frames: encoding, decoding however the octets are split, and the limits of each header field."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.octets import frame

from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.frames import MAX_PAYLOAD, Frame, FrameDecoder, encode_frame

frames = st.builds(
    Frame,
    type=st.integers(0, 255),
    request_id=st.integers(0, 2**64 - 1),
    payload=st.binary(max_size=300),
    more=st.booleans(),
)


@given(st.lists(frames, max_size=6), st.lists(st.integers(1, 50), min_size=1))
def test_decoder_gives_back_what_was_encoded_however_it_is_split(sent: list[Frame], sizes: list[int]) -> None:
    """Encoding frames and decoding them in pieces of any sizes gives the same frames."""
    octets = b"".join(encode_frame(each) for each in sent)
    decoder, received, at, turn = FrameDecoder(), [], 0, 0
    while at < len(octets):
        size = sizes[turn % len(sizes)]
        decoder.receive_data(octets[at : at + size])
        at, turn = at + size, turn + 1
        while (each := decoder.next_frame()) is not None:
            received.append(each)

    assert received == sent
    assert not decoder.mid_frame


def test_encode_frame_at_the_payload_limit() -> None:
    """65,536 octets of payload fit a frame, one more does not."""
    assert len(encode_frame(Frame(1, 1, bytes(MAX_PAYLOAD)))) == 16 + MAX_PAYLOAD
    with pytest.raises(LocalProtocolError, match="65537"):
        encode_frame(Frame(1, 1, bytes(MAX_PAYLOAD + 1)))


@pytest.mark.parametrize(("type_code", "request_id"), [(256, 0), (-1, 0), (1, 2**64), (1, -1)])
def test_encode_frame_with_a_number_out_of_range(type_code: int, request_id: int) -> None:
    """A number that does not fit its field is this side's fault, before anything is sent."""
    with pytest.raises(LocalProtocolError, match="out of range"):
        encode_frame(Frame(type_code, request_id, b""))


@pytest.mark.parametrize("length", [12, 65_548])
def test_decoder_takes_the_smallest_and_the_largest_frame(length: int) -> None:
    """Lengths 12 and 65,548 are accepted; the vectors refuse 11 and 65,549."""
    decoder = FrameDecoder()
    decoder.receive_data(frame(2, 0, bytes(length - 12)))

    received = decoder.next_frame()

    assert received == Frame(2, 0, bytes(length - 12))


def test_decoder_judges_the_length_before_anything_follows() -> None:
    """Four octets are enough to refuse a length, and nothing is kept of what came with it."""
    decoder = FrameDecoder()
    decoder.receive_data(frame(2, 0, length=65_549) + bytes(50_000))

    with pytest.raises(RemoteProtocolError, match="65549"):
        decoder.next_frame()

    assert decoder.buffered_octets == 0


def test_decoder_is_mid_frame_between_first_and_last_octet() -> None:
    """`mid_frame` tells that a frame has begun and is not whole."""
    decoder, octets, seen = FrameDecoder(), frame(2, 0, b"12345678"), []
    for at in range(len(octets)):
        decoder.receive_data(octets[at : at + 1])
        decoder.next_frame()
        seen.append(decoder.mid_frame)

    assert seen == [True] * (len(octets) - 1) + [False]
