"""The Redfish dialect (DMTF DSP0266): service root, sessions, accounts and roles, and nothing of the machine itself."""

from collections.abc import Mapping
from types import MappingProxyType

from bmc_proxy.api.redfish.accounts import AccountRoutes
from bmc_proxy.api.redfish.sessions import SessionRoutes
from bmc_proxy.api.redfish.shapes import ACCOUNT_SERVICE, ROOT, SESSION_SERVICE, SESSIONS, error_object, link, resource
from bmc_proxy.api.types import Call, Problem, Reply, Route, Routes
from bmc_proxy.auth.account_service import Administration
from bmc_proxy.auth.authenticator import Access


class Redfish:
    """Answers in Redfish's shapes.

    Args:
        access: who asks, and who is logged in.
        administration: of accounts.
        service_uuid: names this service for good (RFC 9562).
    """

    prefixes = ("/redfish",)
    headers: Mapping[str, str] = MappingProxyType({"OData-Version": "4.0"})

    def __init__(self, access: Access, administration: Administration, service_uuid: str) -> None:
        self._service_uuid = service_uuid
        routes: dict[str, Mapping[str, Route]] = {
            "/redfish": {"GET": Route(_versions, needs=None)},
            ROOT: {"GET": Route(self._root, needs=None)},
            f"{ROOT}/odata": {"GET": Route(_odata, needs=None)},
            **SessionRoutes(access).routes,
            **AccountRoutes(administration).routes,
        }
        # Found with and without a trailing slash (DSP0266, 6.5).
        self.routes: Routes = routes | {path + "/": methods for path, methods in routes.items()}

    def word(self, problem: Problem, request_id: str) -> Reply:
        """Return the problem as a Redfish error object; code and request id stand under its message's `Oem`."""
        return Reply(problem.status, {"error": error_object(problem, request_id)}, problem.headers)

    async def _root(self, _call: Call) -> Reply:
        return resource(
            ROOT + "/",
            "#ServiceRoot.v1_15_0.ServiceRoot",
            "RootService",
            "VMI Certificate Exchange",
            {
                "RedfishVersion": "1.17.0",
                "UUID": self._service_uuid,
                "SessionService": link(SESSION_SERVICE),
                "AccountService": link(ACCOUNT_SERVICE),
                "Links": {"Sessions": link(SESSIONS)},
            },
        )


async def _versions(_call: Call) -> Reply:
    return Reply(200, {"v1": ROOT + "/"})


async def _odata(_call: Call) -> Reply:
    services = {"Service": ROOT + "/", "SessionService": SESSION_SERVICE, "AccountService": ACCOUNT_SERVICE}
    value = [{"name": name, "kind": "Singleton", "url": url} for name, url in services.items()]
    return Reply(200, {"@odata.context": f"{ROOT}/$metadata", "value": value})
