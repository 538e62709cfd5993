"""Several worker processes on real sockets: who is logged in is so on all of them, and none of them is missed."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.csrs import make_csr, pem
from support.processes import (
    ACCOUNTS,
    IBM_SIGN_CSR,
    PASSWORDS,
    START_S,
    SecurePair,
    add_account,
    basic,
    run,
    running_secure_pair,
)
from support.run_log import secret
from support.worker_clients import ACCOUNT, PLENTY, SESSIONS, WORKERS, Client, clients, lines_of, log_in, statuses

from bmc_proxy.auth.accounts import AccountStore


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecurePair]:
    """Yield a pair whose proxy has several workers."""
    with running_secure_pair(tmp_path_factory.mktemp("workers"), "--workers", str(WORKERS), *PLENTY) as running:
        yield running


def test_session_counts_on_all_workers(pair: SecurePair) -> None:
    """A token that one worker gave is good on each other one at once, and on none once it was logged out anywhere."""
    with clients(pair) as found:
        for client in found.values():
            token, _ = log_in(client)
            assert statuses(found, token) == {200}
            for other in found.values():
                token, path = log_in(client)
                assert other.ask("DELETE", path, token)[0] == 200
                assert statuses(found, token) == {401}


def test_logout_of_phosphor_counts_on_all_workers(pair: SecurePair) -> None:
    """/logout ends a session everywhere as well."""
    with clients(pair) as found:
        token, _ = log_in(found[1])
        assert found[2].ask("POST", "/logout", token, {"data": []})[0] == 200
        assert statuses(found, token) == {401}


def test_all_workers_list_the_same_sessions(pair: SecurePair) -> None:
    """Redfish shows each session on each worker."""
    with clients(pair) as found:
        token, path = log_in(found[2])
        assert statuses(found, token, path) == {200}


def test_change_of_password_counts_on_all_workers(pair: SecurePair) -> None:
    """A new password ends all sessions of its account on all workers, but the one that set it."""
    with clients(pair) as found:
        own, _ = log_in(found[1], "oper")
        others = [log_in(client, "oper")[0] for client in found.values()]
        body = {"Password": PASSWORDS["oper"] + "-changed"}
        secret(body["Password"])
        assert found[2].ask("PATCH", f"{ACCOUNT}/oper", own, body)[0] == 200
        assert statuses(found, own, f"{ACCOUNT}/oper") == {200}
        for token in others:
            assert statuses(found, token) == {401}
        assert found[3].ask("PATCH", f"{ACCOUNT}/oper", own, {"Password": PASSWORDS["oper"]})[0] == 200
        assert statuses(found, own, f"{ACCOUNT}/oper") == {200}


def test_change_by_command_counts_on_all_workers(pair: SecurePair) -> None:
    """An account that a command removes is let in nowhere any more, and is not when one of its name comes back."""
    password = secret("of-somebody-new")
    PASSWORDS["new"] = password
    add_account(pair.proxy_state, "new", "Administrator", password)
    with clients(pair) as found:
        token, _ = log_in(found[3], "new")
        assert statuses(found, token) == {200}
        assert run("bmc-proxy", "account", "remove", "new", "--state-dir", str(pair.proxy_state)).returncode == 0
        assert statuses(found, token) == {401}
        add_account(pair.proxy_state, "new", "Administrator", password)
        assert statuses(found, token) == {401}


def test_accounts_are_made_and_removed_over_any_worker(pair: SecurePair) -> None:
    """What one worker changes another one shows; refusals reach whoever asked, in the same words as ever."""
    new = {"UserName": "made", "Password": secret("of-the-one-made"), "RoleId": "ReadOnly"}
    with clients(pair) as found:
        token, _ = log_in(found[1])
        reader, _ = log_in(found[1], "reader")
        assert found[1].ask("POST", ACCOUNT, token, new)[0] == 201
        assert statuses(found, token, f"{ACCOUNT}/made") == {200}
        assert found[2].ask("POST", ACCOUNT, token, new)[0] == 400
        assert found[2].ask("POST", ACCOUNT, token, new | {"UserName": "x", "Password": "short"})[0] == 400
        assert found[2].ask("POST", ACCOUNT, reader, new)[0] == 403
        assert found[3].ask("DELETE", f"{ACCOUNT}/made", token)[0] == 200
        assert statuses(found, token, f"{ACCOUNT}/made") == {404}
        assert found[3].ask("DELETE", f"{ACCOUNT}/made", token)[0] == 404


def test_last_administrator_stays(pair: SecurePair) -> None:
    """The guards of changes hold as in one process."""
    with clients(pair) as found:
        token, _ = log_in(found[1])
        others = [name for name in AccountStore(pair.proxy_state).all() if name not in ACCOUNTS]
        for name in others:
            assert found[2].ask("DELETE", f"{ACCOUNT}/{name}", token)[0] == 200
        assert found[3].ask("DELETE", f"{ACCOUNT}/root", token)[0] == 400


def test_cap_of_sessions_is_one_for_all(pair: SecurePair) -> None:
    """The sixty-fifth session of a user ends the one idle longest, wherever they were opened."""
    with clients(pair) as found:
        oldest, _ = log_in(found[1], "reader")
        newer = [log_in(found[1 + number % WORKERS], "reader")[0] for number in range(64)]
        assert statuses(found, oldest) == {401}
        assert statuses(found, newer[0]) == {200}


def test_basic_credentials_on_all_workers(pair: SecurePair) -> None:
    """Basic credentials are judged by the first process, whichever worker they reach."""
    for _ in range(2 * WORKERS):
        assert pair.curl(SESSIONS, *basic()).status == 200
    assert pair.curl(SESSIONS, "--user", "root:not-the-password").status == 401


def test_certificates_over_all_workers(pair: SecurePair) -> None:
    """Each worker has CSRs signed."""
    with clients(pair) as found:
        token, _ = log_in(found[1])
        for client in found.values():
            assert client.ask("POST", IBM_SIGN_CSR, token, {"CsrString": pem(make_csr())})[0] == 200


def test_five_failures_are_five_over_all_workers(tmp_path: Path) -> None:
    """Five wrong passwords lock, however they are spread; the right one then does not open, on no worker."""
    with running_secure_pair(tmp_path, "--workers", str(WORKERS)) as pair, clients(pair) as found:
        administrator, _ = log_in(found[1])
        wrong = {"UserName": "oper", "Password": "not-the-password"}
        for number in range(5):
            assert not is_locked(pair, administrator)
            assert found[1 + number % WORKERS].ask("POST", SESSIONS, body=wrong)[0] == 401
        assert is_locked(pair, administrator)
        right = {"UserName": "oper", "Password": PASSWORDS["oper"]}
        assert {client.ask("POST", SESSIONS, body=right)[0] for client in found.values()} == {401}
        assert [line["event"] for line in lines_of(pair.proxy)].count("account locked") == 1
        # Unlocked over one worker it is on all.
        assert found[2].ask("PATCH", f"{ACCOUNT}/oper", administrator, {"Locked": False})[0] == 200
        assert {client.ask("POST", SESSIONS, body=right)[0] for client in found.values()} == {201}


def is_locked(pair: SecurePair, token: str) -> bool:
    """Return what Redfish says of the account "oper"."""
    return bool(pair.curl(f"{ACCOUNT}/oper", "-H", f"X-Auth-Token: {token}").json["Locked"])


def test_failures_at_once_over_many_connections(tmp_path: Path) -> None:
    """Wrong passwords that arrive together on all workers are checked one at a time: five are, and no sixth."""
    with running_secure_pair(tmp_path, "--workers", str(WORKERS)) as pair:
        wrong = {"UserName": "oper", "Password": "not-the-password"}
        guessing = [Client(pair) for _ in range(15)]
        threads = [threading.Thread(target=each.ask, args=("POST", SESSIONS, None, wrong)) for each in guessing]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(START_S)
        for each in guessing:
            each.close()
        events = [line["event"] for line in lines_of(pair.proxy)]
        assert events.count("login failed") == 5
        assert events.count("account locked") == 1
