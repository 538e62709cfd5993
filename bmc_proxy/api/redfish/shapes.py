"""What Redfish resources, collections and errors look like (DSP0266, 8 and 9)."""

import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from hashlib import sha256
from typing import Any

from bmc_proxy.api.types import Call, Handler, Problem, Reply

ROOT = "/redfish/v1"
SESSION_SERVICE = f"{ROOT}/SessionService"
SESSIONS = f"{SESSION_SERVICE}/Sessions"
ACCOUNT_SERVICE = f"{ROOT}/AccountService"
ACCOUNTS = f"{ACCOUNT_SERVICE}/Accounts"
ROLES = f"{ACCOUNT_SERVICE}/Roles"

_REGISTRY = "Base.1.13.0."
# From our codes to the messages of the DMTF's Base registry.
_MESSAGES = {
    "auth.required": "NoValidSession",
    "auth.certificate_revoked": "NoValidSession",
    "auth.failed": "ResourceAtUriUnauthorized",
    "auth.forbidden": "InsufficientPrivilege",
    "http.not_found": "ResourceMissingAtURI",
    "http.method_not_allowed": "OperationNotAllowed",
    "http.bad_body": "MalformedJSON",
    "http.precondition_failed": "PreconditionFailed",
    "account.not_writable": "PropertyNotWritable",
    "account.exists": "ResourceAlreadyExists",
    "account.invalid": "PropertyValueFormatError",
}


def link(path: str) -> dict[str, str]:
    """Return a reference to a resource."""
    return {"@odata.id": path}


def resource(
    path: str,
    odata_type: str,
    identifier: str,
    name: str,
    properties: Mapping[str, object],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    etag: str | None = None,
) -> Reply:
    """Return a resource with the properties that all of them have, and its ETag.

    Args:
        etag: for a resource that has more to it than is shown; by default it is made of what is shown.
    """
    body = {"@odata.id": path, "@odata.type": odata_type, "Id": identifier, "Name": name, **properties}
    return _tagged(status, body, etag or etag_of(body), headers or {})


def etag_of(body: Mapping[str, object]) -> str:
    """Return the strong ETag of a representation (RFC 9110, 8.8.3)."""
    return f'"{sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]}"'


def tag_by(get: Handler) -> Callable[[Call], Coroutine[Any, Any, str]]:
    """Return what finds the current ETag of a resource, given what answers a GET of it."""

    async def etag(call: Call) -> str:
        return (await get(call)).headers["ETag"]

    return etag


def _tagged(status: int, body: Mapping[str, object], etag: str, headers: Mapping[str, str]) -> Reply:
    """Return a reply that names the version of its body, in the header and as DSP0266, 7.5.4 has it in the body."""
    identifier = {"@odata.id": body["@odata.id"], "@odata.etag": etag}
    return Reply(status, {**identifier, **body}, {**headers, "ETag": etag})


def collection(path: str, kind: str, name: str, members: Iterable[str]) -> Reply:
    """Return a collection of the resources of these ids."""
    links = [link(f"{path}/{member}") for member in members]
    body = {
        "@odata.id": path,
        "@odata.type": f"#{kind}Collection.{kind}Collection",
        "Name": name,
        "Members@odata.count": len(links),
        "Members": links,
    }
    return _tagged(200, body, etag_of(body), {})


def success() -> Reply:
    """Return the answer to what leaves nothing to show."""
    text = "The request completed successfully."
    message = {
        "@odata.type": "#Message.v1_1_1.Message",
        "MessageId": _REGISTRY + "Success",
        "Message": text,
        "MessageArgs": [],
        "MessageSeverity": "OK",
        "Resolution": "None",
    }
    return Reply(200, {"@Message.ExtendedInfo": [message]})


def error_object(problem: Problem, request_id: str | None = None) -> dict[str, object]:
    """Return what stands under "error" (DSP0266, 8.6).

    Args:
        request_id: stands with the code under the message's `Oem`; None where the dialect has another place for them.
    """
    message_id = _REGISTRY + _MESSAGES.get(problem.code, "GeneralError")
    information: dict[str, object] = {
        "@odata.type": "#Message.v1_1_1.Message",
        "MessageId": message_id,
        "Message": problem.text,
        "MessageArgs": [],
        "MessageSeverity": "Critical" if problem.status >= 500 else "Warning",
        "Resolution": "Correct what the message names and send the request again.",
    }
    if problem.about is not None:
        information["RelatedProperties"] = [f"/{problem.about}"]
    if request_id is not None:
        information["Oem"] = {"VmiCertificateExchange": {"Code": problem.code, "RequestId": request_id}}
    return {"code": message_id, "message": problem.text, "@Message.ExtendedInfo": [information]}
