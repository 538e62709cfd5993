"""Properties of a Redfish request's body, each judged for its type before anything is done with it."""

from collections.abc import Collection
from typing import Any

from bmc_proxy.api.csr_body import json_object
from bmc_proxy.auth.accounts import Role
from bmc_proxy.errors import PropertyRefused


def properties_of(body: bytes, known: Collection[str]) -> dict[str, Any]:
    """Return a body's properties. Raises BodyMalformed, or PropertyRefused for one that is not known."""
    found = json_object(body)
    for name in found:
        if name not in known:
            # The name is the client's own text, so what is told is what there is instead.
            raise PropertyRefused("", f"There is a property that cannot be set here. Known: {', '.join(known)}.")
    return found


def text_in(properties: dict[str, Any], name: str) -> str:
    """Return a property that must be there and a string."""
    value = properties.get(name)
    if not isinstance(value, str):
        raise PropertyRefused(name, f"Give {name}, as a string.")
    return value


def flag_in(properties: dict[str, Any], name: str) -> bool | None:
    """Return a property that must be a boolean where it is there."""
    if name not in properties:
        return None
    value = properties[name]
    if not isinstance(value, bool):
        raise PropertyRefused(name, f"{name} is true or false.")
    return value


def role_in(properties: dict[str, Any]) -> Role | None:
    """Return the role that RoleId names where it is there."""
    if "RoleId" not in properties:
        return None
    try:
        return Role(properties["RoleId"])
    except ValueError as error:
        raise PropertyRefused("RoleId", f"RoleId is one of {', '.join(role.value for role in Role)}.") from error
