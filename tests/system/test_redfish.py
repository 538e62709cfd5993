"""Redfish: the DMTF's own client as the judge, then each resource and each refusal by curl."""

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import redfish
from redfish.rest.v1 import InvalidCredentialsError
from support.processes import PASSWORDS, Answer, SecurePair, basic, curl, running_secure_pair
from support.run_log import secret

ROOT = "/redfish/v1"
SESSIONS = f"{ROOT}/SessionService/Sessions"
ACCOUNTS = f"{ROOT}/AccountService/Accounts"
ROLES = f"{ROOT}/AccountService/Roles"
PASSWORD = secret("0penBmc-of-a-test")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecurePair]:
    """Yield a pair with an account of each role."""
    with running_secure_pair(tmp_path_factory.mktemp("redfish")) as running:
        yield running


def client(pair: SecurePair, user: str, password: str) -> Any:
    """Return the DMTF's client, logged in; it accepts the proxy's own certificate and no other."""
    found = redfish.redfish_client(pair.url, user, password, cafile=str(pair.proxy_state / "https.pem"))
    found.login(auth="session")
    secret(found.get_session_key())
    return found


def members(answer: Any) -> list[str]:
    """Return the last part of each member's path."""
    body = answer.dict if hasattr(answer, "dict") else answer.json
    assert body["Members@odata.count"] == len(body["Members"])
    return [member["@odata.id"].rpartition("/")[2] for member in body["Members"]]


def change(pair: SecurePair, method: str, path: str, body: object, *options: str) -> Answer:
    """Send a body with a method of one's choice."""
    return pair.curl(path, "-X", method, "-H", "Content-Type: application/json", "-d", json.dumps(body), *options)


def new_account(pair: SecurePair, role: str) -> str:
    """Make an account over HTTP; return its name."""
    name = "u" + secrets.token_hex(4)
    made = change(pair, "POST", ACCOUNTS, {"UserName": name, "Password": PASSWORD, "RoleId": role}, *basic())
    assert made.status == 201, made.body
    return name


def error_of(answer: Answer) -> tuple[int, str]:
    """Return status and code of an error, which must be a Redfish error object."""
    error = answer.json["error"]
    [told] = error["@Message.ExtendedInfo"]
    assert answer.json == {"error": error}
    assert error["code"] == told["MessageId"]
    assert error["message"] == told["Message"]
    assert told["Oem"]["VmiCertificateExchange"]["RequestId"] == answer.headers["x-request-id"]
    return answer.status, told["Oem"]["VmiCertificateExchange"]["Code"]


def test_dmtf_client_logs_in_manages_accounts_and_logs_out(pair: SecurePair) -> None:
    """Login, account create, patch and delete, session list and logout, by the DMTF's client."""
    administrator = client(pair, "root", PASSWORDS["root"])
    account = {"UserName": "hmcuser", "Password": PASSWORD, "RoleId": "Operator"}

    made = administrator.post(ACCOUNTS, body=account)
    assert (made.status, made.dict["RoleId"], made.getheader("Location")) == (201, "Operator", f"{ACCOUNTS}/hmcuser")
    assert administrator.patch(f"{ACCOUNTS}/hmcuser", body={"RoleId": "ReadOnly"}).dict["RoleId"] == "ReadOnly"

    user = client(pair, "hmcuser", PASSWORD)
    assert members(user.get(ACCOUNTS)) == ["hmcuser"]
    assert user.get(f"{ACCOUNTS}/root").status == 403
    assert len(members(user.get(SESSIONS))) == 1
    assert len(members(administrator.get(SESSIONS))) >= 2
    user.logout()
    with pytest.raises(InvalidCredentialsError):
        client(pair, "hmcuser", PASSWORD + "x")

    assert administrator.delete(f"{ACCOUNTS}/hmcuser").status == 200
    assert administrator.get(f"{ACCOUNTS}/hmcuser").status == 404
    administrator.logout()


def test_dmtf_client_with_basic(pair: SecurePair) -> None:
    """The DMTF's client gets in with Basic as well."""
    found = redfish.redfish_client(
        pair.url, "root", PASSWORDS["root"], cafile=str(pair.proxy_state / "https.pem"), default_prefix="/redfish/v1/"
    )
    found.login(auth="basic")

    assert found.get(ROOT + "/SessionService").dict["SessionTimeout"] == 1800


