"""The errors users catch, each with langchain-core's family as second base.

    RelayError
    ├── UsageMistake                             ModelInvalidRequestError
    │   ├── ModelNotFound                        ModelNotFoundError
    │   ├── UnknownDelegate
    │   ├── PriceUnknown
    │   └── UnsupportedContent
    ├── MissingExtra                             ImportError
    ├── ContextOverflowError                     ContextOverflowError
    ├── BudgetExceeded                           ModelPermissionDeniedError, never retried
    ├── DelegateError                            ModelAPIError
    │   ├── DelegateTimeout                      ModelTimeoutError
    │   ├── DelegateTruncated                    ModelConnectionError
    │   ├── CircuitOpen                          ModelConnectionError
    │   ├── Offline                              ModelPermissionDeniedError
    │   └── RedactionFailed                      ModelInvalidRequestError
    └── LocalModelError                          ModelError

The engine raises its own classes (`langchain_relay.engine.errors`), which know nothing of
LangChain; `public` makes the class of this module out of one, so that
`except langchain_relay.BudgetExceeded` always catches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from langchain_core import exceptions as core

from langchain_relay.engine import errors as engine

__all__ = [
    "BudgetExceeded",
    "CircuitOpen",
    "ContextOverflowError",
    "DelegateError",
    "DelegateTimeout",
    "DelegateTruncated",
    "LocalModelError",
    "MissingExtra",
    "ModelNotFound",
    "Offline",
    "PriceUnknown",
    "RedactionFailed",
    "RelayError",
    "UnknownDelegate",
    "UnsupportedContent",
    "UsageMistake",
]

RelayError = engine.RelayError


class UsageMistake(engine.UsageMistake, core.ModelInvalidRequestError):
    """Something the caller passed cannot be used as it is."""


class ModelNotFound(engine.ModelNotFound, UsageMistake, core.ModelNotFoundError):
    """A model file or alias that is missing, or is not what it should be."""


class UnknownDelegate(engine.UnknownDelegate, UsageMistake):
    """A delegate that cannot be used."""


class PriceUnknown(engine.PriceUnknown, UsageMistake):
    """A price is needed and nobody knows one."""


class UnsupportedContent(engine.UnsupportedContent, UsageMistake):
    """Message content that a text-only local model cannot read."""


class MissingExtra(engine.MissingExtra):
    """An optional dependency is needed and not installed."""


class ContextOverflowError(engine.ContextOverflowError, core.ContextOverflowError):
    """Text that does not fit into the local context."""


class BudgetExceeded(engine.BudgetExceeded, core.ModelPermissionDeniedError):
    """A budget refused a hand-over before anything was spent on it."""


class DelegateError(engine.DelegateError, core.ModelAPIError):
    """The hosted side failed; `retryable` says whether another try may succeed."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message, **facts)
        self.is_retryable = self.retryable  # what langchain's retry middleware asks


class DelegateTimeout(engine.DelegateTimeout, DelegateError, core.ModelTimeoutError):
    """The hosted side took longer than the hand-over may take."""


class DelegateTruncated(engine.DelegateTruncated, DelegateError, core.ModelConnectionError):
    """The hosted stream ended without a finish reason."""


class CircuitOpen(engine.CircuitOpen, DelegateError, core.ModelConnectionError):
    """The host gave no response to several attempts in a row and is not asked for a while."""


class Offline(engine.Offline, DelegateError, core.ModelPermissionDeniedError):
    """A model that is not on this machine is needed, and `LANGCHAIN_RELAY_OFFLINE` is set."""


class RedactionFailed(engine.RedactionFailed, DelegateError, core.ModelInvalidRequestError):
    """The `redact` hook raised or returned no string; nothing was sent."""


class LocalModelError(engine.LocalModelError, core.ModelError):
    """The local engine failed or was closed."""


_PUBLIC: dict[type[engine.RelayError], type[engine.RelayError]] = {
    engine.UsageMistake: UsageMistake,
    engine.ModelNotFound: ModelNotFound,
    engine.UnknownDelegate: UnknownDelegate,
    engine.PriceUnknown: PriceUnknown,
    engine.UnsupportedContent: UnsupportedContent,
    engine.MissingExtra: MissingExtra,
    engine.ContextOverflowError: ContextOverflowError,
    engine.BudgetExceeded: BudgetExceeded,
    engine.DelegateError: DelegateError,
    engine.DelegateTimeout: DelegateTimeout,
    engine.DelegateTruncated: DelegateTruncated,
    engine.CircuitOpen: CircuitOpen,
    engine.Offline: Offline,
    engine.RedactionFailed: RedactionFailed,
    engine.LocalModelError: LocalModelError,
}


def public(error: engine.RelayError) -> engine.RelayError:
    """The same error as the class users catch; an error that is public already is itself."""
    cls = _PUBLIC.get(type(error))
    if cls is None:
        return error
    twin = cls.__new__(cls, *error.args)
    twin.args = error.args
    twin.__dict__.update(error.__dict__)
    if isinstance(twin, DelegateError):
        twin.is_retryable = twin.retryable
    return twin


@contextmanager
def translated() -> Iterator[None]:
    """Errors of the engine leave this block as public ones, the original as their cause."""
    try:
        yield
    except engine.RelayError as error:
        twin = public(error)
        if twin is error:
            raise
        raise twin from error
