"""OpenAI's legacy completions, as `openai` 3.52 parses them (`types/completion.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.faults.dialects.dialect import CREATED_S, Asked, Said, prompt_text, sse
from tests.faults.dialects.openai_chat import DONE, openai_error, openai_usage
from tests.faults.script import Fault


class OpenAICompletions:
    """`POST /v1/completions`. It has neither tools nor refusals."""

    name = "openai_completions"
    stream_type = "text/event-stream"
    malformed = b'data: {"choices": [{not json\n\n'
    comment = b": still here\n\n"
    lacks = frozenset({Fault.TOOL_CALLS, Fault.REFUSAL})

    def asked(self, path: str, query: str, body: Mapping[str, Any]) -> Asked | None:
        if not path.endswith("/completions") or path.endswith("/chat/completions"):
            return None
        return Asked(
            model=body["model"],
            streamed=bool(body.get("stream")),
            limit=body.get("max_tokens"),
            prompt=prompt_text(body["prompt"]),
            wants_usage=bool((body.get("stream_options") or {}).get("include_usage")),
        )

    def opening(self, said: Said) -> list[bytes]:
        return [sse({**self._frame(said), "choices": []})] if said.kind == "empty" else []

    def piece(self, said: Said, at: int, text: str) -> bytes:
        return sse({**self._frame(said), "choices": [self._choice(text, None)]})

    def ending(self, said: Said) -> list[bytes]:
        events = [sse({**self._frame(said), "choices": [self._choice("", _finish(said))]})]
        if said.report_usage:
            events.append(sse({**self._frame(said), "choices": [], "usage": openai_usage(said)}))
        return [*events, DONE]

    def whole(self, said: Said) -> dict[str, Any]:
        out = {**self._frame(said), "choices": [self._choice(said.text, _finish(said))]}
        return {**out, "usage": openai_usage(said)} if said.report_usage else out

    def error(self, status: int) -> dict[str, Any]:
        return openai_error(status)

    def error_event(self) -> bytes:
        return sse(openai_error(500))

    def _frame(self, said: Said) -> dict[str, Any]:
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": CREATED_S,
            "model": said.model,
        }

    def _choice(self, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}


def _finish(said: Said) -> str:
    if said.kind == "filtered":
        return "content_filter"
    return "length" if said.cut else "stop"