def test_every_resource_has_what_redfish_asks_for(pair: SecurePair) -> None:
    """All that the service root leads to is there, names itself, and is found with and without a trailing slash."""
    seen: set[str] = set()
    waiting = [f"{ROOT}/"]
    token = pair.token()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        answer = pair.curl(path, *token)
        other = pair.curl(path.removesuffix("/") if path.endswith("/") else path + "/", *token)
        assert answer.status == other.status == 200, path
        assert answer.headers["odata-version"] == "4.0"
        assert answer.json == other.json
        assert answer.json["@odata.id"] == path
        assert answer.json["@odata.type"].startswith("#")
        assert answer.json["Name"]
        waiting += [found for found in links_in(answer.json) if found not in seen]
    assert {SESSIONS, ACCOUNTS, ROLES, f"{ROLES}/Administrator", f"{ACCOUNTS}/root"} <= seen


def links_in(value: object) -> list[str]:
    """Return all references in a body."""
    match value:
        case {"@odata.id": str(path), **rest}:
            return [path, *links_in(rest)]
        case dict():
            return [found for each in value.values() for found in links_in(each)]
        case list():
            return [found for each in value for found in links_in(each)]
    return []


def test_service_root_is_open_and_the_rest_is_not(pair: SecurePair) -> None:
    """Without login there are the versions, the service root and the service document, and nothing else."""
    assert pair.curl("/redfish").json == {"v1": "/redfish/v1/"}
    assert pair.curl(f"{ROOT}/").json["Links"]["Sessions"]["@odata.id"] == SESSIONS
    assert {each["name"] for each in pair.curl(f"{ROOT}/odata").json["value"]} >= {"SessionService", "AccountService"}
    for path in (SESSIONS, ACCOUNTS, ROLES, f"{ROOT}/AccountService", f"{ROOT}/SessionService", f"{ACCOUNTS}/root"):
        assert error_of(pair.curl(path)) == (401, "auth.required")


def test_login_ignores_a_stale_token(pair: SecurePair) -> None:
    """A stale token beside a login is not looked at."""
    login = {"UserName": "root", "Password": PASSWORDS["root"]}
    assert change(pair, "POST", SESSIONS, login, "-H", "X-Auth-Token: stale").status == 201


def test_session_belongs_to_its_user(pair: SecurePair) -> None:
    """One's own session can be seen and ended; another's by an Administrator alone."""
    own, other = pair.token("reader"), pair.token("oper")
    [name] = members(pair.curl(SESSIONS, *own))
    session = f"{SESSIONS}/{name}"

    assert pair.curl(session, *own).json["UserName"] == "reader"
    assert error_of(pair.curl(session, *other)) == (403, "auth.forbidden")
    assert error_of(pair.curl(session, "-X", "DELETE", *other)) == (403, "auth.forbidden")
    assert pair.curl(session, *basic()).json["UserName"] == "reader"
    assert pair.curl(session, "-X", "DELETE", *own).status == 200
    assert error_of(pair.curl(SESSIONS, *own)) == (401, "auth.required")
    assert error_of(pair.curl(session, *basic())) == (404, "http.not_found")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("x", "http.bad_body"),
        ([], "http.bad_body"),
        ({"UserName": "new"}, "account.invalid"),
        ({"UserName": "new", "Password": PASSWORD}, "account.invalid"),
        ({"UserName": "new", "Password": PASSWORD, "RoleId": "King"}, "account.invalid"),
        ({"UserName": "new", "Password": PASSWORD, "RoleId": ["Operator"]}, "account.invalid"),
        ({"UserName": 1, "Password": PASSWORD, "RoleId": "Operator"}, "account.invalid"),
        ({"UserName": "new", "Password": "7 chars", "RoleId": "Operator"}, "account.invalid"),
        ({"UserName": "new", "Password": "0penBmc", "RoleId": "Operator"}, "account.invalid"),
        ({"UserName": "new", "Password": "x" * 257, "RoleId": "Operator"}, "account.invalid"),
        ({"UserName": "new", "Password": "tab\tbetween", "RoleId": "Operator"}, "account.invalid"),
        ({"UserName": "", "Password": PASSWORD, "RoleId": "Operator"}, "account.invalid"),
        ({"UserName": "a/b", "Password": PASSWORD, "RoleId": "Operator"}, "account.invalid"),
        ({"UserName": "x" * 65, "Password": PASSWORD, "RoleId": "Operator"}, "account.invalid"),
        ({"UserName": "anonymous", "Password": PASSWORD, "RoleId": "Operator"}, "account.invalid"),
        ({"UserName": "new", "Password": PASSWORD, "RoleId": "Operator", "Enabled": 1}, "account.invalid"),
        ({"UserName": "new", "Password": PASSWORD, "RoleId": "Operator", "Shoe": 1}, "account.invalid"),
        ({"UserName": "root", "Password": PASSWORD, "RoleId": "Operator"}, "account.exists"),
        ({"UserName": "new", "Password": "\ud800" * 8, "RoleId": "Operator"}, "account.invalid"),
        ({"UserName": "\ud800", "Password": PASSWORD, "RoleId": "Operator"}, "account.invalid"),
    ],
)
def test_account_that_is_refused(pair: SecurePair, body: object, code: str) -> None:
    """What is wrong with a new account is told, and none is made."""
    before = members(pair.curl(ACCOUNTS, *basic()))

    assert error_of(change(pair, "POST", ACCOUNTS, body, *basic())) == (400, code)
    assert members(pair.curl(ACCOUNTS, *basic())) == before


