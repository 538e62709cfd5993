"""Redfish's AccountService: accounts and the roles they may have."""

from bmc_proxy.api.redfish.bodies import flag_in, properties_of, role_in, text_in
from bmc_proxy.api.redfish.shapes import ACCOUNT_SERVICE, ACCOUNTS, ROLES, collection, link, resource, success, tag_by
from bmc_proxy.api.types import Call, Reply, Route, Routes
from bmc_proxy.auth.account_service import Administration
from bmc_proxy.auth.accounts import Account, Privilege, Role
from bmc_proxy.auth.lockout import LOCK_AFTER, LOCK_S
from bmc_proxy.auth.passwords import MAX_LENGTH, MIN_LENGTH
from bmc_proxy.auth.principal import Caller
from bmc_proxy.errors import NothingThere, PropertyReadOnly, PropertyRefused

_USERS = frozenset({Privilege.CONFIGURE_USERS})
# What Redfish calls the parts of an account that a change can be refused for.
_PROPERTIES = {"name": "UserName", "password": "Password", "exists": "UserName"}


class AccountRoutes:
    """What is under /redfish/v1/AccountService."""

    def __init__(self, administration: Administration) -> None:
        self._administration = administration
        self.routes: Routes = {
            ACCOUNT_SERVICE: {"GET": Route(self._service)},
            ACCOUNTS: {"GET": Route(self._list), "POST": Route(self._create, _USERS, etag=tag_by(self._list))},
            f"{ACCOUNTS}/{{}}": {
                "GET": Route(self._get),
                "PATCH": Route(self._change, judge=_judge_change, etag=tag_by(self._get)),
                "DELETE": Route(self._delete, _USERS, etag=tag_by(self._get)),
            },
            ROLES: {"GET": Route(_list_roles)},
            f"{ROLES}/{{}}": {"GET": Route(_get_role)},
        }

    async def _service(self, _call: Call) -> Reply:
        return resource(
            ACCOUNT_SERVICE,
            "#AccountService.v1_11_0.AccountService",
            "AccountService",
            "Account Service",
            {
                "ServiceEnabled": True,
                "AccountLockoutThreshold": LOCK_AFTER,
                "AccountLockoutDuration": int(LOCK_S),
                "AccountLockoutCounterResetAfter": int(LOCK_S),
                "MinPasswordLength": MIN_LENGTH,
                "MaxPasswordLength": MAX_LENGTH,
                "Accounts": link(ACCOUNTS),
                "Roles": link(ROLES),
            },
        )

    async def _list(self, call: Call) -> Reply:
        accounts = self._administration.accounts_for(call.known_caller)
        return collection(ACCOUNTS, "ManagerAccount", "Accounts Collection", [account.name for account in accounts])

    async def _create(self, call: Call) -> Reply:
        given = properties_of(call.body, ("UserName", "Password", "RoleId", "Enabled"))
        name = text_in(given, "UserName")
        wants_password = "Password" in given or self._administration.has_passwords
        password = text_in(given, "Password") if wants_password else None
        role = role_in(given)
        if role is None:
            raise PropertyRefused("RoleId", f"Give RoleId: one of {', '.join(role.value for role in Role)}.")
        enabled = flag_in(given, "Enabled") is not False
        try:
            account = await self._administration.add_account(call.known_caller, name, password, role, enabled)
        except (PropertyRefused, PropertyReadOnly) as error:
            raise _in_redfish(error) from error
        return await self._account(account, 201, {"Location": f"{ACCOUNTS}/{account.name}"})

    async def _get(self, call: Call) -> Reply:
        return await self._account(self._administration.account_for(call.known_caller, call.argument))

    async def _change(self, call: Call) -> Reply:
        given = properties_of(call.body, ("Password", "RoleId", "Enabled", "Locked"))
        if not given:
            raise PropertyRefused("", "Give what is to change: Password, RoleId, Enabled or Locked.")
        if "Locked" in given and flag_in(given, "Locked") is not False:
            raise PropertyRefused("Locked", "Locked can only be set to false. To shut an account out: Enabled.")
        try:
            account = await self._administration.change_account(
                call.known_caller,
                call.argument,
                password=text_in(given, "Password") if "Password" in given else None,
                role=role_in(given),
                enabled=flag_in(given, "Enabled"),
                unlock="Locked" in given,
                versions=call.preconditions.versions,
            )
        except (PropertyRefused, PropertyReadOnly) as error:
            raise _in_redfish(error) from error
        return await self._account(account)

    async def _delete(self, call: Call) -> Reply:
        try:
            await self._administration.remove_account(call.known_caller, call.argument, call.preconditions.versions)
        except PropertyRefused as error:
            raise _in_redfish(error) from error
        return success()

    async def _account(self, account: Account, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
        is_locked = await self._administration.is_locked(account.name)
        return resource(
            f"{ACCOUNTS}/{account.name}",
            "#ManagerAccount.v1_9_0.ManagerAccount",
            account.name,
            "User Account",
            {
                "UserName": account.name,
                "Password": None,
                "RoleId": account.role.value,
                "Enabled": account.enabled,
                "Locked": is_locked,
                "AccountTypes": ["Redfish"],
                "Links": {"Role": link(f"{ROLES}/{account.role.value}")},
            },
            status=status,
            headers=headers,
            etag=f'"{account.version(is_locked=is_locked)}"',
        )


def _judge_change(caller: Caller, name: str) -> None:
    """One's own account may be changed, as far as `Administration` lets it; another one by an Administrator alone."""
    if caller.user != name:
        caller.must_have(_USERS)


async def _list_roles(_call: Call) -> Reply:
    return collection(ROLES, "Role", "Roles Collection", [role.value for role in Role])


async def _get_role(call: Call) -> Reply:
    try:
        role = Role(call.argument)
    except ValueError as error:
        raise NothingThere from error
    properties = {
        "RoleId": role.value,
        "IsPredefined": True,
        "AssignedPrivileges": [privilege.value for privilege in Privilege if privilege in role.privileges],
    }
    return resource(f"{ROLES}/{role.value}", "#Role.v1_3_1.Role", role.value, "User Role", properties)


def _in_redfish(error: PropertyRefused | PropertyReadOnly) -> PropertyRefused | PropertyReadOnly:
    """Return the refusal in Redfish's words."""
    if isinstance(error, PropertyReadOnly):
        return PropertyReadOnly(_PROPERTIES.get(error.name, ""), error.text)
    return PropertyRefused(_PROPERTIES.get(error.name, ""), error.text, error.exists)
