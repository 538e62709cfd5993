"""`--client-crl` a file that goes back to an earlier CRL, a worker that begins beside a broken one."""

import os
import signal
from pathlib import Path

import pytest
from support.client_cas import ADMINISTRATORS, ClientCa, status_on
from support.processes import running_secure_pair
from support.worker_clients import lines_of

UNUSABLE = "a client CRL cannot be used: a CA without CRL lets nobody in until it is mended and reloaded"


@pytest.mark.parametrize("order", [(1, 2), (2, 1)], ids=["later", "earlier"])
def test_crl_is_exchanged_for_an_earlier_or_a_later_one(tmp_path: Path, order: tuple[int, int]) -> None:
    """After SIGHUP the later of two CRLs counts, whichever came first, and the log says where a file goes back."""
    ca = ClientCa(tmp_path / "ca")
    client = ca.client("root")
    crls = {1: ca.crl(tmp_path / "1.pem").read_bytes()}
    ca.revoke(client)
    crls[2] = ca.crl(tmp_path / "2.pem").read_bytes()
    path = tmp_path / "crl.pem"
    path.write_bytes(crls[order[0]])
    options = ("--client-ca", str(ca.certificate), "--client-crl", str(path))
    with running_secure_pair(tmp_path, *options) as pair:
        assert pair.curl(ADMINISTRATORS, *client.options).status == (200 if order[0] == 1 else 401)
        path.write_bytes(crls[order[1]])
        pair.proxy.send_signal(signal.SIGHUP)
        pair.proxy.wait_for("reloaded", what="client CRLs")
        answer = pair.curl(ADMINISTRATORS, *client.options)
        assert (answer.status, answer.json["Code"]) == (401, "auth.certificate_revoked")
        goes_back = [line for line in lines_of(pair.proxy) if "client CRL is earlier" in line["event"]]
        assert [(line["number"], line["last_number"]) for line in goes_back] == ([(1, 2)] if order == (2, 1) else [])


def test_worker_that_is_replaced_beside_a_broken_crl(tmp_path: Path) -> None:
    """It serves; of the CAs without a CRL that can be read it lets nobody in, until the file is mended."""
    ca, other = ClientCa(tmp_path / "ca"), ClientCa(tmp_path / "other", "Another CA")
    (tmp_path / "crls").mkdir()
    crl = ca.crl(tmp_path / "crls" / "ca.pem")
    other.crl(tmp_path / "crls" / "other.pem")
    both = tmp_path / "both.pem"
    both.write_text(ca.certificate.read_text() + other.certificate.read_text())
    options = ("--client-ca", str(both), "--client-crl", str(tmp_path / "crls"))
    client, others_client = ca.client("root"), other.client("root")
    with running_secure_pair(tmp_path, *options, "--workers", "2") as pair:
        whole = crl.read_bytes()
        crl.write_text("nonsense")
        pids = {line["worker"]: line["pid"] for line in lines_of(pair.proxy) if line["event"] == "worker ready"}
        for number, pid in pids.items():
            os.kill(pid, signal.SIGKILL)
            logged = pair.proxy.wait_for(UNUSABLE, worker=number)
            assert str(crl) in logged["reason"]
            pair.proxy.wait_for("worker ready", worker=number)
        with client.connection(pair) as refused, others_client.connection(pair) as let_in:
            assert (status_on(refused), status_on(let_in)) == (401, 200)
            crl.write_bytes(whole)
            pair.proxy.send_signal(signal.SIGHUP)
            for _ in pids:
                pair.proxy.wait_for("reloaded", what="client CRLs")
            assert (status_on(refused), status_on(let_in)) == (200, 200)
        assert not any("cannot start" in line for line in pair.proxy.lines)
