"""Going on behind a hosted span: its tokens evaluated on a kept context, against doing just that.

Both sides evaluate the same ids at the same position and take the likeliest next token. Before
each resume both pause, as a relay does while a hosted model thinks: a decode after a pause takes
longer than one in a row, on either side. A streamed span comes at the same pace on both, and only
what follows its last piece is timed; the raw side evaluates each token the moment it is there. No
span is used twice in a row, so nobody can keep what it evaluated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from statistics import median

from benchmarks.chat import Messages, as_turns, fresh_messages, roomy
from benchmarks.measure import Bound, Row, interleaved, ratios
from benchmarks.plan import Plan
from benchmarks.raw import Raw
from langchain_relay.engine.events import Decode, Feed
from langchain_relay.engine.values import LocalSession, Sampling
from langchain_relay.local import LlamaCppModel

BOUND = Bound(1.1, at="most")
STREAMED_BOUND = Bound(1.3, at="most")
BOUND_AT = (2000, 8)
"""Context and span that the bounds are about; at other sizes the rows only report."""

STREAMED_SPAN = 8
PAUSE_S = 0.15
PIECE_S = 0.03
"""Between two streamed pieces: a hosted model at 33 tokens per second."""

WORDS = " the of and to in is that for it as was with be by on not he his but at are this have from"


def measure(plan: Plan) -> list[Row]:
    """Every span length at every context size."""
    n_ctx = roomy(max(plan.contexts) + max(plan.spans))
    rows = []
    with ExitStack() as stack:
        raw = stack.enter_context(Raw(plan.model, n_ctx=n_ctx, n_threads=plan.threads))
        model = stack.enter_context(
            LlamaCppModel(plan.model, n_ctx=n_ctx, n_threads=plan.threads, max_concurrency=1)
        )
        for context in plan.contexts:
            rows += _at(plan, context, raw, model)
    return rows


def _at(plan: Plan, context: int, raw: Raw, model: LlamaCppModel) -> list[Row]:
    messages = _conversation(raw, context)
    session = model.open(as_turns(messages), Sampling(temperature=0)).result()
    try:
        session.decode(Decode()).result()
        raw.prefill(raw.prompt(as_turns(messages)))
        both = _Both(plan, raw, session, session.prompt_tokens)
        rows = [row for span in plan.spans for row in both.whole(span)]
        return [*rows, *both.streamed(STREAMED_SPAN)]
    finally:
        session.close()


def _conversation(raw: Raw, context: int) -> Messages:
    """A prompt of exactly `context` tokens."""
    words = context - len(raw.prompt(as_turns(fresh_messages())))
    messages = fresh_messages(words)
    found = len(raw.prompt(as_turns(messages)))
    assert found == context, f"the prompt has {found} tokens instead of {context}"
    return messages


@dataclass(slots=True)
class _Both:
    """The two sides at one context size; spans are taken back after each resume."""

    plan: Plan
    raw: Raw
    session: LocalSession
    context: int

    def whole(self, span: int) -> list[Row]:
        """The span is there at once."""
        spans = _spans(span)
        first = next(spans)
        self.session.decode(Decode((first,))).result()

        def resumed() -> float:
            return _timed_pause(
                lambda: self.session.decode(Decode((next(spans),), rewind=span)).result()
            )

        rows = self._rows(f"{span}-token span", self._raw_side(span), resumed, span, BOUND)
        self.session.decode(Decode(rewind=span)).result()
        return rows

    def streamed(self, span: int) -> list[Row]:
        """The span comes in pieces; from its last one to the next token, against one decode."""
        spans = _spans(span)
        rewind = 0

        def resumed() -> float:
            nonlocal rewind
            time.sleep(PAUSE_S)
            *pieces, last = _pieces(next(spans))
            for piece in pieces:
                self.session.feed(Feed((piece,), rewind=rewind))
                rewind = 0
                time.sleep(PIECE_S)
            started = time.perf_counter()
            self.session.feed(Feed((last,)))
            self.session.decode(Decode()).result()
            rewind = span
            return time.perf_counter() - started

        name = f"streamed {span}-token span"
        rows = self._rows(name, self._raw_streamed(span), resumed, span, STREAMED_BOUND)
        self.session.decode(Decode(rewind=span)).result()
        return rows

    def _raw_streamed(self, span: int) -> Callable[[], float]:
        spans = _spans(span)

        def resumed() -> float:
            ids = self.raw.vocab.tokenize(next(spans), special=False, first=False)
            self.raw.cut(0, self.context)
            time.sleep(PAUSE_S)
            for at, token in enumerate(ids[:-1], start=self.context):
                self.raw.extend([token], at)
                time.sleep(PIECE_S)
            started = time.perf_counter()
            self.raw.extend(ids[-1:], self.context + span - 1)
            return time.perf_counter() - started

        return resumed

    def _raw_side(self, n: int) -> Callable[[], float]:
        spans = _spans(n)

        def resumed() -> float:
            ids = self.raw.vocab.tokenize(next(spans), special=False, first=False)
            self.raw.cut(0, self.context)
            return _timed_pause(lambda: self.raw.extend(ids, self.context))

        return resumed

    def _rows(
        self,
        name: str,
        raw: Callable[[], float],
        relay: Callable[[], float],
        span: int,
        bound: Bound,
    ) -> list[Row]:
        """Milliseconds of both; each turn is the median of several resumes."""

        def several(one: Callable[[], float]) -> Callable[[], float]:
            return lambda: 1000 * median(one() for _ in range(self.plan.resumes))

        relay()  # both sides once, so that the first round is like the others
        raw()
        at = f"at {self.context} tokens"
        told = self.plan.told
        names = ("raw", "session")
        ms = interleaved(
            dict(zip(names, map(several, (raw, relay)), strict=True)),
            self.plan.rounds,
            lambda turn: told(f"{name} {at}, {turn}"),
        )
        streamed = bound is STREAMED_BOUND
        against = f"raw: {'one decode' if streamed else f'{span} tokens'} {at}"
        facts = {"context_tokens": self.context, "span_tokens": span, "streamed": streamed}
        return [
            Row("resume", against, "ms", ms["raw"], facts={**facts, "side": "raw"}),
            Row(
                "resume",
                f"{name} {at}",
                "ms",
                ms["session"],
                against=against,
                ratios=ratios(ms["session"], ms["raw"]),
                bound=bound if (self.context, span) == BOUND_AT else None,
                facts={**facts, "side": "session"},
            ),
        ]


def _timed_pause(resume: Callable[[], object]) -> float:
    """Seconds of `resume`, after a pause that is not counted."""
    time.sleep(PAUSE_S)
    started = time.perf_counter()
    resume()
    return time.perf_counter() - started


def _pieces(span: str) -> list[str]:
    return [f" {word}" for word in span.split()]


def _spans(n: int) -> Iterator[str]:
    """Spans of `n` tokens; each begins with another one than the last."""
    words = WORDS.split()
    for start in count():
        yield "".join(f" {words[(start + i) % len(words)]}" for i in range(n))
