"""The five events as JSON-able dicts, version 1, and how the engine's events become them.

`Span` and `Charge` travel as dicts of their fields. No dict has a key `index`: langchain-core
would merge such items when chunks are added.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Literal, TypedDict

from langchain_relay.engine.errors import BudgetExceeded
from langchain_relay.engine.events import CallDenied, CallFailed, Event, SpanClosed, SpanOpened
from langchain_relay.engine.values import BudgetWarning, Charge

SCHEMA_VERSION = 1

EventName = Literal[
    "relay.call.started",
    "relay.call.finished",
    "relay.call.denied",
    "relay.call.failed",
    "relay.budget.warning",
]
CALL_STARTED: EventName = "relay.call.started"
CALL_FINISHED: EventName = "relay.call.finished"
CALL_DENIED: EventName = "relay.call.denied"
CALL_FAILED: EventName = "relay.call.failed"
BUDGET_WARNING: EventName = "relay.budget.warning"


class CallStartedEvent(TypedDict):
    """A hand-over is reserved and about to be sent. `requested_n=None`: the rest of the answer."""

    version: int
    call_id: str
    model: str
    n: int
    requested_n: int | None
    cause: str


class CallOutcome(TypedDict):
    """How a hand-over ended. Counts and cost are sums over its attempts; `None` is unknown."""

    version: int
    call_id: str
    model: str
    n: int
    requested_n: int | None
    cause: str
    why: str
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    cost_nanousd: int | None
    overage_nanousd: int
    estimated: bool
    attempts: int
    local_tokens: int
    trimmed: str
    charges: list[dict[str, Any]]


class CallFinishedEvent(CallOutcome):
    """A hand-over ended well. `declined`: the hosted model wrote nothing."""

    declined: bool


class CallFailedEvent(CallOutcome):
    """A hand-over started and did not end well; what arrived is kept and charged."""

    error: str
    error_type: str


class CallDeniedEvent(TypedDict):
    """A hand-over that did not start: refused, with the numbers, or a malformed command."""

    version: int
    call_id: str
    reason: str
    n: int | None
    requested_n: int | None
    unit: str | None
    needed: int | None
    left: int | None
    limit: int | None
    scope: str | None
    window: str | None


class BudgetWarningEvent(TypedDict):
    """A limit is nearly used up; nano-dollars, tokens or calls, as `unit` says."""

    version: int
    unit: str
    spent: int
    limit: int
    scope: str
    window: str | None


def wire_events(event: Event) -> Iterator[tuple[EventName, dict[str, Any]]]:
    """What an engine event is outside: its name and its dict; nothing for most of them."""
    match event:
        case SpanOpened():
            yield CALL_STARTED, _versioned(_call(event))
        case SpanClosed():
            yield CALL_FINISHED, _versioned(_outcome(event), declined=event.declined)
        case CallFailed():
            error = event.end.error
            yield (
                CALL_FAILED,
                _versioned(
                    _outcome(event),
                    error=str(error) if error else event.end.why,
                    error_type=type(error).__name__ if error else "",
                ),
            )
        case CallDenied():
            yield CALL_DENIED, _versioned(_denial(event))
        case _:
            return
    if isinstance(event, SpanClosed | CallFailed):
        yield from ((BUDGET_WARNING, _warning(warning)) for warning in event.end.warnings)


def _versioned(payload: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"version": SCHEMA_VERSION, **payload, **more}


def _call(event: SpanOpened | SpanClosed | CallFailed) -> dict[str, Any]:
    return {
        "call_id": event.request.call_id,
        "model": event.model,
        "n": event.n,
        "requested_n": event.request.requested_n,
        "cause": event.request.cause,
    }


def _outcome(event: SpanClosed | CallFailed) -> dict[str, Any]:
    charges = event.end.charges
    return {
        **_call(event),
        "why": event.end.why,
        "input_tokens": _total(charges, "input_tokens"),
        "output_tokens": _total(charges, "output_tokens"),
        "cached_input_tokens": _total(charges, "cached_input_tokens"),
        "cache_write_tokens": _total(charges, "cache_write_tokens"),
        "reasoning_tokens": _total(charges, "reasoning_tokens"),
        "cost_nanousd": total_cost_nanousd(charges),
        "overage_nanousd": sum(charge.overage_nanousd for charge in charges),
        "estimated": any(charge.estimated for charge in charges),
        "attempts": len(charges),
        "local_tokens": event.end.local_tokens,
        "trimmed": event.end.trimmed,
        "charges": [asdict(charge) for charge in charges],
    }


def _total(charges: tuple[Charge, ...], name: str) -> int | None:
    """Sum over the attempts that were not released; unknown if nobody reported."""
    known = [value for charge in charges if (value := getattr(charge, name)) is not None]
    return sum(known) if known else None


def total_cost_nanousd(charges: tuple[Charge, ...]) -> int | None:
    """What the attempts cost together; `None` if the cost of one of them is unknown."""
    costs = [charge.cost_nanousd for charge in charges]
    return None if None in costs else sum(cost for cost in costs if cost is not None)


def _denial(event: CallDenied) -> dict[str, Any]:
    refusal = event.error if isinstance(event.error, BudgetExceeded) else None
    return {
        "call_id": event.call_id,
        "reason": event.reason,
        "n": event.n,
        "requested_n": event.requested_n,
        "unit": refusal.unit if refusal else None,
        "needed": refusal.needed if refusal else None,
        "left": refusal.left if refusal else None,
        "limit": refusal.limit if refusal else None,
        "scope": refusal.scope if refusal else None,
        "window": refusal.window if refusal else None,
    }


def _warning(warning: BudgetWarning) -> dict[str, Any]:
    return _versioned(asdict(warning))
