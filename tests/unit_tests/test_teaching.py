"""The lesson: what it teaches is what the parser accepts, and nobody else's prompt is touched."""

from __future__ import annotations

import pytest

from langchain_relay.engine.calls import CallFound, NoCall, scan
from langchain_relay.engine.values import Turn
from langchain_relay.teaching import FEW_SHOT


def test_the_users_system_prompt_stays_first_and_the_conversation_last() -> None:
    turns = [Turn("system", "Be kind."), Turn("user", "Hi."), Turn("assistant", "Hello.")]
    taught = FEW_SHOT.teach(turns)
    assert taught[0] == Turn("system", f"Be kind.\n\n{FEW_SHOT.instruction}")
    assert taught[-2:] == turns[1:]
    assert [turn.role for turn in taught].count("system") == 1


def test_without_a_system_prompt_the_lesson_is_it() -> None:
    assert FEW_SHOT.teach([Turn("user", "Hi.")])[0] == Turn("system", FEW_SHOT.instruction)


def test_the_examples_show_well_formed_calls_and_a_question_that_needs_none() -> None:
    found = [scan(answer) for _, answer in FEW_SHOT.examples]
    assert sum(isinstance(scan_, CallFound) for scan_ in found) >= 3
    assert sum(isinstance(scan_, NoCall) for scan_ in found) >= 1
    assert len(found) == sum(isinstance(scan_, CallFound | NoCall) for scan_ in found)


@pytest.mark.parametrize("example", [e for e in FEW_SHOT.examples if "<call>" in e[1]])
def test_the_n_of_an_example_is_about_the_length_of_what_follows(example: tuple[str, str]) -> None:
    """At most one token per character, at least one per word."""
    found = scan(example[1])
    assert isinstance(found, CallFound)
    rest = example[1][found.end :].rstrip(".")
    assert len(rest.split()) <= found.n <= len(rest)
