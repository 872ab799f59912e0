"""Hosts whose chat API is OpenAI's but for where the usage stands."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.faults.dialects.dialect import Asked, Said, sse
from tests.faults.dialects.openai_chat import DONE, OpenAIChat, openai_usage


class _LastChunk(OpenAIChat):
    """Its usage rides on the chunk of the finish reason, asked for or not."""

    prefix: str

    def asked(self, path: str, query: str, body: Mapping[str, Any]) -> Asked | None:
        asked = super().asked(path, query, body) if path.startswith(self.prefix) else None
        return asked and replace(asked, wants_usage=True)

    def counted(self, said: Said) -> dict[str, Any]:
        return {"usage": openai_usage(said)}

    def ending(self, said: Said) -> list[bytes]:
        *before, last, _done = super().ending(replace(said, report_usage=False))
        if not said.report_usage:
            return [*before, last, DONE]
        event = json.loads(last.removeprefix(b"data: "))
        return [*before, sse({**event, **self.counted(said)}), DONE]


class Groq(_LastChunk):
    """`POST /openai/v1/chat/completions` (groq 0.37, `types/chat/chat_completion_chunk.py`)."""

    name = "groq"
    prefix = "/openai/v1/"

    def counted(self, said: Said) -> dict[str, Any]:
        return {"x_groq": {"id": "req_1", "usage": openai_usage(said)}}


class Mistral(_LastChunk):
    """`POST /mistral/v1/chat/completions`; the first part of the path tells it from OpenAI's."""

    name = "mistral"
    prefix = "/mistral/v1/"
