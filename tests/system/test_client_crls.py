"""`--client-crl` on the real proxy: CRLs that openssl made, exchanged, ended, forged, and those that are refused."""

import signal
import subprocess
from pathlib import Path

import pytest
from support.client_cas import ADMINISTRATORS, ClientCa, status_on
from support.judges import openssl
from support.processes import BIN, SecurePair, running_secure_pair

REFUSED = "client certificate lets nobody in"
PAST = ("-crl_lastupdate", "20260101000000Z", "-crl_nextupdate", "20260102000000Z")


@pytest.fixture
def ca(tmp_path: Path) -> ClientCa:
    """Return a CA for client certificates."""
    return ClientCa(tmp_path / "ca")


def options_for(ca: ClientCa, crl: Path) -> tuple[str, ...]:
    """Return the options that let the CA's certificates in as far as a CRL allows."""
    return "--client-ca", str(ca.certificate), "--client-crl", str(crl)


@pytest.mark.parametrize("form", ["pem", "der", "directory", "pem of two CAs"])
def test_crl_of_another_ca(tmp_path: Path, ca: ClientCa, form: str) -> None:
    """Who is on it gets 401 auth.certificate_revoked, who is not is let in; in each form that is taken."""
    good, bad = ca.client("root"), ca.client("oper")
    ca.revoke(bad)
    crl = ca.crl(tmp_path / "crl.pem")
    options = options_for(ca, crl)
    match form:
        case "der":
            openssl("crl", "-in", str(crl), "-outform", "DER", "-out", str(tmp_path / "crl.der"))
            options = options_for(ca, tmp_path / "crl.der")
        case "directory":
            (tmp_path / "crls").mkdir()
            (tmp_path / "crls" / ".hidden").write_text("no CRL")
            crl.rename(tmp_path / "crls" / "0")
            options = options_for(ca, tmp_path / "crls")
        case "pem of two CAs":
            other = ClientCa(tmp_path / "other", "Another CA")
            crl.write_text(other.crl(tmp_path / "other.pem").read_text() + "\n" + crl.read_text())
            both = tmp_path / "both.pem"
            both.write_text(ca.certificate.read_text() + other.certificate.read_text())
            options = ("--client-ca", str(both), "--client-crl", str(crl))
    with running_secure_pair(tmp_path, *options) as pair:
        answer = pair.curl("/redfish/v1/SessionService/Sessions", *bad.options)
        assert (answer.status, pair.curl(ADMINISTRATORS, *good.options).status) == (401, 200)
        assert "auth.certificate_revoked" in answer.body
        assert pair.proxy.wait_for(REFUSED, reason="it is revoked")["serial"] == bad.serial


def test_crl_is_exchanged_while_connections_are_open(tmp_path: Path, ca: ClientCa) -> None:
    """SIGHUP takes a new CRL, also for connections that are open; one that is forged or broken changes nothing."""
    client = ca.client("root")
    crl = ca.crl(tmp_path / "crl.pem")
    forger = ClientCa(tmp_path / "forger")
    with running_secure_pair(tmp_path, *options_for(ca, crl)) as pair, client.connection(pair) as connection:
        assert status_on(connection) == 200
        ca.revoke(client)
        for spoil, cause in (
            (lambda: forger.crl(crl), "does not verify with the key of its issuer"),
            (lambda: crl.write_text("nonsense"), "no CRL in DER or PEM"),
        ):
            spoil()
            reason = failed_reload(pair)
            assert (str(crl) in reason, cause in reason) == (True, True), reason
            assert status_on(connection) == 200

        ca.crl(crl)
        pair.proxy.send_signal(signal.SIGHUP)
        pair.proxy.wait_for("reloaded", what="client CRLs")
        assert status_on(connection) == 401


def failed_reload(pair: SecurePair) -> str:
    """Have the proxy read its files again; return why it did not take the CRLs."""
    pair.proxy.send_signal(signal.SIGHUP)
    return str(pair.proxy.wait_for("client CRLs not reloaded, the old ones stay")["reason"])


