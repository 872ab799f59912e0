"""The user's own prices: a pair of numbers, a table of them by kind of token, or a TOML file.

A price that can only have been meant in another unit is refused, with both readings: litellm's
users met budgets that refused everything, or nothing, for a price per token (litellm #22726).
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from langchain_relay.engine.money import dollars
from langchain_relay.engine.values import Usage
from langchain_relay.errors import UsageMistake
from langchain_relay.prices.price import nanousd

UsdPerMillion = Decimal | int | float | str
"""US dollars per million tokens."""

ModelPrices = tuple[UsdPerMillion, UsdPerMillion] | Mapping[str, Any]
"""One model's: (input, output), or a mapping with the keys of a `[[price]]` of the TOML file."""

UserPrices = Mapping[str, ModelPrices] | str | Path
"""What `prices=` takes: by model name, or the path of a TOML file."""

_PER_MILLION = Decimal(10**6)

_LOWEST_PLAUSIBLE = Decimal("0.001")
"""Below this a price was given per token: the cheapest of genai-prices 0.2.3 is 0.003 for input,
and its dearest, 600, would be 0.0006 per token."""

_LOWEST_PLAUSIBLE_CACHED = Decimal("0.0002")
"""The same for cached input: the cheapest there is 0.0011, the dearest 75."""

_HIGHEST_PLAUSIBLE = Decimal(2_000)
"""Above this a price per million was multiplied by a million: the cheapest would come to 3,000."""

_PAIR = 2

_FIELDS = {
    "input": "input_usd_per_mtok",
    "output": "output_usd_per_mtok",
    "cached_input": "cached_input_usd_per_mtok",
    "cache_write": "cache_write_usd_per_mtok",
    "reasoning": "reasoning_usd_per_mtok",
}
_SCOPE = ("provider", "base_url")
_KEYS = ("model", *_FIELDS, *_SCOPE, "as_of")


@dataclass(frozen=True, slots=True)
class UserPrice:
    """A price the user gave, in US dollars per million tokens.

    What is `None` costs as the rest of its side: cached input and cache writes as input, reasoning
    as output.
    """

    input_usd_per_mtok: Decimal
    output_usd_per_mtok: Decimal
    source: str = "user"
    cached_input_usd_per_mtok: Decimal | None = None
    cache_write_usd_per_mtok: Decimal | None = None
    reasoning_usd_per_mtok: Decimal | None = None

    def cost_nanousd(self, usage: Usage) -> int:
        """See `Price.cost_nanousd`."""
        read, written = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0
        if min(read, written) < 0 or read + written > usage.input_tokens:
            read = written = 0
        thought = min(usage.reasoning_tokens or 0, usage.output_tokens)
        usd_per_mtok = (
            self.input_usd_per_mtok * (usage.input_tokens - read - written)
            + self._or_input(self.cached_input_usd_per_mtok) * read
            + self._or_input(self.cache_write_usd_per_mtok) * written
            + self.output_usd_per_mtok * (usage.output_tokens - thought)
            + self._or_output(self.reasoning_usd_per_mtok) * thought
        )
        return nanousd(usd_per_mtok / _PER_MILLION)

    def worst_nanousd(self, input_tokens: int, output_tokens: int) -> int:
        """See `Price.worst_nanousd`."""
        read = max(
            self.input_usd_per_mtok,
            self._or_input(self.cached_input_usd_per_mtok),
            self._or_input(self.cache_write_usd_per_mtok),
        )
        wrote = max(self.output_usd_per_mtok, self._or_output(self.reasoning_usd_per_mtok))
        return nanousd((read * input_tokens + wrote * output_tokens) / _PER_MILLION)

    def _or_input(self, usd: Decimal | None) -> Decimal:
        return self.input_usd_per_mtok if usd is None else usd

    def _or_output(self, usd: Decimal | None) -> Decimal:
        return self.output_usd_per_mtok if usd is None else usd


@dataclass(frozen=True, slots=True)
class Entry:
    """A user's price and what it is for; `None` is any provider, any address."""

    model: str
    price: UserPrice
    provider: str | None = None
    base_url: str | None = None


def entries(prices: UserPrices | None) -> list[Entry]:
    """All prices the user gave.

    Raises:
        UsageMistake: the file cannot be read, or a price is none (see `PriceBook`).
    """
    if prices is None:
        return []
    if isinstance(prices, str | Path):
        return list(_in_file(Path(prices)))
    if not isinstance(prices, Mapping):
        raise UsageMistake(
            f"prices={prices!r}: give a mapping from model names to prices, or the path of a "
            f"TOML file"
        )
    return [_entry(model, given, None, "user") for model, given in prices.items()]


