"""Input items out of messages, and what the events of a response mean."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage

from langchain_relay.delegates.continuation import Repeated
from langchain_relay.delegates.responses import ResponsesReader, input_items
from langchain_relay.engine.values import Delta, Usage
from langchain_relay.errors import DelegateError, DelegateTruncated

CALL = {"id": "call_1", "name": "lookup", "args": {"q": "sky"}}


def test_tool_calls_and_their_results_are_items_of_their_own():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}}
    messages = [
        SystemMessage("Be brief."),
        HumanMessage([{"type": "text", "text": "What is it?"}, image]),
        AIMessage("Wait.", tool_calls=[CALL]),
        ToolMessage([{"type": "text", "text": "blue"}], tool_call_id="call_1"),
        AIMessage("It is"),
    ]
    assert input_items(messages) == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "What is it?"},
                {
                    "type": "input_image",
                    "image_url": "data:image/png;base64,AA",
                    "detail": "low",
                },
            ],
        },
        {"role": "assistant", "content": "Wait."},
        {
            "type": "function_call",
            "call_id": "call_1",
            "name": "lookup",
            "arguments": '{"q": "sky"}',
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "blue"},
        {"role": "assistant", "content": "It is"},
    ]


def over(kind: str, **fields: Any) -> Any:
    response = {"status": kind, "incomplete_details": None, "usage": None, "model": "m", **fields}
    return SimpleNamespace(type=f"response.{kind}", response=SimpleNamespace(**response))


def because(reason: str) -> Any:
    return SimpleNamespace(reason=reason)


@pytest.mark.parametrize(
    ("event", "finish"),
    [
        (over("completed"), "stop"),
        (over("incomplete", incomplete_details=because("max_output_tokens")), "length"),
        (over("incomplete", incomplete_details=because("content_filter")), "content_filter"),
        (over("failed"), "failed"),
    ],
)
def test_how_a_response_ends(event: Any, finish: str):
    reader = ResponsesReader(Repeated(""))
    assert reader.read(event) == Delta(finish=finish, model="m")
    reader.end()


def test_a_refusal_is_a_finish_reason_of_its_own():
    reader = ResponsesReader(Repeated(""))
    said = SimpleNamespace(type="response.refusal.delta", delta="I can't.")
    assert reader.read(said) == Delta()
    assert reader.read(over("completed")).finish == "refusal"


def test_cached_and_reasoning_tokens_are_told():
    usage = SimpleNamespace(
        input_tokens=31,
        output_tokens=4,
        input_tokens_details=SimpleNamespace(cached_tokens=16),
        output_tokens_details=SimpleNamespace(reasoning_tokens=1),
    )
    delta = ResponsesReader(Repeated("")).read(over("completed", usage=usage))
    assert delta.usage == Usage(31, 4, cached_input_tokens=16, reasoning_tokens=1)


def test_an_error_event_may_be_tried_again_and_a_missing_end_is_a_cut():
    reader = ResponsesReader(Repeated(""))
    with pytest.raises(DelegateError, match="overloaded") as broke_off:
        reader.read(SimpleNamespace(type="error", message="overloaded"))
    assert (broke_off.value.retryable, broke_off.value.sent) == (True, True)
    with pytest.raises(DelegateTruncated):
        reader.end()
