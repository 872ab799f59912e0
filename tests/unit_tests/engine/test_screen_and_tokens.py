"""The screen's stop strings and the token tally, over every split."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from langchain_relay.engine.events import TextAdded
from langchain_relay.engine.screen import Screen
from langchain_relay.engine.tokens import TokenTally, fitting_chars, input_tokens_bound, safe_cut


def shown(pieces: list[str], stop: tuple[str, ...]) -> tuple[str, bool, int]:
    screen = Screen(stop)
    out = [part for piece in pieces for part in screen.push(TextAdded(piece, "local", 1))]
    out += screen.flush()
    return "".join(p.text for p in out), screen.hit, sum(p.tokens for p in out)


@given(
    st.lists(st.text("abE", max_size=4), max_size=10),
    st.lists(st.text("abE", min_size=1), max_size=3),
)
def test_what_is_shown_is_the_text_before_the_first_stop_string(
    pieces: list[str], stop: list[str]
) -> None:
    text = "".join(pieces)
    starts = [text.find(s) for s in stop if s in text]
    # Pieces are matched as they come: a stop string that is complete earlier wins.
    first = min((text.find(s) + len(s) for s in stop if s in text), default=None)
    got, hit, _ = shown(pieces, tuple(stop))
    assert hit == bool(starts)
    if first is None:
        assert got == text
    else:
        assert text.startswith(got)
        assert not any(s in got for s in stop)


def test_a_stop_string_is_found_across_pieces() -> None:
    assert shown(["one E", "N", "D two"], ("END",)) == ("one ", True, 1)


def test_a_beginning_of_a_stop_string_is_withheld_and_then_shown() -> None:
    screen = Screen(("END",))
    assert [p.text for p in screen.push(TextAdded("x E", "local", 1))] == ["x "]
    assert [p.text for p in screen.push(TextAdded("x", "local", 1))] == ["E", "x"]


@given(st.lists(st.text("ab ", max_size=5), max_size=12))
def test_every_token_is_counted_once(pieces: list[str]) -> None:
    assert shown(pieces, ("bba",))[2] <= len(pieces)
    if "bba" not in "".join(pieces):
        assert shown(pieces, ("bba",))[2] == len(pieces)


def words(text: str) -> int:
    return len(text.split())


@given(st.lists(st.text("ab .", max_size=6), max_size=12))
def test_a_tally_equals_the_count_of_the_whole(pieces: list[str]) -> None:
    tally = TokenTally(words)
    total = 0
    for piece in pieces:
        total = tally.add(piece)
    assert total == words("".join(pieces))


@given(st.text("ab 1.,", max_size=30))
def test_a_safe_cut_lies_between_a_word_and_a_blank_before_a_letter(text: str) -> None:
    cut = safe_cut(text)
    assert cut == 0 or (text[cut] == " " and text[cut - 1].isalnum() and text[cut + 1].isalpha())


def test_fitting_chars_is_the_longest_prefix_that_fits() -> None:
    assert fitting_chars("one two three", 2, words) == len("one two ")
    assert fitting_chars("one", 0, words) == 0


def test_the_input_bound_counts_bytes_and_frames() -> None:
    assert input_tokens_bound(["é", "ab"]) == 2 + 16 + 2 + 16
