"""The PKI routes: what a certificate's CRL distribution point and authority information access name (RFC 5280, 4.2).

    GET /pki/{N}.crl             the CRL of root generation N, in DER (RFC 5280, 4.2.1.13)
    GET /pki/{N}.p7c             its CA certificates, certs-only CMS (RFC 5280, 4.2.2.1)
    POST /pki/ocsp               OCSP (RFC 6960, A.1); with a slash behind it as well
    GET /pki/ocsp/{base64}       the same, of a request in the path

Clients put a slash between the responder's address and the request, also where the address ends with one. So slashes
before the request are passed over: its base64 begins with the M of a SEQUENCE. Those inside are base64's own, whether
they are percent-encoded or not.

It is public data that carries its own signature, so nobody logs in and caches may keep it.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from bmc_proxy.api.types import Call, Problem, Reply, Route, Routes
from bmc_proxy.errors import AgentBusy, AgentFailed, AgentTimeout, AgentUnavailable, NothingThere
from bmc_proxy.pki_cache import Publications
from protocol.records import MAX_OCSP_REQUEST
from runtime.asn1.der import SEQUENCE, DerError, read
from runtime.limits.fair_queue import Path
from runtime.limits.networks import path_of

CACHED_AT_MOST_S = 3600
OCSP_REQUEST, OCSP_RESPONSE = "application/ocsp-request", "application/ocsp-response"
CONTENT_TYPES = {"crl": "application/pkix-crl", "p7c": "application/pkcs7-mime; smime-type=certs-only"}
# OCSPResponses without a response (RFC 6960, 4.2.1): only a status, unsigned.
MALFORMED_REQUEST, INTERNAL_ERROR, TRY_LATER = (bytes((0x30, 3, 0x0A, 1, status)) for status in (1, 2, 3))

_LARGEST_GENERATION = 2**63
_FILE = re.compile(r"([1-9][0-9]{0,18})\.(crl|p7c)")


class Pki:
    """Answers in DER, and with problems in plain JSON.

    Args:
        publications: what the agents publish.
        now: seconds since 1970-01-01 UTC.
    """

    prefixes = ("/pki/",)
    headers: Mapping[str, str] = MappingProxyType({})

    def __init__(self, publications: Publications, now: Callable[[], float]) -> None:
        self._publications = publications
        self._now = now
        posted = Route(self._posted, needs=None, body_limit=MAX_OCSP_REQUEST, content_type=OCSP_REQUEST)
        self.routes: Routes = {
            "/pki/{}": {"GET": Route(self._file, needs=None)},
            "/pki/ocsp": {"POST": posted},
            "/pki/ocsp/": {"POST": posted},
            "/pki/ocsp/{*}": {"GET": Route(self._in_path, needs=None)},
        }

    def word(self, problem: Problem, request_id: str) -> Reply:
        """Return the problem as `{"code":…,"message":…,"request_id":…}`."""
        body = {"code": problem.code, "message": problem.text, "request_id": request_id}
        return Reply(problem.status, body, problem.headers)

    async def _file(self, call: Call) -> Reply:
        match = _FILE.fullmatch(call.argument)
        if match is None or int(match[1]) > _LARGEST_GENERATION:
            raise NothingThere
        generation, kind = int(match[1]), match[2]
        publications = self._publications
        get = publications.crl if kind == "crl" else publications.ca_certificates
        found = await get(generation, _asker(call), call.deadline)
        headers = {
            "Content-Type": CONTENT_TYPES[kind],
            "Cache-Control": f"public, max-age={self._seconds_until(found.next_update)}",
            "ETag": f'"{found.version}"',
        }
        return Reply(200, found.der, headers)

    async def _posted(self, call: Call) -> Reply:
        der, _ = await self._ocsp(call, call.body)
        return Reply(200, der, {"Content-Type": OCSP_RESPONSE})

    async def _in_path(self, call: Call) -> Reply:
        try:
            request = base64.b64decode(call.argument.lstrip("/"), validate=True)
        except (binascii.Error, ValueError):
            request = b""
        der, expires = await self._ocsp(call, request)
        headers = {"Content-Type": OCSP_RESPONSE}
        if expires is not None:
            # RFC 5019, 6.2: whoever keeps it may not change it, and asks again when it is over.
            seconds = self._seconds_until(expires)
            headers["Cache-Control"] = f"public, max-age={seconds}, no-transform, must-revalidate"
        return Reply(200, der, headers)

    async def _ocsp(self, call: Call, request: bytes) -> tuple[bytes, float | None]:
        """Return an OCSPResponse, of what went wrong as well, and when it expires, where it may be kept."""
        if not _is_sequence(request) or len(request) > MAX_OCSP_REQUEST:
            call.told["ocsp"] = "malformedRequest"
            return MALFORMED_REQUEST, None
        try:
            response = await self._publications.ocsp(request, _asker(call), call.deadline)
        except (AgentUnavailable, AgentBusy, AgentTimeout):
            call.told["ocsp"] = "tryLater"
            return TRY_LATER, None
        except AgentFailed:
            call.told["ocsp"] = "internalError"
            return INTERNAL_ERROR, None
        return response.der, response.expires

    def _seconds_until(self, time: float | None) -> int:
        """Return how long caches may keep what is good until then."""
        return CACHED_AT_MOST_S if time is None else int(max(0.0, min(CACHED_AT_MOST_S, time - self._now())))


def _asker(call: Call) -> Path:
    """Return in which branches a request takes turns with others."""
    return (*path_of(call.address), call.connection)


def _is_sequence(request: bytes) -> bool:
    """Return whether a request is one whole SEQUENCE; what is in it the agent judges."""
    try:
        tag, _, end = read(request)
    except DerError:
        return False
    return tag == SEQUENCE and end == len(request)