# --- the TOML file ------------------------------------------------------------------------------


def _in_file(path: Path) -> Iterator[Entry]:
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageMistake(f"the price file {str(path)!r} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageMistake(f"the price file {str(path)!r} is no TOML: {error}") from error
    rows = read.get("price")
    if not isinstance(rows, list) or set(read) - {"price", "as_of"}:
        raise UsageMistake(
            f"the price file {str(path)!r} holds {sorted(read)}; it needs [[price]] tables, with a "
            f"date as_of above them if you like"
        )
    for row in rows:
        if not isinstance(row, Mapping) or not isinstance(row.get("model"), str):
            raise UsageMistake(f"a [[price]] of {str(path)!r} names no model: {row!r}")
        yield _entry(row["model"], row, read.get("as_of"), f"user ({path.name})")


def _entry(model: str, given: Any, as_of: Any, source: str) -> Entry:
    if isinstance(given, Mapping):
        return _from_table(model, given, as_of, source)
    if isinstance(given, str | bytes) or not isinstance(given, Sequence) or len(given) != _PAIR:
        raise _bad_price(model, given, "is neither a pair nor a table")
    usd = [_usd(model, given, name, v) for name, v in zip(_FIELDS, given, strict=False)]
    return Entry(model, UserPrice(usd[0], usd[1], source))


def _from_table(model: str, given: Mapping[str, Any], as_of: Any, source: str) -> Entry:
    if unknown := sorted(set(given) - set(_KEYS)):
        raise _bad_price(model, given, f"has {unknown}; the keys are {', '.join(_KEYS)}")
    if missing := sorted({"input", "output"} - set(given)):
        raise _bad_price(model, given, f"says nothing of {' and '.join(missing)}")
    for name in _SCOPE:
        if not isinstance(given.get(name, ""), str):
            raise _bad_price(model, given, f"has a {name} that is no text")
    if (day := _day(model, given, given.get("as_of", as_of))) is not None:
        source += f", as of {day.isoformat()}"
    usd = {
        field: _usd(model, given, name, given[name])
        for name, field in _FIELDS.items()
        if name in given
    }
    price = UserPrice(source=source, **usd)
    return Entry(model, price, given.get("provider"), given.get("base_url"))


def _day(model: str, given: Any, as_of: Any) -> date | None:
    if isinstance(as_of, datetime):
        return as_of.date()
    if as_of is None or isinstance(as_of, date):
        return as_of
    try:
        return date.fromisoformat(as_of)
    except (TypeError, ValueError) as error:
        what = f"has as_of={as_of!r}, which is no date such as 2026-11-01"
        raise _bad_price(model, given, what) from error


# --- one number ---------------------------------------------------------------------------------


def _usd(model: str, given: Any, name: str, value: Any) -> Decimal:
    try:
        usd = dollars(value)
    except ValueError as error:
        raise _bad_price(model, given, f"contains {value!r}, which {error}") from error
    if doubt := _wrong_unit(name, usd):
        raise _bad_price(model, given, doubt)
    return usd


def _wrong_unit(name: str, usd: Decimal) -> str | None:
    """Why a price cannot have been meant per million tokens, with both readings."""
    lowest = _LOWEST_PLAUSIBLE_CACHED if name == "cached_input" else _LOWEST_PLAUSIBLE
    if 0 < usd < lowest:
        return (
            f"contains {_plain(usd)}: read per million tokens, a million of them cost "
            f"{_plain(usd)} US dollars, less than any hosted model takes; if it was meant per "
            f"token, write {_plain(usd * _PER_MILLION)}"
        )
    if usd > _HIGHEST_PLAUSIBLE:
        return (
            f"contains {_plain(usd)}: read per million tokens, one token costs "
            f"{_plain(usd / _PER_MILLION)} US dollars, more than any hosted model takes; if a "
            f"price per million was multiplied by a million, write {_plain(usd / _PER_MILLION)}"
        )
    return None


def _plain(usd: Decimal) -> str:
    return f"{usd.normalize():f}"


def _bad_price(model: str, given: Any, what: str) -> UsageMistake:
    return UsageMistake(
        f"the price of {model!r}, {given!r}, {what}; prices are pairs (US dollars per million "
        f'input tokens, US dollars per million output tokens), for example ("0.25", "2"), or '
        f'tables such as {{"input": "0.25", "output": "2", "cached_input": "0.025"}}'
    )
