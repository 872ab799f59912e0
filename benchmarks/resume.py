"""Going on behind a hosted span: its tokens evaluated on a kept context, against doing just that.

Both sides evaluate the same ids at the same position and take the likeliest next token. Before
each resume both pause, as a relay does while a hosted model thinks: a decode after a pause takes
longer than one in a row, on either side. A streamed span comes at the same pace on both, and only
what follows its last piece is timed; the raw side evaluates each token the moment it is there. No
span is used twice in a row, so nobody can keep what it evaluated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from statistics import median
from typing import Any

from benchmarks.chat import Messages, as_turns, fresh_messages, local_model, roomy
from benchmarks.measure import Bound, Row, Told, interleaved, ratios
from benchmarks.plan import Plan
from benchmarks.raw import Raw
from benchmarks.worker import Worker
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


def measure(plan: Plan, told: Told) -> Iterator[Row]:
    """Every span length at every context size."""
    with Worker(raw_side, plan) as raw, Worker(session_side, plan) as session:
        for context in plan.contexts:
            messages = raw("conversation", context)
            raw("begin", messages)
            session("begin", messages)
            for span in plan.spans:
                yield from _rows(plan, told, (raw, session), context=context, span=span)
            span = STREAMED_SPAN
            yield from _rows(plan, told, (raw, session), context=context, span=span, streamed=True)


def _rows(
    plan: Plan,
    told: Told,
    workers: tuple[Worker, Worker],
    *,
    context: int,
    span: int,
    streamed: bool = False,
) -> list[Row]:
    """Milliseconds of both sides; each turn is the median of several resumes."""
    what = "streamed" if streamed else "whole"
    raw, session = workers
    sides = {
        "raw": partial(raw, what, span, plan.resumes),
        "session": partial(session, what, span, plan.resumes),
    }
    for side in sides.values():
        side()  # so that the first round is like the others
    name = f"{'streamed ' if streamed else ''}{span}-token span at {context} tokens"
    ms = interleaved(sides, plan.rounds, lambda turn: told(f"{name}, {turn}"))
    against = f"raw: {'last token of the' if streamed else 'the same'} {name}"
    facts = {"context_tokens": context, "span_tokens": span, "streamed": streamed}
    bound = STREAMED_BOUND if streamed else BOUND
    return [
        Row("resume", against, "ms", ms["raw"], facts={**facts, "side": "raw"}),
        Row(
            "resume",
            name,
            "ms",
            ms["session"],
            against=against,
            ratios=ratios(ms["session"], ms["raw"]),
            bound=bound if (context, span) == BOUND_AT else None,
            facts={**facts, "side": "session"},
        ),
    ]


# --- the sides, each opened in its own process ----------------------------------------------------


def _n_ctx(plan: Plan) -> int:
    return roomy(max(plan.contexts) + max(plan.spans))


@contextmanager
def raw_side(plan: Plan) -> Iterator[Callable[..., Any]]:
    """Calls of `RawSide` by name."""
    with Raw(plan.model, n_ctx=_n_ctx(plan), n_threads=plan.threads) as raw:
        side = RawSide(raw)
        yield lambda what, *arguments: getattr(side, what)(*arguments)


@contextmanager
def session_side(plan: Plan) -> Iterator[Callable[..., Any]]:
    """Calls of `SessionSide` by name."""
    with local_model(plan, n_ctx=_n_ctx(plan), max_concurrency=1) as model:
        side = SessionSide(model)
        yield lambda what, *arguments: getattr(side, what)(*arguments)


class RawSide:
    """Spans evaluated behind one prompt, which stays in the KV cache."""

    def __init__(self, raw: Raw) -> None:
        self._raw = raw
        self._context = 0

    def conversation(self, context: int) -> Messages:
        """A prompt of exactly `context` tokens."""
        words = context - len(self._ids(fresh_messages()))
        messages = fresh_messages(words)
        found = len(self._ids(messages))
        assert found == context, f"the prompt has {found} tokens instead of {context}"
        return messages

    def begin(self, messages: Messages) -> None:
        ids = self._ids(messages)
        self._raw.prefill(ids)
        self._context = len(ids)

    def whole(self, span: int, times: int) -> float:
        """Milliseconds to evaluate `span` tokens that are there at once."""
        return _median_ms(self._whole, map(self._span_ids, _spans(span, times)))

    def streamed(self, span: int, times: int) -> float:
        """Milliseconds to evaluate the last of `span` tokens that came one by one."""
        return _median_ms(self._streamed, map(self._span_ids, _spans(span, times)))

    def _whole(self, ids: list[int]) -> float:
        self._raw.cut(0, self._context)
        time.sleep(PAUSE_S)
        started = time.perf_counter()
        self._raw.extend(ids, self._context)
        return time.perf_counter() - started

    def _streamed(self, ids: list[int]) -> float:
        self._raw.cut(0, self._context)
        time.sleep(PAUSE_S)
        for at, token in enumerate(ids[:-1], start=self._context):
            self._raw.extend([token], at)
            time.sleep(PIECE_S)
        started = time.perf_counter()
        self._raw.extend(ids[-1:], self._context + len(ids) - 1)
        return time.perf_counter() - started

    def _ids(self, messages: Messages) -> list[int]:
        return self._raw.prompt(as_turns(messages))

    def _span_ids(self, span: str) -> list[int]:
        ids = self._raw.vocab.tokenize(span, special=False, first=False)
        assert len(ids) == len(_pieces(span)), f"{span!r} has {len(ids)} tokens"
        return ids


class SessionSide:
    """The same on a session of the local model; every span is taken back by the next resume."""

    def __init__(self, model: LlamaCppModel) -> None:
        self._model = model
        self._session: LocalSession | None = None
        self._rewind = 0

    def begin(self, messages: Messages) -> None:
        if self._session is not None:
            self._session.close()
        sampling = Sampling(temperature=0)
        self._session = self._model.open(as_turns(messages), sampling).result()
        self._session.decode(Decode()).result()
        self._rewind = 0

    def whole(self, span: int, times: int) -> float:
        """Milliseconds from the ask with `span` tokens to the next token."""
        return _median_ms(self._whole, _spans(span, times))

    def streamed(self, span: int, times: int) -> float:
        """Milliseconds from the last piece of a span to the next token."""
        return _median_ms(self._streamed, _spans(span, times))

    def _whole(self, span: str) -> float:
        assert self._session is not None
        time.sleep(PAUSE_S)
        started = time.perf_counter()
        self._session.decode(Decode((span,), rewind=self._rewind)).result()
        ended = time.perf_counter()
        self._rewind = len(_pieces(span))
        return ended - started

    def _streamed(self, span: str) -> float:
        assert self._session is not None
        time.sleep(PAUSE_S)
        *pieces, last = _pieces(span)
        for piece in pieces:
            self._session.feed(Feed((piece,), rewind=self._rewind))
            self._rewind = 0
            time.sleep(PIECE_S)
        started = time.perf_counter()
        self._session.feed(Feed((last,)))
        self._session.decode(Decode()).result()
        ended = time.perf_counter()
        self._rewind = len(pieces) + 1
        return ended - started


def _median_ms(one: Callable[[Any], float], spans: Iterable[Any]) -> float:
    return 1000 * median(one(span) for span in spans)


_starts = count()


def _spans(n: int, times: int) -> list[str]:
    """Spans of `n` tokens; each begins with another one than the last."""
    words = WORDS.split()
    return [
        "".join(f" {words[(start + i) % len(words)]}" for i in range(n))
        for start in islice(_starts, times)
    ]


def _pieces(span: str) -> list[str]:
    return [f" {word}" for word in span.split()]
