"""If-Match, If-None-Match and ETags (RFC 9110, 13): the headers alone, then accounts on the real proxy."""

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from support.csrs import make_csr, pem
from support.processes import IBM_SIGN_CSR, Answer, SecurePair, basic, running_secure_pair
from support.run_log import secret

from bmc_proxy.api.preconditions import preconditions_in

ROOT = "/redfish/v1"
ACCOUNTS = f"{ROOT}/AccountService/Accounts"
SESSIONS = f"{ROOT}/SessionService/Sessions"
PASSWORD = secret("0penBmc-of-a-test")
GONE = (412, "http.precondition_failed")


@pytest.mark.parametrize(
    ("values", "strongly", "weakly"),
    [
        ([b'"a"'], True, True),
        ([b"*"], True, True),
        ([b" * "], True, True),
        ([b'W/"a"'], False, True),
        ([b'"b"'], False, False),
        ([b'"b", "a"'], True, True),
        ([b'"b","a"'], True, True),
        ([b'"b"', b'"a"'], True, True),
        ([b', ,"b" , ,W/"a",'], False, True),
        ([b'"a,b"'], False, False),
        ([b'"a,b", "a"'], True, True),
        ([b"a"], False, False),
        ([b'w/"a"'], False, False),
        ([b'*, "a"'], False, False),
        ([b'"a'], False, False),
        ([b'"a" x'], False, False),
        ([b""], False, False),
        ([b'""'], False, False),
        ([b"\xff"], False, False),
    ],
)
def test_tags_are_compared_as_their_header_says(values: list[bytes], strongly: bool, weakly: bool) -> None:
    """If-Match compares strongly, If-None-Match weakly; what is no list of tags names nothing."""
    found = preconditions_in(values, values)

    assert found.match is not None
    assert found.none_match is not None
    assert found.match.match_strongly('"a"') is strongly
    assert found.none_match.match_weakly('"a"') is weakly
    assert not found.match.match_strongly(None)
    assert not found.none_match.match_weakly(None)


def test_header_that_is_not_there_sets_no_condition() -> None:
    """Without either header there is nothing to judge."""
    found = preconditions_in([], [])

    assert (found.match, found.none_match, found.versions) == (None, None, None)


