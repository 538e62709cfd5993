"""The archive of a backup is read as one writer writes it: any other form costs one line and leaves nothing behind."""

import gzip
import io
import os
import resource
import signal
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.backups import make_backup, member, members, names, restore, write_tar
from support.ca_life_parts import now
from support.needs import need
from support.processes import BIN, run

from runtime.errors import StartError
from vmi_agent.backup.archive import MAX_SMALL_OCTETS, ArchiveReader
from vmi_agent.ledger.schema import FILE_NAME

ZEROS = bytes(1024)


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    """Return the backup of a small CA."""
    return make_backup(tmp_path)


def header(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> bytes:
    """Return one header, without what follows it."""
    return member(name, kind, size=size).tobuf(tarfile.USTAR_FORMAT)


def with_field(octets: bytes, start: int, value: bytes) -> bytes:
    """Return a header with one of its fields changed, and the checksum that it then has."""
    changed = bytearray(octets)
    changed[start : start + len(value)] = value
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed)
    return bytes(changed)


def pax(records: bytes) -> bytes:
    """Return an extended header."""
    return header("././@PaxHeader", tarfile.XHDTYPE, len(records)) + records.ljust(-(-len(records) // 512) * 512, b"\0")


def sparse_1_0(contents: dict[str, bytes], path: Path) -> None:
    """Write an archive with a member of a terabyte of holes, as GNU tar writes it with --sparse."""
    entry = member("ca/9/root.pem", size=512)
    keys = {"major": "1", "minor": "0", "name": "ca/9/root.pem", "realsize": str(1 << 40)}
    entry.pax_headers = {f"GNU.sparse.{name}": value for name, value in keys.items()}
    write_tar(path, contents, entry)


LEDGER = header(FILE_NAME, size=512) + bytes(512) + ZEROS
SIZE, TYPE = 124, 156
HOSTILE: dict[str, bytes] = {
    "8 GiB member": header(FILE_NAME, size=(8 << 30) - 1) + b"x" * 512 + ZEROS,
    "small member over its limit": header("ca/1/key.pem", size=MAX_SMALL_OCTETS + 1) + bytes(MAX_SMALL_OCTETS + 512),
    "3,000 pax headers": pax(b"12 path=aaa\n") * 3000 + LEDGER,
    "3,000 long names": (header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 4) + b"aaa\0".ljust(512, b"\0")) * 3000,
    "3,000 global headers": (header("x", tarfile.XGLTYPE, 12) + b"12 path=aaa\n".ljust(512, b"\0")) * 3000,
    "pax header at the end": pax(b"9 mtime=1\n") + ZEROS,
    "pax header of 1 GiB": header("x", tarfile.XHDTYPE, 1 << 30) + bytes(512),
    "pax header, wrong length": pax(b"99 mtime=1.5\n") + LEDGER,
    "pax header, another key": pax(b"12 path=aaa\n") + LEDGER,
    "pax header, negative size": pax(b"11 size=-1\n") + LEDGER,
    "pax header, size in words": pax(b"14 size=1e100\n") + LEDGER,
    "pax header, larger size": pax(b"28 size=999999999999999\n"[:26].replace(b"28", b"25")) + LEDGER,
    "pax header, key twice": pax(b"10 size=5\n" * 2) + LEDGER,
    "size is no number": with_field(header(FILE_NAME), SIZE, b"zzzzzzzzzzz\0") + ZEROS,
    "size is negative": with_field(header(FILE_NAME), SIZE, b"\xff" * 12) + ZEROS,
    "size in base 256": with_field(header(FILE_NAME), SIZE, b"\x80" + bytes(7) + b"\1\0\0\0") + ZEROS,
    "size with a sign": with_field(header(FILE_NAME), SIZE, b"-0000000001\0") + ZEROS,
    "size is empty": with_field(header(FILE_NAME), SIZE, b" " * 12) + ZEROS,
    "wrong checksum": header(FILE_NAME)[:148] + b"000000\0 " + header(FILE_NAME)[156:] + ZEROS,
    "sparse, old GNU": with_field(header(FILE_NAME), TYPE, tarfile.GNUTYPE_SPARSE) + ZEROS,
    "contiguous": with_field(header(FILE_NAME), TYPE, tarfile.CONTTYPE) + ZEROS,
    "unknown type": with_field(header(FILE_NAME), TYPE, b"Z") + ZEROS,
    "device": with_field(header(FILE_NAME), TYPE, tarfile.CHRTYPE) + ZEROS,
    "GNU magic": with_field(header(FILE_NAME), 257, b"ustar  \0") + ZEROS,
    "prefix": with_field(header(FILE_NAME), 345, b"/tmp") + ZEROS,
    "octets behind the name": with_field(header(FILE_NAME), 50, b"x") + ZEROS,
    "name that is not ASCII": with_field(header(FILE_NAME), 0, b"\xff\x1b[2J") + ZEROS,
    "ledger of zeros": LEDGER,
    "nothing": b"",
    "zeros alone": bytes(10240),
    "manifest alone": header("manifest") + ZEROS,
}


@pytest.mark.parametrize("octets", HOSTILE.values(), ids=HOSTILE)
def test_restore_of_hostile_headers(tmp_path: Path, octets: bytes) -> None:
    """Each is refused for its own form, as one line of printable ASCII, and nothing is left behind."""
    hostile = tmp_path / "hostile.tar"
    hostile.write_bytes(octets)
    with pytest.raises(StartError, match="is not a sound backup") as refused:
        restore(hostile, tmp_path / "restored", now())

    assert str(refused.value).isascii()
    assert str(refused.value).isprintable()
    assert names(tmp_path) == {"hostile.tar"}


def gzipped(backup: Path, path: Path) -> None:
    """Compress a backup."""
    path.write_bytes(gzip.compress(backup.read_bytes()))


def sparse(backup: Path, path: Path) -> None:
    """Add a sparse member to a backup."""
    sparse_1_0(members(backup), path)


def behind_its_end(backup: Path, path: Path) -> None:
    """Put an octet behind a backup's end."""
    path.write_bytes(backup.read_bytes() + b"\1")


def between_files(backup: Path, path: Path) -> None:
    """Put an octet between the manifest and the ledger."""
    octets = bytearray(backup.read_bytes())
    with tarfile.open(backup) as tar:
        ledger = tar.getmember(FILE_NAME)
    octets[ledger.offset - 1] = 1
    path.write_bytes(octets)


def second_manifest(backup: Path, path: Path) -> None:
    """Put the manifest at the end."""
    contents = members(backup)
    contents["manifest"] = contents.pop("manifest")
    write_tar(path, contents)


def padded_for_ever(backup: Path, path: Path) -> None:
    """Put 4 GiB of holes behind a backup's end."""
    path.write_bytes(backup.read_bytes())
    os.truncate(path, 4 << 30)


def ledger_of_holes(_backup: Path, path: Path) -> None:
    """Write an archive of an older version's kind whose ledger is 4 GiB of holes."""
    path.write_bytes(header(FILE_NAME, size=4 << 30))
    os.truncate(path, (4 << 30) + 512 + 1024)


TAMPERED = [gzipped, sparse, behind_its_end, between_files, second_manifest, padded_for_ever, ledger_of_holes]


@pytest.mark.parametrize("tamper", TAMPERED)
def test_restore_of_a_tampered_archive(tmp_path: Path, backup: Path, tamper: Callable[[Path, Path], None]) -> None:
    """The command says one line and exits 1, within 512 MiB of memory and 20 s of CPU, and leaves nothing behind."""
    tamper(backup, tmp_path / "hostile.tar")
    command = [str(BIN / "vmi-agent"), "restore", "--unverified", "--state-dir", str(tmp_path / "restored")]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))

    done = subprocess.run(
        [*command, str(tmp_path / "hostile.tar")], capture_output=True, text=True, check=False, preexec_fn=limit
    )

    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1
    assert "is not a sound backup" in done.stderr
    assert names(tmp_path) == {"agent", "backup.tar", "hostile.tar"}


