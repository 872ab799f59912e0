"""Typed callbacks for the relay's events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler

from langchain_relay.schema import (
    BUDGET_WARNING,
    CALL_DENIED,
    CALL_FAILED,
    CALL_FINISHED,
    CALL_STARTED,
    BudgetWarningEvent,
    CallDeniedEvent,
    CallFailedEvent,
    CallFinishedEvent,
    CallStartedEvent,
    EventName,
)

METHODS: Mapping[EventName, str] = {
    CALL_STARTED: "on_relay_call_started",
    CALL_FINISHED: "on_relay_call_finished",
    CALL_DENIED: "on_relay_call_denied",
    CALL_FAILED: "on_relay_call_failed",
    BUDGET_WARNING: "on_relay_budget_warning",
}
"""Which method takes which event."""


class RelayCallbackHandler(BaseCallbackHandler):
    """Typed callbacks for the five relay events; override those you need.

    Attach it like any LangChain handler. Each event comes on the answer's own run: `run_id` is that
    of the `RelayChatModel` call. Budgets do not depend on handlers; an exception in one is logged
    and swallowed by LangChain unless the handler sets `raise_error = True`.
    """

    def on_relay_call_started(self, event: CallStartedEvent, *, run_id: UUID) -> None:
        """A hand-over is reserved and about to be sent."""

    def on_relay_call_finished(self, event: CallFinishedEvent, *, run_id: UUID) -> None:
        """A hand-over ended well."""

    def on_relay_call_denied(self, event: CallDeniedEvent, *, run_id: UUID) -> None:
        """A hand-over did not start."""

    def on_relay_call_failed(self, event: CallFailedEvent, *, run_id: UUID) -> None:
        """A hand-over started and failed."""

    def on_relay_budget_warning(self, event: BudgetWarningEvent, *, run_id: UUID) -> None:
        """A budget is nearly used up."""

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - LangChain's signature
        """Pass a relay event to its typed callback; other events are not ours."""
        if method := METHODS.get(name):  # type: ignore[call-overload]
            getattr(self, method)(data, run_id=run_id)


class AsyncRelayCallbackHandler(AsyncCallbackHandler):
    """Async twin of `RelayCallbackHandler`.

    On the sync paths (`invoke`, `stream`) LangChain runs it too, on a loop of its own, and waits.
    """

    async def on_relay_call_started(self, event: CallStartedEvent, *, run_id: UUID) -> None:
        """A hand-over is reserved and about to be sent."""

    async def on_relay_call_finished(self, event: CallFinishedEvent, *, run_id: UUID) -> None:
        """A hand-over ended well."""

    async def on_relay_call_denied(self, event: CallDeniedEvent, *, run_id: UUID) -> None:
        """A hand-over did not start."""

    async def on_relay_call_failed(self, event: CallFailedEvent, *, run_id: UUID) -> None:
        """A hand-over started and failed."""

    async def on_relay_budget_warning(self, event: BudgetWarningEvent, *, run_id: UUID) -> None:
        """A budget is nearly used up."""

    async def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - LangChain's signature
        """Pass a relay event to its typed callback; other events are not ours."""
        if method := METHODS.get(name):  # type: ignore[call-overload]
            await getattr(self, method)(data, run_id=run_id)
