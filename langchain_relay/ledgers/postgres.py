"""A ledger in PostgreSQL, for the processes of several machines.

Every operation is one call of one function in the database, in a transaction of its own: one round
trip, and locks that are held for no longer than the function runs.

No deadlocks: a function locks its own attempt first, while it holds nothing; then accounts, in the
order of their ids. New accounts are inserted before, in the order of their names. Expired attempts
of others are taken only where nobody holds them (`SKIP LOCKED`).

What a crash of the server can lose: nothing, with its defaults `fsync = on` and
`synchronous_commit = on`; with `synchronous_commit = off` the last half second or so.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from string import Template
from typing import Any, TypeVar

from langchain_relay.engine.ledger import (
    CHECKED_IN_ORDER,
    MOST,
    Account,
    Amount,
    Entry,
    Limit,
    Reservation,
)
from langchain_relay.errors import MissingExtra, UsageMistake
from langchain_relay.ledgers.store import PAGE, Outcome, StoreLedger

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
except ImportError as error:
    raise MissingExtra(
        'PostgresLedger needs psycopg: pip install "langchain-relay[postgres]"'
    ) from error

T = TypeVar("T")

IDLE = 8
"""Connections that are kept for the next operation; with more threads at once more are made."""

# Counters stop at 2^63 - 1: the sums are numeric and cannot overflow.
MIGRATIONS = (
    # 1
    """
CREATE TABLE $s.accounts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope text NOT NULL,
    key text NOT NULL,
    window_start text NOT NULL,  -- '': none
    closed boolean NOT NULL DEFAULT false,
    settled_nanousd bigint NOT NULL DEFAULT 0,
    settled_tokens bigint NOT NULL DEFAULT 0,
    settled_calls bigint NOT NULL DEFAULT 0,
    booked_nanousd bigint NOT NULL DEFAULT 0,  -- settled and set aside
    booked_tokens bigint NOT NULL DEFAULT 0,
    booked_calls bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX accounts_in_use ON $s.accounts (scope, key, window_start) WHERE NOT closed;

CREATE TABLE $s.attempts (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key text NOT NULL UNIQUE,
    model text NOT NULL,
    at double precision NOT NULL,
    expires_at double precision NOT NULL,
    ended_at double precision,
    state text NOT NULL,
    estimated boolean NOT NULL,
    worst_nanousd bigint NOT NULL,
    worst_tokens bigint NOT NULL,
    worst_calls bigint NOT NULL,
    nanousd bigint NOT NULL,
    tokens bigint NOT NULL,
    calls bigint NOT NULL,
    accounts bigint[] NOT NULL
);
CREATE INDEX attempts_that_expire ON $s.attempts (expires_at) WHERE state = 'open';
CREATE INDEX attempts_by_time ON $s.attempts (at, id);

CREATE FUNCTION $s.added(counter bigint, more numeric) RETURNS bigint IMMUTABLE LANGUAGE sql AS $$$$
    SELECT least(counter + more, 9223372036854775807)::bigint
$$$$;

-- The ids of accounts by name, each made if it is not there. Their rows are not locked.
CREATE FUNCTION $s.account_ids(scopes text[], keys text[], windows text[]) RETURNS bigint[]
LANGUAGE plpgsql AS $$$$
DECLARE
    ids bigint[];
BEGIN
    SELECT array_agg(a.id ORDER BY n.place) INTO ids
    FROM unnest(scopes, keys, windows) WITH ORDINALITY AS n(scope, key, w, place)
    JOIN $s.accounts a
        ON a.scope = n.scope AND a.key = n.key AND a.window_start = n.w AND NOT a.closed;
    IF coalesce(cardinality(ids), 0) = cardinality(scopes) THEN
        RETURN coalesce(ids, '{}');
    END IF;
    INSERT INTO $s.accounts (scope, key, window_start)
        SELECT n.scope, n.key, n.w FROM unnest(scopes, keys, windows) AS n(scope, key, w)
        ORDER BY 1, 2, 3
        ON CONFLICT (scope, key, window_start) WHERE NOT closed DO NOTHING;
    RETURN NULL;  -- look again: the next statement sees what others inserted
END $$$$;

-- Books nothing and locks in the order of ids; false if one was closed meanwhile.
CREATE FUNCTION $s.locked(ids bigint[]) RETURNS boolean LANGUAGE plpgsql AS $$$$
DECLARE
    in_use integer;
