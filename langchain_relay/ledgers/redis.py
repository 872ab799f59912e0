"""A ledger in Redis, for the processes of several machines.

Every operation is one run of one Lua script, so nothing comes between its reads and its writes.
Lua's numbers are doubles: amounts stay decimal strings, `HINCRBY` adds them exactly (64 bits) and
`passes` compares them as text.

What each persistence setting of the server can lose:

- none, or snapshots (`save`): everything since the last snapshot, also when the process is killed;
- `appendonly yes`, `appendfsync everysec`: nothing when the process is killed, about the last
  second when the machine is;
- `appendonly yes`, `appendfsync always`: nothing.

`maxmemory-policy` must be `noeviction`: an evicted counter is a budget that starts again. A replica
that takes over may lack the last moments.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import cast
from urllib.parse import urlsplit

from langchain_relay.engine.ledger import (
    CHECKED_IN_ORDER,
    MOST,
    Account,
    Amount,
    Entry,
    Limit,
    Reservation,
    State,
)
from langchain_relay.errors import MissingExtra, UsageMistake
from langchain_relay.ledgers.store import PAGE, Outcome, StoreLedger

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError as error:
    raise MissingExtra(
        'RedisLedger needs redis-py: pip install "langchain-relay[redis]"'
    ) from error

SCHEMA = 1
DAY_S = 86_400

SCRIPT = r"""
-- KEYS[1]: the base of all names; it has a hash tag, so all of them are in one slot of a cluster.
-- Every caller gives its schema, and a store of another one is not touched.
local base, operation, schema, keep_s = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local MOST = '9223372036854775807'
local UNITS = {'calls', 'tokens', 'nanousd'}

local found = redis.call('GET', base .. ':schema')
if not found then
  redis.call('SET', base .. ':schema', schema)
elseif found ~= schema then
  return {'schema', found}
end

-- a > b, for decimal strings with a sign, without leading zeros
local function passes(a, b)
  local negative = a:sub(1, 1) == '-'
  if negative ~= (b:sub(1, 1) == '-') then return not negative end
  if #a ~= #b then return (#a > #b) ~= negative end
  if a == b then return false end
  return (a > b) ~= negative
end

local function negated(a)
  if a == '0' then return a end
  if a:sub(1, 1) == '-' then return a:sub(2) end
  return '-' .. a
end

local function get(hash, field)
  return redis.call('HGET', hash, field) or '0'
end

-- Counters stop at MOST instead of failing in the middle of an operation.
local function add(hash, field, amount)
  if amount ~= '0' then
    local sum = redis.pcall('HINCRBY', hash, field, amount)
    if type(sum) == 'table' and sum.err then redis.call('HSET', hash, field, MOST) end
  end
end

local function add_all(hash, kind, amounts, sign)
  for i, unit in ipairs(UNITS) do
    local amount = amounts[i]
    if sign < 0 then amount = negated(amount) end
    add(hash, kind .. '_' .. unit, amount)
  end
end

local function account_name(id) return base .. ':account:' .. id end
local function attempt_name(key) return base .. ':attempt:' .. key end

-- A closed account that is used again is another one: late ends of old attempts pass it by.
local function generation(id)
  local name = account_name(id)
  local at = redis.call('HGET', name, 'generation')
  if not at then
    at = tostring(redis.call('INCR', base .. ':generations'))
    redis.call('HSET', name, 'generation', at)
  end
  return at
end

local function amounts_of(attempt, kind)
  local found = {}
  for i, unit in ipairs(UNITS) do found[i] = get(attempt, kind .. '_' .. unit) end
  return found
end

-- calls f(account) for every account of the attempt that was not closed since
local function each_account(attempt, f)
  local ids = cjson.decode(redis.call('HGET', attempt, 'accounts'))
  local generations = cjson.decode(redis.call('HGET', attempt, 'generations'))
  for i, id in ipairs(ids) do
    local account = account_name(id)
    if redis.call('HGET', account, 'generation') == generations[i] then f(account) end
  end
end

