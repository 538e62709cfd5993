"""The answer to octets that are no request: in the words of the dialect whose path they name, if they name one."""

import json

from bmc_proxy.http.answers import answer_head
from bmc_proxy.http.call import Problem
from bmc_proxy.http.heads import Head
from bmc_proxy.http.routes import Router
from bmc_proxy.http.targets import path_of


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
