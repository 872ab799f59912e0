"""Signals of a next-token distribution, from a view of the logits and with reused buffers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Container

    from langchain_relay.local.sampler import Logits

_NO_WEIGHT = np.float32(-80)
"""Below it a token has no weight in float32, and -inf * 0 would be NaN."""


class Signals:
    """Measures one distribution at a time.

    Args:
        n_vocab: Size of the vocabulary.
    """

    def __init__(self, n_vocab: int) -> None:
        self._shifted = np.empty(n_vocab, dtype=np.float32)
        self._weights = np.empty(n_vocab, dtype=np.float32)

    def measure(self, logits: Logits, wanted: Container[str]) -> dict[str, float]:
        """`margin` and `entropy` of the distribution before temperature and filters.

        `margin` is the likeliest token's probability less the second's; `entropy` is in nats.
        """
        shifted, weights = self._shifted, self._weights
        np.subtract(logits, logits.max(), out=shifted)
        np.maximum(shifted, _NO_WEIGHT, out=shifted)
        np.exp(shifted, out=weights)
        total = float(weights.sum())
        found = {}
        if "entropy" in wanted:
            found["entropy"] = float(np.log(total)) - float(np.dot(weights, shifted)) / total
        if "margin" in wanted:
            best = int(np.argmax(weights))
            first, weights[best] = float(weights[best]), 0
            found["margin"] = (first - float(weights.max())) / total
        return found
