"""Fuzz target: any octets to a frame decoder and to a Connection of either role.

The first octet of the input chooses the role, whether the peer's HELLO comes first, and how the rest is split. Whatever
comes: only RemoteProtocolError leaves the package, at most one ERROR with request id 0 is sent and nothing after it, no
request is yielded twice, and what is held stays within its bounds.
"""

import sys

import atheris

with atheris.instrument_imports(include=["protocol"]):
    from protocol.assembly import RecordAssembly
    from protocol.codec import encode_record
    from protocol.connection import Connection
    from protocol.errors import ErrorCode, RemoteProtocolError
    from protocol.events import AnswerReceived, RequestReceived
    from protocol.frames import MAX_LENGTH, Frame, FrameDecoder, encode_frame
    from protocol.records import Error, GetChain, GetOcsp, GetPublished, Hello, PublicationKind, Request, Role

MAX_RECORD = 100_000
WINDOW = 4


def hello(role: Role) -> Hello:
    """Return a HELLO with small limits, so that they are reached."""
    return Hello(role, WINDOW if role is Role.AGENT else 0, MAX_RECORD, bytes(16), 0, 0)


def framed(record: Hello) -> bytes:
    """Return a HELLO's frame."""
    code, payload = encode_record(record)
    return encode_frame(Frame(code, 0, payload))


def errors_sent(octets: bytes) -> int:
    """Return how many ERRORs about the connection are in what was sent; the last record must be the last of them."""
    decoder, assembly, types = FrameDecoder(), RecordAssembly(1 << 30), []
    decoder.receive_data(octets)
    while (frame := decoder.next_frame()) is not None:
        if assembly.join(frame) is not None:
            types.append((frame.type, frame.request_id))
    error = (encode_record(Error(ErrorCode.FAILED, False, 0, ""))[0], 0)
    assert error not in types[:-1], "something follows the ERROR about the connection"
    return types.count(error)


def one_input(data: bytes) -> None:
    """Run one input."""
    if not data:
        return
    choice, octets = data[0], data[1:]
    role = Role.AGENT if choice & 1 else Role.ASKER
    step = (1, 7, 4096, max(1, len(octets)))[choice >> 1 & 3]
    connection = Connection(hello(role), now=0.0)
    if choice & 8:
        connection.receive_data(framed(hello(Role.ASKER if role is Role.AGENT else Role.AGENT)), now=0.0)
        while connection.next_event() is not None:
            pass
        asked: list[Request] = [GetPublished(1, PublicationKind.CRL, 1, 0, 0), GetChain(1), GetOcsp(1, b"0")]
        while connection.room > 0:
            connection.ask(asked[connection.room % len(asked)])
    sent = connection.data_to_send()
    seen: set[int] = set()
    failed = False
    for at in range(0, len(octets), step):
        connection.receive_data(octets[at : at + step], now=0.0)
        try:
            while (event := connection.next_event()) is not None:
                if isinstance(event, (RequestReceived, AnswerReceived)):
                    assert event.request_id not in seen, "a request or an answer came twice"
                    seen.add(event.request_id)
        except RemoteProtocolError:
            assert not failed, "a connection failed twice"
            failed = True
        sent += connection.data_to_send()
        assert connection.unanswered <= WINDOW
        assert connection.held_octets <= MAX_LENGTH + 4 + step + MAX_RECORD
    assert errors_sent(sent) == failed


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
