"""What the machine of the local model costs."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from langchain_relay.engine.money import dollars
from langchain_relay.errors import UsageMistake
from langchain_relay.prices.price import nanousd

UsdPerHour = Decimal | int | float | str
"""US dollars for an hour."""

_MS_PER_HOUR = 3_600_000


@dataclass(frozen=True, slots=True)
class LocalPrice:
    """US dollars for an hour of local work.

    Args:
        usd_per_hour: For example the rent of the machine.

    Raises:
        UsageMistake: not a finite number from 0 up.
    """

    usd_per_hour: UsdPerHour

    def __post_init__(self) -> None:
        try:
            dollars(self.usd_per_hour)
        except ValueError as error:
            raise UsageMistake(
                f"local_usd_per_hour={self.usd_per_hour!r}: that {error}; give US dollars for an "
                f"hour of local work, such as '0.45', or None for free"
            ) from error

    def cost_nanousd(self, work_ms: int) -> int:
        """Nano-dollars for milliseconds of local work, rounded up."""
        return nanousd(dollars(self.usd_per_hour) * work_ms / _MS_PER_HOUR)
