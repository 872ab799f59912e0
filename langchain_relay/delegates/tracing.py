"""A child run for each attempt at a hosted model, opened and closed by us.

With it `get_usage_metadata_callback`, LangSmith and every cost callback see each hosted token once,
on its own run, and a cut of ours ends the run well instead of as an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackHandler, CallbackManager
from langchain_core.callbacks.manager import (
    AsyncCallbackManagerForChainRun,
    AsyncCallbackManagerForLLMRun,
    BaseRunManager,
    CallbackManagerForChainRun,
    CallbackManagerForLLMRun,
)
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, LLMResult

from langchain_relay.engine.errors import NANOUSD_PER_USD
from langchain_relay.engine.values import Attempt, Charge, Delegate, Delta, Usage

if TYPE_CHECKING:
    from langchain_relay.delegates.asks import Received

CHILD_TAG = "relay:delegate"
"""Tag of every child run; filter `astream_events` by it."""

UNKNOWN_PROVIDER = "unknown"
"""Provider of a delegate that does not say whose model it asks (`delegate.provider`)."""

CHARGE_KEY = "relay_charge"
"""Where a child run's message says what the attempt was charged: `cost_nanousd`, `price_source`,
`estimated`. Whole numbers, since handlers add messages up and LangChain cannot add floats."""


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
        {"name": type(delegate).__name__, "kwargs": {"model": model, **_address(delegate)}},
        [shown or [HumanMessage("")]],
        {
            "name": type(delegate).__name__,
            "invocation_params": {"model": model, "max_tokens": attempt.max_tokens},
            "options": {"stop": None},
        },
    )


def _address(delegate: Delegate) -> dict[str, str]:
    base_url = getattr(delegate, "base_url", None)
    return {"base_url": str(base_url)} if base_url else {}


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


def _describe(
    manager: CallbackManager | AsyncCallbackManager, delegate: Delegate, attempt: Attempt
) -> None:
    # `nostream`: LangGraph's messages mode must not show the span's tokens a second time.
    manager.add_tags(["nostream"], inherit=False)
    # A run inherits what its parent says of itself, and a hosted model is not the relay's.
    described = {
        "ls_provider": getattr(delegate, "provider", None) or UNKNOWN_PROVIDER,
        "ls_model_name": attempt.model or delegate.model,
        "ls_model_type": "chat",
        "ls_temperature": None,
        "ls_max_tokens": attempt.max_tokens,
        "ls_stop": None,
    }
    manager.add_metadata({**_own(delegate, "metadata"), **described}, inherit=False)
    manager.add_tags([*_own(delegate, "tags")], inherit=False)
    callbacks = _own(delegate, "callbacks")
    for handler in getattr(callbacks, "handlers", callbacks):
        manager.add_handler(handler, inherit=False)


def _own(delegate: Delegate, name: str) -> Any:
    """What a user gave the wrapped chat model, which would have told it of its own runs."""
    return getattr(getattr(delegate, "chat", None), name, None) or {}


def open_child(parent: BaseRunManager, delegate: Delegate, attempt: Attempt) -> Any:
    """Start the child run; returns its run manager."""
    manager = CallbackManagerForChainRun(**_fields(parent)).get_child(CHILD_TAG)
    _describe(manager, delegate, attempt)
    start = _start(delegate, attempt)
    (run,) = manager.on_chat_model_start(start.serialized, start.messages, **start.options)
    return ChildRun(**_fields(run))


async def aopen_child(parent: BaseRunManager, delegate: Delegate, attempt: Attempt) -> Any:
    """Async twin of `open_child`."""
    manager = AsyncCallbackManagerForChainRun(**_fields(parent)).get_child(CHILD_TAG)
    _describe(manager, delegate, attempt)
    start = _start(delegate, attempt)
    (run,) = await manager.on_chat_model_start(start.serialized, start.messages, **start.options)
    return AsyncChildRun(**_fields(run))


class ChildRun(CallbackManagerForLLMRun):
    """A child run that tells LangSmith what the attempt was charged.

    LangSmith reads costs from the usage, as floats. No other handler may see them there: whoever
    adds usage up with langchain-core's `add_usage` fails at a float.
    """

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        """See `CallbackManagerForLLMRun.on_llm_end`."""
        for handlers, told in _told(self.handlers, response):
            run = CallbackManagerForLLMRun(**{**_fields(self), "handlers": handlers})
            run.on_llm_end(told, **kwargs)


class AsyncChildRun(AsyncCallbackManagerForLLMRun):
    """Async twin of `ChildRun`."""

    async def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        """See `AsyncCallbackManagerForLLMRun.on_llm_end`."""
        for handlers, told in _told(self.handlers, response):
            run = AsyncCallbackManagerForLLMRun(**{**_fields(self), "handlers": handlers})
            await run.on_llm_end(told, **kwargs)


def _told(
    handlers: list[BaseCallbackHandler], response: LLMResult
) -> list[tuple[list[BaseCallbackHandler], LLMResult]]:
    """Which handlers are told which result."""
    from langchain_core.tracers import LangChainTracer

    tracers: list[BaseCallbackHandler]
    tracers = [handler for handler in handlers if isinstance(handler, LangChainTracer)]
    if not tracers:
        return [(handlers, response)]
    others = [handler for handler in handlers if not isinstance(handler, LangChainTracer)]
    return [(others, response), (tracers, _with_cost(response))]


def _with_cost(response: LLMResult) -> LLMResult:
    """The result as LangSmith reads it: US dollars as `total_cost` of the usage."""
    generation = response.generations[0][0]
    assert isinstance(generation, ChatGeneration)
    message = generation.message
    charge = message.response_metadata.get(CHARGE_KEY) or {}
    cost_nanousd: int | None = charge.get("cost_nanousd")
    if cost_nanousd is None:
        return response
    usage = getattr(message, "usage_metadata", None) or {}
    priced = {**usage, "total_cost": cost_nanousd / NANOUSD_PER_USD}
    told = message.model_copy(update={"usage_metadata": priced})
    return LLMResult(generations=[[ChatGeneration(message=told)]])


def token(delta: Delta) -> ChatGenerationChunk:
    """A streamed piece as handlers of `on_llm_new_token` know it."""
    return ChatGenerationChunk(message=AIMessageChunk(content=delta.text))


def result(received: Received, model: str) -> LLMResult:
    """What the child run ends with; usage only where it was reported with a finish reason."""
    last = received.last
    charge = received.charge
    usage = last.usage if last.finish else None
    message = AIMessage(
        received.text,
        response_metadata={
            "finish_reason": last.finish or "cut",
            "model_name": last.model or model,
            **({CHARGE_KEY: _charged(charge)} if charge else {}),
        },
        usage_metadata=_usage_metadata(usage) if usage else None,
    )
    return LLMResult(generations=[[ChatGeneration(message=message)]])


def _charged(charge: Charge) -> dict[str, Any]:
    return {
        "cost_nanousd": charge.cost_nanousd,
        "price_source": charge.price_source,
        "estimated": charge.estimated,
    }


def _usage_metadata(usage: Usage) -> UsageMetadata:
    metadata = UsageMetadata(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.input_tokens + usage.output_tokens,
    )
    cached = {
        "cache_read": usage.cached_input_tokens,
        "cache_creation": usage.cache_write_tokens,
    }
    if told := {name: count for name, count in cached.items() if count is not None}:
        metadata["input_token_details"] = InputTokenDetails(**told)  # type: ignore[typeddict-item]
    if usage.reasoning_tokens is not None:
        metadata["output_token_details"] = {"reasoning": usage.reasoning_tokens}
    return metadata