BEGIN
    SELECT count(*) FILTER (WHERE NOT a.closed) INTO in_use FROM (
        SELECT closed FROM $s.accounts WHERE id = ANY (ids) ORDER BY id FOR NO KEY UPDATE
    ) a;
    RETURN in_use = cardinality(ids);
END $$$$;

-- Attempts that nobody ended in time are booked at their worst case.
CREATE FUNCTION $s.expire(p_now double precision) RETURNS void LANGUAGE plpgsql AS $$$$
DECLARE
    late bigint[];
    touched bigint[];
BEGIN
    SELECT array_agg(l.id) INTO late FROM (
        SELECT id FROM $s.attempts WHERE state = 'open' AND expires_at <= p_now
        FOR NO KEY UPDATE SKIP LOCKED
    ) l;
    IF late IS NULL THEN
        RETURN;
    END IF;
    SELECT array_agg(DISTINCT account) INTO touched
        FROM $s.attempts t, unnest(t.accounts) AS account WHERE t.id = ANY (late);
    PERFORM $s.locked(touched);
    UPDATE $s.accounts a SET
        settled_nanousd = $s.added(a.settled_nanousd, w.nanousd),
        settled_tokens = $s.added(a.settled_tokens, w.tokens),
        settled_calls = $s.added(a.settled_calls, w.calls)
    FROM (
        SELECT account, sum(worst_nanousd) AS nanousd, sum(worst_tokens) AS tokens,
            sum(worst_calls) AS calls
        FROM $s.attempts t, unnest(t.accounts) AS account WHERE t.id = ANY (late) GROUP BY account
    ) w WHERE a.id = w.account;
    UPDATE $s.attempts SET state = 'expired', estimated = true, ended_at = expires_at
        WHERE id = ANY (late);
END $$$$;

-- outcome: 'made'; 'known' with what is there; 'refused' with the unit, the limit (both from 1) and
-- what is booked. The limits are rows of an array: place of the account, calls, tokens, nanousd.
CREATE FUNCTION $s.reserve(
    p_key text, p_model text, p_now double precision, p_expires_at double precision,
    scopes text[], keys text[], windows text[], limits bigint[],
    p_calls bigint, p_tokens bigint, p_nanousd bigint,
    OUT outcome text, OUT unit integer, OUT place integer, OUT used bigint, OUT late boolean
) LANGUAGE plpgsql AS $$$$
DECLARE
    worst CONSTANT bigint[] := ARRAY[p_calls, p_tokens, p_nanousd];
    booked bigint[];
    ids bigint[];
    attempt bigint;
BEGIN
    INSERT INTO $s.attempts (key, model, at, expires_at, state, estimated, worst_nanousd,
            worst_tokens, worst_calls, nanousd, tokens, calls, accounts)
        VALUES (p_key, p_model, p_now, p_expires_at, 'open', false, p_nanousd, p_tokens, p_calls,
            p_nanousd, p_tokens, p_calls, '{}')
        ON CONFLICT (key) DO NOTHING RETURNING id INTO attempt;
    late := EXISTS (
        SELECT FROM $s.attempts t
        WHERE t.state = 'open' AND t.expires_at <= p_now AND t.id IS DISTINCT FROM attempt
    );
    IF attempt IS NULL THEN
        outcome := 'known';
        RETURN;
    END IF;
    LOOP
        ids := $s.account_ids(scopes, keys, windows);
        EXIT WHEN ids IS NOT NULL AND $s.locked(ids);
    END LOOP;
    FOR u IN 1..3 LOOP
        CONTINUE WHEN worst[u] = 0;
        FOR l IN 1..coalesce(array_length(limits, 1), 0) LOOP
            SELECT ARRAY[booked_calls, booked_tokens, booked_nanousd] INTO booked
                FROM $s.accounts WHERE id = ids[limits[l][1]];
            IF booked[u]::numeric + worst[u] > limits[l][u + 1] THEN
                outcome := 'refused';
                unit := u;
                place := l;
                used := booked[u];
                DELETE FROM $s.attempts WHERE id = attempt;
                RETURN;
            END IF;
        END LOOP;
    END LOOP;
    UPDATE $s.accounts SET booked_nanousd = booked_nanousd + p_nanousd,
        booked_tokens = booked_tokens + p_tokens, booked_calls = booked_calls + p_calls
        WHERE id = ANY (ids);
    UPDATE $s.attempts SET accounts = ids WHERE id = attempt;
    outcome := 'made';
END $$$$;

