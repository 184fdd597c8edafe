"""Sends a few bytes without letting other threads run meanwhile."""

from __future__ import annotations

import ctypes
import errno
import socket
from typing import Any

# Not CDLL, which lets go of the interpreter's lock, as a socket's own send() does: among busy threads it takes longer
# to get it back than to hand a few bytes to the kernel.
_libc = ctypes.PyDLL(None, use_errno=True)
_send = _libc.send
_send.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
_send.restype = ctypes.c_ssize_t

_recv = _libc.recv
_recv.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
_recv.restype = ctypes.c_ssize_t
_peeked = ctypes.create_string_buffer(1)

_FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)


def is_idle(to: socket.socket) -> bool:
    """Tell whether there is nothing to be read at this moment, not even the end, or an error.

    Arguments:
      to: A socket of the kernel's, or one that encrypts.
    """
    pending = getattr(to, "pending", None)
    if pending is not None and pending():
        return False
    return _peek(to) < 0 and ctypes.get_errno() == errno.EAGAIN


def is_quiet(to: Any) -> bool:
    """Tell whether there is nothing to be read, not even the end; of a socket that is not the kernel's, not known.

    Arguments:
      to: A socket on which nothing is ever to be read.
    """
    return type(to) is not socket.socket or _peek(to) < 0


def _peek(to: socket.socket) -> int:
    return int(_recv(to.fileno(), _peeked, 1, socket.MSG_PEEK | socket.MSG_DONTWAIT))


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