@pytest.mark.parametrize(("grace", "status"), [((), 401), (("--client-crl-grace-h", "8760"), 200)])
def test_crl_that_has_ended(tmp_path: Path, ca: ClientCa, grace: tuple[str, ...], status: int) -> None:
    """Its CA lets nobody in, unless there is grace; what is on it stays revoked either way, and the log says so."""
    good, bad = ca.client("root"), ca.client("oper")
    ca.revoke(bad)
    crl = ca.crl(tmp_path / "crl.pem", options=PAST)
    with running_secure_pair(tmp_path, *options_for(ca, crl), *grace) as pair:
        answer = pair.curl(ADMINISTRATORS, *good.options)
        assert answer.status == status
        if status == 401:
            assert answer.json["Code"] == "auth.required"
            assert "the CRL of its CA has ended" in answer.json["Message"]
            assert pair.proxy.wait_for(REFUSED)["reason"] == "the CRL of its CA has ended"
        assert pair.curl(ADMINISTRATORS, *bad.options).json["Code"] == "auth.certificate_revoked"
        assert any("a client CRL has ended" in line for line in pair.proxy.lines)


def test_crl_of_tomorrow_is_not_relied_on(tmp_path: Path, ca: ClientCa) -> None:
    """A CRL that was made while a clock was ahead, and would be current for too long, lets nobody in either."""
    client = ca.client("root")
    future = ("-crl_lastupdate", "20990101000000Z", "-crl_nextupdate", "20990102000000Z")
    with running_secure_pair(tmp_path, *options_for(ca, ca.crl(tmp_path / "crl.pem", options=future))) as pair:
        assert pair.curl(ADMINISTRATORS, *client.options).status == 401
        assert "not valid yet" in pair.proxy.wait_for(REFUSED)["reason"]


def test_ca_without_crl_is_named_at_start(tmp_path: Path, ca: ClientCa) -> None:
    """A CA that no CRL covers lets in, and the log says that its certificates cannot be revoked; another is silent."""
    other = ClientCa(tmp_path / "other", "Covered CA")
    both = tmp_path / "both.pem"
    both.write_text(ca.certificate.read_text() + other.certificate.read_text())
    options = ("--client-ca", str(both), "--client-crl", str(other.crl(tmp_path / "crl.pem")))
    with running_secure_pair(tmp_path, *options) as pair:
        event = "certificates of this client CA cannot be revoked: no --client-crl covers it"
        assert pair.proxy.wait_for(event)["ca"] == "CN=HMC CA"
        assert pair.curl(ADMINISTRATORS, *ca.client("root").options).status == 200
        assert not any("Covered CA" in line for line in pair.proxy.lines)


def test_certificate_that_names_no_account_is_logged(tmp_path: Path, ca: ClientCa) -> None:
    """It is passed over as before, and the log has its subject, serial and cause once for each connection."""
    client = ca.client("stranger")
    crl = ca.crl(tmp_path / "crl.pem")
    with running_secure_pair(tmp_path, *options_for(ca, crl)) as pair, client.connection(pair) as connection:
        assert [status_on(connection) for _ in range(3)] == [401, 401, 401]
        logged = pair.proxy.wait_for(REFUSED)
        assert (logged["subject"], logged["serial"]) == ("CN=stranger", client.serial)
        assert logged["reason"] == "it names no account that may log in"
        assert sum(REFUSED in line for line in pair.proxy.lines) == 1


def test_certificate_that_openssl_refuses_is_logged(tmp_path: Path, ca: ClientCa) -> None:
    """Subject and serial stand beside the cause where the handshake fails: ended, for servers, of an unknown CA."""
    unknown = ClientCa(tmp_path / "unknown", "Unknown CA")
    with running_secure_pair(tmp_path, *options_for(ca, ca.crl(tmp_path / "crl.pem"))) as pair:
        for client, cause in (
            (ca.client("root", days=-1), "has expired"),
            (ca.client("root", usage="serverAuth"), "for another purpose"),
            (unknown.client("root"), "not known here"),
        ):
            command = ["curl", "--silent", *pair.trust, *client.options, pair.url + ADMINISTRATORS]
            assert subprocess.run(command, capture_output=True, check=False).returncode != 0
            logged = pair.proxy.wait_for("TLS refused")
            assert cause in logged["reason"]
            assert (logged["subject"], logged["serial"]) == ("CN=root", client.serial)


