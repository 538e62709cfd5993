"""Client certificates of the agent's own CA: what is revoked logs nobody in, on whatever connection, after whatever."""

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.client_cas import ADMINISTRATORS, ClientCa, own_client, own_root, revoke_own, status_on
from support.csrs import make_csr, pem
from support.processes import (
    IBM_SIGN_CSR,
    PASSWORDS,
    SIGN_CSR,
    Process,
    SecurePair,
    basic,
    port_of,
    run,
    running_secure_pair,
)

TAKEN = "CRL for client certificates"
SESSIONS = "/redfish/v1/SessionService/Sessions"
REFUSED = "client certificate lets nobody in"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecurePair]:
    """Yield a pair whose proxy lets in certificates of its own agent's CA."""
    directory = tmp_path_factory.mktemp("revocation")
    with running_secure_pair(directory, "--client-ca", str(own_root(directory))) as running:
        running.proxy.wait_for(TAKEN)
        yield running


def test_revoked_certificate_logs_nobody_in(pair: SecurePair) -> None:
    """200 before; 401 after `certs revoke`, on a new connection and on one that is open, without anybody asking."""
    client = own_client(pair)
    with client.connection(pair) as connection:
        assert (status_on(connection), pair.curl(ADMINISTRATORS, *client.options).status) == (200, 200)

        revoke_own(pair, client)
        pair.proxy.wait_for(TAKEN)

        assert status_on(connection) == 401
    answer = pair.curl(ADMINISTRATORS, *client.options)
    assert (answer.status, answer.json["Code"]) == (401, "auth.certificate_revoked")
    logged = pair.proxy.wait_for(REFUSED)
    assert logged["serial"] == client.serial
    assert (logged["subject"], logged["reason"]) == ("CN=root", "it is revoked")


def test_revoked_certificate_in_every_dialect(pair: SecurePair) -> None:
    """401 auth.certificate_revoked in the shape of the path's family, with the challenge that a 401 has."""
    client = own_client(pair)
    revoke_own(pair, client)
    pair.proxy.wait_for(TAKEN)

    xyz = pair.post(SIGN_CSR, {"data": ["x"]}, *client.options)
    ibm = pair.curl(ADMINISTRATORS, *client.options)
    redfish = pair.curl("/redfish/v1/AccountService/Accounts", *client.options)
    assert xyz.json["data"]["code"] == ibm.json["Code"] == "auth.certificate_revoked"
    [message] = redfish.json["error"]["@Message.ExtendedInfo"]
    assert "auth.certificate_revoked" in json.dumps(message)
    assert {each.status for each in (xyz, ibm, redfish)} == {401}
    assert all("www-authenticate" in each.headers for each in (xyz, ibm, redfish))


def test_other_credentials_beside_a_revoked_certificate(pair: SecurePair) -> None:
    """A password or token beside it lets in by itself, a wrong one gets its own answer, and a stale token is none."""
    client = own_client(pair)
    token = pair.token()
    revoke_own(pair, client)
    pair.proxy.wait_for(TAKEN)

    def code(*options: str) -> tuple[int, str]:
        answer = pair.curl(ADMINISTRATORS, *client.options, *options)
        return answer.status, answer.json.get("Code", "")

    assert code(*basic()) == code(*token) == (200, "")
    assert code("--user", "root:wrong-password", "--interface", "127.0.0.9") == (401, "auth.failed")
    assert code("-H", "X-Auth-Token: stale") == (401, "auth.certificate_revoked")
    # Where nobody needs to be known it does not matter, so that a client can log in.
    login = {"UserName": "root", "Password": PASSWORDS["root"]}
    assert pair.post("/redfish/v1/SessionService/Sessions", login, *client.options).status == 201


def test_certificate_on_hold_lets_in_again_once_released(pair: SecurePair) -> None:
    """On hold is as good as revoked; a release counts as soon."""
    client = own_client(pair)
    with client.connection(pair) as connection:
        revoke_own(pair, client, "certificateHold")
        pair.proxy.wait_for(TAKEN)
        assert status_on(connection) == 401

        words = ["certs", "release", client.serial.zfill(34), "--state-dir", str(pair.agent_state)]
        assert run("vmi-agent", *words).returncode == 0
        pair.proxy.wait_for(TAKEN)
        assert status_on(connection) == 200


def test_certificate_revoked_while_its_body_comes(pair: SecurePair) -> None:
    """Who was let in by the head and was revoked before the body ends gets 401, and nothing is signed."""
    client = own_client(pair)
    body = json.dumps({"CsrString": pem(make_csr())}).encode()
    with client.connection(pair) as connection:
        connection.putrequest("POST", IBM_SIGN_CSR)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body[:10])
        revoke_own(pair, client)
        pair.proxy.wait_for(TAKEN)
        connection.send(body[10:])
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["Code"]) == (401, "auth.certificate_revoked")


