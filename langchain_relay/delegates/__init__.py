"""Hosted models, and what is told to them: the transports, the seam, the money of a hand-over.

Importing this package imports no vendor SDK and no llama.cpp.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_relay.delegates.chat_model import ChatModelDelegate
    from langchain_relay.delegates.fallback import FallbackDelegate
    from langchain_relay.delegates.local import LocalDelegate
    from langchain_relay.delegates.openai import OpenAIDelegate

__all__ = ["ChatModelDelegate", "FallbackDelegate", "LocalDelegate", "OpenAIDelegate"]

_HOMES = {
    "ChatModelDelegate": "langchain_relay.delegates.chat_model",
    "FallbackDelegate": "langchain_relay.delegates.fallback",
    "LocalDelegate": "langchain_relay.delegates.local",
    "OpenAIDelegate": "langchain_relay.delegates.openai",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
