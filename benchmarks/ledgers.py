"""What a reservation and its settlement cost, by ledger: one thread, two limits, a loaded history.

Every ledger as it comes: SQLite syncs each reservation to the disk, PostgreSQL every commit, Redis
appends to its file and syncs once a second. The servers are the tests' own and listen on the
loopback. The disk of a shared machine makes most of the spread.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import IO

from benchmarks.measure import Bound, Row, Side, Told, interleaved
from benchmarks.plan import Plan
from langchain_relay.engine.ledger import Account, Amount, Ledger, Limit, MemoryLedger
from langchain_relay.ledgers import PostgresLedger, RedisLedger, SQLiteLedger
from tests.servers.stores import PostgresServer, RedisServer

US = "µs"
MS = "ms"
SCALE = {US: 1e6, MS: 1e3}
DISK = "the disk alone: append 4 KiB and fsync"
# unit, bound
BOUNDS = {
    DISK: (MS, None),
    "memory": (US, 20),
    "SQLite": (MS, 1),
    "SQLite, synchronous=normal": (MS, None),
    "Redis": (MS, 1),
    "PostgreSQL": (MS, 3),
}
LIMITS = [
    Limit(Account("user", "ann", "2026-11-21"), cost_nanousd=10**18),
    Limit(Account("global", "", "2026-11"), tokens=10**18, calls=10**15),
]
_keys = count()


def measure(plan: Plan, told: Told) -> list[Row]:
    """Medians of each turn; the ledgers take turns."""
    with ExitStack() as stack:
        ledgers, missing = _opened(stack)
        sides: dict[str, Side] = {
            name: partial(_turn, ledger, plan.attempts, SCALE[BOUNDS[name][0]])
            for name, ledger in ledgers.items()
        }
        with tempfile.TemporaryFile() as file:
            sides[DISK] = partial(_synced, file, plan.attempts)
            for side in sides.values():
                side()  # connections, prepared statements, a history that is not empty
            found = interleaved(sides, plan.rounds, told)
    return [_row(name, found.get(name, ()), missing.get(name, "")) for name in BOUNDS]


def _row(name: str, values: tuple[float, ...], note: str) -> Row:
    unit, bound = BOUNDS[name]
    return Row(
        "ledgers",
        name if name == DISK else f"reserve and settle: {name}",
        unit,
        values,
        bound=Bound(bound, at="most") if bound else None,
        note=note,
    )


def _opened(stack: ExitStack) -> tuple[dict[str, Ledger], dict[str, str]]:
    """The ledgers, and why one is missing."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    ledgers: dict[str, Ledger] = {
        "memory": MemoryLedger(),
        "SQLite": stack.enter_context(SQLiteLedger(folder / "full.db")),
        "SQLite, synchronous=normal": stack.enter_context(
            SQLiteLedger(folder / "normal.db", synchronous="normal")
        ),
    }
    missing = {}
    if RedisServer.program() is None:
        missing["Redis"] = "no redis-server, in no package and not on the PATH"
    else:
        redis = stack.enter_context(RedisServer(fsync=True))
        ledgers["Redis"] = stack.enter_context(RedisLedger(redis.url))
    postgres = stack.enter_context(PostgresServer(fsync=True))
    ledgers["PostgreSQL"] = stack.enter_context(PostgresLedger(postgres.url))
    return ledgers, missing


def _turn(ledger: Ledger, attempts: int, scale: float) -> float:
    clock: Callable[[], float] = time.perf_counter
    taken = []
    for _ in range(attempts):
        key, now = f"{next(_keys)}", time.time()
        started = clock()
        made = ledger.reserve(
            LIMITS, Amount(9000, 64, 1), key=key, model="m", now=now, expires_at=now + 60
        )
        ledger.settle(made, Amount(7000, 50, 1), now=now)
        taken.append(clock() - started)
    return scale * median(taken)


def _synced(file: IO[bytes], times: int) -> float:
    """What no ledger can be faster than that has each reservation on the disk."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())
        taken.append(time.perf_counter() - started)
    return SCALE[MS] * median(taken)
