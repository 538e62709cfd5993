"""Fuzz target: any octets to the frame decoder, whole, octet by octet, and in pieces.

However they are split, the frames and the fault are the same, and those that a second reading of the specification
(docs/protocol.md, 2) finds, written without the package's structures. What was accepted encodes to what came in, and
no more is held than one frame and one read. An odd first octet of the input has zeros follow the rest of it, so that
short inputs also make whole frames of the largest size.
"""

import sys
from dataclasses import dataclass

import atheris

with atheris.instrument_imports(include=["protocol"]):
    from protocol.errors import ErrorCode, RemoteProtocolError
    from protocol.frames import MAX_LENGTH, Frame, FrameDecoder, encode_frame

ZEROS = bytes(65_600)


@dataclass
class Decoded:
    """What came of some octets.

    Attributes:
        held: octets that are no whole frame; of no meaning after a fault.
    """

    frames: list[Frame]
    fault: ErrorCode | None = None
    held: int = 0


def read(octets: bytes) -> Decoded:
    """Read frames as the specification says."""
    frames: list[Frame] = []
    while len(octets) >= 4:
        length = int.from_bytes(octets[:4])
        if length < 12 or length > 65_548:
            return Decoded(frames, ErrorCode.BAD_FRAME)
        if len(octets) < 16:
            break
        if octets[4] != 1:
            return Decoded(frames, ErrorCode.BAD_VERSION)
        if octets[6] != 0 or octets[7] > 1:
            return Decoded(frames, ErrorCode.BAD_FRAME)
        if len(octets) < 4 + length:
            break
        frames.append(Frame(octets[5], int.from_bytes(octets[8:16]), octets[16 : 4 + length], octets[7] == 1))
        octets = octets[4 + length :]
    return Decoded(frames, None, len(octets))


def decode(octets: bytes, step: int) -> Decoded:
    """Give octets to a decoder in pieces of this size."""
    decoder, frames = FrameDecoder(), []
    for at in range(0, len(octets), step):
        decoder.receive_data(octets[at : at + step])
        assert decoder.buffered_octets <= MAX_LENGTH + 4 + step
        try:
            while (frame := decoder.next_frame()) is not None:
                frames.append(frame)
        except RemoteProtocolError as error:
            assert decoder.buffered_octets == 0
            return Decoded(frames, error.code)
        assert decoder.mid_frame == bool(decoder.buffered_octets)
    return Decoded(frames, None, decoder.buffered_octets)


def one_input(data: bytes) -> None:
    """Run one input."""
    octets = data[1:] + (ZEROS if data[:1] and data[0] & 1 else b"")
    expected = read(octets)
    # Octet by octet through the zeros takes too long to try much.
    steps = (len(octets) or 1, 4093) if len(octets) > len(ZEROS) else (len(octets) or 1, 1, 1 + (len(data) & 15))
    for step in steps:
        assert decode(octets, step) == expected
    encoded = b"".join(map(encode_frame, expected.frames))
    assert octets.startswith(encoded)
    assert expected.fault is not None or len(encoded) + expected.held == len(octets)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
