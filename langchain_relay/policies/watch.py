"""The watch that lets the local model write; methods override where they differ."""

from __future__ import annotations

from langchain_relay.engine.policy import (
    Finish,
    Handoff,
    Keep,
    Local,
    LocalEnd,
    PieceVerdict,
    StepVerdict,
    Take,
    TurnVerdict,
)
from langchain_relay.engine.values import FREE, Rule, SpanEnd, Step


class LocalWatch:
    """The local model writes first and to its end; what a hosted model sends is taken whole."""

    rule: Rule = FREE
    command: str | None = None

    def start(self) -> Local | Handoff:
        """The local model."""
        return Local()

    def step(self, step: Step, held: str) -> StepVerdict:  # noqa: ARG002 - part of the protocol
        """Show it."""
        return Keep()

    def piece(self, pending: str, *, last: bool) -> PieceVerdict:  # noqa: ARG002 - as above
        """Take all of it."""
        return Take(len(pending))

    def span_end(self, end: SpanEnd) -> TurnVerdict:
        """Back to the local model: a refused command is dropped, any other stays hidden."""
        return Local(held="drop" if end.why == "refused" else "hide")

    def end(self, why: LocalEnd, held: str) -> TurnVerdict:  # noqa: ARG002 - as above
        """The answer is complete."""
        return Finish()
