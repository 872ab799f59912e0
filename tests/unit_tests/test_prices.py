"""What tokens cost, and what happens when nobody knows."""

from __future__ import annotations

import importlib.metadata
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import genai_prices
import pytest
from genai_prices.data_snapshot import DataSnapshot, get_snapshot, set_custom_snapshot
from hypothesis import given
from hypothesis import strategies as st

from langchain_relay.engine.values import Usage
from langchain_relay.errors import PriceUnknown, UsageMistake
from langchain_relay.prices import (
    LocalPrice,
    Price,
    PriceBook,
    UnknownPriceWarning,
    price_context,
    reported_cost,
    reported_nanousd,
    with_age,
)

OPENAI = "https://api.openai.com/v1/"
GROQ = "https://api.groq.com/openai/v1"


def found(book: PriceBook, model: str, **where: Any) -> Price:
    price = book.find(model, **where)
    assert price is not None
    return price


def test_the_users_prices_are_dollars_per_million_tokens():
    price = found(PriceBook({"m": ("0.25", 2)}), "m")
    assert price.source == "user"
    assert price.cost_nanousd(Usage(1_000_000, 0)) == 250_000_000
    assert price.cost_nanousd(Usage(0, 1_000_000)) == 2_000_000_000
    assert price.cost_nanousd(Usage(12, 3)) == 12 * 250 + 3 * 2_000


@pytest.mark.parametrize("value", [0.1, "0.1", Decimal("0.1")])
def test_a_price_may_be_any_number_and_is_exact(value: Any):
    price = found(PriceBook({"m": (value, value)}), "m")
    assert price.cost_nanousd(Usage(10_000_000, 0)) == 1_000_000_000


def test_costs_are_rounded_up():
    price = found(PriceBook({"m": ("0.0015", 0)}), "m")
    assert price.cost_nanousd(Usage(1, 0)) == 2


def test_cached_input_costs_what_input_costs_at_the_users_price():
    price = found(PriceBook({"m": (1, 1)}), "m")
    assert price.cost_nanousd(Usage(10, 0, cached_input_tokens=10)) == 10_000


def cached_at(cached: int | None = None, write: int | None = None) -> dict[str, Any]:
    prices = {"input": 2, "output": 3, "cached_input": cached, "cache_write": write}
    return {name: usd for name, usd in prices.items() if usd is not None}


@pytest.mark.parametrize(
    ("given_", "cost"),
    [(cached_at(), 20), (cached_at(1), 15), (cached_at(1, 4), 21), (cached_at(0, 4), 16)],
)
def test_cached_and_written_input_have_prices_of_their_own(given_: Any, cost: int):
    price = found(PriceBook({"m": given_}), "m")
    usage = Usage(10, 0, cached_input_tokens=5, cache_write_tokens=3)
    assert price.cost_nanousd(usage) == cost * 1_000


def test_the_users_worst_case_is_at_the_dearest_input_price():
    assert found(PriceBook({"m": cached_at(1, 4)}), "m").worst_nanousd(10, 1) == 43_000
    assert found(PriceBook({"m": cached_at(1)}), "m").worst_nanousd(10, 1) == 23_000


@pytest.mark.parametrize("usage", [Usage(4, 0, 3, 2), Usage(4, 0, -1, 0), Usage(4, 0, 0, 5)])
def test_counts_that_contradict_cost_as_uncached_at_the_users_prices_too(usage: Usage):
    assert found(PriceBook({"m": cached_at(1, 4)}), "m").cost_nanousd(usage) == 8_000


def test_a_cache_write_costs_more_than_input_where_the_table_says_so_and_the_worst_case_has_it():
    price = found(PriceBook(None), "claude-haiku-4-5")
    written = price.cost_nanousd(Usage(1_000, 10, cache_write_tokens=1_000))
    long = Usage(1_000, 10, cache_write_tokens=1_000, cache_write_1h_tokens=1_000)
    assert price.cost_nanousd(Usage(1_000, 10)) < written < price.cost_nanousd(long)
    assert price.worst_nanousd(1_000, 10) == price.cost_nanousd(long)


