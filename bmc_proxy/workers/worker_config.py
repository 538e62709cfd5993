"""A worker's part of the configuration, and how it is written on the pipe."""

import json
from dataclasses import fields, replace
from pathlib import Path

from bmc_proxy.config import Config
from bmc_proxy.workers.messages import RecordRefused
from runtime.errors import ConfigError

_PATHS = frozenset({"state_dir", "https_certificate", "https_key", "client_ca", "client_crl"})


def share_of(config: Config) -> Config:
    """Return what each worker gets: of what is counted in each of them its part, rounded up."""

    def part(whole: int) -> int:
        return -(-whole // config.workers)

    return replace(
        config,
        max_connections=part(config.max_connections),
        requests_per_s=part(config.requests_per_s),
        max_waiting=part(config.max_waiting),
    )


def config_to_json(config: Config) -> str:
    """Return a configuration as JSON."""
    values = {each.name: getattr(config, each.name) for each in fields(config)}
    return json.dumps({name: str(value) if isinstance(value, Path) else value for name, value in values.items()})


def config_from_json(text: str) -> Config:
    """Return the configuration. Raises RecordRefused."""
    try:
        values = json.loads(text)
        values = {name: tuple(each) if isinstance(each, list) else each for name, each in values.items()}
        values |= {name: Path(values[name]) for name in _PATHS if values[name] is not None}
        return Config(**values)
    except (ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
        raise RecordRefused("the configuration is none") from error
