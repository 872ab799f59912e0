"""Whether tests run with their full counts, and where they keep what those came to."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SOAK = os.environ.get("RELAY_SOAK") == "1"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


def note_soak(name: str, facts: dict[str, Any]) -> None:
    """Write `soak-<name>-<date>.json` beside the benchmarks' results; nothing without RELAY_SOAK=1.

    To be called behind the assertions: what is written down held.
    """
    if not SOAK:
        return
    today = datetime.now(tz=UTC).date().isoformat()
    path = RESULTS / f"soak-{name}-{today}.json"
    path.write_text(json.dumps({"date": today, **facts}, indent=2) + "\n", encoding="utf-8")