def test_restore_of_other_things_than_files(tmp_path: Path) -> None:
    """A pipe and a device are refused without waiting for them."""
    os.mkfifo(tmp_path / "pipe")
    for source in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(StartError, match="is not a file"):
            restore(source, tmp_path / "restored", now())

    assert names(tmp_path) == {"pipe"}


@pytest.mark.parametrize("seconds", ["1764000000.25", "1764000000"])
def test_restore_of_an_archive_with_an_exact_time(tmp_path: Path, backup: Path, seconds: str) -> None:
    """The one extended header that older versions wrote, the ledger's time to the microsecond, is accepted."""
    contents = members(backup)
    del contents["manifest"]
    older = tmp_path / "older.tar"
    with tarfile.open(older, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in contents.items():
            entry = member(name, size=len(content))
            if name == FILE_NAME:
                entry.pax_headers = {"mtime": seconds}
            tar.addfile(entry, io.BytesIO(content))
    restore(older, tmp_path / "restored", now())

    assert (tmp_path / "restored" / "ca" / "2" / "key.pem").read_bytes() == contents["ca/2/key.pem"]


def test_ledger_over_8_gib() -> None:
    """A size that no plain header can hold is written as a pax header, and read from there."""
    size = (8 << 30) + 5
    head = member(FILE_NAME, size=size).tobuf(tarfile.PAX_FORMAT)
    reader = ArchiveReader(io.BytesIO(head), size + (64 << 10))

    assert next(reader.members()).size == size


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_restore_that_is_ended_by_a_signal(tmp_path: Path, backup: Path, number: int) -> None:
    """What was extracted until then, keys among it, is removed."""
    command = [str(BIN / "vmi-agent"), "restore", "--unverified", "--state-dir", str(tmp_path / "restored")]
    large = tmp_path / "large.tar"
    large.write_bytes(header(FILE_NAME, size=4 << 30) + b"SQLite format 3\0\x10\0".ljust(28, b"\0") + b"\0\x10\0\0")
    os.truncate(large, (4 << 30) + 512 + 1024)
    staging = tmp_path / ".restored.restoring"
    # A shell that runs the tests in the background has SIGINT ignored, by whatever it starts as well.
    words = ["env", "--default-signal=INT", *command, str(large)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (staging / FILE_NAME).exists() or not (staging / FILE_NAME).stat().st_size:
            assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) != 0

    assert names(tmp_path) == {"agent", "backup.tar", "large.tar"}


def test_restore_into_the_current_directory(tmp_path: Path, backup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.` names an empty directory as well as its path does."""
    (tmp_path / "restored").mkdir(mode=0o700)
    monkeypatch.chdir(tmp_path / "restored")
    restore(backup, Path("."), now())

    assert names(tmp_path) == {"agent", "backup.tar", "restored"}
    assert names(tmp_path / "restored") >= {"ca", FILE_NAME}


def test_restore_after_one_that_was_killed(tmp_path: Path, backup: Path) -> None:
    """What a killed one left, keys among it, is gone with the next one to the same place, also where that fails."""
    left = tmp_path / ".restored.restoring"
    (left / "ca" / "1").mkdir(parents=True)
    (left / "ca" / "1" / "key.pem").write_text("a key")
    with pytest.raises(StartError):
        restore(Path("/dev/null"), tmp_path / "restored", now())
    assert not left.exists()
    (left / "ca" / "7").mkdir(parents=True)
    restore(backup, tmp_path / "restored", now())

    assert names(tmp_path) == {"agent", "backup.tar", "restored"}
    assert names(tmp_path / "restored" / "ca") == {"1", "2"}


def test_two_restores_at_once(tmp_path: Path, backup: Path) -> None:
    """One that comes while another one extracts is refused, and takes nothing away from it."""
    staging = tmp_path / ".restored.restoring"
    staging.mkdir(mode=0o700)
    with subprocess.Popen([need("flock"), str(staging), "sh", "-c", "echo; read line"], stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        (staging / "key.pem").write_text("a key")
        done = run("vmi-agent", "restore", "--unverified", "--state-dir", str(tmp_path / "restored"), str(backup))
        holder.communicate(b"\n")

    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "in use by another process" in done.stderr
    assert names(staging) == {"key.pem"}
