"""The engine thread: it owns one context and decodes all active sequences together.

    inbox → asks and feeds change sequences → leases for who queues → one batch → steps to futures

Sessions talk to it through an inbox and are answered by futures. A session that waits for a hosted
model keeps its KV and is left out of the batch. `leases.py` says who has a sequence, `decoder.py`
how asks become steps. Nothing here knows llama.cpp or numpy.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from langchain_relay.errors import LocalModelError, RelayError
from langchain_relay.local.decoder import RUN_AHEAD, Decoder
from langchain_relay.local.inbox import (
    Ask,
    Closed,
    Fed,
    Left,
    Message,
    Open,
    Resumed,
    Stop,
    refuse,
)
from langchain_relay.local.leases import Leases
from langchain_relay.local.lender import Lender

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from langchain_relay.local.context_types import Context
    from langchain_relay.local.prefix_files import PrefixFiles

STRAGGLERS_S = 0.001
"""How long a batch waits for chats that were answered just now and have not asked again."""

STOP_S = 10.0
"""How long the end of the process waits for the decode that is running."""


class Engine:
    """Loads on its own thread, then serves until it is stopped or fails.

    Args:
        load: Makes the context; called on the engine thread.
        max_concurrency: Sequences of the context.
        n_batch: Tokens in one batch, at least `max_concurrency`.
        run_ahead: Steps decoded before they are asked for; 0 is off.
        files: Where system prompts are kept for other processes; `None`: nowhere.
    """

    def __init__(
        self,
        load: Callable[[], Context],
        *,
        max_concurrency: int,
        n_batch: int,
        run_ahead: int = RUN_AHEAD,
        files: Callable[[Context], PrefixFiles] | None = None,
    ) -> None:
        self.loaded: Future[Context] = Future()
        self._load = load
        self._n_batch = n_batch
        self._run_ahead = run_ahead
        self._max_concurrency = max_concurrency
        self._files = files
        self._context: Context | None = None
        self._stopping = False
        # SimpleQueue.put may be called from a garbage collection that runs inside put.
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._ended: RelayError | None = None
        self._pid = os.getpid()
        self._starting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="langchain-relay", daemon=True)

    # --- called from any thread -----------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, which loads the model, unless it was started."""
        with self._starting:
            if self._thread.ident is None:
                _running.add(self)
                self._thread.start()

    @property
    def alive(self) -> bool:
        """Messages are still answered."""
        return self._ended is None and self._pid == os.getpid()

    def submit(self, message: Message) -> None:
        """Send a message; if the engine has ended, its future fails at once."""
        if self._pid != os.getpid():
            refuse(message, LocalModelError("this session belongs to the process that forked"))
            return
        self._inbox.put(message)
        # The thread sets `_ended` before it empties the inbox for the last time.
        if self._ended is not None:
            self._refuse_inbox(self._ended)

    def stop(self, *, timeout_s: float | None = None) -> None:
        """End the thread after the decode that is running; all that is pending fails."""
        self.submit(Stop())
        if self._pid == os.getpid() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def leave(self, user: Hashable) -> None:
        """Fail what `user` has under way, and wait until nothing of it is decoded any more."""
        left = Left(user, Future())
        self.submit(left)
        if threading.current_thread() is not self._thread:
            left.done.result()

    def _refuse_inbox(self, error: RelayError) -> None:
        while True:
            try:
                refuse(self._inbox.get_nowait(), error)
            except Empty:
                return

    # --- the engine thread ----------------------------------------------------------------------

    def _run(self) -> None:
        error: RelayError = LocalModelError("the local model was closed")
        try:
            self._context = self._load()
            self._serve(self._context)
        except RelayError as failure:
            error = failure
        except BaseException as failure:  # noqa: BLE001  # whoever waits must hear of anything
            error = LocalModelError(f"the local engine failed: {failure!r}")
            error.__cause__ = failure
        finally:
            self._end(error)

    def _serve(self, context: Context) -> None:
        files = None if self._files is None else self._files(context)
        lender = Lender(context, self._max_concurrency, files)
        self._decoder = Decoder(context, lender, n_batch=self._n_batch, run_ahead=self._run_ahead)
        self._leases = Leases(context, lender, self._decoder)
        self.loaded.set_result(context)
        rests = True
        while True:
            self._receive(wait=rests)
            if self._stopping:
                return
            self._leases.grant()
            rests = not self._decoder.step()

    def _end(self, error: RelayError) -> None:
        self._ended = error
        self._refuse_inbox(error)
        if self.loaded.done():  # else nobody has or waits for a sequence
            self._leases.end(error)
        if self._context is not None:
            self._context.free()
        if not self.loaded.done():
            self.loaded.set_exception(error)
        _running.discard(self)

    def _receive(self, *, wait: bool) -> None:
        """Take in what was sent; `wait`: there is nothing to decode until something is."""
        if wait:
            self._handle(self._inbox.get())
        self._take_all()
        if self._decoder.expects_more:
            self._await_stragglers()

    def _take_all(self) -> None:
        while not self._inbox.empty() and not self._stopping:
            self._handle(self._inbox.get_nowait())

    def _await_stragglers(self) -> None:
        deadline = time.monotonic() + STRAGGLERS_S
        while self._decoder.expects_more and not self._stopping:
            try:
                self._handle(self._inbox.get(timeout=max(0, deadline - time.monotonic())))
            except Empty:
                self._decoder.expect_no_more()
            self._take_all()

    def _handle(self, message: Message) -> None:
        match message:
            case Ask():
                self._decoder.ask(message)
            case Resumed():
                pass  # it woke us
            case Fed():
                self._decoder.feed(message)
            case Open():
                self._leases.queue(message)
            case Closed():
                self._leases.take_back(message.lease)
            case Left():
                try:
                    self._leases.dismiss(message.user)
                finally:
                    message.done.set_result(None)
            case Stop():
                self._stopping = True


_running: set[Engine] = set()


@atexit.register
def _stop_all() -> None:
    """A thread inside llama.cpp while the process tears down would crash it."""
    for engine in list(_running):
        engine.stop(timeout_s=STOP_S)
