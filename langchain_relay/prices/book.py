"""Finds prices: the user's, then those of genai-prices, else what is to be done about it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Literal

from langchain_relay.errors import PriceUnknown
from langchain_relay.prices.price import Price
from langchain_relay.prices.table import TablePrice, provider_id, table_price
from langchain_relay.prices.user import Entry, UserPrice, UserPrices, entries

OnUnknownPrice = Literal["error", "warn", "zero"]

SHOWN = 5
"""Names that an error lists."""

_Key = tuple[str, str | None, str | None, tuple[tuple[str, str], ...], datetime | None]


class UnknownPriceWarning(UserWarning):
    """Nobody knows what a model costs, and it is used all the same."""


class PriceBook:
    """Finds prices: the user's, then genai-prices.

    Args:
        prices: By model name, US dollars per million tokens: (input, output), or a mapping with
            the keys of a `[[price]]` table; or the path of a TOML file of such tables (see
            `docs/prices.md`). A configured name wins over a reported one, a price for one address
            over one for a provider, and both over one for all. Zero is allowed: a server of your
            own.

    Raises:
        UsageMistake: a price that is not made of numbers from 0 up, or that is so small or so
            large that it must have been given per token or multiplied by a million.
    """

    def __init__(self, prices: UserPrices | None = None) -> None:
        self._user = entries(prices)
        self._found: dict[_Key, TablePrice | None] = {}

    def find(
        self,
        model: str,
        *,
        reported: str | None = None,
        provider: str | None = None,
        base_url: str | None = None,
        context: Mapping[str, str] | None = None,
        at: datetime | None = None,
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
            context: What the request is served as, see `price_context`.
            at: When the request was sent; `None`: now.
        """
        names = [model] if reported in (None, model) else [model, str(reported)]
        for name in names:
            if user := self.users(name, provider=provider, base_url=base_url):
                return user
        for name in names:
            if found := self._in_table(name, provider, base_url, context or {}, at):
                return found
        return None

    def users(
        self, model: str, *, provider: str | None = None, base_url: str | None = None
    ) -> UserPrice | None:
        """The price the user gave for a model, the most specific one; `None` if there is none."""
        fitting = [
            (rank, entry)
            for entry in self._user
            if entry.model == model and (rank := _fits(entry, provider, base_url)) is not None
        ]
        return max(fitting, key=lambda pair: pair[0])[1].price if fitting else None

    def require(
        self,
        model: str,
        *,
        on_unknown: OnUnknownPrice = "error",
        reported: str | None = None,
        provider: str | None = None,
        base_url: str | None = None,
        context: Mapping[str, str] | None = None,
        of_budget: bool = False,
    ) -> Price | None:
        """The price of a model, and what is to be done where nobody knows one.

        `error` raises, `warn` warns and returns `None` (its cost stays unknown), `zero` takes the
        model for free. `of_budget` says that a budget in US dollars asks.

        Raises:
            PriceUnknown: nobody knows a price, and `on_unknown` is `error`.
        """
        price = self.find(
            model, reported=reported, provider=provider, base_url=base_url, context=context
        )
        if price is not None:
            return price
        if on_unknown == "zero":
            return UserPrice(Decimal(0), Decimal(0), source="assumed zero")
        what = f"nobody knows a price of {model!r}" + (f" at {base_url}" if base_url else "")
        remedy = f"pass prices={{{model!r}: (input_usd_per_mtok, output_usd_per_mtok)}}"
        if others := self._users_models():
            what += f" (prices= has {others})"
        if of_budget:
            what = f"Budget(usd=...) needs a price, and {what}"
            remedy += ", or limit tokens= or calls= instead"
        if on_unknown == "error":
            raise PriceUnknown(f"{what}: {remedy}, or on_unknown_price='warn' or 'zero'")
        so = "its cost stays unknown"
        if of_budget:
            so = f"the limit in US dollars cannot count it; {so} and is booked as 0"
        warnings.warn(f"{what}; {so}: {remedy}", UnknownPriceWarning, 2)
        return None

    def _users_models(self) -> str:
        """The names the user gave prices for, the first few."""
        names = sorted({entry.model for entry in self._user})
        return ", ".join([*map(repr, names[:SHOWN]), *(["..."] if names[SHOWN:] else [])])

    def _in_table(
        self,
        model: str,
        provider: str | None,
        base_url: str | None,
        context: Mapping[str, str],
        at: datetime | None,
    ) -> TablePrice | None:
        if at is not None:  # many times, each asked for once
            return table_price(model, provider, base_url, context, at)
        key = (model, provider, base_url, tuple(sorted(context.items())), at)
        if key not in self._found:
            self._found[key] = table_price(model, provider, base_url, context)
        return self._found[key]


def price_context(
    *, service_tier: str | None = None, batch: bool = False, speed: str | None = None
) -> dict[str, str]:
    """What a request is served as, in the words of genai-prices.

    Args:
        service_tier: As the provider reports it: `flex`, `priority`. Anthropic's `batch` is a
            tier too.
        batch: It was part of a batch job.
        speed: Anthropic's `fast`.
    """
    batch = batch or service_tier == "batch"
    told = {
        "service_tier": None if service_tier == "batch" else service_tier,
        "processing": "batch" if batch else None,
        "speed": speed,
    }
    return {name: value for name, value in told.items() if value is not None}


def _fits(entry: Entry, provider: str | None, base_url: str | None) -> tuple[int, int] | None:
    """How closely a user's price fits a request; `None`: not at all."""
    length = 0
    if entry.base_url is not None:
        if base_url is None or not _within(base_url, entry.base_url):
            return None
        length = len(entry.base_url)
    if entry.provider is None:
        return length, 0
    same = entry.provider == provider or _known(entry.provider, None) == _known(provider, base_url)
    return (length, 1) if same else None


def _known(provider: str | None, base_url: str | None) -> str | None:
    # An address the table does not know leaves the word of whoever asks.
    return (base_url and provider_id(None, base_url)) or provider_id(provider) or provider


def _within(base_url: str, prefix: str) -> bool:
    given, wanted = (url.casefold().rstrip("/") for url in (base_url, prefix))
    return given == wanted or given.startswith(f"{wanted}/")
