"""The phosphor-REST dialect: `/xyz`, the first design's route, and `/login` and `/logout`."""

from collections.abc import Mapping
from types import MappingProxyType

from bmc_proxy.api.csr_body import csr_of, json_object
from bmc_proxy.api.errors import reason
from bmc_proxy.api.headers import login_cookies, logout_cookies
from bmc_proxy.api.types import CSR_BODY_LIMIT, Call, Problem, Reply, Route, Routes
from bmc_proxy.auth.authenticator import Access
from bmc_proxy.auth.principal import SIGNING
from bmc_proxy.errors import BodyMalformed
from bmc_proxy.signing import Exchange

SIGN_CSR = "/xyz/openbmc_project/HMC/VMInterface/SignCSR"

# The words that clients of this family know, by code; `resolution` beside them says what to change.
_DESCRIPTIONS = {
    "auth.required": "Login required",
    "auth.certificate_revoked": "Login required",
    "auth.failed": "Invalid username or password",
    "auth.forbidden": "Insufficient access",
}


class Phosphor:
    """Answers in phosphor-REST's shapes."""

    prefixes = ("/xyz/", "/login", "/logout")
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, exchange: Exchange, access: Access) -> None:
        self._exchange = exchange
        self._access = access
        self.routes: Routes = {
            SIGN_CSR: {"POST": Route(self._sign_csr, SIGNING, CSR_BODY_LIMIT, "csr.too_large")},
            "/login": {"POST": Route(self._log_in, needs=None)},
            "/logout": {"POST": Route(self._log_out)},
        }

    def word(self, problem: Problem, request_id: str) -> Reply:
        """Return the problem as `{"data":{"description":…},"message":"<status> <reason>","status":"error"}`."""
        data = {"code": problem.code, "description": problem.text, "request_id": request_id}
        if problem.code in _DESCRIPTIONS:
            data |= {"description": _DESCRIPTIONS[problem.code], "resolution": problem.text}
        message = f"{problem.status} {reason(problem.status)}"
        return Reply(problem.status, {"data": data, "message": message, "status": "error"}, problem.headers)

    async def _sign_csr(self, call: Call) -> Reply:
        csr = csr_of(call)
        chain = await self._exchange.sign_csr(csr, call.requester, call.idempotency_key, call.deadline)
        return _ok(["".join(chain)])

    async def _log_in(self, call: Call) -> Reply:
        is_phosphor, user, password = _user_and_password(call.body)
        session, token = await self._access.log_in(user, password, call.address)
        cookies = login_cookies(token, session.xsrf_token)
        if not is_phosphor:
            return Reply(200, {"token": token}, cookies=cookies)
        return _ok(f"User '{session.user}' logged in", cookies)

    async def _log_out(self, call: Call) -> Reply:
        caller = call.known_caller
        await self._access.log_out(caller)
        return _ok(f"User '{caller.user}' logged out", logout_cookies())


def _ok(data: object, cookies: tuple[str, ...] = ()) -> Reply:
    return Reply(200, {"data": data, "message": "200 OK", "status": "ok"}, cookies=cookies)


def _user_and_password(body: bytes) -> tuple[bool, str, str]:
    """Return whether a login comes in the phosphor form, and what it says."""
    match json_object(body):
        case {"data": [str(user), str(password)], **rest} if not rest:
            return True, user, password
        case {"username": str(user), "password": str(password), **rest} if not rest:
            return False, user, password
    raise BodyMalformed('Send {"data":["<user>","<password>"]} or {"username":"<user>","password":"<password>"}.')
