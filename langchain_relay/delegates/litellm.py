"""LiteLLM without what it makes up: an end where a stream was cut, a count where none came.

LiteLLM 1.106 ends every stream with a finish reason, `stop` if the host gave none, and counts the
tokens itself where the host did not. The first would hide a cut stream, the second would be booked
as the host's own figure. Its stream knows better: `received_finish_reason`, and `chunks`, the ones
that came. No import of LiteLLM.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from inspect import isawaitable
from typing import Any

from langchain_relay.errors import DelegateTruncated

__all__ = ["OnlyReported"]


class OnlyReported:
    """The package, or what stands for it, with streams that tell what the host told."""

    def __init__(self, litellm: Any) -> None:
        self._litellm = litellm

    def completion(self, **payload: Any) -> Any:
        reply = self._litellm.completion(**payload)
        return _reported(reply) if payload.get("stream") else reply

    async def acompletion(self, **payload: Any) -> Any:
        reply = await self._litellm.acompletion(**payload)
        return _areported(reply) if payload.get("stream") else reply

    def __getattr__(self, name: str) -> Any:
        return getattr(self._litellm, name)


def _reported(stream: Any) -> Iterator[Any]:
    try:
        for chunk in stream:
            yield _checked(stream, chunk)
    finally:
        # It lies in a cycle: nobody would close the connection before the collector comes.
        if close := getattr(getattr(stream, "completion_stream", None), "close", None):
            close()


async def _areported(stream: Any) -> AsyncIterator[Any]:
    try:
        async for chunk in stream:
            yield _checked(stream, chunk)
    finally:
        inner = getattr(stream, "completion_stream", None)
        close = getattr(inner, "aclose", None) or getattr(inner, "close", None)
        if close and isawaitable(closed := close()):
            await closed


def _checked(stream: Any, chunk: Any) -> Any:
    """The chunk as the host meant it.

    Raises:
        DelegateTruncated: it says why the stream ended, and the host did not.
    """
    ends = any(getattr(choice, "finish_reason", None) for choice in chunk.choices)
    if ends and getattr(stream, "received_finish_reason", ends) is None:
        raise DelegateTruncated(
            "the stream ended without a finish reason", retryable=True, sent=True
        )
    came = getattr(stream, "chunks", None)
    if getattr(chunk, "usage", None) is None or came is None:
        return chunk
    # The chunk at hand is kept among those that came only if it did come.
    if any(getattr(known, "usage", None) for known in came):
        return chunk
    return {name: value for name, value in chunk.model_dump().items() if name != "usage"}
