"""Turns, ratios and verdicts of the benchmarks; what they decode is tested by running them."""

from __future__ import annotations

from itertools import count
from statistics import median

import pytest

from benchmarks.measure import Bound, Row, interleaved, ratios, rotated


def test_every_side_takes_one_turn_per_round_and_nobody_always_goes_first():
    turns: list[str] = []
    sides = {name: lambda name=name: float(len(turns)) for name in "abc"}

    interleaved(sides, 4, turns.append)

    assert [turn[-1] for turn in turns] == [*"abc", *"bca", *"cab", *"abc"]
    assert turns[3] == "round 2 of 4: b"


def test_values_belong_to_the_side_and_the_round_that_gave_them():
    clock = count()

    values = interleaved({"a": lambda: float(next(clock)), "b": lambda: -float(next(clock))}, 3)

    assert values == {"a": (0.0, 3.0, 4.0), "b": (-1.0, -2.0, -5.0)}


def test_rotation_starts_over_after_as_many_rounds_as_there_are_sides():
    assert rotated(["a", "b"], 4) == ["a", "b"]
    assert rotated(["a", "b"], 5) == ["b", "a"]


def test_ratios_are_taken_within_each_round():
    # The machine became half as fast in round 2: the ratio of medians would say 1.5.
    assert ratios((100, 50, 100), (100, 50, 50)) == (1.0, 1.0, 2.0)


def test_rounds_that_do_not_match_have_no_ratios():
    with pytest.raises(ValueError, match="zip"):
        ratios((1, 2), (1,))


@pytest.mark.parametrize(
    ("bound", "number", "verdict"),
    [
        (Bound(0.97, failure=0.95), 0.97, "met"),
        (Bound(0.97, failure=0.95), 0.9699, "not met"),
        (Bound(0.97, failure=0.95), 0.95, "not met"),
        (Bound(0.97, failure=0.95), 0.9499, "failure"),
        (Bound(1.1, at="most"), 1.1, "met"),
        (Bound(1.1, at="most"), 1.11, "failure"),
        (Bound(1.1, at="most", failure=1.3), 1.3, "not met"),
        (Bound(1.1, at="most", failure=1.3), 1.31, "failure"),
    ],
)
def test_verdict(bound, number, verdict):
    assert bound.verdict(number) == verdict


def test_the_median_ratio_is_judged_not_the_best_one():
    row = Row("t", "n", "tokens/s", (1, 1, 1), "raw", (0.9, 0.96, 1.2), Bound(0.97, failure=0.95))

    assert row.verdict == "not met"
    assert row.as_json()["ratio"] == 0.96
    assert row.as_json()["ratio_range"] == [0.9, 1.2]
    assert row.as_json()["bound"] == "≥ 0.97 (failure < 0.95)"


def test_without_ratios_the_median_value_is_judged():
    row = Row("t", "n", "tokens", (0, 5, 5), bound=Bound(4, at="most"))

    assert median(row.judged) == 5
    assert row.verdict == "failure"


def test_what_was_not_run_says_so_and_does_not_count_as_met():
    row = Row("gpu", "n", "tokens/s", bound=Bound(0.97), note="there is no GPU")

    assert row.verdict == "not run"
    assert row.as_json()["median"] is None
    assert row.as_json()["note"] == "there is no GPU"


def test_repeats_go_there_and_back_within_a_round_and_their_mean_counts():
    turns: list[str] = []
    clock = count()
    sides = {name: lambda: float(next(clock)) for name in "ab"}

    values = interleaved(sides, 2, turns.append, repeats=2)

    assert [turn[-1] for turn in turns] == [*"abba", *"baab"]
    assert values == {"a": (1.5, 5.5), "b": (1.5, 5.5)}
