"""What goes through the `redact` hook, what does not, and how often."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_relay.delegates.redaction import Redaction
from langchain_relay.errors import RedactionFailed

SECRET = "Ann Lee"


def hide(text: str) -> str:
    return text.replace(SECRET, "[NAME]")


CALL = {
    "name": "lookup",
    "args": {"name": SECRET, "type": [f"by {SECRET}"], "n": 3, "data": SECRET, "id": SECRET},
    "id": "call_1",
    "type": "tool_call",
}
RAW_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "lookup", "arguments": '{"name": "Ann Lee"}'},
}
BLOCKS: list[str | dict[Any, Any]] = [
    f"of {SECRET}",
    {"type": "text", "text": f"I am {SECRET}", "cache_control": {"type": "ephemeral"}},
    {"type": "thinking", "thinking": f"{SECRET}?", "signature": f"sig {SECRET}"},
    {"type": "redacted_thinking", "data": f"sealed {SECRET}"},
    {"type": "tool_use", "id": "call_1", "name": "lookup", "input": {"name": SECRET}},
    {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": SECRET}]},
    {"type": "other", "made_up": {"name": SECRET, "data": SECRET}},
]

MESSAGES: list[BaseMessage] = [
    SystemMessage(f"You help {SECRET}."),
    HumanMessage(f"I am {SECRET}", name="Ann"),
    HumanMessage("hi", name=SECRET),
    ChatMessage(content=f"I am {SECRET}", role="user"),
    HumanMessage(BLOCKS),
    AIMessage(
        f"Hello {SECRET}",
        tool_calls=[CALL],
        additional_kwargs={"tool_calls": [RAW_CALL], "note": SECRET},
        response_metadata={"relay": {"spans": [{"text": SECRET}]}, "model_provider": "openai"},
    ),
    ToolMessage(f"{SECRET}, 3", tool_call_id="call_1", name="lookup", artifact={"x": SECRET}),
]


def redacted(message: BaseMessage) -> BaseMessage:
    (out,) = Redaction(hide).messages((message,))
    return out


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_nothing_of_a_message_keeps_the_secret(message: BaseMessage) -> None:
    before = message.model_dump_json()
    left = redacted(message).model_dump_json()
    assert SECRET in before
    kept = left.count(SECRET)
    sealed = left.count(f"sig {SECRET}") + left.count(f"sealed {SECRET}")
    assert kept == sealed, left
    assert message.model_dump_json() == before, "the user's own message is not touched"


def test_structure_stays() -> None:
    out = redacted(MESSAGES[5])
    assert isinstance(out, AIMessage)
    (call,) = out.tool_calls
    assert (call["name"], call["id"]) == ("lookup", "call_1")
    assert call["args"] == {
        "name": "[NAME]",
        "type": ["by [NAME]"],
        "n": 3,
        "data": "[NAME]",
        "id": "[NAME]",
    }
    raw = out.additional_kwargs["tool_calls"][0]
    assert raw["function"] == {"name": "lookup", "arguments": '{"name": "[NAME]"}'}
    assert out.response_metadata == {"model_provider": "openai"}
    blocks = redacted(MESSAGES[4]).content
    assert isinstance(blocks[1], dict)
    assert blocks[1] == {
        "type": "text",
        "text": "I am [NAME]",
        "cache_control": {"type": "ephemeral"},
    }


def test_keys_of_a_tools_arguments_are_text_too() -> None:
    arguments = {"ages": {SECRET: 41}, "all": [{SECRET: 1}]}
    call = {"name": "keep", "args": arguments, "id": "call_1"}
    block = {"type": "tool_use", "name": "keep", "input": arguments, "id": "call_1"}
    out = redacted(AIMessage([block], tool_calls=[call]))
    assert SECRET not in out.model_dump_json()
    assert isinstance(out, AIMessage)
    assert out.tool_calls[0]["args"] == {"ages": {"[NAME]": 41}, "all": [{"[NAME]": 1}]}


def test_a_name_that_would_change_is_left_out() -> None:
    assert redacted(MESSAGES[1]).name == "Ann"
    assert redacted(MESSAGES[2]).name is None
    assert redacted(MESSAGES[6]).name == "lookup"


def test_a_hook_that_shouts_leaves_types_and_ids_alone() -> None:
    (out,) = Redaction(str.upper).messages((MESSAGES[5],))
    assert isinstance(out, AIMessage)
    assert out.tool_calls[0]["name"] == "lookup"
    assert out.content == "HELLO ANN LEE"


def test_each_message_and_each_draft_goes_through_once() -> None:
    seen: list[str] = []

    def note(text: str) -> str:
        seen.append(text)
        return hide(text)

    redaction = Redaction(note)
    messages = (SystemMessage("a"), HumanMessage(SECRET))
    first = redaction.messages(messages)
    assert redaction.messages(messages) == first
    assert redaction.messages(messages)[1] is first[1]
    assert redaction.draft(f"for {SECRET} ") == redaction.draft(f"for {SECRET} ") == "for [NAME] "
    assert seen == ["a", SECRET, f"for {SECRET} "]


@given(st.text("ab \n", max_size=12))
def test_a_drafts_trailing_blanks_are_those_that_are_shown(draft: str) -> None:
    out = Redaction(lambda text: text.strip() + "  ").draft(draft)
    assert out[len(out.rstrip()) :] == draft[len(draft.rstrip()) :]


def test_an_empty_text_is_not_worth_asking() -> None:
    redaction = Redaction(lambda text: "never")
    assert redaction.draft("") == ""
    assert redaction.messages((AIMessage(""),))[0].content == ""


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        (lambda text: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda text: None, "returned NoneType instead of a string"),
        (lambda text: text.encode(), "returned bytes"),
    ],
)
def test_a_hook_that_fails_says_how(hook: Any, says: str) -> None:
    with pytest.raises(RedactionFailed, match=says):
        Redaction(hook).messages((HumanMessage("x"),))
    with pytest.raises(RedactionFailed, match=says):
        Redaction(hook).draft("x")
