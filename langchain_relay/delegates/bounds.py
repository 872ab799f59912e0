"""Where a span is cut on this side, whatever the host does with the limit it was sent.

At exactly n tokens where the model's own tokenizer is at hand; else at 8n UTF-8 bytes, because an
estimate that cuts too early would lose text and the usage figure. Any chunking of a span is cut at
the same place, and no character is cut in two.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Protocol

from langchain_relay.engine.tokens import fitting_chars, safe_cuts

__all__ = ["MAX_BYTES_PER_TOKEN", "Bound", "ByteBound", "TokenBound"]

MAX_BYTES_PER_TOKEN = 8
"""Where the provider's tokenizer is not at hand, a span is cut at this many bytes per token."""

_SLACK = 8
"""Text that follows may change the last few tokens of a text, never as many as these."""

_SCAN_CHARS = 64
"""How far behind the last fitting character a longer token may end."""

_WINDOW_CHARS = 4096
"""A piece of any size is looked at in parts, so that a flood is cut where it begins."""


class Bound(Protocol):
    """Passes a span on up to its end; `over` once something was cut off."""

    over: bool

    def push(self, text: str) -> str:
        """Take a piece of the span; returns what is sure to be within the bound."""
        ...

    def flush(self) -> str:
        """The span has ended; returns the rest of what is within the bound."""
        ...


class ByteBound:
    """Cuts at `8 * n` UTF-8 bytes."""

    def __init__(self, n: int) -> None:
        self._left = n * MAX_BYTES_PER_TOKEN
        self.over = False

    def push(self, text: str) -> str:
        """See `Bound.push`."""
        if self.over:
            return ""
        data = text.encode(errors="replace")
        if len(data) > self._left:
            self.over = True
            return data[: self._left].decode(errors="ignore")
        self._left -= len(data)
        return text

    def flush(self) -> str:
        """See `Bound.flush`; nothing is withheld."""
        return ""


class TokenBound:
    """Cuts behind the n-th token.

    Text is counted up to a place where no more text can change its tokens (`safe_cut`: between two
    words). The last unfinished word is passed on while it fits however it may be split, else it
    waits until it is whole. Where no such place comes for long, as in Chinese, text is taken for
    settled once several tokens have followed.

    Args:
        n: Tokens a span may have.
        encode: Text to token ids, without special tokens.
    """

    def __init__(self, n: int, encode: Callable[[str], Sequence[int]]) -> None:
        self._n = n
        self._encode = encode
        self._text = ""
        self._shown = 0  # characters passed on
        self._settled = 0  # characters up to the last safe cut that fits
        self._most = 0, 0  # this many tokens at most for this many characters
        self.over = False

    def push(self, text: str) -> str:
        """See `Bound.push`."""
        parts = range(0, len(text), _WINDOW_CHARS)
        return "".join(self._take(text[at : at + _WINDOW_CHARS]) for at in parts)

    def flush(self) -> str:
        """See `Bound.flush`."""
        if not self.over and not self._fits_at_worst() and self._count(self._text) > self._n:
            self._cut(self._text)
        return self._pass_on(self._settled if self.over else len(self._text))

    def _take(self, text: str) -> str:
        if self.over:
            return ""
        self._text += text
        if not self._fits_at_worst():
            self._settle()
        return self._pass_on(len(self._text) if self._sure() else self._settled)

    def _sure(self) -> bool:
        return not self.over and self._fits_at_worst()

    def _fits_at_worst(self) -> bool:
        """Whether everything fits even with a token for each new byte."""
        tokens, chars = self._most
        return tokens + len(self._text[chars:].encode(errors="replace")) <= self._n

    def _settle(self) -> None:
        """Count again: up to the last safe cut, or, if all fits well, up to the end."""
        cuts = safe_cuts(self._text, self._settled)
        fitting = bisect_right(cuts, self._n, key=lambda at: self._count(self._text[:at]))
        if fitting:
            self._settled = cuts[fitting - 1]
            self._most = self._count(self._text[: self._settled]), self._settled
        if fitting < len(cuts):
            self._cut(self._text[: cuts[fitting]])
            return
        tokens = self._count(self._text)
        if tokens > self._n + _SLACK:
            self._cut(self._text)
        elif tokens + _SLACK <= self._n:
            self._most = tokens + _SLACK, len(self._text)

    def _cut(self, text: str) -> None:
        """End behind the last whole character that the first n tokens of `text` are sure to cover.

        A boundary of tokens is looked for. Where the n-th token ends inside a character, there is
        none; then each token behind the last one that was found covers at least a byte.
        """
        self.over = True
        ids = list(self._encode(text))
        rest = text[self._settled :]
        fitting = self._settled + fitting_chars(
            rest, self._n, lambda part: self._count(text[: self._settled] + part)
        )
        end, tokens = self._settled, self._count(text[: self._settled])
        for at in range(min(len(text), fitting + _SCAN_CHARS), self._settled, -1):
            head = list(self._encode(text[:at]))
            if len(head) <= self._n and head == ids[: len(head)]:
                end, tokens = at, len(head)
                break
        covered = text[end:].encode(errors="replace")[: self._n - tokens]
        self._settled = end + len(covered.decode(errors="ignore"))

    def _count(self, text: str) -> int:
        return len(self._encode(text))

    def _pass_on(self, end: int) -> str:
        start, self._shown = self._shown, max(self._shown, end)
        return self._text[start : self._shown]
