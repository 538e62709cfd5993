"""The command line of vmi-agent: a module for each group of commands, joined in `main`."""

from vmi_agent.cli import audit, ca, certs, channel, keys, profiles, revocations, serve, state
from vmi_agent.cli.groups import main

# Each module adds its commands to main when it is imported.
__all__ = ["audit", "ca", "certs", "channel", "keys", "main", "profiles", "revocations", "serve", "state"]
