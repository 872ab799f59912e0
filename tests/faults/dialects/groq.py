"""Groq's chat completions: OpenAI's, but the usage comes unasked, with the finish reason.

As groq-python 0.37 parses them (`types/chat/chat_completion_chunk.py`, `XGroq`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.faults.dialects.dialect import Asked, Said
from tests.faults.dialects.openai_chat import DONE, OpenAIChat, openai_usage


class Groq(OpenAIChat):
    """`POST /groq/openai/v1/chat/completions`."""

    name = "groq"
    prefix = "/groq/"

    def asked(self, path: str, query: str, body: Mapping[str, Any]) -> Asked | None:
        asked = super().asked(path, query, body) if path.startswith(self.prefix) else None
        return replace(asked, wants_usage=True) if asked else None

    def ending(self, said: Said) -> list[bytes]:
        *events, last, _ = super().ending(replace(said, report_usage=False))
        if said.report_usage:
            last = with_fields(last, self.usage(said))
        return [*events, last, DONE]

    def usage(self, said: Said) -> dict[str, Any]:
        """The fields of the last chunk that tell it."""
        return {"x_groq": {"id": "req_1", "usage": openai_usage(said)}}


def with_fields(event: bytes, fields: Mapping[str, Any]) -> bytes:
    """A server-sent event with further fields."""
    data = json.loads(event.decode().removeprefix("data: "))
    return f"data: {json.dumps({**data, **fields})}\n\n".encode()
