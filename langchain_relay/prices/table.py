"""Prices of genai-prices: by provider, model, base URL, date, service tier and batch.

Nothing is fetched: the package carries its data. Who wants newer data runs its `UpdatePrices`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any

from langchain_relay.engine.values import Usage
from langchain_relay.prices.price import nanousd

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import Provider


@dataclass(frozen=True, slots=True)
class TablePrice:
    """A price from genai-prices; thresholds and dates are the table's.

    Attributes:
        model: The model's name, as asked for.
        provider_id: Whose price it is.
        source: See `Price.source`.
        context: What selects a variant: `service_tier`, `processing`, `speed`.
        at: When the request was sent; `None`: now.
    """

    model: str
    provider_id: str
    source: str
    context: Mapping[str, str] = field(default_factory=dict)
    at: datetime | None = None

    def cost_nanousd(self, usage: Usage) -> int:
        """See `Price.cost_nanousd`."""
        cached = {
            "cache_read_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "cache_write_1h_tokens": usage.cache_write_1h_tokens,
        }
        rest = {
            "output_reasoning_tokens": usage.reasoning_tokens,
            "input_audio_tokens": usage.input_audio_tokens,
            "output_audio_tokens": usage.output_audio_tokens,
        }
        for details in ({**cached, **rest}, cached):
            with suppress(ValueError):  # more cached than input tokens, for example
                return self._nanousd(usage.input_tokens, usage.output_tokens, details)
        return self._nanousd(usage.input_tokens, usage.output_tokens, {})

    def worst_nanousd(self, input_tokens: int, output_tokens: int) -> int:
        """See `Price.worst_nanousd`. A tier that is asked for may be served at the standard one."""
        read: tuple[dict[str, int | None], ...] = (
            {},
            {"cache_read_tokens": input_tokens},
            {"cache_write_tokens": input_tokens},
            {"cache_write_tokens": input_tokens, "cache_write_1h_tokens": input_tokens},
        )
        wrote: tuple[dict[str, int | None], ...] = ({}, {"output_reasoning_tokens": output_tokens})
        contexts = [self.context, {}] if self.context else [{}]
        return max(
            self._nanousd(input_tokens, output_tokens, {**one, **other}, context)
            for one, other, context in product(read, wrote, contexts)
        )

    def _nanousd(
        self,
        input_tokens: int,
        output_tokens: int,
        details: Mapping[str, int | None],
        context: Mapping[str, str] | None = None,
    ) -> int:
        import genai_prices

        told = {name: count for name, count in details.items() if count}
        usage = genai_prices.Usage(input_tokens=input_tokens, output_tokens=output_tokens, **told)
        price = genai_prices.calc_price(
            usage,
            self.model,
            provider_id=self.provider_id,
            genai_request_timestamp=self.at,
            price_context=self.context if context is None else context,
        )
        return nanousd(price.total_price)


def table_price(
    model: str,
    provider: str | None,
    base_url: str | None,
    context: Mapping[str, str],
    at: datetime | None = None,
) -> TablePrice | None:
    """The table's price, or `None` if it has none.

    A zero in the table is unknown too: 205 models of genai-prices 0.2.3 stand in it without a
    price of tokens.
    """
    try:
        found, _ = _table().find_provider_model(model, _whose(provider, base_url), None, None)
    except LookupError:
        return None
    price = TablePrice(model, found.id, table_source(), context, at)
    known = price.worst_nanousd(1_000, 0) > 0 and price.worst_nanousd(0, 1_000) > 0
    return price if known else None


def provider_id(provider: str | None, base_url: str | None = None) -> str | None:
    """Whose models these are, as the table calls it; `None` if it does not know."""
    whose = _whose(provider, base_url)
    return whose.id if whose else None


def table_source() -> str:
    """Which table it is, and how old, as far as the package tells.

    Data that was fetched has its time. The data in the package has none; its newest price with a
    date says since when it was kept up at least.
    """
    import genai_prices

    table = _table()
    name = f"genai-prices {genai_prices.__version__}"
    if table.from_auto_update:
        return f"{name}, fetched, as of {table.timestamp.date().isoformat()}"
    newest = _newest_date(id(table))
    return f"{name}, newest dated price as of {newest.isoformat()}" if newest else name


def _table() -> DataSnapshot:
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot()


def _whose(provider: str | None, base_url: str | None) -> Provider | None:
    with suppress(LookupError):
        # An address says more than a name: gateways and deployments keep the provider's class.
        if base_url is not None:
            return _table().find_provider(None, None, base_url)
        if provider is not None:
            return _table().find_provider(None, provider, None)
    return None


@cache
def _newest_date(_table_id: int) -> date | None:
    """The latest day on which a price of the table began, of those that are not yet to come."""
    days = [
        day
        for provider in _table().providers
        for model in provider.models
        for dated in _dated(model)
        if (day := getattr(dated.constraint, "start_date", None)) is not None
    ]
    return max((day for day in days if day <= datetime.now().astimezone().date()), default=None)


def _dated(model: Any) -> list[Any]:
    prices = model.prices if isinstance(model.prices, list) else []
    return [*prices, *(model.price_variants or ())]
