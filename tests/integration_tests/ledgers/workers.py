"""What the processes of these tests do; each gets a place and opens its own ledger."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from langchain_relay.engine.errors import BudgetExceeded
from langchain_relay.engine.ledger import Account, Amount, Ledger, Limit
from tests.integration_tests.ledgers.places import Place, opened

# A server that forks: children start within milliseconds and inherit no thread of the tests.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [__name__, *(f"langchain_relay.ledgers.{kind}" for kind in ("sqlite", "redis", "postgres"))]
)

GLOBAL = Account("global", "", "2026-11-21")
FAR_S = 1e9
WORST = Amount(50, 5, 1)
"""What `spend_until_killed` sets aside for each call."""


class Tally:
    """What is spent or set aside, counted beside the ledger: never more than the ledger counts.

    Attributes:
        most: The most that was outside at once.
        booked: The most that the ledger said was spent or set aside, asked after every admission.
    """

    def __init__(self) -> None:
        self._lock = PROCESSES.Lock()
        self._outside = PROCESSES.Value("q", 0, lock=False)
        self._most = PROCESSES.Value("q", 0, lock=False)
        self._booked = PROCESSES.Value("q", 0, lock=False)
        self._admitted = PROCESSES.Value("q", 0, lock=False)

    @property
    def admitted(self) -> int:
        return int(self._admitted.value)

    @property
    def most(self) -> int:
        return int(self._most.value)

    @property
    def booked(self) -> int:
        return int(self._booked.value)

    def admit(self, amount: int) -> None:
        """After the ledger admitted it."""
        with self._lock:
            self._admitted.value += 1
            self._outside.value += amount
            self._most.value = max(self._most.value, self._outside.value)

    def saw(self, booked: int) -> None:
        """What the ledger says is spent or set aside."""
        with self._lock:
            self._booked.value = max(self._booked.value, booked)

    def give_back(self, amount: int) -> None:
        """Before the ledger hears of it."""
        with self._lock:
            self._outside.value -= amount


def spend(place: Place, name: str, **how: Any) -> None:
    """`spend_in` over a ledger of this process."""
    with opened(place) as ledger:
        spend_in(ledger, name, **how)


def spend_in(
    ledger: Ledger,
    name: str,
    *,
    threads: int,
    each: int,
    limits: list[Limit],
    tally: Tally,
    barrier: Any,
) -> None:
    """`threads` threads ask `each` times for 10, and settle at once for 10."""
    with ThreadPoolExecutor(threads) as pool:
        done = [
            pool.submit(_spend, ledger, f"{name}/{n}", each, limits, tally, barrier)
            for n in range(threads)
        ]
        for one in done:
            one.result()


def _spend(
    ledger: Ledger, name: str, each: int, limits: list[Limit], tally: Tally, barrier: Any
) -> None:
    chance = random.Random(name)
    barrier.wait()
    for n in range(each):
        now = time.time()
        try:
            made = ledger.reserve(
                limits, Amount(10, 1, 1), key=f"{name}/{n}", now=now, expires_at=now + FAR_S
            )
        except BudgetExceeded:
            continue
        tally.admit(10)
        booked = ledger.booked(limits[0].account, now=now)
        assert booked.cost_nanousd <= (limits[0].cost_nanousd or 0), booked
        tally.saw(booked.cost_nanousd)
        if limits[0].warn_at is not None and chance.random() < 0.5:  # these may give back
            tally.give_back(10)
            ledger.release(made, now=now)
        else:
            ledger.settle(made, Amount(10, 1, 1), now=now)


@contextmanager
def running(target: Any, *arguments: Any, count: int = 1, **named: Any) -> Any:
    """Processes that run `target(place, name, …)`; none outlives the block."""
    processes = [
        PROCESSES.Process(
            target=target, args=(arguments[0], f"p{n}", *arguments[1:]), kwargs=named, daemon=True
        )
        for n in range(count)
    ]
    for process in processes:
        process.start()
    try:
        yield processes
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


def spend_until_killed(
    place: Place, name: str, log: str, expires_in_s: float, settles: bool
) -> None:
    """Reserve, spend (a line in the log, on disk), settle; for ever, or never get to settle."""
    number = 0
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with opened(place) as ledger:
        while True:
            number += 1
            key = f"{name}-{os.getpid()}-{number}"
            actual, now = number % 50 + 1, time.time()
            made = ledger.reserve(
                [Limit(GLOBAL), Limit(Account("thread", name))],
                WORST,
                key=key,
                now=now,
                expires_at=now + expires_in_s,
            )
            os.write(out, f"{key} {actual}\n".encode())
            os.fsync(out)
            if not settles:
                signal.pause()
            ledger.settle(made, Amount(actual, 1, 1), now=time.time())
