"""An answer's run and config, and where its events go: its handlers and LangGraph's custom stream.

langchain-core passes no run manager to `_stream` under `stream()` and `astream()` (by design,
langchain PR #23500), so the run is bound in a context variable while core's generator runs. The
config reaches no model at all, and a run's metadata lacks its `thread_id`: it is bound likewise.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Generic, TypeVar
from uuid import uuid4

from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackManager, CallbackManager
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langchain_core.utils.uuid import uuid7

_RUN: ContextVar[BaseRunManager | None] = ContextVar("langchain_relay_run", default=None)
_CONFIG: ContextVar[RunnableConfig | None] = ContextVar("langchain_relay_config", default=None)

T = TypeVar("T")


class _bound(Generic[T]):  # noqa: N801 - used like a function
    """A context variable has a value inside this block. May be entered again, not nested.

    A class, since `stream` enters it for every chunk and `contextmanager` makes three objects.
    """

    __slots__ = ("_token", "_value", "_variable")

    def __init__(self, variable: ContextVar[T], value: T) -> None:
        self._variable = variable
        self._value = value

    def __enter__(self) -> None:
        self._token = self._variable.set(self._value)

    def __exit__(self, *error: object) -> None:
        self._variable.reset(self._token)


def bound(run: BaseRunManager | None) -> _bound[BaseRunManager | None]:
    """`current()` is `run` inside this block."""
    return _bound(_RUN, run)


def configured(config: RunnableConfig | None) -> _bound[RunnableConfig | None]:
    """`config_of()` is `config` inside this block, with what it inherits from the caller's run."""
    return _bound(_CONFIG, ensure_config(config))


def config_of(run: BaseRunManager | None) -> Mapping[str, Any]:
    """The config of the answer that is being written; of one without, its run's metadata."""
    return _CONFIG.get() or {"metadata": run.metadata if run else {}}


def current(run_manager: BaseRunManager | None) -> BaseRunManager | None:
    """The run of the answer that is being written, if LangChain told us."""
    return run_manager or _RUN.get()


def answer_id(run: BaseRunManager | None) -> str:
    """Names one answer. Callers may give a run id twice; money is booked once for each name."""
    once = uuid4().hex
    return f"{run.run_id}.{once[:16]}" if run else once


def own_run(
    model: BaseChatModel,
    config: RunnableConfig | None,
    manager: type[CallbackManager | AsyncCallbackManager],
) -> tuple[RunnableConfig, BaseRunManager]:
    """Choose the run id and configure the handlers once, for core and for our events alike."""
    config = ensure_config(config)
    run_id = config["run_id"] = config.get("run_id") or uuid7()
    callbacks: BaseCallbackManager = manager.configure(
        config.get("callbacks"),
        model.callbacks,
        model.verbose,
        config.get("tags"),
        model.tags,
        config.get("metadata"),
        model.metadata,
    )
    config["callbacks"] = callbacks
    run = BaseRunManager(
        run_id=run_id,
        handlers=callbacks.handlers,
        inheritable_handlers=callbacks.inheritable_handlers,
        parent_run_id=callbacks.parent_run_id,
        tags=callbacks.tags,
        inheritable_tags=callbacks.inheritable_tags,
        metadata=callbacks.metadata,
        inheritable_metadata=callbacks.inheritable_metadata,
    )
    return config, run


def emit(run: BaseRunManager | None, name: str, data: Mapping[str, Any]) -> None:
    """Send an event on the answer's own run. Handlers with `raise_error` may raise."""
    _write_to_graph(name, data)
    if run is not None and run.handlers:
        manager = CallbackManager(**_fields(run))
        manager.on_custom_event(name, dict(data), run_id=run.run_id)


async def aemit(run: BaseRunManager | None, name: str, data: Mapping[str, Any]) -> None:
    """Async twin of `emit`."""
    _write_to_graph(name, data)
    if run is not None and run.handlers:
        manager = AsyncCallbackManager(**_fields(run))
        await manager.on_custom_event(name, dict(data), run_id=run.run_id)


def _fields(run: BaseRunManager) -> dict[str, Any]:
    return {
        "handlers": run.handlers,
        "parent_run_id": run.parent_run_id,
        "tags": run.tags,
        "metadata": run.metadata,
    }


def _write_to_graph(name: str, data: Mapping[str, Any]) -> None:
    """Inside a LangGraph node the event also goes to `stream_mode="custom"`."""
    graph = sys.modules.get("langgraph.config")
    if graph is None:
        return
    try:
        write = graph.get_stream_writer()
    except (RuntimeError, KeyError):  # not inside a node
        return
    write({"type": name, **data})
