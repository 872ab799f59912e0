"""RelayLLM: the local model asks for n tokens by writing `<call>n</call>` (arXiv 2601.05167)."""

from __future__ import annotations

from dataclasses import dataclass

from langchain_relay.engine.calls import (
    OPEN_TAG,
    CallFound,
    MalformedCall,
    MaybeCall,
    NoCall,
    scan,
)
from langchain_relay.engine.policy import (
    AnswerContext,
    Finish,
    Handoff,
    Hold,
    Keep,
    Local,
    LocalEnd,
    StepVerdict,
    TurnVerdict,
    Watch,
)
from langchain_relay.engine.values import Rule, SpanEnd, Step
from langchain_relay.policies.bounds import check_bounds
from langchain_relay.policies.watch import LocalWatch

DEFAULT_MAX_SPAN_TOKENS = 256
DEFAULT_MAX_CALLS = 8


@dataclass(frozen=True, slots=True)
class CallTokens:
    """The local model decides when to call and for how many tokens.

    The command stays in the local context and is seen by nobody else. Control returns to the local
    model when the span ends. A malformed command is dropped and the tag banned for the rest of the
    answer.

    Source: RelayLLM, arXiv 2601.05167, section 3.
    """

    max_span_tokens: int | None = DEFAULT_MAX_SPAN_TOKENS
    max_calls: int | None = DEFAULT_MAX_CALLS
    taught: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)

    def watch(self, context: AnswerContext) -> Watch:
        """A fresh watch over one answer."""
        return CommandWatch(end_on_stop=context.end_on_delegate_stop)


class CommandWatch(LocalWatch):
    """Finds commands in local text.

    `n` replaces the number the model wrote; `to_the_end` replaces it by "the rest of the answer".
    """

    command: str | None = OPEN_TAG

    def __init__(
        self, *, n: int | None = None, to_the_end: bool = False, end_on_stop: bool = False
    ) -> None:
        self.rule = Rule()
        self._n = n
        self._to_the_end = to_the_end
        self._end_on_stop = end_on_stop

    def step(self, step: Step, held: str) -> StepVerdict:  # noqa: ARG002 - the text says it all
        """Hold what may become a command; hand over at a complete one."""
        match scan(held):
            case NoCall():
                return Keep()
            case MaybeCall():
                return Hold()
            case CallFound(start, _, n):
                asked = None if self._to_the_end else self._n or n
                return Handoff(asked, cause="command", held="hide", lead=start)
            case MalformedCall(start, _):
                return self._malformed(start)

    def span_end(self, end: SpanEnd) -> TurnVerdict:
        """Back to the local model, unless a hosted `stop` is to end the answer."""
        if end.why == "stop" and end.local_tokens and self._end_on_stop:
            return Finish()
        return super().span_end(end)

    def end(self, why: LocalEnd, held: str) -> TurnVerdict:
        """An unclosed command is malformed; the local model may say it in its own words."""
        at = held.find(OPEN_TAG)
        if at < 0:
            return Finish()
        malformed = self._malformed(at)
        if why == "length":
            return Finish(held="drop", lead=at, denied=malformed.denied)
        return malformed

    def _malformed(self, lead: int) -> Local:
        self.rule = Rule(ban=(OPEN_TAG,))
        return Local(held="drop", lead=lead, denied="malformed")
