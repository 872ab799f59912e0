"""A ledger in one SQLite file, for all threads and processes of a machine.

WAL mode, so that the history is read while others spend. Every operation is one `BEGIN IMMEDIATE`
transaction of about ten statements: who comes second waits. A killed process loses nothing.

A machine that loses its power loses no reservation, for each is synced to the disk before anything
is spent. How one was settled is synced with the next reservation: lost, the reservation expires and
is booked at its worst case. `synchronous="normal"` syncs neither.

Not for network file systems: SQLite's locks and WAL need one machine.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from langchain_relay.engine.ledger import MOST, Account, Amount, Entry, Limit, Reservation, admit
from langchain_relay.errors import UsageMistake
from langchain_relay.ledgers.store import PAGE, Outcome, StoreLedger

MIGRATIONS = (
    # 1
    """
    CREATE TABLE accounts (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        scope TEXT NOT NULL,
        key TEXT NOT NULL,
        "window" TEXT NOT NULL,  -- '': none
        closed INTEGER NOT NULL DEFAULT 0,
        settled_nanousd INTEGER NOT NULL DEFAULT 0,
        settled_tokens INTEGER NOT NULL DEFAULT 0,
        settled_calls INTEGER NOT NULL DEFAULT 0,
        booked_nanousd INTEGER NOT NULL DEFAULT 0,  -- settled and set aside
        booked_tokens INTEGER NOT NULL DEFAULT 0,
        booked_calls INTEGER NOT NULL DEFAULT 0
    );
    CREATE UNIQUE INDEX accounts_in_use ON accounts(scope, key, "window") WHERE closed = 0;
    CREATE TABLE attempts (
        id INTEGER PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        model TEXT NOT NULL,
        at REAL NOT NULL,
        expires_at REAL NOT NULL,
        state TEXT NOT NULL,
        estimated INTEGER NOT NULL,
        worst_nanousd INTEGER NOT NULL,
        worst_tokens INTEGER NOT NULL,
        worst_calls INTEGER NOT NULL,
        nanousd INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        calls INTEGER NOT NULL
    );
    CREATE INDEX attempts_that_expire ON attempts(expires_at) WHERE state = 'open';
    CREATE TABLE holds (
        attempt INTEGER NOT NULL,
        account INTEGER NOT NULL,
        place INTEGER NOT NULL,
        PRIMARY KEY (attempt, account)
    ) WITHOUT ROWID;
    """,
    # 2: the history by time, and when an attempt ended
    """
    ALTER TABLE attempts ADD COLUMN ended_at REAL;
    CREATE INDEX attempts_by_time ON attempts(at, id);
    """,
)
SCHEMA = len(MIGRATIONS)
APPLICATION_ID = 0x72656C61
"""Marks the file as ours ("rela"), so that no other database gets our tables."""

MAGIC = b"SQLite format 3\0"
"""How every file of SQLite begins that is not empty."""

BALANCE = (
    "settled_nanousd, settled_tokens, settled_calls, booked_nanousd, booked_tokens, booked_calls"
)
ATTEMPT = "id, key, model, at, expires_at, worst_nanousd, worst_tokens, worst_calls, state"


def require_database(path: Path) -> None:
    """Refuse a file that is neither empty nor a database: it would refuse every hand-over.

    Raises:
        UsageMistake: it begins otherwise.
    """
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(MAGIC)) not in (b"", MAGIC):
            raise UsageMistake(f"{path} is no database of SQLite; use another file")


class SQLiteLedger(StoreLedger):
    """A ledger in a file, shared by the threads and processes of one machine.

    One connection for each process, with a lock; forked children open their own.

    Args:
        path: The file; made when it is first used, its folder must exist.
        synchronous: `"full"`: a reservation survives the loss of power, for one `fsync` each.
            `"normal"`: what was booked survives a killed process, and may be lost with the power.
        timeout_s: How long to wait for other processes.

    Raises:
        UsageMistake: the folder does not exist, or the path is a folder.
    """

    lost = (sqlite3.Error,)

    def __init__(
        self,
        path: str | Path,
        *,
        synchronous: Literal["full", "normal"] = "full",
        timeout_s: float = 30.0,
    ) -> None:
        super().__init__(str(path))
        self._path = _usable(path)
        self._synchronous = synchronous
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    def _reserve(self, limits: tuple[Limit, ...], asked: Reservation) -> Reservation:
        with self._writing() as db:
            _expire(db, asked.at)
            if known := _known(db, asked.key):
                return known
            rows = {account: _row(db, account) for account in asked.accounts}
            booked = {account: _amounts(row)[1] for account, row in rows.items()}
            admit(limits, [booked[limit.account] for limit in limits], asked.amount)
            attempt = _insert(db, asked, "open", asked.amount, estimated=False)
            for place, row in enumerate(rows.values()):
                db.execute("INSERT INTO holds VALUES (?, ?, ?)", (attempt, row[0], place))
                _book(db, row, settled=Amount(), booked=asked.amount)
            return asked

    def _finish(self, outcome: Outcome) -> None:
        with self._writing(durable=False) as db:
            known = _ended(db, outcome)
        if not known and outcome.state == "settled":
            with self._writing() as db:
                if not _ended(db, outcome):
                    _insert_settled(db, outcome)

    def _balance(self, account: Account, now: float) -> tuple[Amount, Amount]:
        with self._writing(durable=False) as db:
            _expire(db, now)
            found = db.execute(FIND, _names(account)).fetchone()
        return _amounts(found) if found else (Amount(), Amount())

    def _entries(self, since: float | None, until: float | None) -> Iterator[Entry]:
        # Its own connection: a reader that dawdles holds up nobody's writes.
        db = self._connect()
        try:
            after = (-math.inf if since is None else since, -1)
            end = math.inf if until is None else until
            while rows := db.execute(HISTORY, (*after, end, PAGE)).fetchall():
                for row in rows:
                    yield _entry(row, db.execute(HELD, (row[0],)))
                after = (rows[-1][3], rows[-1][0])
        finally:
            db.close()

    def _close(self, account: Account) -> None:
        with self._writing(durable=False) as db:
            db.execute(
                "UPDATE accounts SET closed = 1"
                ' WHERE scope = ? AND key = ? AND "window" = ? AND closed = 0',
                _names(account),
            )

    def _disconnect(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None

    def _abandon(self) -> None:
        # Closing an inherited connection would drop the parent's locks; SQLite forbids to use it.
        if self._connection is not None:
            _INHERITED.append(self._connection)
        self._connection = None
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def _writing(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One transaction that no other process writes beside; undone if the block raises."""
        with self._lock:
            if self._connection is None:
                self._connection = self._connect()
            db = self._connection
            full = durable and self._synchronous == "full"
            db.execute(f"PRAGMA synchronous = {'full' if full else 'normal'}")
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def _connect(self) -> sqlite3.Connection:
        """A connection to a file of our schema.

        Raises:
            UsageMistake: it is another program's database, or of a newer version.
        """
        db = sqlite3.connect(
            self._path, timeout=self._timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(db, self._path, self._timeout_s)
        except BaseException:
            db.close()
            raise
        return db


_INHERITED: list[sqlite3.Connection] = []
"""Connections of a parent process: kept, so that nothing closes them."""

FIND = f'SELECT id, {BALANCE} FROM accounts WHERE scope = ? AND key = ? AND "window" = ? AND closed = 0'  # noqa: S608, E501 - our own columns
HISTORY = (
    "SELECT id, key, model, at, nanousd, tokens, calls, state, estimated FROM attempts"
    " WHERE (at, id) > (?, ?) AND at < ? ORDER BY at, id LIMIT ?"
)
HELD = (
    'SELECT scope, key, "window" FROM accounts JOIN holds ON account = id WHERE attempt = ?'
    " ORDER BY place"
)

# --- the file -------------------------------------------------------------------------------------


def _usable(path: str | Path) -> Path:
    found = Path(path).expanduser()
    if str(path) in ("", ":memory:"):
        raise UsageMistake(
            f'SQLiteLedger needs a file, not {str(path)!r}; ledger="memory" has none'
        )
    if found.is_dir():
        raise UsageMistake(f"{found} is a folder; name a file in it, such as {found / 'spent.db'}")
    if not found.parent.is_dir():
        raise UsageMistake(f"the folder {found.parent} does not exist; make it, or use another one")
    return found


def _prepare(db: sqlite3.Connection, path: Path, timeout_s: float) -> None:
    """Bring the file to our schema; processes that do it at once wait for each other."""
    _require_ours(db, path)
    version = _version(db)
    if version == SCHEMA:
        return
    if version > SCHEMA:
        raise UsageMistake(
            f"{path} has schema {version}, and this version of langchain-relay knows up to "
            f"{SCHEMA}: upgrade langchain-relay, or use another file"
        )
    _enter_wal(db, timeout_s)
    db.execute("BEGIN IMMEDIATE")
    try:
        for migration in MIGRATIONS[_version(db) :]:
            for statement in migration.split(";\n"):
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {SCHEMA}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _version(db: sqlite3.Connection) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    return version


def _require_ours(db: sqlite3.Connection, path: Path) -> None:
    # In this order: another process may be making the tables, and marks them with the same commit.
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise UsageMistake(f"{path} is a database of another program; use another file")


def _enter_wal(db: sqlite3.Connection, timeout_s: float) -> None:
    """SQLite does not wait for other processes here, so we do."""
    give_up = time.monotonic() + timeout_s
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)
        else:
            return


