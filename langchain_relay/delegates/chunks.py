"""From what LangChain chat models stream to `Delta`s: one pure mapping, for threads and loops.

Knows names of metadata keys, no vendor SDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk

from langchain_relay.delegates.continuation import Repeated
from langchain_relay.engine.money import dollars
from langchain_relay.engine.values import Delta, Usage
from langchain_relay.errors import DelegateTruncated
from langchain_relay.prices.reported import reported_cost

__all__ = ["ChunkReader", "cost_usd", "families", "normal_finish", "usage_from_metadata"]

FINISH_KEYS: Mapping[str, tuple[str, ...]] = {
    "BaseChatOpenAI": ("finish_reason", "incomplete_details", "status"),
    "ChatAnthropic": ("stop_reason",),
    "ChatOllama": ("done_reason",),
    "ChatMistralAI": ("finish_reason",),
    "ChatGroq": ("finish_reason",),
    "ChatFireworks": ("finish_reason",),
    "ChatGoogleGenerativeAI": ("finish_reason", "prompt_feedback"),
}
"""Where each class (or a base of it) says why it ended; their streams end with one of these.

Read in the sources of langchain-openai 1.7.3 (`status` and `incomplete_details` are the Responses
API's), langchain-anthropic 1.7.10, -ollama 1.1.0, -mistralai 1.1.6, -groq 1.1.3, -fireworks 1.7.1
and -google-genai 4.4.2.
"""

_ANY_FINISH_KEY = (
    "finish_reason",
    "stop_reason",
    "stopReason",
    "done_reason",
    "incomplete_details",
    "status",
    "prompt_feedback",
)

_STOP = frozenset(
    {"stop", "end_turn", "stop_sequence", "eos", "eos_token", "completed", "complete"}
)
_LENGTH = frozenset(
    {
        *("length", "max_tokens", "max_output_tokens"),
        *("model_length", "model_context_window_exceeded"),  # Mistral, Anthropic
    }
)
_NOT_YET = frozenset({"", "none", "null", "finish_reason_unspecified", "in_progress", "queued"})


def families(model: object) -> frozenset[str]:
    """Names of the class of `model` and of its bases."""
    return frozenset(cls.__name__ for cls in type(model).__mro__)


def normal_finish(reason: Any) -> str | None:
    """`stop`, `length`, the provider's own word in lower case, or `None` if it has not ended."""
    if isinstance(reason, Mapping):
        if reason.get("block_reason"):  # Gemini's prompt_feedback
            return "prompt_blocked"
        reason = reason.get("reason")  # incomplete_details of the Responses API
    word = str(getattr(reason, "name", reason) if reason is not None else "").lower()
    if word in _NOT_YET:
        return None
    if word in _STOP:
        return "stop"
    return "length" if word in _LENGTH else word


def cost_usd(value: Any) -> str | None:
    """A cost the provider reports, as a decimal string; `None` if that is no amount of money."""
    try:
        return None if value is None else f"{dollars(value):f}"
    except ValueError:
        return None


def usage_from_metadata(metadata: UsageMetadata) -> Usage:
    """LangChain's counts as ours; both count cached tokens as input."""
    read: Mapping[str, Any] = metadata.get("input_token_details") or {}
    wrote: Mapping[str, Any] = metadata.get("output_token_details") or {}
    return Usage(
        input_tokens=metadata["input_tokens"],
        output_tokens=metadata["output_tokens"],
        cached_input_tokens=_sum(read, *_tiered("cache_read")),
        cache_write_tokens=_sum(read, *_tiered("cache_creation"), *_CACHE_WRITES),
        reasoning_tokens=_sum(wrote, *_tiered("reasoning")),
        cache_write_1h_tokens=_sum(read, _CACHE_WRITES[1]),
        input_audio_tokens=_sum(read, "audio"),
        output_audio_tokens=_sum(wrote, "audio"),
    )


_CACHE_WRITES = ("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens")
"""langchain-anthropic counts a write here or under `cache_creation`, never in both."""


def _tiered(name: str) -> tuple[str, ...]:
    """langchain-openai renames the counts of a request that another tier served."""
    return (name, f"flex_{name}", f"priority_{name}")


def _sum(details: Mapping[str, Any], *names: str) -> int | None:
    """The counts of these names together; `None` if there are none."""
    counts = [count for name in names if (count := details.get(name)) is not None]
    return sum(counts) if counts else None


class ChunkReader:
    """Reads one attempt's chunks.

    Args:
        model: The chat model; its class decides whether an end without a reason is a cut stream.
        repeated: Drops the draft where replies begin with it.
    """

    def __init__(self, model: object, repeated: Repeated | None = None) -> None:
        self._repeated = repeated or Repeated("")
        known = families(model)
        table = [keys for name, keys in FINISH_KEYS.items() if name in known]
        self._keys = table[0] if table else _ANY_FINISH_KEY
        self._must_finish = bool(table)
        self._usage: UsageMetadata | None = None
        self.finish: str | None = None
        self.received = False

    def read(self, generation: ChatGeneration) -> Delta:
        """One chunk, or a whole reply; tool calls and reasoning carry no text."""
        message = generation.message
        metadata = {**(generation.generation_info or {}), **message.response_metadata}
        found = (normal_finish(metadata.get(key)) for key in self._keys)
        finish = next(filter(None, found), None)
        if finish is None and not isinstance(generation, ChatGenerationChunk):
            finish = "stop"  # a whole reply cannot be a cut stream
        self.finish = finish or self.finish
        self.received = True
        return Delta(
            text=self._repeated.take(str(message.text), ended=self.finish is not None),
            usage=self._counted(message),
            finish=finish,
            model=metadata.get("model_name") or metadata.get("model") or None,
            cost_usd=cost_usd(reported_cost(metadata)),
        )

    def end(self) -> Delta | None:
        """What is left to say once the stream is exhausted.

        Raises:
            DelegateTruncated: the class gives a reason at the end of every stream, and gave none.
        """
        if self.finish is not None:
            return None
        if self._must_finish:
            raise DelegateTruncated(
                "the stream ended without a finish reason", retryable=True, sent=True
            )
        return Delta(finish="stop")

    def _counted(self, message: Any) -> Usage | None:
        """The counts so far: LangChain's add up over the chunks.

        No request has an input of 0 tokens. That is what langchain-anthropic 1.7.7 makes of a
        server which tells the input in `message_start` only, and it would be free of charge.
        """
        metadata = message.usage_metadata if isinstance(message, AIMessage) else None
        if not metadata:
            return None
        self._usage = add_usage(self._usage, metadata)
        usage = usage_from_metadata(self._usage)
        # No request has an empty prompt: langchain-anthropic 1.7.7 writes 0 where a host leaves
        # the count out of `message_delta`.
        return usage if usage.input_tokens else None
