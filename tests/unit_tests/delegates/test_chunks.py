"""From LangChain chunks to deltas."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk

from langchain_relay.delegates.chunks import (
    ChunkReader,
    cost_usd,
    normal_finish,
    usage_from_metadata,
)
from langchain_relay.engine.errors import DelegateTruncated
from langchain_relay.engine.values import Delta, Usage


class BaseChatOpenAI:
    """Stands for the class of that name: the table knows names, not packages."""


class ChatAnthropic:
    """As above."""


def chunk(
    content: Any = "", info: dict[str, Any] | None = None, **fields: Any
) -> ChatGenerationChunk:
    message = AIMessageChunk(content=content, **fields)
    return ChatGenerationChunk(message=message, generation_info=info)


def counts(input_tokens: int, output_tokens: int, **details: Any) -> Any:
    total = input_tokens + output_tokens
    return {
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "total_tokens": total,
        **details,
    }


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("blue", "blue"),
        ("", ""),
        ([{"type": "text", "text": "bl"}, {"type": "text", "text": "ue"}], "blue"),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "blue"}], "blue"),
        ([{"type": "input_json_delta", "partial_json": "{"}], ""),
    ],
)
def test_the_text_of_a_chunk_is_its_text_blocks(content: Any, text: str):
    delta = ChunkReader(BaseChatOpenAI()).read(chunk(content))
    assert delta.text == text
    assert type(delta.text) is str


@pytest.mark.parametrize(
    ("reason", "normal"),
    [
        *((word, "stop") for word in ("stop", "STOP", "end_turn", "stop_sequence", "completed")),
        *((word, "length") for word in ("length", "max_tokens", "MAX_TOKENS", "model_length")),
        ({"reason": "max_output_tokens"}, "length"),
        ("content_filter", "content_filter"),
        ("tool_calls", "tool_calls"),
        *((word, None) for word in (None, "", "FINISH_REASON_UNSPECIFIED", "in_progress")),
    ],
)
def test_finish_reasons_are_normalised(reason: Any, normal: str | None):
    assert normal_finish(reason) == normal


def test_a_finish_reason_is_read_where_the_class_puts_it():
    assert ChunkReader(ChatAnthropic()).read(
        chunk(response_metadata={"stop_reason": "end_turn"})
    ) == Delta(finish="stop")
    assert ChunkReader(BaseChatOpenAI()).read(
        chunk(info={"finish_reason": "length", "model_name": "gpt-5-mini-2025"})
    ) == Delta(finish="length", model="gpt-5-mini-2025")


def test_the_responses_api_says_incomplete_and_why():
    cut = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    assert ChunkReader(BaseChatOpenAI()).read(chunk(response_metadata=cut)).finish == "length"
    whole = {"status": "completed", "incomplete_details": None}
    assert ChunkReader(BaseChatOpenAI()).read(chunk(response_metadata=whole)).finish == "stop"


def test_usage_that_comes_in_parts_adds_up_to_the_attempts():
    reader = ChunkReader(ChatAnthropic())
    first = reader.read(chunk(usage_metadata=counts(12, 1, input_token_details={"cache_read": 5})))
    last = reader.read(chunk(usage_metadata=counts(0, 7, output_token_details={"reasoning": 2})))
    assert first.usage == Usage(12, 1, cached_input_tokens=5)
    assert last.usage == Usage(12, 8, cached_input_tokens=5, reasoning_tokens=2)


def test_usage_without_an_input_side_is_no_usage():
    reader = ChunkReader(ChatAnthropic())  # a server of somebody else's
    assert reader.read(chunk(usage_metadata=counts(0, 7))).usage is None


@pytest.mark.parametrize(
    ("details", "read", "written"),
    [
        ({"cache_read": 7, "cache_creation": 4}, 7, 4),
        ({"cache_read": 7, "cache_creation": 0, "ephemeral_5m_input_tokens": 4}, 7, 4),
        ({"ephemeral_1h_input_tokens": 3, "ephemeral_5m_input_tokens": 1}, None, 4),
        ({"priority_cache_read": 7, "priority": 2}, 7, None),
        ({"flex_cache_read": 7, "flex_cache_creation": 4, "flex": 2}, 7, 4),
        ({}, None, None),
    ],
)
def test_cached_tokens_are_read_under_every_name_langchain_gives_them(
    details: dict[str, Any], read: int | None, written: int | None
):
    delta = ChunkReader(object()).read(
        chunk(usage_metadata=counts(12, 1, input_token_details=details))
    )
    assert delta.usage is not None
    assert (delta.usage.cached_input_tokens, delta.usage.cache_write_tokens) == (read, written)


def test_a_cost_the_provider_reports_is_kept_and_what_a_client_reckons_is_not():
    told = chunk(response_metadata={"cost": 1e-05, "response_cost": 2e-05})
    assert ChunkReader(object()).read(told).cost_usd == "0.00001"
    reckoned = chunk(response_metadata={"response_cost": 2e-05})
    assert ChunkReader(object()).read(reckoned).cost_usd is None


@pytest.mark.parametrize("value", [None, "free", -1, float("nan"), float("inf"), True, "1e999999"])
def test_a_cost_that_is_none_is_unknown(value: Any):
    assert cost_usd(value) is None


@pytest.mark.parametrize("model", [BaseChatOpenAI(), ChatAnthropic()])
def test_a_class_that_says_why_it_ends_and_does_not_was_cut(model: object):
    reader = ChunkReader(model)
    reader.read(chunk("blue"))
    with pytest.raises(DelegateTruncated) as cut:
        reader.end()
    assert (cut.value.retryable, cut.value.sent) == (True, True)


def test_any_other_class_is_through_when_it_ends():
    model = GenericFakeChatModel(messages=iter(()))
    reader = ChunkReader(model)
    reader.read(chunk("blue"))
    assert reader.end() == Delta(finish="stop")


def test_a_whole_reply_cannot_be_cut():
    reader = ChunkReader(BaseChatOpenAI())
    assert reader.read(ChatGeneration(message=AIMessage("blue"))) == Delta("blue", finish="stop")
    assert reader.end() is None


@pytest.mark.parametrize(
    ("read", "wrote", "usage"),
    [
        ({}, {}, Usage(9, 5)),
        (
            {"cache_read": 1, "cache_creation": 2, "audio": 3},
            {"reasoning": 4, "audio": 5},
            Usage(9, 5, 1, 2, 4, None, 3, 5),
        ),
        (  # langchain-openai, served as flex
            {"flex": 6, "flex_cache_read": 3},
            {"flex": 1, "flex_reasoning": 4},
            Usage(9, 5, 3, None, 4),
        ),
        (  # langchain-anthropic with the lives of its caches
            {"cache_creation": 0, "ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 3},
            {},
            Usage(9, 5, None, 5, None, 3),
        ),
    ],
)
def test_the_details_of_langchains_counts_are_read(read: Any, wrote: Any, usage: Usage):
    metadata = UsageMetadata(
        input_tokens=9,
        output_tokens=5,
        total_tokens=14,
        input_token_details=read,
        output_token_details=wrote,
    )
    assert usage_from_metadata(metadata) == usage


def test_a_count_of_no_input_is_one_that_was_left_out():
    reader = ChunkReader(GenericFakeChatModel(messages=iter([])))
    usage = UsageMetadata(input_tokens=0, output_tokens=5, total_tokens=5)
    chunk = ChatGenerationChunk(message=AIMessageChunk(content="a", usage_metadata=usage))
    assert reader.read(chunk).usage is None
