"""Chat models in the hosted role, without a network."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_openai import AzureChatOpenAI, ChatOpenAI

from langchain_relay import RelayChatModel, relay_report
from langchain_relay.delegates import ChatModelDelegate
from langchain_relay.engine.errors import DelegateError, UsageMistake
from langchain_relay.engine.values import Attempt, Delegate, Delta
from langchain_relay.testing import ScriptedLocal

ASKED = Attempt(messages=(HumanMessage("Why?"),), draft="", max_tokens=5)


class Recorder(BaseChatModel):
    """Streams two words and keeps what it was called with."""

    max_tokens: int | None = None
    max_retries: int | None = 4
    stream_usage: bool | None = None
    calls: list[dict[str, Any]] = []  # noqa: RUF012 - pydantic copies it

    @property
    def _llm_type(self) -> str:
        return "recorder"

    @functools.cached_property
    def _client(self) -> int | None:
        return self.max_retries

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Any:
        self.calls.append({"limit": self.max_tokens, "client": self._client, **kwargs})
        for word in ("one", " two"):
            yield ChatGenerationChunk(message=AIMessageChunk(content=word))

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        raise AssertionError("it streams")


class Whole(BaseChatModel):
    """Cannot stream."""

    calls: int = 0

    @property
    def _llm_type(self) -> str:
        return "whole"

    def _generate(self, *args: Any, **kwargs: Any) -> ChatResult:
        self.calls += 1
        message = AIMessage("one two", response_metadata={"finish_reason": "length"})
        return ChatResult(
            generations=[ChatGeneration(message=message)], llm_output={"model_name": "w"}
        )


async def deltas(delegate: Delegate, colour: str, asked: Attempt = ASKED) -> list[Delta]:
    if colour == "sync":
        return list(delegate.stream(asked))
    return [delta async for delta in delegate.astream(asked)]


both_colours = pytest.mark.parametrize("colour", ["sync", "async"])


@both_colours
async def test_a_stream_of_an_unknown_class_is_through_when_it_ends(colour: str):
    out = await deltas(ChatModelDelegate(Recorder()), colour)
    assert out == [Delta("one"), Delta(" two"), Delta(finish="stop")]


@both_colours
async def test_the_limit_is_set_under_the_name_of_the_classs_field(colour: str):
    model = Recorder(max_tokens=900)
    delegate = ChatModelDelegate(model)
    await deltas(delegate, colour)
    assert delegate._chat.calls[-1]["limit"] == 5  # type: ignore[attr-defined]
    assert model.max_tokens == 900


@both_colours
async def test_a_client_that_was_built_before_is_built_again_without_retries(colour: str):
    model = Recorder()
    assert model._client == 4
    delegate = ChatModelDelegate(model)
    await deltas(delegate, colour)
    assert delegate._chat.calls[-1]["client"] == 0  # type: ignore[attr-defined]
    assert (model.max_retries, model._client) == (4, 4)


@pytest.mark.parametrize(("given", "asked"), [(None, True), (True, True), (False, False)])
def test_usage_is_asked_for_unless_the_user_said_no(given: bool | None, asked: bool):
    delegate = ChatModelDelegate(Recorder(stream_usage=given))
    assert delegate._chat.stream_usage is asked  # type: ignore[attr-defined]


@both_colours
async def test_a_model_that_cannot_stream_is_asked_once_for_the_whole(colour: str):
    model = Whole()
    out = await deltas(ChatModelDelegate(model), colour)
    assert out == [Delta("one two", finish="length", model="w")]
    assert model.calls == 1


class Gate(BaseRateLimiter):
    def __init__(self) -> None:
        self.passed: list[str] = []

    def acquire(self, *, blocking: bool = True) -> bool:
        self.passed.append("sync")
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        self.passed.append("async")
        return True


class Failing(Recorder):
    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        yield ChatGenerationChunk(message=AIMessageChunk(content="one"))
        raise KeyError("a bug in a provider's package")

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream():
            yield chunk


@both_colours
async def test_whatever_a_model_raises_is_a_delegate_error(colour: str):
    with pytest.raises(DelegateError, match="KeyError") as raised:
        await deltas(ChatModelDelegate(Failing()), colour)
    assert raised.value.sent
    assert not raised.value.retryable


class Closing(Recorder):
    """Says when its streams are closed."""

    closed: list[str] = []  # noqa: RUF012 - pydantic copies it

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        try:
            while True:
                yield ChatGenerationChunk(message=AIMessageChunk(content="word "))
        finally:
            self.closed.append("sync")

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        try:
            while True:
                yield ChatGenerationChunk(message=AIMessageChunk(content="word "))
        finally:
            self.closed.append("async")


async def test_closing_the_deltas_closes_the_models_stream_before_it_returns():
    delegate = ChatModelDelegate(Closing())
    chat: Any = delegate._chat
    stream: Any = delegate.stream(ASKED)
    next(stream)
    stream.close()
    astream: Any = delegate.astream(ASKED)
    await anext(astream)
    await astream.aclose()
    assert chat.closed == ["sync", "async"]


# --- what is known of classes -------------------------------------------------------------------


def test_how_many_requests_an_attempt_may_send():
    fake = GenericFakeChatModel(messages=iter(()))
    assert ChatModelDelegate(ChatOpenAI(model="m", api_key="k")).worst_attempts == 1
    assert ChatModelDelegate(fake).worst_attempts == 1  # langchain-core's own doubles
    assert ChatModelDelegate(Recorder()).worst_attempts == 5  # set to 0 too, but nobody counted
    assert ChatModelDelegate(Whole()).worst_attempts is None
    assert ChatModelDelegate(Whole(), worst_attempts=1).worst_attempts == 1


@pytest.mark.parametrize(
    "model",
    [
        ChatOpenAI(model="m", api_key="k", max_retries=3),
        AzureChatOpenAI(
            azure_deployment="m", api_key="k", api_version="1", azure_endpoint="http://127.0.0.1"
        ),
    ],
)
def test_all_four_openai_clients_are_copied_without_retries(model: ChatOpenAI):
    chat: Any = ChatModelDelegate(model)._chat
    assert chat.root_client.max_retries == chat.root_async_client.max_retries == 0
    assert chat.client._client is chat.root_client
    assert chat.async_client._client is chat.root_async_client
    assert type(chat.root_client) is type(model.root_client)


class ChatAnthropic(Recorder):
    """Stands for the class of that name."""

    model: str = ""
    thinking: dict[str, Any] | None = None


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("claude-3-haiku-20240307", "prefill"),
        ("claude-3-5-sonnet-20241022", "prefill"),
        ("claude-3-7-sonnet-latest", "prefill"),
        ("claude-sonnet-4-20250514", "prefill"),
        ("claude-sonnet-4-5", "prefill"),
        ("claude-haiku-4-5-20251001", "prefill"),
        ("claude-opus-4-5", "prefill"),
        ("claude-opus-4-6", "instruct"),
        ("claude-opus-4-7-20260401", "instruct"),
        ("claude-sonnet-5", "instruct"),
        ("claude-latest", "instruct"),
    ],
)
def test_claude_continues_a_prefilled_draft_up_to_4_5(name: str, mode: str):
    assert ChatModelDelegate(ChatAnthropic(model=name)).mode == mode


def test_a_thinking_claude_takes_no_prefill():
    model = ChatAnthropic(model="claude-sonnet-4-5", thinking={"type": "enabled"})
    assert ChatModelDelegate(model).mode == "instruct"


def test_an_unknown_model_is_instructed_and_the_user_may_know_better():
    assert ChatModelDelegate(Recorder()).mode == "instruct"
    assert ChatModelDelegate(Recorder(), mode="prefill").mode == "prefill"


def test_a_chat_model_has_no_completion_mode():
    with pytest.raises(UsageMistake, match="OpenAIDelegate"):
        ChatModelDelegate(Recorder(), mode="completion")


def test_flag_mode_marks_the_draft_for_classes_that_read_the_mark():
    delegate = ChatModelDelegate(Recorder(), mode="flag")
    asked = Attempt(messages=ASKED.messages, draft="It", max_tokens=5)
    assert delegate._messages(asked)[-1].additional_kwargs == {"prefix": True}
    assert delegate._messages(ASKED)[-1].additional_kwargs == {}


def test_the_name_is_the_models_own_or_the_users():
    model = ChatOpenAI(model="gpt-5-mini", api_key="k")
    assert ChatModelDelegate(model).model == "gpt-5-mini"
    assert ChatModelDelegate(model, name="big").model == "big"
    assert ChatModelDelegate(Whole()).model == "Whole"


def test_one_name_for_two_models_does_not_make_them_one():
    small, large = (ChatModelDelegate(ChatOpenAI(model=m, api_key="k"), name="us") for m in "ab")
    assert small.fingerprint != large.fingerprint


def test_another_model_of_the_class_has_a_mode_and_a_reasoning_of_its_own():
    claude = ChatModelDelegate(ChatAnthropic(model="claude-haiku-4-5"))
    other = claude.for_model("claude-opus-4-8")
    assert (claude.mode, other.mode) == ("prefill", "instruct")
    assert other.model == "claude-opus-4-8"
    assert other is claude.for_model("claude-opus-4-8")
    gpt = ChatModelDelegate(ChatOpenAI(model="gpt-5-mini", api_key="k"), mode="handoff")
    older = gpt.for_model("gpt-4o")
    assert gpt.fingerprint["settings"]["reasoning_effort"] == "minimal"
    assert "reasoning_effort" not in older.fingerprint["settings"]
    assert older.mode == "handoff", "the user chose it"


def test_the_fingerprint_tells_hosts_and_settings_apart_and_holds_no_secret():
    def fingerprint(**options: Any) -> str:
        model = ChatOpenAI(model="m", api_key="sk-secret", **options)
        return repr(ChatModelDelegate(model).fingerprint)

    here = fingerprint(base_url="http://user:pass@127.0.0.1:1/v1?token=t")
    assert here != fingerprint(base_url="http://127.0.0.1:2/v1")
    assert fingerprint(temperature=0.5) != fingerprint()
    assert "http://127.0.0.1:1/v1" in here
    assert not any(secret in here for secret in ("sk-secret", "pass", "token"))


def test_the_input_bound_covers_every_byte_that_is_sent():
    delegate = ChatModelDelegate(Recorder())
    asked = Attempt(messages=(HumanMessage("天" * 100),), draft="It is", max_tokens=5)
    sent = delegate._messages(asked)[0].text
    assert delegate.input_bound(asked) >= len(sent.encode())
    assert delegate.input_bound(asked) > delegate.input_bound(ASKED)


@both_colours
async def test_the_models_rate_limiter_is_passed_once_per_attempt(colour: str):
    gate = Gate()
    local = ScriptedLocal("It is ", "<call>8</call>", "so.")
    model = RelayChatModel(model=local, delegate=Recorder(rate_limiter=gate))
    message = model.invoke("?") if colour == "sync" else await model.ainvoke("?")
    assert len(relay_report(message).charges) == 1
    assert gate.passed == [colour]
