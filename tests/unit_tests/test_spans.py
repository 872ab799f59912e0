"""Spans tile the text, whatever is written, cut, refused or lost, on every path."""

from __future__ import annotations

import asyncio
from functools import reduce
from operator import add
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from langchain_relay import Budget, RelayChatModel, relay_report
from langchain_relay.engine.policy import Policy
from langchain_relay.policies import CallTokens, SingleHandoff, SwitchCues
from langchain_relay.testing import FailingDelegate, ScriptedDelegate, ScriptedLocal

LOCAL = st.lists(
    st.sampled_from(
        [
            "a ",
            "b.",
            "<call>3</call>",
            " <call>",
            "9</call>",
            "<call>x</call>",
            "<",
            "",
            "日",
            "\n\n",
        ]
    ),
    max_size=10,
)
HOSTED = st.lists(
    st.sampled_from(["x", " y z", "<call>2</call>", "\n", " Thus we", ""]), max_size=4
)
POLICIES: list[Policy] = [CallTokens(), SingleHandoff(), SwitchCues(cues=("Thus",))]


@given(
    pieces=LOCAL,
    replies=st.lists(HOSTED.map("".join), min_size=1, max_size=3),
    stop=st.lists(st.sampled_from(["b", "y z", "x", "a b"]), max_size=2),
    policy=st.sampled_from(POLICIES),
    calls=st.sampled_from([0, 1, 9]),
    fails=st.booleans(),
    max_tokens=st.sampled_from([None, 1, 4]),
)
def test_spans_tile_the_text(
    pieces: list[str],
    replies: list[str],
    stop: list[str],
    policy: Policy,
    calls: int,
    fails: bool,
    max_tokens: int | None,
) -> None:
    def model() -> RelayChatModel:
        hosted: ScriptedDelegate = ScriptedDelegate(*replies, usage=(3, 2))
        if fails:
            hosted = FailingDelegate(ConnectionError("x"), times=99, after=replies[0])
        return RelayChatModel(
            model=ScriptedLocal(*pieces),
            delegate=hosted,
            policy=policy,
            stop=stop or None,
            budget=Budget(calls=calls),
            max_retries=0,
            max_tokens=max_tokens,
        )

    def streamed() -> Any:
        return reduce(add, list(model().stream("?")))

    async def astreamed() -> Any:
        chunks: Any = [chunk async for chunk in model().astream("?")]
        return reduce(add, chunks)

    answers = [
        model().invoke("?"),
        streamed(),
        asyncio.run(model().ainvoke("?")),
        asyncio.run(astreamed()),
    ]
    texts = [tiled(answer) for answer in answers]
    assert texts == [texts[0]] * 4
    assert not any(s in texts[0] for s in stop)


def tiled(message: AIMessage) -> str:
    """The text of an answer whose spans tile it."""
    end = 0
    for span in relay_report(message).spans:
        assert (span.start, span.end) == (end, end + len(span.text))
        assert span.text == message.text[span.start : span.end]
        assert span.text
        end = span.end
    assert end == len(message.text)
    return str(message.text)
