"""What every LangChain chat model of a run costs, not only the relay's."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from langchain_core.tracers.context import register_configure_hook

from langchain_relay.callbacks.model_calls import ModelCall, ModelCallHandler
from langchain_relay.prices import UserPrices
from langchain_relay.report import usd

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLUMNS = ("model", "calls", "input", "cached", "output", "reasoning", "cost", "price from")


@dataclass(frozen=True, slots=True)
class ModelCosts:
    """Sums over the calls of one model.

    Attributes:
        model: The name the provider reports, else the configured one.
        calls: Runs that ended, failed ones and those from the cache included.
        from_cache: Of these, those that LangChain's cache answered: no tokens, no cost.
        failed: Of these, those that ended with an error; what they cost is known only where it
            was reported.
        unpriced: Of these, those whose cost nobody knows: no price, or no usage.
        estimated: Of these, those booked at their worst case.
        input_tokens: Tokens read, cached ones included.
        output_tokens: Tokens written, reasoning included.
        cached_input_tokens: Of the input, read from the provider's cache.
        cache_write_tokens: Of the input, written to the provider's cache.
        reasoning_tokens: Of the output, hidden reasoning.
        cost_nanousd: Nano-dollars of all calls with a known cost.
        price_sources: Where the prices come from.
    """

    model: str
    calls: int = 0
    from_cache: int = 0
    failed: int = 0
    unpriced: int = 0
    estimated: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_nanousd: int = 0
    price_sources: frozenset[str] = frozenset()

    def plus(self, call: ModelCall) -> ModelCosts:
        """These sums and one more call."""
        used = None if call.from_cache else call.usage
        unpriced = call.cost_nanousd is None and call.error is None
        return replace(
            self,
            calls=self.calls + 1,
            from_cache=self.from_cache + call.from_cache,
            failed=self.failed + (call.error is not None),
            unpriced=self.unpriced + unpriced,
            estimated=self.estimated + call.estimated,
            input_tokens=self.input_tokens + (used.input_tokens if used else 0),
            output_tokens=self.output_tokens + (used.output_tokens if used else 0),
            cached_input_tokens=self.cached_input_tokens
            + ((used and used.cached_input_tokens) or 0),
            cache_write_tokens=self.cache_write_tokens + ((used and used.cache_write_tokens) or 0),
            reasoning_tokens=self.reasoning_tokens + ((used and used.reasoning_tokens) or 0),
            cost_nanousd=self.cost_nanousd + (call.cost_nanousd or 0),
            price_sources=self.price_sources
            | (frozenset({call.price_source}) if call.price_source else frozenset()),
        )

    @property
    def cost(self) -> str:
        """The cost in words; what is not known is said."""
        if not self.unpriced:
            return usd(self.cost_nanousd)
        if self.unpriced == self.calls:
            return "unknown"
        return f"{usd(self.cost_nanousd)} and {_count(self.unpriced, 'unpriced call')}"


class CostCallbackHandler(ModelCallHandler):
    """Prices every chat model of the runs it is attached to, with genai-prices.

    What a provider reports as cost is taken first, then your own prices, then genai-prices by
    provider, address, service tier and batch. Answers from LangChain's cache cost nothing. A model
    without a known price is never free: its calls are counted in `unpriced`, and it is named in
    `unpriced_models`. Safe to share between threads and tasks; sync and async.

    A relay's run counts its local tokens, which cost nothing or what `local_usd_per_hour` says;
    its hosted attempts are runs of their own, so that each token is counted once.

    ```python
    costs = CostCallbackHandler()
    agent.invoke({"messages": [...]}, {"callbacks": [costs]})
    print(costs)
    ```

    Args:
        prices: Your own prices by model name, or the path of a TOML file of them (see
            `docs/prices.md`).

    Raises:
        UsageMistake: a price is none, or was meant in another unit.
    """

    def __init__(
        self, prices: UserPrices | None = None, *, clock: Callable[[], float] | None = None
    ) -> None:
        super().__init__(prices, **({"clock": clock} if clock else {}))
        self._models: dict[str, ModelCosts] = {}

    def on_model_call(self, call: ModelCall) -> None:
        """Add it to its model's sums."""
        before = self._models.get(call.model) or ModelCosts(call.model)
        self._models[call.model] = before.plus(call)

    # --- what was counted -----------------------------------------------------------------------

    @property
    def models(self) -> dict[str, ModelCosts]:
        """Sums by model, in the order in which models were first seen; a snapshot."""
        with self._lock:
            return dict(self._models)

    @property
    def total(self) -> ModelCosts:
        """Sums over all models."""
        return _sum("total", list(self.models.values()))

    @property
    def cost_nanousd(self) -> int:
        """Nano-dollars of all calls with a known cost; look at `unpriced` too."""
        return self.total.cost_nanousd

    @property
    def unpriced(self) -> int:
        """Calls whose cost nobody knows."""
        return self.total.unpriced

    @property
    def unpriced_models(self) -> list[str]:
        """The models of these calls."""
        return sorted(model for model, costs in self.models.items() if costs.unpriced)

    # --- how it is shown ------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"CostCallbackHandler({self})"

    def __str__(self) -> str:
        total = self.total
        line = (
            f"{usd(total.cost_nanousd)} for {_count(total.calls, 'call')}, "
            f"{total.input_tokens} tokens in, {total.output_tokens} out"
        )
        if total.unpriced:
            line += (
                f"; and what {_count(total.unpriced, 'call')} to "
                f"{', '.join(self.unpriced_models)} cost, which nobody knows"
            )
        rows = [dict(zip(_COLUMNS, row, strict=True)) for row in self._rows()]
        return "\n".join([line, *(_line(row) for row in rows)])

    def _rows(self) -> list[tuple[str, ...]]:
        return [_row(costs) for costs in self.models.values()]

    def __rich__(self) -> RenderableType:
        from rich.table import Table

        table = Table(*_COLUMNS, box=None)
        for row in self._rows():
            table.add_row(*row)
        table.add_section()
        table.add_row(*_row(self.total), style="bold")
        return table

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        rows = [*self._rows(), _row(self.total)]
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        return f"<table><tr>{head}</tr>{body}</table>"