-- Ends an attempt once; one that is not known and was spent is stored and booked.
CREATE FUNCTION $s.finish(
    p_key text, p_model text, p_at double precision, p_expires_at double precision,
    scopes text[], keys text[], windows text[], p_state text, p_now double precision,
    p_estimated boolean, p_calls bigint, p_tokens bigint, p_nanousd bigint,
    p_worst_calls bigint, p_worst_tokens bigint, p_worst_nanousd bigint
) RETURNS void LANGUAGE plpgsql AS $$$$
DECLARE
    t $s.attempts%ROWTYPE;
    held bigint[];
    unknown boolean := false;
    booked boolean;  -- the worst case is in both counters, or only in what is booked, or in none
    settled boolean;
BEGIN
    SELECT * INTO t FROM $s.attempts WHERE key = p_key FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        IF p_state = 'released' THEN
            RETURN;
        END IF;
        INSERT INTO $s.attempts (key, model, at, expires_at, state, estimated, worst_nanousd,
                worst_tokens, worst_calls, nanousd, tokens, calls, accounts)
            VALUES (p_key, p_model, p_at, p_expires_at, 'open', false, p_worst_nanousd,
                p_worst_tokens, p_worst_calls, 0, 0, 0, '{}')
            ON CONFLICT (key) DO NOTHING RETURNING * INTO t;
        IF FOUND THEN
            unknown := true;
        ELSE
            SELECT * INTO t FROM $s.attempts WHERE key = p_key FOR NO KEY UPDATE;
        END IF;
    END IF;
    IF t.state NOT IN ('open', 'expired') THEN
        RETURN;
    END IF;
    held := t.accounts;
    IF unknown THEN
        LOOP
            held := $s.account_ids(scopes, keys, windows);
            EXIT WHEN held IS NOT NULL AND $s.locked(held);
        END LOOP;
    ELSE
        PERFORM $s.locked(held);
    END IF;
    booked := NOT unknown;
    settled := t.state = 'expired';
    UPDATE $s.accounts SET
        booked_nanousd = $s.added(booked_nanousd, p_nanousd::numeric
            - CASE WHEN booked THEN t.worst_nanousd ELSE 0 END),
        booked_tokens = $s.added(booked_tokens, p_tokens::numeric
            - CASE WHEN booked THEN t.worst_tokens ELSE 0 END),
        booked_calls = $s.added(booked_calls, p_calls::numeric
            - CASE WHEN booked THEN t.worst_calls ELSE 0 END),
        settled_nanousd = $s.added(settled_nanousd, p_nanousd::numeric
            - CASE WHEN settled THEN t.worst_nanousd ELSE 0 END),
        settled_tokens = $s.added(settled_tokens, p_tokens::numeric
            - CASE WHEN settled THEN t.worst_tokens ELSE 0 END),
        settled_calls = $s.added(settled_calls, p_calls::numeric
            - CASE WHEN settled THEN t.worst_calls ELSE 0 END)
        WHERE id = ANY (held);
    UPDATE $s.attempts SET state = p_state, nanousd = p_nanousd, tokens = p_tokens,
        calls = p_calls, estimated = p_estimated, ended_at = p_now, accounts = held
        WHERE id = t.id;
END $$$$;
""",
)
SCHEMA = len(MIGRATIONS)

ACCOUNTS_OF = """
    (SELECT array_agg(ARRAY[a.scope, a.key, a.window_start] ORDER BY h.place)
     FROM unnest(t.accounts) WITH ORDINALITY AS h(id, place) JOIN $s.accounts a USING (id))
