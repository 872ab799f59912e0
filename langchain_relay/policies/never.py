"""No hand-overs: the local model alone, with commands banned."""

from __future__ import annotations

from dataclasses import dataclass

from langchain_relay.engine.calls import OPEN_TAG
from langchain_relay.engine.policy import AnswerContext, Watch
from langchain_relay.engine.values import Rule
from langchain_relay.policies.bounds import check_bounds
from langchain_relay.policies.watch import LocalWatch


@dataclass(frozen=True, slots=True)
class Never:
    """The local model writes everything; the call tag is banned in sampling.

    Source: the teacher-free runs of RelayLLM, arXiv 2601.05167, table 4.
    """

    max_span_tokens: int | None = None
    max_calls: int | None = None
    taught: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)

    def watch(self, context: AnswerContext) -> Watch:  # noqa: ARG002 - part of the protocol
        """A fresh watch over one answer."""
        return _NeverWatch()


class _NeverWatch(LocalWatch):
    rule = Rule(ban=(OPEN_TAG,))
