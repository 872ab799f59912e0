"""Code fences around a whole reply, or around code that is open already."""

from __future__ import annotations

import re

from langchain_relay.delegates.cleaners.place import open_code, place
from langchain_relay.delegates.cleaners.scripts import words_meet

_PROSE_FENCES = frozenset({"", "text", "txt", "plaintext", "plain", "markdown", "md"})
"""Info strings of a fence that wraps the reply itself; ```python is part of the answer."""

_MARKDOWN = frozenset({"markdown", "md"})
"""Info strings of code that may contain fences itself."""

_FENCE = re.compile(r"\s*```+([^`\n]*)\n")


class Fence:
    """Removes a code fence around the whole reply, and one that opens code that is open already.

    No block of code begins within a sentence; anywhere else a fence may be the answer's own.
    """

    def __init__(self, draft: str) -> None:
        self.trimmed = ""
        self._end = draft[-1:]
        self._inside = place(draft) == "inside"
        self._open_code = open_code(draft)
        self._state = "opening"  # opening | wrapped | done
        self._held = ""
        self._line_start = True
        self._first = True
        self._depth = 0

    def push(self, text: str) -> str:
        """Take a piece; returns what is sure to stay."""
        if self._state == "done":
            return text
        shown = ""
        for at, char in enumerate(text):
            self._held += char
            shown += self._opening() if self._state == "opening" else self._wrapped()
            if self._state == "done":
                return shown + text[at + 1 :]
        return shown

    def flush(self) -> str:
        """The span has ended; returns the rest."""
        if self._state == "wrapped" and not self._depth and self._held.strip() == "```":
            self.trimmed += self._held
            self._held = ""
        return self._release()

    def _opening(self) -> str:
        body = self._held.lstrip()
        if "```".startswith(body) or (body.startswith("```") and "\n" not in body):
            return ""
        match = _FENCE.fullmatch(self._held)
        info = match[1].strip().lower() if match else None
        wraps = info in _PROSE_FENCES and self._may_wrap(self._held[: -len(body)])
        if not wraps and not self._is_open(info):
            self._state = "done"
            return self._release()
        self.trimmed += self._held
        self._held = ""
        self._state = "wrapped" if wraps else "done"
        return ""

    def _may_wrap(self, blanks: str) -> bool:
        return self._inside and self._open_code is None and "\n" not in blanks

    def _is_open(self, info: str | None) -> bool:
        """Whether the draft ends in code that such a fence opened."""
        opened = self._open_code
        if not info or not opened or opened in _MARKDOWN:
            return False
        return opened.startswith(info) or info.startswith(opened)

    def _wrapped(self) -> str:
        """Hold a line break and a line of backticks until it is known whether they close."""
        line = self._held.removeprefix("\n")
        if line == self._held and not self._line_start:
            return self._release()
        if "```".startswith(line) or (line.startswith("```") and "\n" not in line):
            return ""
        self._line_start = False
        match = _FENCE.fullmatch(line)
        if match and not match[1].strip() and not self._depth:
            self.trimmed += self._held[:-1]
            self._held = "\n"
            self._state = "done"
            return self._release()
        if match:
            self._depth += 1 if match[1].strip() else -1
        if not self._held.endswith("\n"):
            return self._release()
        self._held = self._held[:-1]
        shown = self._release()
        self._held = "\n"
        return shown

    def _release(self) -> str:
        text, self._held = self._held, ""
        if text and self._first and self.trimmed and words_meet(self._end, text[0]):
            text = " " + text
        self._first = self._first and not text
        return text
