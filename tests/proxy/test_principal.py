"""Callers: what they may do, as the accounts are now."""

import pytest

from bmc_proxy.auth.accounts import Account, Role
from bmc_proxy.auth.principal import Caller
from bmc_proxy.auth.sessions import Session
from bmc_proxy.errors import AuthRequired, Forbidden


def test_caller_is_who_the_accounts_say() -> None:
    """A caller has the privileges of its account as it is now, and none without it."""
    account = Account("root", Role.ADMINISTRATOR, "hash")
    caller = Caller("root", "basic", "192.0.2.1", account.role.privileges, account.password_id)

    assert caller.as_of({"root": account}) == caller
    reader = Account("root", Role.READ_ONLY, "hash")
    with pytest.raises(Forbidden):
        caller.as_of({"root": reader}).must_have(Role.ADMINISTRATOR.privileges)
    for accounts in ({}, {"root": Account("root", Role.ADMINISTRATOR, "another")}):
        with pytest.raises(AuthRequired):
            caller.as_of(accounts)


def test_caller_of_a_session_that_changes_its_own_password() -> None:
    """What a session asked before goes on while and after it changes the password; a closed session's does not."""
    old, new = (Account("root", Role.ADMINISTRATOR, password_hash) for password_hash in ("old", "new"))
    session = Session("id", "root", old.password_id, "192.0.2.1", 0.0, bytes(32), "xsrf")
    caller = Caller("root", "token", "192.0.2.1", old.role.privileges, session=session)

    with pytest.raises(AuthRequired):
        caller.as_of({"root": new})
    session.next_password_id = new.password_id
    assert caller.as_of({"root": old}) == caller.as_of({"root": new}) == caller
    session.password_id = new.password_id
    assert caller.as_of({"root": new}) == caller
    session.is_closed = True
    with pytest.raises(AuthRequired):
        caller.as_of({"root": new})
