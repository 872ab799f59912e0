"""What the prompts of one answer cost: input tokens, cached tokens and price, by layout and calls.

An answer grows to `draft_tokens` and hands over at equal distances, the last time behind all of
it. Requests go through `RelayChatModel`, the vendors' own LangChain classes and a real socket.

**The hosts are emulations** (`tests/faults/caches.py`) of the cache rules that OpenAI and Anthropic
document, read 2026-11-21: no real host was asked, nothing is ever evicted, and a token is a word.
Prices are those of genai-prices for the model named. So each number is exact for these rules, and
says nothing of how often a real host keeps to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from langchain_anthropic import ChatAnthropic
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from benchmarks.measure import Row, Told
from benchmarks.plan import Plan
from langchain_relay import RelayChatModel, RelayReport, relay_report
from langchain_relay.delegates import ChatModelDelegate
from langchain_relay.engine.values import Attempt
from langchain_relay.testing import ScriptedLocal
from tests.faults import FaultServer, PromptCaches, Reply

ASKED: list[BaseMessage] = [
    SystemMessage("You explain things to people who have never heard of them. " * 20),
    HumanMessage("Explain at length why the sky is blue."),
]
LEAST_SPAN = 16
WINDOW = 512
NOTE = "emulated cache rules, a token is a word, prices of genai-prices"


class _LimitFirst(ChatModelDelegate):
    """The layout this package does not have: what changes with every call in front of the draft."""

    def _messages(self, attempt: Attempt) -> list[BaseMessage]:
        *before, last = super()._messages(attempt)
        question = str(attempt.messages[-1].content)
        rest = str(last.content).removeprefix(question)
        limit = f" Write about {attempt.max_tokens} tokens."
        return [*before, HumanMessage(f"{question}{limit}{rest}")]


@dataclass(frozen=True)
class _Variant:
    name: str
    delegate: Callable[[Any], ChatModelDelegate]
    window: int | None = None


def _openai(model: str) -> Callable[[str], Any]:
    return lambda url: ChatOpenAI(model=model, base_url=f"{url}/v1", api_key="none")


def _claude(model: str) -> Callable[[str], Any]:
    return lambda url: ChatAnthropic(model=model, base_url=url, api_key="none")


def _steered(chat: Any) -> ChatModelDelegate:
    return ChatModelDelegate(chat, prompt_cache=True)


def _left_alone(chat: Any) -> ChatModelDelegate:
    return ChatModelDelegate(chat, prompt_cache=False)


AS_IT_IS = _Variant("as it is", _steered)
WINDOWED = _Variant(f"draft_window={WINDOW}", _steered, WINDOW)
UNMARKED = _Variant("without breakpoints", _left_alone)
LIMIT_FIRST = _Variant(
    "n in front of the draft", lambda chat: _LimitFirst(chat, prompt_cache=False)
)
MARKED_TOO = (AS_IT_IS, UNMARKED, WINDOWED)

HOSTS: dict[str, tuple[Callable[[str], Any], tuple[_Variant, ...]]] = {
    "gpt-5-mini": (_openai("gpt-5-mini"), (AS_IT_IS, LIMIT_FIRST, WINDOWED)),
    "gpt-5.6": (_openai("gpt-5.6"), MARKED_TOO),
    "claude-sonnet-4-5, prefill": (_claude("claude-sonnet-4-5"), MARKED_TOO),
    "claude-sonnet-4-6, instruct": (_claude("claude-sonnet-4-6"), MARKED_TOO),
}


def measure(plan: Plan, told: Told) -> list[Row]:
    """Every host, layout and number of calls once: nothing in it depends on time."""
    return [row for calls in plan.draft_calls for row in _with_calls(plan, told, calls)]


def _with_calls(plan: Plan, told: Told, calls: int) -> Iterator[Row]:
    for host, (chat, variants) in HOSTS.items():
        base: RelayReport | None = None
        for variant in variants:
            told(f"{calls} calls: {host}, {variant.name}")
            report = answered(chat, variant, plan.draft_tokens, calls)
            yield _row(host, variant.name, calls, report, base)
            base = base or report


def answered(
    chat: Callable[[str], Any], variant: _Variant, draft_tokens: int, calls: int
) -> RelayReport:
    """One answer with all its hand-overs, at a host with empty caches."""
    with FaultServer(Reply("word " * 3 * LEAST_SPAN), caches=PromptCaches()) as server:
        model = RelayChatModel(
            model=ScriptedLocal(*_pieces(draft_tokens, calls), n_ctx=4 * draft_tokens),
            delegate=variant.delegate(chat(server.url)),
            max_calls=calls,
            draft_window=variant.window,
        )
        report = relay_report(model.invoke(ASKED))
    assert (report.calls, report.failed) == (calls, 0), report
    return report


def _pieces(draft_tokens: int, calls: int) -> Iterator[str]:
    """What the local model writes; no two calls ask for the same n."""
    shown = 0
    for call in range(1, calls + 1):
        wanted = draft_tokens * call // calls - shown
        yield _text(shown, wanted)
        n = LEAST_SPAN + call
        yield f"<call>{n}</call>"
        shown += wanted + n
    yield " So it is."


def _text(start: int, words: int) -> str:
    """Sentences of 12 words, five a line, no two of them alike."""
    ends = {0: ".\n", 12: ". ", 24: ". ", 36: ". ", 48: ". "}
    return "".join(f"w{at}{ends.get(at % 60, ' ')}" for at in range(start, start + words))


def _row(host: str, variant: str, calls: int, report: RelayReport, base: RelayReport | None) -> Row:
    assert report.cost_nanousd is not None, "genai-prices knows these models"
    cost = report.cost_nanousd
    read, cached, written, wrote = (
        sum(getattr(charge, name) or 0 for charge in report.charges)
        for name in (
            *("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens"),
        )
    )
    against = f"{host}, as it is" if base else ""
    return Row(
        "prompt_cost",
        f"{host}, {calls} {'call' if calls == 1 else 'calls'}, {variant}",
        "thousandths of a US dollar",
        (cost / 1e6,),
        against=against,
        ratios=(cost / base.cost_nanousd,) if base and base.cost_nanousd else (),
        note=f"input {read}, cached {cached}, written {written}",
        facts={
            "calls": calls,
            "input_tokens": read,
            "cached_input_tokens": cached,
            "cache_write_tokens": written,
            "output_tokens": wrote,
            "cost_nanousd": cost,
            "price_source": report.charges[0].price_source,
            "emulated": NOTE,
        },
    )
