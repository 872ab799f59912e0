"""The ids of one answer: appended, taken back, and the same however text arrives."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_relay.engine.errors import UsageMistake
from langchain_relay.engine.tokens import safe_cut
from langchain_relay.local.sequence import TAIL_CHARS, Sequence

WORDS = re.compile(r" ?[^\W\d_]+| ?\d| ?[^\w\s]+|\s+(?!\S)|\s+|_")


class Words:
    """A word-splitting vocabulary that grows as it meets new words, as GPT-2's splits text."""

    def __init__(self):
        self.known: dict[str, int] = {}
        self.asked: Counter[str] = Counter()

    def tokenize(self, text, *, special=False, first=False):
        self.asked[text] += 1
        return [self.known.setdefault(w, len(self.known)) for w in WORDS.findall(text)]

    def piece(self, token):
        return list(self.known)[token].encode()


class Bytes:
    """One token per byte."""

    def tokenize(self, text, *, special=False, first=False):
        return list(text.encode())

    def piece(self, token):
        return bytes([token])


def written(vocab, *changes):
    sequence = Sequence(0, [0], vocab)
    for append in changes:
        sequence.change(append, 0, more_text=True)
    sequence.change((), 0, more_text=False)
    return sequence.tokens[1:]


TEXT = st.text(alphabet="ab é1 2.,'\n", max_size=30)


@given(TEXT)
def test_a_safe_cut_lies_between_a_word_and_a_blank_with_its_word(text):
    cut = safe_cut(text)
    assert 0 <= cut < max(1, len(text))
    if cut:
        left, right = text[:cut], text[cut:]
        assert left[-1].isalnum()
        assert right[0] == " "
        assert right[1].isalpha()
        vocab = Words()
        assert vocab.tokenize(text) == vocab.tokenize(left) + vocab.tokenize(right)


@given(TEXT, st.data())
def test_fed_text_gives_the_same_ids_in_any_pieces(text, data):
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    edges = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    vocab = Words()
    assert written(vocab, *((piece,) for piece in pieces)) == vocab.tokenize(text)


def test_whole_words_of_a_span_are_tokenized_while_it_arrives():
    vocab = Words()
    sequence = Sequence(0, [0], vocab)
    for piece in ("one two", " three", " four"):
        sequence.change((piece,), 0, more_text=True)
    assert len(sequence.tokens) == 1 + 4
    # `four` may still grow: evaluated before anybody asks only if that can be taken back.
    assert sequence.feedable(rewinds=True) == 5
    assert sequence.feedable(rewinds=False) == 4
    sequence.note_evaluated(5)
    assert sequence.feedable(rewinds=True) == 0
    sequence.change(("teen",), 0, more_text=True)
    assert sequence.tokens[-1] == vocab.tokenize(" fourteen")[0]
    assert (len(sequence.tokens), sequence.evaluated, sequence.pending) == (5, 4, 1)


def test_tokens_of_a_tail_that_stay_the_same_stay_evaluated():
    sequence = Sequence(0, [0], Bytes())
    sequence.change(("cat",), 0, more_text=True)
    sequence.note_evaluated(4)
    sequence.change(("s",), 0, more_text=True)
    assert (sequence.evaluated, sequence.pending) == (4, 1)


def test_a_long_text_without_blanks_is_not_tokenized_with_every_piece():
    vocab = Words()
    written(vocab, *[("字",)] * 1000)
    assert len(vocab.asked) <= TAIL_CHARS + 1
    assert vocab.asked["字" * 1000] == 1


def test_guesses_that_are_dropped_leave_nothing_behind():
    sequence = Sequence(0, [65], Bytes())
    sequence.change((66,), 0, more_text=False)
    sequence.note_evaluated(2)
    for guess in b"CD":
        sequence.change((guess,), 0, more_text=False)
    sequence.note_evaluated(1)
    sequence.drop_guesses(2)
    assert (sequence.tokens, sequence.evaluated, sequence.wasted_tokens) == ([65, 66], 2, 1)
    assert sequence.text_of(67) == "C"


def test_text_behind_an_id_does_not_merge_with_the_text_before_it():
    vocab = Words()
    dot = vocab.tokenize(".")[0]
    ids = written(vocab, ("ab",), (dot, "cd"))
    assert ids == [*vocab.tokenize("ab"), dot, *vocab.tokenize("cd")]


def test_taking_back_restores_ids_and_characters():
    sequence = Sequence(0, [65], Bytes())
    first, second, *rest = "🙂".encode()
    sequence.change((ord("a"), first, second), 0, more_text=False)
    before = list(sequence.tokens)
    assert sequence.text_of(rest[0]) == ""
    sequence.change((rest[0], rest[1], ord("!")), 0, more_text=False)
    sequence.change((), 3, more_text=False)
    assert sequence.tokens == before
    sequence.change((rest[0],), 0, more_text=False)
    assert sequence.text_of(rest[1]) == "🙂"


def test_taking_back_forgets_what_was_evaluated():
    sequence = Sequence(0, [65, 66], Bytes())
    sequence.change((67, 68, 69), 0, more_text=False)
    sequence.note_evaluated(5)
    sequence.change((70, 71, 72), 2, more_text=False)
    assert (sequence.evaluated, sequence.cached, sequence.pending) == (3, 5, 3)


def test_the_prompt_is_never_taken_back():
    sequence = Sequence(0, [65, 66], Bytes())
    sequence.change((67,), 0, more_text=False)
    with pytest.raises(UsageMistake, match="2 tokens: 1 "):
        sequence.change((68,), 2, more_text=False)
    assert sequence.tokens == [65, 66, 67]


@pytest.mark.parametrize("wrong", [None, 1.5, b"x", 999])
def test_what_is_no_token_is_refused_and_changes_nothing(wrong):
    class Small(Bytes):
        def piece(self, token):
            if token > 255:
                raise UsageMistake("token 999 is not in this vocabulary")
            return super().piece(token)

    sequence = Sequence(0, [65, 66], Small())
    sequence.change((67,), 0, more_text=False)
    with pytest.raises(UsageMistake, match="token"):
        sequence.change((68, wrong), 1, more_text=False)
    assert sequence.tokens == [65, 66, 67]
    assert sequence.position == 1


def test_the_local_tail_ends_at_foreign_text():
    sequence = Sequence(0, [65], Bytes())
    sequence.change((*b"ab", "foreign", *b"cd"), 0, more_text=False)
    assert sequence.local_tail(10) == "cd"
    sequence.change((), 2, more_text=False)
    assert sequence.local_tail(10) == ""


def test_penalties_see_the_answer_and_not_the_prompt():
    sequence = Sequence(0, [65, 66], Bytes())
    sequence.change((67, "é"), 0, more_text=False)
    assert sequence.last_written(64) == [67, 0xC3, 0xA9]
    assert sequence.last_written(2) == [0xC3, 0xA9]
