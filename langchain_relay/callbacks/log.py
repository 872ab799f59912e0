"""One log record per relay event, with the event's data beside its text."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler

from langchain_relay.callbacks.relay import METHODS
from langchain_relay.report import usd
from langchain_relay.schema import (
    BUDGET_WARNING,
    CALL_DENIED,
    CALL_FAILED,
    CALL_FINISHED,
    CALL_STARTED,
)

LOGGER_NAME = "langchain_relay.events"

_LEVELS = {
    CALL_STARTED: logging.DEBUG,
    CALL_FINISHED: logging.INFO,
    CALL_DENIED: logging.WARNING,
    CALL_FAILED: logging.WARNING,
    BUDGET_WARNING: logging.WARNING,
}


class RelayLogHandler(BaseCallbackHandler):
    """Logs every relay event as one record of the logger `langchain_relay.events`.

    The message is one line for people. For machines each record has three more fields, all of
    them JSON-able: `relay_event` (the event's name), `relay_run_id` (the answer's run) and
    `relay_data` (the event as `docs/events.md` describes it). Started calls are logged at DEBUG,
    finished ones at INFO, all others at WARNING. Nothing of prompts or answers is logged, except
    what a hosted model repeated (`trimmed`).

    Args:
        logger: Where to log instead.
    """

    run_inline = True

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger(LOGGER_NAME)

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - LangChain's signature
        """Log it; other events are not ours."""
        if name not in METHODS:
            return
        extra = {"relay_event": name, "relay_run_id": str(run_id), "relay_data": dict(data)}
        level = _LEVELS.get(name, logging.INFO)  # type: ignore[call-overload]
        self._logger.log(level, "%s: %s", name, _told(data), extra=extra)


_TOLD = ("call_id", "model", "n", "output_tokens", "why", "reason", "error", "unit", "scope")


def _told(data: Mapping[str, Any]) -> str:
    parts = [f"{key}={data[key]}" for key in _TOLD if data.get(key) not in (None, "")]
    if "cost_nanousd" in data:
        parts.append(f"cost={usd(data['cost_nanousd'])}")
    return " ".join(parts)