@pytest.mark.parametrize("length", [8, 256])
def test_password_of_each_allowed_length(pair: SecurePair, length: int) -> None:
    """8 characters and 256 are passwords."""
    name, password = "len" + str(length), "p" * length
    body = {"UserName": name, "Password": password, "RoleId": "ReadOnly", "Enabled": True}

    assert change(pair, "POST", ACCOUNTS, body, *basic()).status == 201
    assert pair.curl(f"{ACCOUNTS}/{name}", "--user", f"{name}:{password}").json["UserName"] == name


@pytest.mark.parametrize("role", ["Operator", "ReadOnly"])
def test_account_may_change_its_own_password_and_nothing_else(pair: SecurePair, role: str) -> None:
    """Without ConfigureUsers there is one's own password, and no way up; the session that changed it lives on."""
    name = new_account(pair, role)
    path, login = f"{ACCOUNTS}/{name}", {"UserName": name, "Password": PASSWORD}
    own = ["-H", "X-Auth-Token: " + change(pair, "POST", SESSIONS, login).headers["x-auth-token"]]
    other = ["-H", "X-Auth-Token: " + change(pair, "POST", SESSIONS, login).headers["x-auth-token"]]

    for body in ({"RoleId": "Administrator"}, {"Enabled": True}, {"Locked": False}):
        assert error_of(change(pair, "PATCH", path, body, *own)) == (403, "auth.forbidden")
        assert error_of(change(pair, "PATCH", path, body | {"Password": PASSWORD}, *own)) == (403, "auth.forbidden")
    assert error_of(change(pair, "PATCH", f"{ACCOUNTS}/root", {"Password": PASSWORD}, *own)) == (403, "auth.forbidden")
    new = {"UserName": "x", "Password": PASSWORD, "RoleId": "Administrator"}
    assert error_of(change(pair, "POST", ACCOUNTS, new, *own)) == (403, "auth.forbidden")
    assert error_of(change(pair, "DELETE", path, {}, *own)) == (403, "auth.forbidden")

    assert change(pair, "PATCH", path, {"Password": secret("another password")}, *own).status == 200
    assert pair.curl(path, *own).json["RoleId"] == role
    assert pair.curl(path, *other).status == 401
    assert change(pair, "POST", SESSIONS, login).status == 401
    assert pair.curl(path, "--user", f"{name}:another password").status == 200


def test_account_that_is_disabled(pair: SecurePair) -> None:
    """A disabled account is let in by no way, its sessions end, and it is let in again once it is enabled."""
    name = new_account(pair, "Administrator")
    path = f"{ACCOUNTS}/{name}"
    token = change(pair, "POST", SESSIONS, {"UserName": name, "Password": PASSWORD}).headers["x-auth-token"]
    ways = (["-H", f"X-Auth-Token: {token}"], ["--user", f"{name}:{PASSWORD}", "--interface", "127.0.0.4"])

    assert change(pair, "PATCH", path, {"Enabled": False}, *basic()).json["Enabled"] is False
    assert [pair.curl(path, *way).status for way in ways] == [401, 401]
    assert change(pair, "PATCH", path, {"Enabled": True}, *basic()).json["Enabled"] is True
    assert [pair.curl(path, *way).status for way in ways] == [401, 200]


def test_last_administrator_stays(pair: SecurePair) -> None:
    """The last enabled Administrator cannot be removed, disabled or demoted over HTTP; the last but one can."""
    others = [name for name in members(pair.curl(ACCOUNTS, *basic())) if name != "root"]
    for name in others:
        if pair.curl(f"{ACCOUNTS}/{name}", *basic()).json["RoleId"] == "Administrator":
            assert change(pair, "DELETE", f"{ACCOUNTS}/{name}", {}, *basic()).status == 200

    for method, body in (("DELETE", {}), ("PATCH", {"Enabled": False}), ("PATCH", {"RoleId": "Operator"})):
        assert error_of(change(pair, method, f"{ACCOUNTS}/root", body, *basic())) == (400, "account.invalid")
    second = new_account(pair, "Administrator")
    assert change(pair, "PATCH", f"{ACCOUNTS}/{second}", {"RoleId": "Operator"}, *basic()).status == 200


