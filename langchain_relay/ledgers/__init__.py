"""Where spending is kept: in this process, in a file, in Redis or in PostgreSQL.

    RelayChatModel(..., ledger="spending.db")                       # a path: SQLite
    RelayChatModel(..., ledger="postgresql://relay@db/spending")
    RelayChatModel(..., ledger=RedisLedger("redis://cache:6379/0", prefix="team-a"))

All of them keep the same promises (`langchain_relay.engine.ledger.Ledger`). Redis needs
`langchain-relay[redis]`, PostgreSQL `langchain-relay[postgres]`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_relay.errors import UsageMistake

if TYPE_CHECKING:
    from langchain_relay.engine.ledger import Ledger, MemoryLedger
    from langchain_relay.ledgers.history import Total, totals
    from langchain_relay.ledgers.postgres import PostgresLedger
    from langchain_relay.ledgers.redis import RedisLedger
    from langchain_relay.ledgers.sqlite import SQLiteLedger

__all__ = [
    "MemoryLedger",
    "PostgresLedger",
    "RedisLedger",
    "SQLiteLedger",
    "Total",
    "ledger_from",
    "totals",
]

_HOMES = {
    "MemoryLedger": "langchain_relay.engine.ledger",
    "PostgresLedger": "langchain_relay.ledgers.postgres",
    "RedisLedger": "langchain_relay.ledgers.redis",
    "SQLiteLedger": "langchain_relay.ledgers.sqlite",
    "Total": "langchain_relay.ledgers.history",
    "totals": "langchain_relay.ledgers.history",
}

_BY_SCHEME = {
    "postgres": "PostgresLedger",
    "postgresql": "PostgresLedger",
    "redis": "RedisLedger",
    "rediss": "RedisLedger",
    "unix": "RedisLedger",
}


def ledger_from(where: str | Path | Ledger) -> Ledger:
    """The ledger that `where` names; a ledger is itself. Nothing is connected to yet.

    Args:
        where: `"memory"`, `"redis://…"`, `"postgresql://…"`, `"sqlite:///path"`, or a path, which
            is SQLite's.

    Raises:
        UsageMistake: no ledger goes by that name, the path's folder does not exist, its file is no
            database, or `where` is nothing of all this.
        MissingExtra: the client of that store is not installed.
    """
    if not isinstance(where, str | Path):
        if isinstance(where, type) or not callable(getattr(where, "reserve", None)):
            raise UsageMistake(
                f"ledger={where!r}: pass a path such as 'spending.db', a URL (redis://, "
                "postgresql://), 'memory', or a ledger such as SQLiteLedger('spending.db')"
            )
        return where
    if where == "memory":
        from langchain_relay.engine.ledger import MemoryLedger

        return MemoryLedger()
    scheme, found, rest = str(where).partition("://")
    if isinstance(where, Path) or not found:
        return _sqlite(where)
    if scheme == "sqlite":
        return _sqlite(rest.removeprefix("/"))
    if scheme not in _BY_SCHEME:
        raise UsageMistake(
            f"there is no ledger for {scheme}://; use a path or sqlite:///path, redis://, "
            "postgresql:// or memory"
        )
    ledger: Ledger = __getattr__(_BY_SCHEME[scheme])(where)
    return ledger


def _sqlite(path: str | Path) -> Ledger:
    from langchain_relay.ledgers.sqlite import SQLiteLedger, require_database

    ledger = SQLiteLedger(path)
    require_database(ledger.path)
    return ledger


def __getattr__(name: str) -> type:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: type = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
