"""What counts as a doubled, glued or split word at a seam."""

from __future__ import annotations

import pytest

from benchmarks.cuts import KINDS, Cut, Passage, defect, drawn, interval, passages


def cut(draft: str, rest: str = " sea.") -> Cut:
    return Cut(Passage("english", "?", draft + rest), len(draft))


@pytest.mark.parametrize(
    ("draft", "rest", "shown", "verdict"),
    [
        ("the transform", " of it", " of real input", None),
        ("the transform", " of it", "s of real input", None),  # a word of the texts
        ("the transform", " of it", "of real input", "glued"),
        ("the transform", " of it", " transform of it", "doubled"),
        ("the transform", " of it", "Transform of it", "doubled"),
        ("the inverse transform", " of it", " the inverse\ntransform of", "doubled"),
        ("the transform", " of it", " transformation", None),
        ("the frequ", "ency of", "ency is", None),
        ("the frequ", "ency of", "frequency is", "doubled"),
        ("the frequ", "ency of", "opera is", "glued"),
        ("the frequ", "ency of", " is", "split"),
        ("the sign ", "of it", "of it", None),
        ("the sign ", "of it", "sign of it", "doubled"),
        ("in 20", " of 30", "24 of", None),
        ("f(x)", " = 2", "f(x) = 2", "doubled"),
        ("天空是", "蓝色的", "蓝色的", None),
        ("天空是", "蓝色的", "空是蓝色的", "doubled"),
        ("天空是", "蓝色的", " 蓝色的", "split"),
        ("天空是", "蓝色的", "是蓝色的", None),  # one character may be said twice
    ],
)
def test_a_seam_is_judged(draft: str, rest: str, shown: str, verdict: str | None):
    assert defect(cut(draft, rest), shown) == verdict


@pytest.mark.parametrize("kind", KINDS)
def test_the_texts_themselves_have_next_to_no_defect(kind: str):
    found = [Cut(p, at) for p in passages(kind) for at in range(30, len(p.text) - 12, 3)]
    bad = [one for one in found if defect(one, one.rest)]
    assert len(bad) < len(found) / 100


def test_cuts_are_drawn_where_they_are_allowed_and_always_the_same():
    allowed = [range(0, 400, 7)] * len(passages("english"))
    found = drawn("english", 20, allowed)
    assert found == drawn("english", 20, allowed)
    assert len(found) == 20
    assert all(one.at % 7 == 0 and one.at >= 30 for one in found)


def test_an_interval_contains_the_share_and_shrinks_with_the_number():
    low, high = interval(9, 10)
    assert low < 0.9 < high < 1
    narrow_low, narrow_high = interval(900, 1000)
    assert low < narrow_low < 0.9 < narrow_high < high
    assert interval(0, 0) == (0, 1)
