"""What may be spent on hosted models, for whom, and in which window of time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from langchain_relay.engine.errors import NANOUSD_PER_USD
from langchain_relay.engine.ledger import Account, Amount, Limit, storable
from langchain_relay.engine.money import dollars
from langchain_relay.errors import UsageMistake

__all__ = ["Allowance", "Budget", "Window", "allowance", "budget_of", "time_zone"]

Window = Literal["minute", "hour", "day", "week", "month"]

EVERYBODY = "all"
"""The key of the scope `global`."""

_NOTHING = Amount()

_KEY_BYTES = 1_000
"""Of one key; an index of PostgreSQL takes 2,704 for scope, key and window together."""

_KEYS: Mapping[str, tuple[str, ...]] = {"thread": ("thread_id",), "user": ("user_id", "user")}
"""Where the key of a scope stands in the config; any other scope is the name itself."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits, enforced before each request to a hosted model.

    Money is checked against the worst case of a request (an upper bound of its input and all the
    tokens it may write), so the limit is never passed; only what a provider reports above that
    bound can. `usd` and `calls` refuse a hand-over, `tokens` and `share` first shorten it. A
    refusal is an event, and the local model goes on. Zero is a valid limit and means never.

    ```python
    Budget(usd="0.02")  # one answer
    Budget(usd=5, scope="global", window="day", timezone="Europe/Berlin")
    Budget(calls=100, scope="user", window="hour")  # config={"configurable": {"user_id": ...}}
    Budget(usd=1, scope="project")  # config={"metadata": {"project": ...}}
    ```

    Args:
        usd: US dollars; give a string or `Decimal` for exact amounts.
        tokens: Delegated output tokens.
        calls: Requests to hosted models that were not answered by an error.
        share: Delegated tokens over all tokens that are written, 0 to 1. What an answer may still
            write counts as written, so give `max_tokens` with it.
        scope: Whose spending is counted together: `run` (one answer), `thread` (the config's
            `thread_id`), `user` (its `user_id`), `global` (everybody who shares the ledger), or
            any other name of the config's `configurable` or `metadata`.
        window: After which the count begins anew, on the clock: `minute`, `hour`, `day`, `week`
            (from Monday) or `month`. `None`: never.
        timezone: IANA name of the time zone in which windows begin.
        warn_at: Share of a limit at which a `relay.budget.warning` is sent, once per limit and
            window. `None`: never.

    Raises:
        UsageMistake: a limit is negative or no number, no limit is given, or scope, window and
            time zone are none or do not go together.
    """

    usd: str | Decimal | float | None = None
    tokens: int | None = None
    calls: int | None = None
    share: float | None = None
    scope: str = "run"
    window: Window | None = None
    timezone: str = "UTC"
    warn_at: float | None = 0.8

    def __post_init__(self) -> None:
        if all(limit is None for limit in (self.usd, self.tokens, self.calls, self.share)):
            raise UsageMistake("Budget() limits nothing: give usd=, tokens=, calls= or share=")
        self._check_counts()
        self._check_share("share", least=0)
        self._check_share("warn_at")
        self._check_scope()
        self.limit_nanousd  # noqa: B018 - checks `usd` now, not at the first hand-over

    def _check_counts(self) -> None:
        for name in ("tokens", "calls"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise UsageMistake(f"Budget({name}={value!r}): a whole number is needed")
            if value is not None and value < 0:
                raise UsageMistake(
                    f"Budget({name}={value}): a limit cannot be negative; 0 is never"
                )

    def _check_share(self, name: str, least: float | None = None) -> None:
        value: object = getattr(self, name)
        if value is None:
            return
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (0 < value <= 1 or value == least):  # type: ignore[operator]
            raise UsageMistake(f"Budget({name}={value!r}): a share between 0 and 1, or None")

    def _check_scope(self) -> None:
        scope: object = self.scope
        if not isinstance(scope, str) or not scope or scope.startswith("_"):
            raise UsageMistake(
                f"Budget(scope={self.scope!r}): 'run', 'thread', 'user', 'global', or the name of "
                f"a key of the config"
            )
        if self.window is not None and self.window not in get_args(Window):
            raise UsageMistake(
                f"Budget(window={self.window!r}): one of {', '.join(get_args(Window))}, or None"
            )
        if self.window is not None and self.scope == "run":
            raise UsageMistake(
                f"Budget(window={self.window!r}) with scope='run': an answer has no window; give "
                f"scope='global', 'user', 'thread' or a key of the config"
            )
        time_zone(self.timezone)

    @property
    def limit_nanousd(self) -> int | None:
        """`usd` in whole nano-dollars, rounded down."""
        if self.usd is None:
            return None
        try:
            usd = dollars(self.usd)
        except ValueError as error:
            raise UsageMistake(
                f"Budget(usd={self.usd!r}): that {error}; give US dollars, such as '0.02'"
            ) from error
        return math.floor(Fraction(usd) * NANOUSD_PER_USD)  # Decimal would round to 28 digits

    def allowance(self, run_id: str, config: Mapping[str, Any]) -> Allowance:
        """The budget of one answer.

        Args:
            run_id: Of the answer.
            config: It was called with, what it inherited included.

        Raises:
            UsageMistake: the config lacks the key of the scope, or it is none that can be kept.
        """
        if self.scope == "run":
            return Allowance(self, run_id, once=True)
        if self.scope == "global":
            return Allowance(self, EVERYBODY)
        names = _KEYS.get(self.scope, (self.scope,))
        for place in ("configurable", "metadata"):
            values = config.get(place) or {}
            for name in names:
                if values.get(name) not in (None, ""):
                    return Allowance(self, self._key(name, values[name]))
        raise UsageMistake(
            f"Budget(scope={self.scope!r}) needs {names[0]!r}, and this call has none: call with "
            f"config={{'configurable': {{{names[0]!r}: ...}}}}, or in its 'metadata'"
        )

    def _key(self, name: str, value: object) -> str:
        """What stands in the config, as ledgers keep it.

        Raises:
            UsageMistake: they cannot, or nobody would find it again.
        """
        key, kind = str(value), type(value)
        if kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__:
            what = f"is {key}: its address in memory, which names nobody the next time"
        elif not storable(key):
            what = f"is {key!r}: ledgers keep no NUL characters and no lone surrogates"
        elif len(key.encode()) > _KEY_BYTES:
            what = f"has {len(key.encode())} bytes, and ledgers find keys of up to {_KEY_BYTES}"
        else:
            return key
        raise UsageMistake(f"Budget(scope={self.scope!r}): {name!r} {what}; give a short text")

    def window_of(self, now: float) -> str | None:
        """Name of the window in which `now` lies: its length and when it began."""
        if self.window is None:
            return None
        local = datetime.fromtimestamp(now, time_zone(self.timezone))
        return f"{self.window} {_begin(local, self.window).isoformat(timespec='minutes')}"


@dataclass(frozen=True, slots=True)
class Allowance:
    """A budget and whose it is.

    Attributes:
        budget: The limits.
        key: Of the account, within the budget's scope.
        once: For one answer: nobody asks for the account again.
        before: What is off its limits already, and counted elsewhere.
    """

    budget: Budget
    key: str
    once: bool = False
    before: Amount = _NOTHING

    def account(self, now: float) -> Account:
        """Where spending is counted now."""
        return Account(self.budget.scope, self.key, self.budget.window_of(now))

    def limits(self, now: float, max_tokens: int, written: int) -> Iterator[Limit]:
        """What may be spent.

        Args:
            now: Wall-clock seconds.
            max_tokens: What the answer may write.
            written: Tokens of the account's earlier answers, both writers together.
        """
        budget, account = self.budget, self.account(now)
        if any(n is not None for n in (budget.limit_nanousd, budget.tokens, budget.calls)):
            usd, usd_off = _left(budget.limit_nanousd, self.before.cost_nanousd)
            tokens, tokens_off = _left(budget.tokens, self.before.tokens)
            calls, calls_off = _left(budget.calls, self.before.calls)
            off = Amount(usd_off, tokens_off, calls_off)
            yield Limit(account, usd, tokens, calls, budget.warn_at, before=off)
        if budget.share is not None:
            most = int(Decimal(str(budget.share)) * (written + max_tokens))
            yield Limit(account, tokens=most, warn_at=budget.warn_at, of_share=True)

    def written(self, now: float) -> Account | None:
        """Where the tokens of finished answers are counted; `None`: nobody asks for them."""
        if self.budget.share is None or self.once:
            return None
        account = self.account(now)
        return Account("_written", f"{account.scope}:{account.key}", account.window)


def allowance(given: Budget | Allowance, run_id: str, config: Mapping[str, Any]) -> Allowance:
    """`Budget.allowance`; one that is decided already stays as it is."""
    return given if isinstance(given, Allowance) else given.allowance(run_id, config)


def _left(limit: int | None, before: int) -> tuple[int | None, int]:
    """What is left of a limit, and how much of it is gone."""
    if limit is None:
        return None, 0
    gone = min(before, limit)
    return limit - gone, gone


def budget_of(given: Budget | Allowance) -> Budget:
    """The limits of either."""
    return given.budget if isinstance(given, Allowance) else given


def time_zone(name: str, told: str = "Budget(timezone={!r})") -> ZoneInfo:
    """The time zone of that name.

    Args:
        name: IANA's.
        told: What an error calls it, with a place for the name.

    Raises:
        UsageMistake: there is none.
    """
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError, AttributeError) as error:
        raise UsageMistake(
            f"{told.format(name)}: no such IANA time zone here; 'UTC' or, for example, "
            f"'Europe/Berlin' (systems without time zones need the package tzdata)"
        ) from error


def _begin(local: datetime, window: Window) -> datetime:
    """When the window around `local` began. `fold` tells the two 2 o'clocks of autumn apart."""
    if window == "minute":
        return local.replace(second=0, microsecond=0)
    if window == "hour":
        return local.replace(minute=0, second=0, microsecond=0)
    midnight = local.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    if window == "week":
        return midnight - timedelta(days=midnight.weekday())
    return midnight.replace(day=1) if window == "month" else midnight
