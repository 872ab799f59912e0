"""Mistral's chat completions: OpenAI's, but the usage comes unasked, with the finish reason.

As docs.mistral.ai/api shows the last event of a stream, read 2026-11-21.
"""

from __future__ import annotations

from typing import Any

from tests.faults.dialects.dialect import Said
from tests.faults.dialects.groq import Groq
from tests.faults.dialects.openai_chat import openai_usage


class Mistral(Groq):
    """`POST /mistral/v1/chat/completions`."""

    name = "mistral"
    prefix = "/mistral/"

    def usage(self, said: Said) -> dict[str, Any]:
        return {"usage": openai_usage(said)}
