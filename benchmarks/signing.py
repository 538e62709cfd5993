"""Who signs how fast: each round asks every server in turn, so that what disturbs one disturbs all."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import csr_pool
from load import KEEP_ALIVE, Load, Mode, Run, WrongAnswer
from measure import new_key, raw_signatures_per_s
from peers import Peer, cfssl, cfssl_with_ledger, ours
from step_ca_peer import Tokens, step_ca

OURS = "ours"
PEERS = (OURS, "cfssl", "cfssl with ledger", "step-ca")
WARM_S = 1
_Start = Callable[[Path, str], AbstractContextManager[Peer]]


@dataclass
class OfKind:
    """All that was measured with one kind of CA key.

    Attributes:
        runs: by mode and peer, one for each round, in their order.
        raw_per_s: the raw sign rate of all cores, one for each round.
    """

    runs: dict[str, dict[str, list[Run]]] = field(default_factory=dict)
    raw_per_s: list[float] = field(default_factory=list)


class Signing:
    """Compares servers.

    Args:
        out: holds the pool, what was built, and, while they run, the servers' states.
        csrs: how many the pool has at least.
        peers: some of PEERS.
    """

    def __init__(self, out: Path, csrs: int, peers: Sequence[str]) -> None:
        self._out = out
        self._pool = out / "csrs"
        csr_pool.prepare(self._pool, csrs)
        starts: dict[str, _Start] = {OURS: ours, "cfssl": cfssl, "cfssl with ledger": cfssl_with_ledger}
        if "step-ca" in peers:
            tokens = Tokens(self._pool, out / "tokens")
            starts["step-ca"] = partial(step_ca, program=out / "step-ca", tokens=tokens)
        self._starts = {name: starts[name] for name in peers}

    def measure(
        self, kind: str, modes: Iterable[Mode], rounds: int, seconds: int, tell: Callable[[str], None]
    ) -> OfKind:
        """Load one server after the other, with a CA key of this kind in each.

        Raises:
            WrongAnswer: a request was not answered with a certificate, or a ledger holds fewer than were answered.
        """
        found = OfKind()
        raw_key = new_key(kind)
        for mode in modes:
            runs: dict[str, list[Run]] = {name: [] for name in self._starts}
            found.runs[mode.name] = runs
            with self._running(kind) as peers:
                load = Load(self._pool, self._out)
                answered = {peer.name: load.run(peer, mode, WARM_S).signed for peer in peers}
                for round_ in range(rounds):
                    if mode is KEEP_ALIVE:
                        found.raw_per_s.append(raw_signatures_per_s(raw_key, seconds / 2))
                    for peer in peers if round_ % 2 == 0 else peers[::-1]:
                        run = load.run(peer, mode, seconds)
                        runs[peer.name].append(run)
                        answered[peer.name] += run.signed
                        tell(f"{kind:8} {mode.name:18} round {round_ + 1} {peer.name:18} {run.per_s:7.0f}/s")
                _check_ledgers(peers, answered)
        return found

    @contextmanager
    def _running(self, kind: str) -> Iterator[list[Peer]]:
        """Run all servers, each with a CA and a ledger that are new: they may be asked the same CSRs again."""
        with TemporaryDirectory(dir=self._out, prefix="states-") as states, ExitStack() as running:
            yield [running.enter_context(self._start(name, Path(states), kind)) for name in self._starts]

    def _start(self, name: str, states: Path, kind: str) -> AbstractContextManager[Peer]:
        directory = states / name.replace(" ", "-")
        directory.mkdir(mode=0o700)
        return self._starts[name](directory, kind)


def _check_ledgers(peers: Iterable[Peer], answered: dict[str, int]) -> None:
    """A ledger with fewer certificates than answers means that some CSR was not signed but found again."""
    for peer in peers:
        if peer.recorded is not None and (recorded := peer.recorded()) < answered[peer.name]:
            raise WrongAnswer(f"{peer.name}: {answered[peer.name]} answers, {recorded} certificates in its ledger")


def remove_leftovers(out: Path) -> None:
    """Remove the states that a bench which was killed left behind."""
    for left in out.glob("states-*"):
        shutil.rmtree(left)
