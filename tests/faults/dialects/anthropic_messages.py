"""Anthropic messages; events and stop reasons as in anthropic-sdk-python (`types/stop_reason.py`).

`refusal` is the one word for a model that will not and for a classifier that cuts it off.
"""

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
    sse,
)
from tests.faults.script import Fault

_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


class AnthropicMessages:
    """`POST /v1/messages`."""

    name = "anthropic_messages"
    stream_type = "text/event-stream; charset=utf-8"
    malformed = b"event: content_block_delta\ndata: {not json\n\n"
    comment = sse({"type": "ping"}, event="ping")
    lacks: frozenset[Fault] = frozenset()

    def asked(self, path: str, query: str, body: Mapping[str, Any]) -> Asked | None:
        if not path.endswith("/messages"):
            return None
        return Asked(
            model=body["model"],
            streamed=bool(body.get("stream")),
            limit=body["max_tokens"],
            prompt=prompt_text([body.get("system"), body["messages"]]),
        )

    def opening(self, said: Said) -> list[bytes]:
        message = {**self._message(said), "content": [], "stop_reason": None}
        if said.report_usage:
            # Output is counted from 1 here, and in full by message_delta.
            message["usage"] = {**_usage(said), "output_tokens": 1}
        events = [_event("message_start", message=message)]
        if said.kind == "tool_calls":
            block: dict[str, Any] = {**_tool_use(), "input": {}}
            events.append(_event("content_block_start", index=0, content_block=block))
        elif said.pieces:
            block = {"type": "text", "text": ""}
            events.append(_event("content_block_start", index=0, content_block=block))
        return events

    def piece(self, said: Said, at: int, text: str) -> bytes:
        delta = {"type": "text_delta", "text": text}
        return _event("content_block_delta", index=0, delta=delta)

    def ending(self, said: Said) -> list[bytes]:
        events: list[bytes] = []
        if said.kind == "tool_calls":
            delta = {"type": "input_json_delta", "partial_json": json.dumps(TOOL_ARGUMENTS)}
            events.append(_event("content_block_delta", index=0, delta=delta))
        if said.kind == "tool_calls" or said.pieces:
            events.append(_event("content_block_stop", index=0))
        stop = {"stop_reason": _stop_reason(said), "stop_sequence": None}
        # Cumulative counts, the input's too (`types/message_delta_usage.py`).
        usage = {"usage": _usage(said)} if said.report_usage else {}
        return [*events, _event("message_delta", delta=stop, **usage), _event("message_stop")]

    def whole(self, said: Said) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": said.text}] if said.pieces else []
        if said.kind == "tool_calls":
            content = [_tool_use()]
        out = {**self._message(said), "content": content, "stop_reason": _stop_reason(said)}
        return {**out, "usage": _usage(said)} if said.report_usage else out

    def error(self, status: int) -> dict[str, Any]:
        kind = _ERROR_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": ERROR_TEXT}}

    def error_event(self) -> bytes:
        return sse(self.error(529), event="error")

    def _message(self, said: Said) -> dict[str, Any]:
        common = {"id": "msg_1", "type": "message", "role": "assistant", "model": said.model}
        return {**common, "stop_sequence": None}


def _event(kind: str, **fields: Any) -> bytes:
    return sse({"type": kind, **fields}, event=kind)


def _tool_use() -> dict[str, Any]:
    return {"type": "tool_use", "id": "toolu_1", "name": TOOL_NAME, "input": TOOL_ARGUMENTS}


def _usage(said: Said) -> dict[str, int]:
    read, wrote = said.usage
    hits, written = said.cached or (0, 0)
    cached = {"cache_creation_input_tokens": written, "cache_read_input_tokens": hits}
    return {"input_tokens": read - hits - written, **cached, "output_tokens": wrote}


def _stop_reason(said: Said) -> str:
    if said.kind == "tool_calls":
        return "tool_use"
    if said.kind in {"refusal", "filtered"}:
        return "refusal"
    return "max_tokens" if said.cut else "end_turn"
