"""A PKCS#11 module: the shared library of a token's maker, loaded into this process.

python-pkcs11 starts a module with C_Initialize(NULL), by which a caller promises to use one thread only (PKCS #11,
5.4); SoftHSM then takes no locks, and 16 threads end the process. So the module is started here, with
CKF_OS_LOCKING_OK, and python-pkcs11 gets it started.

The other promise is C_Finalize's: nobody is in any other call. Whoever calls the module is `inside`, as many as like;
starting it anew, which is how lost sessions and logins are got rid of, is for one thread `alone`. All objects of a
module are worth nothing after that: each belongs to the `epoch` in which it was made.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pkcs11._pkcs11 import lib

from vmi_agent.keys import CustodyError

WAIT_S = 10.0
_CKR_OK = 0
_CKF_OS_LOCKING_OK = 2


class _Arguments(ctypes.Structure):
    """CK_C_INITIALIZE_ARGS."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("create_mutex", "destroy_mutex", "lock_mutex", "unlock_mutex")),
        ("flags", ctypes.c_ulong),
        ("reserved", ctypes.c_void_p),
    )


class _Functions(ctypes.Structure):
    """The beginning of CK_FUNCTION_LIST, which is the same in all versions."""

    _fields_ = (
        ("major", ctypes.c_ubyte),
        ("minor", ctypes.c_ubyte),
        ("initialize", ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)),
        ("finalize", ctypes.CFUNCTYPE(ctypes.c_ulong, ctypes.c_void_p)),
    )


class Module:
    """A module in this process, where it is only once: get it with `module_at`.

    Attributes:
        library: python-pkcs11's view of it.
        epoch: rises each time that the module stops.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._functions = _functions_of(path)
        # Past __init__, which would start the module for one thread only.
        self.library = lib.__new__(lib, str(path))  # type: ignore[call-arg]  # its stub does not tell of __cinit__
        self.epoch = 0
        self._changed = threading.Condition()
        self._started = False
        self._alone = False
        self._inside = 0
        self._users = 0

    @contextmanager
    def inside(self) -> Iterator[int]:
        """Call the module inside this; it is started if it was not. Gives the epoch, which lasts until the end of it.

        Raises:
            CustodyError: the module does not start, or another thread has been starting it for `WAIT_S`.
        """
        if not self._started:
            self.restart(self.epoch)
        with self._changed:
            self._wait_until(lambda: not self._alone)
            self._inside += 1
            epoch = self.epoch
        try:
            yield epoch
        finally:
            with self._changed:
                self._inside -= 1
                if not self._inside:
                    self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let nobody be `inside` meanwhile.

        Raises:
            CustodyError: somebody did not come out for `WAIT_S`.
        """
        with self._changed:
            self._wait_until(lambda: not self._alone)
            self._alone = True
            try:
                self._wait_until(lambda: not self._inside)
            except CustodyError:
                self._leave()
                raise
        try:
            yield
        finally:
            with self._changed:
                self._leave()

    def restart(self, epoch: int) -> None:
        """Stop and start the module, unless another thread did since this epoch. Not to be called `inside`.

        Raises:
            CustodyError: it does not start.
        """
        with self.alone():
            if self._started and self.epoch != epoch:
                return
            self._stop()
            code = self._functions.initialize(ctypes.byref(_Arguments(flags=_CKF_OS_LOCKING_OK)))
            if code != _CKR_OK:
                raise CustodyError(
                    f"PKCS#11 module {self.path} does not start (CKR {code:#x}). Look at its own configuration and log."
                )
            self._started = True

    def acquire(self) -> None:
        """Count one more user."""
        with self._changed:
            self._users += 1

    def release(self) -> None:
        """Count one user less; after the last one the module is stopped, unless a thread hangs in it."""
        with self._changed:
            self._users -= 1
            last = not self._users
        if last:
            with suppress(CustodyError):
                self.stop()

    def stop(self) -> None:
        """Stop the module: no session and no login remains. Who calls it again starts it again.

        Raises:
            CustodyError: a thread hangs in it.
        """
        with self.alone():
            self._stop()

    def _stop(self) -> None:
        self._functions.finalize(None)
        self._started = False
        self.epoch += 1

    def _leave(self) -> None:
        self._alone = False
        self._changed.notify_all()

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        if not self._changed.wait_for(condition, WAIT_S):
            raise CustodyError(f"PKCS#11 module {self.path} does not answer. Look whether its token is reachable.")


_MODULES: dict[Path, Module] = {}
_MODULES_LOCK = threading.Lock()


def module_at(path: Path) -> Module:
    """Return the one `Module` of a path; it is loaded, and started when somebody goes inside.

    Raises:
        CustodyError: there is none.
    """
    with _MODULES_LOCK:
        if path not in _MODULES:
            _MODULES[path] = Module(path)
        return _MODULES[path]


def _functions_of(path: Path) -> _Functions:
    wanted = "Give the absolute path of the token's PKCS#11 library"
    if not path.is_absolute() or not path.is_file():
        raise CustodyError(f"there is no PKCS#11 module {path}. {wanted}.")
    try:
        get_list = ctypes.CDLL(str(path)).C_GetFunctionList
    except (OSError, AttributeError) as error:
        raise CustodyError(f"{path} is no PKCS#11 module that this machine can load. {wanted}.") from error
    get_list.restype = ctypes.c_ulong
    functions = ctypes.POINTER(_Functions)()
    if get_list(ctypes.byref(functions)) != _CKR_OK:
        raise CustodyError(f"{path} does not tell its functions. {wanted}.")
    return functions.contents
