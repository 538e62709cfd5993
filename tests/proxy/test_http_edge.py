"""The HTTP edge, spoken to octet by octet: what is not HTTP, what is odd HTTP, and pipelines."""

import json
import re
import secrets
import socket
from collections.abc import Iterator

import pytest
from support.csrs import make_csr, pem
from support.processes import IBM_ROOT, IBM_SIGN_CSR, SIGN_CSR, Pair, curl, port_of, running_pair

PATIENCE_S = 30.0
POST = b"POST " + SIGN_CSR.encode() + b" HTTP/1.1\r\nHost: bmc\r\n"
GET = b"GET " + IBM_ROOT.encode() + b" HTTP/1.1\r\nHost: bmc\r\n"
CLOSE = b"Connection: close\r\n"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Yield an agent and a proxy that the tests share."""
    with running_pair(tmp_path_factory.mktemp("edge")) as running:
        yield running


def talk(pair: Pair, *parts: bytes) -> list[tuple[int, bytes]]:
    """Write parts, read until the proxy closes; return status and body of each answer."""
    with socket.create_connection(("127.0.0.1", port_of(pair.url)), timeout=PATIENCE_S) as stream:
        for part in parts:
            stream.sendall(part)
        received = b""
        while data := stream.recv(65_536):
            received += data
    return answers_in(received)


def answers_in(octets: bytes) -> list[tuple[int, bytes]]:
    """Take a stream of answers apart, by their Content-Length."""
    found = []
    while octets:
        head, _, rest = octets.partition(b"\r\n\r\n")
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]  # every answer has one
        found.append((int(head.split()[1]), rest[:length]))
        octets = rest[length:]
    return found


@pytest.mark.parametrize(
    "octets",
    [
        b"hello\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        GET + b"no colon\r\n\r\n",
        GET + b"X\0Y: 1\r\n\r\n",
        GET + b"X: a\0b\r\n\r\n",
        POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: " + b"1" * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        GET + b"Host: another\r\n" + CLOSE + b"\r\n",
        POST + b"Content-Length: 1x\r\n\r\n",
        POST + b"Transfer-Encoding: gzip\r\n\r\n",
        POST + b"Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}",
        POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
    ],
)
def test_what_is_not_http_is_refused(pair: Pair, octets: bytes) -> None:
    """A request that is not HTTP, or has two meanings, gets one 400 with code and request id, and the end."""
    [(status, body)] = talk(pair, octets)

    answer = json.loads(body)
    told = answer["data"] if "data" in answer else {"code": answer["Code"], "request_id": answer["RequestId"]}
    assert (status, told["code"]) == (400, "http.bad_request")
    assert re.fullmatch("[0-9a-f]{16}", told["request_id"])
    assert curl(pair.url + IBM_ROOT).status == 200


def test_pipelined_requests_are_answered_in_order(pair: Pair) -> None:
    """Three requests in one write get three answers in their order."""
    body = json.dumps({"CsrString": pem(make_csr())}).encode()
    signing = POST + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body

    answers = talk(pair, GET + b"\r\n" + signing + b"GET /none HTTP/1.1\r\nHost: bmc\r\n" + CLOSE + b"\r\n")

    assert [status for status, _ in answers] == [200, 200, 404]
    assert [next(iter(json.loads(body))) for _, body in answers] == ["Certificate", "data", "data"]


def test_head_is_get_without_the_body(pair: Pair) -> None:
    """HEAD has the headers of GET, and Allow tells of it."""
    answer = curl(pair.url + IBM_ROOT, "--head")
    assert (answer.status, answer.body) == (200, "")
    assert int(answer.headers["content-length"]) > 500

    refused = curl(pair.url + IBM_ROOT, "-X", "DELETE")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")


def test_continue_is_granted_only_to_what_is_read(pair: Pair) -> None:
    """`Expect: 100-continue` is answered with 100 where the body fits, and with 413 alone where it does not."""
    expecting = POST + b"Content-Type: application/json\r\nExpect: 100-continue\r\n" + CLOSE
    with socket.create_connection(("127.0.0.1", port_of(pair.url)), timeout=PATIENCE_S) as stream:
        stream.sendall(expecting + b"Content-Length: 2\r\n\r\n")
        assert stream.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        stream.sendall(b"{}")
        assert stream.recv(1000).startswith(b"HTTP/1.1 400 ")
    with socket.create_connection(("127.0.0.1", port_of(pair.url)), timeout=PATIENCE_S) as stream:
        stream.sendall(expecting + b"Content-Length: 70000\r\n\r\n")
        assert stream.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_body_that_goes_on_and_on_is_cut(pair: Pair) -> None:
    """After 413 a bounded rest is read and thrown away; then the connection ends."""
    with socket.create_connection(("127.0.0.1", port_of(pair.url)), timeout=PATIENCE_S) as stream:
        stream.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + bytes(65_536) + b"\r\n"
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            stream.sendall(chunk * 1_000)
    assert curl(pair.url + IBM_ROOT).status == 200


@pytest.mark.parametrize("key", ["", "k" * 256, "ключ"])
@pytest.mark.parametrize("route", [SIGN_CSR, IBM_SIGN_CSR], ids=["phosphor", "ibm"])
def test_idempotency_key_that_is_none(pair: Pair, route: str, key: str) -> None:
    """A key that is empty, over 255 characters or not ASCII is refused; 255 characters are taken."""
    body = json.dumps({"CsrString": pem(make_csr())})
    json_type = ["-H", "Content-Type: application/json", "-d", body]

    refused = curl(pair.url + route, *json_type, "-H", f"Idempotency-Key: {key}" if key else "Idempotency-Key;")
    taken = curl(pair.url + route, *json_type, "-H", "Idempotency-Key: " + secrets.token_hex(127) + "k")

    assert refused.status == 400
    assert "http.bad_idempotency_key" in refused.body
    assert taken.status == 200


def test_absolute_form(pair: Pair) -> None:
    """A request target in absolute form is understood, as RFC 9112 demands."""
    target = b"http://bmc:8080" + IBM_ROOT.encode()

    [(status, _)] = talk(pair, b"GET " + target + b" HTTP/1.1\r\nHost: bmc\r\n" + CLOSE + b"\r\n")

    assert status == 200


def test_many_short_headers(pair: Pair) -> None:
    """Only the header's size is limited, not how many there are."""
    [(status, _)] = talk(pair, GET + b"X:\r\n" * 1000 + CLOSE + b"\r\n")

    assert status == 200


def test_path_of_no_route(pair: Pair) -> None:
    """What is at no path is not found, in the shape of the family that the path belongs to."""
    assert curl(pair.url + "/ibm/v1/nothing").json["Code"] == "http.not_found"
    for path in ("/", "/xyz/nothing", SIGN_CSR + "/", "/%2e%2e/etc/passwd"):
        answer = curl(pair.url + path, "--path-as-is")
        assert (answer.status, answer.json["data"]["code"]) == (404, "http.not_found")
        assert "passwd" not in answer.body
