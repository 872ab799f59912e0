"""`langchain-relay spend`: what a ledger says was spent, as a table, CSV, JSON, a plot, or live."""

from __future__ import annotations

import csv
import io
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from langchain_relay.budget import time_zone
from langchain_relay.engine.errors import NANOUSD_PER_USD
from langchain_relay.engine.ledger import Account, Entry, Ledger
from langchain_relay.errors import LedgerError, MissingExtra, UsageMistake
from langchain_relay.ledgers import SQLiteLedger, Total, ledger_from, totals
from langchain_relay.report import usd

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from langchain_relay.ledgers.history import By

Format = Literal["table", "csv", "json"]
Rows = dict[tuple[str, ...], Total]

LATEST = 8
"""Attempts that the live view lists."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a ledger.

    Attributes:
        where: A path, or the URL of a ledger.
        by: What totals are by.
        since: First day, as ISO date.
        until: Last day, as ISO date.
        scope: Of this scope alone.
        key: Of this key alone.
        timezone: Whose days.
    """

    where: str
    by: tuple[By, ...] = ("day", "model")
    since: str | None = None
    until: str | None = None
    scope: str | None = None
    key: str | None = None
    timezone: str = "UTC"

    @property
    def zone(self) -> ZoneInfo:
        """The time zone.

        Raises:
            UsageMistake: there is none of that name.
        """
        return time_zone(self.timezone, "--timezone {}")

    def ledger(self) -> Ledger:
        """The ledger that is asked; nothing is created.

        Raises:
            UsageMistake: there is none.
        """
        ledger = ledger_from(self.where)
        if isinstance(ledger, SQLiteLedger) and not ledger.path.is_file():
            raise UsageMistake(f"there is no ledger at {ledger.path}")
        if self.where == "memory":
            raise UsageMistake("a ledger in memory is that of its own process; nobody else sees it")
        return ledger

    def entries(self, ledger: Ledger) -> Iterator[Entry]:
        """The attempts that are asked for, each with the accounts that are."""
        begin, end = self._begin(self.since), self._begin(self.until, days=1)
        if begin is not None and end is not None and begin >= end:
            raise UsageMistake(
                f"--since {self.since} lies behind --until {self.until}: nothing fits"
            )
        for entry in ledger.entries(begin, end):
            accounts = tuple(account for account in entry.accounts if self._fits(account))
            if accounts:
                yield Entry(
                    entry.key, accounts, entry.model, entry.at, entry.amount, entry.state,
                    entry.estimated,
                )  # fmt: skip

    def _fits(self, account: Account) -> bool:
        if account.internal:
            return False
        named = {None, account.key, f"{account.scope}:{account.key}"}  # as the table shows it, too
        return self.scope in {None, account.scope} and self.key in named

    def _begin(self, day: str | None, days: int = 0) -> float | None:
        if day is None:
            return None
        try:
            begin = datetime.fromisoformat(day)
        except ValueError as error:
            raise UsageMistake(f"{day!r} is no ISO date such as 2026-11-21") from error
        begin = begin if begin.tzinfo else begin.replace(tzinfo=self.zone)
        try:
            return (begin + timedelta(days=days)).timestamp()
        except OverflowError as error:
            raise UsageMistake(f"{day!r} is beyond the calendar; leave it out") from error


def spend(question: Question, form: Format, plot: Path | None, watch_s: float | None) -> None:
    """Answer `question` on standard output.

    Raises:
        UsageMistake: there is no such ledger, date or time zone.
        LedgerError: the ledger cannot be reached.
        MissingExtra: a plot is asked for and matplotlib is missing.
    """
    ledger = question.ledger()
    if watch_s is not None:
        watch(question, ledger, watch_s)
        return
    rows = totals(question.entries(ledger), question.by, zone=question.zone)
    if plot is not None:
        draw(rows, question.by, plot)
    if form == "table":
        Console().print(table(rows, question.by))
        return
    print(as_csv(rows, question.by) if form == "csv" else as_json(rows, question.by))


# --- text ---------------------------------------------------------------------------------------


def records(rows: Rows, by: Sequence[str]) -> list[dict[str, str | int]]:
    """Each total as a flat record; money in nano-dollars and in dollars."""
    return [
        {
            **dict(zip(by, group, strict=True)),
            "attempts": total.attempts,
            "calls": total.amount.calls,
            "output_tokens": total.amount.tokens,
            "cost_nanousd": total.amount.cost_nanousd,
            "estimated_nanousd": total.estimated.cost_nanousd,
            "cost_usd": usd(total.amount.cost_nanousd).removesuffix(" USD"),
        }
        for group, total in rows.items()
    ]


def as_json(rows: Rows, by: Sequence[str]) -> str:
    """A JSON array of records."""
    return json.dumps(records(rows, by), indent=1, ensure_ascii=False)


def as_csv(rows: Rows, by: Sequence[str]) -> str:
    """CSV with a line of names."""
    out = io.StringIO()
    names = [*by, *_COLUMNS]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records(rows, by))
    return out.getvalue().rstrip("\n")


_COLUMNS = (
    *("attempts", "calls", "output_tokens"),
    *("cost_nanousd", "estimated_nanousd", "cost_usd"),
)