# --- rows -----------------------------------------------------------------------------------------


def _names(account: Account) -> tuple[str, str, str]:
    return account.scope, account.key, account.window or ""


def _amounts(row: tuple[int, ...]) -> tuple[Amount, Amount]:
    """Settled and booked of an account's row, which begins with its id."""
    return Amount(*row[1:4]), Amount(*row[4:7])


def _row(db: sqlite3.Connection, account: Account) -> tuple[int, ...]:
    """The row of an account in use; made where there is none."""
    names = _names(account)
    found: tuple[int, ...] | None = db.execute(FIND, names).fetchone()
    if found is None:
        db.execute('INSERT INTO accounts (scope, key, "window") VALUES (?, ?, ?)', names)
        found = db.execute(FIND, names).fetchone()
    return found


def _book(db: sqlite3.Connection, row: tuple[int, ...], *, settled: Amount, booked: Amount) -> None:
    """Add to an account's counters. The sums are Python's: SQLite's would become floats."""
    before = _amounts(row)
    sums = (before[0] + settled, before[1] + booked)
    db.execute(
        "UPDATE accounts SET settled_nanousd = ?, settled_tokens = ?, settled_calls = ?,"
        " booked_nanousd = ?, booked_tokens = ?, booked_calls = ? WHERE id = ?",
        (*_columns(sums[0]), *_columns(sums[1]), row[0]),
    )


