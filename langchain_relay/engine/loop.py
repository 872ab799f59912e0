"""The relay: a generator that turns a policy's verdicts into asks and reports what happened.

This is the whole algorithm. It holds no policy: RelayLLM, RelayGen, single hand-off and fixed
length are watches over this loop. It reads no clock and talks to nobody; a driver answers its asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, assert_never

from langchain_relay.engine.errors import LedgerError, Offline
from langchain_relay.engine.events import (
    Ask,
    Call,
    CallDenied,
    CallFailed,
    Event,
    Finished,
    FinishWhy,
    Hangup,
    Pull,
    SpanClosed,
    SpanOpened,
    TextAdded,
)
from langchain_relay.engine.policy import (
    Cut,
    Finish,
    Handoff,
    Held,
    Hold,
    Keep,
    Local,
    PieceVerdict,
    TurnVerdict,
    Watch,
)
from langchain_relay.engine.tokens import TokenTally, fitting_chars
from langchain_relay.engine.transcript import Transcript
from langchain_relay.engine.values import (
    Counter,
    EndWhy,
    Opened,
    Rule,
    SpanEnd,
    SpanPiece,
    SpanRequest,
    Step,
)

Answer = Step | Opened | SpanPiece | SpanEnd | None
Flow = Generator[Ask | Event, Answer, None]
TurnFlow = Generator[Ask | Event, Answer, TurnVerdict]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one answer may use.

    Attributes:
        max_tokens: Visible answer, both writers together, in local-vocabulary tokens.
        context_left: Tokens that fit behind the prompt; hidden commands count here too.
        max_calls: Hand-overs of this answer; `None`: no limit; 0: never.
        max_span_tokens: Bound of a span's n; `None`: no bound.
        stop: Strings that end the answer, matched on the user's view.
        on_refusal: What a budget's refusal does: go on locally, raise its error, or end the answer.
        on_failure: What a failed hand-over does: go on locally, or raise its error.
    """

    max_tokens: int
    context_left: int
    max_calls: int | None = None
    max_span_tokens: int | None = None
    stop: tuple[str, ...] = ()
    on_refusal: Literal["continue", "raise", "stop"] = "continue"
    on_failure: Literal["continue", "raise"] = "continue"


def relay(watch: Watch, bounds: Bounds, *, count: Counter, answer_id: str = "answer") -> Flow:
    """Write one answer.

    Yields asks, to be answered with `send`, and events, to be answered with `None`.

    Args:
        watch: The policy's watch over this answer.
        bounds: What the answer may use.
        count: Counts tokens of a text in the local vocabulary.
        answer_id: Prefix of this answer's call ids.

    Raises:
        BudgetExceeded: a budget refused and `on_refusal="raise"`.
        DelegateError: a hand-over failed and `on_failure="raise"`.
    """
    return _Relay(watch, bounds, Transcript(bounds.stop, count), answer_id).run()