def test_the_configured_name_wins_over_the_reported_one_and_both_over_the_table():
    book = PriceBook({"mine": (1, 1), "gpt-5-mini": (2, 2)})
    assert found(book, "mine", reported="gpt-5-mini").worst_nanousd(1, 0) == 1_000
    assert found(book, "other", reported="gpt-5-mini").worst_nanousd(1, 0) == 2_000
    assert found(PriceBook({"r": (3, 3)}), "gpt-5-mini", reported="r").source == "user"


def test_a_server_of_ones_own_may_cost_nothing():
    price = found(PriceBook({"m": (0, 0)}), "m")
    assert (price.cost_nanousd(Usage(9, 9)), price.worst_nanousd(9, 9)) == (0, 0)


@pytest.mark.parametrize(
    "pair", [(-1, 1), (1, "NaN"), (1, float("inf")), ("x", 1), (None, 1), (True, 1), (1,), 3, "12"]
)
def test_a_price_that_is_none_is_refused_with_the_model_and_both_units(pair: Any):
    with pytest.raises(UsageMistake) as refused:
        PriceBook({"my-model": pair})
    for part in ("'my-model'", "million input tokens", "million output tokens"):
        assert part in str(refused.value)


DEAREST_AND_CHEAPEST = [
    # USD per million tokens, and the same price in the unit it was mistaken for.
    ("0.25", "0.00000025"),  # gpt-5-mini, per token
    ("600", "0.0006"),  # o1-pro, the dearest of the table
    ("0.003", "0.000000003"),  # the cheapest of the table
    ("0.25", "250000"),  # multiplied by a million
    ("0.003", "3000"),
]


@pytest.mark.parametrize(("right", "wrong"), DEAREST_AND_CHEAPEST)
def test_a_price_in_the_wrong_unit_is_refused_with_both_readings(right: str, wrong: str):
    PriceBook({"m": (right, 0)})
    with pytest.raises(UsageMistake) as refused:
        PriceBook({"m": (0, wrong)})
    message = str(refused.value)
    assert f"write {right}" in message  # what was meant
    assert "read per million tokens" in message  # what it would be as it stands
    assert f"contains {wrong}:" in message
    assert f"{Decimal(wrong) / 10**6:f}" in message or wrong.startswith("0.0")


def test_cached_input_may_be_cheaper_than_any_input():
    table = {"input": "0.003", "output": 1, "cached_input": "0.0003"}
    price = found(PriceBook({"m": table}), "m")
    assert price.cost_nanousd(Usage(1_000_000, 0, cached_input_tokens=1_000_000)) == 300_000
    with pytest.raises(UsageMistake, match=r"write 0\.025"):
        PriceBook({"m": {**table, "cached_input": "0.000000025"}})


FULL = {"input": 2, "output": 8, "cached_input": "0.2", "cache_write": "2.5", "reasoning": 10}


def test_each_kind_of_token_has_its_own_price():
    price = found(PriceBook({"m": FULL}), "m")
    usage = Usage(100, 50, cached_input_tokens=30, cache_write_tokens=20, reasoning_tokens=10)
    assert price.cost_nanousd(usage) == 50 * 2_000 + 30 * 200 + 20 * 2_500 + 40 * 8_000 + 10 * 10**4
    assert price.worst_nanousd(100, 50) == 100 * 2_500 + 50 * 10_000


def test_counts_that_contradict_cost_as_uncached_at_the_users_price():
    price = found(PriceBook({"m": FULL}), "m")
    assert price.cost_nanousd(Usage(10, 0, cached_input_tokens=11)) == 10 * 2_000
    assert price.cost_nanousd(Usage(0, 10, reasoning_tokens=11)) == 10 * 10_000


@pytest.mark.parametrize(
    ("table", "what"),
    [
        ({"input": 1}, "says nothing of output"),
        ({"input": 1, "output": 1, "cached": 1}, "the keys are model, input, output, cached_input"),
        ({**FULL, "as_of": "yesterday"}, "no date such as 2026-11-01"),
        ({**FULL, "provider": 3}, "a provider that is no text"),
    ],
)
def test_a_table_that_says_too_little_or_too_much_is_refused(table: Any, what: str):
    with pytest.raises(UsageMistake, match=what):
        PriceBook({"my-model": table})


@pytest.mark.parametrize("usd", ["1e9999999999", "1e-9999999999", 1e308])
def test_a_price_that_is_no_amount_of_money_is_refused_in_few_words(usd: Any):
    with pytest.raises(UsageMistake, match="no amount of money") as refused:
        PriceBook({"my-model": (usd, 1)})
    assert len(str(refused.value)) < 500


