"""An agent that is held up while it signs."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

from protocol.records import Answer
from support.agents import Agent, always, request
from support.csrs import make_csr
from support.sharing import WaitingKey, with_key

CSR = make_csr()


@contextmanager
def while_signing(agent: Agent, csr: bytes = CSR, **options: Any) -> Iterator[tuple[WaitingKey, Future[Answer]]]:
    """Ask an agent whose key has not signed yet when the `with` begins; it does at its end, if not before."""
    key: WaitingKey = with_key(agent, WaitingKey)
    with ThreadPoolExecutor(1) as pool:
        digest = sha256(csr).digest()
        asked = pool.submit(lambda: agent.sign(request(csr, **options), digest, always).answer)
        try:
            assert key.asked.wait(60)
            yield key, asked
        finally:
            key.may_sign.set()
