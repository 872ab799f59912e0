"""How much of a draft is sent, and how seldom that moves."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_relay.delegates.continuation import CLIPPED, Seam, continue_messages
from langchain_relay.delegates.window import DraftWindow

SENTENCE = "Short waves are scattered far more than long ones by the air. "


def words(text: str) -> int:
    return len(text.split())


def starts(drafts: list[str], tokens: int | None) -> list[int]:
    window = DraftWindow(tokens, words)
    return [window.start(draft) for draft in drafts]


def test_without_a_window_everything_is_sent():
    assert starts([SENTENCE * n for n in range(50)], None) == [0] * 50


def test_a_draft_that_fits_is_sent_whole():
    assert starts([SENTENCE * 8], 96) == [0]  # 12 words each


def test_blanks_at_the_end_push_no_words_out():
    draft = SENTENCE * 8 + "\n" * 400
    window = DraftWindow(96, len)
    assert draft[window.start(draft) :].strip() == SENTENCE.strip()[-48:].partition(" ")[2]


def test_the_window_stands_still_and_then_moves_by_half():
    drafts = [" ".join(["word"] * n) for n in range(1, 1_001)]
    moved = [b for a, b in pairwise(starts(drafts, 100)) if a != b]
    assert 15 <= len(moved) <= 20  # not 900
    assert {b - a for a, b in pairwise(moved)} <= {n * len("word ") for n in range(50, 53)}


@given(st.lists(st.text(st.sampled_from("ab .\n"), max_size=60), max_size=40))
def test_what_is_sent_is_never_above_the_window_and_never_goes_back(parts: list[str]):
    drafts = ["".join(parts[:n]) for n in range(1, len(parts) + 1)]
    found = starts(drafts, 16)
    assert all(words(draft[start:]) <= 16 for draft, start in zip(drafts, found, strict=True))
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("border", "text"),
    [
        ("line", "one two\nthree four. five six seven eight\nnine ten eleven twelve. thirteen "),
        ("sentence", "one two. three four. five six seven eight. nine ten eleven twelve thirteen "),
        ("word", "one two three four five six seven eight nine ten eleven twelve thirteen "),
    ],
)
def test_it_is_cut_at_a_line_else_a_sentence_else_a_word(border: str, text: str):
    draft = text * 4
    (start,) = starts([draft], 24)
    before, after = draft[:start], draft[start:]
    ends = {"line": "\n", "sentence": ". ", "word": " "}
    assert before.endswith(ends[border])
    assert after[0].isalpha()
    assert 0 < words(after) <= 12


def test_who_is_asked_in_words_is_told_that_the_beginning_is_left_out():
    whole, clipped = (
        continue_messages([], "the end", "instruct", clipped=clipped)[-1].text
        for clipped in (False, True)
    )
    assert f"{CLIPPED}the end" in clipped
    assert CLIPPED not in whole
    assert continue_messages([], "the end", "prefill", clipped=True)[-1].text == "the end"


def _sent_from(draft: str) -> int:
    return draft.index("The window")


LONG = (
    "It begins with words of its own. "
    + SENTENCE * 60
    + "The window begins right here. "
    + "Light of any colour is bent a little. " * 60
    + "So it"
)


@pytest.mark.parametrize(
    "again", ["It begins with words of its own.", "The window begins right here. Light of any"]
)
def test_a_restart_of_the_draft_and_one_of_the_window_are_recognised(again: str):
    seam = Seam(LONG, "instruct", _sent_from(LONG))
    assert seam.push(f"{again} Then something else.") + seam.flush() == ""
    assert seam.restart


def test_a_window_repeated_to_its_end_is_trimmed():
    start = _sent_from(LONG)
    seam = Seam(LONG, "instruct", start)
    assert seam.push(LONG[start:] + " is blue.") + seam.flush() == " is blue."
    assert not seam.restart
