"""The marker that a draft is shown behind, taken out of replies that repeat or close it."""

from __future__ import annotations


def marker(draft: str) -> str:
    """A tag that the draft does not contain: nothing in a draft may look like its marker."""
    tag, number = "draft", 1
    while f"{tag}>" in draft:
        number += 1
        tag = f"draft-{number}"
    return tag


class Markers:
    """Removes the marker that a draft was shown behind, where a reply repeats or closes it.

    Attributes:
        trimmed: What was removed.
        opened: The reply begins with the marker, so it may begin with the draft.
    """

    def __init__(self, draft: str) -> None:
        self.trimmed = ""
        self.opened = False
        tag = marker(draft.rstrip())
        self._opening, self._closing = f"<{tag}>", f"</{tag}>"
        self._held = ""
        self._first = True

    def push(self, text: str) -> str:
        """Take a piece; returns what no longer can be a marker."""
        return "".join(map(self._step, text))

    def flush(self) -> str:
        """The span has ended; returns the rest."""
        text, self._held = self._held, ""
        return text

    def _step(self, char: str) -> str:
        self._held += char
        body = self._held.lstrip()
        if self._first and self._opening.startswith(body):
            if body == self._opening:
                self.opened = True
                self._first = False
                self._drop()
            return ""
        self._first = False
        at = self._held.rfind("<")
        if at < 0 or not self._closing.startswith(self._held[at:]):
            return self.flush()
        shown, self._held = self._held[:at], self._held[at:]
        if self._held == self._closing:
            self._drop()
        return shown

    def _drop(self) -> None:
        self.trimmed += self.flush()
