"""One client per event loop: pooled connections die with the loop that opened them.

A program that calls `asyncio.run` twice gets "Event loop is closed" from any async HTTP client that
kept a connection from the first run (seen with openai 3.52 and langchain-openai 1.7.3).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")

_SDKS = frozenset({"openai", "anthropic", "groq"})


class PerLoop(Generic[T]):
    """Makes a value once for each event loop and forgets it with the loop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # loops of several threads may share one delegate
        self._made: WeakKeyDictionary[asyncio.AbstractEventLoop, T] = WeakKeyDictionary()

    def get(self, make: Callable[[], T]) -> T:
        """The running loop's value."""
        # A pool that keeps a connection keeps its loop alive, so a closed loop is dropped by hand.
        loop = asyncio.get_running_loop()
        with self._lock:
            for closed in [known for known in self._made if known.is_closed()]:
                del self._made[closed]
            if loop not in self._made:
                self._made[loop] = make()
            return self._made[loop]


def with_own_connections(client: Any, **transport: Any) -> Any:
    """A copy of an async SDK client with its retries off and a pool of its own.

    The SDKs of OpenAI, Anthropic and Groq are built alike. A client with an `http_client` that the
    user made keeps it: nobody else knows its settings.

    Args:
        client: `openai.AsyncOpenAI`, `anthropic.AsyncAnthropic` or `groq.AsyncGroq`.
        transport: Further settings of the pool; `None` where there is none.
    """
    if not has_default_transport(client):
        return client.with_options(max_retries=0)
    settings = {name: value for name, value in transport.items() if value is not None}
    pool = _sdk(client).DefaultAsyncHttpxClient(timeout=client.timeout, **settings)
    return client.with_options(max_retries=0, http_client=pool)


def _sdk(client: Any) -> Any:
    packages = (cls.__module__.partition(".")[0] for cls in type(client).__mro__)
    return import_module(next(name for name in packages if name in _SDKS))


def has_default_transport(client: Any) -> bool:
    """Whether the client's HTTP client was made by its SDK or by LangChain."""
    return type(client._client).__name__.endswith("HttpxClientWrapper")  # noqa: SLF001 - there is no public view
