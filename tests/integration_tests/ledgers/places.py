"""Where the ledgers under test keep what they know; a place is sent to other processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from langchain_relay.engine.ledger import MemoryLedger

_numbers = count()


@dataclass(frozen=True)
class Place:
    """`name` is a schema or a prefix, so that tests share a server and know nothing of each other.

    A Redis or PostgreSQL that is slow to answer here is a busy machine: the limits are wide.
    """

    kind: str
    url: str = ""
    name: str = ""

    def open(self) -> Any:
        if self.kind == "sqlite":
            from langchain_relay.ledgers import SQLiteLedger

            return SQLiteLedger(self.url, synchronous="full" if self.name == "full" else "normal")
        if self.kind == "redis":
            from langchain_relay.ledgers import RedisLedger

            return RedisLedger(self.url, prefix=self.name, timeout_s=20)
        if self.kind == "postgres":
            from langchain_relay.ledgers import PostgresLedger

            return PostgresLedger(self.url, schema=self.name, timeout_s=20)
        return MemoryLedger()


def fresh_name() -> str:
    return f"ledger_{next(_numbers)}"


@contextmanager
def opened(place: Place) -> Iterator[Any]:
    ledger = place.open()
    try:
        yield ledger
    finally:
        if place.kind != "memory":
            ledger.disconnect()