local function store(key, model, at, expires_at, ids, worst)
  local attempt, generations = attempt_name(key), {}
  for i, id in ipairs(ids) do generations[i] = generation(id) end
  redis.call('HSET', attempt, 'model', model, 'at', at, 'expires_at', expires_at,
    'accounts', cjson.encode(ids), 'generations', cjson.encode(generations))
  for i, unit in ipairs(UNITS) do redis.call('HSET', attempt, 'worst_' .. unit, worst[i]) end
  redis.call('ZADD', base .. ':history', at, key)
  return attempt
end

local function finish(attempt, key, state, amounts, estimated)
  redis.call('HSET', attempt, 'state', state, 'estimated', estimated)
  for i, unit in ipairs(UNITS) do redis.call('HSET', attempt, 'actual_' .. unit, amounts[i]) end
  redis.call('ZREM', base .. ':open', key)
  redis.call('EXPIRE', attempt, keep_s)
end

local function expire(now)
  for _, key in ipairs(redis.call('ZRANGEBYSCORE', base .. ':open', '-inf', now)) do
    local attempt = attempt_name(key)
    local worst = amounts_of(attempt, 'worst')
    each_account(attempt, function(account) add_all(account, 'settled', worst, 1) end)
    finish(attempt, key, 'expired', worst, '1')
  end
end

-- Attempts at the end of their days leave the history: two at most for each that comes.
local function trim()
  for _, key in ipairs(redis.call('ZRANGE', base .. ':history', 0, 1)) do
    if redis.call('EXISTS', attempt_name(key)) == 0 then
      redis.call('ZREM', base .. ':history', key)
    end
  end
end

-- ARGV from 4: key, model, now, expires_at, ids, limits as [index of id, calls, tokens, nanousd]
-- with decimal strings, worst as three of them.
local function reserve(key, model, now, expires_at, ids_json, limits_json, worst_json)
  expire(now)
  local attempt = attempt_name(key)
  if redis.call('EXISTS', attempt) == 1 then return {'known'} end
  local ids, limits = cjson.decode(ids_json), cjson.decode(limits_json)
  local worst = cjson.decode(worst_json)
  for u, unit in ipairs(UNITS) do
    if worst[u] ~= '0' then
      for l, limit in ipairs(limits) do
        local account, field = account_name(ids[limit[1]]), 'booked_' .. unit
        local used = get(account, field)
        local fits = redis.pcall('HINCRBY', account, field, worst[u])
        local sum = get(account, field)
        if type(fits) == 'table' and fits.err then
          return {'refused', tostring(u), tostring(l), used}
        end
        redis.call('HINCRBY', account, field, negated(worst[u]))
        if passes(sum, limit[u + 1]) then
          if redis.call('HEXISTS', account, 'generation') == 0 then redis.call('DEL', account) end
          return {'refused', tostring(u), tostring(l), used}
        end
      end
    end
  end
  store(key, model, now, expires_at, ids, worst)
  redis.call('HSET', attempt, 'state', 'open', 'estimated', '0')
  for i, unit in ipairs(UNITS) do redis.call('HSET', attempt, 'actual_' .. unit, worst[i]) end
  redis.call('ZADD', base .. ':open', expires_at, key)
  each_account(attempt, function(account) add_all(account, 'booked', worst, 1) end)
  trim()
  return {'made'}
end

-- ARGV from 4: key, state, estimated, actual, and what to store if the attempt is not known
local function settle(
    key, state, estimated, actual_json, model, at, expires_at, ids_json, worst_json)
  local attempt, actual = attempt_name(key), cjson.decode(actual_json)
  local was = redis.call('HGET', attempt, 'state')
  if not was then
    if state == 'released' then return {'done'} end
    store(key, model, at, expires_at, cjson.decode(ids_json), cjson.decode(worst_json))
    each_account(attempt, function(account)
      add_all(account, 'booked', actual, 1)
      add_all(account, 'settled', actual, 1)
    end)
  elseif was == 'open' or was == 'expired' then
    local worst = amounts_of(attempt, 'worst')
    each_account(attempt, function(account)
      add_all(account, 'booked', worst, -1)
      add_all(account, 'booked', actual, 1)
      if was == 'expired' then add_all(account, 'settled', worst, -1) end
      add_all(account, 'settled', actual, 1)
    end)
  else
    return {'done'}
  end
  finish(attempt, key, state, actual, estimated)
  return {'done'}
