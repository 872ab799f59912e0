"""Who may be asked, at what price, and what stands against asking them at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from langchain_relay.budget import Allowance, Budget, budget_of
from langchain_relay.checks import check_countable
from langchain_relay.delegates.fallback import members
from langchain_relay.delegates.local import LocalDelegate
from langchain_relay.delegates.terms import Member, priced_as
from langchain_relay.engine.values import Delegate, LocalModel
from langchain_relay.errors import UsageMistake
from langchain_relay.prices import OnUnknownPrice, Price, PriceBook, UserPrice

if TYPE_CHECKING:
    from langchain_core.rate_limiters import BaseRateLimiter


@dataclass(frozen=True, slots=True)
class Roster:
    """The hosted models of a relay.

    Attributes:
        hosted: One, or several in a `FallbackDelegate`.
        book: Where their prices are found.
        on_unknown_price: What a price that is not found means.
        rate_limiter: Waited for before each request, beside the delegate's own.
    """

    hosted: Delegate
    book: PriceBook
    on_unknown_price: OnUnknownPrice
    rate_limiter: BaseRateLimiter | None

    def members(self, hosted_model: str | None) -> list[Member]:
        """Who may be asked, in order; `hosted_model` renames the first."""
        first, *others = members(self.hosted)
        return [self._member(first, hosted_model), *(self._member(one, None) for one in others)]

    def _member(self, delegate: Delegate, model: str | None) -> Member:
        if model is not None and (for_model := getattr(delegate, "for_model", None)):
            delegate = for_model(model)
        limiters = (self.rate_limiter, getattr(delegate, "rate_limiter", None))
        return Member(
            delegate,
            self._price(delegate, model or delegate.model),
            model,
            reported_price=partial(self._price, delegate),
            rate_limiters=tuple(limiter for limiter in limiters if limiter is not None),
        )

    def _price(self, delegate: Delegate, model: str) -> Price | None:
        asked = priced_as(delegate)
        local = isinstance(delegate, LocalDelegate)
        if local and self.book.users(model, base_url=asked["base_url"]) is None:
            return UserPrice(Decimal(0), Decimal(0), source="local")
        if self.on_unknown_price == "zero":
            return self.book.require(model, on_unknown="zero", **asked)
        return self.book.find(model, **asked)

    def check_budgets(
        self, given: Sequence[Budget | Allowance], hosted_model: str | None, warned_of: set[str]
    ) -> None:
        """A budget that cannot hold is refused before anything is written.

        Args:
            given: The budgets of an answer.
            hosted_model: Renames the first member.
            warned_of: Models without a price that were warned of; those found here are added.

        Raises:
            PriceUnknown: a budget in USD and no price.
            UsageMistake: nobody can say how many requests one attempt sends.
        """
        if not given:
            return
        in_usd = any(budget_of(one).usd is not None for one in given)
        for member in self.members(hosted_model):
            check_countable(member.delegate, member.name)
            if in_usd and member.price is None and member.name not in warned_of:
                self.book.require(
                    member.name,
                    on_unknown=self.on_unknown_price,
                    of_budget=True,
                    **priced_as(member.delegate),
                )
                warned_of.add(member.name)


def check_roles(hosted: Delegate, local: LocalModel) -> None:
    """One model in both roles would wait for a sequence that it holds itself.

    Raises:
        UsageMistake: a delegate decodes on `local`.
    """
    if any(isinstance(d, LocalDelegate) and d.plays(local) for d in members(hosted)):
        raise UsageMistake(
            "model and delegate decode in one context, so that answers would wait for "
            "sequences they hold themselves: give LocalDelegate a model of its own, "
            "LlamaCppModel(..., share=False)"
        )