USD = st.decimals("0.001", "2000", places=6)
COUNT = st.integers(0, 10**9)


@given(
    usd=st.fixed_dictionaries(
        {"input": USD, "output": USD},
        optional={"cached_input": USD, "cache_write": USD, "reasoning": USD},
    ),
    counts=st.tuples(COUNT, COUNT, COUNT, COUNT, COUNT),
)
def test_costs_are_exact_rounded_up_and_never_above_the_worst_case(
    usd: dict[str, Decimal], counts: tuple[int, int, int, int, int]
):
    fresh, read, written, said, thought = counts
    price = found(PriceBook({"m": usd}), "m")
    usage = Usage(fresh + read + written, said + thought, read, written, thought)
    exact = (
        fresh * Fraction(usd["input"])
        + read * Fraction(usd.get("cached_input", usd["input"]))
        + written * Fraction(usd.get("cache_write", usd["input"]))
        + said * Fraction(usd["output"])
        + thought * Fraction(usd.get("reasoning", usd["output"]))
    ) * 1_000  # nano-dollars per token at a dollar per million
    assert price.cost_nanousd(usage) == math.ceil(exact)
    worst = price.worst_nanousd(usage.input_tokens, usage.output_tokens)
    assert price.cost_nanousd(usage) <= worst


# --- the TOML file ------------------------------------------------------------------------------

TOML = """
as_of = 2026-11-01

[[price]]
model = "m"
input = 0.1
output = 2

[[price]]
model = "m"
provider = "azure"
input = 0.2
output = 2
as_of = 2026-11-20

[[price]]
model = "m"
base_url = "https://models.example/v1"
input = "0.3"
output = 2
"""


def written(tmp_path: Path, text: str) -> PriceBook:
    file = tmp_path / "prices.toml"
    file.write_text(text, encoding="utf-8")
    return PriceBook(file)


@pytest.mark.parametrize(
    ("where", "nanousd"),
    [
        ({}, 100),
        ({"provider": "openai"}, 100),
        ({"provider": "azure"}, 200),
        ({"base_url": "https://acme.openai.azure.com/openai"}, 200),
        ({"base_url": "https://models.example/v1/"}, 300),
        ({"base_url": "https://models.example/v1/eu", "provider": "azure"}, 300),
        ({"base_url": "https://models.example/v10"}, 100),
    ],
)
def test_the_most_specific_price_of_a_file_counts(tmp_path: Path, where: Any, nanousd: int):
    price = found(written(tmp_path, TOML), "m", **where)
    assert price.cost_nanousd(Usage(1, 0)) == nanousd  # exact, although TOML has floats
    dates = {100: "2026-11-01", 200: "2026-11-20", 300: "2026-11-01"}
    assert price.source == f"user (prices.toml), as of {dates[nanousd]}"


