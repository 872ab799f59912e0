"""Writes into the README and the notebooks what their code prints now.

    .venv/bin/python scripts/refresh_outputs.py

The tests compare: exactly where the code is scripted, by its shape where a model decodes.
"""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import jupytext
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def refresh_readme(path: Path) -> None:
    """Run the Python blocks one after the other and replace the outputs below them."""
    names: dict[str, Any] = {"__name__": "readme"}

    def ran(block: re.Match[str]) -> str:
        out = io.StringIO()
        with redirect_stdout(out):
            exec(block[1], names)  # noqa: S102 - our own README
        shown = f"\n```text\n{out.getvalue()}```\n" if out.getvalue() else ""
        return f"```python\n{block[1]}```\n{shown}"

    path.write_text(BLOCK.sub(ran, path.read_text(encoding="utf-8")), encoding="utf-8")


def refresh_notebook(script: Path) -> None:
    """Execute the notebook of a percent-format script and write it beside the script."""
    notebook = jupytext.read(script)
    resources = {"metadata": {"path": str(script.parent)}}
    NotebookClient(
        notebook, kernel_name="python3", record_timing=False, coalesce_streams=True,
        resources=resources,
    ).execute()  # fmt: skip
    notebook.metadata.pop("language_info", None)  # the version of Python that ran it
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02}"  # else each run has new ones
    jupytext.write(notebook, script.with_suffix(".ipynb"))


if __name__ == "__main__":
    refresh_readme(ROOT / "README.md")
    for script in sorted((ROOT / "cookbook").glob("*.py")):
        refresh_notebook(script)