class _Relay:
    """One answer: verdicts in, asks and events out."""

    def __init__(self, watch: Watch, bounds: Bounds, text: Transcript, answer_id: str) -> None:
        self.watch = watch
        self.bounds = bounds
        self.text = text
        self.answer_id = answer_id
        self.calls = 0
        self.denials = 0
        self.refused = False
        self.at_end = False  # the last thing the local model said was its end token
        self.full = False  # max_tokens or the context is reached

    def run(self) -> Flow:
        verdict: TurnVerdict = self.watch.start()
        while not isinstance(verdict, Finish):
            match verdict:
                case Local():
                    verdict = yield from self._write(verdict)
                case Handoff():
                    verdict = yield from self._hand_over(verdict)
                case _:
                    assert_never(verdict)
            if self._over and not isinstance(verdict, Finish):
                verdict = Finish(held="drop")
        yield from self._deny(verdict.denied)
        yield from self.text.settle_held(verdict.held, verdict.lead)
        yield from self.text.screen.flush()
        if rest := self.text.rest():
            yield rest
        yield Finished(self._why(verdict))

    @property
    def _over(self) -> bool:
        return self.full or self.text.screen.hit

    def _why(self, verdict: Finish) -> FinishWhy:
        if self.text.screen.hit:
            return "stop"
        return "length" if self.full else verdict.why

    # --- the local model writes -----------------------------------------------------------------

    def _write(self, local: Local) -> TurnFlow:
        yield from self._deny(local.denied)
        yield from self.text.settle_held(local.held, local.lead)
        yield from self.text.insert(local.insert, local.aside)
        while not self._over:
            if self._room() <= 0:
                return self._at_bound()
            step = yield self.text.decode(self._rule())
            assert isinstance(step, Step), "a driver answers Decode with a Step"
            if step.eog:
                return self._at_end()
            self.at_end = False
            self.text.take(step)
            verdict = self.watch.step(step, self.text.held_text)
            match verdict:
                case Keep():
                    yield from self.text.settle_held("show")
                case Hold():
                    self.text.hold(step)
                case Local() | Handoff() | Finish():
                    return verdict
                case _:
                    assert_never(verdict)
        return Finish()

    def _rule(self) -> Rule:
        rule, command = self.watch.rule, self.watch.command
        if command and not self._calls_left and command not in rule.ban:
            return _banning(rule, command)
        return rule

    def _room(self) -> int:
        """Tokens that may still be written, the held ones counted as though they were shown."""
        visible = self.bounds.max_tokens - self.text.visible_tokens - len(self.text.held)
        return min(visible, self.context_room())

    def context_room(self) -> int:
        return self.bounds.context_left - self.text.context_tokens - self.text.pending_tokens

    def _at_bound(self) -> Finish:
        """`max_tokens` or the context is reached; the policy says what the held tokens are."""
        self.full = True
        if not self.text.held:
            return Finish()
        return _final(self.watch.end("length", self.text.held_text))

    def _at_end(self) -> TurnVerdict:
        """The local model ended its turn; the policy says what follows."""
        if self.at_end:
            # Twice without a token in between: it would say so for ever.
            return Finish(held="drop")
        self.at_end = True
        verdict = self.watch.end("stop", self.text.held_text)
        if isinstance(verdict, Handoff) and not self._calls_left:
            return _final(verdict)
        return verdict

    # --- the hosted model writes ----------------------------------------------------------------

    @property
    def _calls_left(self) -> bool:
        limit = self.bounds.max_calls
        return not self.refused and (limit is None or self.calls < limit)

    def _hand_over(self, handoff: Handoff) -> TurnFlow:
        if not self._calls_left:
            return Local(held=_without_span(handoff.held), lead=handoff.lead)
        yield from self.text.show_lead(handoff.lead)
        ask = self._request(handoff)
        if ask.max_tokens <= 0:
            self.full = True
        if self._over:
            return _final(handoff)
        opened = yield Call(ask)
        if isinstance(opened, SpanEnd):
            self.denials += 1
            why = _refused_by(opened.error)
            yield CallDenied(ask.call_id, why, ask.max_tokens, ask.requested_n, opened.error)
            return self._on_refusal(opened)
        assert isinstance(opened, Opened), "a driver answers Call with Opened or SpanEnd"
        self.calls += 1
        yield SpanOpened(ask, opened.model, opened.max_tokens)
        end = yield from self._pull_span(handoff, ask, opened)
        return (yield from self._close_span(ask, opened, end))

    def _request(self, handoff: Handoff) -> SpanRequest:
        held = self.text.held if handoff.held == "show" else []
        left = min(
            self.bounds.max_tokens - self.text.visible_tokens - len(held),
            # The last held token is not in the context yet.
            self.context_room() - 1,
        )
        bounds = (handoff.max_tokens, self.bounds.max_span_tokens)
        return SpanRequest(
            call_id=f"{self.answer_id}:{self.calls + self.denials + 1}",
            draft=self.text.draft + (self.text.unshown_text if held else "") + handoff.insert,
            max_tokens=min([left, *(bound for bound in bounds if bound is not None)]),
            requested_n=handoff.max_tokens,
            stop=(*handoff.stop, *self.bounds.stop),
            cause=handoff.cause,
        )

    def _pull_span(
        self, handoff: Handoff, ask: SpanRequest, opened: Opened
    ) -> Generator[Ask | Event, Answer, SpanEnd]:
        """Hosted pieces through the watch, onto the screen and into the local context."""
        span = _Span(self, handoff, ask.call_id, opened.model)
        while True:
            got = yield Pull()
            if isinstance(got, SpanPiece):
                span.add(got)
            verdict = self.watch.piece(span.pending, last=isinstance(got, SpanEnd))
            yield from span.take(verdict.chars)
            if why := self._enough(verdict):
                got = got if isinstance(got, SpanEnd) else (yield Hangup(why))
            if isinstance(got, SpanEnd):
                return replace(got, local_tokens=max(span.tokens, int(bool(span.text))))

    def _enough(self, verdict: PieceVerdict) -> EndWhy | None:
        if self.full:
            return "length"
        return "cut" if self._over or isinstance(verdict, Cut) else None

    def _close_span(self, ask: SpanRequest, opened: Opened, end: SpanEnd) -> TurnFlow:
        model = end.model or opened.model
        if end.why in ("failed", "truncated", "refused"):
            yield CallFailed(ask, model, opened.max_tokens, end)
            if end.why == "refused":
                return self._on_refusal(end)
            if self.bounds.on_failure == "raise" and end.error is not None:
                raise end.error
        else:
            declined = end.local_tokens == 0
            yield SpanClosed(ask, model, opened.max_tokens, end, declined)
        verdict = self.watch.span_end(end)
        if end.local_tokens:
            self.at_end = False  # there is something new to go on from
        elif isinstance(verdict, Handoff):
            # Nothing came: asking again at once could go on for ever, and cost each time.
            return Local(held="hide", lead=verdict.lead)
        return verdict

    def _on_refusal(self, end: SpanEnd) -> TurnVerdict:
        self.refused = True
        then = self.bounds.on_refusal
        if isinstance(end.error, Offline):  # a failure of the hosted side, not one of money
            then = self.bounds.on_failure
        elif isinstance(end.error, LedgerError):  # a store that is away ends nobody's answer
            then = "continue"
        if then == "raise" and end.error is not None:
            raise end.error
        verdict = self.watch.span_end(end)
        if then == "continue":
            return verdict
        return replace(_final(verdict), why="budget")

    def _deny(self, reason: str | None) -> Generator[Event, Answer, None]:
        if reason is not None:
            self.denials += 1
            yield CallDenied(f"{self.answer_id}:{self.calls + self.denials}", reason)


