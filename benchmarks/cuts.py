"""Where real text is cut for the topic `seams`, and what is wrong with a seam.

A relay's local model hands over between two of its tokens, so the cuts lie there: mostly behind a
word, sometimes within one. Nothing here decodes.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import sqrt
from pathlib import Path

from langchain_relay.delegates.cleaners import is_cjk

TEXTS = Path(__file__).parent / "texts"
KINDS = ("english", "code", "latex", "chinese")
BETWEEN = "\n====\n"
LEAST_BEFORE, MOST_BEFORE, LEAST_BEHIND = 30, 500, 12
"""Characters of a passage before and behind a cut."""

LONGEST_DOUBLED = 60
LEAST_DOUBLED = 3
LEAST_DOUBLED_CJK = 2
LEAST_ANEW = 6
Z = 1.96
"""For intervals of 95 %."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A real text and the question it answers."""

    kind: str
    question: str
    text: str


@dataclass(frozen=True, slots=True)
class Cut:
    """A passage, cut at character `at`."""

    passage: Passage
    at: int

    @property
    def draft(self) -> str:
        return self.passage.text[: self.at]

    @property
    def rest(self) -> str:
        """How the passage goes on."""
        return self.passage.text[self.at :]

    @property
    def place(self) -> str:
        """What the cut stands in: a word, its end, a blank, or neither."""
        left, right = self.draft[-1:], self.rest[:1]
        if is_cjk(left) or is_cjk(right):
            return "no blanks"
        if left.isspace():
            return "behind a blank"
        if left.isalnum():
            return "in a word" if right.isalnum() else "behind a word"
        return "behind a sign"


@cache
def passages(kind: str) -> tuple[Passage, ...]:
    """All passages of a kind."""
    blocks = (TEXTS / f"{kind}.txt").read_text(encoding="utf-8").rstrip("\n").split(BETWEEN)
    pairs = (block.split("\n", 1) for block in blocks)
    return tuple(Passage(kind, question, text) for question, text in pairs)


def drawn(kind: str, n: int, boundaries: Sequence[Sequence[int]], seed: int = 5) -> list[Cut]:
    """`n` cuts of a kind, in the order of the passages, so that a draft is kept in the KV cache.

    Args:
        kind: One of `KINDS`.
        n: How many; fewer if there are no more.
        boundaries: For each passage, or the first ones, where it may be cut, in characters.
        seed: Of the draw.
    """
    found = [
        Cut(passage, at)
        for passage, allowed in zip(passages(kind), boundaries, strict=False)
        for at in allowed
        if LEAST_BEFORE <= at <= min(MOST_BEFORE, len(passage.text) - LEAST_BEHIND)
    ]
    order = {cut: i for i, cut in enumerate(found)}
    chosen = random.Random(seed).sample(found, min(n, len(found)))
    return sorted(chosen, key=lambda cut: order[cut])


# --- what is wrong with a seam ------------------------------------------------------------------


@cache
def words_of(kind: str) -> frozenset[str]:
    """Every word of a kind's passages, in lower case."""
    return frozenset(
        word.lower() for passage in passages(kind) for word in _WORDS.findall(passage.text)
    )


_WORDS = re.compile(r"[^\W_]+")
_LAST_WORD = re.compile(r"[^\W_]+\Z")
_FIRST_WORD = re.compile(r"[^\W_]*")


def defect(cut: Cut, shown: str) -> str | None:
    """What is wrong where `shown` joins the draft: `doubled`, `glued`, `split`, `anew` or nothing.

    `doubled`: the end of the draft, from the beginning of a word on and of at least 3 characters
    (2 of CJK), begins the span again; case and blanks do not count. `glued`: a whole word runs
    into the span, and together they are no word of the texts. `split`: a half word is not gone on
    with, and is no word itself. In text without blanks a blank is `split`. `anew`: the span begins
    as the passage does, or a sentence of prose where the passage is within one.
    """
    if doubled(cut, shown):
        return "doubled"
    if _begins_anew(cut, shown):
        return "anew"
    if cut.place == "no blanks":
        both = is_cjk(cut.draft[-1:]) and is_cjk(shown.lstrip()[:1])
        return "split" if both and shown[:1] == " " else None
    left = _LAST_WORD.search(cut.draft)
    if left is None:
        return None
    word, first = left[0].lower(), _FIRST_WORD.match(shown)
    known = words_of(cut.passage.kind)
    right = first[0].lower() if first else ""
    if cut.place == "in a word":
        whole = word + right
        true = word + _first_word(cut.rest)
        return None if whole == true or whole in known else "glued" if right else "split"
    return "glued" if right and word + right not in known and not word.isdigit() else None


def _begins_anew(cut: Cut, shown: str) -> bool:
    begun, rest = shown.lstrip(), cut.rest.lstrip()
    start = _folded(cut.passage.text)[:LEAST_ANEW]
    if _folded(begun).startswith(start) and not _folded(rest).startswith(start):
        return True
    prose = cut.passage.kind in {"english", "latex"}
    ended = cut.draft.rstrip()[-1:] in {".", "?", "!", ":", "]", "}"}
    return prose and not ended and begun[:1].isupper() and not rest[:1].isupper()


def _first_word(text: str) -> str:
    found = _FIRST_WORD.match(text)
    return found[0].lower() if found else ""


def doubled(cut: Cut, shown: str) -> bool:
    """Whether the span begins with what the draft ends in; a whole word counts as a whole only."""
    tail = cut.draft.rstrip()[-LONGEST_DOUBLED:]
    begun = _folded(shown)
    for at in range(len(tail)):
        same = begun.startswith(_folded(tail[at:]))
        if same and _begins(tail, at) and _is_enough(tail[at:]):
            return _repeats(cut, tail[at:], shown)
    return False


def _repeats(cut: Cut, tail: str, shown: str) -> bool:
    """Whether the repetition ends where a word of the span does."""
    whole = tail[-1:].isalnum() and cut.place not in {"in a word", "no blanks"}
    end = r"(?![^\W_])" if whole else ""
    pattern = r"\s*" + r"\s*".join(map(re.escape, "".join(tail.split())))
    return re.match(pattern + end, shown, re.IGNORECASE) is not None


def _begins(text: str, at: int) -> bool:
    """Whether a word or a sign begins at `at`."""
    inside = at > 0 and text[at - 1].isalnum() and text[at].isalnum()
    return not inside or is_cjk(text[at])


def _folded(text: str) -> str:
    return "".join(text.lower().split())


def _is_enough(text: str) -> bool:
    """Whether `text` is long enough to be a repetition, and no mere sign."""
    chars = "".join(text.split())
    if all(map(is_cjk, chars)):
        return len(chars) >= LEAST_DOUBLED_CJK
    return len(chars) >= LEAST_DOUBLED and any(map(str.isalnum, chars))


def interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's interval of 95 % for a share."""
    if not n:
        return 0.0, 1.0
    share, z2 = hits / n, Z * Z
    middle = share + z2 / (2 * n)
    half = Z * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