@pytest.mark.parametrize(
    ("extensions", "cause"),
    [
        ("issuingDistributionPoint = critical, @idp\n[idp]\nindirectCRL = TRUE", "indirect CRL"),
        ("issuingDistributionPoint = critical, @idp\n[idp]\nonlyAA = TRUE", "a part of its issuer's certificates"),
        ("issuingDistributionPoint = critical, @idp\n[idp]\nonlyCA = TRUE", "a part of its issuer's certificates"),
        (
            "issuingDistributionPoint = critical, @idp\n[idp]\nonlysomereasons = keyCompromise",
            "a part of its issuer's certificates",
        ),
        (
            "issuingDistributionPoint = critical, @idp\n[idp]\nfullname = URI:http://a/b.crl",
            "a part of its issuer's certificates",
        ),
        ("2.5.29.27 = critical, ASN1:INTEGER:1", "delta CRL"),
        ("1.3.6.1.4.1.2.999 = critical, ASN1:NULL", "critical extension that is not known here: 1.3.6.1.4.1.2.999"),
    ],
)
def test_crl_of_a_kind_that_is_not_taken(tmp_path: Path, ca: ClientCa, extensions: str, cause: str) -> None:
    """The proxy does not start with a CRL that says less, or more, than it can make use of."""
    crl = ca.crl(tmp_path / "crl.pem", extensions=extensions)

    assert_not_started(tmp_path, options_for(ca, crl), cause)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("signed by another key", "does not verify with the key of its issuer in --client-ca"),
        ("of another issuer", "its issuer is not in --client-ca: CN=Another CA"),
        ("of a CA that may not sign CRLs", "does not allow cRLSign"),
        ("missing", "No such file"),
        ("empty directory", "no CRL in this directory"),
        ("certificate", "no CRL in PEM"),
        ("too large", "larger than 16777216 octets"),
        ("cut off", "cannot be read"),
    ],
)
def test_crl_that_cannot_be_relied_on(tmp_path: Path, ca: ClientCa, fault: str, cause: str) -> None:
    """The proxy does not start, and one line names the file and what is wrong with it."""
    crl = tmp_path / "crl.pem"
    match fault:
        case "signed by another key":
            ClientCa(tmp_path / "forger").crl(crl)
        case "of another issuer":
            ClientCa(tmp_path / "other", "Another CA").crl(crl)
        case "of a CA that may not sign CRLs":
            ca = ClientCa(tmp_path / "other", key_usage="keyCertSign")
            ca.crl(crl)
        case "empty directory":
            crl.mkdir()
        case "certificate":
            crl = ca.certificate
        case "too large":
            crl.write_bytes(ca.crl(crl).read_bytes() + bytes(16 * 1024 * 1024))
        case "cut off":
            openssl("crl", "-in", str(ca.crl(crl)), "-outform", "DER", "-out", str(tmp_path / "crl.der"))
            crl.write_bytes((tmp_path / "crl.der").read_bytes()[:-1])

    assert_not_started(tmp_path, options_for(ca, crl), cause)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_refusal_at_start_is_the_same_with_workers(tmp_path: Path, ca: ClientCa, workers: str) -> None:
    """The first process judges the CRL before any worker starts."""
    assert_not_started(tmp_path, (*options_for(ca, ca.certificate), "--workers", workers), "no CRL in PEM")


@pytest.mark.parametrize("option", [("--client-crl", "x.pem"), ("--client-crl-grace-h", "1")])
def test_crl_without_client_ca_is_refused(tmp_path: Path, option: tuple[str, ...]) -> None:
    """Exit status 2: there is nothing that such a CRL could say something about."""
    done = started(tmp_path, option)

    assert done.returncode == 2
    assert f"{option[0]} is refused without --client-ca" in done.stderr


def assert_not_started(directory: Path, options: tuple[str, ...], cause: str) -> None:
    """Start a proxy, which ends with this cause in one line."""
    done = started(directory, options)

    assert done.returncode == 1
    assert cause in done.stderr
    assert "Traceback" not in done.stderr
    assert "--client-crl" in done.stderr


def started(directory: Path, options: tuple[str, ...]) -> "subprocess.CompletedProcess[str]":
    """Run a proxy that ends by itself."""
    command = [str(BIN / "bmc-proxy"), "serve", "--state-dir", str(directory / "proxy")]
    command += ["--agent", "tcp:127.0.0.1:9", "--https", "tcp:0:interface=127.0.0.1", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
