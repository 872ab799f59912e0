"""The call parser, over every split of a stream."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_relay.engine.calls import (
    MAX_COMMAND_CHARS,
    CallFound,
    MalformedCall,
    MaybeCall,
    NoCall,
    scan,
)
from langchain_relay.engine.events import CallDenied, CommandHidden, SpanOpened
from langchain_relay.policies import CallTokens
from tests.unit_tests.engine.rig import Played, play


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", NoCall()),
        ("plain", NoCall()),
        ("a </call> b", NoCall()),
        ("a <b", NoCall()),
        ("a <", MaybeCall(2)),
        ("a <cal", MaybeCall(2)),
        ("a <call>", MaybeCall(2)),
        ("a <call> 1", MaybeCall(2)),
        ("a <call>12</call", MaybeCall(2)),
        ("a <call>12</call>", CallFound(2, 17, 12)),
        ("a <call>  12\t</call> b", CallFound(2, 20, 12)),
        ("<call>7</call><call>8</call>", CallFound(0, 14, 7)),
        ("a <call></call>", MalformedCall(2, 15)),
        ("a <call>0</call>", MalformedCall(2, 16)),
        ("a <call>x</call> b", MalformedCall(2, 16)),
        ("a <call>-3</call>", MalformedCall(2, 17)),
        ("a <call>3.5</call>", MalformedCall(2, 18)),
        ("a <call>٣</call>", MalformedCall(2, 16)),
        ("a <call>3\n</call>", MalformedCall(2, 9)),
        ("a <call>" + "1" * 40, MalformedCall(2, 2 + MAX_COMMAND_CHARS)),
        ("a <call><call>3</call>", MalformedCall(2, 22)),
    ],
)
def test_scan(text: str, found: object) -> None:
    assert scan(text) == found


TEXT = st.text(st.sampled_from("ab <>/cal\n9é日😀"), max_size=12)
COMMAND = st.builds(
    lambda n, left, right: f"<call>{left}{n}{right}</call>",
    st.integers(1, 9999),
    st.sampled_from(["", " ", "  "]),
    st.sampled_from(["", " "]),
)
MALFORMED = st.sampled_from(
    ["<call></call>", "<call>x</call>", "<call>0</call>", "<call>9 9</call>"]
)


def split(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges) if a < b]


def outline(played: Played) -> list[object]:
    """What happened, whatever the pieces were."""
    return [
        (type(e).__name__, getattr(e, "text", None) or getattr(e, "reason", None))
        for e in played.events
        if isinstance(e, SpanOpened | CommandHidden | CallDenied)
    ]


@given(
    before=TEXT,
    command=COMMAND,
    cuts=st.lists(st.integers(0, 60), max_size=12),
)
def test_a_command_is_found_in_any_split_and_nobody_else_sees_it(
    before: str, command: str, cuts: list[int]
) -> None:
    """What stands before it must not itself begin a tag, else the two make a malformed one."""
    whole = scan(before + command)
    if not isinstance(whole, CallFound):
        return
    # One piece ends exactly with the command: what follows it inside its token is discarded.
    pieces = [*split(before + command, cuts), "end"]
    played = play(CallTokens(), pieces, [["SPAN", "stop"]])
    assert played.text == before + "SPANend"
    assert played.source.requests[0].draft == before
    assert played.context == before + command + "SPANend"


@given(before=TEXT, command=MALFORMED, cuts=st.lists(st.integers(0, 60), max_size=12))
def test_a_malformed_command_leaves_no_trace_in_any_split(
    before: str, command: str, cuts: list[int]
) -> None:
    whole = scan(before + command)
    if not isinstance(whole, MalformedCall) or whole.end != len(before + command):
        return
    pieces = [*split(before + command, cuts), "end"]
    played = play(CallTokens(), pieces, [["never"]])
    assert played.text == before[: whole.start] + "end"
    assert played.source.requests == []
    assert [e.reason for e in played.events if isinstance(e, CallDenied)] == ["malformed"]


@given(text=TEXT, cuts=st.lists(st.integers(0, 40), max_size=12))
def test_text_without_a_command_passes_unchanged_in_any_split(text: str, cuts: list[int]) -> None:
    played = play(CallTokens(), [*split(text, cuts), " end"])
    if not isinstance(scan(text + " end"), NoCall):
        return
    assert played.text == text + " end"
    assert played.context == text + " end"


@given(
    spans=st.lists(
        st.lists(st.one_of(TEXT.filter(bool), COMMAND, MALFORMED), min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    )
)
def test_a_tag_in_a_span_never_triggers_a_call(spans: list[list[str]]) -> None:
    pieces = [piece for _ in spans for piece in ("<call>500</call>", "local")]
    played = play(CallTokens(), pieces, [[*span, "stop"] for span in spans])
    assert played.text == "".join("".join(span) + "local" for span in spans)
    assert len(played.source.requests) == len(spans)
