"""One engine for all models of this process that have the same file and settings."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from langchain_relay.local.inbox import Left, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from langchain_relay.local.engine import Engine

# Re-entrant: a garbage collection in here may end another model, which leaves its engine.
_lock = threading.RLock()
_engines: dict[Hashable, Engine] = {}
_users: dict[Engine, set[Hashable]] = {}


def join(key: Hashable, user: Hashable, new: Callable[[], Engine]) -> Engine:
    """The living engine of `key`, a new one if there is none; `user` has to leave it once."""
    with _lock:
        engine = _joined(key, user, new)
    # Without the lock: the new thread may collect a model, which leaves its engine.
    engine.start()
    return engine


def _joined(key: Hashable, user: Hashable, new: Callable[[], Engine]) -> Engine:
    while True:
        engine = _engines.get(key)
        if engine is not None and not engine.alive:
            _users.pop(engine, None)
        if engine is None or not engine.alive:
            engine = _engines[key] = new()
        _users.setdefault(engine, set()).add(user)
        # A collection in between may have ended the engine's last other user.
        if _engines.get(key) is engine:
            return engine
        _users.pop(engine, None)


def leave(engine: Engine, user: Hashable, *, wait: bool = False) -> None:
    """`user` needs `engine` no more: what it has under way fails; the last one stops the engine.

    Args:
        engine: The engine.
        user: Who joined it. Leaving twice does nothing.
        wait: Come back once nothing of `user` is decoded any more.
    """
    with _lock:
        users = _users.get(engine, set())
        if user not in users:
            return
        users.discard(user)
        last = not users
        if last:
            del _users[engine]
            for key in [key for key, value in _engines.items() if value is engine]:
                del _engines[key]
    if wait:
        engine.stop() if last else engine.leave(user)
    else:
        engine.submit(Stop() if last else Left(user, Future()))


def _start_anew() -> None:
    """In a forked child: the engines are the parent's, and so is whoever holds the lock."""
    global _lock  # noqa: PLW0603 - a lock cannot be unlocked by a process that does not hold it
    _lock = threading.RLock()
    _engines.clear()
    _users.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
