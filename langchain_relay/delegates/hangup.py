"""Hangs up on a host for a thread that waits in a read of its socket.

A sync client offers no way out of a read: its own timeout starts anew with every keep-alive, and
closing the file under a waiting thread neither wakes it on Linux nor ends the connection. Shutting
the socket down does both, for every client alike. Which socket it is only the waiting thread's
stack says; there it stands in the innermost frames (httpcore, urllib3, `http.client`, `ssl`).
"""

from __future__ import annotations

import gc
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from types import FrameType

__all__ = ["hang_up"]

READING_FRAMES = 2
"""A thread in a read has the socket among so many innermost frames; further out it may stand for
anything."""

HTTP_FRAMES = 6
"""Among so many is the connection that reads it."""

_SHARED = frozenset({"HTTP2Connection", "AsyncHTTP2Connection"})
"""httpcore's connections that carry other requests too, and must not be ended for one."""


_COLLECTS_ANYWHERE = sys.version_info < (3, 12)
_LOOKING = threading.Lock()
"""The collector's switch is one for all threads."""


def hang_up(thread: threading.Thread) -> bool:
    """Shut down the socket that `thread` waits for; whether there was one.

    The thread sees the end of the stream or an error, and cleans up as for any broken connection.
    """
    with _no_collection():
        waited_for = _waited_for(thread)
    if waited_for is None:
        return False
    with suppress(OSError):  # the host was first
        socket.socket.shutdown(waited_for, socket.SHUT_RDWR)  # of TLS too: `ssl` would say goodbye
    return True


def _waited_for(thread: threading.Thread) -> socket.socket | None:
    """The socket of one request that `thread` reads."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - its documented name
    frames = list(islice(_outwards(frame), HTTP_FRAMES))
    if not thread.is_alive():  # its number, and so the frame, may be another thread's already
        return None
    if any(type(one.f_locals.get("self")).__name__ in _SHARED for one in frames):
        return None
    return next((sock for one in frames[:READING_FRAMES] for sock in _sockets(one)), None)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from starting in the middle of a look at another thread.

    Before Python 3.12 every allocation may start it. A finalizer then lets other threads go on: one
    of them locks up the process (python/cpython#106883), or the frame that is read has returned.
    """
    if not _COLLECTS_ANYWHERE:
        yield
        return
    with _LOOKING:
        collects = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collects:
                gc.enable()


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _sockets(frame: FrameType) -> Iterator[socket.socket]:
    """Sockets among a frame's variables, bare or as `_sock` of a stream."""
    for value in list(frame.f_locals.values()):
        for one in (value, getattr(value, "__dict__", {}).get("_sock")):
            if isinstance(one, socket.socket):
                yield one
