"""The agents' own CRLs, fetched as soon as an agent says that there is a new one, and kept on disk.

Only where client certificates let in: nobody asks for these CRLs, so nobody would fetch them. What is on disk is for a
start while no agent is there: which CAs are the agents' own, and the last CRL of each, which is relied on until its
nextUpdate as it would be had the proxy not been restarted.

    STATE/own-cas.json       which CAs the agents issue with, those above them, and which of --client-ca are neither
    STATE/own-{CA}.crl       the last CRL of each, in DER
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from bmc_proxy.agents.connection import AgentLink
from bmc_proxy.agents.deadline import Deadline
from bmc_proxy.agents.pool import published_by
from bmc_proxy.agents.queue import Door
from bmc_proxy.auth import client_crls
from bmc_proxy.auth.client_certificates import AuthorityId, ClientCertificates, Crl
from bmc_proxy.auth.client_crls import CrlRefused
from bmc_proxy.errors import AgentFailed, ExchangeError, NotPublished
from bmc_proxy.pki_fetch import Fetching, Publication
from protocol.records import GetPublished, PublicationKind, Published
from runtime.files import remove_leftovers, replace_file

CAS_FILE = "own-cas.json"
CRL_FILES = "own-*.crl"
# Root generations whose CRLs are kept, newest first. The certificates of earlier ones let nobody in.
GENERATIONS = 64
# Generations whose CAs are known as the agents' own, newest first; and how many CAs are known in all.
GENERATIONS_KNOWN = 4096
CAS_LIMIT = 4 * GENERATIONS_KNOWN
ASK_S = 10.0
FIRST_RETRY_S = 0.1
LONGEST_RETRY_S = 1.0

_Result = TypeVar("_Result")

_log = Logger()


class OwnCrls:
    """Keeps `ClientCertificates` informed of the agents' CAs and CRLs.

    Args:
        clock: the reactor, or a `Clock`.
        state_dir: where they are kept.
        certificates: learns of them.
        in_thread: runs what takes long.
        on_settled: called when an agent has said which CAs are its own, for the first time or otherwise than before.
        is_alone: no other process may be writing these files.
    """

    def __init__(
        self,
        clock: IReactorTime,
        state_dir: Path,
        certificates: ClientCertificates,
        in_thread: Callable[..., Deferred[object]],
        on_settled: Callable[[], None],
        *,
        is_alone: bool,
    ) -> None:
        self._clock = clock
        self._state_dir = state_dir
        self._certificates = certificates
        self._in_thread = in_thread
        self._on_settled = on_settled
        self._door: Door | None = None
        self._looking: dict[AgentLink, bool] = {}  # whether to look once more
        self._cas: dict[int, tuple[int, client_crls.Published]] = {}  # by generation: version, and what it holds
        self._versions: dict[int, int] = {}  # of the CRL that is relied on, by generation
        self._is_stored = True
        self._has_settled = False
        if is_alone:
            for each in (CAS_FILE, *(path.name for path in state_dir.glob(CRL_FILES))):
                remove_leftovers(state_dir / each)
        self._load()

    def connect(self, door: Door) -> None:
        """Ask through this door from now on."""
        self._door = door

    def look(self, link: AgentLink) -> None:
        """Look what an agent publishes now; called when it connects and whenever it has news."""
        if link in self._looking:
            self._looking[link] = True
            return
        self._looking[link] = False
        looking = Deferred.fromCoroutine(self._look_until_told(link))
        looking.addErrback(partial(_log.failure, "looking at an agent's CRLs failed"))
        looking.addBoth(lambda _: self._looking.pop(link, None))

    async def _look_until_told(self, link: AgentLink) -> None:
        """Look, again where there is news meanwhile, and again where it failed, while the agent is connected."""
        pause_s = FIRST_RETRY_S
        while link.connected:
            self._looking[link] = False
            try:
                await self._look(link)
            except ExchangeError as error:
                if pause_s == FIRST_RETRY_S:
                    _log.warn("CRLs not fetched, trying on", agent=link.name, reason=error.text)
                await self._pause(pause_s)
                pause_s = min(LONGEST_RETRY_S, 2 * pause_s)
                continue
            pause_s = FIRST_RETRY_S
            if not self._looking[link]:
                return

    def _pause(self, seconds: float) -> Deferred[None]:
        done: Deferred[None] = Deferred()
        self._clock.callLater(seconds, done.callback, None)
        return done

    async def _look(self, link: AgentLink) -> None:
        newest = link.root_generation
        for generation in range(newest, max(0, newest - GENERATIONS_KNOWN), -1):
            if generation not in self._cas or generation > newest - GENERATIONS:
                await self._look_at_cas(link, generation)
        self._settled()
        if not self._certificates.lets_in_own:
            return
        for generation in range(newest, max(0, newest - GENERATIONS), -1):
            await self._look_at_crl(link, generation)

    async def _look_at_cas(self, link: AgentLink, generation: int) -> None:
        """Learn which CAs are those of a generation."""
        version, known = self._cas.get(generation, (0, client_crls.Published((), ())))
        try:
            found = await self._fetch(link, PublicationKind.CA_CERTIFICATES, generation, version)
        except NotPublished:
            self._cas.setdefault(generation, (0, known))
            return
        if found is None:
            return
        published = await self._read(link, generation, client_crls.authorities_in, found.der)
        if published is None:
            return
        self._cas[generation] = (found.version, published)
        self._versions.pop(generation, None)  # another CA, another CRL
        certificates = self._certificates
        issuers, roots = ({each.id for each in cas} for cas in (published.issuers, published.roots))
        if len(certificates.own | issuers) > CAS_LIMIT:
            _log.error("the agents have had more CAs than are remembered", limit=CAS_LIMIT)
            return
        certificates.own |= issuers
        certificates.own_roots |= roots
        self._is_stored = False

    async def _look_at_crl(self, link: AgentLink, generation: int) -> None:
        """Take a generation's CRL, where it is another one than the last."""
        try:
            found = await self._fetch(link, PublicationKind.CRL, generation, self._versions.get(generation, 0))
        except NotPublished:
            return
        if found is None:
            return
        issuers = self._cas[generation][1].issuers
        read = await self._read(link, generation, client_crls.read_crl, found.der, issuers)
        if read is None:
            return
        issuer, crl = read
        if not self._certificates.take_own_crl(issuer, crl):
            _log.warn("an agent's CRL is older than the last one, which stays", agent=link.name, number=crl.number)
            return
        self._versions[generation] = found.version
        _log.info(
            "CRL for client certificates", root_generation=generation, number=crl.number, revoked=len(crl.serials)
        )
        self._store(self._crl_path(issuer), found.der)

    async def _read(
        self, link: AgentLink, generation: int, read: Callable[..., _Result], *arguments: object
    ) -> _Result | None:
        """Read what an agent published, in a thread; None, and a line in the log, where that cannot be."""
        try:
            result: _Result = await self._in_thread(read, *arguments)  # type: ignore[assignment]  # what `read` returns
        except CrlRefused as error:
            _log.error(
                "an agent's CRL cannot be relied on", agent=link.name, root_generation=generation, reason=str(error)
            )
            return None
        return result

    async def _fetch(self, link: AgentLink, kind: PublicationKind, generation: int, version: int) -> Publication | None:
        """Fetch what an agent publishes; None where it is the version that is known. Raises ExchangeError."""
        deadline = Deadline.after(self._clock, ASK_S)
        known = Publication(b"", None, version) if version else None

        async def ask(record: GetPublished) -> Published:
            assert self._door is not None  # there are no agents without one
            async with self._door.turn(("own CRLs", link.name), 0, deadline):
                return await published_by(link, deadline, record)

        def reserve(octets: int) -> None:
            if octets > client_crls.MAX_OCTETS:
                raise AgentFailed("What the host publishes is larger than is taken here.")

        found = await Fetching(ask, deadline, reserve).run(kind, generation, known)
        return None if found.version == version else found

    def _settled(self) -> None:
        """It is known which CAs are the agents' own."""
        certificates = self._certificates
        others = certificates.others
        certificates.settle()
        is_news = not self._has_settled or certificates.others != others
        self._has_settled = True
        if is_news or not self._is_stored:
            lists = {"issuers": certificates.own, "roots": certificates.own_roots, "others": certificates.others}
            content = {name: sorted(each.hex() for each in ids) for name, ids in lists.items()}
            self._is_stored = self._store(self._state_dir / CAS_FILE, json.dumps(content).encode())
        if is_news:
            self._on_settled()

    # On disk

    def _crl_path(self, issuer: AuthorityId) -> Path:
        return self._state_dir / f"own-{issuer.hex()}.crl"

    def _store(self, path: Path, content: bytes) -> bool:
        """Keep a file, unless another worker did; return whether it is there."""
        try:
            if not path.exists() or path.read_bytes() != content:
                replace_file(path, content)
            stored = sorted(self._state_dir.glob(CRL_FILES), key=lambda each: each.stat().st_mtime)
            for each in stored[:-GENERATIONS]:
                each.unlink(missing_ok=True)
        except OSError as error:
            _log.warn("an agent's CRL is not kept", path=str(path), reason=error.strerror)
            return False
        return True

    def _load(self) -> None:
        """Take what an earlier process kept; what cannot be read is as good as not there, and fetched again."""
        try:
            lists = json.loads((self._state_dir / CAS_FILE).read_bytes())
            own, roots, others = (
                frozenset(bytes.fromhex(each) for each in lists[name]) for name in ("issuers", "roots", "others")
            )
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError) as error:
            _log.warn(
                "the list of the agents' CAs cannot be read", path=str(self._state_dir / CAS_FILE), reason=str(error)
            )
            return
        certificates = self._certificates
        certificates.own, certificates.own_roots, certificates.others = own, roots, others
        for issuer in own:
            if (crl := self._stored_crl(self._crl_path(issuer))) is not None:
                certificates.take_own_crl(issuer, crl)

    def _stored_crl(self, path: Path) -> Crl | None:
        try:
            return client_crls.read_crl(path.read_bytes(), None)[1]
        except FileNotFoundError:
            return None
        except (OSError, CrlRefused) as error:
            _log.warn("a stored CRL cannot be read", path=str(path), reason=str(error))
            return None
