"""Real processes whose clock is wrong, and then right: openssl, curl and this machine's own clock judge."""

import json
import socket
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from support.csrs import openssl_csr
from support.faketime import EPOCH, MovableClock, accept_clock, attime, run_at, wrong_clock
from support.judges import assert_openssl_accepts, split_chain
from support.needs import need
from support.processes import (
    PASSWORDS,
    SIGN_CSR,
    Answer,
    Process,
    add_account,
    curl,
    port_of,
    post,
    run,
    start_agent,
    start_proxy,
)

from runtime.build_date import BUILD_DATE

TLS = "tls:0:interface=127.0.0.1"
HTTPS = ("--https", "tcp:0:interface=127.0.0.1")


def agent_process(
    state_dir: Path, *options: str, listen: str = "tcp:0:interface=127.0.0.1", **variables: str
) -> Process:
    """Start an agent with an environment."""
    return Process("vmi-agent", "serve", "--state-dir", str(state_dir), "--listen", listen, *options, **variables)


def proxy_process(state_dir: Path, agent: str, *options: str, **variables: str) -> Process:
    """Start a proxy with an environment."""
    command = ["bmc-proxy", "serve", "--state-dir", str(state_dir), "--agent", agent]
    command += ["--http", "tcp:0:interface=127.0.0.1", "--anonymous-loopback"]
    return Process(*command, *options, **variables)


@contextmanager
def proxy_of(agent: Process, directory: Path) -> Iterator[str]:
    """Run a proxy by the right clock; yield its URL."""
    with start_proxy(directory / "proxy", agent.wait_for("ready")["listen"]) as proxy:
        port = port_of(proxy.wait_for("ready")["http"])
        proxy.wait_for("agent connected")
        yield f"http://127.0.0.1:{port}"


def sign(url: str, csr: Path, *options: str) -> Answer:
    """Send a CSR as an HMC does."""
    return post(url + SIGN_CSR, json.dumps({"data": [csr.read_text()]}), *options)


def certificate_at(port: int) -> x509.Certificate:
    """Return the certificate that a new connection is shown."""
    return x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port)).encode())


def is_valid(certificate: x509.Certificate) -> bool:
    """Return whether a certificate is valid by this machine's clock."""
    return certificate.not_valid_before_utc <= datetime.now(UTC) <= certificate.not_valid_after_utc


def fetch(url: str, path: Path) -> Path:
    """Have curl write what it gets, octet for octet; return the path."""
    subprocess.run([need("curl"), "--silent", "--fail", "--max-time", "60", "--output", str(path), url], check=True)
    return path


def answered(tls: ssl.SSLSocket) -> bool:
    """Return whether a connection that is open gets an answer."""
    tls.sendall(b"HEAD /redfish/v1/ HTTP/1.1\r\nHost: bmc\r\n\r\n")
    return tls.recv(4096).startswith(b"HTTP/1.1 200 ")


