"""Ways in, on the real processes, with curl: who gets a certificate, who gets 401 or 403, and in which shape."""

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.csrs import make_csr, openssl_csr, pem
from support.judges import assert_openssl_accepts, openssl, split_chain
from support.processes import (
    ACCOUNTS,
    IBM_ROOT,
    IBM_SIGN_CSR,
    PASSWORDS,
    SIGN_CSR,
    Answer,
    SecurePair,
    add_account,
    basic,
    curl,
    post,
    run,
    running_secure_pair,
)
from support.run_log import secret

SESSIONS = "/redfish/v1/SessionService/Sessions"
GOOD = json.dumps({"CsrString": pem(make_csr())})
BOTH = pytest.mark.parametrize("route", [SIGN_CSR, IBM_SIGN_CSR], ids=["phosphor", "ibm"])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecurePair]:
    """Yield a pair with accounts and a CA for client certificates."""
    directory = tmp_path_factory.mktemp("login")
    make_client_ca(directory)
    with running_secure_pair(directory, "--client-ca", str(directory / "ca.csr")) as running:
        yield running


def make_client_ca(directory: Path) -> None:
    """Make a CA for client certificates: ca.csr (a certificate, by openssl's own -x509) and ca.key."""
    extensions = ["-x509", "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
    openssl_csr(directory, "p256", subject="/CN=HMC CA", extra=extensions).rename(directory / "ca.csr")
    (directory / "p256.key").rename(directory / "ca.key")


def client_certificate(
    directory: Path, user: str, *, days: int = 1, usage: str = "clientAuth", ca: str = "ca", names: str = ""
) -> list[str]:
    """Have openssl make a client certificate; return the curl options that show it."""
    home = directory / f"{user}-{days}-{usage}-{ca}"
    home.mkdir()
    csr = openssl_csr(home, "p256", subject=f"/CN={user}")
    (home / "ext").write_text(f"extendedKeyUsage={usage}\n{names}")
    certificate = home / "client.pem"
    command = ["x509", "-req", "-in", str(csr), "-CA", str(directory / f"{ca}.csr")]
    command += ["-CAkey", str(directory / f"{ca}.key"), "-days", str(days), "-extfile", str(home / "ext")]
    openssl(*command, "-out", str(certificate))
    return ["--cert", str(certificate), "--key", str(csr.with_suffix(".key"))]


def requesters(pair: SecurePair, answer: Answer) -> list[tuple[str, str, str]]:
    """Return user, method and address that the ledger has for the leaf of an answer."""
    leaf = split_chain(answer.json["data"][0])[0]
    serial = openssl("x509", "-noout", "-serial", stdin=leaf).strip().partition("=")[2].lower()
    listed = json.loads(run("vmi-agent", "certs", "list", "--state-dir", str(pair.agent_state), "--json").stdout)
    return [
        (row["user"], row["method"], row["address"]) for row in listed if row["serial"].endswith(serial.lstrip("0"))
    ]


def assert_refused(answer: Answer, route: str, status: int, code: str) -> None:
    """Check a 401 or 403, in the words of its dialect."""
    words = {"auth.required": "Login required", "auth.failed": "Invalid username or password"}
    assert answer.status == status, answer.body
    if route == SIGN_CSR:
        assert answer.json["status"] == "error"
        assert answer.json["data"]["code"] == code
        assert answer.json["data"]["description"] == words.get(code, "Insufficient access")
        assert answer.json["data"]["request_id"] == answer.headers["x-request-id"]
    else:
        assert (answer.json["Code"], answer.json["RequestId"]) == (code, answer.headers["x-request-id"])
        assert answer.json["Description"]
    assert ("www-authenticate" in answer.headers) == (status == 401)


# The ways in


def test_login_with_a_cookie_jar(pair: SecurePair, tmp_path: Path) -> None:
    """The phosphor login fills curl's jar; with it and the XSRF token a CSR is signed, and after logout no more."""
    jar = ["-b", str(tmp_path / "jar"), "-c", str(tmp_path / "jar")]
    login = pair.post("/login", {"data": ["root", PASSWORDS["root"]]}, *jar)
    assert (login.status, login.json) == (
        200,
        {"data": "User 'root' logged in", "message": "200 OK", "status": "ok"},
    )
    xsrf = ["-H", "X-XSRF-TOKEN: " + login.cookies["XSRF-TOKEN"].partition(";")[0]]
    csr = openssl_csr(tmp_path)
    body = {"data": [csr.read_text()]}

    signed = pair.post(SIGN_CSR, body, *jar, *xsrf)
    without_xsrf = pair.post(SIGN_CSR, body, *jar)
    wrong_xsrf = pair.post(SIGN_CSR, body, *jar, "-H", "X-XSRF-TOKEN: " + "x" * 43)
    reading = pair.curl(IBM_ROOT, *jar)
    logout = pair.post("/logout", {"data": []}, *jar, *xsrf)
    after = pair.post(
        SIGN_CSR, body, "-b", "BMCWEB-SESSION=" + login.cookies["BMCWEB-SESSION"].partition(";")[0], *xsrf
    )

    assert_openssl_accepts(signed.json["data"][0], tmp_path)
    assert requesters(pair, signed) == [("root", "cookie", "127.0.0.1")]
    assert_refused(without_xsrf, SIGN_CSR, 401, "auth.required")
    assert_refused(wrong_xsrf, SIGN_CSR, 401, "auth.required")
    assert reading.status == 200
    assert logout.json == {"data": "User 'root' logged out", "message": "200 OK", "status": "ok"}
    assert_refused(after, SIGN_CSR, 401, "auth.required")


def test_login_cookies_are_kept_from_scripts_and_other_sites(pair: SecurePair) -> None:
    """Both cookies are Secure and SameSite=Strict; the session's is HttpOnly, the XSRF token's is not."""
    cookies = pair.post("/login", {"username": "root", "password": PASSWORDS["root"]}).cookies

    assert set(cookies) == {"BMCWEB-SESSION", "XSRF-TOKEN"}
    for name, cookie in cookies.items():
        value, *attributes = cookie.split("; ")
        assert len(value) == 43  # 256 bits in base64
        assert set(attributes) == {"Path=/", "SameSite=Strict", "Secure"} | ({"HttpOnly"} if "SESS" in name else set())


@pytest.mark.parametrize("cookie", ["SESSION", "BMCWEB-SESSION"])
def test_login_in_the_other_form_gives_a_token(pair: SecurePair, cookie: str) -> None:
    """`{"username","password"}` gets a token, which is the cookie's value under either name, and X-Auth-Token's."""
    answer = pair.post("/login", {"username": "root", "password": PASSWORDS["root"]})
    token = secret(answer.json["token"])
    assert answer.cookies["BMCWEB-SESSION"].startswith(token + ";")

    assert pair.curl(SESSIONS, "-b", f"{cookie}={token}").status == 200
    assert pair.curl(SESSIONS, "-H", f"X-Auth-Token: {token}").status == 200


@pytest.mark.parametrize("way", ["token", "basic", "certificate"])
def test_sign_csr_by_each_way_in(pair: SecurePair, tmp_path: Path, way: str) -> None:
    """X-Auth-Token, Basic and a client certificate need no XSRF token; the ledger tells who asked, and how."""
    if way == "certificate":
        credentials = client_certificate(pair.directory, "root")
    else:
        credentials = pair.token() if way == "token" else basic()

    signed = pair.post(SIGN_CSR, {"data": [openssl_csr(tmp_path).read_text()]}, *credentials)

    assert_openssl_accepts(signed.json["data"][0], tmp_path)
    assert requesters(pair, signed) == [("root", way, "127.0.0.1")]
    assert pair.curl(IBM_ROOT, *credentials).status == 200


def test_token_wins_over_a_cookie(pair: SecurePair) -> None:
    """Beside X-Auth-Token a cookie is not looked at, and no XSRF token is asked for."""
    cookie = pair.post("/login", {"data": ["reader", PASSWORDS["reader"]]}).cookies["BMCWEB-SESSION"].partition(";")[0]

    assert pair.post(SIGN_CSR, GOOD, *pair.token("root"), "-b", f"BMCWEB-SESSION={cookie}").status == 200
    assert pair.post(SIGN_CSR, GOOD, *pair.token("root"), "-b", "BMCWEB-SESSION=stale").status == 200


def test_login_on_the_plain_listener(pair: SecurePair) -> None:
    """The plain listener asks for a login as well, and takes one."""
    assert_refused(post(pair.plain_url + SIGN_CSR, GOOD), SIGN_CSR, 401, "auth.required")
    assert post(pair.plain_url + SIGN_CSR, GOOD, *basic()).status == 200


# Who is not let in


@BOTH
def test_sign_csr_without_login(pair: SecurePair, route: str) -> None:
    """Nobody, a stale token and a stale cookie get 401."""
    for credentials in ([], ["-H", "X-Auth-Token: x"], ["-b", "BMCWEB-SESSION=x", "-H", "X-XSRF-TOKEN: x"]):
        assert_refused(pair.post(route, GOOD, *credentials), route, 401, "auth.required")
    assert_refused(pair.curl(IBM_ROOT), IBM_ROOT, 401, "auth.required")


@BOTH
@pytest.mark.parametrize("user", ["reader", "oper"])
def test_sign_csr_in_another_role(pair: SecurePair, route: str, user: str) -> None:
    """Operator and ReadOnly get 403 on both routes and for the root, however they are known."""
    for credentials in (pair.token(user), basic(user)):
        assert_refused(pair.post(route, GOOD, *credentials), route, 403, "auth.forbidden")
        assert_refused(pair.curl(IBM_ROOT, *credentials), IBM_ROOT, 403, "auth.forbidden")


@BOTH
def test_wrong_password(pair: SecurePair, route: str) -> None:
    """A wrong password, a wrong name and an Authorization that is none get 401; a browser's script gets no dialog."""
    for credentials in ("root:wrong-password", "nobody:wrong-password"):
        from_elsewhere = ["--user", credentials, "--interface", "127.0.0.2"]
        assert_refused(pair.post(route, GOOD, *from_elsewhere), route, 401, "auth.failed")
    for value in ("Basic", "Basic !", "Basic cm9vdA==", "Bearer x"):
        assert_refused(pair.post(route, GOOD, "-H", f"Authorization: {value}"), route, 401, "auth.required")
    by_script = pair.post(route, GOOD, "-H", "X-Requested-With: XMLHttpRequest")
    assert by_script.status == 401
    assert "www-authenticate" not in by_script.headers


@pytest.mark.parametrize(
    "body",
    [
        '{"data":["root"]}',
        '{"data":["root",1]}',
        '{"username":"root"}',
        "[]",
        "x",
        '{"data":["a","b"],"data":["a","b"]}',
    ],
)
def test_login_with_a_body_that_is_none(pair: SecurePair, body: str) -> None:
    """A login that names no user and password is told what to send."""
    answer = pair.post("/login", body)

    assert (answer.status, answer.json["data"]["code"]) == (400, "http.bad_body")


def test_login_and_role_come_before_body_and_agent(pair: SecurePair) -> None:
    """401 and 403 win over what is wrong with method-independent things: type, size and text of the body."""
    large = " " * 70_000
    for options in ([], ["-H", "Transfer-Encoding: chunked"]):
        for body in ("hello", large):
            assert pair.post(SIGN_CSR, body, *options).status == 401
            assert pair.post(SIGN_CSR, body, *options, *basic("reader")).status == 403
            wrong = ["--user", "root:wrong-password", "--interface", "127.0.0.3"]
            assert pair.post(SIGN_CSR, body, *options, *wrong).status == 401
    for status, credentials in ((401, []), (403, pair.token("reader")), (415, pair.token("root"))):
        wrong_type = pair.curl(SIGN_CSR, "-H", "Content-Type: text/plain", "-d", "x", *credentials)
        assert wrong_type.status == status


def test_login_and_role_come_before_the_agents_absence(tmp_path: Path) -> None:
    """With no agent there a stranger still gets 401, another role 403, and an Administrator 503."""
    with running_secure_pair(tmp_path) as pair:
        pair.agent.stop()
        pair.proxy.wait_for("agent lost")
        found = [pair.post(SIGN_CSR, GOOD, *credentials).status for credentials in ([], basic("reader"), basic())]

    assert found == [401, 403, 503]


def test_body_before_login_is_small(pair: SecurePair) -> None:
    """4 KiB of login are read, more are refused."""
    at_limit = pair.post("/login", " " * 4096)
    over = pair.post("/login", " " * 4097)

    assert (at_limit.status, at_limit.json["data"]["code"]) == (400, "http.bad_body")
    assert (over.status, over.json["data"]["code"]) == (413, "http.body_too_large")


# Client certificates


def test_client_certificate_that_does_not_hold(pair: SecurePair) -> None:
    """An expired one, one of another CA, and one for servers are refused in the handshake; the log says why."""
    strange = pair.directory / "strange"
    strange.mkdir()
    make_client_ca(strange)
    for credentials, reason in (
        (client_certificate(pair.directory, "root", days=-1), "expired"),
        (client_certificate(strange, "root"), "not known here"),
        (client_certificate(pair.directory, "root", usage="serverAuth"), "another purpose"),
    ):
        command = ["curl", "-s", "--tlsv1.3", *pair.trust, *credentials, pair.url + IBM_ROOT]
        done = subprocess.run(command, capture_output=True, check=False)
        assert (done.returncode, done.stdout) in ((56, b""), (35, b"")), shlex.join(command)
        assert reason in pair.proxy.wait_for("TLS refused")["reason"]


def test_client_certificate_of_nobody(pair: SecurePair) -> None:
    """A certificate that names no account lets nobody in, and does not stand in the way of a password."""
    stranger = client_certificate(pair.directory, "stranger")

    assert pair.curl(IBM_ROOT, *stranger).status == 401
    assert pair.curl(IBM_ROOT, *stranger, *basic()).status == 200


def test_client_certificate_by_principal_name(tmp_path: Path) -> None:
    """With --client-user upn the account is what stands before the @ in the certificate's UPN; the CN says nothing."""
    make_client_ca(tmp_path)
    options = ["--client-ca", str(tmp_path / "ca.csr"), "--client-user", "upn"]
    upn = "subjectAltName=otherName:1.3.6.1.4.1.311.20.2.3;UTF8:oper@example.com\n"
    with running_secure_pair(tmp_path, *options) as pair:
        by_upn = pair.curl("/redfish/v1/AccountService/Accounts", *client_certificate(tmp_path, "x", names=upn))
        by_name = pair.curl("/redfish/v1/AccountService/Accounts", *client_certificate(tmp_path, "root"))

    assert [member["@odata.id"].rpartition("/")[2] for member in by_upn.json["Members"]] == ["oper"]
    assert by_name.status == 401


# Accounts that change under a running proxy


def test_account_commands_count_at_once(pair: SecurePair) -> None:
    """What `bmc-proxy account` does to an account counts for the next request, sessions included."""
    state = ["--state-dir", str(pair.proxy_state)]
    add_account(pair.proxy_state, "temp", "Administrator", secret("first password"))
    login = {"UserName": "temp", "Password": "first password"}
    token = ["-H", "X-Auth-Token: " + pair.post(SESSIONS, login).headers["x-auth-token"]]
    assert pair.curl(IBM_ROOT, *token).status == 200

    set_password = ["bmc-proxy", "account", "set-password", "temp", "--password-stdin", *state]
    assert run(*set_password, stdin=secret("second password") + "\n").returncode == 0
    assert pair.curl(IBM_ROOT, *token).status == 401
    assert pair.post(SESSIONS, login).status == 401
    token = [
        "-H",
        "X-Auth-Token: " + pair.post(SESSIONS, login | {"Password": "second password"}).headers["x-auth-token"],
    ]
    assert run("bmc-proxy", "account", "remove", "temp", *state).returncode == 0
    assert pair.curl(IBM_ROOT, *token).status == 401

    listed = json.loads(run("bmc-proxy", "account", "list", *state, "--json").stdout)
    assert {row["name"]: row["role"] for row in listed} == ACCOUNTS


def test_anonymous_listener_may_sign_and_nothing_else(tmp_path: Path) -> None:
    """Without login the anonymous listener signs and tells the root; accounts and sessions need a login there too."""
    with running_secure_pair(tmp_path, "--anonymous-loopback") as pair:
        url = pair.plain_url
        assert post(url + SIGN_CSR, GOOD).status == 200
        assert curl(url + IBM_ROOT).status == 200
        assert curl(url + SESSIONS).status == 401
        account = json.dumps({"UserName": "evil", "Password": "password", "RoleId": "Administrator"})
        assert post(url + "/redfish/v1/AccountService/Accounts", account).status == 401
        assert post(url + SIGN_CSR, GOOD, *basic("reader")).status == 403
        assert post(url + SIGN_CSR, GOOD, "-H", "Origin: http://127.0.0.1").status == 403
        assert post(url + SIGN_CSR, GOOD, "-H", f"Origin: {url}").status == 401
        assert_refused(pair.post(SIGN_CSR, GOOD), SIGN_CSR, 401, "auth.required")


def test_answers_carry_security_headers(pair: SecurePair) -> None:
    """Every answer has them, refusals below HTTP included; none says what the server is."""
    answers = [pair.curl(path) for path in ("/", "/redfish/v1/", SIGN_CSR, IBM_ROOT, "/login")]
    answers += [pair.curl("/", "-H", "X: " + "x" * 9000), pair.post("/login", {"data": ["root", PASSWORDS["root"]]})]
    for answer in answers:
        assert answer.headers["strict-transport-security"] == "max-age=31536000; includeSubDomains"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers
        assert "twisted" not in str(answer.headers).lower()
