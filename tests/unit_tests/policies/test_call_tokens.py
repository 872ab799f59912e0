"""RelayLLM's policy: steps in, events out."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_relay.engine.errors import BudgetExceeded, DelegateError
from langchain_relay.engine.events import CallDenied, SpanOpened
from langchain_relay.policies import CallTokens
from tests.unit_tests.engine.rig import REFUSAL, play

# name: (local pieces, hosted spans, limits, log)
GOLDEN: dict[str, tuple[list[str], list[Any], dict[str, Any], list[str]]] = {
    "no call": (["Blue", "."], [], {}, ["local:Blue.", "finished stop"]),
    "one call in one token": (
        ["It is ", "<call>8</call>", "so."],
        [["blue ", "stop"]],
        {},
        ["local:It is ", "opened n=8 draft='It is '", "hidden@6:<call>8</call>", "delegate:blue ",
         "closed stop", "local:so.", "finished stop"],
    ),
    "a command over many tokens, with blanks, its start inside a token": (
        ["It is.", " <", "call", ">", " 1", "2 ", "</", "call", ">\n", "so."],
        [["blue", "stop"]],
        {},
        ["local:It is. ", "opened n=12 draft='It is. '", "hidden@7:<call> 12 </call>\n",
         "delegate:blue", "closed stop", "local:so.", "finished stop"],
    ),
    "a tag that is none": (
        ["a <", "b> and 1 <", " 2"], [], {}, ["local:a <b> and 1 < 2", "finished stop"],
    ),
    "a stray close tag is text": (["a</call>", "b"], [], {}, ["local:a</call>b", "finished stop"]),
    "no number": (
        ["a ", "<call>", "</call>", "b"], [], {},
        ["local:a ", "denied malformed", "local:b", "finished stop"],
    ),
    "not a number": (
        ["a ", "<call>x", "</call>", "b"], [], {},
        ["local:a ", "denied malformed", "local:b", "finished stop"],
    ),
    "zero is no call": (
        ["a ", "<call>0</call>", "b"], [], {},
        ["local:a ", "denied malformed", "local:b", "finished stop"],
    ),
    "broken off by a newline": (
        ["a ", "<call>7", "\nnext", "b"], [], {},
        ["local:a ", "denied malformed", "local:b", "finished stop"],
    ),
    "too long to be a command": (
        ["a ", "<call>", "1" * 30, "b"], [], {},
        ["local:a ", "denied malformed", "local:b", "finished stop"],
    ),
    "unclosed at the end": (
        ["a ", "<call>7"], [], {}, ["local:a ", "denied malformed", "finished stop"],
    ),
    "unclosed at max_tokens": (
        ["a ", "<call>", "7", "7", "7"], [], {"max_tokens": 3},
        ["local:a ", "denied malformed", "finished length"],
    ),
    "after a malformed command the tag is banned": (
        ["a ", "<call>x</call>", "b ", "<call>5</call>", "c"], [["no"]], {},
        ["local:a ", "denied malformed", "local:b c", "finished stop"],
    ),
    "n is clamped": (
        ["<call>900</call>", "."], [["x", "stop"]], {"max_span_tokens": 10},
        ["opened n=10 draft=''", "hidden@0:<call>900</call>", "delegate:x", "closed stop",
         "local:.", "finished stop"],
    ),
    "n is clamped by what is left of max_tokens": (
        ["a ", "<call>900</call>", "."], [["x y z", "length"]], {"max_tokens": 4},
        ["local:a ", "opened n=3 draft='a '", "hidden@2:<call>900</call>", "delegate:x y z",
         "closed length", "finished length"],
    ),
    "a span that ignores its limit is cut at max_tokens": (
        ["a ", "<call>2</call>", "."], [["w x y z", "stop"]], {"max_tokens": 3},
        ["local:a ", "opened n=2 draft='a '", "hidden@2:<call>2</call>", "delegate:w x ",
         "closed length", "finished length"],
    ),
    "refused: the command is dropped and the tag banned": (
        ["a ", "<call>8</call>", "b ", "<call>8</call>", "c"], ["refused"], {},
        ["local:a ", "denied budget", "local:b c", "finished stop"],
    ),
    "failed: the command stays hidden, the model may ask again": (
        ["a ", "<call>8</call>", "b ", "<call>8</call>", "c"], [["failed"], ["x ", "stop"]], {},
        ["local:a ", "opened n=8 draft='a '", "failed failed", "hidden@2:<call>8</call>",
         "local:b ", "opened n=8 draft='a b '", "hidden@4:<call>8</call>", "delegate:x ",
         "closed stop", "local:c", "finished stop"],
    ),
    "what a failed span gave is kept": (
        ["a ", "<call>8</call>", "b"], [["x ", "failed"]], {},
        ["local:a ", "opened n=8 draft='a '", "hidden@2:<call>8</call>", "delegate:x ",
         "failed failed", "local:b", "finished stop"],
    ),
    "declined": (
        ["a ", "<call>8</call>", "b"], [["stop"]], {},
        ["local:a ", "opened n=8 draft='a '", "closed stop declined", "hidden@2:<call>8</call>",
         "local:b", "finished stop"],
    ),
    "at max_calls the tag is banned without a word": (
        ["a ", "<call>8</call>", "b ", "<call>8</call>", "c"], [["x ", "stop"]], {"max_calls": 1},
        ["local:a ", "opened n=8 draft='a '", "hidden@2:<call>8</call>", "delegate:x ",
         "closed stop", "local:b c", "finished stop"],
    ),
    "max_calls=0 never calls": (
        ["a ", "<call>8</call>", "b"], [["x"]], {"max_calls": 0}, ["local:a b", "finished stop"],
    ),
    "a call tag in a span is text": (
        ["a ", "<call>8</call>", "b"], [["<call>9</call> ", "stop"]], {},
        ["local:a ", "opened n=8 draft='a '", "hidden@2:<call>8</call>",
         "delegate:<call>9</call> ", "closed stop", "local:b", "finished stop"],
    ),
    "a tag half in a span and half local is text": (
        ["a ", "<call>8</call>", "call>9</call>"], [["<", "stop"]], {},
        ["local:a ", "opened n=8 draft='a '", "hidden@2:<call>8</call>", "delegate:<",
         "closed stop", "local:call>9</call>", "finished stop"],
    ),
    "a stop string across the two writers": (
        ["a E", "<call>8</call>", "b"], [["N", "D x", "stop"]], {"stop": ("END",)},
        ["local:a ", "opened n=8 draft='a E'", "hidden@3:<call>8</call>", "closed cut",
         "finished stop"],
    ),
    "max_tokens counts what is seen, not the commands": (
        ["a ", "<call>8</call>", "b ", "c ", "d"], [["x ", "stop"]], {"max_tokens": 3},
        ["local:a ", "opened n=2 draft='a '", "hidden@2:<call>8</call>", "delegate:x ",
         "closed stop", "local:b ", "finished length"],
    ),
    "the context is a bound too": (
        ["a ", "b ", "c "], [], {"context_left": 2}, ["local:a b ", "finished length"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GOLDEN)
def test_golden(case: str) -> None:
    pieces, spans, limits, log = GOLDEN[case]
    played = play(CallTokens(), pieces, spans, **limits)
    assert played.log == log
    assert played.source.closed == 1
    assert played.local.open_sessions == 0


def test_the_local_context_keeps_the_command_and_the_span() -> None:
    played = play(CallTokens(), ["It is.", " <", "call>8</", "call>", "so."], [["blue ", "stop"]])
    assert played.text == "It is. blue so."
    assert played.context == "It is. <call>8</call>blue so."


def test_a_dropped_command_leaves_the_context_too() -> None:
    played = play(CallTokens(), ["It is.", " <", "call>8</", "call>", "so."], ["refused"])
    assert played.text == "It is. so."
    assert played.context == "It is. so."


def test_the_delegate_never_sees_a_command() -> None:
    pieces = ["a ", "<call>3</call>", "b ", "<call>x</call>", "c"]
    played = play(CallTokens(), pieces, [["x ", "stop"]])
    assert [request.draft for request in played.source.requests] == ["a "]
    assert "call" not in played.text


def test_a_refusal_carries_its_numbers() -> None:
    played = play(CallTokens(), ["<call>8</call>", "b"], ["refused"])
    denied = next(e for e in played.events if isinstance(e, CallDenied))
    assert denied.error is REFUSAL
    assert (denied.n, denied.requested_n) == (8, 8)


def test_a_refusal_can_be_raised() -> None:
    with pytest.raises(BudgetExceeded):
        play(CallTokens(), ["<call>8</call>", "b"], ["refused"], on_refusal="raise")


def test_a_refusal_can_end_the_answer() -> None:
    played = play(CallTokens(), ["a ", "<call>8</call>", "b"], ["refused"], on_refusal="stop")
    assert played.log == ["local:a ", "denied budget", "finished budget"]


def test_a_refusal_after_an_attempt_is_a_failure_and_the_policy_of_refusals_applies() -> None:
    played = play(CallTokens(), ["a ", "<call>8</call>", "b"], [["x ", "refused"]])
    assert played.log[-4:] == ["delegate:x ", "failed refused", "local:b", "finished stop"]
    with pytest.raises(BudgetExceeded):
        play(CallTokens(), ["<call>8</call>"], [["x ", "refused"]], on_refusal="raise")


def test_a_failure_can_be_raised() -> None:
    with pytest.raises(DelegateError):
        play(CallTokens(), ["<call>8</call>", "b"], [["failed"]], on_failure="raise")


def test_a_hosted_stop_may_end_the_answer() -> None:
    pieces, spans = ["a ", "<call>8</call>", "b"], [["x", "stop"]]
    assert play(CallTokens(), pieces, spans).text == "a xb"
    assert play(CallTokens(), pieces, spans, end_on_delegate_stop=True).text == "a x"


def test_call_ids_are_distinct() -> None:
    pieces = ["<call>1</call>", "b", "<call>2</call>", "c"]
    played = play(CallTokens(), pieces, [["x", "stop"]])
    ids = [e.request.call_id for e in played.events if isinstance(e, SpanOpened)]
    assert len(set(ids)) == len(ids) == 2
