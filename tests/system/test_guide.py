"""docs/ca.md is true: its commands, in its order, on what `make run` runs, do what it says."""

import json
import re
from pathlib import Path

from support.documents import Running, block, code_blocks
from support.judges import assert_openssl_accepts
from support.processes import run
from support.softhsm import soft_token

GUIDE = Path(__file__).parents[2] / "docs" / "ca.md"
BLOCKS = code_blocks(GUIDE.read_text(encoding="utf-8"))


def guide(beginning: str) -> str:
    """Return the guide's one code block that begins so."""
    return block(beginning, BLOCKS)


def test_guide_look_up_and_revoke(running: Running) -> None:
    """A certificate is listed, put on hold, released, revoked; CRL and OCSP say so through the proxy."""
    running.sh(block("openssl req"))
    listed = guide("vmi-agent certs list")
    serial = running.sh(listed.splitlines()[0]).split()[0]
    assert f'"serial": "{serial}"' in running.sh(listed.splitlines()[1])
    assert running.sh(listed.splitlines()[2]).startswith("-----BEGIN CERTIFICATE-----")

    done = running.sh(guide("vmi-agent certs revoke").replace("SERIAL", serial))

    [key] = re.findall(r"key blocked: ([0-9a-f]{64})", done.splitlines()[1])
    assert done.splitlines() == [
        f"revoked: {serial} (certificateHold)",
        f"key blocked: {key}",
        f"released: {serial}",
        f"revoked: {serial} (keyCompromise)",
        f"key blocked: {key}",
    ]
    running.wait_for_crl_with(serial)
    looked_at = running.sh(guide("curl -sf").replace("SERIAL", serial))
    assert f"Serial Number: {serial.upper()}" in looked_at
    assert f"0x{serial}: revoked" in looked_at


def test_guide_blocked_keys(running: Running) -> None:
    """A key is blocked by its CSR, listed under the hash that openssl prints, refused, and unblocked."""
    ask = block("openssl req")
    running.sh(ask)
    blocking, listing, unblocking = guide("vmi-agent keys block").splitlines()
    [blocked] = re.findall(r"blocked: ([0-9a-f]{64})", running.sh(blocking))
    assert "  by hand  laptop stolen" in running.sh(listing)
    running.sh("openssl req -in hmc.csr -noout -pubkey -out hmc.pub")
    assert blocked in running.sh(guide("openssl pkey -pubin"))
    assert json.loads(running.sh(ask.partition("\n")[2]))["data"]["code"] == "csr.blocked_key"
    assert running.sh(unblocking.replace("HASH", blocked)) == f"unblocked: {blocked}\n"
    assert isinstance(json.loads(running.sh(ask.partition("\n")[2]))["data"], list)


def test_guide_audit_rotation_encryption_and_backup(running: Running) -> None:
    """The audit verifies, the CA rotates, its keys are encrypted, and a backup is restored."""
    running.sh(block("openssl req"))

    verified, *tail = running.sh(guide("vmi-agent audit verify")).splitlines()
    rotated = running.sh(guide("vmi-agent ca rotate"))
    encrypted = running.sh(guide("umask 077"))
    restored = running.sh(guide("vmi-agent ca show"))

    assert re.fullmatch(r"audit verified: \d+ rows, head [0-9a-f]{64}", verified)
    assert any("  signed  " in line for line in tail)
    exported = (running.directory / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["event"] for line in exported} >= {"ca made", "started", "signing", "signed"}
    assert rotated.startswith("CA rotated: CN=VMI Root CA 2")
    assert encrypted == "key files written anew: 2\n"
    for generation in (1, 2):
        key = running.directory / "var" / "vmi-agent" / "ca" / str(generation) / "key.pem"
        assert key.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert restored.splitlines()[-1].startswith("restored: ")
    assert "signed by: CN=VMI Root CA 2" in restored
    assert "revocations written: 0" in restored
    restored_dir = str(running.directory / "var" / "restored")
    assert run("vmi-agent", "audit", "verify", "--state-dir", restored_dir).returncode == 0


def test_guide_a_ca_from_elsewhere(running: Running) -> None:
    """A root that openssl made is taken over; an issuing CA that it signed verifies under it."""
    assert "CA imported: CN=Our root,O=Example" in running.sh(guide("openssl req -x509"))
    assert "issuing CA installed: CN=VMI issuing CA" in running.sh(guide("vmi-agent ca csr"))

    shown = run("vmi-agent", "ca", "show", "--json", "--state-dir", str(running.directory / "var" / "issuing"))
    ca = json.loads(shown.stdout)
    assert ca["certificate"] == (running.directory / "our.pem").read_text()
    assert ca["issuing"][0]["certificate"] == (running.directory / "issuing.pem").read_text()
    verify = "openssl verify -x509_strict -CAfile our.pem issuing.pem"
    assert running.sh(verify).endswith("issuing.pem: OK\n")


def test_guide_a_key_in_a_token(tmp_path: Path) -> None:
    """The command makes a CA whose key is in the token, with the label, module and PIN of the test's own."""
    with soft_token(tmp_path, "guide") as token:
        pin_file = tmp_path / "pin"
        pin_file.write_text(token.token.pin)
        pin_file.chmod(0o600)
        words = guide("vmi-agent ca init").replace("\\\n", " ").split()
        for written, meant in (
            ("/usr/lib/softhsm/libsofthsm2.so", str(token.token.module)),
            ("DIR", str(tmp_path / "state")),
            ("vmi", "guide"),
            ("PIN_FILE", str(pin_file)),
        ):
            words[words.index(written)] = meant

        done = run(*words)

    assert done.stdout.startswith("CA made: ")
    ca_dir = tmp_path / "state" / "ca" / "1"
    assert sorted(each.name for each in ca_dir.iterdir()) == ["key.uri", "root.pem"]
    assert token.token.pin not in (ca_dir / "key.uri").read_text()


def test_guide_rotation_gives_new_chains(running: Running) -> None:
    """After the guide's rotation the same request gets a certificate that verifies under the new root."""
    first = json.loads(running.sh(block("openssl req")))["data"][0]
    running.sh(guide("vmi-agent ca rotate"))
    running.wait_for_root_other_than(first)
    ask = block("openssl req").partition("\n")[2]
    second = json.loads(running.sh(ask))["data"][0]

    assert second != first
    assert_openssl_accepts(second, running.directory)