def test_account_is_unlocked_by_an_administrator(pair: SecurePair) -> None:
    """After five failures `Locked` says so; an Administrator sets it to false, and to nothing else."""
    name = new_account(pair, "ReadOnly")
    path, right = f"{ACCOUNTS}/{name}", ["--user", f"{name}:{PASSWORD}", "--interface", "127.0.0.5"]
    for _ in range(5):
        assert pair.curl(path, "--user", f"{name}:wrong-password", "--interface", "127.0.0.5").status == 401
    assert pair.curl(path, *basic()).json["Locked"] is True
    assert pair.curl(path, *right).status == 401

    for value in (True, None, 0):
        assert error_of(change(pair, "PATCH", path, {"Locked": value}, *basic())) == (400, "account.invalid")
    assert change(pair, "PATCH", path, {"Locked": False}, *basic()).json["Locked"] is False
    assert pair.curl(path, *right).status == 200


def test_role_comes_before_the_body(pair: SecurePair) -> None:
    """Whoever may not change an account gets 403 for it, whatever the body."""
    for body in ("{", "x" * 5000, "{}"):
        for content_type in ("application/json", "text/plain"):
            options = ["-X", "PATCH", "-H", f"Content-Type: {content_type}", "-d", body]
            answer = pair.curl(f"{ACCOUNTS}/root", *options, *basic("reader"))
            assert error_of(answer) == (403, "auth.forbidden")


@pytest.mark.parametrize("name", ["Token", "Context"])
def test_login_with_what_has_no_effect(pair: SecurePair, name: str) -> None:
    """What a login asks for and does not get refuses it; as other firmware's clients send it, empty, it is nothing."""
    login = {"UserName": "reader", "Password": PASSWORDS["reader"]}
    assert error_of(change(pair, "POST", SESSIONS, login | {name: "123456"})) == (400, "account.invalid")
    for empty in ("", None):
        assert change(pair, "POST", SESSIONS, login | {name: empty}).status == 201


def test_page_of_another_site_changes_nothing(pair: SecurePair) -> None:
    """What a browser sends for a page of another site is refused, whatever credentials go along."""
    body = {"UserName": "evil", "Password": PASSWORD, "RoleId": "Administrator"}
    host = pair.url.removeprefix("https://")
    for header in ("Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site"):
        assert error_of(change(pair, "POST", ACCOUNTS, body, *basic(), "-H", header)) == (403, "http.cross_site")
    own = ["-H", f"Origin: https://{host}", "-H", "Sec-Fetch-Site: same-origin"]
    name = "u" + secrets.token_hex(4)
    assert change(pair, "POST", ACCOUNTS, body | {"UserName": name}, *basic(), *own).status == 201
    assert pair.curl(f"{ROOT}/", "-H", "Origin: https://evil.example").status == 200


def test_accounts_that_cannot_be_written(pair: SecurePair) -> None:
    """Where the file may not be used the change fails, the log says why, and who was known still is."""
    path = pair.proxy_state / "accounts.json"
    path.chmod(0o644)
    try:
        answer = change(pair, "PATCH", f"{ACCOUNTS}/reader", {"Enabled": True}, *basic())
    finally:
        path.chmod(0o600)

    assert error_of(answer) == (500, "proxy.failed")
    assert "chmod 600" in pair.proxy.wait_for("accounts cannot be changed")["reason"]
    assert not any("Traceback" in line for line in pair.proxy.lines)
    assert change(pair, "PATCH", f"{ACCOUNTS}/reader", {"Enabled": True}, *basic()).status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", f"{ACCOUNTS}/nobody", 404, "http.not_found"),
        ("DELETE", f"{ACCOUNTS}/nobody", 404, "http.not_found"),
        ("GET", f"{SESSIONS}/nothing", 404, "http.not_found"),
        ("GET", f"{ROLES}/King", 404, "http.not_found"),
        ("GET", f"{ROOT}/Systems", 404, "http.not_found"),
        ("GET", f"{ACCOUNTS}/%ff%00", 404, "http.not_found"),
        ("PUT", f"{ACCOUNTS}/root", 405, "http.method_not_allowed"),
        ("PATCH", f"{ACCOUNTS}/root", 400, "http.bad_body"),
    ],
)
def test_what_is_not_there(pair: SecurePair, method: str, path: str, status: int, code: str) -> None:
    """What is not there, and what cannot be done, is told as a Redfish error."""
    answer = pair.curl(path, "-X", method, "--path-as-is", *basic())

    assert error_of(answer) == (status, code)
    assert (status == 405) == ("allow" in answer.headers)


def test_get_may_carry_a_content_type(pair: SecurePair) -> None:
    """A client that sends a Content-Type with every request is served."""
    assert curl(pair.url + f"{ROOT}/", *pair.trust, "-H", "Content-Type: text/plain").status == 200
