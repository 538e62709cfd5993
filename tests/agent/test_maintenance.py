"""A round of upkeep: what fails in one step says so, and keeps no other step from being done."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from conftest import LogWatch
from support.agents import Time, create_ca, open_agent
from support.revoking import KeyAway

from vmi_agent.ca.authority import Generations
from vmi_agent.keys.open import Access
from vmi_agent.maintenance import AnchorTo, Upkeep
from vmi_agent.revocation.publisher import Publishing


def test_round_with_a_new_generation_while_the_old_key_is_away(tmp_path: Path, log_watch: LogWatch) -> None:
    """The new one is taken, with its CRL and a word of it; what the old key keeps from being made is told as that."""
    time = Time()
    with open_agent(tmp_path, time) as agent:
        away = KeyAway(agent.generations.current.custody)
        first = replace(agent.generations.current, custody=away)
        generations = Generations(tmp_path, Access(), None, time(), lambda *_: None, first)
        publishing = Publishing(generations, agent.ledger, timedelta(days=7), timedelta(days=1), time)
        no_anchor = AnchorTo(None, None, timedelta(minutes=5))
        upkeep = Upkeep(generations, publishing, agent.responder, agent.ledger, no_anchor, None, time)
        upkeep.round()
        create_ca(tmp_path, now=time())

        generation, number = upkeep.round()

        second = publishing.crl(2)
        assert second is not None
        assert (generation, number) == (2, second.version)
    told = log_watch.texts()
    assert [each for each in told if each.startswith("CA rotated")]
    assert len([each for each in told if each.startswith("CRL not made")]) == 1
    assert not [each for each in told if each.startswith("new generation")]
