"""The IBM dialect: `/ibm/v1`, as shipped firmware speaks it."""

from bmc_proxy.exchange import Exchange
from bmc_proxy.http.bodies import csr_of
from bmc_proxy.http.call import Call, Problem, Reply

SIGN_CSR = "/ibm/v1/Host/Actions/SignCSR"
ROOT = "/ibm/v1/Host/Certificate/root"

# The words that firmware ships, by status; clients may know them. `Message` beside them says what to change.
_DESCRIPTIONS = {503: "Host is not ready to serve the request", 500: "Internal Server Error"}
_BAD_CSR = "Bad CSR"


class Ibm:
    """Answers in shipped firmware's shapes."""

    prefix = "/ibm/v1/"

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.routes = {SIGN_CSR: {"POST": self._sign_csr}, ROOT: {"GET": self._root}}

    def word(self, problem: Problem, request_id: str) -> Reply:
        """Return the problem as `{"Description":…}`, or as a Redfish error object where the body could not be read.

        Code, message and request id stand beside it.
        """
        told = {"Code": problem.code, "Message": problem.text, "RequestId": request_id}
        if problem.in_body:
            return Reply(problem.status, {"error": _redfish_error(problem.text), **told}, problem.headers)
        is_csr = problem.code.startswith("csr.")
        description = _BAD_CSR if is_csr else _DESCRIPTIONS.get(problem.status, problem.text)
        return Reply(problem.status, {"Description": description, **told}, problem.headers)

    async def _sign_csr(self, call: Call) -> Reply:
        chain = await self._exchange.sign_csr(csr_of(call), call.requester, call.idempotency_key)
        # The root has a route of its own.
        return Reply(200, {"Certificate": "".join(chain[:-1])})

    async def _root(self, call: Call) -> Reply:
        root = await self._exchange.root()
        return Reply(200, {"Certificate": root.pem}, {} if root.age_s is None else {"Age": str(root.age_s)})


def _redfish_error(text: str) -> dict[str, object]:
    """Return a Redfish error object (DSP0266, 8.6)."""
    message_id = "Base.1.13.0.GeneralError"
    resolution = "Correct the request body and send the request again."
    information = {
        "@odata.type": "#Message.v1_1_1.Message",
        "MessageId": message_id,
        "Message": text,
        "MessageArgs": [],
        "MessageSeverity": "Critical",
        "Resolution": resolution,
    }
    return {"code": message_id, "message": text, "@Message.ExtendedInfo": [information]}
