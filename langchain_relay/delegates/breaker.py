"""A circuit breaker per base URL: a host that answers nothing is left alone for a while.

Pure state: time is passed in. Success is the response header, behind which an attempt may stream
for a minute, so it must be told in the middle of the attempt. No breaker there is lets one:
pybreaker 1.4.1 holds its lock for the whole call and is asynchronous under Tornado only, aiobreaker
1.2.0 and purgatory 3.0.1 let every caller through while half open and read the wall clock
themselves, and all three know success as the end of the guarded block.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from math import inf

OPENS_AFTER = 5
"""Attempts in a row without a response header that open a breaker."""

OPEN_S = 30.0
"""How long it stays open after the last of them, and the time between two probing attempts."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """What is known of one host.

    Attributes:
        unanswered: Attempts in a row that ended before any response header.
        probe_at: When open: the time from which one attempt may go out. `None`: closed.
        known_at: When it was last heard to answer, or found dead. What was sent before that says
            nothing new: many attempts that hang at once would else open it long after the host is
            back, or keep it open from one late failure to the next.
    """

    unanswered: int = 0
    probe_at: float | None = None
    known_at: float = -inf

    def left_s(self, now: float) -> float:
        """Seconds until an attempt may go out; 0: it may now."""
        return 0.0 if self.probe_at is None else max(0.0, self.probe_at - now)

    def sent(self, now: float) -> Breaker:
        """An attempt goes out; from an open breaker it is the only one for `OPEN_S`."""
        return self if self.probe_at is None else replace(self, probe_at=now + OPEN_S)

    def failed(self, now: float, sent_at: float) -> Breaker:
        """An attempt that was sent at `sent_at` ended before any response header."""
        if sent_at < self.known_at:
            return self
        unanswered = self.unanswered + 1
        if unanswered < OPENS_AFTER:
            return replace(self, unanswered=unanswered)
        return Breaker(unanswered, now + OPEN_S, now)


CLOSED = Breaker()


class Breakers:
    """The breakers of a process, by base URL; safe to share between threads and event loops.

    A delegate without a `base_url` has none.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, Breaker] = {}

    def left_s(self, url: str | None, now: float) -> float:
        """Seconds until an attempt at `url` may go out; 0: it may now."""
        return self._known.get(url or "", CLOSED).left_s(now)

    def send(self, url: str | None, now: float) -> float:
        """Let an attempt out. Returns 0, or, if it may not go, the seconds until one may."""
        with self._lock:
            known = self._known.get(url or "")
            if known is None:
                return 0.0
            if not (left_s := known.left_s(now)):
                self._known[url or ""] = known.sent(now)
            return left_s

    def answered(self, url: str | None, now: float) -> None:
        """A response header came: the host is there."""
        if url:
            with self._lock:
                self._known[url] = Breaker(known_at=now)

    def failed(self, url: str | None, now: float, sent_at: float | None = None) -> None:
        """An attempt, sent at `sent_at` or just now, ended before any response header."""
        if url:
            sent_at = now if sent_at is None else sent_at
            with self._lock:
                self._known[url] = self._known.get(url, CLOSED).failed(now, sent_at)

    def forget(self) -> None:
        """Close every breaker."""
        with self._lock:
            self._known.clear()


BREAKERS = Breakers()
"""Those of this process."""


def key(base_url: object) -> str | None:
    """The name of a host's breaker, from the `base_url` of a delegate."""
    return str(base_url).rstrip("/") if base_url else None