def verdict(*arguments: str) -> str:
    """Return what openssl verify says, whatever its verdict."""
    done = subprocess.run([need("openssl"), "verify", *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.parametrize("ahead", ["+20m", "+40d"])
def test_retry_of_what_was_signed_by_a_clock_ahead(tmp_path: Path, ahead: str) -> None:
    """Once the clock is accepted the HMC's retry, by CSR or by Idempotency-Key, gets a certificate that is valid."""
    state, csr = tmp_path / "agent", openssl_csr(tmp_path, "p256")
    assert run("vmi-agent", "ca", "init", "--state-dir", str(state)).returncode == 0
    requests: list[Sequence[str]] = [(), ("-H", "Idempotency-Key: hmc1-2026-11-28")]
    with agent_process(state, **wrong_clock(ahead)) as agent, proxy_of(agent, tmp_path) as url:
        for options in requests:
            leaf = split_chain(sign(url, csr, *options).json["data"][0])[0]
            assert not is_valid(x509.load_pem_x509_certificate(leaf.encode()))
        assert agent.stop() == 0
    with start_agent(state) as agent:
        assert agent.wait() == 1
        assert "vmi-agent audit accept-clock" in "".join(agent.lines)
    accept_clock(state)
    with start_agent(state) as agent, proxy_of(agent, tmp_path) as url:
        chains = [sign(url, csr, *options).json["data"][0] for options in requests]
    for chain in chains:
        assert_openssl_accepts(chain, tmp_path)
    assert chains[0] == chains[1]  # one and the same: a retry makes no second one
    verified = run("vmi-agent", "audit", "verify", "--state-dir", str(state))
    assert verified.returncode == 0, verified.stderr


def test_ca_that_was_made_by_a_clock_ahead(tmp_path: Path) -> None:
    """With the right clock it signs nothing; log and `ca show` name `ca rotate`, upon which the agent signs."""
    state, csr = tmp_path / "agent", openssl_csr(tmp_path, "p256")
    with agent_process(state, **wrong_clock("+40d")) as agent:
        agent.wait_for("ready")
        assert agent.stop() == 0
    accept_clock(state)
    show = ["vmi-agent", "ca", "show", "--state-dir", str(state), "--json"]
    assert "vmi-agent ca rotate" in json.loads(run(*show).stdout)["status"]
    with start_agent(state) as agent, proxy_of(agent, tmp_path) as url:
        refused = sign(url, csr)
        root = curl(url + "/ibm/v1/Host/Certificate/root")
        crl = curl(url + "/pki/1.crl")
        rotated = run("vmi-agent", "ca", "rotate", "--state-dir", str(state))
        agent.wait_for("CA rotated")
        signed = sign(url, csr)
    told = [json.loads(line) for line in agent.lines]
    (at_start,) = (each for each in told if each["event"] == "CA is not valid, nothing is signed")
    assert "vmi-agent ca rotate" in at_start["reason"]
    assert refused.status == root.status == 502
    assert refused.json["data"]["code"] == "agent.failed"
    assert crl.status == 404
    assert rotated.returncode == 0, rotated.stderr
    assert_openssl_accepts(signed.json["data"][0], tmp_path)
    assert json.loads(run(*show).stdout)["status"] == "valid"


def test_clock_that_jumps_while_the_agent_runs(tmp_path: Path) -> None:
    """Forth and back: a retry gets a valid certificate, the CRL of the future is replaced, and its number rises."""
    state, csr, clock = tmp_path / "agent", openssl_csr(tmp_path, "p256"), MovableClock(tmp_path)
    assert run("vmi-agent", "ca", "init", "--state-dir", str(state)).returncode == 0
    with agent_process(state, **clock.variables) as agent:
        numbers = [agent.wait_for("CRL made")["crl_number"]]
        with proxy_of(agent, tmp_path) as url:
            clock.move(timedelta(days=40))
            numbers.append(agent.wait_for("CRL made")["crl_number"])
            future = split_chain(sign(url, csr).json["data"][0])[0]
            clock.move(timedelta(0))
            numbers.append(agent.wait_for("CRL made")["crl_number"])
            chain = sign(url, csr).json["data"][0]
            crl = fetch(url + "/pki/1.crl", tmp_path / "1.crl")
        assert agent.stop() == 0
    assert not is_valid(x509.load_pem_x509_certificate(future.encode()))
    assert_openssl_accepts(chain, tmp_path)
    assert numbers == sorted(set(numbers))
    published = x509.load_der_x509_crl(crl.read_bytes())
    assert published.last_update_utc < datetime.now(UTC)
    number = published.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    assert number == numbers[-1]


def test_verifier_whose_clock_is_slow(tmp_path: Path) -> None:
    """After a revocation a verifier that is up to five minutes slow takes the CRL, and knows who is revoked."""
    state = tmp_path / "agent"
    with start_agent(state) as agent, proxy_of(agent, tmp_path) as url:
        leaves = []
        for name in ("good", "revoked"):
            csr = openssl_csr(tmp_path, "p256", subject=f"/CN={name}")
            chain = split_chain(sign(url, csr).json["data"][0])
            (tmp_path / f"{name}.pem").write_text(chain[0])
            leaves.append(x509.load_pem_x509_certificate(chain[0].encode()))
        (tmp_path / "root.pem").write_text(chain[-1])
        serial = f"{leaves[1].serial_number:034x}"
        revoked = run("vmi-agent", "certs", "revoke", "--state-dir", str(state), serial)
        revoked_at = datetime.now(UTC)
        assert revoked.returncode == 0, revoked.stderr
        agent.wait_for("CRL made")
        crl = fetch(url + "/pki/1.crl", tmp_path / "1.crl")
    judge = ["-crl_check", "-CAfile", str(tmp_path / "root.pem"), "-CRLfile", str(crl)]
    for slow_s in (0, 30, 290):
        at = attime(revoked_at - timedelta(seconds=slow_s))
        assert verdict(*judge, *at, str(tmp_path / "good.pem")).endswith("good.pem: OK\n")
        assert "error 23 at 0 depth lookup: certificate revoked" in verdict(*judge, *at, str(tmp_path / "revoked.pem"))
    too_slow = attime(revoked_at - timedelta(minutes=6))
    assert "error 11" in verdict(*judge, *too_slow, str(tmp_path / "good.pem"))


# The proxy's own certificate


def test_https_certificate_that_was_made_by_a_clock_ahead(tmp_path: Path) -> None:
    """The next start makes another one, which curl accepts."""
    with proxy_process(tmp_path / "proxy", "unix:/nowhere", *HTTPS, **wrong_clock("+40d")) as proxy:
        assert not is_valid(certificate_at(port_of(proxy.wait_for("ready")["https"])))
        assert proxy.stop() == 0
    with proxy_process(tmp_path / "proxy", "unix:/nowhere", *HTTPS) as proxy:
        port = port_of(proxy.wait_for("ready")["https"])
        assert is_valid(certificate_at(port))
        trust = ["--cacert", str(tmp_path / "proxy" / "https.pem")]
        assert curl(f"https://127.0.0.1:{port}/redfish/v1/", *trust).status == 200


@pytest.mark.parametrize("workers", [1, 2])
def test_https_certificate_is_renewed_while_the_proxy_runs(tmp_path: Path, workers: int) -> None:
    """Before its end, and where it was made by a clock ahead; new connections see it, open ones stay."""
    clock, own = MovableClock(tmp_path), tmp_path / "proxy" / "https.pem"
    options = [*HTTPS, "--workers", str(workers)]
    with proxy_process(tmp_path / "proxy", "unix:/nowhere", *options, **clock.variables) as proxy:
        port = port_of(proxy.wait_for("ready")["https"])
        context = ssl.create_default_context(cafile=str(own))
        with (
            socket.create_connection(("127.0.0.1", port), timeout=30) as stream,
            context.wrap_socket(stream, server_hostname="127.0.0.1") as tls,
        ):
            shown = [certificate_at(port)]
            assert answered(tls)
            for days in (340, 0):
                clock.move(timedelta(days=days))
                reloaded: set[object] = set()
                while reloaded != ({None} if workers == 1 else {None, 1, 2}):
                    reloaded.add(proxy.wait_for("reloaded", what="https").get("worker"))
                shown.append(certificate_at(port))
                assert answered(tls)
        assert curl(f"https://127.0.0.1:{port}/redfish/v1/", "--cacert", str(own)).status == 200
        assert proxy.stop() == 0
    assert len({each.serial_number for each in shown}) == 3
    assert is_valid(shown[0])
    assert not is_valid(shown[1])
    assert is_valid(shown[2])


def test_session_and_root_while_the_clock_jumps(tmp_path: Path) -> None:
    """A session lives by what passes: no jump ends it, or keeps it; nor does a root look old."""
    clock = MovableClock(tmp_path)
    add_account(tmp_path / "proxy", "root", "Administrator", PASSWORDS["root"])
    with (
        start_agent(tmp_path / "agent") as agent,
        proxy_process(tmp_path / "proxy", agent.wait_for("ready")["listen"][0], *HTTPS, **clock.variables) as proxy,
    ):
        ready = proxy.wait_for("ready")
        proxy.wait_for("root learned")
        https, http = (port_of(ready[name]) for name in ("https", "http"))
        body = json.dumps({"UserName": "root", "Password": PASSWORDS["root"]})
        base = f"https://127.0.0.1:{https}/redfish/v1"
        opened = post(f"{base}/SessionService/Sessions", body, "--insecure")
        token = ["-H", f"X-Auth-Token: {opened.headers['x-auth-token']}", "--insecure"]
        assert agent.stop() == 0
        proxy.wait_for("agent lost")
        for days in (40, -10, 0):
            clock.move(timedelta(days=days))
            assert curl(f"{base}/AccountService/Accounts", *token).status == 200
            root = curl(f"http://127.0.0.1:{http}/ibm/v1/Host/Certificate/root")
            assert 0 <= int(root.headers["age"]) < 3600


# The channel's certificates


def test_channel_credentials_that_were_made_by_a_clock_ahead(tmp_path: Path) -> None:
    """Neither side takes the other's; both logs say what to do, and once it is done they are connected."""
    state, proxy_file = tmp_path / "agent", tmp_path / "proxy" / "channel.pem"
    init = ["vmi-agent", "channel", "init", "--state-dir", str(state)]
    hand_over = ["vmi-agent", "channel", "hand-over", "--state-dir", str(state), "--to", str(proxy_file)]
    assert run_at("+40d", *init).returncode == 0
    assert run(*hand_over).returncode == 0
    with agent_process(state, listen=TLS) as agent:
        at = agent.wait_for("certificate is not valid yet", what="channel")
        assert "vmi-agent channel init --replace" in at["advice"]
        listen = agent.wait_for("ready")["listen"][0]
        with proxy_process(tmp_path / "proxy", listen) as proxy:
            assert proxy.wait_for("certificate is not valid yet", what="channel")["advice"] == at["advice"]
            reason = proxy.wait_for("agent not there, trying on")["reason"]
            assert "certificate is not yet valid: compare the clocks" in reason
            assert "vmi-agent channel init --replace" in reason
            agent.wait_for("channel peer refused")
            assert run(*init, "--replace").returncode == 0
            assert run(*hand_over, "--replace").returncode == 0
            for process in (agent, proxy):
                process.send_signal(1)
                process.wait_for("reloaded", what="channel")
            proxy.wait_for("agent connected")


# A clock that cannot be right


@pytest.mark.parametrize(
    "command",
    [
        ["vmi-agent", "ca", "init"],
        ["vmi-agent", "ca", "rotate"],
        ["vmi-agent", "channel", "init"],
        ["vmi-agent", "serve", "--listen", "unix:/nowhere"],
        ["bmc-proxy", "serve", "--agent", "unix:/nowhere", *HTTPS],
    ],
    ids=lambda command: " ".join(command[:3]),
)
def test_clock_before_the_build(tmp_path: Path, command: list[str]) -> None:
    """Nothing is made, and one line says what to do."""
    state = tmp_path / "state"
    done = run_at(EPOCH, *command, "--state-dir", str(state))
    told = done.stdout + done.stderr
    assert done.returncode == 1
    assert "the clock says 1970-01-02" in told
    assert str(BUILD_DATE.date()) in told
    assert "--accept-clock" in told
    assert "Traceback" not in told
    assert not [*state.rglob("*.pem"), *state.rglob("ledger.sqlite")]


def test_clock_before_the_build_is_accepted(tmp_path: Path) -> None:
    """With --accept-clock all is made; with the right clock then the CA has not ended, and https.pem is made again."""
    state, proxy_state, accept = tmp_path / "agent", tmp_path / "proxy", "--accept-clock"
    for command in (["ca", "init"], ["ca", "rotate"], ["channel", "init"]):
        done = run_at(EPOCH, "vmi-agent", *command, "--state-dir", str(state), accept)
        assert done.returncode == 0, done.stderr
    with agent_process(state, accept, **wrong_clock(EPOCH)) as agent:
        listen = agent.wait_for("ready")["listen"][0]
        assert agent.stop() == 0
    with proxy_process(proxy_state, listen, *HTTPS, accept, **wrong_clock(EPOCH)) as proxy:
        assert not is_valid(certificate_at(port_of(proxy.wait_for("ready")["https"])))
        assert proxy.stop() == 0
    with proxy_process(proxy_state, listen, *HTTPS) as proxy:
        assert is_valid(certificate_at(port_of(proxy.wait_for("ready")["https"])))


@pytest.mark.parametrize("workers", [1, 2])
def test_proxy_that_has_a_certificate_serves_before_the_clock_is_right(tmp_path: Path, workers: int) -> None:
    """A BMC that gets its time from the network later serves meanwhile, and says what is wrong with its clock."""
    options = [*HTTPS, "--workers", str(workers)]
    with proxy_process(tmp_path / "proxy", "unix:/nowhere", *options) as proxy:
        made = certificate_at(port_of(proxy.wait_for("ready")["https"]))
        assert proxy.stop() == 0
    with proxy_process(tmp_path / "proxy", "unix:/nowhere", *options, **wrong_clock(EPOCH)) as proxy:
        assert "before this software was built" in proxy.wait_for("clock cannot be right")["reason"]
        port = port_of(proxy.wait_for("ready")["https"])
        assert certificate_at(port) == made
        trust = ["--cacert", str(tmp_path / "proxy" / "https.pem")]
        assert curl(f"https://127.0.0.1:{port}/redfish/v1/", *trust).status == 200