end

if operation == 'reserve' then
  return reserve(unpack(ARGV, 4))
elseif operation == 'settle' then
  return settle(unpack(ARGV, 4))
elseif operation == 'balance' then
  expire(ARGV[5])
  local account, amounts = account_name(ARGV[4]), {'balance'}
  for _, kind in ipairs({'settled', 'booked'}) do
    for _, unit in ipairs(UNITS) do amounts[#amounts + 1] = get(account, kind .. '_' .. unit) end
  end
  return amounts
elseif operation == 'close' then
  redis.call('DEL', account_name(ARGV[4]))
  return {'done'}
end
return redis.error_reply('no operation ' .. operation)
"""


class RedisLedger(StoreLedger):
    """A ledger in Redis 5 or later, shared by machines.

    Counters of accounts stay until `close`. Finished attempts, and with them the memory of their
    keys, are kept for `history_days` by the server's clock. In a cluster all of a prefix lies in
    one slot, because of the hash tag `{prefix}`.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        prefix: Begins all names; ledgers with different prefixes know nothing of each other.
        history_days: How long finished attempts are kept.
        timeout_s: How long to wait for the server, for a connection and for an answer.

    Raises:
        UsageMistake: the URL is none of Redis, the prefix has braces, or there are no days.
    """

    lost = (redis.RedisError, OSError)

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "langchain-relay",
        history_days: int = 90,
        timeout_s: float = 5.0,
    ) -> None:
        parts = urlsplit(url)
        place = parts.netloc.rpartition("@")[2] or parts.path  # without user and password
        super().__init__(f"{parts.scheme}://{place}")
        if "{" in prefix or "}" in prefix or not prefix:
            raise UsageMistake(f"the prefix {prefix!r} must have a letter and no braces")
        if int(history_days) != history_days or history_days < 1:
            raise UsageMistake(f"history_days={history_days!r}: whole days, 1 or more")
        self._base = f"{{{prefix}}}"
        self._history_s = history_days * DAY_S
        self._client = _client(url, timeout_s)
        self._script = self._client.register_script(SCRIPT)

    def _reserve(self, limits: tuple[Limit, ...], asked: Reservation) -> Reservation:
        place = {account: at for at, account in enumerate(asked.accounts, start=1)}
        answer = self._run(
            *("reserve", asked.key, asked.model, repr(asked.at), repr(asked.expires_at)),
            _ids(asked.accounts),
            json.dumps([[place[limit.account], *_most(limit)] for limit in limits]),
            json.dumps(_texts(asked.amount)),
        )
        if answer[0] == "known":
            return self._known(asked)
        if answer[0] == "refused":
            unit, name = CHECKED_IN_ORDER[int(answer[1]) - 1]
            limit, needed = limits[int(answer[2]) - 1], getattr(asked.amount, name)
            raise limit.refusal(unit, needed=needed, used=int(answer[3]))
        return asked

    def _finish(self, outcome: Outcome) -> None:
        made = outcome.reservation
        self._run(
            *("settle", made.key, outcome.state, str(int(outcome.estimated))),
            json.dumps(_texts(outcome.actual)),
            *(made.model, repr(made.at), repr(made.expires_at), _ids(made.accounts)),
            json.dumps(_texts(made.amount)),
        )

    def _balance(self, account: Account, now: float) -> tuple[Amount, Amount]:
        _, *numbers = self._run("balance", _id(account), repr(now))
        return _amount(numbers[:3]), _amount(numbers[3:])

    def _entries(self, since: float | None, until: float | None) -> Iterator[Entry]:
        history = f"{self._base}:history"
        low, high = _score(since, "-inf"), "+inf" if until is None else f"({until!r}"
        seen: set[str] = set()
        while page := self._page(history, low, high, seen):
            found = self._attempts([key for key, _ in page])
            for (key, at), attempt in zip(page, found, strict=True):
                if attempt:
                    yield _entry(key, attempt)
                if repr(at) != low:
                    low, seen = repr(at), set()
                seen.add(key)

    def _attempts(self, keys: Sequence[str]) -> list[dict[str, str]]:
        with self._client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hgetall(f"{self._base}:attempt:{key}")
            return cast("list[dict[str, str]]", pipeline.execute())

    def _page(self, history: str, low: str, high: str, seen: set[str]) -> list[tuple[str, float]]:
        """The next keys; those of the score `low` that were `seen` are left out."""
        found = self._client.zrangebyscore(
            history, low, high, start=0, num=PAGE + len(seen), withscores=True
        )
        return [(key, at) for key, at in cast("list[tuple[str, float]]", found) if key not in seen]

    def _close(self, account: Account) -> None:
        self._run("close", _id(account))

    def _disconnect(self) -> None:
        self._client.close()

    def _abandon(self) -> None:
        """The client's pool notices a fork by itself."""

    def _known(self, asked: Reservation) -> Reservation:
        (found,) = self._attempts([asked.key])
        if not found:  # it was at the end of its days
            return asked
        return Reservation(
            asked.key,
            _accounts(found),
            _amount([found[f"worst_{unit}"] for unit in UNITS]),
            float(found["expires_at"]),
            found["model"],
            float(found["at"]),
        )

    def _run(self, operation: str, *arguments: str) -> list[str]:
        """One operation; the server learns the script again after it was restarted.

        Raises:
            UsageMistake: the store has another schema.
        """
        answer = cast(
            "list[str]",
            self._script(
                keys=[self._base], args=[operation, str(SCHEMA), str(self._history_s), *arguments]
            ),
        )
        if answer[0] == "schema":
            raise UsageMistake(
                f"{self._where} has schema {answer[1]} under {self._base}, and this version of "
                f"langchain-relay knows {SCHEMA}: use the version that wrote it, or another prefix"
            )
        return answer


UNITS = ("calls", "tokens", "nanousd")
"""As the script has them, in the order in which limits are checked."""


def _client(url: str, timeout_s: float) -> redis.Redis:
    """Answers are text; a broken connection is tried once more on a new one."""
    try:
        return redis.Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 1),
        )
    except ValueError as error:
        raise UsageMistake(f"not a URL of Redis: {error}") from error


