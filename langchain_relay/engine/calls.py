"""The call command `<call>n</call>`, found in text that arrives in pieces.

Only locally written text is ever given to this parser: a question, a tool message, a system
prompt or a delegated span may contain the tag and must never trigger a call.

A command is the open tag, blanks or none, decimal digits, blanks or none, the close tag
(RelayLLM, arXiv 2601.05167, section 3; the blanks are allowed by every pattern of its code).
A malformed one runs from `<call>` to the next `</call>`, newline, `MAX_COMMAND_CHARS` characters
or the end of the text, whichever comes first. A stray `</call>` is text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OPEN_TAG = "<call>"
CLOSE_TAG = "</call>"
MAX_COMMAND_CHARS = 32
"""A command, tags included, that has not closed by then is malformed."""

_WELL_FORMED = re.compile(r"<call>[ \t]*([0-9]+)[ \t]*</call>")


@dataclass(frozen=True, slots=True)
class NoCall:
    """No command has begun: all of the text may be shown."""


@dataclass(frozen=True, slots=True)
class MaybeCall:
    """From `start` on, the text may become a command."""

    start: int


@dataclass(frozen=True, slots=True)
class CallFound:
    """A well-formed command over `text[start:end]` that asks for `n` tokens, n ≥ 1."""

    start: int
    end: int
    n: int


@dataclass(frozen=True, slots=True)
class MalformedCall:
    """Something over `text[start:end]` that began like a command and is none."""

    start: int
    end: int


Scan = NoCall | MaybeCall | CallFound | MalformedCall


def scan(text: str) -> Scan:
    """Look for the first command in `text`, the local text not yet shown.

    Pure: called again with more text, it gives the answer for that text, so that any split of the
    stream leads to the same result.
    """
    start = text.find(OPEN_TAG)
    if start < 0:
        return _open_tag_pending(text)
    body = text[start:]
    found = _WELL_FORMED.match(body)
    if found and found.end() <= MAX_COMMAND_CHARS:
        n = int(found.group(1))
        if n == 0:
            return MalformedCall(start, start + found.end())
        return CallFound(start, start + found.end(), n)
    end = _malformed_end(body)
    return MaybeCall(start) if end is None else MalformedCall(start, start + end)


def _open_tag_pending(text: str) -> Scan:
    """Whether `text` ends in a proper beginning of the open tag."""
    for length in range(min(len(OPEN_TAG) - 1, len(text)), 0, -1):
        if text.endswith(OPEN_TAG[:length]):
            return MaybeCall(len(text) - length)
    return NoCall()


def _malformed_end(body: str) -> int | None:
    """Where a malformed command that starts `body` ends, or `None` while it is still open."""
    ends = []
    if (close := body.find(CLOSE_TAG)) >= 0:
        ends.append(close + len(CLOSE_TAG))
    if (newline := body.find("\n")) >= 0:
        ends.append(newline)
    if len(body) >= MAX_COMMAND_CHARS:
        ends.append(MAX_COMMAND_CHARS)
    return min(ends) if ends else None
