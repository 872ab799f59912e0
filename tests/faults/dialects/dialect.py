"""What every dialect has to say, as bytes. No socket, no clock, no fault but those of content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tests.faults.script import Fault

Kind = Literal["text", "tool_calls", "refusal", "filtered", "empty"]
"""What the model did: it wrote, called a tool, refused, was filtered, or wrote nothing."""

TOOL_NAME = "lookup"
TOOL_ARGUMENTS = {"q": "sky"}
REFUSAL_TEXT = "I can't help with that."
ERROR_TEXT = "told to fail"
CREATED_S = 1_790_000_000


@dataclass(frozen=True)
class Asked:
    """What a request asks for.

    Attributes:
        model: The model's name.
        streamed: Whether a stream is wanted.
        limit: Bound of the output tokens; `None`: there is none.
        prompt: All text of the prompt; its words are the input tokens.
        wants_usage: Whether a stream shall end with the usage.
    """

    model: str
    streamed: bool
    limit: int | None
    prompt: str
    wants_usage: bool = True


@dataclass(frozen=True)
class Said:
    """What a reply comes to under a request's limit.

    Attributes:
        model: The model name reported.
        kind: What the model did.
        pieces: Its text, in pieces; the limit is applied already.
        cut: The limit cut the text.
        usage: Input and output tokens.
        report_usage: Whether the usage is told.
        reasoning_tokens: Those of the output tokens that are hidden reasoning.
        cached: Input tokens read from a cache and written to it, where the host has one.
    """

    model: str
    kind: Kind
    pieces: tuple[str, ...]
    cut: bool
    usage: tuple[int, int]
    report_usage: bool
    reasoning_tokens: int = 0
    cached: tuple[int, int] | None = None

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)


class Dialect(Protocol):
    """One provider's way to say it."""

    name: str
    stream_type: str
    """Content type of a stream."""
    malformed: bytes
    """An event that is no JSON."""
    comment: bytes
    """What keeps a connection alive and says nothing."""
    lacks: frozenset[Fault]
    """Faults this dialect has no words for."""

    def asked(self, path: str, query: str, body: Mapping[str, Any]) -> Asked | None:
        """What the request asks for; `None` if the path is another dialect's."""
        ...

    def opening(self, said: Said) -> list[bytes]:
        """Events before the first token."""
        ...

    def piece(self, said: Said, at: int, text: str) -> bytes:
        """The event of the token number `at`, counted from 0."""
        ...

    def ending(self, said: Said) -> list[bytes]:
        """Events behind the last token: finish reason, usage, end mark."""
        ...

    def whole(self, said: Said) -> dict[str, Any]:
        """The reply to a request that wants no stream."""
        ...

    def error(self, status: int) -> dict[str, Any]:
        """The body of an HTTP error."""
        ...

    def error_event(self) -> bytes:
        """An error of the provider's inside a stream."""
        ...


def sse(data: Any, *, event: str | None = None) -> bytes:
    """One server-sent event."""
    named = f"event: {event}\n" if event else ""
    return f"{named}data: {json.dumps(data)}\n\n".encode()


def prompt_text(value: Any) -> str:
    """All strings inside a request's prompt, whatever its shape."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return " ".join(prompt_text(v) for k, v in value.items() if k not in {"role", "type"})
    if isinstance(value, list):
        return " ".join(map(prompt_text, value))
    return ""
