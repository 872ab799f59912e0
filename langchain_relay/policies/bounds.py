"""The check of the bounds every policy has."""

from __future__ import annotations

from langchain_relay.engine.policy import Policy
from langchain_relay.errors import UsageMistake


def check_bounds(policy: Policy) -> None:
    """Refuse bounds that no hand-over could keep.

    Raises:
        UsageMistake: `max_span_tokens` is below 1, or `max_calls` is negative.
    """
    name = type(policy).__name__
    if policy.max_span_tokens is not None and policy.max_span_tokens < 1:
        raise UsageMistake(
            f"{name}(max_span_tokens={policy.max_span_tokens}): at least 1; max_calls=0 means never"
        )
    if policy.max_calls is not None and policy.max_calls < 0:
        raise UsageMistake(f"{name}(max_calls={policy.max_calls}): not negative; 0 means never")
