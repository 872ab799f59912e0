"""What the topics share: prompts that run on, timed streams, a relay with their settings."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage

from benchmarks.plan import Plan
from langchain_relay import RelayChatModel
from langchain_relay.engine.values import LocalModel, Turn
from langchain_relay.local import LlamaCppModel
from langchain_relay.messages import turns
from langchain_relay.testing import ScriptedDelegate

Messages = list[BaseMessage]

COUNT = HumanMessage("Count from 1 upwards, one number per line, and never stop.")
LONG: Messages = [SystemMessage("You are a helpful assistant."), COUNT]
"""Greedy SmolLM2 writes on for more than 1,700 tokens behind it."""

_numbers = itertools.count(1000)


class EndedEarly(Exception):
    """An answer was shorter than planned, so its numbers would be about something else."""


def fresh_messages(words: int = 0) -> Messages:
    """A conversation nobody has a cache of: its first words have not been used before.

    Args:
        words: Makes the prompt longer by so many tokens.
    """
    return [SystemMessage(f"This is conversation {next(_numbers)}.{' word' * words}"), COUNT]


def that_run_on(n: int, write: Callable[[Messages], object]) -> list[Messages]:
    """`n` conversations behind which `write` does not end early; about one in ten does.

    Raises:
        EndedEarly: far more than that do.
    """
    found: list[Messages] = []
    for _ in range(10 * n):
        messages = fresh_messages()
        try:
            write(messages)
        except EndedEarly:
            continue
        found.append(messages)
        if len(found) == n:
            return found
    raise EndedEarly(f"of {10 * n} conversations only {len(found)} ran on")


def as_turns(messages: Messages) -> list[Turn]:
    """The same conversation for a local model."""
    return turns(messages)


def roomy(tokens: int) -> int:
    """Context for a prompt of ours and `tokens` more; a multiple of 256, as llama.cpp rounds to."""
    return -(-(tokens + 64) // 256) * 256


def local_model(plan: Plan, **settings: Any) -> LlamaCppModel:
    """The model and the threads of `plan`; to be closed by whoever asked for it."""
    return LlamaCppModel(plan.model, n_threads=plan.threads, **settings)


def relay_model(local: LocalModel, **fields: Any) -> RelayChatModel:
    """A greedy relay over `local`."""
    return RelayChatModel(
        **{"model": local, "delegate": ScriptedDelegate(""), "temperature": 0, **fields}
    )


@dataclass(frozen=True, slots=True)
class Timed:
    """A stream as its reader saw it.

    Attributes:
        text: All of it.
        first_s: Seconds to the first piece of text.
        writing_s: Seconds from there to the last one.
        times: When each piece came, on the clock of `time.perf_counter`.
    """

    text: str
    first_s: float
    writing_s: float
    times: tuple[float, ...]

    def rate(self, tokens: int) -> float:
        """Tokens per second between the first and the last of `tokens`, prefill apart.

        Raises:
            EndedEarly: the stream had fewer pieces than tokens were asked for.
        """
        if len(self.times) < 0.99 * tokens:
            raise EndedEarly(f"{len(self.times)} pieces of text instead of {tokens} tokens")
        return (len(self.times) - 1) / self.writing_s


def timed(pieces: Iterable[str]) -> Timed:
    """Read a stream of text to its end; empty pieces are not counted."""
    started = time.perf_counter()
    texts, times = [], []
    for text in pieces:
        if text:
            times.append(time.perf_counter())
            texts.append(text)
    if not times:
        raise EndedEarly("the stream had no text at all")
    return Timed("".join(texts), times[0] - started, times[-1] - times[0], tuple(times))


def relayed(model: RelayChatModel, messages: Messages, max_tokens: int) -> Timed:
    """`RelayChatModel.stream` without hand-overs."""
    written = model.stream(messages, delegation="never", max_tokens=max_tokens)
    return timed(chunk.text for chunk in written)
