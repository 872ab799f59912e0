"""Ranges, defaults and seeds."""

from __future__ import annotations

import pytest

from langchain_relay.engine.errors import UsageMistake
from langchain_relay.engine.values import Sampling
from langchain_relay.local.sampling import Chosen, choose, draw_seed


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repeat_penalty": 0.0},
    ],
)
def test_a_value_out_of_range_is_named(wrong):
    (name,) = wrong
    with pytest.raises(UsageMistake, match=f"{name}=.*it must be"):
        choose(Sampling(**wrong))


def test_what_is_left_out_is_llama_cpp_s_default():
    assert choose(Sampling(seed=3)) == Chosen(0.8, 40, 0.95, 0.05, 1.0, 3)


def test_a_missing_seed_is_drawn_anew():
    assert choose(Sampling()).seed != choose(Sampling()).seed


def test_draws_differ_by_seed_and_position_and_never_ask_for_a_random_seed():
    seeds = {draw_seed(seed, position) for seed in range(50) for position in range(50)}
    assert len(seeds) == 2500
    assert 0xFFFFFFFF not in seeds
    assert draw_seed(7, 3) == draw_seed(7, 3)