def test_revocation_holds_in_every_worker(tmp_path: Path) -> None:
    """With three workers, connections to all of them are refused once all have the new CRL."""
    workers = 3
    with (
        running_secure_pair(tmp_path, "--client-ca", str(own_root(tmp_path)), "--workers", str(workers)) as pair,
        ExitStack() as stack,
    ):
        wait_for_all_workers(pair.proxy, workers, revoked=0)
        client = own_client(pair)
        connections = [stack.enter_context(client.connection(pair)) for _ in range(24)]
        assert {status_on(each) for each in connections} == {200}

        revoke_own(pair, client)
        wait_for_all_workers(pair.proxy, workers, revoked=1)
        assert {status_on(each) for each in connections} == {401}
        assert {pair.curl(ADMINISTRATORS, *client.options).status for _ in range(12)} == {401}
        # Each of them was met.
        workers_met = {json.loads(line)["worker"] for line in pair.proxy.lines if REFUSED in line}
        assert workers_met == set(range(1, workers + 1))


def wait_for_all_workers(proxy: Process, workers: int, revoked: int) -> None:
    """Wait until each worker has taken a CRL with so many entries."""

    def have_taken() -> set[int]:
        events = [json.loads(line) for line in list(proxy.lines) if TAKEN in line]
        return {each["worker"] for each in events if each["revoked"] == revoked}

    while len(have_taken()) < workers:
        proxy.wait_for(TAKEN)


def test_own_root_that_is_added_while_the_proxy_runs(tmp_path: Path) -> None:
    """After SIGHUP with our own root in --client-ca its CRL is fetched, and what is on it logs nobody in."""
    root = own_root(tmp_path)
    cas = tmp_path / "cas.pem"
    cas.write_bytes(ClientCa(tmp_path / "other").certificate.read_bytes())
    with running_secure_pair(tmp_path, "--client-ca", str(cas)) as pair:
        client, revoked = own_client(pair), own_client(pair)
        revoke_own(pair, revoked)
        pair.proxy.wait_for("agent has news")
        assert not any(TAKEN in line for line in pair.proxy.lines)

        cas.write_bytes(cas.read_bytes() + root.read_bytes())
        pair.proxy.send_signal(signal.SIGHUP)
        pair.proxy.wait_for(TAKEN, revoked=1)
        found = [pair.curl(ADMINISTRATORS, *each.options).status for each in (client, revoked)]
        assert found == [200, 401]


# What is known without an agent


def test_restart_without_agent_keeps_what_was_revoked(tmp_path: Path) -> None:
    """A proxy that starts while no agent is there knows its agents' CAs and their last CRL from its state directory."""
    options = ["--client-ca", str(own_root(tmp_path))]
    with running_secure_pair(tmp_path, *options) as pair:
        pair.proxy.wait_for(TAKEN)
        good, bad = own_client(pair), own_client(pair)
        revoke_own(pair, bad)
        pair.proxy.wait_for(TAKEN)
        assert pair.proxy.stop() == 0
        assert pair.agent.stop() == 0
        with proxy_alone(pair, *options) as alone:
            assert [alone.curl(SESSIONS, *each.options).status for each in (good, bad)] == [200, 401]


def test_first_start_without_agent_lets_no_certificate_in(tmp_path: Path) -> None:
    """Where no agent ever said which CAs are its own, no certificate is trusted unrevoked; passwords let in."""
    options = ["--client-ca", str(own_root(tmp_path))]
    with running_secure_pair(tmp_path, *options) as pair:
        pair.proxy.wait_for(TAKEN)
        client = own_client(pair)
        assert pair.proxy.stop() == 0
        assert pair.agent.stop() == 0
        for each in pair.proxy_state.glob("own-*"):
            each.unlink()
        with proxy_alone(pair, *options) as alone:
            refused = alone.curl(SESSIONS, *client.options)
            assert (refused.status, refused.json["error"]["@Message.ExtendedInfo"][0]["Message"]) == (
                401,
                "The client certificate is not accepted: no agent has said yet whether its CA is one of its own."
                " Log in with a password or token.",
            )
            assert alone.curl(SESSIONS, *client.options, *basic()).status == 200


def test_stored_crl_that_is_missing_lets_no_certificate_in(tmp_path: Path) -> None:
    """A CA that is known as the agents' own lets nobody in while there is no CRL of it."""
    options = ["--client-ca", str(own_root(tmp_path))]
    with running_secure_pair(tmp_path, *options) as pair:
        pair.proxy.wait_for(TAKEN)
        client = own_client(pair)
        assert pair.proxy.stop() == 0
        assert pair.agent.stop() == 0
        for each in pair.proxy_state.glob("own-*.crl"):
            each.write_bytes(b"broken")
        with proxy_alone(pair, *options) as alone:
            assert any("a stored CRL cannot be read" in line for line in alone.proxy.lines)
            assert alone.curl(SESSIONS, *client.options).status == 401
            assert alone.proxy.wait_for(REFUSED)["reason"] == "no CRL of its CA was received from an agent yet"


@contextmanager
def proxy_alone(pair: SecurePair, *options: str) -> Iterator[SecurePair]:
    """Run the pair's proxy again, with no agent there."""
    command = [
        "bmc-proxy",
        "serve",
        "--state-dir",
        str(pair.proxy_state),
        "--agent",
        f"tls:127.0.0.1:{pair.agent_port}",
    ]
    with Process(*command, "--https", "tcp:0:interface=127.0.0.1", *options) as proxy:
        url = f"https://127.0.0.1:{port_of(proxy.wait_for('ready')['https'])}"
        yield SecurePair(pair.agent, proxy, pair.directory, pair.agent_port, url, "")
