"""What tokens cost: what the provider reports, the user's prices, genai-prices, else unknown.

Decimal inside, integer nano-dollars out, rounded up. Nothing is fetched: genai-prices carries its
data, and is imported on the first look-up that needs it.
"""

from langchain_relay.prices.book import (
    OnUnknownPrice,
    PriceBook,
    UnknownPriceWarning,
    price_context,
)
from langchain_relay.prices.local import LocalPrice, UsdPerHour
from langchain_relay.prices.price import Price
from langchain_relay.prices.reported import (
    litellms_cost,
    reported_cost,
    reported_nanousd,
    reported_usage,
    with_age,
)
from langchain_relay.prices.user import UsdPerMillion, UserPrice, UserPrices

__all__ = [
    "LocalPrice",
    "OnUnknownPrice",
    "Price",
    "PriceBook",
    "UnknownPriceWarning",
    "UsdPerHour",
    "UsdPerMillion",
    "UserPrice",
    "UserPrices",
    "litellms_cost",
    "price_context",
    "reported_cost",
    "reported_nanousd",
    "reported_usage",
    "with_age",
]
