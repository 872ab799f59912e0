"""The hosted model writes the whole answer: the upper end of every comparison."""

from __future__ import annotations

from dataclasses import dataclass

from langchain_relay.engine.calls import OPEN_TAG
from langchain_relay.engine.policy import AnswerContext, Handoff, Local, TurnVerdict, Watch
from langchain_relay.engine.values import Rule, SpanEnd
from langchain_relay.policies.bounds import check_bounds
from langchain_relay.policies.single_handoff import hosted_to_the_end
from langchain_relay.policies.watch import LocalWatch


@dataclass(frozen=True, slots=True)
class Always:
    """The hosted model writes from the first token to the last, under all budgets.

    The local model writes only where the hosted one is refused or fails.
    """

    max_span_tokens: int | None = None
    max_calls: int | None = None
    taught: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)

    def watch(self, context: AnswerContext) -> Watch:  # noqa: ARG002 - part of the protocol
        """A fresh watch over one answer."""
        return _AlwaysWatch()


class _AlwaysWatch(LocalWatch):
    rule = Rule(ban=(OPEN_TAG,))

    def start(self) -> Local | Handoff:
        return Handoff(None, cause="always")

    def span_end(self, end: SpanEnd) -> TurnVerdict:
        return hosted_to_the_end(end, "always") or super().span_end(end)
