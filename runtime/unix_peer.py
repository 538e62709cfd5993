"""Who is at the other end of a unix socket: the kernel knows (SO_PEERCRED, unix(7))."""

import os
import socket
import struct
from collections.abc import Collection

from twisted.internet.interfaces import IUNIXTransport

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


def stranger_at(transport: object, uids: Collection[int] | None) -> int | None:
    """Return the uid of a unix peer that is not let in; None where it is, or where there is no unix socket.

    Args:
        uids: who is let in; None for this process's own user.
    """
    if not IUNIXTransport.providedBy(transport):
        return None
    stream: socket.socket = transport.socket  # type: ignore[attr-defined]  # Twisted's unix transports have it
    _, uid, _ = _CREDENTIALS.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return None if uid in (uids or (os.geteuid(),)) else uid
