"""US dollars as people, files and providers write them."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

_DIGITS = 30
"""Before the point and behind it. What has its first one farther away is no money, and reckoning
with it overflows or takes for ever: `1e9999999999`."""


def dollars(given: object) -> Decimal:
    """An amount of US dollars, exact.

    Args:
        given: A number, or its text.

    Raises:
        ValueError: it is none; says why, to be put behind what was given.
    """
    try:
        usd = Decimal(str(given))
    except InvalidOperation as error:
        raise ValueError("is no number") from error
    if not usd.is_finite() or usd < 0:
        raise ValueError("is not finite and from 0 up")
    if not usd:
        return Decimal(0)
    if abs(usd.adjusted()) > _DIGITS:
        raise ValueError(f"is no amount of money: 1e{usd.adjusted()} US dollars or so")
    return usd
