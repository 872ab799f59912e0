"""Ollama's chat API: lines of JSON, counts and `done_reason` on the last (its `docs/api.md`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.faults.dialects.dialect import (
    ERROR_TEXT,
    TOOL_ARGUMENTS,
    TOOL_NAME,
    Asked,
    Said,
    prompt_text,
)
from tests.faults.script import Fault


class Ollama:
    """`POST /api/chat`. It streams unless told not to, and has no filters and no keep-alives."""

    name = "ollama"
    stream_type = "application/x-ndjson"
    malformed = b'{"message": {not json\n'
    comment = b""
    lacks = frozenset({Fault.REFUSAL, Fault.CONTENT_FILTER, Fault.KEEP_ALIVE})

    def asked(self, path: str, query: str, body: Mapping[str, Any]) -> Asked | None:
        if not path.endswith("/api/chat"):
            return None
        limit = (body.get("options") or {}).get("num_predict")
        return Asked(
            model=body["model"],
            streamed=body.get("stream", True),
            limit=limit if limit is None or limit >= 0 else None,  # -1: without end
            prompt=prompt_text(body["messages"]),
        )

    def opening(self, said: Said) -> list[bytes]:
        return []

    def piece(self, said: Said, at: int, text: str) -> bytes:
        return _line({**_frame(said), "message": _message(text), "done": False})

    def ending(self, said: Said) -> list[bytes]:
        lines: list[bytes] = []
        if said.kind == "tool_calls":
            lines.append(_line({**_frame(said), "message": _called(), "done": False}))
        return [*lines, _line(self._end(said, _message("")))]

    def whole(self, said: Said) -> dict[str, Any]:
        return self._end(said, _called() if said.kind == "tool_calls" else _message(said.text))

    def error(self, status: int) -> dict[str, Any]:
        return {"error": ERROR_TEXT}

    def error_event(self) -> bytes:
        return _line(self.error(500))

    def _end(self, said: Said, message: dict[str, Any]) -> dict[str, Any]:
        why = "length" if said.cut else "stop"
        out = {**_frame(said), "message": message, "done_reason": why, "done": True}
        return {**out, **_counts(said)} if said.report_usage else out


def _line(data: dict[str, Any]) -> bytes:
    return json.dumps(data).encode() + b"\n"


def _frame(said: Said) -> dict[str, Any]:
    return {"model": said.model, "created_at": "2026-11-21T12:00:00.000000Z"}


def _message(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def _called() -> dict[str, Any]:
    call = {"function": {"name": TOOL_NAME, "arguments": TOOL_ARGUMENTS}}
    return {**_message(""), "tool_calls": [call]}


def _counts(said: Said) -> dict[str, int]:
    read, wrote = said.usage
    durations = ("total_duration", "load_duration", "prompt_eval_duration", "eval_duration")
    return {
        **dict.fromkeys(durations, 1_000_000),  # nanoseconds
        "prompt_eval_count": read,
        "eval_count": wrote,
    }
