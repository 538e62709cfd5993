"""Intents of a given age."""

from dataclasses import replace

from runtime.clock import milliseconds
from support.agents import START
from support.intents import make_intent
from vmi_agent.ledger.issuances import Intent

NOW_MS = milliseconds(START)


def intent(number: int, recorded_ms: int = NOW_MS) -> Intent:
    """Return an intent that differs from every other."""
    return replace(make_intent(number), recorded_ms=recorded_ms)
