"""Sends a few bytes without letting other threads run meanwhile."""

from __future__ import annotations

import ctypes
import socket
from typing import Any

# Not CDLL, which lets go of the interpreter's lock, as a socket's own send() does: among busy threads it takes longer
# to get it back than to hand a few bytes to the kernel.
_send = ctypes.PyDLL(None).send
_send.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
_send.restype = ctypes.c_ssize_t

_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


def send_at_once(to: Any, data: bytes) -> bool:
    """Send all of ``data`` or nothing, and tell whether it was sent.

    Arguments:
      to: A socket of the kernel's; to any other, as one that encrypts, nothing is sent.

    Raises:
      OSError: When the rest of what was begun cannot be sent; whatever follows would be misread.
    """
    if type(to) is not socket.socket:
        return False
    sent = _send(to.fileno(), data, len(data), _FLAGS)
    if sent < 0:
        return False
    if sent < len(data):
        to.sendall(data[sent:])
    return True
