"""Whom the anonymous listener is not for, and which pages may write: real processes, with curl as each of them."""

import json
from collections.abc import Iterator

import pytest
from support.csrs import make_csr, pem
from support.processes import (
    IBM_ROOT,
    IBM_SIGN_CSR,
    SIGN_CSR,
    SecurePair,
    basic,
    curl,
    post,
    running_secure_pair,
)

SESSIONS = "/redfish/v1/SessionService/Sessions"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecurePair]:
    """Yield a pair whose plain listener signs without login."""
    with running_secure_pair(tmp_path_factory.mktemp("strangers"), "--anonymous-loopback") as running:
        yield running


def body() -> str:
    """Return the body of a request for another certificate each time."""
    return json.dumps({"CsrString": pem(make_csr(subject=None))})


@pytest.mark.parametrize(
    "header",
    [
        "Via: 1.1 front",
        "Forwarded: for=192.0.2.1",
        "X-Forwarded-For: 192.0.2.1",
        "x-forwarded-for: 127.0.0.1",
        "X-Forwarded-Host: bmc",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Port: 443",
        "X-Real-IP: 192.0.2.1",
        "CDN-Loop: a",
        "True-Client-IP: 192.0.2.1",
        "CF-Connecting-IP: 192.0.2.1",
    ],
)
def test_forwarded_request_is_not_anonymous(pair: SecurePair, header: str) -> None:
    """Whoever a reverse proxy on this machine speaks for logs in, as everybody else does."""
    url, forwarded = pair.plain_url, ["-H", header]

    for route in (SIGN_CSR, IBM_SIGN_CSR):
        assert post(url + route, body(), *forwarded).status == 401
    refused = curl(url + IBM_ROOT, *forwarded)
    assert (refused.status, refused.json["Code"]) == (401, "auth.required")
    assert pair.proxy.wait_for("request", request_id=refused.headers["x-request-id"])["anonymous"].startswith("no")
    assert curl(url + IBM_ROOT, *forwarded, *basic()).status == 200
    assert curl(url + "/redfish/v1/", *forwarded).status == 200
    assert curl(url + IBM_ROOT).status == 200


def test_headers_like_those_of_forwarders_are_of_no_importance(pair: SecurePair) -> None:
    """What a client itself says beside its request changes nothing."""
    for header in ("X-Forward: 1", "Viaduct: x", "X-Request-Id: 1", "User-Agent: X-Forwarded-For", "X-Client: 1"):
        assert curl(pair.plain_url + IBM_ROOT, "-H", header).status == 200


@pytest.mark.parametrize("route", [SIGN_CSR, IBM_SIGN_CSR], ids=["phosphor", "ibm"])
def test_anonymous_callers_share_no_idempotency_keys(pair: SecurePair, route: str) -> None:
    """Two of them that use one key each get a certificate of their own, and the same one when they ask again."""
    key = ["-H", "Idempotency-Key: 1"]
    bodies = [body(), body()]
    first, second, again, second_again = (post(pair.plain_url + route, each, *key) for each in (*bodies, *bodies))

    assert [each.status for each in (first, second, again, second_again)] == [200] * 4
    assert first.body == again.body != second.body == second_again.body


@pytest.mark.parametrize("route", [SIGN_CSR, IBM_SIGN_CSR], ids=["phosphor", "ibm"])
def test_accounts_keep_their_idempotency_keys(pair: SecurePair, route: str) -> None:
    """A key stands for one CSR of an account, whatever others do with the same one."""
    key = ["-H", f"Idempotency-Key: {route}"]
    assert pair.post(route, body(), *key, *basic()).status == 200
    assert post(pair.plain_url + route, body(), *key).status == 200

    conflict = pair.post(route, body(), *key, *basic())
    assert (conflict.status, '"request.conflict"' in conflict.body) == (409, True)


@pytest.mark.parametrize(
    ("listener", "headers", "status"),
    [
        ("https", ["Origin: https://{host}"], 400),
        ("https", ["Origin: HTTPS://{host}"], 400),
        ("https", ["Host: bmc", "Origin: https://bmc:443"], 400),
        ("https", ["Host: [::1]", "Origin: https://[::1]:443"], 400),
        ("https", ["Origin: https://{host}", "Sec-Fetch-Site: same-origin"], 400),
        ("https", ["Origin: http://{host}"], 403),
        ("https", ["Origin: http://{host}", "Sec-Fetch-Site: same-origin"], 403),
        ("https", ["Host: bmc", "Origin: http://bmc"], 403),
        ("https", ["Origin: null"], 403),
        ("https", ["Origin: https://{host}", "Origin: https://evil.example"], 403),
        ("https", ["Origin: https://{host}", "Sec-Fetch-Site: same-site"], 403),
        ("https", ["Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"], 403),
        ("http", ["Origin: http://{host}"], 400),
        ("http", ["Host: bmc", "Origin: http://bmc:80"], 400),
        ("http", ["Origin: https://{host}"], 403),
        ("http", ["Origin: https://{host}", "X-Forwarded-Proto: https"], 403),
        # Behind a front end that ends TLS: the browser itself says that page and target are of one origin.
        ("http", ["Host: bmc", "Origin: https://bmc", "Sec-Fetch-Site: same-origin"], 400),
        ("http", ["Host: bmc", "Origin: https://evil.example", "Sec-Fetch-Site: same-origin"], 403),
    ],
)
def test_scheme_of_origin_is_compared(pair: SecurePair, listener: str, headers: list[str], status: int) -> None:
    """A page that came by http is another site to https, and the other way round; its own site may write.

    400: it may, and the body is at fault.
    """
    url = pair.url if listener == "https" else pair.plain_url
    host = url.partition("://")[2]
    options = [word for each in headers for word in ("-H", each.format(host=host))]
    answer = post(url + SESSIONS, "{}", *([*pair.trust] if listener == "https" else []), *basic(), *options)

    assert answer.status == status, answer.body
