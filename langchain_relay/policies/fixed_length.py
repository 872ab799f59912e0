"""Fixed-length calls: the local model decides only when; n is a constant (RelayLLM, table 5)."""

from __future__ import annotations

from dataclasses import dataclass

from langchain_relay.engine.policy import AnswerContext, Watch
from langchain_relay.errors import UsageMistake
from langchain_relay.policies.bounds import check_bounds
from langchain_relay.policies.call_tokens import (
    DEFAULT_MAX_CALLS,
    DEFAULT_MAX_SPAN_TOKENS,
    CommandWatch,
)


@dataclass(frozen=True, slots=True)
class FixedLength:
    """`CallTokens` with the written number replaced by `span_tokens`.

    The paper retrains the model for each length (20, 100, 500); this is the inference-only variant.

    Raises:
        UsageMistake: `span_tokens` is below 1.

    Source: RelayLLM, arXiv 2601.05167, tables 5 and 6.
    """

    span_tokens: int = 20
    max_span_tokens: int | None = DEFAULT_MAX_SPAN_TOKENS
    max_calls: int | None = DEFAULT_MAX_CALLS
    taught: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.span_tokens < 1:
            msg = f"FixedLength(span_tokens={self.span_tokens}): a span has at least 1 token"
            raise UsageMistake(msg)

    def watch(self, context: AnswerContext) -> Watch:
        """A fresh watch over one answer."""
        return CommandWatch(n=self.span_tokens, end_on_stop=context.end_on_delegate_stop)
