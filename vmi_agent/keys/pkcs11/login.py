"""Being logged in to a token, and what is done when it loses its sessions.

In PKCS#11 a login is the whole process's, for one token, and ends with its last session. A session can end at any
time: the token was unplugged, the HSM's connection broke, somebody closed it. What a module then answers differs from
maker to maker, so nothing is concluded from it: whatever fails, the module is started anew, with new sessions and a new
login, and the work is tried again, `_TRIES` times in all.

A PIN that was refused once is never sent again by this process: tokens lock after a few.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pkcs11

from vmi_agent.keys import CustodyError
from vmi_agent.keys.pkcs11.module import Module, module_at
from vmi_agent.keys.pkcs11.token import Token

_TRIES = 3
_PIN_REFUSED = (
    pkcs11.PinExpired,
    pkcs11.PinIncorrect,
    pkcs11.PinInvalid,
    pkcs11.PinLenRange,
    pkcs11.PinLocked,
    pkcs11.UserPinNotInitialized,
)

T = TypeVar("T")


class NotThere(CustodyError):
    """The token or the key is not in its place; it may be after the module was started anew."""


class Login:
    """A token that this process is logged in to, whenever it is used: get it with `login_to`."""

    def __init__(self, token: Token, module: Module) -> None:
        self.token = token
        self.module = module
        self._lock = threading.Lock()
        self._epoch: int | None = None
        self._found: pkcs11.Token | None = None
        self._refusal: str | None = None

    def run(self, work: Callable[[int], T]) -> T:
        """Do something with the token, again where it failed for the token's sake.

        Args:
            work: gets the epoch. It may be called several times, by this thread, and must not keep what it opened when
                it fails.

        Raises:
            CustodyError: the token cannot be reached, or what `work` raised.
        """
        failure: Exception | None = None
        for _ in range(_TRIES):
            with self.module.inside() as epoch:
                try:
                    return work(epoch)
                except (pkcs11.PKCS11Error, NotThere) as error:
                    failure = error
            # Also after the last try: it closes what that one opened.
            self.module.restart(epoch)
        if isinstance(failure, NotThere):
            raise failure
        reason = type(failure).__name__
        raise CustodyError(
            f"token {self.token.label!r} cannot be used now ({reason}). Look whether it is reachable."
        ) from failure

    def open(self, epoch: int, *, writable: bool = False) -> pkcs11.Session:
        """Return a new session, logged in, for one thread at a time. To be called `inside` the module.

        Raises:
            CustodyError: the PIN was refused, now or before.
            NotThere: there is no such token.
            pkcs11.PKCS11Error: anything else.
        """
        with self._lock:
            if self._refusal is not None:
                raise CustodyError(self._refusal)
            if self._epoch != epoch or self._found is None:
                self._found = self._log_in()
                self._epoch = epoch
            found = self._found
        return found.open(rw=writable)

    def _log_in(self) -> pkcs11.Token:
        label = self.token.label
        found = [each for slot in self.module.library.get_slots(token_present=True) if (each := _token_in(slot, label))]
        if not found:
            raise NotThere(f"PKCS#11 module {self.module.path} has no token {label!r}. Plug it in or mend the label.")
        if len(found) > 1:
            raise CustodyError(f"several tokens have the label {label!r}. Give each a label of its own.")
        self._refusal = refusal(label, found[0].flags)
        if self._refusal is not None:
            raise CustodyError(self._refusal)
        try:
            # This session stays open and keeps the login; only the end of the module closes it.
            found[0].open(user_pin=self.token.pin)
        except pkcs11.UserAlreadyLoggedIn:
            pass  # by another Login to this token
        except _PIN_REFUSED as error:
            self._refusal = (
                f"token {label!r} refused the PIN ({type(error).__name__}). It is not tried again, as that may lock "
                "the token. Put the right PIN in place and start anew."
            )
            raise CustodyError(self._refusal) from error
        return found[0]


def refusal(label: str, flags: pkcs11.TokenFlag) -> str | None:
    """Return why a PIN is not even tried: the token is locked, or the next wrong PIN locks it. None: it may be."""
    if flags & pkcs11.TokenFlag.USER_PIN_LOCKED:
        return f"token {label!r} is locked. Have its security officer set a new PIN, and start anew."
    if flags & pkcs11.TokenFlag.USER_PIN_FINAL_TRY:
        return f"one more wrong PIN locks token {label!r}. Log in once by hand with the right one, and start anew."
    return None


_LOGINS: dict[Token, Login] = {}
_LOGINS_LOCK = threading.Lock()


def login_to(token: Token) -> Login:
    """Return the one `Login` of a token and PIN, which remembers when the PIN was refused.

    Raises:
        CustodyError: there is no such module.
    """
    with _LOGINS_LOCK:
        if token not in _LOGINS:
            _LOGINS[token] = Login(token, module_at(Path(token.module)))
        return _LOGINS[token]


def _token_in(slot: pkcs11.Slot, label: str) -> pkcs11.Token | None:
    try:
        token = slot.get_token()
    except pkcs11.PKCS11Error:  # another slot's fault does not keep this token away
        return None
    return token if token.label == label else None
