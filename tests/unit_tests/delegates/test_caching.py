"""Where breakpoints go, when they do, and what is known of which host."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from langchain_relay.delegates import ChatModelDelegate, OpenAIDelegate
from langchain_relay.delegates.caching import (
    BLOCK_CHARS,
    CACHES,
    cache_key,
    cache_rule,
    stable_pieces,
)
from langchain_relay.engine.values import Attempt

SYSTEM = SystemMessage("Be brief. " * 300)
QUESTION = HumanMessage("Why is the sky blue?")
FIRST = (SYSTEM, QUESTION)
SECOND = (SYSTEM, HumanMessage("Hi"), AIMessage("Hello"), QUESTION)
DRAFT = "Short waves are scattered far more than long ones. " * 100
EPHEMERAL = {"type": "ephemeral"}
EXPLICIT = {"mode": "explicit"}


def claude(model: str = "claude-sonnet-4-5", **options: Any) -> ChatModelDelegate:
    chat = ChatAnthropic(model=model, api_key="x", **options.pop("chat", {}))
    return ChatModelDelegate(chat, **options)


def gpt(model: str, **options: Any) -> ChatModelDelegate:
    return ChatModelDelegate(
        ChatOpenAI(model=model, api_key="x", **options.pop("chat", {})), **options
    )


def payload(delegate: Any, draft: str, asked: Any = FIRST, **fields: Any) -> dict[str, Any]:
    attempt = Attempt(tuple(asked), draft, max_tokens=16, **fields)
    chat, kwargs = delegate._request(delegate._chat, attempt)
    out: dict[str, Any] = chat._get_request_payload(delegate._messages(attempt), **kwargs)
    return out


def marks(sent: dict[str, Any], key: str = "cache_control") -> list[str]:
    """The texts of the marked blocks."""
    contents = [sent.get("system"), *(message["content"] for message in sent["messages"])]
    return [
        block["text"]
        for content in contents
        if isinstance(content, list)
        for block in content
        if key in block
    ]


@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "claude-sonnet-5"])  # prefill, instruct
def test_claude_gets_a_breakpoint_behind_the_conversation_and_one_in_the_draft(model: str):
    sent = payload(claude(model), DRAFT)
    conversation, draft = marks(sent)
    assert conversation == QUESTION.text
    assert draft in DRAFT or draft.lstrip().startswith("The answer")
    texts = "".join(block["text"] for message in sent["messages"] for block in message["content"])
    assert DRAFT.rstrip() in texts


def test_less_than_a_block_and_a_half_of_the_draft_is_behind_its_last_breakpoint():
    sent = payload(claude(), DRAFT)
    *_, before, last = sent["messages"][-1]["content"]
    assert before["cache_control"] == EPHEMERAL
    assert len(last["text"]) <= BLOCK_CHARS * 3 // 2


def test_without_a_draft_only_the_conversation_is_marked():
    assert marks(payload(claude(), "")) == [QUESTION.text]


def test_a_single_hand_over_of_a_first_question_pays_for_no_cache():
    assert marks(payload(claude(), DRAFT, again=False)) == []


def test_a_single_hand_over_of_a_later_turn_marks_the_conversation():
    assert marks(payload(claude(), DRAFT, SECOND, again=False)) == [QUESTION.text]


@pytest.mark.parametrize(
    ("model", "least"),
    [("claude-opus-5", 512), ("claude-sonnet-4-5", 1_024), ("claude-haiku-4-5", 4_096)],
)
def test_what_is_surely_too_short_is_not_marked(model: str, least: int):
    delegate = claude(model)
    long, short = HumanMessage("a" * least), HumanMessage("a" * (least - 1))
    assert marks(payload(delegate, "", [long])) == [long.text]
    assert marks(payload(delegate, "", [short])) == []


@pytest.mark.parametrize("taken", range(5))
def test_the_users_own_breakpoints_stay_and_there_are_never_more_than_four(taken: int):
    blocks = [{"type": "text", "text": f"{n} " * 999} for n in range(5)]
    own = [{**b, "cache_control": {"type": "ephemeral", "ttl": "1h"}} for b in blocks[:taken]]
    asked = [SystemMessage([*own, *blocks[taken:]]), QUESTION]
    found = marks(payload(claude(), DRAFT, asked))
    assert len(found) == min(4, taken + 2)
    assert found[:taken] == [block["text"] for block in blocks[:taken]]


def test_a_block_the_user_marked_is_left_as_it_is():
    block = {"type": "text", "text": "Why? " * 999, "cache_control": {"type": "x", "ttl": "1h"}}
    sent = payload(claude(), "", [HumanMessage([block])])
    assert sent["messages"][0]["content"] == [block]


def test_the_users_messages_are_not_touched():
    asked = [SYSTEM, HumanMessage("Why? " * 999)]
    before = [message.model_copy(deep=True) for message in asked]
    payload(claude(), DRAFT, asked)
    assert asked == before


@pytest.mark.parametrize("delegate", [claude, lambda **options: gpt("gpt-5.6", **options)])
def test_it_can_be_turned_off(delegate: Any):
    sent = payload(delegate(prompt_cache=False), DRAFT)
    assert marks(sent) == marks(sent, "prompt_cache_breakpoint") == []
    assert not {"prompt_cache_key", "prompt_cache_options"} & sent.keys()


def test_gpt_5_6_is_told_where_its_cache_ends_and_that_it_ends_nowhere_else():
    sent = payload(gpt("gpt-5.6"), DRAFT)
    found = marks(sent, "prompt_cache_breakpoint")
    assert sent["prompt_cache_options"] == EXPLICIT
    assert found[0] == QUESTION.text
    assert "".join(found[1:]).count("Short waves") > 60
    assert "prompt_cache_breakpoint" not in sent["messages"][-1]["content"][-1]


def test_marks_of_shorter_drafts_stay_where_only_marks_are_looked_up():
    short, long = (payload(gpt("gpt-5.6"), DRAFT * n) for n in (1, 2))
    first = marks(short, "prompt_cache_breakpoint")
    assert marks(long, "prompt_cache_breakpoint")[: len(first)] == first


def test_openai_refuses_marks_on_what_the_assistant_said():
    asked = [SYSTEM, QUESTION, AIMessage("Hello " * 999)]
    sent = payload(gpt("gpt-5.6", mode="prefill"), DRAFT, asked)
    assert marks(sent, "prompt_cache_breakpoint") == []


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_older_gpts_get_a_key_and_nothing_else(api: str):
    chat = {"use_responses_api": api == "responses"}
    sent = payload(gpt("gpt-5-mini", chat=chat), DRAFT)
    assert sent["prompt_cache_key"] == cache_key(FIRST)
    assert "prompt_cache_options" not in sent
    assert "prompt_cache_breakpoint" not in str(sent)


@pytest.mark.parametrize(
    "own",
    [
        {"model_kwargs": {"prompt_cache_key": "mine"}},
        {"extra_body": {"prompt_cache_key": "mine"}},
        {"prompt_cache_options": {"mode": "implicit"}},
    ],
)
def test_who_steers_the_cache_is_left_alone(own: dict[str, Any]):
    sent = payload(gpt("gpt-5.6", chat=own), DRAFT)
    assert sent.get("prompt_cache_key", "mine") == "mine"
    assert marks(sent, "prompt_cache_breakpoint") == []


def test_an_openai_client_marks_and_keys_alike():
    delegate = OpenAIDelegate(openai.OpenAI(api_key="x"), model="gpt-5.6")
    sent = delegate._request(Attempt(FIRST, DRAFT, max_tokens=16))
    assert marks(sent, "prompt_cache_breakpoint")[0] == QUESTION.text
    assert sent["prompt_cache_options"] == EXPLICIT
    assert sent["prompt_cache_key"] == cache_key(FIRST)


@pytest.mark.parametrize(("wanted", "keyed"), [(None, False), (False, False), (True, True)])
def test_other_addresses_get_openais_fields_only_if_wanted(*, wanted: bool | None, keyed: bool):
    client = openai.OpenAI(api_key="x", base_url="http://127.0.0.1:1/v1")
    delegate = OpenAIDelegate(client, model="gpt-5-mini", prompt_cache=wanted)
    sent = delegate._request(Attempt(FIRST, "", max_tokens=16))
    assert ("prompt_cache_key" in sent) is keyed
    assert ("prompt_cache_key" in payload(_elsewhere(wanted), "")) is keyed


def _elsewhere(wanted: bool | None) -> ChatModelDelegate:
    return gpt("gpt-5-mini", chat={"base_url": "http://127.0.0.1:1/v1"}, prompt_cache=wanted)


def test_a_key_is_one_for_all_turns_of_a_conversation_and_another_for_another():
    turns: list[BaseMessage] = [*FIRST, AIMessage("It scatters."), HumanMessage("Why?")]
    assert cache_key(turns) == cache_key(FIRST)
    assert cache_key(turns) != cache_key([SYSTEM, HumanMessage("Why?")])
    assert len(cache_key(turns)) <= 64


runs = st.tuples(st.sampled_from(["a", " ", "b. ", "\n", "\u3042"]), st.integers(1, 1_700))


@given(
    text=st.lists(runs, max_size=12).map(lambda parts: "".join(part * n for part, n in parts)),
    more=st.text(max_size=3_000),
    end=st.integers(0, 6_000),
)
def test_a_longer_draft_has_all_cuts_of_a_shorter_one(text: str, more: str, end: int):
    short, long = stable_pieces(text, end), stable_pieces(text[:end] + more, len(text) * 2)
    assert "".join(short) == text
    assert long[: len(short) - 1] == short[:-1]


def test_pieces_begin_and_do_not_end_with_white_space():
    pieces = stable_pieces(DRAFT, len(DRAFT))
    assert len(pieces) > 3
    assert all(piece[0] == " " and piece[-2] != " " for piece in pieces[1:])
    assert all(not piece[-1].isspace() for piece in pieces[:-1])


def test_every_row_has_its_source_and_is_found():
    assert all("2026" in rule.source and rule.source.split(".")[0] for rule in CACHES)
    found = [
        cache_rule(frozenset({"ChatAnthropic"}), "", model)
        for model in ("claude-opus-5", "claude-opus-4-6", "claude-opus-4-7", "claude-sonnet-4-5")
    ]
    found += [cache_rule(frozenset(), "api.openai.com/v1", m) for m in ("gpt-5.6", "gpt-5.5")]
    assert [rule and rule.name for rule in found] == [rule.name for rule in CACHES]
