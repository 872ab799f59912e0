"""What a price can be asked."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Protocol

from langchain_relay.engine.errors import NANOUSD_PER_USD
from langchain_relay.engine.values import Usage


class Price(Protocol):
    """What one model costs."""

    @property
    def source(self) -> str:
        """Where the price comes from, and of which date it is, where anybody knows.

        For example `user, as of 2026-11-01` or `genai-prices 0.2.3`.
        """
        ...

    def cost_nanousd(self, usage: Usage) -> int:
        """Nano-dollars for reported counts, rounded up. Inconsistent counts cost as uncached."""
        ...

    def worst_nanousd(self, input_tokens: int, output_tokens: int) -> int:
        """Nano-dollars at the highest applicable prices, cache writes and reasoning included."""
        ...


def nanousd(usd: Decimal) -> int:
    """Whole nano-dollars, rounded up."""
    return math.ceil(usd * NANOUSD_PER_USD)
