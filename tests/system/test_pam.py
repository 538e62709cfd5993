"""Passwords that the machine's PAM checks: the real libpam, with pam_wrapper's own service and user files."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.needs import need_library
from support.processes import Answer, Process, add_account, curl, port_of, post, run
from support.run_log import secret

PASSWORD = secret("pam-password")


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[tuple[Process, str]]:
    """Yield a proxy whose checker is PAM, and its URL. PAM knows alice and bob; accounts are alice and carol."""
    matrix = need_library("pam_wrapper/pam_matrix.so", "libpam-wrapper")
    users, services, libraries = tmp_path / "users", tmp_path / "services", tmp_path / "libraries"
    # The wrapper is found where libpam is looked for, and loads the real one.
    libraries.mkdir()
    (libraries / "libpam.so.0").symlink_to(need_library("libpam_wrapper.so", "libpam-wrapper"))
    users.write_text(f"alice:{PASSWORD}:bmc-proxy\nbob:{PASSWORD}:bmc-proxy\n")
    services.mkdir()
    lines = [f"{kind} required {matrix} passdb={users}\n" for kind in ("auth", "account", "password", "session")]
    (services / "bmc-proxy").write_text("".join(lines))
    state = tmp_path / "state"
    add_account(state, "alice", "Administrator")
    add_account(state, "carol", "Administrator", "carols-password")
    command = ["bmc-proxy", "serve", "--state-dir", str(state), "--agent", "tcp:127.0.0.1:1", "--checker", "pam"]
    environment = {"LD_LIBRARY_PATH": str(libraries), "PAM_WRAPPER": "1", "PAM_WRAPPER_SERVICE_DIR": str(services)}
    with Process(*command, "--http", "tcp:0:interface=127.0.0.1", **environment) as running:
        yield running, f"http://127.0.0.1:{port_of(running.wait_for('ready')['http'])}"


def test_password_is_pams(proxy: tuple[Process, str]) -> None:
    """A user of PAM's with an account is let in, in its role; a wrong password, and a user without account, are not."""
    process, url = proxy

    def log_in(user: str, password: str) -> int:
        return post(url + "/login", json.dumps({"data": [user, password]})).status

    assert log_in("alice", PASSWORD) == 200
    assert log_in("alice", "another-password") == 401
    assert log_in("bob", PASSWORD) == 401
    assert log_in("carol", "carols-password") == 401
    assert log_in("alice\0", PASSWORD) == 401
    assert curl(url + "/redfish/v1/AccountService", "--user", f"alice:{PASSWORD}").status == 200
    assert process.stop() == 0


def test_password_over_redfish_is_refused(proxy: tuple[Process, str]) -> None:
    """Nobody is told that a password was set which is never asked for; what else an account has can be changed."""
    process, url = proxy
    accounts = url + "/redfish/v1/AccountService/Accounts"
    known = ["--user", f"alice:{PASSWORD}"]

    def send(method: str, path: str, body: object) -> Answer:
        return post(accounts + path, json.dumps(body), "-X", method, *known)

    change = {"Password": secret("another-password"), "Enabled": True}
    new = {"UserName": "bob", "RoleId": "ReadOnly"}
    for refused in (send("PATCH", "/alice", change), send("POST", "", new | {"Password": secret("a-password")})):
        [told] = refused.json["error"]["@Message.ExtendedInfo"]
        assert refused.status == 400
        assert told["MessageId"].endswith(".PropertyNotWritable")
        assert told["RelatedProperties"] == ["/Password"]
        assert told["Oem"]["VmiCertificateExchange"]["Code"] == "account.not_writable"
    assert curl(accounts, *known).json["Members@odata.count"] == 2

    assert send("POST", "", new).status == 201
    assert send("PATCH", "/bob", {"RoleId": "Operator"}).json["RoleId"] == "Operator"
    assert curl(accounts + "/bob", "--user", f"bob:{PASSWORD}").status == 200
    assert process.stop() == 0


@pytest.mark.parametrize("command", ["add", "set-password"])
def test_password_by_command_is_refused_where_pam_is_configured(tmp_path: Path, command: str) -> None:
    """The commands know the checker from the same file or environment that `serve` has it from."""
    add_account(tmp_path, "alice", "ReadOnly")
    config = tmp_path / "proxy.toml"
    config.write_text('checker = "pam"\n')
    name, *role = {"add": ["carol", "--role", "ReadOnly"], "set-password": ["alice"]}[command]
    words = ["bmc-proxy", "account", command, name, *role, "--state-dir", str(tmp_path), "--config", str(config)]
    before = (tmp_path / "accounts.json").read_bytes()

    done = run(*words, "--password-stdin", stdin=secret("some-password") + "\n")
    assert done.returncode == 2
    assert "--checker pam: passwords are PAM's" in done.stderr
    assert (tmp_path / "accounts.json").read_bytes() == before
    if command == "add":
        assert run(*words, "--no-password").returncode == 0
