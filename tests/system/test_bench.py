"""What of `make bench` writes into a ledger of ours; the rest needs a machine to itself."""

import json
import subprocess
import sys
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import NameOID
from support import csrs
from support.processes import SIGN_CSR, post, run, running_pair

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_filled_ledger(tmp_path: Path) -> None:
    """A ledger that was filled with copies is one that the agent's own commands take: audit, list, and pages."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hmc0000000.example")])
    with running_pair(tmp_path) as pair:
        csr = csrs.pem(csrs.make_csr(subject=name))
        assert post(pair.url + SIGN_CSR, json.dumps({"data": [csr]})).status == 200
        assert pair.agent.stop() == 0
    command = [sys.executable, str(BENCHMARKS / "ledger_filling.py"), str(pair.agent_state), "1500"]
    subprocess.run(command, check=True)

    verified = run("vmi-agent", "audit", "verify", "--state-dir", str(pair.agent_state))
    listed = run("vmi-agent", "certs", "list", "--state-dir", str(pair.agent_state)).stdout.splitlines()
    found = run("vmi-agent", "certs", "list", "--state-dir", str(pair.agent_state), "--subject", "hmc0001499")

    assert verified.returncode == 0, verified.stderr
    assert len(listed) == 1501
    assert len(found.stdout.splitlines()) == 1
