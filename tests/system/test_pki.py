"""The PKI routes in memory: CRLs, CA certificates and OCSP over HTTP, from an agent that does what the test says."""

import base64
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from support.edges import Spoken, TestEdge, edge_in
from support.publishing_agents import PublishingAgent, part_of
from twisted.internet.task import Clock

from bmc_proxy.server.body_producer import SLICE
from bmc_proxy.server.connection import ANSWER_TIMEOUT_S, LEAST_OCTETS_PER_S
from protocol.errors import ErrorCode
from protocol.records import MAX_OCSP_REQUEST, Answer, Error, GetOcsp, GetPublished, OcspAnswer, Request

CRL = b"\x30\x82" + bytes(at % 251 for at in range(3 * SLICE))
OCSP_REQUEST = bytes.fromhex("30053003020100")
OCSP_RESPONSE = b"\x30\x03\x0a\x01\x00"
MALFORMED, INTERNAL_ERROR, TRY_LATER = (bytes.fromhex("30030a010" + digit) for digit in "123")
POST_OCSP = b"POST /pki/ocsp HTTP/1.1\r\nHost: bmc\r\nContent-Type: application/ocsp-request\r\n"


class World:
    """An edge whose proxy is connected to an agent."""

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self.der, self.version, self.next_update_ms = CRL, 7, 0
        self.ocsp: Answer = OcspAnswer(0, OCSP_RESPONSE)
        self.agent = PublishingAgent(self.clock, self._answer)
        self.edge: TestEdge = edge_in(directory, clock=self.clock, links=[self.agent.link], requests_per_s=100_000)

    def _answer(self, asked: Request) -> Answer | None:
        match asked:
            case GetPublished():
                return part_of(asked, self.der, self.version, self.next_update_ms)
            case GetOcsp():
                return self.ocsp
        return None

    def say(self, octets: bytes, spoken: Spoken | None = None) -> tuple[int, dict[str, str], bytes]:
        """Send a request; return status, headers and body of its answer."""
        spoken = spoken or self.edge.connect()
        spoken.say(octets)
        self.agent.settle()
        [answer] = spoken.raw_answers()
        return answer

    def get(self, path: str, headers: str = "") -> tuple[int, dict[str, str], bytes]:
        """GET a path."""
        return self.say(f"GET {path} HTTP/1.1\r\nHost: bmc\r\n{headers}\r\n".encode())

    def post_ocsp(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """POST an OCSP request."""
        return self.say(POST_OCSP + b"Content-Length: %d\r\n\r\n" % len(body) + body)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Return an edge and an agent that are connected."""
    made = World(tmp_path)
    yield made
    if made.agent.link.connected:
        made.agent.lose()


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/pki/1.crl", "application/pkix-crl"),
        ("/pki/1.p7c", "application/pkcs7-mime; smime-type=certs-only"),
        ("/pki/%31.crl", "application/pkix-crl"),
    ],
)
def test_pki_file(world: World, path: str, content_type: str) -> None:
    """CRL and CA certificates come octet for octet, with their type, for caches to keep an hour; asked for once."""
    status, headers, body = world.get(path)

    assert (status, body) == (200, CRL)
    assert (headers["content-type"], headers["cache-control"]) == (content_type, "public, max-age=3600")
    assert headers["etag"] == '"7"'
    assert headers["x-content-type-options"] == "nosniff"
    world.agent.asked.clear()
    assert world.get(path)[2] == CRL
    assert world.agent.asked == []


@pytest.mark.parametrize(("next_update_s", "max_age"), [(3601, 3600), (3599.5, 3599), (1, 1), (-5, 0)])
def test_pki_file_until_its_next_update(world: World, next_update_s: float, max_age: int) -> None:
    """No cache keeps a CRL past its next update."""
    world.clock.advance(10.0)
    world.next_update_ms = int((10 + next_update_s) * 1000)

    assert world.get("/pki/1.crl")[1]["cache-control"] == f"public, max-age={max_age}"


@pytest.mark.parametrize("name", ['"7"', 'W/"7"', '"6", "7"', '"6"\r\nIf-None-Match: "7"', "*"])
def test_pki_file_that_the_client_has(world: World, name: str) -> None:
    """If-None-Match with the version gets 304, without a body and with what a cache needs."""
    status, headers, body = world.get("/pki/1.crl", f"If-None-Match: {name}\r\n")

    assert (status, body) == (304, b"")
    assert (headers["etag"], headers["cache-control"]) == ('"7"', "public, max-age=3600")
    assert not {"content-length", "content-type"} & headers.keys()


@pytest.mark.parametrize("name", ['"6"', "7", '"7', "", '"77"'])
def test_pki_file_that_the_client_has_in_another_version(world: World, name: str) -> None:
    """Any other If-None-Match gets the file."""
    assert world.get("/pki/1.crl", f"If-None-Match: {name}\r\n")[0] == 200


def test_pki_file_with_head(world: World) -> None:
    """HEAD has the headers of GET and no body; the connection goes on."""
    spoken = world.edge.connect()
    spoken.say(b"HEAD /pki/1.crl HTTP/1.1\r\nHost: bmc\r\n\r\n")
    world.agent.settle()
    head = spoken.wire.value()
    spoken.wire.clear()

    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"Content-Length: %d\r\n" % len(CRL) in head
    assert head.endswith(b"\r\n\r\n")
    assert world.say(b"GET /pki/1.crl HTTP/1.1\r\nHost: bmc\r\n\r\n", spoken)[2] == CRL


@pytest.mark.parametrize(
    "name",
    [
        "0.crl",
        "01.crl",
        "-1.crl",
        "+1.crl",
        "1_0.crl",
        "%D9%A1.crl",
        "9223372036854775809.crl",
        "99999999999999999999.crl",
        "1" * 5000 + ".crl",
        "1.CRL",
        "1.crl/",
        "1.crl%0A",
        "1.pem",
        "1",
        ".crl",
        "{}",
        "a/1.crl",
        "%31%2Ecrl%00",
        "21.crl",
    ],
)
def test_pki_file_that_is_none(world: World, name: str) -> None:
    """What is no number of a generation is not found, in plain JSON, and costs the agent nothing."""
    spoken = world.edge.connect()
    spoken.say(f"GET /pki/{name} HTTP/1.1\r\nHost: bmc\r\n\r\n".encode())

    [(status, headers, body)] = spoken.answers()
    assert (status, body["code"], headers["cache-control"]) == (404, "http.not_found", "no-store")
    assert body == {"code": body["code"], "message": body["message"], "request_id": headers["x-request-id"]}
    assert world.agent.asked == []


def test_pki_file_of_the_largest_generation(world: World) -> None:
    """Two to the power of 63 is a generation."""
    world.agent.tell_status(2**63, 1)

    assert world.get("/pki/9223372036854775808.crl")[0] == 200


@pytest.mark.parametrize(
    ("code", "status", "name"),
    [
        (ErrorCode.NOT_FOUND, 404, "http.not_found"),
        (ErrorCode.UNSUPPORTED, 404, "http.not_found"),
        (ErrorCode.BUSY, 503, "agent.busy"),
        (ErrorCode.DEADLINE, 503, "agent.timeout"),
        (ErrorCode.DRAINING, 503, "agent.unavailable"),
        (ErrorCode.FAILED, 502, "agent.failed"),
    ],
)
def test_pki_file_that_the_agent_refuses(world: World, code: ErrorCode, status: int, name: str) -> None:
    """What the agent says is told as everywhere; nobody keeps an error."""
    world.agent.answer = lambda _: Error(code, True, 0, "internal words")
    found, headers, body = world.get("/pki/1.crl")

    assert (found, headers["cache-control"]) == (status, "no-store")
    assert f'"code":"{name}"'.encode() in body
    assert b"internal" not in body
    assert (status == 503) == ("retry-after" in headers)


@pytest.mark.parametrize(
    "credentials",
    [
        "Authorization: Basic cm9vdDp3cm9uZw==\r\n",
        "Authorization: Basic x\r\n",
        "X-Auth-Token: none\r\n",
        "Cookie: SESSION=none\r\n",
        "Origin: https://elsewhere.example\r\n",
    ],
)
def test_pki_asks_for_no_login(world: World, credentials: str) -> None:
    """Credentials that are sent along, wrong ones as well, change nothing and count for nothing."""
    for _ in range(25):
        assert world.get("/pki/1.crl", credentials)[0] == 200


@pytest.mark.parametrize(
    ("request_line", "allow"),
    [("POST /pki/1.crl", "GET, HEAD"), ("GET /pki/ocsp", "POST"), ("POST /pki/ocsp/MA==", "GET, HEAD")],
)
def test_pki_with_another_method(world: World, request_line: str, allow: str) -> None:
    """Other methods are refused, and told which there are."""
    status, headers, _ = world.say(f"{request_line} HTTP/1.1\r\nHost: bmc\r\nContent-Length: 0\r\n\r\n".encode())

    assert (status, headers["allow"]) == (405, allow)


def test_pki_within_the_strangers_share(tmp_path: Path) -> None:
    """Whoever is not known has the requests of one who is not known."""
    edge = edge_in(tmp_path, requests_per_s=100)
    spoken = edge.connect()
    spoken.say(b"GET /pki/1.crl HTTP/1.1\r\nHost: bmc\r\n\r\n" * 11)

    assert [answer[0] for answer in spoken.answers()] == [503] * 10 + [429]


# A body at the client's pace


def test_large_body_waits_for_its_reader(world: World) -> None:
    """While the client does not read, one slice at most is written to it; the rest follows, then the next answer."""
    world.get("/pki/1.crl")
    spoken = world.edge.connect()
    spoken.channel.pauseProducing()  # type: ignore[attr-defined]  # as a full transport does
    spoken.say(b"GET /pki/1.crl HTTP/1.1\r\nHost: bmc\r\n\r\n" * 3)
    assert len(spoken.wire.value()) < SLICE

    spoken.channel.resumeProducing()  # type: ignore[attr-defined]  # as one that is taken does
    world.edge.clock.advance(0)

    assert [(status, body) for status, _, body in spoken.raw_answers()] == [(200, CRL)] * 3


def test_large_body_that_is_read_too_slowly(world: World) -> None:
    """A client that does not take its answer in time is cut off."""
    world.get("/pki/1.crl")
    spoken = world.edge.connect()
    spoken.channel.pauseProducing()  # type: ignore[attr-defined]  # as a full transport does
    spoken.say(b"GET /pki/1.crl HTTP/1.1\r\nHost: bmc\r\n\r\n")
    limit_s = ANSWER_TIMEOUT_S + len(CRL) / LEAST_OCTETS_PER_S
    world.clock.pump([0.1] * round((limit_s - 1) * 10))
    assert spoken.wire.connected
    world.clock.pump([0.1] * 25)

    assert not spoken.wire.connected


def test_connection_idles_after_a_large_body(world: World) -> None:
    """Once a body is taken its limit is over: the connection may idle, and have another request."""
    spoken = world.edge.connect()
    get = b"GET /pki/1.crl HTTP/1.1\r\nHost: bmc\r\n\r\n"
    assert world.say(get, spoken)[0] == 200
    for _ in range(11):
        world.clock.advance(5.0)
        world.agent.settle()

    assert world.say(get, spoken)[0] == 200


def test_client_that_hangs_up_while_it_reads(world: World) -> None:
    """A connection that is lost in the middle of a body is nobody's fault."""
    world.get("/pki/1.crl")
    spoken = world.edge.connect()
    spoken.channel.pauseProducing()  # type: ignore[attr-defined]  # as a full transport does
    spoken.say(b"GET /pki/1.crl HTTP/1.1\r\nHost: bmc\r\n\r\n")
    spoken.channel.connectionLost()

    assert world.get("/pki/1.crl")[0] == 200


# OCSP


def test_ocsp_posted(world: World) -> None:
    """A posted request gets the agent's response, octet for octet, and no cache keeps it."""
    world.ocsp = OcspAnswer(60_000, OCSP_RESPONSE)
    status, headers, body = world.post_ocsp(OCSP_REQUEST)

    assert (status, body) == (200, OCSP_RESPONSE)
    assert (headers["content-type"], headers["cache-control"]) == ("application/ocsp-response", "no-store")
    assert world.agent.ocsp_asked() == [OCSP_REQUEST]


@pytest.mark.parametrize(
    ("expires_s", "cache_control"),
    [
        (0, "no-store"),
        (60, "public, max-age=60, no-transform, must-revalidate"),
        (1e6, "public, max-age=3600, no-transform, must-revalidate"),
    ],
)
@pytest.mark.parametrize("safe", ["", "/", "/+="], ids=["escaped", "slashes", "literal"])
def test_ocsp_in_the_path(world: World, safe: str, expires_s: float, cache_control: str) -> None:
    """A request in the path is the same one, however much of its base64 is escaped; its response may be kept."""
    request = bytes.fromhex("3009") + base64.b64decode("//8//+++/w==") + b"00"
    world.ocsp = OcspAnswer(int(expires_s * 1000), OCSP_RESPONSE)
    assert request[1] == len(request) - 2

    status, headers, body = world.get("/pki/ocsp/" + quote(base64.b64encode(request).decode(), safe=safe))

    assert (status, body) == (200, OCSP_RESPONSE)
    assert headers["cache-control"] == cache_control
    assert world.agent.ocsp_asked() == [request]


@pytest.mark.parametrize(
    "request_octets",
    [b"", b"0", b"\x30\x00\x00", b"\x30\x05\x30", b"\x31\x00", b"\x30\x80\x00\x00", bytes(40), b"{}"],
)
def test_ocsp_request_that_is_none(world: World, request_octets: bytes) -> None:
    """What is not one SEQUENCE gets malformedRequest, in a 200, and the agent does not hear of it."""
    path = "/pki/ocsp/" + quote(base64.b64encode(request_octets or b" ").decode(), safe="")
    for status, headers, body in (world.post_ocsp(request_octets), world.get(path)):
        assert (status, body) == (200, MALFORMED)
        assert (headers["content-type"], headers["cache-control"]) == ("application/ocsp-response", "no-store")
    assert world.agent.asked == []


@pytest.mark.parametrize("text", ["MAA", "MAA%3D%3D", "MA-_", "!", "%FF", "M%20AA=", "{*}"])
def test_ocsp_in_the_path_that_is_no_base64(world: World, text: str) -> None:
    """Base64 is judged strictly."""
    assert world.get("/pki/ocsp/" + text)[2] == MALFORMED


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (ErrorCode.BUSY, TRY_LATER),
        (ErrorCode.DEADLINE, TRY_LATER),
        (ErrorCode.DRAINING, TRY_LATER),
        (ErrorCode.FAILED, INTERNAL_ERROR),
        (ErrorCode.CSR_MALFORMED, INTERNAL_ERROR),
    ],
)
def test_ocsp_that_the_agent_refuses(world: World, code: ErrorCode, body: bytes) -> None:
    """An agent that cannot answer now is tryLater, one that failed internalError, as RFC 6960 words it."""
    world.ocsp = Error(code, True, 0, "")

    assert world.post_ocsp(OCSP_REQUEST)[::2] == (200, body)


