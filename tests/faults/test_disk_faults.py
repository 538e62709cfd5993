"""A disk that fails under the real processes, in one call or in all (`faults.c`): nothing is issued meanwhile."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.crashes import begin, port_of_agent, serve, state_with_ca
from support.csrs import pem
from support.disk_askers import CSR, Askers, assert_all_told, failed, told_by
from support.faults import NAME, ROOM, SYNC, Faults, run_forked
from support.processes import IBM_ROOT, PASSWORDS, SIGN_CSR, curl, port_of, post
from support.proxy_clients import ask_redfish, log_in, start, state_with_accounts
from support.raw_asker import RawAsker

from bmc_proxy.auth.accounts import AccountStore

CANNOT = "ledger cannot be written"
# More calls than the two commits of one issuance take.
CALLS_OF_ONE = 30
PLAIN = ("--http", "tcp:0:interface=127.0.0.1", "--anonymous-loopback")

FAULTS: dict[str, Callable[[Faults], None]] = {
    "no sync": lambda faults: faults.fail(SYNC, errno.EIO),
    "no write": lambda faults: faults.fail(ROOM, errno.EIO),
    "full": lambda faults: faults.fail(ROOM, errno.ENOSPC),
    "full in mid-write": lambda faults: faults.shorten(torn=True),
    "read-only": lambda faults: faults.fail(ROOM | NAME, errno.EROFS),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_agent_on_a_disk_that_fails_for_a_while(tmp_path: Path, fault: str) -> None:
    """Nothing is issued, which is told in words and logged once; it goes on by itself, and all of it is told of."""
    faults = begin(tmp_path / "faulty", state_with_ca(tmp_path / "agent"))
    with serve(faults.under, faults) as agent:
        port = port_of_agent(agent)
        with RawAsker(port) as asker, start(tmp_path / "proxy", port, None, *PLAIN) as proxy:
            askers = Askers(asker)
            url = f"http://127.0.0.1:{port_of(proxy.wait_for('ready')['http'])}{SIGN_CSR}"
            proxy.wait_for("root learned")
            assert failed(askers.ask(5)) == 0
            FAULTS[fault](faults)
            assert failed(askers.ask(10)) == 10
            answer = post(url, json.dumps({"CsrString": pem(CSR)}))
            assert (answer.status, answer.json["data"]["code"]) == (502, "agent.failed")
            assert len(told_by(agent, CANNOT)) == 1

            faults.stop()
            assert failed(askers.ask(10)) == 0
            agent.wait_for("ledger written again")
        assert_all_told(faults.under, askers, run_forked)
        assert agent.stop() == 0
    assert "Traceback" not in "".join(agent.lines)


def test_agent_whose_disk_fails_once_in_a_commit(tmp_path: Path) -> None:
    """Whichever call of an issuance fails, it is answered with a failure or whole, and the next one is issued."""
    faults = begin(tmp_path / "faulty", state_with_ca(tmp_path / "agent"))
    with serve(faults.under, faults) as agent:
        with RawAsker(port_of_agent(agent)) as asker:
            askers = Askers(asker)
            askers.ask()
            count = 0
            for step in range(1, CALLS_OF_ONE):
                error = errno.EIO if step % 2 else errno.ENOSPC
                faults.fail(ROOM | SYNC, error, number=len(faults.calls()) + step, count=1)
                count += failed(askers.ask())
                faults.stop()
                assert failed(askers.ask()) == 0
            assert count > CALLS_OF_ONE // 4
        assert_all_told(faults.under, askers, run_forked)
        assert agent.stop() == 0
    assert "Traceback" not in "".join(agent.lines)


def test_agent_whose_writes_are_cut_short(tmp_path: Path) -> None:
    """A write that takes half of what it is given goes on with the rest: nobody notices."""
    faults = begin(tmp_path / "faulty", state_with_ca(tmp_path / "agent"))
    with serve(faults.under, faults) as agent:
        with RawAsker(port_of_agent(agent)) as asker:
            askers = Askers(asker)
            faults.shorten()
            assert failed(askers.ask(3)) == 0
            faults.stop()
        assert_all_told(faults.under, askers, run_forked)
        assert agent.stop() == 0
    assert not told_by(agent, CANNOT)


@pytest.mark.parametrize("fault", FAULTS)
def test_proxy_on_a_disk_that_fails_for_a_while(tmp_path: Path, fault: str) -> None:
    """It serves on; accounts and root stay what they were on the disk, and are written once that works."""
    agent_state = state_with_ca(tmp_path / "agent")
    faults = begin(tmp_path / "faulty", state_with_accounts(tmp_path / "proxy"))
    body = {"UserName": "new", "Password": "a long password", "RoleId": "Operator"}
    accounts_at = "/redfish/v1/AccountService/Accounts"
    with serve(agent_state) as agent, start(faults.under, port_of_agent(agent), faults, *PLAIN) as proxy:
        port = port_of(proxy.wait_for("ready")["http"])
        proxy.wait_for("root learned", root_generation=1)
        stored = (faults.under / "root.pem").read_text()
        token = log_in(port, "root", PASSWORDS["root"])
        assert token is not None

        FAULTS[fault](faults)
        before = AccountStore(faults.under).all()
        assert ask_redfish(port, accounts_at, body, token).status == 500
        assert run_forked("vmi-agent", "ca", "rotate", "--state-dir", str(agent_state)).returncode == 0
        proxy.wait_for("root learned", root_generation=2)
        url = f"http://127.0.0.1:{port}"
        assert post(url + SIGN_CSR, json.dumps({"CsrString": pem(CSR)})).status == 200
        new = (agent_state / "ca" / "2" / "root.pem").read_text()
        assert curl(url + IBM_ROOT).json == {"Certificate": new}
        assert (faults.under / "root.pem").read_text() == stored
        assert AccountStore(faults.under).all() == before
        assert len(told_by(proxy, "stored root not usable")) == 1

        faults.stop()
        assert ask_redfish(port, accounts_at, body, token).status == 201
        assert proxy.stop() == 0
    assert "Traceback" not in "".join(proxy.lines + agent.lines)
