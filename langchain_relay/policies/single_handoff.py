"""Single hand-off: at its first command the local model leaves the rest to the hosted one."""

from __future__ import annotations

from dataclasses import dataclass

from langchain_relay.engine.policy import AnswerContext, Finish, Handoff, TurnVerdict, Watch
from langchain_relay.engine.values import SpanEnd
from langchain_relay.policies.bounds import check_bounds
from langchain_relay.policies.call_tokens import CommandWatch


@dataclass(frozen=True, slots=True)
class SingleHandoff:
    """The hosted model finishes the answer from the first command on, whatever number it names.

    The cheapest relay in round trips. If a span ends at its length, the hosted model goes on; if
    it fails or is refused, the local model does.

    Source: the idea of PyroDash, arXiv 2607.20327, with the call command as its control token.
    """

    max_span_tokens: int | None = None
    max_calls: int | None = None
    taught: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)

    def watch(self, context: AnswerContext) -> Watch:  # noqa: ARG002 - part of the protocol
        """A fresh watch over one answer."""
        return _HandoffWatch(to_the_end=True)


class _HandoffWatch(CommandWatch):
    def span_end(self, end: SpanEnd) -> TurnVerdict:
        return hosted_to_the_end(end, "command") or super().span_end(end)


def hosted_to_the_end(end: SpanEnd, cause: str) -> TurnVerdict | None:
    """What follows where the hosted model writes all the rest; `None`: it gave the answer back."""
    if end.local_tokens and end.why == "stop":
        return Finish()
    if end.local_tokens and end.why == "length":
        return Handoff(None, cause=cause)
    return None
