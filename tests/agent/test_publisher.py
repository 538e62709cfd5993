"""CRLs and OCSP through a real proxy: real sockets, an agent made in the test, curl, and clients that do not read."""

import socket
import ssl
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.chains import Link
from support.hostile_agents import fetched, hostile_agent, proxy_to
from support.process_figures import memory_octets
from support.processes import port_of

from bmc_proxy.pem import to_pem
from protocol.records import Chain

CRL = bytes(at % 251 for at in range(4_000_000))
READERS = 20
# Less than each of them having the CRL once.
READERS_OCTETS = 20_000_000
MALFORMED_REQUEST = bytes.fromhex("30030a0101")


def test_crl_and_ocsp_on_both_listeners(tmp_path: Path) -> None:
    """A CRL of some MB comes whole on either listener, without login, and is fetched from the agent once."""
    with hostile_agent(lambda _: None) as agent:
        agent.crl = CRL
        with proxy_to(agent, tmp_path) as (_, *urls):
            for url in urls:
                assert fetched(f"{url}/pki/1.crl") == CRL
                posting = ["--data-binary", "0", "-H", "Content-Type: application/ocsp-request"]
                assert fetched(f"{url}/pki/ocsp", *posting) == MALFORMED_REQUEST
                assert fetched(f"{url}/pki/ocsp/MAA=") == b"response to 0\0"
            assert sum(each.offset == 0 for each in agent.asked_for) == 1


def test_status_reaches_the_proxy(tmp_path: Path) -> None:
    """STATUS with another root has the root learned at once, and what was kept of the CRLs looked at again."""
    new_root = Link("new", "new", key=1, issuer_key=1).der()
    with hostile_agent(lambda _: None) as agent:
        agent.crl = b"old"
        with proxy_to(agent, tmp_path) as (proxy, url, _):
            assert fetched(f"{url}/pki/1.crl") == b"old"
            agent.crl, agent.crl_version, agent.chain = b"new", 2, Chain(2, (new_root,))
            agent.tell_status(2, 2)
            proxy.wait_for("root learned", root_generation=2)
            assert fetched(f"{url}/pki/2.crl") == b"new"
            assert fetched(f"{url}/pki/1.crl") == b"new"
    assert (tmp_path / "root.pem").read_text() == to_pem(new_root)


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
def test_clients_that_do_not_read(tmp_path: Path, is_tls: bool) -> None:
    """Clients that ask for a large CRL many times over and read nothing cost the proxy next to nothing."""
    requests = b"GET /pki/1.crl HTTP/1.1\r\nHost: bmc\r\n\r\n" * 100
    with hostile_agent(lambda _: None) as agent, ExitStack() as streams:
        agent.crl = CRL
        with proxy_to(agent, tmp_path) as (proxy, plain, https):
            assert fetched(f"{plain}/pki/1.crl") == CRL
            before = memory_octets(proxy)
            for _ in range(READERS):
                port = port_of(https if is_tls else plain)
                stream = streams.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
                if is_tls:
                    context = ssl.create_default_context()
                    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                    stream = streams.enter_context(context.wrap_socket(stream))
                stream.sendall(requests)
                assert stream.recv(12) == b"HTTP/1.1 200"
            assert fetched(f"{plain}/pki/1.crl") == CRL

            assert memory_octets(proxy) - before < READERS_OCTETS
