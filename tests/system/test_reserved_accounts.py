"""Names that ledger and audit use for somebody who is no account: nobody can have them, nor keep them."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from support.processes import IBM_ROOT, PASSWORDS, SecurePair, account, basic, run, running_secure_pair
from twisted.internet.task import Clock

from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.agents.pool import Agents
from bmc_proxy.agents.queue import Door
from bmc_proxy.auth.accounts import Account, AccountRefused, AccountStore, Role
from bmc_proxy.errors import Forbidden
from bmc_proxy.root_cache import RootCache
from bmc_proxy.signing import Exchange, Requester
from runtime.files import replace_file

ACCOUNTS = "/redfish/v1/AccountService/Accounts"
RESERVED = ["vmi-agent", "VMI-Agent", "anonymous", "Anonymous"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecurePair]:
    """Yield a pair with an account of each role."""
    with running_secure_pair(tmp_path_factory.mktemp("reserved")) as running:
        yield running


@pytest.mark.parametrize("name", RESERVED)
def test_account_of_a_reserved_name_is_not_made(pair: SecurePair, name: str) -> None:
    """By command and over Redfish, in whatever case; a name that only contains one is free."""
    words = ["bmc-proxy", "account", "add", name, "--role", "ReadOnly", "--no-password"]
    done = run(*words, "--state-dir", str(pair.proxy_state))
    assert (done.returncode, "not 'anonymous' or 'vmi-agent'" in done.stderr) == (1, True)

    body = {"UserName": name, "Password": PASSWORDS["root"], "RoleId": "ReadOnly"}
    refused = pair.post(ACCOUNTS, body, *basic())
    [told] = refused.json["error"]["@Message.ExtendedInfo"]
    assert (refused.status, told["RelatedProperties"]) == (400, ["/UserName"])
    assert pair.post(ACCOUNTS, body | {"UserName": f"{name}1"}, *basic()).status == 201


def test_account_from_before_the_name_was_reserved(pair: SecurePair) -> None:
    """It lets nobody in, is listed as disabled, cannot be enabled, and can be removed."""
    path = pair.proxy_state / "accounts.json"
    stored = json.loads(path.read_text())
    row = asdict(account("root")) | {"name": "vmi-agent", "role": "Administrator"}
    stored["accounts"].append(row)
    replace_file(path, json.dumps(stored).encode())

    assert pair.curl(IBM_ROOT, "--user", f"vmi-agent:{PASSWORDS['root']}").status == 401
    state = ["--state-dir", str(pair.proxy_state)]
    assert "vmi-agent  Administrator  disabled\n" in run("bmc-proxy", "account", "list", *state).stdout
    change = ["-X", "PATCH", "-H", "Content-Type: application/json", "-d", '{"Enabled": true}']
    assert pair.curl(f"{ACCOUNTS}/vmi-agent", *change, *basic()).status == 400
    assert pair.curl(f"{ACCOUNTS}/vmi-agent", "-X", "DELETE", *basic()).status == 200


def test_store_refuses_to_enable_a_reserved_name(tmp_path: Path) -> None:
    """Whatever the way in, the rule is the store's."""
    store = AccountStore(tmp_path)
    for name in RESERVED:
        with pytest.raises(AccountRefused, match="not 'anonymous' or 'vmi-agent'"):
            store.add(Account(name, Role.READ_ONLY, None))


def test_csr_of_a_requester_with_the_agents_own_name_is_not_sent(tmp_path: Path) -> None:
    """Where such a requester comes about all the same, no request of it reaches an agent."""
    clock = Clock()
    agents = Agents([])
    roots = RootCache(tmp_path, clock.seconds, clock.seconds, lambda _reason: None)
    exchange = Exchange(agents, Door(clock, agents, 1), roots, 1)
    requester = Requester("vmi-agent", "basic", "192.0.2.1")
    with pytest.raises(Forbidden):
        exchange.sign_csr(b"", requester, None, Deadline.after(clock, 1)).send(None)
