"""Local models that write beside a hosted one. Importing this package loads no llama.cpp."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_relay.local.llamacpp import LlamaCppModel
    from langchain_relay.local.server.model import CompletionServerModel

__all__ = ["CompletionServerModel", "LlamaCppModel"]

_HOMES = {
    "CompletionServerModel": "langchain_relay.local.server.model",
    "LlamaCppModel": "langchain_relay.local.llamacpp",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
