"""OpenAI Responses, as `openai` 3.52 parses them (`types/responses/response_stream_event.py`).

Its streams have no `[DONE]`: they end with `response.completed` or `response.incomplete`.
"""

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
from tests.faults.dialects.openai_chat import openai_error
from tests.faults.script import Fault

_AT = {"output_index": 0, "item_id": "item_1"}


class OpenAIResponses:
    """`POST /v1/responses`."""

    name = "openai_responses"
    stream_type = "text/event-stream"
    malformed = b'event: response.output_text.delta\ndata: {"type": {not json\n\n'
    comment = b": still here\n\n"
    lacks: frozenset[Fault] = frozenset()

    def asked(self, path: str, query: str, body: Mapping[str, Any]) -> Asked | None:
        if not path.endswith("/responses"):
            return None
        return Asked(
            model=body["model"],
            streamed=bool(body.get("stream")),
            limit=body.get("max_output_tokens"),
            prompt=prompt_text([body.get("instructions"), body["input"]]),
        )

    def opening(self, said: Said) -> list[bytes]:
        begun = _response(said, done=False)
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": begun},
            {"type": "response.in_progress", "response": begun},
        ]
        if said.kind != "empty":
            item = _item(said, done=False)
            events.append({"type": "response.output_item.added", "output_index": 0, "item": item})
            if said.kind != "tool_calls":
                part = _part(said, done=False)
                added = {"type": "response.content_part.added", **_AT, "content_index": 0}
                events.append({**added, "part": part})
        return _numbered(events, first=0)

    def piece(self, said: Said, at: int, text: str) -> bytes:
        delta = {"type": "response.output_text.delta", **_AT, "content_index": 0, "delta": text}
        return _numbered([{**delta, "logprobs": []}], first=len(self.opening(said)) + at)[0]

    def ending(self, said: Said) -> list[bytes]:
        events = [] if said.kind == "empty" else [*_content_done(said), _item_done(said)]
        kind = "response.incomplete" if _incomplete(said) else "response.completed"
        events.append({"type": kind, "response": _response(said, done=True)})
        return _numbered(events, first=len(self.opening(said)) + len(said.pieces))

    def whole(self, said: Said) -> dict[str, Any]:
        return _response(said, done=True)

    def error(self, status: int) -> dict[str, Any]:
        return openai_error(status)

    def error_event(self) -> bytes:
        event = {"type": "error", "code": "server_error", "message": ERROR_TEXT, "param": None}
        return sse({**event, "sequence_number": 99}, event="error")


def _numbered(events: list[dict[str, Any]], first: int) -> list[bytes]:
    return [
        sse({**event, "sequence_number": number}, event=event["type"])
        for number, event in enumerate(events, start=first)
    ]


def _incomplete(said: Said) -> dict[str, str] | None:
    if said.kind == "filtered":
        return {"reason": "content_filter"}
    return {"reason": "max_output_tokens"} if said.cut else None


def _response(said: Said, *, done: bool) -> dict[str, Any]:
    incomplete = _incomplete(said) if done else None
    over = "incomplete" if incomplete else "completed"
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": CREATED_S,
        "model": said.model,
        "status": over if done else "in_progress",
        "error": None,
        "incomplete_details": incomplete,
        "instructions": None,
        "metadata": {},
        "output": [_item(said, done=True)] if done and said.kind != "empty" else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": _usage(said) if done and said.report_usage else None,
    }


def _usage(said: Said) -> dict[str, Any]:
    read, wrote = said.usage
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": wrote,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + wrote,
    }


def _item(said: Said, *, done: bool) -> dict[str, Any]:
    over = "incomplete" if _incomplete(said) else "completed"
    common = {"id": _AT["item_id"], "status": over if done else "in_progress"}
    if said.kind == "tool_calls":
        arguments = json.dumps(TOOL_ARGUMENTS) if done else ""
        call = {"call_id": "call_1", "name": TOOL_NAME, "arguments": arguments}
        return {**common, "type": "function_call", **call}
    content = [_part(said, done=True)] if done else []
    return {**common, "type": "message", "role": "assistant", "content": content}


def _part(said: Said, *, done: bool) -> dict[str, Any]:
    if said.kind == "refusal":
        return {"type": "refusal", "refusal": REFUSAL_TEXT if done else ""}
    text = said.text if done else ""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _content_done(said: Said) -> list[dict[str, Any]]:
    """What comes between the last token and the end of the item."""
    if said.kind == "tool_calls":
        arguments = json.dumps(TOOL_ARGUMENTS)
        kind = "response.function_call_arguments"
        done = {"type": f"{kind}.done", **_AT, "name": TOOL_NAME, "arguments": arguments}
        return [{"type": f"{kind}.delta", **_AT, "delta": arguments}, done]
    place = {**_AT, "content_index": 0}
    part = {"type": "response.content_part.done", **place, "part": _part(said, done=True)}
    if said.kind == "refusal":
        return [
            {"type": "response.refusal.delta", **place, "delta": REFUSAL_TEXT},
            {"type": "response.refusal.done", **place, "refusal": REFUSAL_TEXT},
            part,
        ]
    text = {"type": "response.output_text.done", **place, "text": said.text, "logprobs": []}
    return [text, part]


def _item_done(said: Said) -> dict[str, Any]:
    item = _item(said, done=True)
    return {"type": "response.output_item.done", "output_index": 0, "item": item}
