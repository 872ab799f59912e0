"""What providers report themselves, as far as it can be, and how old a price is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import date
from typing import Any

from langchain_relay.engine.money import dollars
from langchain_relay.engine.values import Usage
from langchain_relay.prices.price import nanousd

_AS_OF = re.compile(r"as of (\d{4}-\d{2}-\d{2})$")


def reported_nanousd(cost_usd: str) -> int:
    """Nano-dollars of a cost that a provider itself reports, rounded up.

    Raises:
        ValueError: no amount of money.
    """
    try:
        return nanousd(dollars(cost_usd))
    except ValueError as error:
        raise ValueError(f"a provider reported the cost {cost_usd!r}, which {error}") from error


def reported_cost(metadata: Mapping[str, Any]) -> Any:
    """What a LangChain message's `response_metadata` says a request cost, in US dollars.

    `cost` is langchain-openrouter's, `token_usage.cost` what ChatOpenAI passes on of OpenRouter's
    reply. langchain-litellm's `response_cost` is no provider's: see `litellms_cost`.
    """
    usage = metadata.get("token_usage")
    within = usage.get("cost") if isinstance(usage, Mapping) else None
    return within if metadata.get("cost") is None else metadata["cost"]


def litellms_cost(metadata: Mapping[str, Any]) -> Any:
    """What LiteLLM reckons by its own table a request cost, in US dollars."""
    return metadata.get("response_cost")


def reported_usage(usage: Usage | None) -> Usage | None:
    """What a provider counted; `None` if it cannot be: no prompt is empty.

    Taken at its word an empty one would be free, and counts below 0 would give money back. Those
    of the whole input or output are none at all, those of a part are left out.
    """
    if usage is None or not (_counts(usage.input_tokens) and _counts(usage.output_tokens)):
        return None
    if usage.input_tokens == 0:
        return None
    wrong: dict[str, Any] = {
        name: None
        for name in _PARTS
        if (part := getattr(usage, name)) is not None and not _counts(part)
    }
    return replace(usage, **wrong) if wrong else usage


def _counts(count: Any) -> bool:  # hosts put anything there
    return isinstance(count, int) and count >= 0


_PARTS = tuple(part.name for part in fields(Usage))[2:]


def with_age(source: str, today: date) -> str:
    """A price's source with its age in days, where it has a date: `user, as of … (3 days old)`."""
    found = _AS_OF.search(source)
    if found is None:
        return source
    days = (today - date.fromisoformat(found[1])).days
    return f"{source} ({days} {'day' if days == 1 else 'days'} old)"