def test_ocsp_with_the_agent_away(world: World) -> None:
    """Without an agent the answer is tryLater, at once."""
    world.agent.lose()

    assert world.post_ocsp(OCSP_REQUEST)[::2] == (200, TRY_LATER)


@pytest.mark.parametrize("code", [ErrorCode.NOT_FOUND, ErrorCode.UNSUPPORTED])
def test_ocsp_of_an_agent_without_responder(world: World, code: ErrorCode) -> None:
    """An agent that has no responder, or is older than the question, makes this no path."""
    world.ocsp = Error(code, False, 0, "")

    assert world.post_ocsp(OCSP_REQUEST)[0] == 404


def test_ocsp_request_at_its_limit(world: World) -> None:
    """4,096 octets are taken, in the body and in the path; one more is refused: 413 and malformedRequest."""
    at_limit = b"\x30\x82\x0f\xfc" + bytes(4092)
    over = b"\x30\x82\x0f\xfd" + bytes(4093)
    assert len(at_limit) == MAX_OCSP_REQUEST

    assert world.post_ocsp(at_limit)[::2] == (200, OCSP_RESPONSE)
    assert world.get("/pki/ocsp/" + base64.b64encode(at_limit).decode())[2] == OCSP_RESPONSE
    status, _, body = world.post_ocsp(over)
    assert status == 413
    assert b'"code":"http.body_too_large"' in body
    assert world.get("/pki/ocsp/" + base64.b64encode(over).decode())[2] == MALFORMED


@pytest.mark.parametrize(
    ("content_type", "status"), [("application/json", 415), ("Application/OCSP-Request; a=b", 200)]
)
def test_ocsp_of_a_content_type(world: World, content_type: str, status: int) -> None:
    """A body that says it is something else is refused, with what it is to be."""
    head = f"POST /pki/ocsp HTTP/1.1\r\nHost: bmc\r\nContent-Type: {content_type}\r\nContent-Length: 7\r\n\r\n"
    found, _, body = world.say(head.encode() + OCSP_REQUEST)

    assert found == status
    assert status == 200 or b"application/ocsp-request" in body
