"""The environment of LiteLLM, which wants an older `openai`: `scripts/install.py` makes it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

PYTHON = Path(sys.prefix) / "litellm" / "bin" / "python"
INSIDE = find_spec("litellm") is not None
"""Whether this process runs in it."""

_ROOT = Path(__file__).parents[3]


def passed_inside(file: str, chosen: str) -> int:
    """How many tests of a file passed there; `chosen` is pytest's `-k`.

    Raises:
        AssertionError: one failed or did not run.
    """
    ran = subprocess.run(
        [str(PYTHON), *("-m", "pytest", "-q", "-p", "no:cacheprovider", file, "-k", chosen)],
        cwd=_ROOT,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": str(_ROOT)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, f"{ran.stdout[-6000:]}\n{ran.stderr[-2000:]}"
    assert not re.search(r"skipped|xfailed", ran.stdout), ran.stdout[-2000:]
    found = re.search(r"(\d+) passed", ran.stdout)
    assert found, ran.stdout[-2000:]
    return int(found[1])
