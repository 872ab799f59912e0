"""What llama.cpp says while our threads use it: kept for errors instead of printed."""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import llama_cpp

from langchain_relay.local.forks import ForkLock

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOG_ERROR, _LOG_CONTINUED = 4, 5


class _Log:
    """Keeps what llama.cpp says on our threads; on other threads it is passed on as before."""

    def __init__(self) -> None:
        self._lines: dict[int, deque[tuple[int, str]]] = {}
        self._installing = ForkLock()
        self._installed: Any = None
        self._previous: Any = llama_cpp.llama_log_callback()  # falsy while it is NULL
        self._previous_data = ctypes.c_void_p()

    def own_this_thread(self) -> None:
        """From now on, what is said on this thread is kept and not printed."""
        self._lines[threading.get_ident()] = deque(maxlen=40)
        # Two engines load at once: the second must not take our own callback for the previous one.
        with self._installing:
            if self._installed is None:
                previous = ctypes.byref(self._previous), ctypes.byref(self._previous_data)
                llama_cpp.llama_log_get(*previous)
                self._installed = llama_cpp.llama_log_callback(self._take)
                llama_cpp.llama_log_set(self._installed, ctypes.c_void_p(0))

    def disown_this_thread(self) -> None:
        """Thread numbers are used again: what the next one says is not ours."""
        self._lines.pop(threading.get_ident(), None)

    def last_words(self) -> str:
        """The last errors of this thread, or a remark that there were none."""
        said = "".join(self._grave()).strip()
        return f"llama.cpp said: {said}" if said else "llama.cpp gave no reason."

    def _grave(self) -> Iterator[str]:
        grave = False
        for level, text in self._lines.get(threading.get_ident(), ()):
            grave = level == _LOG_ERROR if level != _LOG_CONTINUED else grave
            if grave:
                yield text

    def _take(self, level: int, text: bytes, _data: Any) -> None:
        lines = self._lines.get(threading.get_ident())
        if lines is not None:
            lines.append((level, text.decode(errors="replace")))
        elif self._previous:
            self._previous(level, text, self._previous_data)


log = _Log()
