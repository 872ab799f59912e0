"""The relay in an agent's model, and what the model is bound to."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.configurable import RunnableConfigurableFields

from langchain_relay.chat_models import RelayChatModel
from langchain_relay.errors import UsageMistake


def relay_in(model: Any) -> RelayChatModel | None:
    """The relay that `model` is or, bound to settings, to a config or to retries, has in it.

    Raises:
        UsageMistake: there is one among fallbacks, where the others do not know of budgets.
    """
    while isinstance(model, RunnableBindingBase | RunnableConfigurableFields):
        model = model.bound if isinstance(model, RunnableBindingBase) else model.default
    if isinstance(model, RunnableWithFallbacks) and any(map(relay_in, model.runnables)):
        raise UsageMistake(
            "RelayBudgetMiddleware cannot limit a model .with_fallbacks(); give the agent the "
            "relay and use ModelFallbackMiddleware, or a FallbackDelegate in the relay"
        )
    return model if isinstance(model, RelayChatModel) else None


def bound_to(model: Any) -> dict[str, Any]:
    """What `.bind()` gave it; the outermost wins."""
    bound: dict[str, Any] = {}
    while isinstance(model, RunnableBindingBase):
        bound = {**model.kwargs, **bound}
        model = model.bound
    return bound