def test_a_path_may_be_text(tmp_path: Path):
    written(tmp_path, TOML)
    assert PriceBook(str(tmp_path / "prices.toml")).find("m") is not None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", r"needs \[\[price\]\] tables"),
        ("prices = 3", r"needs \[\[price\]\] tables"),
        ("[[price]]\ninput = 1\noutput = 1", "names no model"),
        ("price = [1]", "names no model"),
        ("[[price]]\nmodel = 'm'\ninput = 0.00000025\noutput = 1", r"write 0\.25"),
        ("[[price", "is no TOML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_what_is_wrong(tmp_path: Path, text: str, what: str):
    with pytest.raises(UsageMistake, match=what):
        written(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UsageMistake, match=r"none\.toml.*cannot be read"):
        PriceBook(tmp_path / "none.toml")


# --- where nobody knows one ---------------------------------------------------------------------


def test_an_unknown_price_is_an_error_by_default_that_says_what_to_write():
    with pytest.raises(PriceUnknown, match=r"prices=\{'no-such-model-7': \(input"):
        PriceBook().require("no-such-model-7")
    assert PriceBook({"no-such-model-7": (1, 1)}).require("no-such-model-7") is not None


def test_an_unknown_price_may_be_warned_of_and_stays_unknown():
    with pytest.warns(UnknownPriceWarning, match="no-such-model-7"):
        assert PriceBook().require("no-such-model-7", on_unknown="warn") is None


def test_an_unknown_price_may_be_taken_for_zero_and_says_so():
    price = PriceBook().require("no-such-model-7", on_unknown="zero")
    assert price is not None
    assert price.worst_nanousd(9, 9) == 0
    assert price.source == "assumed zero"


# --- local work ---------------------------------------------------------------------------------


def test_local_work_is_priced_by_the_hour_and_rounded_up():
    assert LocalPrice("0.36").cost_nanousd(3_600_000) == 360_000_000
    assert LocalPrice("0.36").cost_nanousd(1) == 100
    assert LocalPrice("0.0001").cost_nanousd(1) == 1
    assert LocalPrice(0).cost_nanousd(10**9) == 0


@pytest.mark.parametrize("usd", [-1, "x", float("nan"), True, None, "1e9999999999"])
def test_a_local_price_that_is_none_is_refused(usd: Any):
    with pytest.raises(UsageMistake, match="local_usd_per_hour"):
        LocalPrice(usd)


# --- genai-prices -------------------------------------------------------------------------------


def test_the_table_knows_hosted_models_offline():
    price = found(PriceBook(None), "gpt-5-mini", base_url=OPENAI)
    assert price.source.startswith("genai-prices ")
    assert price.cost_nanousd(Usage(1_000, 10)) == 270_000  # 0.25 and 2 USD per million


def test_cached_input_is_cheaper_and_counts_that_contradict_cost_as_uncached():
    price = found(PriceBook(None), "gpt-5-mini")
    full = price.cost_nanousd(Usage(1_000, 10))
    assert price.cost_nanousd(Usage(1_000, 10, cached_input_tokens=900)) < full
    assert price.cost_nanousd(Usage(1_000, 10, cached_input_tokens=2_000)) == full


def test_the_worst_case_includes_cache_writes():
    price = found(PriceBook(None), "claude-haiku-4-5")
    assert price.worst_nanousd(1_000, 10) > price.cost_nanousd(Usage(1_000, 10))
    assert price.worst_nanousd(1_000, 10) >= price.cost_nanousd(
        Usage(1_000, 10, cache_write_tokens=1_000)
    )


@given(
    model=st.sampled_from(["gpt-5-mini", "claude-haiku-4-5", "gemini-2.5-pro"]),
    tokens=st.tuples(st.integers(0, 400_000), st.integers(0, 400_000)),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_no_cost_passes_the_worst_case(
    model: str, tokens: tuple[int, int], shares: tuple[float, float]
):
    cached = int(tokens[0] * shares[0])
    usage = Usage(tokens[0], tokens[1], cached, int((tokens[0] - cached) * shares[1]))
    price = found(PriceBook(None), model)
    assert price.cost_nanousd(usage) <= price.worst_nanousd(*tokens)


def test_an_unknown_model_has_no_price():
    assert PriceBook(None).find("no-such-model-7") is None
    assert PriceBook({"other": (1, 1)}).find("no-such-model-7", base_url=OPENAI) is None


def test_a_zero_in_the_table_is_unknown():
    # Cerebras charges for it; the table only has its name.
    where: Any = {"provider": "cerebras"}
    assert PriceBook(None).find("qwen-3-coder-480b", **where) is None
    assert PriceBook(None).find("davinci", provider="azure") is None  # no price of output
    free = PriceBook({"qwen-3-coder-480b": (0, 0)})
    assert found(free, "qwen-3-coder-480b", **where).source == "user"


def test_a_known_address_knows_only_its_own_models():
    assert PriceBook(None).find("gpt-5-mini", base_url=GROQ) is None


def test_an_unknown_address_is_priced_by_the_models_name():
    book = PriceBook(None)
    gateway = found(book, "gpt-5-mini", base_url="http://127.0.0.1:4000/v1")
    assert gateway.worst_nanousd(1_000, 10) == found(book, "gpt-5-mini").worst_nanousd(1_000, 10)


def test_a_provider_may_be_named():
    assert found(PriceBook(None), "gpt-5-mini", provider="azure").worst_nanousd(1, 0) > 0
    assert PriceBook(None).find("gpt-5-mini", provider="groq") is None


def test_the_reported_name_finds_a_price_where_the_configured_one_has_none():
    assert found(PriceBook(None), "my-deployment", reported="gpt-5-mini").source != "user"


@pytest.mark.parametrize(
    ("model", "context", "nanousd"),
    [
        ("gpt-5", {}, 1_250),
        ("gpt-5", price_context(service_tier="flex"), 625),
        ("gpt-5", price_context(service_tier="priority"), 2_500),
        ("gpt-5", price_context(batch=True), 625),
        ("gpt-5", price_context(service_tier="default"), 1_250),
        ("claude-haiku-4-5", {}, 1_000),
        ("claude-haiku-4-5", price_context(service_tier="batch"), 500),
    ],
)
def test_batch_and_service_tiers_have_their_prices(model: str, context: Any, nanousd: int):
    price = found(PriceBook(), model, context=context)
    assert price.cost_nanousd(Usage(1_000, 0)) == nanousd * 1_000
    # A cheaper tier may be served at the standard price.
    assert price.worst_nanousd(1_000, 0) >= found(PriceBook(), model).worst_nanousd(1_000, 0)


def test_a_price_is_that_of_the_day():
    then, now = datetime(2025, 5, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    assert found(PriceBook(), "o3", at=then).cost_nanousd(Usage(1_000, 0)) == 10_000_000
    assert found(PriceBook(), "o3", at=now).cost_nanousd(Usage(1_000, 0)) == 2_000_000


def test_the_longer_cache_of_anthropic_costs_more():
    price = found(PriceBook(), "claude-haiku-4-5")
    short, long = Usage(1_000, 0, None, 1_000), Usage(1_000, 0, None, 1_000, None, 1_000)
    assert (price.cost_nanousd(short), price.cost_nanousd(long)) == (1_250_000, 2_000_000)


def test_audio_costs_what_audio_costs():
    price = found(PriceBook(), "gpt-audio")
    text, audio = Usage(1_000, 0), Usage(1_000, 0, input_audio_tokens=1_000)
    assert price.cost_nanousd(audio) > price.cost_nanousd(text)


def test_the_table_says_which_it_is_and_since_when_it_was_kept_up_at_least():
    source = found(PriceBook(), "gpt-5-mini").source
    version = importlib.metadata.version("genai-prices")
    start = f"genai-prices {version}, newest dated price as of "
    assert source.startswith(start)
    assert date.fromisoformat(source.removeprefix(start)) <= datetime.now().astimezone().date()


def test_a_fetched_table_says_when():
    fetched = DataSnapshot(get_snapshot().providers, from_auto_update=True)
    fetched.timestamp = datetime(2026, 11, 20, 12, tzinfo=UTC)
    set_custom_snapshot(fetched)
    try:
        source = found(PriceBook(), "gpt-5-mini").source
    finally:
        set_custom_snapshot(None)
    assert source == f"genai-prices {genai_prices.__version__}, fetched, as of 2026-11-20"


def test_a_source_with_a_date_has_an_age():
    today = date(2026, 11, 21)
    assert with_age("user, as of 2026-11-01", today) == "user, as of 2026-11-01 (20 days old)"
    assert with_age("x, as of 2026-11-20", today).endswith("(1 day old)")
    assert with_age("provider", today) == "provider"


# --- reported by the provider -------------------------------------------------------------------


def test_a_reported_cost_is_rounded_up_to_nanodollars():
    assert reported_nanousd("0.00014") == 140_000
    assert reported_nanousd("1e-10") == 1
    assert reported_nanousd("0") == 0


@pytest.mark.parametrize("cost", ["-1", "NaN", "Infinity", "free", "", "1e9999999999"])
def test_a_reported_cost_that_is_none_is_an_error(cost: str):
    with pytest.raises(ValueError, match="reported the cost"):
        reported_nanousd(cost)


@pytest.mark.parametrize(
    ("metadata", "cost"),
    [
        ({"cost": 0.25}, 0.25),
        ({"response_cost": "0.5"}, None),
        ({"token_usage": {"cost": 0.75}}, 0.75),
        ({"cost": 0}, 0),
        ({"cost": None, "token_usage": {"cost": 0.5}}, 0.5),
        ({"token_usage": None}, None),
        ({}, None),
    ],
)
def test_what_langchain_passes_on_of_a_reported_cost_is_found(metadata: Any, cost: Any):
    assert reported_cost(metadata) == cost
