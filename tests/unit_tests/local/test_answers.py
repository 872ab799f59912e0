"""The ids of finished answers."""

from __future__ import annotations

from langchain_relay.engine.values import Turn
from langchain_relay.local.answers import FinishedAnswers

QUESTION = [Turn("system", "Be brief."), Turn("user", "Hi")]
NEXT = [*QUESTION, Turn("assistant", "Hello!"), Turn("user", "Go on")]


def test_an_answer_is_found_in_the_conversation_that_goes_on():
    answers = FinishedAnswers()
    answers.remember(QUESTION, "Hello!", [1, 2])
    answers.remember(NEXT, "Well.", [3])
    assert answers.find(QUESTION) == {}
    assert answers.find(NEXT) == {2: (1, 2)}
    assert answers.find([*NEXT, Turn("assistant", "Well.")]) == {2: (1, 2), 4: (3,)}


def test_the_same_words_elsewhere_are_another_answer():
    answers = FinishedAnswers()
    answers.remember(QUESTION, "Hello!", [1, 2])
    for other in (
        [Turn("user", "Hi"), Turn("assistant", "Hello!")],
        [*QUESTION, Turn("user", "Hello!")],
        [*QUESTION, Turn("assistant", "Hello! ")],
        [Turn("system", "Be brief.user"), Turn("Hi", ""), Turn("assistant", "Hello!")],
    ):
        assert answers.find(other) == {}


def test_the_oldest_is_forgotten_first_and_what_was_found_is_young():
    answers = FinishedAnswers(max_tokens=36)
    first, second, third = ([Turn("user", name)] for name in "abc")
    answers.remember(first, "x", [1, 1])
    answers.remember(second, "x", [2, 2])
    said = Turn("assistant", "x")
    assert answers.find([*first, said])
    answers.remember(third, "x", [3, 3])
    assert answers.find([*first, said]) == {1: (1, 1)}
    assert answers.find([*second, said]) == {}


def test_an_answer_told_again_counts_once():
    answers = FinishedAnswers(max_tokens=36)
    for _ in range(5):
        answers.remember(QUESTION, "Hello!", [1, 2])
    answers.remember(NEXT, "x", [3, 4])
    assert answers.find([*QUESTION, Turn("assistant", "Hello!")]) == {2: (1, 2)}


def test_neither_nothing_nor_too_much_is_kept():
    answers = FinishedAnswers(max_tokens=18)
    answers.remember(QUESTION, "", [])
    answers.remember(QUESTION, "Hello!", [1, 2, 3])
    assert answers.find([*QUESTION, Turn("assistant", "")]) == {}
    assert answers.find([*QUESTION, Turn("assistant", "Hello!")]) == {}
