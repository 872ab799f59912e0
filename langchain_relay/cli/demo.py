"""`langchain-relay demo`: the main job on real input, on the machine at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessageChunk
from rich.console import Console
from rich.text import Text

from langchain_relay.budget import Budget
from langchain_relay.chat_models import RelayChatModel
from langchain_relay.cli.stand_in import stand_in
from langchain_relay.delegates.openai import OpenAIDelegate
from langchain_relay.engine.errors import NANOUSD_PER_USD
from langchain_relay.engine.values import Delegate
from langchain_relay.local import LlamaCppModel
from langchain_relay.prices import PriceBook
from langchain_relay.report import DELEGATED_STYLE, relay_report, usd
from langchain_relay.schema import CALL_DENIED, CALL_FAILED, CALL_FINISHED, CALL_STARTED

QUESTIONS = ("What is 23*17?", "What is the capital of Mongolia?")
SEED = 1
STAND_IN = "stand-in"
PRICED_AS = "gpt-5-mini"
"""The stand-in costs nothing; its tokens are shown at this model's price."""

KEYS = {
    "OPENAI_API_KEY": "openai:gpt-5-mini",
    "ANTHROPIC_API_KEY": "anthropic:claude-haiku-4-5",
}
_MILLION = 10**6


@dataclass(frozen=True, slots=True)
class Hosted:
    """Who plays the hosted model, at which prices, and what to say about it."""

    delegate: Delegate | str
    prices: Mapping[str, tuple[str, str]]
    note: str


@dataclass(frozen=True, slots=True)
class Demo:
    """Two relayed answers with their reports, then one whose budget is too small.

    Attributes:
        model: The local model.
        delegate: The hosted model as a string, or `None` to find one.
        budget_usd: What one answer may cost.
        max_tokens: Tokens of one answer.
    """

    model: str
    delegate: str | None
    budget_usd: str
    max_tokens: int
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))

    def run(self, question: str | None) -> None:
        """Run it."""
        questions = QUESTIONS if question is None else (question,)
        local = LlamaCppModel(self.model, n_ctx=2048, n_threads=1, max_concurrency=1)
        with local, hosted_model(self.delegate) as hosted:
            self.console.print(f"local model:  {self.model}, taught the call command by prompt")
            self.console.print(f"hosted model: {hosted.note}")
            for asked in questions:
                self._answer(local, hosted, asked, Budget(usd=self.budget_usd, calls=6))
            self.console.rule("a budget that is too small: one nano-dollar", align="left")
            self._answer(local, hosted, questions[0], Budget(usd="0.000000001"))

    def _answer(self, local: LlamaCppModel, hosted: Hosted, question: str, budget: Budget) -> None:
        model = RelayChatModel(
            model=local,
            delegate=hosted.delegate,
            prices=hosted.prices,
            budget=budget,
            temperature=0.0,
            seed=SEED,
            max_tokens=self.max_tokens,
        )
        self.console.print()
        self.console.print(Text(question, style="bold"))
        screen = Screen(self.console)
        chunks = list(screen.watch(model.stream(question, {"callbacks": [screen]})))
        screen.new_line()
        self.console.print(relay_report(reduce(add, chunks)))


class Screen(BaseCallbackHandler):
    """Prints text as it arrives and events on lines of their own."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._delegated = False
        self._mid_line = False

    def watch(self, chunks: Iterator[AIMessageChunk]) -> Iterator[AIMessageChunk]:
        """Print the text of `chunks` and pass them on."""
        for chunk in chunks:
            if chunk.text:
                style = DELEGATED_STYLE if self._delegated else ""
                self._console.print(Text(chunk.text, style=style), end="")
                self._mid_line = not chunk.text.endswith("\n")
            yield chunk

    def new_line(self) -> None:
        """End the line, if one is begun."""
        if self._mid_line:
            self._console.print()
        self._mid_line = False

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - LangChain's signature
        """Print an event; the text of an open call is the hosted model's."""
        self.new_line()
        self._console.print(Text(f"{name}  {_told(name, data)}", style="dim"))
        if name == CALL_STARTED:
            self._delegated = True
        elif name in (CALL_FINISHED, CALL_FAILED):
            self._delegated = False


def _told(name: str, data: Mapping[str, Any]) -> str:
    """What one line says of an event."""
    if name == CALL_STARTED:
        return f"{data['model']} may write {data['n']} tokens (asked for {data['requested_n']})"
    if name in (CALL_FINISHED, CALL_FAILED):
        tokens = f"{data['input_tokens']} tokens in, {data['output_tokens']} out"
        cost = usd(data["cost_nanousd"]) + (" at most" if data["estimated"] else "")
        return ", ".join([data["why"], tokens, cost, *([data["error"]] if "error" in data else [])])
    if name == CALL_DENIED and data["unit"] == "usd":
        return f"budget: {usd(data['needed'])} needed, {usd(data['left'])} left"
    if name == CALL_DENIED:
        return str(data["reason"])
    return f"{data['spent']} of {data['limit']} {data['unit']} used"


# --- who is the hosted model --------------------------------------------------------------------


@contextmanager
def hosted_model(asked: str | None) -> Iterator[Hosted]:
    """The model asked for, one whose key is set, or the stand-in."""
    found = next((model for key, model in KEYS.items() if os.environ.get(key)), None)
    if asked or found:
        name = asked or str(found)
        yield Hosted(name, {}, name)
        return
    with stand_in(seed=7, temperature=0.7) as base_url:
        yield _stand_in_at(base_url)


def _stand_in_at(base_url: str) -> Hosted:
    from openai import OpenAI

    client = OpenAI(base_url=base_url, api_key="none")
    delegate = OpenAIDelegate(client, model=STAND_IN, mode="prefill")
    price = PriceBook(None).find(PRICED_AS)
    assert price is not None, "genai-prices knows the model the stand-in is priced as"
    per_million = [
        str(nanousd / NANOUSD_PER_USD)
        for nanousd in (price.worst_nanousd(_MILLION, 0), price.worst_nanousd(0, _MILLION))
    ]
    note = (
        f"none: no key is set, so a second SmolLM2-135M behind a real HTTP server on "
        f"{base_url} stands in for one.\n"
        f"              It is no better than the local model; what it shows is the relay. Its "
        f"tokens are priced as {PRICED_AS}'s\n"
        f"              ({per_million[0]} USD in, {per_million[1]} USD out per million tokens, "
        f"{price.source}). Use yours: --delegate openai:gpt-5-mini"
    )
    return Hosted(delegate, {STAND_IN: (per_million[0], per_million[1])}, note)
