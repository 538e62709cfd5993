"""Keep a process's memory, and the keys in it, out of core files and out of other processes of the same user."""

import ctypes
import resource
import sys

_PR_SET_DUMPABLE = 4  # prctl(2)


def forbid_dumps() -> None:
    """Let nothing write out this process's memory: no core file, no ptrace by another process of the same user.

    RLIMIT_CORE alone does not stop a core pattern that is a pipe (core(5)), nor a debugger; a process that is not
    dumpable is closed to both, and its files below /proc are root's. Elsewhere than on Linux only the limit is set.

    Raises:
        OSError: the kernel refuses it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    # A variadic function: each argument is an unsigned long.
    if libc.prctl(_PR_SET_DUMPABLE, *(ctypes.c_ulong(0) for _ in range(4))) != 0:
        number = ctypes.get_errno()
        raise OSError(number, "prctl(PR_SET_DUMPABLE)")