def _columns(amount: Amount) -> tuple[int, int, int]:
    return min(amount.cost_nanousd, MOST), min(amount.tokens, MOST), min(amount.calls, MOST)


def _held(db: sqlite3.Connection, attempt: int) -> Iterable[tuple[int, ...]]:
    """The rows of the accounts that an attempt is booked on, closed ones included."""
    return db.execute(
        f"SELECT id, {BALANCE} FROM accounts JOIN holds ON account = id WHERE attempt = ?",  # noqa: S608
        (attempt,),
    ).fetchall()


def _known(db: sqlite3.Connection, key: str) -> Reservation | None:
    found = db.execute(
        f"SELECT {ATTEMPT} FROM attempts WHERE key = ?",  # noqa: S608 - our own columns
        (key,),
    ).fetchone()
    if found is None:
        return None
    attempt, _, model, at, expires_at, *worst, _ = found
    accounts = tuple(_account(row) for row in db.execute(HELD, (attempt,)))
    return Reservation(key, accounts, Amount(*worst), expires_at, model, at)


def _account(row: tuple[Any, ...]) -> Account:
    return Account(row[0], row[1], row[2] or None)


def _entry(row: tuple[Any, ...], accounts: Iterable[tuple[Any, ...]]) -> Entry:
    _, key, model, at, nanousd, tokens, calls, state, estimated = row
    return Entry(
        key,
        tuple(_account(account) for account in accounts),
        model,
        at,
        Amount(nanousd, tokens, calls),
        state,
        bool(estimated),
    )


