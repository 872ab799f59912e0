"""A chat model that binds the run and the config of each answer while the answer is written.

What is bound is asked for in `runs.py`, which says why.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManager,
    CallbackManagerForLLMRun,
)
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import RunnableConfig

from langchain_relay import runs


class RunBoundChatModel(BaseChatModel):
    """All ways into a chat model, with `runs.current` and `runs.config_of` set for its answers."""

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """See `BaseChatModel.invoke`."""
        with runs.configured(config):
            return super().invoke(input, config, stop=stop, **kwargs)

    async def ainvoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """See `BaseChatModel.ainvoke`."""
        with runs.configured(config):
            return await super().ainvoke(input, config, stop=stop, **kwargs)

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with runs.bound(run_manager):
            return super()._generate_with_cache(messages, stop, run_manager, **kwargs)

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with runs.bound(run_manager):
            return await super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """See `BaseChatModel.stream`."""
        config, run = runs.own_run(self, config, CallbackManager)
        written = super().stream(input, config, stop=stop, **kwargs)
        bound, configured = runs.bound(run), runs.configured(config)
        try:
            while True:
                # Bound only while core's generator runs, so that nothing leaks to the caller.
                with bound, configured:
                    chunk = next(written, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            _close(written)

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """See `BaseChatModel.astream`."""
        config, run = runs.own_run(self, config, AsyncCallbackManager)
        written = super().astream(input, config, stop=stop, **kwargs)
        bound, configured = runs.bound(run), runs.configured(config)
        try:
            while True:
                with bound, configured:
                    chunk = await anext(written, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            await _aclose(written)


def _close(written: Iterator[AIMessageChunk]) -> None:
    if close := getattr(written, "close", None):
        close()


async def _aclose(written: AsyncIterator[AIMessageChunk]) -> None:
    if close := getattr(written, "aclose", None):
        await close()