def _sum(name: str, parts: list[ModelCosts]) -> ModelCosts:
    summed = {
        field: sum(getattr(part, field) for part in parts)
        for field in ModelCosts.__slots__
        if field not in {"model", "price_sources"}
    }
    sources = frozenset[str]().union(*(part.price_sources for part in parts))
    return ModelCosts(name, price_sources=sources, **summed)


def _row(costs: ModelCosts) -> tuple[str, ...]:
    notes = [f"{costs.from_cache} cached"] * bool(costs.from_cache)
    notes += [f"{costs.failed} failed"] * bool(costs.failed)
    calls = f"{costs.calls} ({', '.join(notes)})" if notes else str(costs.calls)
    counts = (costs.input_tokens, costs.cached_input_tokens, costs.output_tokens)
    cost = costs.cost + (" (partly estimated)" if costs.estimated else "")
    sources = "; ".join(sorted(costs.price_sources)) or "-"
    return (costs.model, calls, *map(str, (*counts, costs.reasoning_tokens)), cost, sources)


def _line(row: dict[str, str]) -> str:
    return (
        f"  {row['model']}: calls {row['calls']}, in {row['input']} ({row['cached']} cached), "
        f"out {row['output']} ({row['reasoning']} reasoning), {row['cost']}, {row['price from']}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


_COSTS: ContextVar[CostCallbackHandler | None] = ContextVar("langchain_relay_costs", default=None)
register_configure_hook(_COSTS, inheritable=True)


@contextmanager
def get_cost_callback(prices: UserPrices | None = None) -> Iterator[CostCallbackHandler]:
    """What every chat model costs that runs inside a with-block.

    ```python
    with get_cost_callback() as costs:
        chain.invoke("…")
    print(costs)
    ```

    The block is known to code that runs in its context: LangChain's own threads (`batch`), asyncio
    tasks and `asyncio.to_thread` are; a bare `threading.Thread` starts with an empty context, so
    pass the handler to it: `model.invoke(..., config={"callbacks": [costs]})`. Of nested blocks
    the innermost counts.

    Args:
        prices: Your own prices, see `CostCallbackHandler`.
    """
    costs = CostCallbackHandler(prices)
    token = _COSTS.set(costs)
    try:
        yield costs
    finally:
        _COSTS.reset(token)