def _insert(
    db: sqlite3.Connection,
    asked: Reservation,
    state: str,
    amount: Amount,
    *,
    estimated: bool,
    ended_at: float | None = None,
) -> int:
    """A new attempt; its id."""
    inserted = db.execute(
        "INSERT INTO attempts (key, model, at, expires_at, state, estimated, ended_at,"
        " worst_nanousd, worst_tokens, worst_calls, nanousd, tokens, calls)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(asked.key, asked.model, asked.at, asked.expires_at, state, estimated, ended_at),
            *_columns(asked.amount),
            *_columns(amount),
        ),
    )
    assert inserted.lastrowid is not None
    return inserted.lastrowid


def _insert_settled(db: sqlite3.Connection, outcome: Outcome) -> None:
    """What the file has never heard of was spent all the same."""
    asked, actual = outcome.reservation, outcome.actual
    attempt = _insert(
        db, asked, "settled", actual, estimated=outcome.estimated, ended_at=outcome.now
    )
    for place, account in enumerate(asked.accounts):
        row = _row(db, account)
        db.execute("INSERT INTO holds VALUES (?, ?, ?)", (attempt, row[0], place))
        _book(db, row, settled=actual, booked=actual)


def _ended(db: sqlite3.Connection, outcome: Outcome) -> bool:
    """Book the end of an attempt, unless it has one that is final; false if it is not known."""
    found = db.execute(
        f"SELECT {ATTEMPT} FROM attempts WHERE key = ?",  # noqa: S608 - our own columns
        (outcome.reservation.key,),
    ).fetchone()
    if found and found[8] in ("open", "expired"):
        _replace(db, found, outcome)
    return found is not None


def _replace(db: sqlite3.Connection, found: tuple[Any, ...], outcome: Outcome) -> None:
    """Book the actual amount in place of the worst case, which counts as settled if it expired."""
    attempt, worst, actual = found[0], Amount(*found[5:8]), outcome.actual
    more = actual - worst
    for row in _held(db, attempt):
        _book(db, row, settled=more if found[8] == "expired" else actual, booked=more)
    db.execute(
        "UPDATE attempts SET state = ?, nanousd = ?, tokens = ?, calls = ?, estimated = ?,"
        " ended_at = ? WHERE id = ?",
        (outcome.state, *_columns(actual), outcome.estimated, outcome.now, attempt),
    )


def _expire(db: sqlite3.Connection, now: float) -> None:
    """Book what nobody settled in time at its worst case: unknown is not zero."""
    late = db.execute(
        "SELECT id, worst_nanousd, worst_tokens, worst_calls FROM attempts"
        " WHERE state = 'open' AND expires_at <= ?",
        (now,),
    ).fetchall()
    for attempt, *worst in late:
        for row in _held(db, attempt):
            _book(db, row, settled=Amount(*worst), booked=Amount())
        db.execute(
            "UPDATE attempts SET state = 'expired', estimated = 1, ended_at = expires_at"
            " WHERE id = ?",
            (attempt,),
        )
