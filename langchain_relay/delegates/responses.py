"""OpenAI's Responses API: input items out of messages, `Delta`s out of its typed events. No I/O.

It has no chat messages, so no flag can be put on one; a trailing assistant item is a finished turn
at OpenAI, and an open one only where another server says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage, convert_to_openai_messages

from langchain_relay.delegates.chunks import normal_finish
from langchain_relay.delegates.continuation import Repeated
from langchain_relay.engine.values import Delta, Usage
from langchain_relay.errors import DelegateError, DelegateTruncated

__all__ = ["ResponsesReader", "input_items", "reasoning_settings"]

_OVER = frozenset(
    {"response.completed", "response.incomplete", "response.failed", "response.cancelled"}
)
"""Events that end a response; each carries it whole."""


# --- what is sent -------------------------------------------------------------------------------


def input_items(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """A conversation as input items; tool calls and their results are items of their own."""
    sent: Any = convert_to_openai_messages(list(messages))
    return [item for message in sent for item in _items(message)]


def _items(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    role, content = message["role"], message.get("content")
    if role == "tool":
        output = {"call_id": message.get("tool_call_id"), "output": _plain(content)}
        return [{"type": "function_call_output", **output}]
    items: list[dict[str, Any]] = []
    if content:
        items.append({"role": role, "content": _parts(content, role)})
    calls = message.get("tool_calls") or ()
    made = ({"type": "function_call", "call_id": c["id"], **c["function"]} for c in calls)
    return [*items, *made]


def _parts(content: Any, role: str) -> Any:
    return content if isinstance(content, str) else [_part(part, role) for part in content]


def _part(part: Any, role: str) -> Any:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        return {
            "type": "output_text" if role == "assistant" else "input_text",
            "text": part["text"],
        }
    if kind == "image_url":
        image = part["image_url"]
        address = {"url": image} if isinstance(image, str) else dict(image)
        return {"type": "input_image", "image_url": address.pop("url"), **address}
    if kind == "file":
        return {"type": "input_file", **part["file"]}
    return part


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = (part.get("text", "") for part in content or () if isinstance(part, Mapping))
    return "".join(texts)


def reasoning_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the chat API as this one wants them."""
    changed = dict(settings)
    if (effort := changed.pop("reasoning_effort", None)) is not None:
        changed["reasoning"] = {"effort": effort}
    return changed


# --- what comes back ----------------------------------------------------------------------------


class ResponsesReader:
    """Reads one attempt's events.

    Args:
        repeated: Drops the draft where replies begin with it.

    Attributes:
        received: Anything has come behind the response header.
    """

    def __init__(self, repeated: Repeated) -> None:
        self._repeated = repeated
        self._refused = False
        self._finished = False
        self.received = False

    def read(self, event: Any) -> Delta:
        """One event; most say nothing of use.

        Raises:
            DelegateError: the provider reports an error of its own.
        """
        self.received = True
        if event.type == "response.output_text.delta":
            return Delta(text=self._repeated.take(event.delta, ended=False))
        if event.type == "error":
            raise DelegateError(
                f"the provider broke off: {event.message}", retryable=True, sent=True, answered=True
            )
        self._refused = self._refused or event.type.startswith("response.refusal.")
        return self._over(event.response) if event.type in _OVER else Delta()

    def end(self) -> None:
        """The stream is exhausted.

        Raises:
            DelegateTruncated: it did not say why.
        """
        if not self._finished:
            raise DelegateTruncated(
                "the stream ended without a finish reason", retryable=True, sent=True
            )

    def _over(self, response: Any) -> Delta:
        self._finished = True
        why = getattr(response.incomplete_details, "reason", None) or response.status
        usage = response.usage
        return Delta(
            text=self._repeated.flush(),
            usage=_usage(usage) if usage else None,
            finish="refusal" if self._refused else normal_finish(why),
            model=response.model or None,
        )


def _usage(usage: Any) -> Usage:
    read = getattr(usage, "input_tokens_details", None)
    wrote = getattr(usage, "output_tokens_details", None)
    return Usage(
        input_tokens=getattr(usage, "input_tokens", None) or 0,
        output_tokens=getattr(usage, "output_tokens", None) or 0,
        cached_input_tokens=getattr(read, "cached_tokens", None),
        cache_write_tokens=getattr(read, "cache_write_tokens", None),
        reasoning_tokens=getattr(wrote, "reasoning_tokens", None),
    )