def _id(account: Account) -> str:
    return json.dumps([account.scope, account.key, account.window or ""], ensure_ascii=False)


def _ids(accounts: Sequence[Account]) -> str:
    return json.dumps([_id(account) for account in accounts], ensure_ascii=False)


def _accounts(found: dict[str, str]) -> tuple[Account, ...]:
    # cjson writes an empty list as an object
    named = [json.loads(name) for name in json.loads(found["accounts"]) or []]
    return tuple(Account(scope, key, window or None) for scope, key, window in named)


def _texts(amount: Amount) -> list[str]:
    return [str(number) for number in (amount.calls, amount.tokens, amount.cost_nanousd)]


def _most(limit: Limit) -> list[str]:
    limits = (limit.calls, limit.tokens, limit.cost_nanousd)
    return [str(MOST if limit is None else min(limit, MOST)) for limit in limits]


def _amount(texts: Sequence[str]) -> Amount:
    calls, tokens, nanousd = map(int, texts)
    return Amount(nanousd, tokens, calls)


def _entry(key: str, found: dict[str, str]) -> Entry:
    return Entry(
        key,
        _accounts(found),
        found["model"],
        float(found["at"]),
        _amount([found[f"actual_{unit}"] for unit in UNITS]),
        cast("State", found["state"]),
        found["estimated"] == "1",
    )


def _score(value: float | None, without: str) -> str:
    return without if value is None or math.isinf(value) else repr(value)
