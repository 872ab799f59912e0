"""What tokens cost, and what happens when nobody knows."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_relay.engine.errors import UsageMistake
from langchain_relay.engine.values import Usage
from langchain_relay.prices import Price, PriceBook, reported_nanousd

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
    price = found(PriceBook({"m": ("0.0001", 0)}), "m")
    assert price.cost_nanousd(Usage(1, 0)) == 1


def test_cached_input_costs_what_input_costs_at_the_users_price():
    price = found(PriceBook({"m": (1, 1)}), "m")
    assert price.cost_nanousd(Usage(10, 0, cached_input_tokens=10)) == 10_000


@pytest.mark.parametrize(
    ("given_", "cost"), [((2, 3), 20), ((2, 3, 1), 15), ((2, 3, 1, 4), 21), ((2, 3, 0, 4), 16)]
)
def test_a_third_and_a_fourth_price_are_those_of_cached_and_of_written_input(
    given_: Any, cost: int
):
    price = found(PriceBook({"m": given_}), "m")
    usage = Usage(10, 0, cached_input_tokens=5, cache_write_tokens=3)
    assert price.cost_nanousd(usage) == cost * 1_000


def test_the_users_worst_case_is_at_the_dearest_input_price():
    assert found(PriceBook({"m": (2, 3, 1, 4)}), "m").worst_nanousd(10, 1) == 43_000
    assert found(PriceBook({"m": (2, 3, 1)}), "m").worst_nanousd(10, 1) == 23_000


@pytest.mark.parametrize("usage", [Usage(4, 0, 3, 2), Usage(4, 0, -1, 0), Usage(4, 0, 0, 5)])
def test_counts_that_contradict_cost_as_uncached_at_the_users_prices_too(usage: Usage):
    assert found(PriceBook({"m": (2, 3, 1, 4)}), "m").cost_nanousd(usage) == 8_000


def test_a_cache_write_costs_more_than_input_where_the_table_says_so_and_the_worst_case_has_it():
    price = found(PriceBook(None), "claude-haiku-4-5")
    written = price.cost_nanousd(Usage(1_000, 10, cache_write_tokens=1_000))
    assert written == price.worst_nanousd(1_000, 10) > price.cost_nanousd(Usage(1_000, 10))


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


def test_a_price_per_token_is_refused_with_what_to_write():
    with pytest.raises(UsageMistake, match=r"write 0\.25"):
        PriceBook({"m": ("0.00000025", "0.000002")})


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
    where = {"provider": "cerebras"}
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


# --- reported by the provider -------------------------------------------------------------------


def test_a_reported_cost_is_rounded_up_to_nanodollars():
    assert reported_nanousd("0.00014") == 140_000
    assert reported_nanousd("1e-10") == 1
    assert reported_nanousd("0") == 0


@pytest.mark.parametrize("cost", ["-1", "NaN", "Infinity", "free", ""])
def test_a_reported_cost_that_is_none_is_an_error(cost: str):
    with pytest.raises(ValueError, match="reported the cost"):
        reported_nanousd(cost)
