"""Where a draft stops: within a sentence, behind one, before words to come, in code."""

from __future__ import annotations

import re
from typing import Literal

Place = Literal["inside", "behind", "before"]
"""Within a sentence, behind one, or before words that somebody says or that stand under a mark."""

_SENTENCE_ENDS = frozenset(".!?\u2026\u3002\uff01\uff1f;\uff1b")
_ANNOUNCES = frozenset(":\uff1a([{\u201c\u2018\u00ab\u201e\u300c\u300e\uff08\u2014|>=")
_OPENING_QUOTE = re.compile(r"(?:^|[\s(\[{=,])[\"'`]+\Z")
_CLOSING_QUOTES = "\"'`\u201d\u2019\u00bb\u300d\u300f)*_"
_MARK = re.compile(r"(?:^|\n)[ \t>]*(?:[-*+\u2022]|\d+[.)]|#{1,6})\Z")


def place(draft: str) -> Place:
    """Where a draft stops, code blocks aside."""
    end = draft.rstrip()
    if end[-1:] in _ANNOUNCES or _OPENING_QUOTE.search(end) or _MARK.search(end):
        return "before"
    if "\n" in draft[len(end) :] or end.rstrip(_CLOSING_QUOTES)[-1:] in _SENTENCE_ENDS:
        return "behind"
    return "inside"


_FENCE_LINE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([^`\n]*)")


def open_code(draft: str) -> str | None:
    """The info string of the code block that the draft ends in; `None`: it ends in none."""
    mark, info = "", ""
    for line in draft.split("\n"):
        match = _FENCE_LINE.fullmatch(line.rstrip())
        if match is None:
            continue
        if not mark:
            mark, info = match[1], match[2].lower()
        elif match[1].startswith(mark) and not match[2]:
            mark = ""
    return info if mark else None
