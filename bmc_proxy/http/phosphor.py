"""The phosphor-REST dialect: `/xyz`, the first design's route."""

from bmc_proxy.exchange import Exchange
from bmc_proxy.http.bodies import csr_of
from bmc_proxy.http.call import Call, Problem, Reply
from bmc_proxy.http.problems import reason

SIGN_CSR = "/xyz/openbmc_project/HMC/VMInterface/SignCSR"


class Phosphor:
    """Answers in phosphor-REST's shapes."""

    prefix = "/xyz/"

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.routes = {SIGN_CSR: {"POST": self._sign_csr}}

    def word(self, problem: Problem, request_id: str) -> Reply:
        """Return the problem as `{"data":{"description":…},"message":"<status> <reason>","status":"error"}`."""
        data = {"code": problem.code, "description": problem.text, "request_id": request_id}
        message = f"{problem.status} {reason(problem.status)}"
        return Reply(problem.status, {"data": data, "message": message, "status": "error"}, problem.headers)

    async def _sign_csr(self, call: Call) -> Reply:
        chain = await self._exchange.sign_csr(csr_of(call), call.requester, call.idempotency_key)
        return Reply(200, {"data": ["".join(chain)], "message": "200 OK", "status": "ok"})