def table(rows: Rows, by: Sequence[str]) -> RenderableType:
    """A table with its sum, for a terminal."""
    if not rows:
        return Text("nothing was spent")
    out = Table(show_footer=len(rows) > 1)
    whole = _sum(rows, by)
    for index, name in enumerate(by):
        out.add_column(name, "all" if index == 0 else "")
    for name, value in zip(("attempts", "calls", "output tokens", "cost"), whole, strict=True):
        out.add_column(name, value, justify="right")
    for group, total in rows.items():
        out.add_row(*map(Text, group), *_cells(total))  # keys are the users': no markup
    return out


def _sum(rows: Rows, by: Sequence[str]) -> tuple[str, ...]:
    if {"scope", "key"} & set(by):
        return ("", "", "", "")  # an attempt stands in several groups: they add up to more
    whole = Total()
    for total in rows.values():
        whole = Total(
            whole.amount + total.amount,
            whole.estimated + total.estimated,
            whole.attempts + total.attempts,
        )
    return _cells(whole)


def _cells(total: Total) -> tuple[str, ...]:
    cost = usd(total.amount.cost_nanousd)
    if total.estimated.cost_nanousd:
        cost += f"\n({usd(total.estimated.cost_nanousd)} estimated)"
    return str(total.attempts), str(total.amount.calls), str(total.amount.tokens), cost


# --- a picture ----------------------------------------------------------------------------------


def draw(rows: Rows, by: Sequence[str], path: Path) -> None:
    """Write a PNG: bars by the first of `by`, stacked by the others.

    Raises:
        MissingExtra: matplotlib is missing.
        UsageMistake: the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra(
            '--plot needs matplotlib: pip install "langchain-relay[plot]"'
        ) from error
    bars = list(dict.fromkeys(group[0] for group in rows))
    parts = list(dict.fromkeys(group[1:] for group in rows))
    figure = Figure(figsize=(max(6.0, 0.5 * len(bars) + 3), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bottom = dict.fromkeys(bars, 0.0)
    for part in parts:
        found = [rows.get((bar, *part), Total()).amount.cost_nanousd for bar in bars]
        heights = [value / NANOUSD_PER_USD for value in found]
        label = _plain(" ".join(part)) or None
        names = [_plain(bar) for bar in bars]
        axes.bar(names, heights, bottom=[bottom[bar] for bar in bars], label=label)
        bottom = {bar: bottom[bar] + height for bar, height in zip(bars, heights, strict=True)}
    axes.set_ylabel("US dollars")
    axes.set_title(f"spent on hosted models, by {', '.join(by)}")
    axes.tick_params(axis="x", rotation=45 if len(bars) > 6 else 0)  # noqa: PLR2004 - they overlap
    axes.set_ylim(bottom=0, top=1.05 * max(bottom.values(), default=0) or None)
    if len(by) > 1 and rows:
        axes.legend()
    try:
        figure.savefig(path, format="png", dpi=150)
    except OSError as error:
        raise UsageMistake(f"--plot {path}: {error}") from error


def _plain(text: str) -> str:
    """As matplotlib draws it literally: no formula, and no leading mark of what it leaves out."""
    return text.replace("$", r"\$").replace("_", "\N{WORD JOINER}_", text.startswith("_"))


# --- live ---------------------------------------------------------------------------------------


def watch(question: Question, ledger: Ledger, every_s: float) -> None:
    """Show the totals and the latest attempts again and again, until Ctrl-C."""
    with Live(console=Console(), auto_refresh=False) as live:
        try:
            while True:
                live.update(_frame(question, ledger), refresh=True)
                time.sleep(every_s)
        except KeyboardInterrupt:
            return


def _frame(question: Question, ledger: Ledger) -> RenderableType:
    now = datetime.now(question.zone)
    head = Text(f"{question.where}  {now:%Y-%m-%d %H:%M:%S}  (Ctrl-C ends)", style="dim")
    latest: deque[Entry] = deque(maxlen=LATEST)  # a history may be longer than the memory

    def noted() -> Iterator[Entry]:
        for entry in question.entries(ledger):
            latest.append(entry)
            yield entry

    try:
        rows = totals(noted(), question.by, zone=question.zone)
    except LedgerError as error:  # it may come back
        return Group(head, Text(str(error), style="red"))
    return Group(head, table(rows, question.by), _latest(latest, question.zone))


def _latest(found: Sequence[Entry], zone: ZoneInfo) -> RenderableType:
    out = Table(title="latest", box=None, title_justify="left")
    for name in ("time", "model", "whose", "state"):
        out.add_column(name)
    for name in ("tokens", "cost"):
        out.add_column(name, justify="right")
    for entry in reversed(found):
        whose = ", ".join(f"{a.scope}:{a.key}" if a.key else a.scope for a in entry.accounts)
        state = f"{entry.state}, estimated" if entry.estimated else entry.state
        cost = usd(entry.amount.cost_nanousd)
        told = (entry.model, whose, state, str(entry.amount.tokens), cost)
        out.add_row(_clock(entry.at, zone), *map(Text, told))
    return out


def _clock(at: float, zone: ZoneInfo) -> str:
    try:
        return f"{datetime.fromtimestamp(at, zone):%H:%M:%S}"
    except (ValueError, OverflowError, OSError):  # whoever reserved has no right clock
        return "?"
