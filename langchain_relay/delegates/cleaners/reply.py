"""The stages that a reply goes through, put together."""

from __future__ import annotations

from typing import Protocol

from langchain_relay.delegates.cleaners.echo import Echo
from langchain_relay.delegates.cleaners.fences import Fence
from langchain_relay.delegates.cleaners.markers import Markers
from langchain_relay.delegates.cleaners.openers import Openers


class Reply:
    """Removes from a reply what is no continuation of the draft.

    Args:
        draft: The text shown so far.
        start: Where in it the hosted model saw it begin.

    Attributes:
        restart: The reply starts the answer again.
    """

    def __init__(self, draft: str, start: int = 0) -> None:
        self._draft = draft
        self._start = start
        self._markers = Markers(draft)
        self._echo = Echo(draft, start)
        self._openers = Openers(draft)
        self._fence = Fence(draft)
        self._second: Echo | None = None  # looks for the draft behind an opener or a fence
        self._settled = False

    @property
    def restart(self) -> bool:
        """Whether the reply starts the answer again."""
        return self._echo.restart or (self._second is not None and self._second.restart)

    @property
    def trimmed(self) -> str:
        """What was removed so far."""
        second = self._second.trimmed if self._second else ""
        doubtful = self._openers.doubtful if self._fence.trimmed or second else ""
        stages = self._markers, self._echo, self._openers, self._fence
        first, echo, openers, fence = (stage.trimmed for stage in stages)
        return first + echo + openers + doubtful + fence + second

    def push(self, text: str) -> str:
        """Take a piece; returns what is sure to stay."""
        return self._through(text, final=False)

    def flush(self) -> str:
        """The reply has ended; returns the rest."""
        return self._through("", final=True)

    def _through(self, text: str, *, final: bool) -> str:
        text = _passed(self._markers, text, final=final)
        self._echo.expected = self._markers.opened
        text = _passed(self._echo, text, final=final)
        if self._echo.trimmed:
            return text  # who has repeated the draft goes on with it
        for stage in (self._openers, self._fence):
            text = _passed(stage, text, final=final)
        if self._settled:
            return text
        return self._behind_them(text, final=final)

    def _behind_them(self, text: str, *, final: bool) -> str:
        """Look for the draft behind what was taken out, and decide what was doubtful."""
        openers, fence = self._openers, self._fence
        if openers.trimmed or openers.doubtful or fence.trimmed:
            self._second = self._second or Echo(self._draft, self._start)
            text = _passed(self._second, text, final=final)
        if self.restart or not (text or final):
            return ""
        self._settled = True
        found = fence.trimmed or (self._second and self._second.trimmed)
        return text if found else openers.doubtful + text


class Stage(Protocol):
    """Sees a reply piece by piece, and says what of it is to be shown."""

    def push(self, text: str) -> str:
        """Take a piece; returns what is sure to be shown."""
        ...

    def flush(self) -> str:
        """The reply has ended; returns the rest."""
        ...


def _passed(stage: Stage, text: str, *, final: bool) -> str:
    return stage.push(text) + (stage.flush() if final else "")
