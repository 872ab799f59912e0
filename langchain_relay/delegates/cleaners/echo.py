"""Replies that repeat the draft, its end or all of it, or that start the answer again."""

from __future__ import annotations

import re

from langchain_relay.delegates.cleaners.scripts import is_cjk

_MIN_OVERLAP_CHARS = 12
_MIN_OVERLAP_WORDS = 2
_MIN_OVERLAP_CJK_CHARS = 8
_MIN_RESTART_CHARS = 20
_MIN_RESTART_WORDS = 3
_MIN_RESTART_CJK_CHARS = 12

_LONGEST_OVERLAP_CHARS = 2_000
"""How far back in the draft a repeated end may begin; besides, the whole draft may be repeated."""


class Echo:
    """Removes the end of the draft, or all of it, from the start of a reply; tells a restart.

    Letter case and blanks do not count. Every place of the draft at which the reply so far could
    be read off is a candidate; a candidate that reaches the draft's end is an overlap. What the
    draft says twice may be said a third time, and is no overlap. A reply that goes on from the
    draft's start, or from `start`, where the hosted model saw it begin, without reaching its end,
    is a restart.
    """

    def __init__(self, draft: str, start: int = 0) -> None:
        self.trimmed = ""
        self.restart = False
        self.expected = False  # little is enough behind a marker
        self._text = draft
        self._draft = _folded(draft)
        first = max(0, len(self._draft) - _LONGEST_OVERLAP_CHARS)
        self._starts = {0, len("".join(draft[:start].split()))}
        candidates = {*self._starts, *range(first, len(self._draft))}
        self._candidates = sorted(at for at in candidates if at < len(self._draft))
        self._matched = 0  # characters of the reply, blanks aside
        self._held = ""
        self._overlap = 0  # end of the longest overlap, in the held text
        self._from_start = 0  # how far the reply repeats the draft from its start, in the held text
        self._open = True

    def push(self, text: str) -> str:
        """Take a piece; returns what is sure to stay."""
        if self.restart:
            self.trimmed += text
            return ""
        if not self._open:
            return text
        for at, char in enumerate(text):
            self._held += char
            if not char.isspace():
                self._step(_fold(char))
            if not self._candidates:
                return self._settled() + self.push(text[at + 1 :])
        return ""

    def flush(self) -> str:
        """The span has ended; returns the rest."""
        return self._settled() if self._open else ""

    def _step(self, char: str) -> None:
        """Drop the candidates that the next character of the reply contradicts or completes."""
        at, end = self._matched, len(self._draft)
        alive = [i for i in self._candidates if self._draft[i + at] == char]
        self._matched += 1
        if not self._starts.isdisjoint(alive):
            self._from_start = len(self._held)
        if any(i + self._matched == end for i in alive):
            self._overlap = self._counts(len(self._held)) or self._overlap
        self._candidates = [i for i in alive if i + self._matched < end]

    def _counts(self, end: int) -> int:
        """`end`, if the held text up to there is long enough to be a repetition; else 0."""
        least = _EXPECTED if self.expected else _OVERLAP
        return end if _is_long(self._held[:end], *least) else 0

    def _settled(self) -> str:
        self._open = False
        text, self._held = self._held, ""
        if self._overlap and self._recurs(text[: self._overlap]):
            self._overlap = 0
        if self._from_start > self._overlap and self._restarts(text[: self._from_start]):
            self.restart = True
            self.trimmed += text
            return ""
        self.trimmed += text[: self._overlap]
        return text[self._overlap :]

    def _recurs(self, text: str) -> bool:
        """Whether the draft has `text` in more than one place."""
        draft, wanted = "".join(self._draft), "".join(_folded(text))
        return draft.find(wanted) != draft.rfind(wanted)

    def _restarts(self, text: str) -> bool:
        """Whether a reply that begins with `text`, as the draft does, starts the answer again."""
        if not _is_long(text, *(_EXPECTED if self.expected else _RESTART)):
            return False
        if self.expected or not (_is_in_lines(self._text) or self._recurs(text)):
            return True
        # Lines of code, lists and poems begin alike, and so does what was said twice.
        return len(_folded(text)) > len(_folded(_first_part(self._text)))


_FIRST_PART = re.compile(r"\s*(?:[^\n]*?[.!?](?=\s)|[^\n]*?[\u3002\uff01\uff1f]|[^\n]*)")


def _first_part(draft: str) -> str:
    """The first line of lines, else the first sentence."""
    if _is_in_lines(draft):
        return draft.lstrip().partition("\n")[0]
    match = _FIRST_PART.match(draft)
    return match[0] if match else ""


def _is_in_lines(draft: str) -> bool:
    """Whether the draft stops at the start of a line and is written in lines, not paragraphs."""
    body = draft.rstrip()
    breaks = draft[len(body) :].count("\n")
    return breaks == 1 or (breaks > 1 and re.search(r"\S[ \t]*\n[ \t]*\S", body) is not None)


def _folded(text: str) -> list[str]:
    return [_fold(char) for char in text if not char.isspace()]


_OVERLAP = (_MIN_OVERLAP_CHARS, _MIN_OVERLAP_WORDS, _MIN_OVERLAP_CJK_CHARS)
_EXPECTED = (4, 1, 2)
_RESTART = (_MIN_RESTART_CHARS, _MIN_RESTART_WORDS, _MIN_RESTART_CJK_CHARS)


def _is_long(text: str, chars: int, words: int, cjk_chars: int) -> bool:
    """Whether `text` is too long to be equal to a part of the draft by chance."""
    parts = text.split()
    length = len(" ".join(parts))
    if sum(map(is_cjk, text)) * 2 > length:
        return length >= cjk_chars
    return length >= chars and len(parts) >= words


def is_restart(text: str) -> bool:
    """Whether `text`, with which the draft begins, is too long to begin a reply by chance."""
    return _is_long(text, *_RESTART)


def _fold(char: str) -> str:
    return _STRAIGHT.get(char, char.lower())


_STRAIGHT = dict(zip("\u2019\u2018\u201c\u201d", "''\"\"", strict=True))
"""Models repeat typographic quotes as straight ones."""
