"""Local models that write beside a hosted one. Importing this package loads no llama.cpp."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_relay.local.llamacpp import LlamaCppModel

__all__ = ["LlamaCppModel"]


def __getattr__(name: str) -> object:
    if name == "LlamaCppModel":
        from langchain_relay.local.llamacpp import LlamaCppModel

        globals()[name] = LlamaCppModel
        return LlamaCppModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
