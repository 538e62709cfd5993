"""A proxy, and its commands, killed before or after each step of what they write: the old file or the new, whole."""

import http.client
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.crashes import WHEN, at_each, begin, chosen, crash_command, port_of_agent, serve, state_with_ca
from support.processes import PASSWORDS, account, port_of
from support.proxy_clients import ask_redfish, log_in, start, state_with_accounts

from bmc_proxy.auth.accounts import Account, AccountStore, Role
from bmc_proxy.auth.passwords import is_password
from bmc_proxy.pem import is_certificate
from runtime.tls import load_identity

IN_MAKE_TEST = 2
ACCOUNTS = "/redfish/v1/AccountService/Accounts"
SESSIONS = "/redfish/v1/SessionService/Sessions"
PASSWORD = PASSWORDS["reader"]


def assert_nothing_left_over(state: Path) -> None:
    """A change afterwards works, and leaves no temporary file of whoever was killed."""
    AccountStore(state).add(Account("later", Role.READ_ONLY, None))
    assert {each.name for each in state.iterdir()} <= {"accounts.json", "accounts.lock", "lock", "root.pem"}


COMMANDS: dict[str, tuple[list[str], Callable[[dict[str, Account]], bool]]] = {
    "add": (
        ["add", "new", "--role", "Operator", "--password-stdin"],
        lambda accounts: "new" in accounts,
    ),
    "remove": (["remove", "oper"], lambda accounts: "oper" not in accounts),
    "set-password": (
        ["set-password", "oper", "--password-stdin"],
        lambda accounts: accounts["oper"].password_hash != account("oper").password_hash,
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_account_command_is_killed(tmp_path: Path, name: str) -> None:
    """The change is made or it is not, all other accounts are there, and nothing piles up."""
    command, is_changed = COMMANDS[name]
    state = state_with_accounts(tmp_path / "proxy")
    before = dict(AccountStore(state).all())

    def check(copy: Path) -> None:
        accounts = dict(AccountStore(copy).all())
        assert accounts == before or is_changed(accounts)
        changed = {name for name in before | accounts if accounts.get(name) != before.get(name)}
        assert changed <= {"new", "oper"}
        assert accounts["root"] == before["root"]
        assert_nothing_left_over(copy)

    crash_command(tmp_path, state, ["bmc-proxy", "account", *command], check, IN_MAKE_TEST, stdin=PASSWORD)


def add_account(port: int) -> int | None:
    """Make an account over Redfish; return the status, None where the proxy is gone."""
    token = log_in(port, "root", PASSWORDS["root"])
    assert token is not None
    body = {"UserName": "new", "Password": PASSWORD, "RoleId": "Operator"}
    try:
        return ask_redfish(port, ACCOUNTS, body, token).status
    except (OSError, http.client.HTTPException):
        return None


def test_proxy_is_killed_while_it_changes_accounts(tmp_path: Path) -> None:
    """What Redfish answered holds after the restart; what it did not answer is made or not, and can be asked again."""
    state = state_with_accounts(tmp_path / "proxy")
    plain = ("--http", "tcp:0:interface=127.0.0.1")

    def crash(point: tuple[str, int]) -> int:
        when, step = point
        faults = begin(tmp_path / f"{when}-{step}", state)
        with start(faults.under, 1, faults, *plain) as proxy:
            port = port_of(proxy.wait_for("ready")["http"])
            before = len(faults.calls())
            if step:
                faults.kill(when, before + step)
            status = add_account(port)
            steps = len(faults.calls()) - before
            if step:
                assert proxy.wait() == -signal.SIGKILL
        accounts = AccountStore(faults.under).all()
        assert set(accounts) in ({"root", "oper"}, {"root", "oper", "new"})
        if status == 201:
            assert "new" in accounts
        if "new" in accounts:
            assert is_password(PASSWORD, accounts["new"].password_hash)
        with start(faults.under, 1, None, *plain) as proxy:
            port = port_of(proxy.wait_for("ready")["http"])
            assert (log_in(port, "new", PASSWORD) is not None) == ("new" in accounts)
            assert add_account(port) == (400 if "new" in accounts else 201)
        assert_nothing_left_over(faults.under)
        return steps

    steps = crash(("never", 0))
    at_each(chosen([(when, step) for step in range(1, steps + 1) for when in WHEN], IN_MAKE_TEST), crash)


def test_proxy_is_killed_at_its_first_start(tmp_path: Path) -> None:
    """The next start has a whole certificate for HTTPS and the agent's root, and nothing is left over."""
    state = tmp_path / "proxy"
    state.mkdir(mode=0o700)
    https = ("--https", "tcp:0:interface=127.0.0.1")
    with serve(state_with_ca(tmp_path / "agent")) as agent:
        agent_port = port_of_agent(agent)
        root = (tmp_path / "agent" / "ca" / "1" / "root.pem").read_text()

        def crash(point: tuple[str, int]) -> int:
            when, step = point
            faults = begin(tmp_path / f"{when}-{step}", state)
            if step:
                faults.kill(when, step)
            with start(faults.under, agent_port, faults, *https) as proxy:
                if step:
                    assert proxy.wait() == -signal.SIGKILL
                else:
                    proxy.wait_for("root learned")
            steps = len(faults.calls())
            stored = faults.under / "root.pem"
            assert not stored.exists() or is_certificate(stored.read_text())
            with start(faults.under, agent_port, None, *https) as proxy:
                proxy.wait_for("root learned")
            assert stored.read_text() == root
            identity = load_identity(faults.under / "https.pem", faults.under / "https.pem")
            assert len(identity.chain) == 1
            assert {each.name for each in faults.under.iterdir()} <= {"https.pem", "root.pem", "lock"}
            shutil.rmtree(faults.under.parent)
            return steps

        steps = crash(("never", 0))
        at_each(chosen([(when, step) for step in range(1, steps + 1) for when in WHEN], IN_MAKE_TEST), crash)
