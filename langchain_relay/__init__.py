"""A chat model in which a local model writes and a hosted one helps, a few tokens at a time.

Importing this package loads no model, no llama.cpp and no vendor SDK: each public name is imported
when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_relay.budget import Budget
    from langchain_relay.callbacks import (
        CostCallbackHandler,
        RelayCallbackHandler,
        get_cost_callback,
        get_relay_callback,
    )
    from langchain_relay.chat_models import RelayChatModel
    from langchain_relay.engine.values import Charge, Span
    from langchain_relay.errors import BudgetExceeded
    from langchain_relay.report import RelayReport, relay_report

    __version__: str

__all__ = [
    "Budget",
    "BudgetExceeded",
    "Charge",
    "CostCallbackHandler",
    "RelayCallbackHandler",
    "RelayChatModel",
    "RelayReport",
    "Span",
    "__version__",
    "get_cost_callback",
    "get_relay_callback",
    "relay_report",
]

_HOMES = {
    "Budget": "langchain_relay.budget",
    "BudgetExceeded": "langchain_relay.errors",
    "Charge": "langchain_relay.engine.values",
    "CostCallbackHandler": "langchain_relay.callbacks",
    "RelayCallbackHandler": "langchain_relay.callbacks",
    "RelayChatModel": "langchain_relay.chat_models",
    "RelayReport": "langchain_relay.report",
    "Span": "langchain_relay.engine.values",
    "get_cost_callback": "langchain_relay.callbacks",
    "get_relay_callback": "langchain_relay.callbacks",
    "relay_report": "langchain_relay.report",
}


def __getattr__(name: str) -> object:
    value: object
    if name == "__version__":
        from importlib.metadata import version

        value = version("langchain-relay")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
