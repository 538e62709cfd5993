"""A thousand wrong logins from one source: what they lock, whom they do not, and that signing goes on beside them."""

import json
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from threading import Event

from support.csrs import make_csr, pem
from support.processes import PASSWORDS, SIGN_CSR, SecurePair, basic, port_of, post, running_secure_pair

ACCOUNT = "/redfish/v1/AccountService/Accounts/root"
ATTACKER, ADMINISTRATOR, HMC = "127.0.0.66", "127.0.0.2", "127.0.0.3"
TRIES = 1000
RIGHT = json.dumps({"data": ["root", PASSWORDS["root"]]})
WRONG = json.dumps({"data": ["root", "wrong-password"]})
JSON = {"Content-Type": "application/json"}


def attack(pair: SecurePair) -> list[tuple[int, str]]:
    """Send all the wrong logins in a row; return status and code of each answer."""
    found = []
    connection = HTTPConnection("127.0.0.1", port_of(pair.plain_url), timeout=60, source_address=(ATTACKER, 0))
    with closing(connection):
        for _ in range(TRIES):
            connection.request("POST", "/login", WRONG, JSON)
            answer = connection.getresponse()
            found.append((answer.status, json.loads(answer.read())["data"]["code"]))
    return found


def sign_until(over: Event, pair: SecurePair, token: str) -> list[int]:
    """Have one CSR after the other signed; return the status of each answer."""
    found: list[int] = []
    connection = HTTPConnection("127.0.0.1", port_of(pair.plain_url), timeout=60, source_address=(HMC, 0))
    body = json.dumps({"CsrString": pem(make_csr())})
    with closing(connection):
        while not over.is_set() or not found:
            connection.request("POST", SIGN_CSR, body, JSON | {"X-Auth-Token": token})
            answer = connection.getresponse()
            answer.read()
            found.append(answer.status)
    return found


def test_thousand_wrong_logins(tmp_path: Path) -> None:
    """Five are judged and lock the account to that source, which then has to wait; nobody else notices.

    The administrator gets in from another source, and every SignCSR of a stream beside the storm is answered.
    """
    with running_secure_pair(tmp_path) as pair:
        token = pair.token("root")
        over = Event()
        with ThreadPoolExecutor(3) as pool:
            streams = [pool.submit(sign_until, over, pair, token[1].partition(": ")[2]) for _ in range(2)]
            try:
                answers = pool.submit(attack, pair).result()
            finally:
                over.set()
            signed = Counter(status for stream in streams for status in stream.result())

        is_locked = pair.curl(ACCOUNT, *token).json["Locked"]
        from_there = post(pair.plain_url + "/login", RIGHT, "--interface", ATTACKER)
        from_elsewhere = post(pair.plain_url + "/login", RIGHT, "--interface", ADMINISTRATOR)
        body = json.dumps({"CsrString": pem(make_csr())})
        by_basic = post(pair.plain_url + SIGN_CSR, body, *basic(), "--interface", ADMINISTRATOR)

    told = Counter(answers)
    assert set(told) == {(401, "auth.failed"), (429, "http.too_many_requests")}
    assert answers[:20] == [(401, "auth.failed")] * 20
    assert told[(429, "http.too_many_requests")] > TRIES / 2
    assert sum('"login failed"' in line for line in pair.proxy.lines) == 5
    assert sum('"account locked"' in line for line in pair.proxy.lines) == 1
    assert is_locked is True
    assert from_there.status in (401, 429)
    assert from_elsewhere.json["data"] == "User 'root' logged in"
    assert by_basic.status == 200
    assert set(signed) == {200}
    assert signed[200] > 10


def test_login_of_a_client_that_hangs_up_is_counted(tmp_path: Path) -> None:
    """Whoever does not wait for the answer has failed all the same: five lock the account."""
    with running_secure_pair(tmp_path) as pair:
        head = f"POST /login HTTP/1.1\r\nHost: bmc\r\nContent-Length: {len(WRONG)}\r\n\r\n"
        for _ in range(5):
            with socket.create_connection(
                ("127.0.0.1", port_of(pair.plain_url)), source_address=(ATTACKER, 0)
            ) as stream:
                stream.sendall((head + WRONG).encode())
            assert pair.proxy.wait_for("login failed")["address"] == ATTACKER
        assert pair.proxy.wait_for("account locked")["user"] == "root"
        assert pair.proxy.stop() == 0


def test_parallel_wrong_logins_are_counted_one_by_one(tmp_path: Path) -> None:
    """Fifty at once from many sources get no more tries than one after the other would."""
    with running_secure_pair(tmp_path) as pair, ThreadPoolExecutor(50) as pool:
        url = pair.plain_url + "/login"
        tries = [pool.submit(post, url, WRONG, "--interface", f"127.0.1.{number}") for number in range(1, 51)]
        statuses = Counter(each.result().status for each in tries)

    assert statuses == {401: 50}
    assert sum('"login failed"' in line for line in pair.proxy.lines) == 16
