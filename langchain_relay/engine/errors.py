"""The errors the relay itself can raise.

    RelayError
    ├── UsageMistake            the caller's: a wrong argument, file or setting
    │   ├── ModelNotFound       a GGUF, alias or adapter that is not there, or is no GGUF
    │   ├── UnknownDelegate     a delegate string or object nobody can use
    │   ├── PriceUnknown        a budget in USD over a model without a price
    │   ├── UnsupportedContent  images, audio and other content a text model cannot read
    │   └── MissingExtra        an optional dependency that is not installed
    ├── ContextOverflowError    the prompt or the answer does not fit into the local context
    ├── BudgetExceeded          a budget refused a hand-over
    ├── LedgerError             the store of a ledger cannot be reached
    ├── DelegateError           the hosted side failed
    │   ├── DelegateTimeout     it took longer than `timeout`
    │   ├── DelegateTruncated   its stream ended without a finish reason
    │   ├── CircuitOpen         its host did not answer lately and is left alone for a while
    │   ├── Offline             it is elsewhere, and `LANGCHAIN_RELAY_OFFLINE` is set
    │   └── RedactionFailed     the `redact` hook failed, so nothing was sent
    └── LocalModelError         the local engine failed or was closed

`langchain_relay.errors` has the same names with langchain-core's error family as second base.
"""

from __future__ import annotations

NANOUSD_PER_USD = 10**9


class RelayError(Exception):
    """Base of every error of this package."""


class UsageMistake(RelayError):
    """Something the caller passed cannot be used as it is."""


class ModelNotFound(UsageMistake):
    """A model file or alias that is missing, or is not what it should be."""


class UnknownDelegate(UsageMistake):
    """A delegate that cannot be used."""


class PriceUnknown(UsageMistake):
    """A price is needed and nobody knows one. Unknown is not zero."""


class UnsupportedContent(UsageMistake):
    """Message content that a text-only local model cannot read."""


class MissingExtra(RelayError, ImportError):
    """An optional dependency is needed and not installed."""


class ContextOverflowError(RelayError):
    """Text that does not fit into the local context of `n_ctx` tokens."""

    def __init__(self, message: str, *, needed_tokens: int, n_ctx: int) -> None:
        super().__init__(message)
        self.needed_tokens = needed_tokens
        self.n_ctx = n_ctx


class BudgetExceeded(RelayError):
    """A budget refused a hand-over before anything was spent on it.

    Attributes:
        unit: `usd`, `tokens`, `calls` or `share`: which limit refused.
        needed: The worst case asked for, in nano-dollars, tokens (for `share` too) or calls.
        left: What was left, in the same unit.
        limit: The limit, in the same unit.
        scope: The scope of the limit, for example `run`.
        window: The window of the limit, or `None`.
    """

    def __init__(
        self,
        *,
        unit: str,
        needed: int,
        left: int,
        limit: int,
        scope: str = "run",
        window: str | None = None,
    ) -> None:
        self.unit = unit
        self.needed = needed
        self.left = left
        self.limit = limit
        self.scope = scope
        self.window = window
        need, most, rest = (amount_text(value, unit) for value in (needed, limit, left))
        super().__init__(
            f"this hand-over may need {need}, and of {most} for {whose(scope, window)} there is "
            f"left: {rest}; "
            f"raise Budget({unit}=...)" + (" or lower max_span_tokens" if unit == "usd" else "")
        )


def whose(scope: str, window: str | None) -> str:
    """Whose limit it is, for people."""
    named = {"global": "everybody", "agent_run": "this run of the agent"}.get(scope)
    return (named or f"this {scope}") + ("" if window is None else f" in the {window}")


def amount_text(value: int, unit: str) -> str:
    """An amount of `usd` (nano-dollars), `tokens`, `calls` or `share` (tokens), for people."""
    if unit == "share":
        return f"{value} token{'' if value == 1 else 's'}"
    if unit != "usd":
        return f"{value} {unit.removesuffix('s') if value == 1 else unit}"
    return f"{value / NANOUSD_PER_USD:.9f}".rstrip("0").rstrip(".") + " USD"


class LedgerError(RelayError):
    """The store of a ledger cannot be reached or used, so nobody knows what is left.

    A reservation that fails so was refused. Whether the store noted it before the connection broke
    is not known: if it did, it expires and is booked at its worst case.
    """


class DelegateError(RelayError):
    """The hosted side failed.

    Attributes:
        retryable: Another attempt may succeed.
        sent: The provider answered with content or may have begun to; money may be owed.
        retry_after_s: Seconds the provider asked to wait, if it said so.
        answered: A response header came (`True`), or the attempt ended before one (`False`).
            `None`: nobody knows, or nothing was tried.
    """

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        sent: bool = True,
        retry_after_s: float | None = None,
        answered: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.sent = sent
        self.retry_after_s = retry_after_s
        self.answered = answered


class DelegateTimeout(DelegateError):
    """The hosted side took longer than the hand-over may take."""


class DelegateTruncated(DelegateError):
    """The hosted stream ended without a finish reason."""


class CircuitOpen(DelegateError):
    """The host gave no response to several attempts in a row and is not asked for a while."""


class Offline(DelegateError):
    """A model that is not on this machine is needed, and `LANGCHAIN_RELAY_OFFLINE` is set."""


class RedactionFailed(DelegateError):
    """The `redact` hook raised or returned no string; nothing was sent."""


class LocalModelError(RelayError):
    """The local engine failed or was closed."""
