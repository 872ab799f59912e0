"""Test doubles for apps that use the relay: no model file, no network, no key.

    model = RelayChatModel(
        model=ScriptedLocal("It is ", "<call>8</call>", "so."),
        delegate=ScriptedDelegate("blue ", usage=(12, 3)),
    )
    assert model.invoke("Why?").text == "It is blue so."

Each double is accepted wherever a model or a delegate is.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from langchain_relay.engine import errors as engine
from langchain_relay.engine.calls import OPEN_TAG, CallFound, MalformedCall, NoCall, scan
from langchain_relay.engine.events import Decode, Feed
from langchain_relay.engine.tokens import input_tokens_bound
from langchain_relay.engine.values import (
    Attempt,
    Delta,
    LocalSession,
    Mode,
    Sampling,
    Step,
    Turn,
    Usage,
)
from langchain_relay.errors import ContextOverflowError, DelegateError, UsageMistake

__all__ = ["FailingDelegate", "ScriptedDelegate", "ScriptedLocal"]


class ScriptedLocal:
    """A local model that emits its pieces as tokens, one each, and then ends.

    The script is a tape: every answer plays it from the start, and rewinding does not wind it
    back. Under a ban all pieces through the end of the banned command are skipped. Foreign text
    counts one token per word.

    Args:
        pieces: What the model writes, one token each.
        n_ctx: Context size in such tokens.
        thinking: Pretend that the chat template has `<think>` tags.

    Raises:
        UsageMistake: a piece is no text.

    Attributes:
        prompts: The turns of every answer opened so far.
        contexts: The text of each answer's local context behind the prompt, commands included.
    """

    def __init__(self, *pieces: str, n_ctx: int = 4096, thinking: bool = False) -> None:
        for piece in pieces:
            if not isinstance(piece, str):
                raise UsageMistake(f'pieces are texts, ScriptedLocal("a", "b"): {piece!r} is none')
        self.pieces = pieces
        self.n_ctx = n_ctx
        self.thinking = thinking
        self.prompts: list[tuple[Turn, ...]] = []
        self.contexts: list[str] = []
        self.samplings: list[Sampling] = []
        self.open_sessions = 0
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The model's name in spans and traces."""
        return "scripted-local"

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Tells this script from any other."""
        facts = {"pieces": list(self.pieces), "n_ctx": self.n_ctx, "thinking": self.thinking}
        return {"model": self.name, **facts}

    def count(self, text: str) -> int:
        """One token per word."""
        return len(text.split())

    def open(
        self, turns: Sequence[Turn], sampling: Sampling, *, open_assistant: bool = False
    ) -> Future[LocalSession]:
        """Lease a sequence; there are always enough."""
        del open_assistant  # the tape is the same
        leased: Future[LocalSession] = Future()
        prompt_tokens = sum(self.count(turn.content) for turn in turns)
        if prompt_tokens >= self.n_ctx:
            message = f"the prompt has {prompt_tokens} tokens but n_ctx={self.n_ctx}"
            leased.set_exception(
                ContextOverflowError(message, needed_tokens=prompt_tokens, n_ctx=self.n_ctx)
            )
            return leased
        with self._lock:
            self.prompts.append(tuple(turns))
            self.samplings.append(sampling)
            self.contexts.append("")
            self.open_sessions += 1
            leased.set_result(_ScriptedSession(self, len(self.contexts) - 1, prompt_tokens))
        return leased

    def _wrote(self, answer: int, text: str) -> None:
        self.contexts[answer] = text

    def _closed(self) -> None:
        with self._lock:
            self.open_sessions -= 1


class _ScriptedSession:
    cached_tokens = 0

    def __init__(self, model: ScriptedLocal, answer: int, prompt_tokens: int) -> None:
        self.prompt_tokens = prompt_tokens
        self.context_left = model.n_ctx - prompt_tokens
        self.thinking = model.thinking
        self._model = model
        self._answer = answer
        self._tape = list(enumerate(model.pieces))
        self._context: list[str] = []
        self._closed = False

    def count(self, text: str) -> int:
        return self._model.count(text)

    def decode(self, ask: Decode) -> Future[Step]:
        self._append(ask.append, ask.rewind)
        for banned in ask.rule.ban:
            self._skip(banned)
        step: Future[Step] = Future()
        if self._tape:
            at, piece = self._tape.pop(0)
            step.set_result(Step(id=at, text=piece))
        else:
            step.set_result(Step(id=-1, text="", eog=True))
        return step

    def rest(self) -> None:
        """Nothing is decoded ahead here."""

    def feed(self, ask: Feed) -> None:
        self._append(ask.append, ask.rewind)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._model._closed()  # noqa: SLF001 - the two classes are one double

    def _append(self, items: Sequence[int | str], rewind: int) -> None:
        if rewind:
            del self._context[-rewind:]
        self._context += [i if isinstance(i, str) else self._model.pieces[i] for i in items]
        self._model._wrote(self._answer, "".join(self._context))  # noqa: SLF001 - as above

    def _skip(self, banned: str) -> None:
        """Skip the pieces that spell a banned command, if the tape is about to begin one."""
        text = ""
        for read, (_, piece) in enumerate(self._tape, start=1):
            text += piece
            match scan(text) if banned == OPEN_TAG else NoCall():
                case NoCall():
                    return
                case CallFound() | MalformedCall():
                    del self._tape[:read]
                    self._skip(banned)
                    return
        if banned in text:
            self._tape.clear()


class ScriptedDelegate:
    """A hosted model that answers call after call from a list; the last reply repeats.

    A reply streams word by word, at most `max_tokens` words (then it ends with `length`).

    Args:
        replies: What it answers.
        usage: Input and output tokens it reports for each call; `None`: it reports none.
        model: The model's name, also for prices.
        delay_s: Seconds before each piece.
        mode: How drafts are shown to it; literal by default.

    Attributes:
        attempts: Every attempt it received.
    """

    def __init__(
        self,
        *replies: str,
        usage: tuple[int, int] | None = None,
        model: str = "scripted",
        delay_s: float = 0.0,
        mode: Mode = "prefill",
    ) -> None:
        self._replies = replies or ("",)
        self._usage = usage
        self._model = model
        self._mode: Mode = mode
        self._delay_s = delay_s
        self._lock = threading.Lock()
        self.attempts: list[Attempt] = []
        self.open_streams = 0

    @property
    def model(self) -> str:
        """The model's name."""
        return self._model

    @property
    def mode(self) -> Mode:
        """How drafts are shown to it."""
        return self._mode

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Tells this script from any other."""
        return {"model": self._model, "replies": list(self._replies), "mode": self._mode}

    @property
    def worst_attempts(self) -> int:
        """Requests one attempt may send."""
        return 1

    def input_bound(self, attempt: Attempt) -> int:
        """An upper bound of the input tokens of `attempt`."""
        return input_tokens_bound([*(str(m.content) for m in attempt.messages), attempt.draft])

    def stream(self, attempt: Attempt) -> Iterator[Delta]:
        """Play the next reply."""
        deltas = self._play(attempt)
        with self._counted():
            for delta in deltas:
                if self._delay_s:
                    time.sleep(self._delay_s)
                yield delta

    async def astream(self, attempt: Attempt) -> AsyncIterator[Delta]:
        """Play the next reply."""
        deltas = self._play(attempt)
        with self._counted():
            for delta in deltas:
                if self._delay_s:
                    await asyncio.sleep(self._delay_s)
                yield delta

    def _counted(self) -> _Counted:
        return _Counted(self)

    def _play(self, attempt: Attempt) -> list[Delta]:
        with self._lock:
            reply = self._replies[min(len(self.attempts), len(self._replies) - 1)]
            self.attempts.append(attempt)
        words = _words(reply)
        finish = "stop" if len(words) <= attempt.max_tokens else "length"
        usage = Usage(*self._usage) if self._usage else None
        last = Delta(finish=finish, usage=usage, model=attempt.model or self._model)
        return [*(Delta(text=word) for word in words[: attempt.max_tokens]), last]


class _Counted:
    """Counts the streams of a delegate that are open."""

    def __init__(self, delegate: ScriptedDelegate) -> None:
        self._delegate = delegate

    def __enter__(self) -> None:
        self._delegate.open_streams += 1

    def __exit__(self, *error: object) -> None:
        self._delegate.open_streams -= 1


class FailingDelegate(ScriptedDelegate):
    """A hosted model that fails `times` times and then answers `then`.

    Args:
        error: What it raises; a plain exception counts as a fault that may be retried.
        times: How often.
        then: What it answers afterwards.
        after: Text it streams before each failure.
    """

    def __init__(
        self,
        error: Exception,
        *,
        times: int = 1,
        then: str = "",
        after: str = "",
        usage: tuple[int, int] | None = None,
        model: str = "scripted",
        delay_s: float = 0.0,
        mode: Mode = "prefill",
    ) -> None:
        super().__init__(then, usage=usage, model=model, delay_s=delay_s, mode=mode)
        self._error = error
        self._after = after
        self._failures = itertools.count()
        self._times = times

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Tells this script from any other."""
        return {**super().fingerprint, "error": repr(self._error), "times": self._times}

    def stream(self, attempt: Attempt) -> Iterator[Delta]:
        """Fail, or play the reply."""
        yield from self._before_failure(attempt)
        yield from super().stream(attempt)

    async def astream(self, attempt: Attempt) -> AsyncIterator[Delta]:
        """Fail, or play the reply."""
        for delta in self._before_failure(attempt):
            yield delta
        async for delta in super().astream(attempt):
            yield delta

    def _before_failure(self, attempt: Attempt) -> Iterator[Delta]:
        if next(self._failures) >= self._times:
            return
        with self._lock:
            self.attempts.append(attempt)
        if self._after:
            yield Delta(text=self._after)
        if isinstance(self._error, engine.DelegateError):
            raise self._error
        message = f"{type(self._error).__name__}: {self._error}"
        raise DelegateError(message, retryable=True, sent=bool(self._after)) from self._error


def _words(text: str) -> list[str]:
    """Split so that the blank belongs to the right-hand piece and nothing is lost."""
    return re.findall(r"\s*\S+(?:\s+$)?", text) or [text] * bool(text)