"""
STATEMENTS = {
    "reserve": "SELECT * FROM $s.reserve(%s, %s, %s::float, %s::float, %s::text[], %s::text[],"
    " %s::text[], %s::bigint[], %s::bigint, %s::bigint, %s::bigint)",
    "finish": "SELECT $s.finish(%s, %s, %s::float, %s::float, %s::text[], %s::text[],"
    " %s::text[], %s, %s::float, %s, %s::bigint, %s::bigint, %s::bigint, %s::bigint, %s::bigint,"
    " %s::bigint)",
    "expire": "SELECT $s.expire(%s::float)",
    "balance": "SELECT settled_nanousd, settled_tokens, settled_calls, booked_nanousd,"
    " booked_tokens, booked_calls FROM $s.accounts"
    " WHERE scope = %s AND key = %s AND window_start = %s AND NOT closed",
    "close": "UPDATE $s.accounts SET closed = true"
    " WHERE scope = %s AND key = %s AND window_start = %s AND NOT closed",
    "known": f"SELECT {ACCOUNTS_OF}, worst_nanousd, worst_tokens, worst_calls, expires_at, model,"  # noqa: S608 - our own text
    " at FROM $s.attempts t WHERE key = %s",
    "history": f"SELECT t.id, t.at, key, {ACCOUNTS_OF}, model, nanousd, tokens, calls, state,"  # noqa: S608 - our own text
    " estimated FROM $s.attempts t WHERE (at, t.id) > (%s::float, %s::bigint) AND at < %s::float"
    " ORDER BY at, t.id LIMIT %s",
}


class PostgresLedger(StoreLedger):
    """A ledger in PostgreSQL 12 or later, shared by machines.

    Tables and functions are made when it is first used; that needs the right to create a schema in
    the database, or in a schema that exists and is empty.

    Args:
        url: A connection string of libpq: `postgresql://user@host/database`.
        schema: Where the tables are; ledgers in different schemas know nothing of each other.
        timeout_s: How long to wait for a connection, and for one operation.

    Raises:
        UsageMistake: `url` cannot be read, or `schema` is no plain name.
    """

    lost = (psycopg.Error, OSError)

    def __init__(
        self, url: str, *, schema: str = "langchain_relay", timeout_s: float = 10.0
    ) -> None:
        super().__init__(_without_password(url))
        if not re.fullmatch(r"[a-z_][a-z0-9_]{0,62}", schema):
            raise UsageMistake(
                f"{schema!r} is no name for a schema: lower-case letters, digits and underscores"
            )
        self._url = url
        self._schema = schema
        self._timeout_s = timeout_s
        self._sql = {name: self._ours(text) for name, text in STATEMENTS.items()}
        self._lock = threading.Lock()
        self._idle: list[psycopg.Connection] = []
        self._ready = False

    def _reserve(self, limits: tuple[Limit, ...], asked: Reservation) -> Reservation:
        place = {account: at for at, account in enumerate(asked.accounts, start=1)}
        worst = asked.amount
        rows = [[place[limit.account], *_most(limit)] for limit in limits]
        found = self._one(
            "reserve",
            *(asked.key, asked.model, asked.at, asked.expires_at, *_names(asked.accounts), rows),
            *(worst.calls, worst.tokens, worst.cost_nanousd),
        )
        assert found is not None
        outcome, unit_at, limit_at, used, late = found
        if late:
            self._one("expire", asked.at)
        if outcome == "known":
            return self._known(asked)
        if outcome == "refused":
            unit, name = CHECKED_IN_ORDER[unit_at - 1]
            raise limits[limit_at - 1].refusal(unit, needed=getattr(worst, name), used=used)
        return asked

    def _finish(self, outcome: Outcome) -> None:
        made, actual = outcome.reservation, outcome.actual
        self._one(
            "finish",
            *(made.key, made.model, made.at, made.expires_at, *_names(made.accounts)),
            *(outcome.state, outcome.now, outcome.estimated),
            *(actual.calls, actual.tokens, actual.cost_nanousd),
            *(made.amount.calls, made.amount.tokens, made.amount.cost_nanousd),
        )

    def _balance(self, account: Account, now: float) -> tuple[Amount, Amount]:
        self._one("expire", now)
        found = self._one("balance", account.scope, account.key, account.window or "")
        return (Amount(*found[:3]), Amount(*found[3:])) if found else (Amount(), Amount())

    def _entries(self, since: float | None, until: float | None) -> Iterator[Entry]:
        after = (float("-inf") if since is None else since, -1)
        end = float("inf") if until is None else until
        while rows := self._all("history", *after, end, PAGE):
            yield from (_entry(row) for row in rows)
            after = (rows[-1][1], rows[-1][0])

    def _close(self, account: Account) -> None:
        self._execute("close", (account.scope, account.key, account.window or ""), _nothing)

    def _known(self, asked: Reservation) -> Reservation:
        found = self._one("known", asked.key)
        if found is None:  # refused a moment ago by who asked with the same key: so is this one
            return asked
        accounts, nanousd, tokens, calls, expires_at, model, at = found
        worst = Amount(nanousd, tokens, calls)
        return Reservation(asked.key, _accounts(accounts), worst, expires_at, model, at)

    # --- connections ------------------------------------------------------------------------------

    def _one(self, name: str, *arguments: Any) -> Any:
        return self._execute(name, arguments, lambda cursor: cursor.fetchone())

    def _all(self, name: str, *arguments: Any) -> list[Any]:
        return self._execute(name, arguments, lambda cursor: cursor.fetchall())

    def _execute(
        self, name: str, arguments: Sequence[Any], read: Callable[[psycopg.Cursor], T]
    ) -> T:
        """Run one statement; on a connection that broke while it was idle, once more on a new one.

        That is safe: every statement comes to the same when it is sent twice.
        """
        try:
            with self._connection() as connection:
                return read(connection.execute(self._sql[name], arguments, prepare=True))
        except psycopg.OperationalError:
            self._disconnect()
            with self._connection() as connection:
                return read(connection.execute(self._sql[name], arguments, prepare=True))

    @contextmanager
    def _connection(self) -> Iterator[psycopg.Connection]:
        """A connection for one statement; one that raised is not used again."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        connection = connection or self._connect()
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if len(self._idle) < IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self) -> psycopg.Connection:
        """A connection that commits each statement, to a database of our schema."""
        wait_s = max(1, round(self._timeout_s))
        connection = psycopg.connect(self._url, autocommit=True, connect_timeout=wait_s)
        try:
            connection.execute("SET default_transaction_isolation TO 'read committed'")
            connection.execute(f"SET statement_timeout TO {wait_s * 1000}".encode())
            if not self._ready:
                self._prepare(connection)
                self._ready = True
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: psycopg.Connection) -> None:
        """Bring the database to our schema; processes that do it at once wait for each other.

        Raises:
            UsageMistake: it is of a newer version.
        """
        version = self._version(connection)
        if version > SCHEMA:
            raise UsageMistake(
                f"{self._where} has schema {version} in {self._schema}, and this version of "
                f"langchain-relay knows up to {SCHEMA}: upgrade langchain-relay, or use another one"
            )
        if version == SCHEMA:
            return
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (self._schema,))
            if (
                connection.execute(
                    "SELECT 1 FROM pg_namespace WHERE nspname = %s", (self._schema,)
                ).fetchone()
                is None
            ):  # asked first: it may exist and creating schemas be forbidden
                connection.execute(self._ours("CREATE SCHEMA $s"))
            connection.execute(
                self._ours("CREATE TABLE IF NOT EXISTS $s.schema_version (version integer)")
            )
            for migration in MIGRATIONS[self._version(connection) :]:
                connection.execute(self._ours(migration))
            connection.execute(self._ours("DELETE FROM $s.schema_version"))
            connection.execute(self._ours("INSERT INTO $s.schema_version VALUES (%s)"), (SCHEMA,))

    def _version(self, connection: psycopg.Connection) -> int:
        """0 where nothing is there."""
        table = connection.execute("SELECT to_regclass(%s)", (f"{self._schema}.schema_version",))
        row = table.fetchone()
        if row is None or row[0] is None:
            return 0
        found = connection.execute(self._ours("SELECT max(version) FROM $s.schema_version"))
        version = found.fetchone()
        return (version and version[0]) or 0

    def _ours(self, text: str) -> str:
        """SQL with our schema in it, whose name was checked."""
        return Template(text).substitute(s=self._schema)

    def _disconnect(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _abandon(self) -> None:
        # Closing an inherited connection would end the parent's session.
        _INHERITED.extend(self._idle)
        self._idle = []
        self._lock = threading.Lock()


_INHERITED: list[psycopg.Connection] = []
"""Connections of a parent process: kept, so that nothing closes them."""


def _without_password(url: str) -> str:
    """What errors may say of a connection string."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error as error:
        raise UsageMistake(f"not a connection string of PostgreSQL: {error}") from error
    return f"postgresql://{parts.get('host', '')}/{parts.get('dbname', '')}"


def _nothing(cursor: psycopg.Cursor) -> None:
    del cursor


def _names(accounts: Sequence[Account]) -> tuple[list[str], list[str], list[str]]:
    return (
        [account.scope for account in accounts],
        [account.key for account in accounts],
        [account.window or "" for account in accounts],
    )


def _most(limit: Limit) -> list[int]:
    limits = (limit.calls, limit.tokens, limit.cost_nanousd)
    return [MOST if limit is None else min(limit, MOST) for limit in limits]


def _accounts(found: list[list[str]] | None) -> tuple[Account, ...]:
    return tuple(Account(scope, key, window or None) for scope, key, window in found or ())


def _entry(row: Sequence[Any]) -> Entry:
    _, at, key, accounts, model, nanousd, tokens, calls, state, estimated = row
    amount = Amount(nanousd, tokens, calls)
    return Entry(key, _accounts(accounts), model, at, amount, state, estimated)
