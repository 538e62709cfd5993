"""Run agent and proxy on loopback, as `make run` does: start both, print the curl to paste, stop both on a signal.

Ends with status 0 where both processes did, with 1 where one of them ended by itself.
"""

import argparse
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import FrameType

# For development only: it is in the README.
DEVELOPMENT_USER, DEVELOPMENT_PASSWORD = "root", "0penBmc"
START_S = 30.0
STOP_S = 15.0
POLL_S = 0.1

TRY_IT = """
Both are ready. In another shell:

  openssl req -new -newkey rsa:2048 -nodes -keyout hmc.key -out hmc.csr -subj "/O=IBM/CN=hmc1"
  curl -c cjar -k -X POST -H "Content-Type: application/json" \\
    -d "{{\\"data\\":[CsrString:\\"$(cat hmc.csr)\\"]  }}" \\
    http://127.0.0.1:{http_port}/xyz/openbmc_project/HMC/VMInterface/SignCSR

The same with login: https://127.0.0.1:{https_port}, development account root, password {password}
  (add --user root:{password} to the curl).

Ctrl-C stops both.
"""


# No proxy for loopback, whatever the environment says.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class _Stopped(Exception):
    """A signal asked to stop."""


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise _Stopped


def _start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    # In a session of their own: Ctrl-C in a terminal reaches this script alone, which then stops both in order.
    return subprocess.Popen([Path(sys.executable).parent / program, *arguments], start_new_session=True)


def _add_account(state_dir: str) -> bool:
    """Make the development account where there is none."""
    account = [str(Path(sys.executable).parent / "bmc-proxy"), "account"]
    state = ["--state-dir", state_dir]
    listed = subprocess.run([*account, "list", *state, "--json"], stdout=subprocess.PIPE, check=False)
    if listed.returncode == 0 and any(row["name"] == DEVELOPMENT_USER for row in json.loads(listed.stdout)):
        return True
    add = [*account, "add", DEVELOPMENT_USER, *state, "--role", "Administrator", "--password-stdin"]
    done = subprocess.run(add, input=DEVELOPMENT_PASSWORD, text=True, stdout=subprocess.DEVNULL, check=False)
    return done.returncode == 0


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def _root_comes_from_the_agent(port: int) -> bool:
    root = f"http://127.0.0.1:{port}/ibm/v1/Host/Certificate/root"
    try:
        with _OPENER.open(root, timeout=5) as answer:
            return "Age" not in answer.headers
    except OSError:
        return False


def _wait_until(condition: Callable[[int], bool], port: int, processes: list[subprocess.Popen[bytes]]) -> bool:
    """Return True once the condition holds; False where a process ended first, or after `START_S`."""
    give_up_at = time.monotonic() + START_S
    while not condition(port):
        if any(process.poll() is not None for process in processes):
            return False
        if time.monotonic() > give_up_at:
            print(f"Not ready after {START_S:.0f} s.", file=sys.stderr)
            return False
        time.sleep(POLL_S)
    return True


def main() -> int:
    """Run both until a signal; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--agent-port", type=int, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--https-port", type=int, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    agent_port, http_port, https_port = options.agent_port, options.http_port, options.https_port
    proxy_state = str(options.state_dir / "bmc-proxy")
    agent = ["--state-dir", str(options.state_dir / "vmi-agent"), "--listen", f"tcp:{agent_port}:interface=127.0.0.1"]
    agent += ["--publish-at", f"http://127.0.0.1:{http_port}/pki"]
    proxy = ["--state-dir", proxy_state, "--agent", f"tcp:127.0.0.1:{agent_port}"]
    proxy += ["--http", f"tcp:{http_port}:interface=127.0.0.1", "--anonymous-loopback"]
    proxy += ["--https", f"tcp:{https_port}:interface=127.0.0.1"]
    for port, name in ((agent_port, "AGENT_PORT"), (http_port, "HTTP_PORT"), (https_port, "HTTPS_PORT")):
        if _listens(port):
            print(f"Port {port} is taken. Choose another: make run {name}=…", file=sys.stderr)
            return 1
    if not _add_account(proxy_state):
        return 1
    processes: list[subprocess.Popen[bytes]] = []
    asked_to_stop = False
    try:
        processes.append(_start("vmi-agent", "serve", *agent))
        if _wait_until(_listens, agent_port, processes):
            processes.append(_start("bmc-proxy", "serve", *proxy))
            if _wait_until(_root_comes_from_the_agent, http_port, processes):
                print(
                    TRY_IT.format(http_port=http_port, https_port=https_port, password=DEVELOPMENT_PASSWORD), flush=True
                )
                while all(process.poll() is None for process in processes):
                    time.sleep(POLL_S)
    except _Stopped:
        asked_to_stop = True
    for process in processes:
        if process.poll() is not None:
            print(f"{Path(str(process.args[0])).name} ended with status {process.returncode}.", file=sys.stderr)  # type: ignore[index]
    # A second signal does not stop the stopping.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for process in reversed(processes):  # the proxy first: it still wants answers
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return int(not asked_to_stop or any(process.returncode for process in processes))


if __name__ == "__main__":
    sys.exit(main())
