"""Decode threads of all engines of this process against the cores it may use.

Two engines with two threads each on two cores do not take twice as long but hundreds of times:
each waits, spinning, for threads of its own that have no core. So they take turns.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import deque
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)


def usable_cores() -> int:
    """The cores this process may use; a container's share may be less than its machine has."""
    cores = os.cpu_count() or 1
    with suppress(AttributeError):  # Linux only
        cores = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        cores = min(cores, max(1, math.ceil(int(quota) / int(period))))
    return cores


class DecodeThreads:
    """Lets engines decode at once as far as their threads have cores, first come first served.

    Args:
        cores: How many threads may run.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._lock = threading.Lock()
        self._registered = 0
        self._running = 0
        self.crowded = False
        """There are more threads than cores, so that engines have to take turns."""
        self._queue: deque[tuple[int, threading.Event]] = deque()

    def join(self, n_threads: int) -> None:
        """An engine with `n_threads` decode threads starts; warns if that is too many."""
        with self._lock:
            self._registered += n_threads
            registered = self._registered
            self.crowded = registered > self.cores
        if registered > self.cores:
            logger.warning(
                "%d decode threads in this process and %d cores: engines take turns, none is "
                "slower for it than alone, but lower n_threads so that they sum to the cores if "
                "they are to decode at once",
                registered,
                self.cores,
            )

    def leave(self, n_threads: int) -> None:
        """An engine with `n_threads` decode threads ended."""
        with self._lock:
            self._registered -= n_threads
            self.crowded = self._registered > self.cores

    @contextmanager
    def turn(self, n_threads: int) -> Iterator[None]:
        """Wait for `n_threads` cores."""
        needed, admitted = min(n_threads, self.cores), threading.Event()
        with self._lock:
            self._queue.append((needed, admitted))
            self._admit()
        admitted.wait()
        try:
            yield
        finally:
            with self._lock:
                self._running -= needed
                self._admit()

    def _admit(self) -> None:
        while self._queue and self._running + self._queue[0][0] <= self.cores:
            needed, admitted = self._queue.popleft()
            self._running += needed
            admitted.set()


decode_threads = DecodeThreads(usable_cores())


def _start_anew() -> None:
    """In a forked child, where no engine of the parent decodes."""
    decode_threads.__init__(usable_cores())  # type: ignore[misc]  # as though it were new


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
