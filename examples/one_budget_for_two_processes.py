"""Two processes share a daily budget: together they never pass it.

Both writers are test doubles here; the ledger is a real file, and the processes are real ones that
write as fast as they can. Expect some helped and some local answers from each process, a sum that
stays within the budget, and the totals as `langchain-relay spend` would print them.
"""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from langchain_relay import Budget, RelayChatModel, relay_report
from langchain_relay.ledgers import SQLiteLedger, totals
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal

DAILY = Budget(usd="0.001", scope="global", window="day", timezone="Europe/Berlin")


def work(ledger: Path) -> tuple[int, int]:
    """One process: 20 answers, and how many of them the hosted model helped with."""
    model = RelayChatModel(
        model=ScriptedLocal("It is ", "<call>8</call>", ", so take a coat."),
        delegate=ScriptedDelegate("3 degrees in Oslo", usage=(40, 6), model="expert"),
        prices={"expert": ("1", "10")},  # US dollars per million tokens, in and out
        budget=DAILY,
        ledger=ledger,  # a path is SQLite; redis:// and postgresql:// work between machines
    )
    reports = [relay_report(model.invoke("How cold is it?")) for _ in range(20)]
    return sum(report.calls for report in reports), sum(report.denied for report in reports)


def main() -> None:
    """Start both, and look at what they spent."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "spending.db"
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
            for number, (helped, alone) in enumerate(processes.map(work, [where, where]), start=1):
                print(f"process {number}: {helped} answers with help, {alone} without")
        with SQLiteLedger(where) as ledger:
            for (model,), total in totals(ledger.entries(), ["model"]).items():
                spent_usd = total.amount.cost_nanousd / 10**9
                print(f"{model}: {total.amount.calls} calls, {spent_usd:.6f} of {DAILY.usd} USD")


if __name__ == "__main__":
    sys.exit(main())
