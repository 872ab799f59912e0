"""OpenAI chat completions, as `openai` 3.52 parses them (`types/chat/chat_completion_chunk.py`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.faults.dialects.dialect import (
    CREATED_S,
    ERROR_TEXT,
    REFUSAL_TEXT,
    TOOL_ARGUMENTS,
    TOOL_NAME,
    Asked,
    Said,
    prompt_text,
    sse,
)
from tests.faults.script import Fault

DONE = b"data: [DONE]\n\n"

_TYPES = {401: "invalid_request_error", 429: "rate_limit_error"}


class OpenAIChat:
    """`POST /v1/chat/completions`."""

    name = "openai_chat"
    stream_type = "text/event-stream"
    malformed = b'data: {"choices": [{not json\n\n'
    comment = b": still here\n\n"
    lacks: frozenset[Fault] = frozenset()

    def asked(self, path: str, query: str, body: Mapping[str, Any]) -> Asked | None:
        if not path.endswith("/chat/completions"):
            return None
        return Asked(
            model=body["model"],
            streamed=bool(body.get("stream")),
            limit=body.get("max_completion_tokens") or body.get("max_tokens"),
            prompt=prompt_text(body["messages"]),
            wants_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        )

    def opening(self, said: Said) -> list[bytes]:
        role = self._event(said, {"role": "assistant", "content": "", "refusal": None})
        if said.kind == "empty":  # Azure sends what its filters found in front, without choices
            return [sse({**self._frame(said), "choices": []}), role]
        return [role]

    def piece(self, said: Said, at: int, text: str) -> bytes:
        return self._event(said, {"content": text})

    def ending(self, said: Said) -> list[bytes]:
        events: list[bytes] = []
        if said.kind == "refusal":
            events.append(self._event(said, {"refusal": REFUSAL_TEXT}))
        if said.kind == "tool_calls":
            events.append(self._event(said, {"tool_calls": [{"index": 0, **_tool_call()}]}))
        events.append(self._event(said, {}, _finish(said)))
        if said.report_usage:
            events.append(sse({**self._frame(said), "choices": [], "usage": openai_usage(said)}))
        return [*events, DONE]

    def whole(self, said: Said) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": said.text, "refusal": None}
        if said.kind == "refusal":
            message |= {"content": None, "refusal": REFUSAL_TEXT}
        if said.kind == "tool_calls":
            message |= {"content": None, "tool_calls": [_tool_call()]}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(said)}
        out = {**self._frame(said), "object": "chat.completion", "choices": [choice]}
        return {**out, "usage": openai_usage(said)} if said.report_usage else out

    def error(self, status: int) -> dict[str, Any]:
        return openai_error(status)

    def error_event(self) -> bytes:
        return sse(openai_error(500))

    def _frame(self, said: Said) -> dict[str, Any]:
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion.chunk",
            "created": CREATED_S,
            "model": said.model,
        }

    def _event(self, said: Said, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return sse({**self._frame(said), "choices": [choice]})


def _finish(said: Said) -> str:
    if said.kind == "tool_calls":
        return "tool_calls"
    if said.kind == "filtered":
        return "content_filter"
    return "length" if said.cut else "stop"


def _tool_call() -> dict[str, Any]:
    function = {"name": TOOL_NAME, "arguments": json.dumps(TOOL_ARGUMENTS)}
    return {"id": "call_1", "type": "function", "function": function}


def openai_usage(said: Said) -> dict[str, Any]:
    """Usage as chat and completions report it."""
    prompt, completion = said.usage
    total = prompt + completion
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": total,
    }
    if said.reasoning_tokens:
        usage["completion_tokens_details"] = {"reasoning_tokens": said.reasoning_tokens}
    if said.cached is not None:
        read, written = said.cached
        usage["prompt_tokens_details"] = {"cached_tokens": read, "cache_write_tokens": written}
    return usage


def openai_error(status: int) -> dict[str, Any]:
    """The error body of all OpenAI APIs."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": ERROR_TEXT, "type": kind, "param": None, "code": None}}
