"""Counting and cutting text that arrives in pieces, by the tokens of a given vocabulary.

A tokenizer that splits words before a blank gives the same tokens for a text and for its parts
when the cut lies between a letter or digit and a blank followed by a letter. Text is cut only
there, so that any split of a stream leads to the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterable

from langchain_relay.engine.values import Counter

TOKENS_PER_MESSAGE = 16
"""Upper bound of what a chat format adds to one message."""


def safe_cut(text: str) -> int:
    """The last place where `text` may be cut without changing its tokens; 0 if there is none.

    The blank belongs to the right-hand part.
    """
    return next((i for i in range(len(text) - 2, 0, -1) if _is_safe(text, i)), 0)


def safe_cuts(text: str, after: int = 0) -> list[int]:
    """All such places behind the first `after` characters."""
    return [i for i in range(after + 1, len(text) - 1) if _is_safe(text, i)]


def _is_safe(text: str, i: int) -> bool:
    return text[i] == " " and text[i + 1].isalpha() and text[i - 1].isalnum()


class TokenTally:
    """Running token count of a growing text; only its tail is tokenized again."""

    def __init__(self, count: Counter) -> None:
        self._count = count
        self._settled = 0
        self._tail = ""

    def add(self, text: str) -> int:
        """Append `text`; returns the tokens of everything so far."""
        self._tail += text
        cut = safe_cut(self._tail)
        if cut:
            self._settled += self._count(self._tail[:cut])
            self._tail = self._tail[cut:]
        return self._settled + self._count(self._tail)


def fitting_chars(text: str, max_tokens: int, tokens_after: Counter) -> int:
    """The longest prefix of `text`, in characters, for which `tokens_after(prefix) <= max_tokens`.

    `tokens_after` must not fall as the prefix grows by much; a tokenizer's count is close enough to
    monotonic, and the result is checked, never assumed.
    """
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if tokens_after(text[:middle]) <= max_tokens:
            low = middle
        else:
            high = middle - 1
    return low


def utf8_bytes(text: str) -> int:
    """Bytes of `text`: a byte-level vocabulary never has more tokens for it."""
    return len(text.encode(errors="replace"))


def input_tokens_bound(texts: Iterable[str], count: Counter = utf8_bytes) -> int:
    """An upper bound of the input tokens of a request; each message adds its frame.

    Args:
        texts: One for each message.
        count: The model's own tokenizer, where it is at hand.
    """
    return sum(count(text) + TOKENS_PER_MESSAGE for text in texts)
