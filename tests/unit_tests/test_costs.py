"""`CostCallbackHandler`: every chat model, each token once, and unknown is not zero."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda
from rich.console import Console

from langchain_relay import (
    Budget,
    CostCallbackHandler,
    RelayChatModel,
    get_cost_callback,
    get_relay_callback,
)
from langchain_relay.testing import FailingDelegate, ScriptedDelegate, ScriptedLocal

SOURCE = "genai-prices"
MINI = (250, 2_000)  # nano-dollars per token of gpt-5-mini


class Hosted(BaseChatModel):
    """A chat model that says what it is told to say about itself."""

    name: str = "gpt-5-mini"
    provider: str = "openai"
    usage: dict[str, Any] | None = {"input_tokens": 100, "output_tokens": 10}  # noqa: RUF012 - pydantic copies it
    told: dict[str, Any] = {}  # noqa: RUF012 - as above
    fails_after: int | None = None

    @property
    def _llm_type(self) -> str:
        return "hosted"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return LangSmithParams(ls_provider=self.provider, ls_model_name=self.name)

    def _message(self, cls: type[AIMessage], text: str, *, last: bool) -> Any:
        usage = self.usage and {**self.usage}
        if usage:
            usage["total_tokens"] = usage["input_tokens"] + usage["output_tokens"]
        told = {"model_name": self.name, **self.told} if last else {}
        return cls(text, usage_metadata=usage if last else None, response_metadata=told)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        if self.fails_after is not None:
            raise ConnectionError("gone")
        message = self._message(AIMessage, "ab", last=True)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        for at, text in enumerate("ab"):
            if at == self.fails_after:
                raise ConnectionError("gone")
            message = self._message(AIMessageChunk, text, last=at == 1)
            yield ChatGenerationChunk(message=message)

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream():
            yield chunk


async def _astream(model: Any) -> None:
    [chunk async for chunk in model.astream("?")]


async def _events(model: Any) -> None:
    [event async for event in model.astream_events("?", version="v2")]


async def _to_thread(call: Callable[[Any], Any], model: Any) -> None:
    await asyncio.to_thread(call, model)


PATHS: dict[str, Callable[[Any], Any]] = {
    "invoke": lambda model: _to_thread(lambda m: m.invoke("?"), model),
    "stream": lambda model: _to_thread(lambda m: list(m.stream("?")), model),
    "ainvoke": lambda model: model.ainvoke("?"),
    "astream": _astream,
    "astream_events": _events,
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("chained", [False, True])
async def test_a_call_costs_its_tokens_on_every_path(path: str, chained: bool):
    model: Any = RunnableLambda(lambda text: text) | Hosted() if chained else Hosted()
    with get_cost_callback() as costs, get_usage_metadata_callback() as usage:
        await PATHS[path](model)
    (mini,) = costs.models.values()
    assert (mini.model, mini.calls, mini.unpriced) == ("gpt-5-mini", 1, 0)
    assert costs.cost_nanousd == 100 * MINI[0] + 10 * MINI[1]
    assert (mini.input_tokens, mini.output_tokens) == (100, 10)
    assert usage.usage_metadata["gpt-5-mini"]["total_tokens"] == 110


@pytest.mark.parametrize(
    ("fields", "nanousd"),
    [
        ({"usage": {"input_tokens": 100, "output_tokens": 0}}, 25_000),
        (
            {
                "usage": {
                    "input_tokens": 100,
                    "output_tokens": 0,
                    "input_token_details": {"cache_read": 100},
                }
            },
            2_500,
        ),
        ({"told": {"service_tier": "flex"}}, (25_000 + 20_000) // 2),
        ({"told": {"cost": 0.25}}, 250_000_000),
        ({"told": {"response_cost": 0.5}, "name": "nobody-knows"}, 500_000_000),
        (
            {"told": {"response_cost": 0.5}, "usage": {"input_tokens": 100, "output_tokens": 0}},
            25_000,
        ),
        ({"told": {"token_usage": {"cost": "0.00000000051"}}}, 1),
        ({"told": {"cost": 0.25}, "usage": None}, 250_000_000),
        (
            {
                "name": "claude-haiku-4-5",
                "provider": "anthropic",
                "told": {"usage": {"service_tier": "batch"}},
            },
            (100_000 + 50_000) // 2,
        ),
    ],
)
def test_the_cost_is_what_was_reported_and_served(fields: dict[str, Any], nanousd: int):
    with get_cost_callback() as costs:
        Hosted(**fields).invoke("?")
    assert (costs.cost_nanousd, costs.unpriced) == (nanousd, 0)


def test_the_users_price_wins_over_the_table_and_not_over_the_provider():
    with get_cost_callback({"gpt-5-mini": (1, 1)}) as costs:
        Hosted().invoke("?")
        Hosted(told={"cost": 1}).invoke("?")
    assert costs.cost_nanousd == 110_000 + 10**9
    assert costs.models["gpt-5-mini"].price_sources == {"user", "provider"}


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "nobody-knows"},
        {"provider": "ollama"},  # a local server's model only bears the name
        {"provider": "groq"},  # does not have it
        {"usage": None},
        {"usage": {"input_tokens": 0, "output_tokens": 10}},  # left out, as no prompt is empty
        {"usage": {"input_tokens": -5, "output_tokens": 10}},
        {"usage": {"input_tokens": 5, "output_tokens": -10}},
    ],
)
def test_what_nobody_knows_is_not_free(fields: dict[str, Any]):
    with get_cost_callback() as costs:
        Hosted().invoke("?")
        Hosted(**{"name": "gpt-5-mini", **fields}).invoke("?")
    assert costs.unpriced == 1
    assert costs.unpriced_models == [fields.get("name", "gpt-5-mini")]
    assert costs.cost_nanousd == 45_000
    assert f"1 call to {costs.unpriced_models[0]} cost, which nobody knows" in str(costs)


def test_a_local_servers_model_costs_what_the_user_says():
    with get_cost_callback({"gpt-5-mini": (0, 0)}) as costs:
        Hosted(provider="ollama").invoke("?")
    assert (costs.cost_nanousd, costs.unpriced) == (0, 0)


@pytest.mark.parametrize("usage", [{"input_tokens": 100, "output_tokens": 10}, None])
def test_an_answer_from_langchains_cache_costs_nothing(usage: Any):
    model = Hosted(cache=InMemoryCache(), usage=usage, told={"cost": 1})
    with get_cost_callback() as costs:
        for _ in range(3):
            model.invoke("?")
    (mini,) = costs.models.values()
    assert (mini.calls, mini.from_cache, mini.cost_nanousd) == (3, 2, 10**9)
    assert mini.input_tokens == (100 if usage else 0)  # not spent a second time
    assert costs.unpriced == 0


@pytest.mark.parametrize("fails_after", [0, 1])
def test_a_failed_call_is_counted_and_named_apart(fails_after: int):
    with get_cost_callback() as costs:
        with pytest.raises(ConnectionError):
            list(Hosted(fails_after=fails_after).stream("?"))
        Hosted().invoke("?")
    assert (costs.total.calls, costs.total.failed, costs.unpriced) == (2, 1, 0)
    assert costs.cost_nanousd == 45_000
    assert "calls 2 (1 failed), in 100" in str(costs)


def test_a_stream_that_is_left_early_is_over():
    with get_cost_callback() as costs:
        stream: Any = Hosted().stream("?")
        next(stream)
        stream.close()
    assert (costs.total.calls, costs.total.failed) == (1, 1)
    assert not costs._running


# --- relays -------------------------------------------------------------------------------------


def relay(**fields: Any) -> RelayChatModel:
    settings: dict[str, Any] = {
        "model": ScriptedLocal("It is ", "<call>8</call>", "so."),
        "delegate": ScriptedDelegate("blue ", usage=(12, 3), model="gpt-5-mini"),
        **fields,
    }
    return RelayChatModel(**settings)


@pytest.mark.parametrize("path", PATHS)
async def test_a_relay_is_counted_once(path: str):
    with (
        get_cost_callback() as costs,
        get_relay_callback() as totals,
        get_usage_metadata_callback() as usage,
    ):
        await PATHS[path](relay())
    assert set(costs.models) == set(usage.usage_metadata) == {"gpt-5-mini", "scripted-local"}
    hosted = costs.models["gpt-5-mini"]
    assert (hosted.input_tokens, hosted.output_tokens) == (12, 3)
    assert costs.cost_nanousd == totals.cost_nanousd == 12 * MINI[0] + 3 * MINI[1]
    for model, sums in costs.models.items():
        assert sums.output_tokens == usage.usage_metadata[model]["output_tokens"]
        assert sums.input_tokens == usage.usage_metadata[model]["input_tokens"]


def test_the_local_side_of_a_relay_is_free_and_not_unpriced():
    with get_cost_callback() as costs:
        relay(budget=Budget(calls=0)).invoke("?")
    (local,) = costs.models.values()
    assert (local.cost_nanousd, local.unpriced, local.price_sources) == (0, 0, frozenset({"local"}))
    assert local.output_tokens > 0


def test_a_relays_failed_attempt_is_one_failed_call():
    delegate = FailingDelegate(
        ConnectionError("gone"), then="blue ", usage=(12, 3), model="gpt-5-mini"
    )
    with get_cost_callback() as costs:
        relay(delegate=delegate).invoke("?")
    assert (costs.models["gpt-5-mini"].calls, costs.models["gpt-5-mini"].failed) == (2, 1)
    assert costs.cost_nanousd == 9_000


def failing() -> FailingDelegate:
    error = ConnectionError("gone")
    return FailingDelegate(error, after="blue ", then="sky ", usage=(12, 3), model="gpt-5-mini")


CHARGED: dict[str, Callable[[], dict[str, Any]]] = {
    "the relay's own prices": lambda: {"prices": {"gpt-5-mini": (1, 2)}},
    "a cut at a stop string": lambda: {"stop": ["blue"]},
    "a failure after a piece": lambda: {"delegate": failing()},
    "nobody knows": lambda: {"delegate": ScriptedDelegate("blue ", usage=(12, 3), model="mine")},
    "no usage": lambda: {"delegate": ScriptedDelegate("blue ", model="gpt-5-mini")},
}


ESTIMATED = {"a cut at a stop string", "a failure after a piece", "no usage"}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("case", CHARGED)
async def test_hosted_attempts_cost_what_the_relay_booked(case: str, path: str):
    with get_cost_callback() as costs, get_relay_callback() as totals:
        await PATHS[path](relay(**CHARGED[case]()))
    assert costs.cost_nanousd == totals.cost_nanousd
    assert costs.unpriced == totals.unpriced_calls == (case == "nobody knows")
    assert costs.total.estimated == totals.estimated_calls
    assert (totals.estimated_calls > 0) == (case in ESTIMATED)
    assert totals.attempts == costs.total.calls - 1


# --- many at once -------------------------------------------------------------------------------


def test_threads_lose_nothing():
    costs, start = CostCallbackHandler(), threading.Barrier(8)
    config: Any = {"callbacks": [costs]}

    def work() -> None:
        start.wait()
        for _ in range(50):
            Hosted().invoke("?", config)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (costs.total.calls, costs.cost_nanousd) == (400, 400 * 45_000)
    assert not costs._running


async def test_tasks_and_batches_lose_nothing():
    with get_cost_callback() as costs:
        await asyncio.gather(*(Hosted().ainvoke("?") for _ in range(50)))
        await Hosted().abatch(["?"] * 20)
        await asyncio.to_thread(Hosted().batch, ["?"] * 20)
    assert costs.total.calls == 90
    assert costs.cost_nanousd == 90 * 45_000


def test_blocks_nest_and_do_not_leak():
    with get_cost_callback() as outer:
        Hosted().invoke("?")
        with get_cost_callback() as inner:
            Hosted().invoke("?")
    Hosted().invoke("?")
    assert (outer.total.calls, inner.total.calls) == (1, 1)


def test_a_handler_that_is_given_twice_counts_once():
    with get_cost_callback() as costs:
        Hosted(callbacks=[costs]).invoke("?", {"callbacks": [costs]})
    assert costs.total.calls == 1


# --- how it is shown ----------------------------------------------------------------------------


def test_it_shows_itself_as_text_table_and_html():
    with get_cost_callback() as costs:
        Hosted().invoke("?")
        Hosted(name="<b>", provider="ollama").invoke("?")
    assert str(costs).startswith(
        "0.000045 USD for 2 calls, 200 tokens in, 20 out; and what 1 call to <b> cost, which "
        "nobody knows\n  gpt-5-mini: calls 1, in 100 (0 cached), out 10 (0 reasoning), "
        "0.000045 USD, genai-prices "
    )
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(costs)
    table = console.export_text()
    assert "gpt-5-mini" in table
    assert "0.000045 USD and 1 unpriced call" in table
    page = costs._repr_html_()
    assert "<td>&lt;b&gt;</td>" in page
    assert "<td>unknown</td>" in page


def test_an_empty_one_shows_itself_too():
    assert str(CostCallbackHandler()) == "0 USD for 0 calls, 0 tokens in, 0 out"
