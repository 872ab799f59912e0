"""Totals over the relay's events, for a block of code."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from uuid import UUID

from langchain_core.tracers.context import register_configure_hook

from langchain_relay.callbacks.relay import RelayCallbackHandler
from langchain_relay.report import usd
from langchain_relay.schema import (
    BudgetWarningEvent,
    CallDeniedEvent,
    CallFailedEvent,
    CallFinishedEvent,
    CallOutcome,
    CallStartedEvent,
)


@dataclass(eq=False)  # each is its own: LangChain drops a handler that equals another
class RelayTotals(RelayCallbackHandler):
    """Sums over every answer that ran while it was attached; safe to share between threads.

    Attributes:
        calls: Hand-overs that started.
        finished: Of these, those that ended well.
        failed: Of these, those that failed.
        denied: Hand-overs that did not start.
        warnings: Budget warnings.
        attempts: Requests sent to hosted models.
        input_tokens: Hosted input tokens that were reported.
        output_tokens: Hosted output tokens that were reported.
        local_tokens: Delegated tokens in the local vocabulary.
        cost_nanousd: Nano-dollars; of calls with an unknown price nothing is in here.
        unpriced_calls: Calls whose price is unknown.
        estimated_calls: Calls booked at their worst case, because no usage was reported.
    """

    calls: int = 0
    finished: int = 0
    failed: int = 0
    denied: int = 0
    warnings: int = 0
    attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    local_tokens: int = 0
    cost_nanousd: int = 0
    unpriced_calls: int = 0
    estimated_calls: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __str__(self) -> str:
        calls = "1 call" if self.calls == 1 else f"{self.calls} calls"
        return (
            f"{calls} ({self.finished} finished, {self.failed} failed), "
            f"{self.denied} denied, {self.output_tokens} hosted output tokens, "
            f"{usd(self.cost_nanousd)}"
        )

    def on_relay_call_started(self, event: CallStartedEvent, *, run_id: UUID) -> None:  # noqa: ARG002 - only counted
        """Count it."""
        with self._lock:
            self.calls += 1

    def on_relay_call_finished(self, event: CallFinishedEvent, *, run_id: UUID) -> None:  # noqa: ARG002 - as above
        """Add it."""
        with self._lock:
            self.finished += 1
            self._add(event)

    def on_relay_call_failed(self, event: CallFailedEvent, *, run_id: UUID) -> None:  # noqa: ARG002 - as above
        """Add it."""
        with self._lock:
            self.failed += 1
            self._add(event)

    def on_relay_call_denied(self, event: CallDeniedEvent, *, run_id: UUID) -> None:  # noqa: ARG002 - as above
        """Count it."""
        with self._lock:
            self.denied += 1

    def on_relay_budget_warning(self, event: BudgetWarningEvent, *, run_id: UUID) -> None:  # noqa: ARG002 - as above
        """Count it."""
        with self._lock:
            self.warnings += 1

    def _add(self, event: CallOutcome) -> None:
        self.attempts += event["attempts"]
        self.input_tokens += event["input_tokens"] or 0
        self.output_tokens += event["output_tokens"] or 0
        self.local_tokens += event["local_tokens"]
        self.estimated_calls += event["estimated"]
        if event["cost_nanousd"] is None:
            self.unpriced_calls += 1
        else:
            self.cost_nanousd += event["cost_nanousd"]


_TOTALS: ContextVar[RelayTotals | None] = ContextVar("langchain_relay_totals", default=None)
register_configure_hook(_TOTALS, inheritable=True)


@contextmanager
def get_relay_callback() -> Iterator[RelayTotals]:
    """Totals over every relay answer inside a with-block, over any number of runs.

    The block is known to code that runs in its context: LangChain's own threads (`batch`), asyncio
    tasks and `asyncio.to_thread` are; a bare `threading.Thread` starts with an empty context, so
    pass the totals to it: `model.invoke(..., config={"callbacks": [totals]})`.
    """
    totals = RelayTotals()
    token = _TOTALS.set(totals)
    try:
        yield totals
    finally:
        _TOTALS.reset(token)
