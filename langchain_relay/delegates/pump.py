"""Pulls a sync stream on a daemon thread, so that whoever reads it need not wait for the host.

The deadline is the reader's, and closing hangs up on the host at once: see `hangup.py`.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

from langchain_relay.delegates.hangup import hang_up

__all__ = ["Pump", "pulled"]

T = TypeVar("T")

QUEUED_PIECES = 64
"""Pieces a pulling thread may be ahead of its reader."""

HANG_UP_EVERY_S = (0.001, 0.005, *([0.02] * 10), *([0.1] * 50), *([1.0] * 60))
"""A thread that is between two reads is hung up on in the next one; so is one that connects anew.
After a minute it is left to its client's own timeout: it waits for something that is no socket."""


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


class Pump(Generic[T]):
    """A stream that a thread of its own pulls, in a copy of the caller's context.

    Args:
        open_stream: Called on the thread; opens the stream.
        on_put: Called on the thread when something can be read.
    """

    def __init__(
        self, open_stream: Callable[[], Iterator[T]], on_put: Callable[[], object] | None = None
    ) -> None:
        self._pieces: queue.Queue[T | _Failed | None] = queue.Queue(QUEUED_PIECES)
        self._on_put = on_put
        self._closed = threading.Event()
        self._over = False  # the reader has seen the end
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._pull, open_stream), name="relay-delegate", daemon=True
        )
        self._thread.start()

    def next(self, timeout_s: float) -> T | None:
        """The next piece, `None` at the end; what the stream raised is raised.

        Raises:
            queue.Empty: nothing came within `timeout_s`.
        """
        piece = self._pieces.get(timeout=None if timeout_s == inf else max(0.0, timeout_s))
        self._over = piece is None or isinstance(piece, _Failed)
        if isinstance(piece, _Failed):
            raise piece.error
        return piece

    def close(self) -> None:
        """Hang up, unless the stream is over. Does not wait for the thread."""
        self._closed.set()
        with suppress(queue.Empty):
            while True:  # a thread that waits to put a piece goes on and sees the flag
                self._pieces.get_nowait()
        if not self._over:
            threading.Thread(target=self._hang_up, name="relay-hang-up", daemon=True).start()

    def _hang_up(self) -> None:
        for pause_s in HANG_UP_EVERY_S:
            if not self._thread.is_alive():
                return
            hang_up(self._thread)
            self._thread.join(pause_s)

    def _pull(self, open_stream: Callable[[], Iterator[T]]) -> None:
        try:
            stream = open_stream()
            for piece in stream:
                if self._closed.is_set():
                    break
                self._put(piece)
            if close := getattr(stream, "close", None):
                close()
            self._put(None)
        except Exception as error:  # noqa: BLE001 - handed to the reader, which raises it
            self._put(_Failed(error))
        except BaseException as error:  # noqa: BLE001 - the reader is not to be cancelled by it
            self._put(_Failed(RuntimeError(f"the stream raised {error!r}")))

    def _put(self, piece: T | _Failed | None) -> None:
        while not self._closed.is_set():
            try:
                self._pieces.put(piece, timeout=1.0)
            except queue.Full:
                continue
            if self._on_put is not None:
                self._on_put()
            return


async def pulled(open_stream: Callable[[], Iterator[T]]) -> AsyncGenerator[T, None]:
    """Read a sync stream on an event loop; closing this hangs up on its host.

    An executor's thread would wait for the host after the reader has gone, and the loop for it.
    """
    loop, ready = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            loop.call_soon_threadsafe(ready.set)

    pump = Pump(open_stream, tell)
    try:
        while True:
            ready.clear()
            try:
                piece = pump.next(0)
            except queue.Empty:
                await ready.wait()
                continue
            if piece is None:
                return
            yield piece
    finally:
        pump.close()
