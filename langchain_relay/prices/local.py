"""What the machine of the local model costs."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

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
            usd = Decimal(str(self.usd_per_hour))
        except InvalidOperation as error:
            raise self._mistake() from error
        if isinstance(self.usd_per_hour, bool) or not usd.is_finite() or usd < 0:
            raise self._mistake()

    def cost_nanousd(self, work_ms: int) -> int:
        """Nano-dollars for milliseconds of local work, rounded up."""
        return nanousd(Decimal(str(self.usd_per_hour)) * work_ms / _MS_PER_HOUR)

    def _mistake(self) -> UsageMistake:
        return UsageMistake(
            f"local_usd_per_hour={self.usd_per_hour!r}: give US dollars for an hour of local "
            f"work, such as '0.45', or None for free"
        )
