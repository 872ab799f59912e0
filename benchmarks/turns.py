"""The second turn of a conversation: only what is new is evaluated.

The first turn is a long question and an answer with two hosted spans, each behind a token that
the user never sees, as a call command is. The second turn resends it all as LangChain does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage

from benchmarks.chat import (
    EndedEarly,
    Messages,
    fresh_messages,
    local_model,
    relay_model,
    relayed,
    roomy,
)
from benchmarks.measure import Bound, Row, Told, interleaved, ratios
from benchmarks.plan import Plan
from benchmarks.waits import SPAN_TOKENS, SPANS, EveryTokens, Waiting
from langchain_relay import RelayChatModel, RelayReport, relay_report
from langchain_relay.engine.values import LocalModel, LocalSession, Sampling, Turn

BOUND = Bound(4, at="most")
ANSWER_TOKENS = 120
PART = 8
NEXT = "And what comes after that?"
SENTENCE = " The river rises in the hills and runs through seven towns."
SENTENCE_TOKENS = 12


class Watched:
    """A local model that remembers the last session it opened."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self.last: Any = None

    @property
    def name(self) -> str:
        return self._model.name

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return self._model.fingerprint

    def open(
        self, turns: Sequence[Turn], sampling: Sampling, *, open_assistant: bool = False
    ) -> Future[LocalSession]:
        opened = self._model.open(turns, sampling, open_assistant=open_assistant)
        self.last = opened.result()
        return opened

    def count(self, text: str) -> int:
        return self._model.count(text)


@dataclass(slots=True)
class _Second:
    """What second turns cost."""

    plan: Plan
    model: RelayChatModel
    watched: Watched
    surplus: list[float] = field(default_factory=list)
    reads: list[float] = field(default_factory=list)

    def warm(self) -> float:
        """Milliseconds to the first token behind a first turn that was just written."""
        question, answer, report = self._first_turn()
        first = self.watched.last.prompt_tokens
        assert answer.usage_metadata is not None
        context = first + answer.usage_metadata["output_tokens"] + report.delegated_tokens
        first_ms = self._first_ms(question, answer)
        session = self.watched.last
        new = session.prompt_tokens - context
        self.surplus.append(session.prompt_tokens - session.cached_tokens - new)
        self.reads.append(session.cached_tokens / context)
        return first_ms

    def _first_turn(self) -> tuple[Messages, AIMessage, RelayReport]:
        """A question whose answer does not end before both calls; about every other one does."""
        for _ in range(10):
            question = self._question()
            answer = self.model.invoke(question, max_tokens=ANSWER_TOKENS)
            report = relay_report(answer)
            if report.delegated_tokens == SPANS * SPAN_TOKENS:
                return question, answer, report
        raise EndedEarly("ten answers ended before their second call")

    def cold(self) -> float:
        """The same without anything to reuse: as long a conversation that nobody wrote here."""
        answer = AIMessage("word " * (ANSWER_TOKENS + SPANS))
        return self._first_ms(self._question(), answer)

    def _question(self) -> Messages:
        """A story to go on with, behind a number that was not used before."""
        sentences = (self.plan.first_turn_tokens - ANSWER_TOKENS) // SENTENCE_TOKENS
        system, _ = fresh_messages()
        return [system, HumanMessage(f"Go on with this story for long:{SENTENCE * sentences}")]

    def _first_ms(self, question: Messages, answer: Any) -> float:
        messages = [*question, answer, HumanMessage(NEXT)]
        return 1000 * relayed(self.model, messages, max_tokens=1).first_s


def measure(plan: Plan, told: Told) -> list[Row]:
    """Evaluated tokens, cache reads and time to the first token."""
    n_ctx = roomy(plan.first_turn_tokens + ANSWER_TOKENS)
    with local_model(plan, n_ctx=n_ctx) as local:
        watched = Watched(local)
        policy = EveryTokens(part=PART, hide=True)
        model = relay_model(watched, policy=policy, delegate=Waiting(0.1))
        second = _Second(plan, model, watched)
        sides: dict[str, Callable[[], float]] = {"cold": second.cold, "warm": second.warm}
        ms = interleaved(sides, plan.rounds, told)
    return _rows(plan, second, ms)


def _rows(plan: Plan, second: _Second, ms: Mapping[str, tuple[float, ...]]) -> list[Row]:
    what = f"second turn behind {plan.first_turn_tokens} tokens with {SPANS} calls"
    cold = "as long a prompt with nothing to reuse: first token"
    return [
        Row(
            "turns",
            f"{what}: evaluated beyond the new tokens",
            "tokens",
            tuple(second.surplus),
            bound=BOUND,
        ),
        Row(
            "turns",
            f"{what}: reported as cache reads",
            "of turn 1",
            tuple(second.reads),
            note=f"median {100 * median(second.reads):.1f} %",
        ),
        Row("turns", cold, "ms", ms["cold"]),
        Row(
            "turns",
            f"{what}: first token",
            "ms",
            ms["warm"],
            against=cold,
            ratios=ratios(ms["warm"], ms["cold"]),
        ),
    ]
