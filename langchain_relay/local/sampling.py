"""What the fields of `Sampling` mean when they are left out, and which values they may have."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_relay.errors import UsageMistake

if TYPE_CHECKING:
    from collections.abc import Callable

    from langchain_relay.engine.values import Sampling

PENALTY_LAST_TOKENS = 64
"""How many of the last written tokens a repeat penalty looks at; llama.cpp's own default."""

SIGNALS = frozenset({"entropy", "hidden", "margin"})
"""The signals a step can carry: entropy and margin of the next-token distribution, before
temperature and filters, and the last hidden state."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """`Sampling` with every value settled.

    The defaults are those of llama.cpp's own programs. `repeat_penalty` 1.0 is off and `top_k` 0
    and `min_p` 0.0 are off too. The penalty looks at the last 64 tokens of the answer, hosted
    ones included, never at the prompt: a question's own words may be needed for its answer.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """The likeliest token is taken; no chance is involved."""
        return self.temperature == 0

    @property
    def penalized(self) -> bool:
        """Repeated tokens are made less likely."""
        return self.repeat_penalty != 1


def choose(sampling: Sampling) -> Chosen:
    """Settle every value of `sampling`; a missing seed is drawn.

    Raises:
        UsageMistake: a value is outside its range.
    """
    given = {
        name: _checked(name, getattr(sampling, name), allowed, fits)
        for name, (allowed, fits) in _RANGES.items()
        if getattr(sampling, name) is not None
    }
    for name in ("top_k", "seed"):
        value: object = getattr(sampling, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise UsageMistake(f"{name}={value!r}: a whole number is needed")
    seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
    return Chosen(**given, seed=seed)


_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("0 (greedy) or more", lambda value: value >= 0),
    "top_k": ("0 (off) or more", lambda value: value >= 0),
    "top_p": ("above 0 and at most 1 (off)", lambda value: 0 < value <= 1),
    "min_p": ("from 0 (off) to 1", lambda value: 0 <= value <= 1),
    "repeat_penalty": ("above 0 (1 is off)", lambda value: value > 0),
}


def _checked(name: str, value: float, allowed: str, fits: Callable[[float], bool]) -> Any:
    given: object = value
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise UsageMistake(f"{name}={value!r}: a number is needed")
    if not math.isfinite(value) or not fits(value):
        raise UsageMistake(f"{name}={value!r} is out of range; it must be {allowed}")
    return value


def draw_seed(seed: int, position: int, attempt: int = 0) -> int:
    """A 32-bit seed for the draw at `position`: a hash of all three (splitmix64).

    Drawing by position makes the generator's state a function of the text, so that a rewind
    restores it, and the same seed writes the same text alone or beside others.
    """
    mixed = (seed + (position + 1 + (attempt << 32)) * 0x9E3779B97F4A7C15) & _64_BITS
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _64_BITS
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _64_BITS
    drawn = (mixed ^ (mixed >> 31)) & _32_BITS
    # llama.cpp takes this one value for "draw a random seed" (LLAMA_DEFAULT_SEED).
    return drawn if drawn != _32_BITS else 0


_64_BITS = 2**64 - 1
_32_BITS = 2**32 - 1
