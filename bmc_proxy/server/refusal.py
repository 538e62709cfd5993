"""The answer to octets that are no request: in the words of the dialect whose path they name, if they name one."""

import json

from bmc_proxy.api.router import Router
from bmc_proxy.api.types import Problem
from bmc_proxy.http1.request_head import Head
from bmc_proxy.http1.request_target import path_of
from bmc_proxy.http1.response_head import answer_head


def refusal(router: Router, head: Head | None, problem: Problem, request_id: str) -> bytes:
    """Return the answer to what is no request; the connection ends with it.

    Args:
        head: as much of it as could be read.
    """
    path = None if head is None else path_of(head.method, head.target)
    dialect = router.dialect_for(path or b"")
    reply = dialect.word(problem, request_id)
    body = json.dumps(reply.body, separators=(",", ":")).encode()
    headers = {**dialect.headers, **reply.headers}
    return answer_head(b"HTTP/1.1", reply.status, request_id, len(body), headers, closes=True) + body
