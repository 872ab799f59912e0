"""What tokens cost: the user's prices first, then the table of genai-prices, else unknown.

Decimal inside, integer nano-dollars out, rounded up. Nothing is fetched: genai-prices carries its
data, and is imported on the first look-up that needs it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

from langchain_relay.engine.errors import NANOUSD_PER_USD
from langchain_relay.engine.values import Usage
from langchain_relay.errors import UsageMistake

__all__ = ["Price", "PriceBook", "UsdPerMillion", "reported_nanousd"]

UsdPerMillion = Decimal | int | float | str
"""US dollars per million tokens."""

_NANOUSD_PER_TOKEN = Decimal(NANOUSD_PER_USD) / Decimal(10**6)
"""Nano-dollars per token at a price of 1 US dollar per million tokens."""

_LOWEST_PLAUSIBLE_USD_PER_MTOK = Decimal("0.0001")
"""Below this a price was surely entered per token: the cheapest of genai-prices 0.2.3 is 0.003."""

_LENGTHS = (2, 3, 4)
"""Prices of (input, output), then of cached input, then of input that is written to a cache."""


class Price(Protocol):
    """What one model costs."""

    @property
    def source(self) -> str:
        """Where the price comes from, for example `user` or `genai-prices 0.2.3`."""
        ...

    def cost_nanousd(self, usage: Usage) -> int:
        """Nano-dollars for reported counts, rounded up. Inconsistent counts cost as uncached."""
        ...

    def worst_nanousd(self, input_tokens: int, output_tokens: int) -> int:
        """Nano-dollars at the highest applicable input price, cache writes included."""
        ...


@dataclass(frozen=True, slots=True)
class UserPrice:
    """A price the user gave. `None`: cached and written input cost what input costs."""

    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal
    source: str = "user"
    cached_usd_per_mtok: Decimal | None = None
    cache_write_usd_per_mtok: Decimal | None = None

    def cost_nanousd(self, usage: Usage) -> int:
        """See `Price.cost_nanousd`."""
        read, wrote = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0
        if read < 0 or wrote < 0 or read + wrote > usage.input_tokens:
            read = wrote = 0
        plain = self.input_usd_per_mtok
        return _nanousd(
            (usage.input_tokens - read - wrote, plain),
            (read, _or(self.cached_usd_per_mtok, plain)),
            (wrote, _or(self.cache_write_usd_per_mtok, plain)),
            (usage.output_tokens, self.output_usd_per_mtok),
        )

    def worst_nanousd(self, input_tokens: int, output_tokens: int) -> int:
        """See `Price.worst_nanousd`."""
        given = (self.cached_usd_per_mtok, self.cache_write_usd_per_mtok)
        dearest = max(_or(usd, self.input_usd_per_mtok) for usd in (None, *given))
        return _nanousd((input_tokens, dearest), (output_tokens, self.output_usd_per_mtok))


def _or(usd: Decimal | None, otherwise: Decimal) -> Decimal:
    return otherwise if usd is None else usd


def _nanousd(*parts: tuple[int, Decimal]) -> int:
    """Nano-dollars of tokens at US dollars per million, rounded up."""
    total = sum((tokens * usd for tokens, usd in parts), Decimal(0))
    return math.ceil(total * _NANOUSD_PER_TOKEN)


@dataclass(frozen=True, slots=True)
class TablePrice:
    """A price from genai-prices; tiers and dates are the table's."""

    model: str
    provider_id: str
    source: str

    def cost_nanousd(self, usage: Usage) -> int:
        """See `Price.cost_nanousd`."""
        cached = {
            "cache_read_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        }
        try:
            return self._nanousd(usage.input_tokens, usage.output_tokens, **cached)
        except ValueError:  # more cached than input tokens, for example
            return self._nanousd(usage.input_tokens, usage.output_tokens)

    def worst_nanousd(self, input_tokens: int, output_tokens: int) -> int:
        """See `Price.worst_nanousd`."""
        return max(
            self._nanousd(input_tokens, output_tokens),
            self._nanousd(input_tokens, output_tokens, cache_write_tokens=input_tokens),
        )

    def _nanousd(self, input_tokens: int, output_tokens: int, **cached: int | None) -> int:
        import genai_prices

        usage = genai_prices.Usage(input_tokens=input_tokens, output_tokens=output_tokens, **cached)
        price = genai_prices.calc_price(usage, self.model, provider_id=self.provider_id)
        return math.ceil(price.total_price * NANOUSD_PER_USD)


class PriceBook:
    """Finds prices: the user's, then genai-prices.

    Args:
        prices: US dollars per million tokens by model name: (input, output), and where a host has
            them the prices of cached input and of input written to its cache, as third and
            fourth. A configured name wins over a reported one. Zero is allowed: a server of your
            own.

    Raises:
        UsageMistake: a price that is not two to four numbers from 0 up, or is so small that it
            must have been given per token.
    """

    def __init__(self, prices: Mapping[str, tuple[UsdPerMillion, ...]] | None) -> None:
        self._user = {model: _user_price(model, pair) for model, pair in (prices or {}).items()}
        self._found: dict[tuple[str, str | None, str | None], TablePrice | None] = {}

    def find(
        self,
        model: str,
        *,
        reported: str | None = None,
        provider: str | None = None,
        base_url: str | None = None,
    ) -> Price | None:
        """The price of a model, or `None` if nobody knows one.

        A zero in the table is unknown too: it has models whose price nobody entered. What is
        really free, the user can say.

        Args:
            model: The configured name.
            reported: The name the provider reports.
            provider: A provider as genai-prices knows it, used when there is no `base_url`.
            base_url: Where requests go. If genai-prices knows whose it is, only that provider's
                prices count; any other address (a gateway, say) is priced by the model's name.
        """
        names = [model] if reported in (None, model) else [model, str(reported)]
        for name in names:
            if name in self._user:
                return self._user[name]
        for name in names:
            if found := self._in_table(name, provider, base_url):
                return found
        return None

    def _in_table(
        self, model: str, provider: str | None, base_url: str | None
    ) -> TablePrice | None:
        key = (model, provider, base_url)
        if key not in self._found:
            self._found[key] = _table_price(model, provider, base_url)
        return self._found[key]


def reported_nanousd(cost_usd: str) -> int:
    """Nano-dollars of a cost that a provider itself reports, rounded up.

    Raises:
        ValueError: not a finite number from 0 up.
    """
    try:
        cost = Decimal(cost_usd)
    except InvalidOperation as e:
        raise ValueError(f"a provider reported the cost {cost_usd!r}, which is no number") from e
    if not cost.is_finite() or cost < 0:
        raise ValueError(f"a provider reported the cost {cost_usd!r} US dollars")
    return math.ceil(cost * NANOUSD_PER_USD)


def _user_price(model: str, pair: Any) -> UserPrice:
    if not isinstance(pair, (tuple, list)) or len(pair) not in _LENGTHS:
        raise _bad_price(model, pair, "is not a pair")
    plain, output, *cache = (_usd(model, pair, value) for value in pair)
    cached, written = [*cache, None, None][:2]
    return UserPrice(plain, output, cached_usd_per_mtok=cached, cache_write_usd_per_mtok=written)


def _usd(model: str, pair: Any, value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (Decimal, int, float, str)):
        raise _bad_price(model, pair, f"contains {value!r}, which is no number")
    try:
        usd = Decimal(str(value))
    except InvalidOperation as e:
        raise _bad_price(model, pair, f"contains {value!r}, which is no number") from e
    if not usd.is_finite() or usd < 0:
        raise _bad_price(model, pair, f"contains {value!r}")
    if 0 < usd < _LOWEST_PLAUSIBLE_USD_PER_MTOK:
        per_million = f"{(usd * 10**6).normalize():f}"
        raise _bad_price(
            model,
            pair,
            f"contains {value!r}: read per million tokens that is next to nothing, and if it was "
            f"meant per token, write {per_million}",
        )
    return usd


def _bad_price(model: str, pair: Any, what: str) -> UsageMistake:
    return UsageMistake(
        f"the price of {model!r}, {pair!r}, {what}; prices are pairs (US dollars per million "
        f'input tokens, US dollars per million output tokens), for example ("0.25", "2")'
    )


def _table_price(model: str, provider: str | None, base_url: str | None) -> TablePrice | None:
    import genai_prices
    from genai_prices.data_snapshot import get_snapshot

    table = get_snapshot()
    whose = None
    with suppress(LookupError):
        # An address says more than a name: gateways and deployments keep the provider's class.
        if base_url is not None:
            whose = table.find_provider(None, None, base_url)
        elif provider is not None:
            whose = table.find_provider(None, provider, None)
    try:
        found, _ = table.find_provider_model(model, whose, None, None)
        price = TablePrice(model, found.id, f"genai-prices {genai_prices.__version__}")
        # 205 models of genai-prices 0.2.3 stand in it without a price of tokens, and cost 0.
        known = price.worst_nanousd(1_000, 0) > 0 and price.worst_nanousd(0, 1_000) > 0
    except LookupError:
        return None
    return price if known else None
