"""Intents of a given age."""

from dataclasses import replace

from agents import START
from intents import make_intent

from runtime.clock import milliseconds
from vmi_agent.ledger.ledger_rows import Intent

NOW_MS = milliseconds(START)


def intent(number: int, recorded_ms: int = NOW_MS) -> Intent:
    """Return an intent that differs from every other."""
    return replace(make_intent(number), recorded_ms=recorded_ms)
