"""What a worker is started with: its part of the configuration, and the way of its lines to the log."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bmc_proxy.config import Config
from bmc_proxy.workers.messages import RecordRefused
from bmc_proxy.workers.shared_log import LIMIT as LINE_LIMIT
from bmc_proxy.workers.shared_log import SharedLineObserver
from bmc_proxy.workers.worker_config import config_from_json, config_to_json, share_of


def test_each_worker_gets_its_part(tmp_path: Path) -> None:
    """What is counted in each worker is divided among them, rounded up; all else is the same, over the pipe as well."""
    options = (
        ("unix:a",),
        (),
        None,
        "tcp:80",
        False,
        None,
        None,
        None,
        "cn",
        "accounts",
        "bmc-proxy",
        1800,
        512,
        1000,
        0,
        30,
    )
    config = Config(tmp_path, *options, workers=3)
    share = share_of(config)
    assert (share.max_connections, share.requests_per_s, share.max_waiting) == (171, 334, 0)
    assert replace(share, max_connections=512, requests_per_s=1000) == config
    assert config_from_json(config_to_json(share)) == share


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"state_dir": 1}'])
def test_configuration_that_is_none(text: str) -> None:
    """What is not a configuration is refused."""
    with pytest.raises(RecordRefused):
        config_from_json(text)


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("what", ["short", "traceback", "field", "odd field"])
def test_lines_are_written_whole(as_json: bool, what: str) -> None:
    """However much an event says, its line is one write of no more than a pipe takes whole, and says whose it is."""
    written: list[bytes] = []
    line: dict[str, object] = {"time": "now", "level": "info", "source": "x", "event": "happened"}
    if what == "traceback":
        line["traceback"] = "first\n" + "\u00e4\n" * 9000 + "last"
    elif what != "short":
        line["field"] = ("\U0001f600" if what == "odd field" else "x") * 9000
    SharedLineObserver(written.append, as_json, worker=2).write(line)
    [octets] = written
    assert len(octets) <= LINE_LIMIT
    assert octets.endswith(b"\n")
    text = octets.decode()
    if as_json:
        found = json.loads(text)
        assert found["worker"] == 2
        assert found["event"] == "happened"
    else:
        assert "worker=2" in text
        assert "happened" in text
    if what == "traceback":
        assert "last" in text
