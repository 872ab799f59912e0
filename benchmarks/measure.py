"""Interleaved rounds, medians, ratios with their range, verdicts. Nothing here decodes or prints.

The speed of a shared machine drifts by a tenth and more within minutes. So the sides of a
comparison take turns, and a ratio is taken within each round; only then is the median formed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, Literal

Verdict = Literal["met", "not met", "failure", "not run", ""]
"""Against a bound; empty where a row has none."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a row must show.

    Attributes:
        value: The bound itself.
        at: Whether the number must be at least or at most `value`.
        failure: Beyond this it is a failure; `None`: every miss is one.
    """

    value: float
    at: Literal["least", "most"] = "least"
    failure: float | None = None

    def verdict(self, number: float) -> Verdict:
        """What `number` means; a number equal to the bound meets it."""
        if self._keeps(number, self.value):
            return "met"
        if self.failure is not None and self._keeps(number, self.failure):
            return "not met"
        return "failure"

    def _keeps(self, number: float, value: float) -> bool:
        return number >= value if self.at == "least" else number <= value

    def __str__(self) -> str:
        sign = "≥" if self.at == "least" else "≤"
        beyond = "<" if self.at == "least" else ">"
        failure = "" if self.failure is None else f" (failure {beyond} {self.failure:g})"
        return f"{sign} {self.value:g}{failure}"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        topic: The group it stands in.
        name: What was measured.
        unit: Of `values`.
        values: One per round; empty if it was not run.
        against: What the ratios are taken against.
        ratios: `values` over those of `against`, round by round.
        bound: Judges the median ratio, or the median value where there are no ratios.
        note: How to read it, or why it was not run.
        facts: Further JSON-able numbers, such as the context size of a row.
    """

    topic: str
    name: str
    unit: str
    values: tuple[float, ...] = ()
    against: str = ""
    ratios: tuple[float, ...] = ()
    bound: Bound | None = None
    note: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def judged(self) -> tuple[float, ...]:
        """What the bound is about."""
        return self.ratios or self.values

    @property
    def verdict(self) -> Verdict:
        """Whether the bound is met; a row that was not run says so, bound or not."""
        if not self.values:
            return "not run"
        return self.bound.verdict(median(self.judged)) if self.bound else ""

    def as_json(self) -> dict[str, Any]:
        """Everything: raw numbers per round, median, ratios, their range, the verdict."""
        return {
            "topic": self.topic,
            "name": self.name,
            "unit": self.unit,
            "values": [_rounded(value) for value in self.values],
            "median": _rounded(median(self.values)) if self.values else None,
            "against": self.against or None,
            "ratios": [_rounded(ratio) for ratio in self.ratios],
            "ratio": _rounded(median(self.ratios)) if self.ratios else None,
            "ratio_range": [_rounded(f(self.ratios)) for f in (min, max)] if self.ratios else None,
            "bound": str(self.bound) if self.bound else None,
            "verdict": self.verdict or None,
            "note": self.note,
            **self.facts,
        }


Side = Callable[[], float]
"""Does one thing once; returns a rate, a time or a count."""

Told = Callable[[str], None]
"""Hears the name of each turn before it begins."""


def interleaved(
    sides: Mapping[str, Side], rounds: int, told: Told = lambda _: None, *, repeats: int = 1
) -> dict[str, tuple[float, ...]]:
    """Every side once per round; each round begins with another one.

    Args:
        sides: What takes turns.
        rounds: How many values each side gets.
        told: Hears of every turn.
        repeats: Turns of a side in one round, there and back, so that a drift within the round
            meets all sides alike; their mean is the side's value.
    """
    names = list(sides)
    values: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        order = rotated(names, number)
        taken: dict[str, list[float]] = {name: [] for name in names}
        for repeat in range(repeats):
            for name in order if repeat % 2 == 0 else reversed(order):
                told(f"round {number + 1} of {rounds}: {name}")
                taken[name].append(sides[name]())
        for name in names:
            values[name].append(fmean(taken[name]))
    return {name: tuple(found) for name, found in values.items()}


def rotated(names: Sequence[str], number: int) -> list[str]:
    """`names` in the order of round `number`: nobody always goes first."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def ratios(values: Sequence[float], base: Sequence[float]) -> tuple[float, ...]:
    """Round by round, `values` over `base`.

    Raises:
        ValueError: they come from different numbers of rounds.
    """
    return tuple(value / other for value, other in zip(values, base, strict=True))


def _rounded(number: float) -> float:
    return float(f"{number:.5g}")
