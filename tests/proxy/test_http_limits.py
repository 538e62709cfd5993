"""The HTTP edge in memory: what arrives slowly, and how often and how wide a source may ask."""

import base64
from dataclasses import replace
from pathlib import Path

import pytest
from support.edges import PASSWORD, TestEdge, Wire, edge_in
from support.run_log import secret
from twisted.internet.address import IPv4Address

from bmc_proxy.auth.accounts import Role
from bmc_proxy.config import HttpsConfig
from bmc_proxy.https import https_context
from bmc_proxy.server.connection import BODY_TIMEOUT_S, HEADER_TIMEOUT_S, IDLE_TIMEOUT_S, LAST_WORD_S
from bmc_proxy.server.lingering import DISCARD_LIMIT
from runtime.tls import TlsFactory

GET = b"GET /redfish/v1/ HTTP/1.1\r\nHost: bmc\r\n"
LOGIN = b"POST /login HTTP/1.1\r\nHost: bmc\r\nContent-Type: application/json\r\n"
BASIC = b"Authorization: Basic " + base64.b64encode(b"root:" + secret(PASSWORD).encode()) + b"\r\n"


@pytest.fixture
def edge(tmp_path: Path) -> TestEdge:
    """Return an edge of the default limits."""
    return edge_in(tmp_path)


def wait(edge: TestEdge, seconds: float) -> None:
    """Let time pass, a tenth of a second at a time."""
    edge.clock.pump([0.1] * round(seconds * 10))


@pytest.mark.parametrize("octets", [b"", b"G", GET, GET + b"X: y"], ids=["none", "one", "a line", "two"])
def test_slow_header_is_cut_off(edge: TestEdge, octets: bytes) -> None:
    """A header that is not whole within 10 s is refused with 408, however steadily it drips, and that is the end."""
    spoken = edge.connect()
    for octet in octets:
        spoken.say(bytes((octet,)))
        wait(edge, 0.1)
    wait(edge, HEADER_TIMEOUT_S - 0.1 * len(octets) - 0.2)
    assert spoken.answers() == []
    wait(edge, 1.2)

    [(status, headers, body)] = spoken.answers()
    assert (status, body["data"]["code"] if "data" in body else body["error"]["code"]) in (
        (408, "http.too_slow"),
        (408, "Base.1.13.0.GeneralError"),
    )
    assert headers["connection"] == "close"
    assert spoken.wire.disconnecting
    wait(edge, LAST_WORD_S + 1)
    assert not spoken.wire.connected


def test_slow_body_is_cut_off(edge: TestEdge) -> None:
    """A body that is not whole 30 s after its header is refused with 408; one that is, is answered."""
    for seconds, status in ((BODY_TIMEOUT_S - 0.2, 400), (BODY_TIMEOUT_S + 1, 408)):
        spoken = edge.connect()
        spoken.say(LOGIN + b"Content-Length: 2\r\n\r\n{")
        wait(edge, seconds)
        spoken.say(b"}")
        assert [answer[0] for answer in spoken.answers()] == [status]


def test_body_that_is_thrown_away_is_cut_off_as_well(edge: TestEdge) -> None:
    """After an early refusal the rest of the body has the same time, and then the connection ends."""
    spoken = edge.connect()
    spoken.say(b"POST /logout HTTP/1.1\r\nHost: bmc\r\nContent-Length: 9\r\n\r\n")
    assert [answer[0] for answer in spoken.answers()] == [401]
    wait(edge, BODY_TIMEOUT_S + 1)

    assert spoken.answers() == []
    assert not spoken.wire.connected


def test_second_request_has_its_own_time(edge: TestEdge) -> None:
    """Between two requests a connection may idle; from the first octet of the second on the time counts."""
    spoken = edge.connect()
    spoken.say(GET + b"\r\n")
    wait(edge, IDLE_TIMEOUT_S - 1)
    spoken.say(b"GE")
    wait(edge, HEADER_TIMEOUT_S - 1)
    spoken.say(b"T /redfish/v1/ HTTP/1.1\r\nHost: bmc\r\n\r\n")
    assert [answer[0] for answer in spoken.answers()] == [200, 200]
    spoken.say(b"GE")
    wait(edge, HEADER_TIMEOUT_S + 1)
    assert [answer[0] for answer in spoken.answers()] == [408]


def test_idle_connection_is_closed(edge: TestEdge) -> None:
    """After 60 s without a request a connection is closed."""
    spoken = edge.connect()
    spoken.say(GET + b"\r\n")
    wait(edge, IDLE_TIMEOUT_S - 1)
    assert not spoken.wire.disconnecting
    wait(edge, 2)
    assert spoken.wire.disconnecting


def test_handshake_that_does_not_come_is_cut_off(edge: TestEdge, tmp_path: Path) -> None:
    """Whoever connects to HTTPS and says nothing is cut off after 10 s, without an answer."""
    context = https_context(tmp_path, HttpsConfig(None, None, None, "cn"))
    address = IPv4Address("TCP", "192.0.2.1", 40_000)
    wire = Wire(peerAddress=address)
    protocol = TlsFactory(context, edge.site).buildProtocol(address)
    assert protocol is not None
    protocol.makeConnection(wire)
    wait(edge, HEADER_TIMEOUT_S - 0.5)
    assert wire.connected
    wait(edge, 1.5)

    assert not wire.connected
    assert wire.value() == b""


