"""A child run for each attempt at a hosted model, opened and closed by us.

With it `get_usage_metadata_callback`, LangSmith and every cost callback see each hosted token once,
on its own run, and a cut of ours ends the run well instead of as an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.callbacks.manager import (
    AsyncCallbackManagerForChainRun,
    BaseRunManager,
    CallbackManagerForChainRun,
)
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult

from langchain_relay.engine.values import Attempt, Delegate, Delta, Usage

if TYPE_CHECKING:
    from langchain_relay.delegates.asks import Received

CHILD_TAG = "relay:delegate"
"""Tag of every child run; filter `astream_events` by it."""


@dataclass(frozen=True, slots=True)
class _Start:
    """What both colours of `on_chat_model_start` are called with."""

    serialized: dict[str, Any]
    messages: list[list[Any]]
    options: dict[str, Any]


def _start(delegate: Delegate, attempt: Attempt) -> _Start:
    model = attempt.model or delegate.model
    shown = [*attempt.messages, *([AIMessage(attempt.draft)] if attempt.draft else [])]
    return _Start(
        {"name": type(delegate).__name__, "kwargs": {"model": model}},
        [shown or [HumanMessage("")]],
        {
            "name": type(delegate).__name__,
            "invocation_params": {"model": model, "max_tokens": attempt.max_tokens},
            "options": {"stop": None},
        },
    )


def _fields(parent: BaseRunManager) -> dict[str, Any]:
    return {
        "run_id": parent.run_id,
        "handlers": parent.handlers,
        "inheritable_handlers": parent.inheritable_handlers,
        "parent_run_id": parent.parent_run_id,
        "tags": parent.tags,
        "inheritable_tags": parent.inheritable_tags,
        "metadata": parent.metadata,
        "inheritable_metadata": parent.inheritable_metadata,
    }


def _describe(manager: CallbackManager | AsyncCallbackManager, model: str) -> None:
    # `nostream`: LangGraph's messages mode must not show the span's tokens a second time.
    manager.add_tags(["nostream"], inherit=False)
    manager.add_metadata({"ls_model_name": model, "ls_model_type": "chat"}, inherit=False)


def open_child(parent: BaseRunManager, delegate: Delegate, attempt: Attempt) -> Any:
    """Start the child run; returns its run manager."""
    manager = CallbackManagerForChainRun(**_fields(parent)).get_child(CHILD_TAG)
    _describe(manager, attempt.model or delegate.model)
    start = _start(delegate, attempt)
    return manager.on_chat_model_start(start.serialized, start.messages, **start.options)[0]


async def aopen_child(parent: BaseRunManager, delegate: Delegate, attempt: Attempt) -> Any:
    """Async twin of `open_child`."""
    manager = AsyncCallbackManagerForChainRun(**_fields(parent)).get_child(CHILD_TAG)
    _describe(manager, attempt.model or delegate.model)
    start = _start(delegate, attempt)
    return (await manager.on_chat_model_start(start.serialized, start.messages, **start.options))[0]


def token(delta: Delta) -> ChatGenerationChunk:
    """A streamed piece as handlers of `on_llm_new_token` know it."""
    return ChatGenerationChunk(message=AIMessageChunk(content=delta.text))


def result(received: Received, model: str) -> LLMResult:
    """What the child run ends with; usage only where it was reported with a finish reason."""
    last = received.last
    message = AIMessage(
        received.text,
        response_metadata={
            "finish_reason": last.finish or "cut",
            "model_name": last.model or model,
        },
        usage_metadata=_usage_metadata(last.usage) if last.usage and last.finish else None,
    )
    return LLMResult(generations=[[ChatGeneration(message=message)]])


def _usage_metadata(usage: Usage) -> UsageMetadata:
    metadata = UsageMetadata(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
    )
    details = InputTokenDetails()
    if usage.cached_input_tokens is not None:
        details["cache_read"] = usage.cached_input_tokens
    if usage.cache_write_tokens is not None:
        details["cache_creation"] = usage.cache_write_tokens
    if details:
        metadata["input_token_details"] = details
    if usage.reasoning_tokens is not None:
        metadata["output_token_details"] = {"reasoning": usage.reasoning_tokens}
    return metadata
