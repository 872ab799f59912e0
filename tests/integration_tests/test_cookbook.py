"""Every notebook of cookbook/ runs, within a minute, and says what its percent script says."""

from __future__ import annotations

import time
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from tests.clock import within_an_hour

COOKBOOK = Path(__file__).parents[2] / "cookbook"
NOTEBOOKS = sorted(COOKBOOK.glob("*.ipynb"))
TIMEOUT_S = 300
PROMISED_S = 60


def notebook(path: Path) -> nbformat.NotebookNode:
    read: nbformat.NotebookNode = nbformat.read(path, as_version=4)
    return read


def cells(read: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in read.cells]


each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_is_a_notebook():
    assert NOTEBOOKS


@each
def test_notebook_and_script_are_in_sync(path: Path):
    script = path.with_suffix(".py")

    assert cells(notebook(path)) == cells(jupytext.read(script)), (
        f"jupytext --sync {script.name} brings them together"
    )


@each
def test_the_outputs_are_committed_and_none_is_an_error(path: Path):
    code = [cell for cell in notebook(path).cells if cell.cell_type == "code"]

    assert any(cell.outputs for cell in code)
    assert not [out for cell in code for out in cell.outputs if out.output_type == "error"]


@each
def test_the_last_cell_asserts(path: Path):
    assert "assert " in notebook(path).cells[-1].source


@each
@pytest.mark.gguf
@pytest.mark.xdist_group("gguf")
@pytest.mark.timeout(TIMEOUT_S + 90)
def test_notebook_runs(path: Path):
    fresh = notebook(path)
    resources = {"metadata": {"path": str(COOKBOOK)}}
    if "window=" in path.with_suffix(".py").read_text(encoding="utf-8"):
        within_an_hour(PROMISED_S)
    started = time.monotonic()

    NotebookClient(fresh, timeout=TIMEOUT_S, kernel_name="python3", resources=resources).execute()

    # A busy machine is no failure of the notebook; three times its promise is.
    assert time.monotonic() - started < 3 * PROMISED_S
