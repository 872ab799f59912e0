"""How much of a draft is sent: its end, cut in big steps so that providers' caches keep working."""

from __future__ import annotations

import re

from langchain_relay.engine.values import Counter

__all__ = ["DraftWindow"]

_BORDERS = (
    re.compile(r"\n\s*(?=\S)"),
    re.compile("[.!?\u2026]['\"\u2019\u201d)\\]]*\\s+(?=\\S)|[\u3002\uff01\uff1f]"),
    re.compile(r"\s+(?=\S)"),
)
"""What a cut may stand behind, best first: lines, sentences, words."""


class DraftWindow:
    """Where the part of a growing draft begins that is sent. One for each answer.

    A window that moved with every call would make every request new to the provider's cache. This
    one stands still until the draft has outgrown it, and then leaves out so much that half of it
    is free again: for a window of w tokens a request in w/2 tokens of draft begins anew.

    Args:
        tokens: The most that is sent, as `count` counts it; `None`: everything.
        count: Counts tokens, of the local vocabulary as a rule.
    """

    def __init__(self, tokens: int | None = None, count: Counter = len) -> None:
        self._tokens = tokens
        self._count = count
        self._start = 0

    def start(self, draft: str) -> int:
        """Offset of the first character of `draft` that is sent."""
        if self._tokens is None:
            return 0
        draft = draft.rstrip()  # blanks at its end are never sent, and must not push out its words
        if self._start >= len(draft):  # not the draft of before
            self._start = 0
        if self._count(draft[self._start :]) > self._tokens:
            self._start = self._next_start(draft, self._tokens // 2)
        return self._start

    def _next_start(self, draft: str, tokens: int) -> int:
        """The first border behind which at most `tokens` are left."""
        low, high = self._start, len(draft)
        while low < high:
            middle = (low + high) // 2
            if self._count(draft[middle:]) <= tokens:
                high = middle
            else:
                low = middle + 1
        return low + _border(draft[low : (low + len(draft)) // 2])


def _border(text: str) -> int:
    """The end of the first of the best borders in `text`; 0 if it has none."""
    for border in _BORDERS:
        if found := border.search(text):
            return found.end()
    return 0
