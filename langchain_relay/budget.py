"""What an answer may spend on hosted models."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from langchain_relay.engine.errors import NANOUSD_PER_USD
from langchain_relay.engine.ledger import Account, Limit
from langchain_relay.errors import UsageMistake


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one answer, enforced before each request to a hosted model.

    Money is checked against the worst case of a request (an upper bound of its input and all the
    tokens it may write), so the limit is never passed; only what a provider reports above that
    bound can. `usd` and `calls` refuse a hand-over, `tokens` first shortens it. A refusal is an
    event, and the local model goes on. `Budget(calls=0)` is valid and means never.

    Args:
        usd: US dollars; give a string or `Decimal` for exact amounts.
        tokens: Delegated output tokens.
        calls: Requests to hosted models that were not answered by an error.
        warn_at: Share of a limit at which a `relay.budget.warning` is sent, once per limit.

    Raises:
        UsageMistake: a limit is negative or no number, or no limit is given.
    """

    usd: str | Decimal | float | None = None
    tokens: int | None = None
    calls: int | None = None
    warn_at: float | None = 0.8

    def __post_init__(self) -> None:
        if self.usd is None and self.tokens is None and self.calls is None:
            raise UsageMistake("Budget() limits nothing: give usd=, tokens= or calls=")
        for name in ("tokens", "calls"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise UsageMistake(f"Budget({name}={value!r}): a whole number is needed")
            if value is not None and value < 0:
                raise UsageMistake(
                    f"Budget({name}={value}): a limit cannot be negative; 0 is never"
                )
        share: object = self.warn_at
        if share is not None and not (isinstance(share, int | float) and 0 < share <= 1):
            raise UsageMistake(
                f"Budget(warn_at={self.warn_at!r}): a share between 0 and 1, or None"
            )
        self.limit_nanousd  # noqa: B018 - checks `usd` now, not at the first hand-over

    @property
    def limit_nanousd(self) -> int | None:
        """`usd` in whole nano-dollars, rounded down."""
        if self.usd is None:
            return None
        try:
            usd = Decimal(str(self.usd))
        except InvalidOperation as error:
            message = f"Budget(usd={self.usd!r}): give an amount in US dollars, such as '0.02'"
            raise UsageMistake(message) from error
        if not usd.is_finite() or usd < 0:
            raise UsageMistake(f"Budget(usd={self.usd!r}): a limit is finite and not negative")
        return int(usd * NANOUSD_PER_USD)

    def limit(self, run_id: str) -> Limit:
        """The limit on the account of the answer with this run id."""
        account = Account("run", run_id)
        return Limit(account, self.limit_nanousd, self.tokens, self.calls, self.warn_at)
