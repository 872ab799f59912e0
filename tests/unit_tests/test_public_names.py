"""The names of `langchain_relay` that users may rely on."""

from __future__ import annotations

from importlib.metadata import version

import pytest

import langchain_relay

DOCUMENTED = {
    "Budget",
    "BudgetExceeded",
    "Charge",
    "CostCallbackHandler",
    "RelayCallbackHandler",
    "RelayChatModel",
    "RelayReport",
    "Span",
    "__version__",
    "get_cost_callback",
    "get_relay_callback",
    "relay_report",
}


def test_all_is_what_is_documented():
    assert set(langchain_relay.__all__) == DOCUMENTED


def test_all_is_sorted():
    assert langchain_relay.__all__ == sorted(langchain_relay.__all__)


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_each_name_can_be_imported(name):
    assert getattr(langchain_relay, name) is not None


def test_dir_shows_the_names():
    assert set(dir(langchain_relay)) >= DOCUMENTED


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="RelayChatModle"):
        langchain_relay.RelayChatModle  # noqa: B018


def test_the_version_is_that_of_the_installed_package():
    assert langchain_relay.__version__ == version("langchain-relay")
