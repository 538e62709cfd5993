"""Accounts: the file, its lock, and who may be taken away."""

import json
import os
from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest
from support.processes import add_account, run
from support.run_log import secret

from bmc_proxy.auth.accounts import (
    FILE_NAME,
    LIMIT,
    Account,
    AccountRefused,
    AccountStore,
    AccountsUnusable,
    Privilege,
    Role,
)
from bmc_proxy.auth.passwords import NOBODYS, hash_password, hasher, is_password

ROOT = Account("root", Role.ADMINISTRATOR, "hash")
READER = Account("reader", Role.READ_ONLY, "hash")
PASSWORD = secret("a-good-password")


def store_with(directory: Path, *accounts: Account) -> AccountStore:
    """Return a store that holds these."""
    store = AccountStore(directory)
    for account in accounts:
        store.add(account)
    return store


def test_accounts_are_private_and_hold_no_password(tmp_path: Path) -> None:
    """The file is 0600 and has argon2id hashes."""
    add_account(tmp_path, "root", "Administrator", PASSWORD)
    path = tmp_path / FILE_NAME

    assert path.stat().st_mode & 0o777 == 0o600
    assert PASSWORD not in path.read_text()
    [row] = json.loads(path.read_text())["accounts"]
    assert row["password_hash"].startswith("$argon2id$v=19$")


def test_account_changed_by_another_process_is_seen(tmp_path: Path) -> None:
    """What somebody else writes is there at the next look."""
    store, other = AccountStore(tmp_path), AccountStore(tmp_path)
    other.add(ROOT)
    assert store.get("root") == ROOT
    other.change("root", lambda account: replace(account, role=Role.OPERATOR))
    assert store.all()["root"].role is Role.OPERATOR
    other.remove("root")
    assert not store.all()


def test_accounts_are_added_at_once_by_many(tmp_path: Path) -> None:
    """Changes that overlap are all there in the end."""
    threads = [
        Thread(target=AccountStore(tmp_path).add, args=[replace(READER, name=f"user{number}")]) for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(AccountStore(tmp_path).all()) == {f"user{number}" for number in range(20)}


def test_accounts_have_a_limit(tmp_path: Path) -> None:
    """There are 64 accounts at most."""
    store = store_with(tmp_path, *(replace(READER, name=f"user{number}") for number in range(LIMIT)))

    with pytest.raises(AccountRefused, match="64 accounts"):
        store.add(ROOT)
    store.remove("user0")
    store.add(ROOT)


@pytest.mark.parametrize("name", ["a", "_", "x" * 64, "first.last", "with-hyphen", "A1"])
def test_account_name_that_is_one(tmp_path: Path, name: str) -> None:
    """These are names."""
    store_with(tmp_path, replace(READER, name=name))


@pytest.mark.parametrize("name", ["", "1a", "x" * 65, "a b", "a/b", "a\n", "é", "-a", ".", "anonymous"])
def test_account_name_that_is_none(tmp_path: Path, name: str) -> None:
    """These are not."""
    with pytest.raises(AccountRefused, match="An account's name is"):
        store_with(tmp_path, replace(READER, name=name))


def test_account_twice(tmp_path: Path) -> None:
    """A name is taken once."""
    with pytest.raises(AccountRefused, match="There is an account root already"):
        store_with(tmp_path, ROOT, ROOT)


def test_last_administrator_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    """With `keep_administrator` the last enabled one stays as it is; without, all goes."""
    store = store_with(tmp_path, ROOT, READER, replace(ROOT, name="second", enabled=False))

    for change in (lambda each: replace(each, enabled=False), lambda each: replace(each, role=Role.OPERATOR)):
        with pytest.raises(AccountRefused, match="last enabled Administrator"):
            store.change("root", change, keep_administrator=True)
    with pytest.raises(AccountRefused, match="last enabled Administrator"):
        store.remove("root", keep_administrator=True)
    assert store.get("root") == ROOT
    store.remove("reader", keep_administrator=True)
    store.change("second", lambda each: replace(each, enabled=True), keep_administrator=True)
    store.remove("root", keep_administrator=True)
    store.remove("second")


def test_account_that_is_missing(tmp_path: Path) -> None:
    """What is not there cannot be changed or removed."""
    store = AccountStore(tmp_path)
    with pytest.raises(AccountRefused, match="no account root"):
        store.remove("root")
    with pytest.raises(AccountRefused, match="no account root"):
        store.change("root", lambda each: each)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"version":2,"accounts":[]}', "version 2"),
        ('{"version":1,"accounts":[{"name":"a","role":"King","password_hash":null,"enabled":true}]}', "King"),
        ('{"version":1,"accounts":[{"name":"a"}]}', "cannot be read"),
    ],
)
def test_accounts_that_cannot_be_read(tmp_path: Path, content: str, told: str) -> None:
    """A broken file is refused at the start, and while running what was read before stays, and that is told once."""
    store_told: list[str] = []
    store_with(tmp_path, ROOT)
    store = AccountStore(tmp_path, store_told.append)
    path = tmp_path / FILE_NAME
    path.write_text(content)

    with pytest.raises(AccountsUnusable, match=told):
        AccountStore(tmp_path)
    assert store.get("root") == store.get("root") == ROOT
    assert len(store_told) == 1
    path.unlink()
    assert not store.all()


