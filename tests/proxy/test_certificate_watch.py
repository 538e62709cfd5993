"""TLS certificates of a running process: renewed in time, warned of daily. The clock is the test's own."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from conftest import LogWatch
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.agents import Time

from bmc_proxy.config import HttpsConfig
from bmc_proxy.https import FILE_NAME, RENEW_BEFORE, VALIDITY, https_context
from runtime import channel_credentials
from runtime.build_date import BUILD_DATE
from runtime.clock import BACK_DATE
from runtime.files import FileRefused, replace_file
from runtime.reload import RETRY_AFTER, WARN_BEFORE, WARN_EVERY, Reloadable
from runtime.self_signed import self_signed
from runtime.tls import TlsContext

OWN = HttpsConfig(None, None, None, "cn")
START = BUILD_DATE + timedelta(days=365)
SECOND = timedelta(seconds=1)
CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"


@pytest.fixture
def time() -> Time:
    """Return a clock that shows a time at which it may be right."""
    time = Time()
    time.now = START
    return time


def own_reloadable(state_dir: Path, time: Time, *, accept_clock: bool = False) -> Reloadable:
    """Return the HTTPS certificate of a proxy that makes its own."""
    config = HttpsConfig(None, None, None, "cn", accept_clock)
    load = partial(https_context, state_dir, config, time)
    return Reloadable("https", load, renew_before=RENEW_BEFORE, now=time)


def given_reloadable(state_dir: Path, time: Time, begins: datetime, validity: timedelta) -> Reloadable:
    """Return the HTTPS certificate of a proxy that was given one."""
    path = state_dir / "given.pem"
    name = "given.example.com"
    replace_file(path, self_signed(name, [name], ExtendedKeyUsageOID.SERVER_AUTH, validity, begins + BACK_DATE))
    load = partial(https_context, state_dir, HttpsConfig(path, path, None, "cn"), time)
    return Reloadable("https", load, advice="Replace it", now=time)


def warnings(log_watch: LogWatch) -> list[str]:
    """Return what was told of certificates and clocks so far."""
    return [each for each in log_watch.texts() if each.startswith(("certificate ", "clock "))]


# Renewal


def test_own_certificate_is_renewed_before_it_ends(tmp_path: Path, time: Time, log_watch: LogWatch) -> None:
    """Thirty days before its end, not a second earlier; nobody is warned."""
    reloadable = own_reloadable(tmp_path, time)
    first = reloadable.context.certificates[0]
    time.now = first.not_valid_after_utc - RENEW_BEFORE
    assert not reloadable.look()
    time.advance(seconds=1)
    assert reloadable.look()
    assert not reloadable.look()

    second = reloadable.context.certificates[0]
    assert second.not_valid_after_utc == time() - BACK_DATE + VALIDITY
    assert x509.load_pem_x509_certificate((tmp_path / FILE_NAME).read_bytes()) == second
    assert warnings(log_watch) == []


@pytest.mark.parametrize(("ahead", "is_renewed"), [(BACK_DATE, False), (BACK_DATE + SECOND, True)])
def test_own_certificate_of_the_future(tmp_path: Path, time: Time, ahead: timedelta, is_renewed: bool) -> None:
    """It is replaced as soon as the clock is right, under the running proxy and at its start."""
    time.now = START + ahead
    running = own_reloadable(tmp_path, time)
    first = running.context.certificates[0]
    time.now = START

    assert running.look() is is_renewed
    started = own_reloadable(tmp_path, time).context.certificates[0]
    assert (started != first) is is_renewed
    assert started.not_valid_before_utc <= START


def test_renewal_that_fails_is_tried_again_hourly(tmp_path: Path, time: Time, log_watch: LogWatch) -> None:
    """A full disk, say: the old certificate stays, and the log says daily that it ends."""
    log_watch.expect_error("certificate not reloaded")
    reloadable = own_reloadable(tmp_path, time)
    time.now = reloadable.context.not_after - RENEW_BEFORE + SECOND
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).mkdir()
    tries = []
    for by in (timedelta(0), RETRY_AFTER - SECOND, SECOND, -timedelta(days=1)):
        time.now += by
        assert not reloadable.look()
        tries.append(log_watch.texts().count("certificate not reloaded, the old one stays"))

    assert tries == [1, 1, 2, 2]  # a day earlier it is not due
    assert warnings(log_watch).count("certificate ends soon") == 1


def test_no_certificate_is_made_by_a_clock_before_the_build(tmp_path: Path, time: Time, log_watch: LogWatch) -> None:
    """One that is there is served, whatever it says; where there is none, the text says what to do."""
    time.now = BUILD_DATE - SECOND
    with pytest.raises(FileRefused, match=r"before this software was built .* --accept-clock"):
        own_reloadable(tmp_path, time)
    time.now = BUILD_DATE
    first = own_reloadable(tmp_path, time).context.certificates[0]
    time.now = datetime(1970, 1, 2, tzinfo=UTC)
    reloadable = own_reloadable(tmp_path, time)

    assert not reloadable.look()
    assert reloadable.context.certificates[0] == first
    assert warnings(log_watch) == ["clock cannot be right"]


def test_clock_before_the_build_that_is_accepted(tmp_path: Path, time: Time) -> None:
    """The certificate that is made then is replaced once the clock is right: it has ended."""
    time.now = datetime(1970, 1, 2, tzinfo=UTC)
    reloadable = own_reloadable(tmp_path, time, accept_clock=True)
    assert reloadable.context.not_after.year == 1971
    time.now = START
    assert reloadable.look()
    assert reloadable.context.not_after > START


# Warnings


@pytest.mark.parametrize(
    ("begins", "ends", "told"),
    [
        (-timedelta(days=1), WARN_BEFORE, []),
        (-timedelta(days=1), WARN_BEFORE - SECOND, ["certificate ends soon"]),
        (-timedelta(days=1), timedelta(0), ["certificate ends soon"]),
        (-timedelta(days=2), -SECOND, ["certificate has ended"]),
        (timedelta(0), timedelta(days=365), []),
        (SECOND, timedelta(days=365), ["certificate is not valid yet"]),
    ],
)
def test_warning_of_a_given_certificate(
    tmp_path: Path, time: Time, log_watch: LogWatch, begins: timedelta, ends: timedelta, told: list[str]
) -> None:
    """From thirty days before its end on, and where it has ended or is not valid yet; it is never replaced here."""
    reloadable = given_reloadable(tmp_path, time, START + begins, ends - begins)
    certificate = reloadable.context.certificates[0]

    assert not reloadable.look()
    assert warnings(log_watch) == told
    assert reloadable.context.certificates[0] == certificate
    assert all("CN=given.example.com" in each and "Replace it" in each for each in log_watch.lines())


def test_warnings_come_daily(tmp_path: Path, time: Time, log_watch: LogWatch) -> None:
    """Also where the clock was ahead in between: what was told then does not count."""
    reloadable = given_reloadable(tmp_path, time, START, timedelta(days=20))
    counts = []
    for by in (timedelta(0), WARN_EVERY - SECOND, SECOND, timedelta(days=15), -timedelta(days=15), SECOND):
        time.now += by
        reloadable.look()
        counts.append(len(warnings(log_watch)))

    assert counts == [1, 1, 2, 3, 4, 4]


def test_warnings_end_with_a_new_certificate(tmp_path: Path, time: Time, log_watch: LogWatch) -> None:
    """The operator replaces the file and sends SIGHUP; a bad one is told at once."""
    reloadable = given_reloadable(tmp_path, time, START, timedelta(days=20))
    given_reloadable(tmp_path, time, START, timedelta(days=200))
    reloadable.reload()
    time.advance(days=2)
    reloadable.look()
    assert warnings(log_watch) == ["certificate ends soon"]
    given_reloadable(tmp_path, time, START, timedelta(days=3))  # whose own first look tells as well
    reloadable.reload()
    assert warnings(log_watch) == ["certificate ends soon"] * 3


@pytest.mark.parametrize("side", [0, 1])
def test_warning_of_the_channels_certificates(tmp_path: Path, time: Time, log_watch: LogWatch, side: int) -> None:
    """Each side tells of its own certificate and of the one that it pins, and what to do."""
    replace_file(tmp_path / channel_credentials.FILE_NAME, channel_credentials.make_credentials(time)[side])
    load: Callable[[], TlsContext] = partial(
        channel_credentials.channel_context, tmp_path / channel_credentials.FILE_NAME
    )
    time.now = START + channel_credentials.VALIDITY - timedelta(days=20)
    reloadable = Reloadable("channel", load, advice=channel_credentials.ADVICE, now=time)
    time.now = START - timedelta(days=1)
    reloadable.look()

    assert warnings(log_watch) == ["certificate ends soon"] * 2 + ["certificate is not valid yet"] * 2
    assert all("vmi-agent channel init --replace" in each for each in log_watch.lines())


def test_worker_does_not_repeat_the_warnings(tmp_path: Path, time: Time, log_watch: LogWatch) -> None:
    """The first process tells."""
    given_reloadable(tmp_path, time, START, timedelta(days=20))
    path = tmp_path / "given.pem"
    load = partial(https_context, tmp_path, HttpsConfig(path, path, None, "cn"), time)
    Reloadable("https", load, warns=False, now=time).look()
    assert warnings(log_watch) == ["certificate ends soon"]


# The date of this software


def test_build_date_is_kept() -> None:
    """It is not in the future, and not before the newest release: whoever releases sets it."""
    released = re.findall(r"^## \[\d[^]]*\] - (\d{4}-\d\d-\d\d)$", CHANGELOG.read_text(encoding="utf-8"), re.MULTILINE)
    assert datetime.now(UTC) >= BUILD_DATE
    assert max(released, default="2026-11-23") <= BUILD_DATE.date().isoformat()
