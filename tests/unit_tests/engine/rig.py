"""Runs the loop on scripted steps and spans, and writes down what comes out.

A hosted script is a list of spans; a span is a list of pieces that ends with a `SpanEnd`'s why
(`"stop"`, `"length"`, `"failed"`, ...). The span `"refused"` refuses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from langchain_relay.engine.drivers import drive
from langchain_relay.engine.errors import BudgetExceeded, DelegateError
from langchain_relay.engine.events import (
    CallDenied,
    CallFailed,
    CommandHidden,
    Event,
    Finished,
    SpanClosed,
    SpanOpened,
    TextAdded,
)
from langchain_relay.engine.loop import Bounds, relay
from langchain_relay.engine.policy import AnswerContext, Policy
from langchain_relay.engine.values import (
    EndWhy,
    Opened,
    Sampling,
    SpanEnd,
    SpanPiece,
    SpanRequest,
    Turn,
)
from langchain_relay.testing import ScriptedLocal

REFUSAL = BudgetExceeded(unit="usd", needed=2, left=1, limit=1)
FAILURE = DelegateError("the host is gone")


@dataclass
class ScriptedSource:
    """A `SpanSource` that plays spans; the async half plays the same."""

    spans: Sequence[Sequence[str] | str]
    requests: list[SpanRequest] = field(default_factory=list)
    hangups: list[str] = field(default_factory=list)
    closed: int = 0
    _pieces: Iterator[str] = field(default_factory=lambda: iter(()))

    def open(self, request: SpanRequest) -> Opened | SpanEnd:
        self.requests.append(request)
        span = self.spans[min(len(self.requests), len(self.spans)) - 1]
        if span == "refused":
            return SpanEnd("refused", error=REFUSAL)
        self._pieces = iter(span)
        return Opened("hosted", request.max_tokens)

    def pull(self) -> SpanPiece | SpanEnd:
        piece = next(self._pieces)
        if piece in ("stop", "length", "failed", "truncated", "refused"):
            why: EndWhy = piece  # type: ignore[assignment]  # narrowed by the line above
            error = {"failed": FAILURE, "truncated": FAILURE, "refused": REFUSAL}.get(piece)
            return SpanEnd(why, error=error)
        return SpanPiece(piece)

    def hangup(self, why: EndWhy) -> SpanEnd:
        self.hangups.append(why)
        return SpanEnd(why)

    def close(self) -> SpanEnd | None:
        self.closed += 1
        return None

    async def aopen(self, request: SpanRequest) -> Opened | SpanEnd:
        return self.open(request)

    async def apull(self) -> SpanPiece | SpanEnd:
        return self.pull()

    async def ahangup(self, why: EndWhy) -> SpanEnd:
        return self.hangup(why)

    async def aclose(self) -> SpanEnd | None:
        return self.close()


@dataclass
class Played:
    """One answer, written down."""

    events: list[Event]
    local: ScriptedLocal
    source: ScriptedSource

    @property
    def text(self) -> str:
        return "".join(e.text for e in self.events if isinstance(e, TextAdded))

    @property
    def context(self) -> str:
        """The local context behind the prompt."""
        return self.local.contexts[-1]

    @property
    def log(self) -> list[str]:
        """Events, one line each; adjacent text of one author is joined."""
        lines: list[str] = []
        for event in self.events:
            line = _line(event)
            if lines and isinstance(event, TextAdded) and lines[-1].startswith(f"{event.author}:"):
                lines[-1] += event.text
            else:
                lines.append(line)
        return lines


def _line(event: Event) -> str:
    match event:
        case TextAdded(text, author):
            return f"{author}:{text}"
        case CommandHidden(text, offset):
            return f"hidden@{offset}:{text}"
        case SpanOpened(request, _, n):
            return f"opened n={n} draft={request.draft!r}"
        case SpanClosed(_, _, _, end, declined):
            return f"closed {end.why}{' declined' if declined else ''}"
        case CallDenied(_, reason):
            return f"denied {reason}"
        case CallFailed(_, _, _, end):
            return f"failed {end.why}"
        case Finished(why):
            return f"finished {why}"


def bounds(**changes: object) -> Bounds:
    settings: dict[str, object] = {"max_tokens": 1000, "context_left": 4000, **changes}
    return Bounds(**settings)  # type: ignore[arg-type]  # a test's shorthand


def play(
    policy: Policy,
    pieces: Sequence[str],
    spans: Sequence[Sequence[str] | str] = (),
    *,
    thinking: bool = False,
    end_on_delegate_stop: bool = False,
    **limits: object,
) -> Played:
    """Write one answer with `policy` over scripted steps and spans."""
    local = ScriptedLocal(*pieces, thinking=thinking)
    source = ScriptedSource(spans)
    session = local.open([Turn("user", "?")], Sampling()).result()
    context = AnswerContext(session.count, thinking, end_on_delegate_stop)
    limits = {"max_calls": policy.max_calls, "max_span_tokens": policy.max_span_tokens, **limits}
    flow = relay(policy.watch(context), bounds(**limits), count=session.count)
    events = list(drive(flow, session, source))
    return Played(events, local, source)
