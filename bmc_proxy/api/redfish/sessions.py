"""Redfish's SessionService: logging in and out, and who is logged in."""

from bmc_proxy.api.redfish.bodies import properties_of, text_in
from bmc_proxy.api.redfish.shapes import SESSION_SERVICE, SESSIONS, collection, link, resource, success, tag_by
from bmc_proxy.api.types import Call, Reply, Route, Routes
from bmc_proxy.auth.authenticator import Access
from bmc_proxy.auth.sessions import Session
from bmc_proxy.errors import PropertyRefused


class SessionRoutes:
    """What is under /redfish/v1/SessionService."""

    def __init__(self, access: Access) -> None:
        self._access = access
        members = {"GET": Route(self._list), "POST": Route(self._create, needs=None)}
        self.routes: Routes = {
            SESSION_SERVICE: {"GET": Route(self._service)},
            SESSIONS: members,
            f"{SESSIONS}/Members": members,
            f"{SESSIONS}/{{}}": {"GET": Route(self._get), "DELETE": Route(self._delete, etag=tag_by(self._get))},
        }

    async def _service(self, _call: Call) -> Reply:
        return resource(
            SESSION_SERVICE,
            "#SessionService.v1_1_8.SessionService",
            "SessionService",
            "Session Service",
            {
                "ServiceEnabled": True,
                "SessionTimeout": int(self._access.session_idle_s),
                "Sessions": link(SESSIONS),
            },
        )

    async def _list(self, call: Call) -> Reply:
        sessions = self._access.sessions_for(call.known_caller)
        return collection(SESSIONS, "Session", "Session Collection", [session.id for session in sessions])

    async def _create(self, call: Call) -> Reply:
        given = properties_of(call.body, ("UserName", "Password", "Token", "Context"))
        for name in ("Token", "Context"):
            # Clients of other firmware send these with nothing in them. There is neither a second factor here nor a
            # place for a context, and a login does not pass for one that had them.
            if given.get(name) not in (None, ""):
                raise PropertyRefused(name, f"{name} has no effect here. Leave it out.")
        user, password = text_in(given, "UserName"), text_in(given, "Password")
        session, token = await self._access.log_in(user, password, call.address)
        headers = {"Location": f"{SESSIONS}/{session.id}", "X-Auth-Token": token}
        return _session(session, 201, headers)

    async def _get(self, call: Call) -> Reply:
        return _session(self._access.session_for(call.known_caller, call.argument))

    async def _delete(self, call: Call) -> Reply:
        await self._access.end_session(call.known_caller, call.argument)
        return success()


def _session(session: Session, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    return resource(
        f"{SESSIONS}/{session.id}",
        "#Session.v1_5_0.Session",
        session.id,
        "User Session",
        {"UserName": session.user, "Password": None, "ClientOriginIPAddress": session.address},
        status=status,
        headers=headers,
    )
