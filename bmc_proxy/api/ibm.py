"""The IBM dialect: `/ibm/v1`, as shipped firmware speaks it."""

from collections.abc import Mapping
from types import MappingProxyType

from bmc_proxy.api.csr_body import csr_of
from bmc_proxy.api.redfish.shapes import error_object
from bmc_proxy.api.types import CSR_BODY_LIMIT, Call, Problem, Reply, Route, Routes
from bmc_proxy.auth.principal import SIGNING
from bmc_proxy.signing import Exchange

SIGN_CSR = "/ibm/v1/Host/Actions/SignCSR"
ROOT = "/ibm/v1/Host/Certificate/root"

# The words that firmware ships, by status; clients may know them. `Message` beside them says what to change.
_DESCRIPTIONS = {503: "Host is not ready to serve the request", 500: "Internal Server Error"}
_BAD_CSR = "Bad CSR"


class Ibm:
    """Answers in shipped firmware's shapes."""

    prefixes = ("/ibm/v1/",)
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.routes: Routes = {
            SIGN_CSR: {"POST": Route(self._sign_csr, SIGNING, CSR_BODY_LIMIT, "csr.too_large")},
            ROOT: {"GET": Route(self._root, SIGNING)},
        }

    def word(self, problem: Problem, request_id: str) -> Reply:
        """Return the problem as `{"Description":…}`, or as a Redfish error object where the body could not be read.

        Code, message and request id stand beside it.
        """
        told = {"Code": problem.code, "Message": problem.text, "RequestId": request_id}
        if problem.in_body:
            return Reply(problem.status, {"error": error_object(problem), **told}, problem.headers)
        is_csr = problem.code.startswith("csr.")
        description = _BAD_CSR if is_csr else _DESCRIPTIONS.get(problem.status, problem.text)
        return Reply(problem.status, {"Description": description, **told}, problem.headers)

    async def _sign_csr(self, call: Call) -> Reply:
        csr = csr_of(call)
        chain = await self._exchange.sign_csr(csr, call.requester, call.idempotency_key, call.deadline)
        # The root has a route of its own.
        return Reply(200, {"Certificate": "".join(chain[:-1])})

    async def _root(self, call: Call) -> Reply:
        root = await self._exchange.root(call.deadline)
        return Reply(200, {"Certificate": root.pem}, {} if root.age_s is None else {"Age": str(root.age_s)})
