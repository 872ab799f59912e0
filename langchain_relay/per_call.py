"""What holds for one call: the model's fields, where the call does not give its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.messages import BaseMessage

from langchain_relay.budget import Allowance, Budget
from langchain_relay.checks import SAMPLING, budgets, stop_strings
from langchain_relay.engine.loop import Bounds
from langchain_relay.engine.policy import Policy
from langchain_relay.engine.values import LocalModel, Sampling, Turn
from langchain_relay.messages import turns
from langchain_relay.policies import Always, Never
from langchain_relay.teaching import FEW_SHOT

if TYPE_CHECKING:
    from langchain_relay.chat_models import RelayChatModel

Delegation = Literal["auto", "never", "always"]
"""Whether the hosted model takes part: as the policy says, not at all, or from the start."""

_NO_BOUND = 2**62


@dataclass(frozen=True, slots=True)
class CallSettings:
    """What holds for one call.

    Attributes:
        policy: Who writes next.
        sampling: How the local model samples.
        bounds: What the answer may use; what its context has left comes with the lease.
        budgets: The model's, then the call's.
        taught: The prompt teaches the call command.
        model: A local model for this call alone; `None`: the model's own.
        hosted_model: Another name for the hosted model; `None`: its own.
    """

    policy: Policy
    sampling: Sampling
    bounds: Bounds
    budgets: tuple[Budget | Allowance, ...]
    taught: bool
    model: str | Path | LocalModel | None
    hosted_model: str | None

    def local_view(self, messages: Sequence[BaseMessage]) -> tuple[Turn, ...]:
        """The conversation as the local model sees it."""
        shown = turns(messages)
        return tuple(FEW_SHOT.teach(shown) if self.taught else shown)


def settled(
    relay: RelayChatModel, stop: list[str] | None, kwargs: Mapping[str, Any]
) -> CallSettings:
    """The fields of `relay`, and of `kwargs` what was given for this call.

    Raises:
        UsageMistake: `budget` is none.
    """
    delegation: Delegation = kwargs.get("delegation") or "auto"
    policy = {"auto": relay.policy, "never": Never(), "always": Always()}[delegation]
    teaches = relay.teach == "few_shot" or (relay.teach == "auto" and relay.adapter is None)
    return CallSettings(
        policy=policy,
        sampling=Sampling(**{name: kwargs.get(name, getattr(relay, name)) for name in SAMPLING}),
        bounds=_bounds(relay, policy, stop, kwargs),
        budgets=(*budgets(relay.budget), *budgets(kwargs.get("budget"))),
        taught=teaches and policy.taught,
        model=kwargs.get("model"),
        hosted_model=kwargs.get("delegate_model"),
    )


def _bounds(
    relay: RelayChatModel, policy: Policy, stop: list[str] | None, kwargs: Mapping[str, Any]
) -> Bounds:
    max_tokens = kwargs.get("max_tokens", relay.max_tokens)
    calls = policy.max_calls if relay.max_calls is None else relay.max_calls
    span_tokens = policy.max_span_tokens if relay.max_span_tokens is None else relay.max_span_tokens
    return Bounds(
        max_tokens=_NO_BOUND if max_tokens is None else max_tokens,
        context_left=_NO_BOUND,
        max_calls=0 if kwargs.get("delegation") == "never" else calls,
        max_span_tokens=span_tokens,
        stop=stop_strings(relay.stop if stop is None else stop),
        on_refusal=relay.on_budget,
        on_failure=relay.on_delegate_error,
    )
