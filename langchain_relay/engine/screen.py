"""What the user sees: text on its way out, withheld while it may be the start of a stop string.

Stop strings are matched on the user's view, over whoever wrote it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from langchain_relay.engine.events import TextAdded


class Screen:
    """Holds back the longest tail that may begin a stop string; ends at the first one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = tuple(s for s in stop if s)
        self._held: deque[TextAdded] = deque()
        self.hit = False
        """A stop string was found: it and what follows will never be shown."""

    def push(self, added: TextAdded) -> list[TextAdded]:
        """Add text; returns what is now sure to be shown. After a hit, nothing is."""
        if not self._stop:
            return [added]
        if self.hit:
            return []
        self._held.append(added)
        text = "".join(part.text for part in self._held)
        starts = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if starts:
            self.hit = True
            shown = self._release(min(starts))
            self._held.clear()
            return shown
        return self._release(len(text) - self._withheld(text))

    def flush(self) -> list[TextAdded]:
        """The answer ends: what is withheld is shown."""
        return self._release(sum(len(part.text) for part in self._held))

    def _withheld(self, text: str) -> int:
        """Length of the longest tail of `text` that is a proper beginning of a stop string."""
        longest = max((len(s) for s in self._stop), default=0) - 1
        for length in range(min(longest, len(text)), 0, -1):
            tail = text[-length:]
            if any(s.startswith(tail) for s in self._stop):
                return length
        return 0

    def _release(self, chars: int) -> list[TextAdded]:
        """Take the first `chars` withheld characters; a split part counts its tokens once."""
        shown: list[TextAdded] = []
        while self._held and (chars > 0 or not self._held[0].text):
            part = self._held.popleft()
            shown.append(replace(part, text=part.text[:chars]))
            if chars < len(part.text):
                self._held.appendleft(replace(part, text=part.text[chars:], tokens=0))
            chars -= min(chars, len(part.text))
        return shown