class _Span:
    """The text of one open hand-over."""

    def __init__(self, relay: _Relay, handoff: Handoff, call_id: str, model: str) -> None:
        self.relay = relay
        self.handoff = handoff
        self.call_id = call_id
        self.model = model
        self.text = ""
        self.tokens = 0
        self.pending = ""
        """Text that the policy has not taken yet."""
        self.writers: deque[tuple[str, int]] = deque()  # of the pending text: model, characters
        self.tally = TokenTally(relay.text.count)

    def add(self, piece: SpanPiece) -> None:
        """Text arrived; in the middle of a span another model may have taken over."""
        model, chars = piece.model or self.model, len(piece.text)
        if self.writers and self.writers[-1][0] == model:
            chars += self.writers.pop()[1]
        self.writers.append((model, chars))
        self.pending += piece.text

    def take(self, chars: int) -> Generator[Ask | Event, Answer, None]:
        """Take the first `chars` pending characters, each in the name of who wrote it."""
        text, self.pending = self.pending[:chars], self.pending[chars:]
        while text:
            model, wrote = self.writers.popleft()
            if len(text) < wrote:
                self.writers.appendleft((model, wrote - len(text)))
            yield from self._write(text[:wrote], model)
            text = text[wrote:]

    def _write(self, text: str, model: str) -> Generator[Ask | Event, Answer, None]:
        """Put hosted text into the answer and into the local context, within the bounds."""
        if not text:
            return
        transcript = self.relay.text
        if not self.text:
            yield from transcript.settle_held(self.handoff.held, self.handoff.lead)
            yield from transcript.insert(self.handoff.insert)
        text = self._within_bounds(text)
        if not text:
            return
        before, self.tokens = self.tokens, self.tally.add(text)
        self.text += text
        new_tokens = self.tokens - before
        yield from transcript.show(TextAdded(text, "delegate", new_tokens, self.call_id, model))
        if not transcript.screen.hit:
            yield transcript.feed(text, new_tokens)

    def _within_bounds(self, text: str) -> str:
        """Cut `text` where `max_tokens` or the context ends; then the answer is full."""
        relay, transcript = self.relay, self.relay.text
        room = min(relay.bounds.max_tokens - transcript.visible_tokens, relay.context_room() - 1)

        def added_tokens(prefix: str) -> int:
            return transcript.count(self.text + prefix) - self.tokens

        # A token is at least one byte, so most pieces cannot reach the bound and need no counting.
        if len(text.encode(errors="replace")) <= room or added_tokens(text) <= room:
            return text
        relay.full = True
        return text[: fitting_chars(text, room, added_tokens)]


@lru_cache(maxsize=64)
def _banning(rule: Rule, command: str) -> Rule:
    """`rule` with `command` banned; the same object each time, which is fast to compare."""
    return replace(rule, ban=(*rule.ban, command))


def _without_span(held: Held) -> Held:
    """What becomes of tokens that a span was to follow, if there is none.

    A command leaves no trace; text that hosted text was to replace is shown after all.
    """
    return "drop" if held == "hide" else "show"


def _refused_by(error: Exception | None) -> str:
    if isinstance(error, LedgerError):
        return "ledger"
    return "offline" if isinstance(error, Offline) else "budget"


def _final(verdict: TurnVerdict) -> Finish:
    """What `verdict` means for the held tokens when nobody writes any more."""
    if isinstance(verdict, Handoff):
        return Finish(held=_without_span(verdict.held), lead=verdict.lead)
    return Finish(held=verdict.held, lead=verdict.lead, denied=verdict.denied)
