"""A proxy under faults, and its Redfish clients."""

import http.client
import json
from pathlib import Path

from bmc_proxy.auth.accounts import AccountStore
from support.faults import Faults, ForkedProcess
from support.processes import Process, account

SESSIONS = "/redfish/v1/SessionService/Sessions"


def state_with_accounts(directory: Path) -> Path:
    """Return a proxy's state directory with two accounts."""
    directory.mkdir(mode=0o700)
    for name in ("root", "oper"):
        AccountStore(directory).add(account(name))
    return directory


def start(state: Path, agent_port: int, faults: Faults | None, *options: str) -> Process:
    """Start a proxy."""
    command = ["bmc-proxy", "serve", "--state-dir", str(state), "--agent", f"tcp:127.0.0.1:{agent_port}", *options]
    return faults.start(*command) if faults else ForkedProcess(*command)


def ask_redfish(port: int, path: str, body: dict[str, str], token: str = "") -> http.client.HTTPResponse:
    """POST over plain HTTP; return the answer, read already."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json"} | ({"X-Auth-Token": token} if token else {})
    try:
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        answer.read()
    finally:
        connection.close()
    return answer


def log_in(port: int, name: str, password: str) -> str | None:
    """Return a session's token, or None where the login is refused."""
    answer = ask_redfish(port, SESSIONS, {"UserName": name, "Password": password})
    return answer.headers["X-Auth-Token"] if answer.status == 201 else None
