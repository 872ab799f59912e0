"""The requests of one answer begin alike, so that providers find them in their caches."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import openai
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from langchain_relay.delegates import ChatModelDelegate, OpenAIDelegate
from langchain_relay.delegates.continuation import continue_messages
from langchain_relay.engine.values import Attempt, Mode

CONVERSATIONS: list[tuple[BaseMessage, ...]] = [
    (HumanMessage("Why is the sky blue?"),),
    (SystemMessage("Be brief."), HumanMessage("Hi"), AIMessage("Hello"), HumanMessage("Why?")),
    (HumanMessage([{"type": "text", "text": "Why?"}, {"type": "text", "text": "And how?"}]),),
    (SystemMessage("Long. " * 1_000), HumanMessage("Why? " * 1_000)),
    (HumanMessage("Hi"), AIMessage("Hello")),
]
CHAT_MODES: list[Mode] = ["prefill", "flag", "instruct", "handoff"]

texts = st.text(st.sampled_from("ab .\n<>/draft\u3042\U0001f600"), min_size=1, max_size=40)
BEGIN = "\u2603"
growing = st.lists(st.tuples(texts, st.integers(1, 40)), min_size=2, max_size=6)


def drafts(parts: list[tuple[str, int]]) -> list[str]:
    """Each is the one before and more; they begin with a word that no prompt has."""
    out = [BEGIN]
    for part, times in parts:
        out.append(out[-1] + part * times)
    return out[1:]


def said(messages: list[Any]) -> str:
    """The prompt as a provider reads it: who speaks, and all text; how it is cut is nothing."""
    parts = []
    for message in messages:
        content = message["content"]
        blocks = [content] if isinstance(content, str) else content
        text = "".join(b if isinstance(b, str) else b.get("text", "") for b in blocks)
        parts.append(f"\0{message['role']}\0{text}")
    return "".join(parts)


def assert_begin_alike(prompts: list[str], written: list[str]) -> None:
    for (one, other), draft in zip(pairwise(prompts), written[:-1], strict=True):
        shown = draft.rstrip()
        end = one.index(BEGIN) + len(shown)
        assert one[:end].endswith(shown)
        assert other[:end] == one[:end]


def attempts(asked: tuple[BaseMessage, ...], written: list[str]) -> list[Attempt]:
    """What changes from call to call changes."""
    return [
        Attempt(asked, draft, max_tokens=n, timeout_s=n, stop=(str(n),))
        for n, draft in enumerate(written, start=7)
    ]


def unclosed(written: list[str]) -> bool:
    """No draft has its own marker in it: then it gets another one, once."""
    return all("draft" not in draft for draft in written)


CHAT_MODELS: dict[str, Any] = {
    "openai": lambda: ChatOpenAI(model="gpt-5-mini", api_key="x"),
    "openai, marked": lambda: ChatOpenAI(model="gpt-5.6", api_key="x"),
    "anthropic": lambda: ChatAnthropic(model="claude-sonnet-4-5", api_key="x"),
}


@pytest.mark.parametrize(
    ("name", "mode"),
    [(n, m) for n in CHAT_MODELS for m in CHAT_MODES if (n, m) != ("anthropic", "flag")],
)
@settings(max_examples=20)
@given(parts=growing, asked=st.sampled_from(CONVERSATIONS))
def test_a_chat_models_requests_share_all_up_to_the_end_of_the_shorter_draft(
    name: str, mode: Mode, parts: list[tuple[str, int]], asked: tuple[BaseMessage, ...]
):
    written = drafts(parts)
    assume(unclosed(written))
    delegate: Any = _delegate(name, mode)
    payloads = []
    for attempt in attempts(asked, written):
        chat, kwargs = delegate._request(delegate._chat, attempt)
        payloads.append(chat._get_request_payload(delegate._messages(attempt), **kwargs))
    assert_begin_alike([said(payload["messages"]) for payload in payloads], written)
    _assert_same_but_for_the_limit(payloads)


_made: dict[tuple[str, Mode], ChatModelDelegate] = {}


def _delegate(name: str, mode: Mode) -> ChatModelDelegate:
    key = (name, mode)
    if key not in _made:
        _made[key] = ChatModelDelegate(CHAT_MODELS[name](), mode=mode)
    return _made[key]


def _assert_same_but_for_the_limit(payloads: list[dict[str, Any]]) -> None:
    """System prompt, tools and settings are byte for byte the same."""
    changing = {"messages", "max_tokens", "max_completion_tokens", "timeout"}
    settings = [
        json.dumps({k: v for k, v in payload.items() if k not in changing}, default=str)
        for payload in payloads
    ]
    assert len(set(settings)) == 1


@pytest.mark.parametrize("mode", [*CHAT_MODES, "completion"])
@pytest.mark.parametrize("model", ["gpt-5-mini", "gpt-5.6"])
@settings(max_examples=20)
@given(parts=growing, asked=st.sampled_from(CONVERSATIONS))
def test_so_do_those_of_an_openai_client(
    model: str, mode: Mode, parts: list[tuple[str, int]], asked: tuple[BaseMessage, ...]
):
    written = drafts(parts)
    assume(unclosed(written))
    api: Any = "completions" if mode == "completion" else "chat"
    delegate = OpenAIDelegate(CLIENT, model=model, mode=mode, api=api)
    requests = [delegate._request(attempt) for attempt in attempts(asked, written)]
    prompts = [one.get("prompt") or said(one["messages"]) for one in requests]
    assert_begin_alike(prompts, written)


CLIENT = openai.OpenAI(api_key="x")


@pytest.mark.parametrize("mode", ["instruct", "handoff"])
def test_a_draft_that_comes_to_contain_its_marker_begins_anew_once(mode: Mode):
    asked = CONVERSATIONS[0]
    one, two, three = (
        str(continue_messages(asked, draft, mode)[-1].content)
        for draft in ("A", "A <draft> B", "A <draft> B and C")
    )
    assert not two.startswith(one[: one.index("A") + 1])
    assert three.startswith(two[: two.index("B") + 1])


def test_a_request_without_a_draft_is_the_beginning_of_those_with_one():
    for asked in CONVERSATIONS:
        first, later = (continue_messages(asked, draft, "instruct") for draft in ("", "The sky"))
        assert later[: len(first) - 1] == first[:-1]
        if len(later) == len(first):
            assert later[-1].text.startswith(first[-1].text)
        else:
            assert later[: len(first)] == first