def test_accounts_that_others_can_read(tmp_path: Path) -> None:
    """A file that others can read is refused, with what to do."""
    store_with(tmp_path, ROOT)
    (tmp_path / FILE_NAME).chmod(0o640)

    with pytest.raises(AccountsUnusable, match="chmod 600"):
        AccountStore(tmp_path)
    done = run("bmc-proxy", "account", "list", "--state-dir", str(tmp_path))
    assert (done.returncode, "chmod 600" in done.stderr) == (1, True)


def test_accounts_are_whole_after_a_failed_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the new file cannot be put in its place the old one is as it was, and nothing is left beside it."""
    store = store_with(tmp_path, ROOT)

    def fail(_source: object, _target: object) -> None:
        raise OSError("no")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no"):
            store.add(READER)
    assert dict(store.all()) == {"root": ROOT}
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE_NAME, "accounts.lock"]


def test_roles_have_redfishs_privileges() -> None:
    """Each role has what DSP0266 gives it; what signing needs only an Administrator has."""
    signing = {Privilege.CONFIGURE_MANAGER, Privilege.CONFIGURE_COMPONENTS}

    assert Role.ADMINISTRATOR.privileges == set(Privilege)
    assert Role.OPERATOR.privileges == {Privilege.LOGIN, Privilege.CONFIGURE_COMPONENTS, Privilege.CONFIGURE_SELF}
    assert Role.READ_ONLY.privileges == {Privilege.LOGIN, Privilege.CONFIGURE_SELF}
    assert [role for role in Role if signing <= role.privileges] == [Role.ADMINISTRATOR]


def test_password_id_is_anothers_for_another_password() -> None:
    """The same password, hashed twice, is another one: sessions of the first end."""
    hashes = [hash_password(PASSWORD), hash_password(PASSWORD)]

    assert replace(ROOT, password_hash=hashes[0]).password_id != replace(ROOT, password_hash=hashes[1]).password_id
    assert all(is_password(PASSWORD, each) for each in hashes)


def test_password_that_is_wrong() -> None:
    """Another password, none, a broken hash: no."""
    assert not is_password(PASSWORD + "x", hash_password(PASSWORD))
    assert not is_password(PASSWORD, None)
    assert not is_password("nobody's", None)
    assert not is_password(PASSWORD, "no hash")


@pytest.mark.parametrize("length", [0, 1, 7, 257])
def test_password_of_a_wrong_length(length: int) -> None:
    """Shorter than 8 or longer than 256 characters is refused, also where the development password may be set."""
    for may_be_development in (False, True):
        with pytest.raises(AccountRefused, match="8 to 256 characters"):
            hash_password("x" * length, may_be_development=may_be_development)


@pytest.mark.parametrize("length", [8, 256])
def test_password_of_a_right_length(length: int) -> None:
    """From 8 to 256 characters is accepted."""
    assert is_password("x" * length, hash_password("x" * length))


def test_development_password() -> None:
    """The well-known password, which is too short, is accepted on the command line alone."""
    assert is_password("0penBmc", hash_password("0penBmc", may_be_development=True))
    for password, may_be in (("0penBmc", False), ("0penBMC", True), ("0penBm", True)):
        with pytest.raises(AccountRefused, match="8 to 256 characters"):
            hash_password(password, may_be_development=may_be)


# The commands


def test_nobodys_password_costs_as_much_as_anybodys() -> None:
    """What is verified where there is no account has the costs of a hash that is made today, and lets nobody in."""
    assert not hasher().check_needs_rehash(NOBODYS)
    assert not is_password("nobody's", None)


def test_account_command_asks_for_a_password_or_none(tmp_path: Path) -> None:
    """Exactly one of --password-stdin and --no-password is needed, and a password comes from stdin alone."""
    add = ["bmc-proxy", "account", "add", "root", "--role", "Administrator", "--state-dir", str(tmp_path)]

    for options in ([], ["--password-stdin", "--no-password"]):
        assert run(*add, *options, stdin="0penBmc\n").returncode == 2
    too_short = run(*add, "--password-stdin", stdin="7 chars\n")
    assert (too_short.returncode, "8 to 256" in too_short.stderr) == (1, True)
    assert run(*add, "--password-stdin", stdin="0penBmc\n").returncode == 0
    set_password = ["bmc-proxy", "account", "set-password", "root", "--state-dir", str(tmp_path), "--password-stdin"]
    for password, status in (("0penBmd", 1), ("0penBmc", 0), ("8 charac", 0)):
        assert run(*set_password, stdin=password + "\n").returncode == status, password
    again = run(*add, "--no-password")
    assert (again.returncode, again.stderr) == (1, "Error: There is an account root already.\n")
    wrong_role = run(*add[:5], "King", *add[6:], "--no-password")
    assert (wrong_role.returncode, "'Administrator', 'Operator', 'ReadOnly'" in wrong_role.stderr) == (2, True)


def test_account_list_and_remove(tmp_path: Path) -> None:
    """Accounts are listed as text and as JSON, and removed by name."""
    state = ["--state-dir", str(tmp_path)]
    add_account(tmp_path, "root", "Administrator", PASSWORD)
    add_account(tmp_path, "machine", "ReadOnly")

    text = run("bmc-proxy", "account", "list", *state).stdout
    rows = json.loads(run("bmc-proxy", "account", "list", *state, "--json").stdout)

    assert text == "root  Administrator\nmachine  ReadOnly  no password\n"
    assert rows == [
        {"name": "root", "role": "Administrator", "enabled": True, "has_password": True},
        {"name": "machine", "role": "ReadOnly", "enabled": True, "has_password": False},
    ]
    assert run("bmc-proxy", "account", "remove", "root", *state).returncode == 0
    again = run("bmc-proxy", "account", "remove", "root", *state)
    assert (again.returncode, again.stderr) == (1, "Error: There is no account root.\n")


def test_account_set_password(tmp_path: Path) -> None:
    """A new password takes the old one's place; without --password-stdin nothing is read."""
    add_account(tmp_path, "root", "Administrator", PASSWORD)
    command = ["bmc-proxy", "account", "set-password", "root", "--state-dir", str(tmp_path)]
    before = AccountStore(tmp_path).all()["root"]

    assert run(*command, stdin="another password\n").returncode == 2
    assert run(*command, "--password-stdin", stdin=secret("another password") + "\n").returncode == 0

    after = AccountStore(tmp_path).all()["root"]
    assert is_password(PASSWORD, before.password_hash)
    assert is_password("another password", after.password_hash)
    assert replace(after, password_hash=before.password_hash) == before