@pytest.fixture(scope="module", params=["1", "2"], ids=["one process", "workers"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecurePair]:
    """Yield a pair with an account of each role, whose proxy serves in one process or in several."""
    options = ["--workers", request.param, "--requests-per-s", "1000000"]
    with running_secure_pair(tmp_path_factory.mktemp("preconditions"), *options) as running:
        yield running


def send(pair: SecurePair, method: str, path: str, body: object = None, *headers: str) -> Answer:
    """Send a request as the administrator, with these headers."""
    options = [word for header in headers for word in ("-H", header)]
    if body is not None:
        options += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    return pair.curl(path, "-X", method, *options, *basic())


def code_of(answer: Answer) -> tuple[int, str]:
    """Return status and code of a Redfish error."""
    [told] = answer.json["error"]["@Message.ExtendedInfo"]
    return answer.status, told["Oem"]["VmiCertificateExchange"]["Code"]


def new_account(pair: SecurePair) -> tuple[str, str]:
    """Make an account; return its path and its ETag."""
    name = "u" + secrets.token_hex(4)
    made = send(pair, "POST", ACCOUNTS, {"UserName": name, "Password": PASSWORD, "RoleId": "ReadOnly"})
    assert made.status == 201, made.body
    return f"{ACCOUNTS}/{name}", made.headers["etag"]


def etag_at(pair: SecurePair, path: str) -> str:
    """Return the ETag of a resource, which header and body agree on."""
    answer = send(pair, "GET", path)
    assert answer.status == 200
    assert answer.json["@odata.etag"] == answer.headers["etag"]
    return answer.headers["etag"]


def test_etag_changes_with_each_change_and_only_then(pair: SecurePair) -> None:
    """Role, password and Enabled each make another one, which the change itself tells; reading and logins do not."""
    path, etag = new_account(pair)
    assert etag_at(pair, path) == etag == etag_at(pair, path)
    seen = {etag}
    changes: list[dict[str, Any]] = [
        {"RoleId": "Operator"},
        {"Password": secret(PASSWORD + "2")},
        {"Password": secret(PASSWORD + "2")},
        {"Enabled": False},
        {"Enabled": True, "RoleId": "Administrator"},
    ]
    for change in changes:
        told = send(pair, "PATCH", path, change)
        assert (told.status, told.headers["etag"]) == (200, etag_at(pair, path))
        assert told.headers["etag"] not in seen, change
        seen.add(told.headers["etag"])
    current = etag_at(pair, path)
    assert send(pair, "PATCH", path, {"RoleId": "Administrator"}).headers["etag"] == current
    login = {"UserName": path.rpartition("/")[2], "Password": PASSWORD + "2"}
    assert pair.post(SESSIONS, login).status == 201
    assert etag_at(pair, path) == current


def test_lock_is_part_of_an_account(pair: SecurePair) -> None:
    """An account that wrong passwords locked has another ETag, and again once it is unlocked."""
    path, etag = new_account(pair)
    wrong = {"UserName": path.rpartition("/")[2], "Password": secret("wrong-password")}
    statuses = [pair.post(SESSIONS, wrong, "--interface", "127.0.0.7").status for _ in range(5)]
    assert statuses == [401] * 5

    locked = etag_at(pair, path)
    assert locked != etag
    assert code_of(send(pair, "PATCH", path, {"Locked": False}, f"If-Match: {etag}")) == GONE
    unlocked = send(pair, "PATCH", path, {"Locked": False}, f"If-Match: {locked}")
    assert (unlocked.status, unlocked.json["Locked"], unlocked.headers["etag"]) == (200, False, etag)


def test_change_of_what_has_changed_is_refused(pair: SecurePair) -> None:
    """PATCH and DELETE with an old ETag, a weak or a foreign one get 412 and do nothing; the current one and * work."""
    path, old = new_account(pair)
    assert send(pair, "PATCH", path, {"RoleId": "Operator"}, f"If-Match: {old}").status == 200
    current = etag_at(pair, path)
    for tags in (old, f"W/{current}", '"other"', "garbage", f'{old}, "other"'):
        assert code_of(send(pair, "PATCH", path, {"Enabled": False}, f"If-Match: {tags}")) == GONE
        assert code_of(send(pair, "DELETE", path, None, f"If-Match: {tags}")) == GONE
    assert code_of(send(pair, "DELETE", path, None, f"If-None-Match: W/{current}")) == GONE
    assert etag_at(pair, path) == current

    assert send(pair, "PATCH", path, {"Enabled": False}, "If-Match: *").status == 200
    assert send(pair, "PATCH", path, {"Enabled": True}, f"If-None-Match: {old}").status == 200
    assert send(pair, "DELETE", path, None, f"If-Match: {old}, {etag_at(pair, path)}").status == 200
    assert send(pair, "GET", path).status == 404


def test_other_refusals_come_before_a_condition(pair: SecurePair) -> None:
    """Login, role and a missing resource win over 412; 412 wins over what is wrong with the content."""
    path, _ = new_account(pair)
    old = ["-H", 'If-Match: "old"']
    assert pair.curl(path, "-X", "DELETE", *old).status == 401
    assert pair.curl(path, "-X", "DELETE", *old, *basic("reader")).status == 403
    assert send(pair, "DELETE", f"{ACCOUNTS}/nobody", None, 'If-Match: "old"').status == 404
    assert code_of(send(pair, "PATCH", path, {"Nonsense": 1}, 'If-Match: "old"')) == GONE


def test_get_of_what_the_client_has(pair: SecurePair) -> None:
    """GET and HEAD with If-None-Match get 304 without a body; with If-Match of another version 412."""
    path, etag = new_account(pair)
    for given in (etag, f"W/{etag}", "*", f'"x", {etag}'):
        answer = send(pair, "GET", path, None, f"If-None-Match: {given}")
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, "", etag)
    assert send(pair, "GET", path, None, 'If-None-Match: "other"').status == 200
    assert send(pair, "GET", path, None, f"If-Match: {etag}").status == 200
    assert send(pair, "GET", path, None, "If-Match: *").status == 200
    assert code_of(send(pair, "GET", path, None, f"If-Match: W/{etag}")) == GONE


@pytest.mark.parametrize("path", [f"{ROOT}/", f"{ROOT}/AccountService", f"{ROOT}/AccountService/Roles/Operator"])
def test_resources_that_do_not_change_have_etags(pair: SecurePair, path: str) -> None:
    """The same one each time, and 304 for it."""
    etag = etag_at(pair, path)
    assert etag == etag_at(pair, path)
    assert send(pair, "GET", path, None, f"If-None-Match: {etag}").status == 304


def test_collection_has_an_etag_of_its_members(pair: SecurePair) -> None:
    """It changes as members come and go, and a POST may be bound to it."""
    before = etag_at(pair, ACCOUNTS)
    path, _ = new_account(pair)
    after = etag_at(pair, ACCOUNTS)
    assert before != after
    body = {"UserName": "u" + secrets.token_hex(4), "Password": PASSWORD, "RoleId": "ReadOnly"}
    assert code_of(send(pair, "POST", ACCOUNTS, body, f"If-Match: {before}")) == GONE
    assert send(pair, "DELETE", path).status == 200
    assert etag_at(pair, ACCOUNTS) == before
    assert send(pair, "POST", ACCOUNTS, body, f"If-Match: {before}").status == 201


def test_session_is_ended_under_a_condition(pair: SecurePair) -> None:
    """A session's ETag is judged as an account's."""
    made = pair.post(SESSIONS, {"UserName": "oper", "Password": basic("oper")[1].partition(":")[2]})
    path = made.headers["location"]
    assert code_of(send(pair, "DELETE", path, None, 'If-Match: "old"')) == GONE
    assert send(pair, "DELETE", path, None, f"If-Match: {made.headers['etag']}").status == 200


def test_what_has_no_version_meets_no_if_match(pair: SecurePair) -> None:
    """A CSR is not signed under a condition that cannot hold, as nobody could tell that it was passed over."""
    body = {"CsrString": pem(make_csr())}
    refused = send(pair, "POST", IBM_SIGN_CSR, body, "If-Match: *")
    assert (refused.status, refused.json["Code"]) == GONE
    assert send(pair, "POST", IBM_SIGN_CSR, body, "If-None-Match: *").status == 200