def test_refused_body_is_read_up_to_a_limit(edge: TestEdge) -> None:
    """Of a body that nobody wants a megabyte is thrown away; then the connection ends."""
    spoken = edge.connect()
    head = b"POST /xyz/openbmc_project/HMC/VMInterface/SignCSR HTTP/1.1\r\nHost: bmc\r\nContent-Length: 9999999\r\n\r\n"
    spoken.say(head)
    assert [answer[0] for answer in spoken.answers()] == [401]
    spoken.say(b"x" * DISCARD_LIMIT)
    assert not spoken.wire.disconnecting
    spoken.say(b"x")
    assert spoken.wire.disconnecting


def test_connection_lives_on_after_an_early_refusal(edge: TestEdge) -> None:
    """A small body of a refused request is thrown away, and the next request on the connection is the next request."""
    spoken = edge.connect()
    refused = b"POST /logout HTTP/1.1\r\nHost: bmc\r\nContent-Length: 30\r\n\r\n"
    spoken.say(refused + b"GET /evil HTTP/1.1\r\nHost: e\r\n\r\n"[:30] + GET + b"\r\n")

    assert [answer[0] for answer in spoken.answers()] == [401, 200]


def test_strangers_have_a_twentieth_of_the_requests(tmp_path: Path) -> None:
    """Before login a source has 5 of 100 requests a second, 10 at once; past them 429, and then again."""
    edge = edge_in(tmp_path, requests_per_s=100)
    spoken = edge.connect()
    for _ in range(11):
        spoken.say(GET + b"\r\n")
    answers = spoken.answers()
    assert [answer[0] for answer in answers] == [200] * 10 + [429]
    assert answers[-1][1]["retry-after"] == "1"
    edge.connect("192.0.2.2").say(GET + b"\r\n")

    edge.clock.advance(0.2)
    spoken.say(GET + b"\r\n" + GET + b"\r\n")
    assert [answer[0] for answer in spoken.answers()] == [200, 429]


def test_whoever_is_known_has_all_of_the_requests(tmp_path: Path) -> None:
    """With a session a source has 100 requests a second, 200 at once, whatever strangers there use up."""
    edge = edge_in(tmp_path, requests_per_s=100)
    session, token = edge.sessions.open("root", edge.accounts.all()["root"].password_id, "192.0.2.1")
    known = GET + b"X-Auth-Token: " + secret(token).encode() + b"\r\n\r\n"
    spoken = edge.connect()
    for _ in range(20):
        spoken.say(GET + b"\r\n")
    assert [answer[0] for answer in spoken.answers()] == [200] * 10 + [429] * 10
    for _ in range(201):
        spoken.say(known)

    assert [answer[0] for answer in spoken.answers()] == [200] * 200 + [429]
    assert session in edge.sessions.all()


def test_passwords_are_judged_within_the_strangers_share(tmp_path: Path) -> None:
    """A password that comes with each request is a stranger's until it is judged."""
    edge = edge_in(tmp_path, requests_per_s=20)
    spoken = edge.connect()
    sessions = b"GET /redfish/v1/SessionService HTTP/1.1\r\nHost: bmc\r\n" + BASIC + b"\r\n"
    for _ in range(3):
        spoken.say(sessions)

    assert [answer[0] for answer in spoken.answers()] == [200, 200, 429]


def test_requests_without_a_host_are_charged(tmp_path: Path) -> None:
    """What is refused as no HTTP counts against its source as well."""
    edge = edge_in(tmp_path, requests_per_s=100)
    spoken = edge.connect()
    for _ in range(11):
        spoken.say(b"GET /redfish/v1/ HTTP/1.1\r\n\r\n")

    assert [answer[0] for answer in spoken.answers()] == [400] * 10 + [429]


@pytest.mark.parametrize("change", ["log out", "disable", "demote", "remove", "new password"])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_caller_that_is_thrown_out_while_its_body_comes(edge: TestEdge, change: str, method: str) -> None:
    """Who may ask is judged again when the body is here: nothing is done for somebody who may not any more."""
    account = edge.accounts.all()["root"]
    session, token = edge.sessions.open("root", account.password_id, "192.0.2.1")
    member = "/root" if method == "PATCH" else ""
    body = {"POST": b'{"UserName":"evil","Password":"password","RoleId":"Administrator"}', "PATCH": b'{"Enabled":true}'}
    spoken = edge.connect()
    head = f"{method} /redfish/v1/AccountService/Accounts{member} HTTP/1.1\r\nHost: bmc\r\n"
    head += f"X-Auth-Token: {secret(token)}\r\nContent-Length: {len(body[method])}\r\n\r\n"
    spoken.say(head.encode())
    assert spoken.answers() == []

    match change:
        case "log out":
            edge.sessions.close(session)
        case "disable":
            edge.accounts.change("root", lambda each: replace(each, enabled=False))
        case "demote":
            edge.accounts.change("root", lambda each: replace(each, role=Role.READ_ONLY))
        case "remove":
            edge.accounts.remove("root")
        case "new password":
            edge.accounts.change("root", lambda each: replace(each, password_hash="x" * 9))
    before = dict(edge.accounts.all())
    spoken.say(body[method])

    [(status, _, _)] = spoken.answers()
    assert status == (403 if change == "demote" else 401)
    assert dict(edge.accounts.all()) == before
