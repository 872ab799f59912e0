"""Gemini's `generateContent` and `streamGenerateContent`, REST with `alt=sse`.

A refused prompt has `promptFeedback.blockReason` and no candidates; text that is filtered ends
with the finish reason `SAFETY`. Counts come with the last event.
"""

from __future__ import annotations

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

_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}


class Gemini:
    """`POST /v1beta/models/{model}:streamGenerateContent?alt=sse` and `:generateContent`."""

    name = "gemini"
    stream_type = "text/event-stream"
    malformed = b'data: {"candidates": [{not json\n\n'
    comment = b": still here\n\n"
    lacks: frozenset[Fault] = frozenset()

    def asked(self, path: str, query: str, body: Mapping[str, Any]) -> Asked | None:
        resource, colon, method = path.rpartition(":")
        streamed = method == "streamGenerateContent" and "alt=sse" in query
        if not colon or not (streamed or method == "generateContent"):
            return None
        config = body.get("generationConfig") or {}
        return Asked(
            model=resource.rpartition("/models/")[2],
            streamed=streamed,
            limit=config.get("maxOutputTokens"),
            prompt=prompt_text([body.get("systemInstruction"), body["contents"]]),
        )

    def opening(self, said: Said) -> list[bytes]:
        return []

    def piece(self, said: Said, at: int, text: str) -> bytes:
        return sse({**_frame(said), "candidates": [_candidate([{"text": text}])]})

    def ending(self, said: Said) -> list[bytes]:
        return [sse(self._end(said, "" if said.kind == "text" else None))]

    def whole(self, said: Said) -> dict[str, Any]:
        return self._end(said, said.text or None)

    def error(self, status: int) -> dict[str, Any]:
        word = _STATUSES.get(status, "UNAVAILABLE" if status >= 500 else "FAILED_PRECONDITION")
        return {"error": {"code": status, "message": ERROR_TEXT, "status": word}}

    def error_event(self) -> bytes:
        return sse(self.error(500))

    def _end(self, said: Said, text: str | None) -> dict[str, Any]:
        usage = {"usageMetadata": _usage(said)} if said.report_usage else {}
        if said.kind == "refusal":
            return {**_frame(said), "promptFeedback": {"blockReason": "SAFETY"}, **usage}
        parts: list[dict[str, Any]] = [] if text is None else [{"text": text}]
        if said.kind == "tool_calls":
            parts = [{"functionCall": {"name": TOOL_NAME, "args": TOOL_ARGUMENTS}}]
        return {**_frame(said), "candidates": [_candidate(parts, _finish(said))], **usage}


def _frame(said: Said) -> dict[str, Any]:
    return {"modelVersion": said.model, "responseId": "reply-1"}


def _candidate(parts: list[dict[str, Any]], finish: str | None = None) -> dict[str, Any]:
    content = {"role": "model", "parts": parts}
    return {"content": content, **({"finishReason": finish} if finish else {}), "index": 0}


def _finish(said: Said) -> str:
    if said.kind == "filtered":
        return "SAFETY"
    return "MAX_TOKENS" if said.cut else "STOP"


def _usage(said: Said) -> dict[str, int]:
    read, wrote = said.usage
    counts = {"promptTokenCount": read, "candidatesTokenCount": wrote}
    return {**counts, "totalTokenCount": read + wrote}
