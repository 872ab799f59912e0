"""Times of day at which nothing ends that a test looks at."""

from __future__ import annotations

import time

HOUR_S = 3600.0


def within_an_hour(needed_s: float) -> None:
    """Wait where an hour ends sooner than that: budgets of an hour or of a day begin anew."""
    left_s = HOUR_S - time.time() % HOUR_S
    if left_s < needed_s:
        time.sleep(left_s + 1)
