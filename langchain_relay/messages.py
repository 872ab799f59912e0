"""LangChain messages in, LangChain chunks out.

In: a conversation becomes the turns of the local view, with the hidden commands of earlier answers
put back where they stood. Out: engine events become chunks that carry their provenance in
`response_metadata["relay"]`, a dict of lists, so that chunks merge by appending; scalars stand
only on the last chunk.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGenerationChunk

from langchain_relay.engine.events import (
    CallFailed,
    CommandHidden,
    Event,
    FinishWhy,
    SpanClosed,
    TextAdded,
)
from langchain_relay.engine.values import Author, Span, Turn
from langchain_relay.errors import UnsupportedContent, UsageMistake
from langchain_relay.schema import wire_events

METADATA_KEY = "relay"

_NOT_TEXT = frozenset(
    {"tool_use", "tool_call", "function_call", "reasoning", "thinking", "redacted_thinking"}
)
"""Blocks of an answer that stand beside its text, and are not part of it."""


# --- in -----------------------------------------------------------------------------------------


def turns(messages: Sequence[BaseMessage]) -> list[Turn]:
    """The conversation as the local model sees it.

    Raises:
        UsageMistake: `messages` is empty.
        UnsupportedContent: a message has content that is not text.
    """
    if not messages:
        raise UsageMistake("the list of messages is empty: pass at least one message")
    return [_turn(message) for message in messages]


def _turn(message: BaseMessage) -> Turn:
    match message:
        case SystemMessage():
            return Turn("system", text_of(message))
        case AIMessage():
            return Turn("assistant", _with_commands(message))
        case ToolMessage():
            # Few chat templates know a tool role; tools proper come with `bind_tools`.
            return Turn("user", f"Result of {message.name or 'the tool'}: {text_of(message)}")
        case ChatMessage():
            return Turn(message.role, text_of(message))
        case _:
            return Turn("user", text_of(message))


def text_of(message: BaseMessage) -> str:
    """The text of a message.

    Raises:
        UnsupportedContent: it has content that is not text.
    """
    if isinstance(message.content, str):
        return message.content
    texts = []
    for block in message.content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") in ("text", "text-plain"):
            texts.append(str(block.get("text", "")))
        elif block.get("type") not in _NOT_TEXT:
            kind = block.get("type", "unknown")
            raise UnsupportedContent(
                f"a {message.type} message holds content of type {kind!r}, but the local model "
                f"reads text only: remove it or replace it by a description"
            )
    return "".join(texts)


def _with_commands(message: AIMessage) -> str:
    """The answer as it stands in the local context: with hidden commands and tool calls."""
    text = text_of(message)
    commands = message.response_metadata.get(METADATA_KEY, {}).get("commands", [])
    for command in sorted(commands, key=lambda c: int(c["offset"]), reverse=True):
        at = int(command["offset"])
        text = text[:at] + str(command["text"]) + text[at:]
    calls = [json.dumps({"name": c["name"], "arguments": c["args"]}) for c in message.tool_calls]
    return "\n".join([text, *calls]) if calls else text


# --- out ----------------------------------------------------------------------------------------


class AnswerWriter:
    """Turns the events of one answer into chunks, and keeps its counts.

    Args:
        local_model: Name of the local model, for its spans.
    """

    def __init__(self, local_model: str) -> None:
        self._local_model = local_model
        self._open: _OpenSpan | None = None
        self.local_tokens = 0
        self.hidden_tokens = 0
        self.delegated_tokens = 0

    def chunk(self, event: Event) -> ChatGenerationChunk | None:
        """The chunk that carries `event`, or `None` if nothing of it is the user's."""
        match event:
            case TextAdded():
                return _chunk(event.text, spans=self._extend(event))
            case CommandHidden(text, offset, tokens):
                self.hidden_tokens += tokens
                return _chunk("", commands=[{"text": text, "offset": offset}])
        notices = [{"type": name, **data} for name, data in wire_events(event)]
        if not notices:
            return None
        ended = event.end.charges if isinstance(event, SpanClosed | CallFailed) else ()
        charges = [asdict(charge) for charge in ended]
        return _chunk("", events=notices, charges=charges)

    def last(
        self,
        *,
        prompt_tokens: int,
        cached_tokens: int,
        why: FinishWhy,
        scalars: dict[str, Any],
    ) -> ChatGenerationChunk:
        """The chunk that ends the answer, with the usage of the local model."""
        written = self.local_tokens + self.hidden_tokens
        usage = UsageMetadata(
            input_tokens=prompt_tokens,
            output_tokens=written,
            total_tokens=prompt_tokens + written,
            input_token_details={"cache_read": cached_tokens},
        )
        relay = {"spans": self._close_span(), **scalars}
        message = AIMessageChunk(
            content="",
            usage_metadata=usage,
            response_metadata={
                "model_name": self._local_model,
                "model_provider": METADATA_KEY,
                "finish_reason": why,
                METADATA_KEY: relay,
            },
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message, generation_info={"finish_reason": why})

    def _extend(self, added: TextAdded) -> list[dict[str, Any]]:
        """Add text to the open span; returns the span before it, if it ended here."""
        if added.author == "delegate":
            self.delegated_tokens += added.tokens
        elif added.author == "local":
            self.local_tokens += added.tokens
        ended: list[dict[str, Any]] = []
        model = added.model if added.author == "delegate" else self._own_name(added.author)
        span = self._open
        if span is None or (span.author, span.model) != (added.author, model):
            ended = self._close_span()
            span = self._open = _OpenSpan(added.author, model, span.end if span else 0)
        span.add(added)
        return ended

    def _own_name(self, author: Author) -> str | None:
        return self._local_model if author == "local" else None

    def _close_span(self) -> list[dict[str, Any]]:
        span = self._open and self._open.closed()
        return [asdict(span)] if span else []


class _OpenSpan:
    """A span that still grows."""

    def __init__(self, author: Author, model: str | None, start: int) -> None:
        self.author = author
        self.model = model
        self.end = self._start = start
        self._texts: list[str] = []
        self._tokens = 0

    def add(self, added: TextAdded) -> None:
        self._texts.append(added.text)
        self.end += len(added.text)
        self._tokens += added.tokens

    def closed(self) -> Span | None:
        """The span; `None` if nothing was written."""
        if self.end == self._start:
            return None
        text = "".join(self._texts)
        return Span(text, self.author, self._start, self.end, self._tokens, self.model)


class Cumulative:
    """Gives each chunk all relay metadata so far.

    `stream_events(version="v3")` keeps only the last chunk's value of each `response_metadata` key
    (langchain-core 1.7.2, `_compat_bridge.py`), where adding chunks would append the lists.
    """

    def __init__(self) -> None:
        self._relay: dict[str, Any] = {}

    def __call__(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk:
        """The same chunk with everything before it."""
        metadata = chunk.message.response_metadata
        for name, value in metadata.get(METADATA_KEY, {}).items():
            known = self._relay.get(name)
            self._relay[name] = known + value if isinstance(known, list) else value
        if METADATA_KEY in metadata:
            metadata[METADATA_KEY] = dict(self._relay)
        return chunk


def _chunk(text: str, **lists: list[Any]) -> ChatGenerationChunk:
    relay = {name: items for name, items in lists.items() if items}
    metadata = {METADATA_KEY: relay} if relay else {}
    return ChatGenerationChunk(message=AIMessageChunk(content=text, response_metadata=metadata))
