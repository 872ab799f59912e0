"""The engine thread: it owns one context and decodes all active sequences together.

Sessions talk to it through an inbox and are answered by futures. A session without a pending ask
keeps its KV and is left out of the batch. Nothing here knows llama.cpp or numpy.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from heapq import heappop, heappush
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from langchain_relay.engine.values import FREE, Rule, Step
from langchain_relay.errors import (
    ContextOverflowError,
    LocalModelError,
    RelayError,
    UsageMistake,
)
from langchain_relay.local.context_types import Row
from langchain_relay.local.sampling import PENALTY_LAST_TOKENS, SIGNALS
from langchain_relay.local.sequence import Sequence
from langchain_relay.local.text import begins, forbidden

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Items

    from langchain_relay.engine.events import Decode, Feed
    from langchain_relay.engine.values import Turn
    from langchain_relay.local.context_types import Context, TokenPicker
    from langchain_relay.local.sampling import Chosen

STRAGGLERS_S = 0.001
"""How long a batch waits for chats that were answered just now and have not asked again."""

STOP_S = 10.0
"""How long the end of the process waits for the decode that is running."""


class Lease:
    """One sequence lent to one answer, as the engine sees it."""

    def __init__(self, sequence: Sequence, sampler: TokenPicker) -> None:
        self.sequence = sequence
        self.sampler = sampler
        self.rule: Rule = FREE
        self.future: Future[Step] | None = None
        self.error: RelayError | None = None
        """A mistake in a feed, which has no answer; the next decode reports it."""


@dataclass(frozen=True, slots=True, eq=False)
class Open:
    """Somebody wants a sequence; `granted` makes a session of it, and keeps its model alive."""

    turns: Items[Turn]
    chosen: Chosen
    open_assistant: bool
    granted: Callable[[Lease, Context], Any]
    future: Future[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """A session wants a token."""

    lease: Lease
    ask: Decode
    future: Future[Step]


@dataclass(frozen=True, slots=True, eq=False)
class Fed:
    """A session puts text into its context."""

    lease: Lease
    ask: Feed


@dataclass(frozen=True, slots=True, eq=False)
class Closed:
    """A session gives its sequence back."""

    lease: Lease


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """Nobody needs the engine any more."""


Message = Open | Ask | Fed | Closed | Stop


@dataclass(frozen=True, slots=True)
class _Part:
    """What one sequence contributes to a batch: its next `n` pending tokens."""

    lease: Lease
    n: int

    def rows(self) -> list[Row]:
        seq = self.lease.sequence
        end = seq.evaluated + self.n
        last = len(seq.tokens) - 1
        return [Row(seq.tokens[i], i, seq.id, i == last) for i in range(seq.evaluated, end)]


class Engine:
    """Loads on its own thread, then serves until it is stopped or fails.

    Args:
        load: Makes the context; called on the engine thread.
        max_concurrency: Sequences of the context.
        n_batch: Tokens in one batch, at least `max_concurrency`.
    """

    def __init__(self, load: Callable[[], Context], *, max_concurrency: int, n_batch: int) -> None:
        self.loaded: Future[Context] = Future()
        self._load = load
        self._n_batch = n_batch
        self._free = list(range(max_concurrency))  # a heap: neighbours decode best
        self._waiting: deque[tuple[Open, list[int]]] = deque()
        self._leases: set[Lease] = set()
        self._asking: dict[Lease, None] = {}  # in the order of their asks
        self._answered: set[Lease] = set()  # since the last batch, and silent since
        self._stopping = False
        # SimpleQueue.put may be called from a garbage collection that runs inside put.
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._ended: RelayError | None = None
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run, name="langchain-relay", daemon=True)

    # --- called from any thread -----------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, which loads the model."""
        _running.add(self)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Messages are still answered."""
        return self._ended is None and self._pid == os.getpid()

    def submit(self, message: Message) -> None:
        """Send a message; if the engine has ended, its future fails at once."""
        if self._pid != os.getpid():
            _refuse(message, LocalModelError("this session belongs to the process that forked"))
            return
        self._inbox.put(message)
        # The thread sets `_ended` before it empties the inbox for the last time.
        if self._ended is not None:
            self._refuse_inbox(self._ended)

    def stop(self, *, timeout_s: float | None = None) -> None:
        """End the thread after the decode that is running; all that is pending fails."""
        self.submit(Stop())
        if self._pid == os.getpid() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _refuse_inbox(self, error: RelayError) -> None:
        while True:
            try:
                _refuse(self._inbox.get_nowait(), error)
            except Empty:
                return

    # --- the engine thread ----------------------------------------------------------------------

    def _run(self) -> None:
        error: RelayError = LocalModelError("the local model was closed")
        try:
            self._context = self._load()
            self.loaded.set_result(self._context)
            while not self._stopping:
                self._receive()
                self._grant()
                self._step()
        except RelayError as failure:
            error = failure
        except BaseException as failure:  # noqa: BLE001  # whoever waits must hear of anything
            error = LocalModelError(f"the local engine failed: {failure!r}")
            error.__cause__ = failure
        finally:
            self._end(error)

    def _end(self, error: RelayError) -> None:
        self._ended = error
        self._refuse_inbox(error)
        for opening, _ in self._waiting:
            _fail(opening.future, error)
        for lease in list(self._asking):
            self._fail_ask(lease, error)
        if not self.loaded.done():
            self.loaded.set_exception(error)
        else:
            for lease in self._leases:
                lease.sampler.free()
            self._context.free()
        _running.discard(self)

    def _receive(self) -> None:
        """Take in what was sent; waits while there is nothing to decode."""
        if not self._asking:
            self._handle(self._inbox.get())
        deadline = None
        while not self._stopping:
            try:
                self._handle(self._inbox.get_nowait())
                continue
            except Empty:
                pass
            if not self._asking or not self._answered:
                return
            deadline = deadline or time.monotonic() + STRAGGLERS_S
            try:
                self._handle(self._inbox.get(timeout=max(0, deadline - time.monotonic())))
            except Empty:
                self._answered.clear()

    def _handle(self, message: Message) -> None:
        match message:
            case Open():
                self._queue(message)
            case Ask():
                self._answered.discard(message.lease)
                self._take_ask(message)
            case Fed():
                self._answered.discard(message.lease)
                self._take_feed(message)
            case Closed():
                self._answered.discard(message.lease)
                self._take_back(message.lease)
            case Stop():
                self._stopping = True

    # --- leases ---------------------------------------------------------------------------------

    def _queue(self, opening: Open) -> None:
        try:
            prompt = self._context.prompt(opening.turns, open_assistant=opening.open_assistant)
            self._check_prompt(prompt)
        except Exception as error:  # noqa: BLE001 - one chat's fault must not end the others
            _fail(opening.future, _ours(error))
        else:
            self._waiting.append((opening, prompt))

    def _check_prompt(self, prompt: list[int]) -> None:
        n_ctx = self._context.n_ctx
        if not prompt:
            raise UsageMistake("the prompt is empty; give at least one message")
        if len(prompt) >= n_ctx:
            raise ContextOverflowError(
                f"the prompt has {len(prompt)} tokens and the context of one chat holds {n_ctx}; "
                f"shorten the conversation or raise n_ctx",
                needed_tokens=len(prompt) + 1,
                n_ctx=n_ctx,
            )

    def _grant(self) -> None:
        """Lend free sequences to those who wait, first come first served."""
        while self._free and self._waiting:
            opening, prompt = self._waiting.popleft()
            if not opening.future.set_running_or_notify_cancel():
                continue  # cancelled while it queued
            try:
                sampler = self._context.sampler(opening.chosen)
            except Exception as error:  # noqa: BLE001 - as in `_queue`
                opening.future.set_exception(_ours(error))
                continue
            lease = Lease(Sequence(heappop(self._free), prompt, self._context.vocab), sampler)
            self._leases.add(lease)
            opening.future.set_result(opening.granted(lease, self._context))

    def _take_back(self, lease: Lease) -> None:
        self._fail_ask(lease, LocalModelError("the session was closed while it decoded"))
        if lease in self._leases:
            self._leases.remove(lease)
            self._asking.pop(lease, None)
            self._context.cut(lease.sequence.id, 0)
            lease.sampler.free()
            heappush(self._free, lease.sequence.id)

    # --- asks -----------------------------------------------------------------------------------

    def _take_feed(self, fed: Fed) -> None:
        try:
            fed.lease.sequence.change(fed.ask.append, fed.ask.rewind, more_text=True)
        except Exception as error:  # noqa: BLE001 - as in `_queue`
            fed.lease.error = _ours(error)

    def _take_ask(self, message: Ask) -> None:
        lease, ask = message.lease, message.ask
        try:
            self._check_ask(lease, ask.rule)
            lease.sequence.change(ask.append, ask.rewind, more_text=False)
            self._check_room(lease.sequence)
        except Exception as error:  # noqa: BLE001 - as in `_queue`
            _fail(message.future, _ours(error))
            return
        self._tidy(lease.sequence)
        lease.rule, lease.future = ask.rule, message.future
        self._asking[lease] = None

    def _check_ask(self, lease: Lease, rule: Rule) -> None:
        if lease not in self._leases:
            raise LocalModelError("the session is closed")
        self._drop_cancelled(lease)
        if lease.future is not None:
            raise UsageMistake("a session decodes one token at a time; await the last one first")
        if lease.error is not None:
            error, lease.error = lease.error, None
            raise error
        if rule.grammar is not None:
            raise UsageMistake("LlamaCppModel does not follow a grammar; leave Rule.grammar unset")
        if unknown := rule.signals - SIGNALS:
            raise UsageMistake(f"no signal {sorted(unknown)}; there are {sorted(SIGNALS)}")

    def _check_room(self, sequence: Sequence) -> None:
        n_ctx = self._context.n_ctx
        if len(sequence.tokens) > n_ctx:
            raise ContextOverflowError(
                f"the conversation has {len(sequence.tokens)} tokens and the context of one chat "
                f"holds {n_ctx}; lower max_tokens or raise n_ctx",
                needed_tokens=len(sequence.tokens),
                n_ctx=n_ctx,
            )

    def _tidy(self, sequence: Sequence) -> None:
        """Make the KV cache end where the evaluated tokens end, and leave one to evaluate."""
        if not sequence.pending:
            # Nothing new to evaluate: the logits behind the last token are asked for again.
            sequence.evaluated -= 1
        if sequence.cached > sequence.evaluated:
            if not self._context.cut(sequence.id, sequence.evaluated):
                # A recurrent model cannot forget a part: start over.
                self._context.cut(sequence.id, 0)
                sequence.evaluated = 0
            sequence.cached = sequence.evaluated

    # --- decoding -------------------------------------------------------------------------------

    def _step(self) -> None:
        """One batch: evaluate, then answer every ask whose tokens are all evaluated."""
        for lease in list(self._asking):
            self._drop_cancelled(lease)
        parts = self._plan()
        if parts:
            self._evaluate(parts)

    def _plan(self) -> list[_Part]:
        """A row for every sequence that decodes, then pieces of prompts and spans in turn.

        In the order of sequence numbers, which `Context.decode` may need to be fast.
        """
        parts = [_Part(lease, 1) for lease in self._asking if lease.sequence.pending == 1]
        left = self._n_batch - len(parts)
        for lease in self._asking:
            n = min(lease.sequence.pending, left)
            if lease.sequence.pending > 1 and n:
                parts.append(_Part(lease, n))
                left -= n
        return sorted(parts, key=lambda part: part.lease.sequence.id)

    def _evaluate(self, parts: list[_Part]) -> None:
        rc = self._context.decode([row for part in parts for row in part.rows()])
        if rc == 0:
            self._answer(parts)
        elif len(parts) > 1:
            # Find whose fault it is: each alone, from where it stood.
            for part in parts:
                self._cut_back(part.lease)
                self._evaluate([part])
        else:
            self._cut_back(parts[0].lease)
            said = self._context.last_words()
            error = LocalModelError(f"llama.cpp could not decode (error {rc}). {said}")
            self._fail_ask(parts[0].lease, error)

    def _cut_back(self, lease: Lease) -> None:
        sequence = lease.sequence
        if not self._context.cut(sequence.id, sequence.evaluated):
            self._context.cut(sequence.id, 0)
            sequence.evaluated = sequence.cached = 0

    def _answer(self, parts: list[_Part]) -> None:
        row = -1
        for part in parts:
            row += part.n
            lease = part.lease
            lease.sequence.note_evaluated(part.n)
            if lease.sequence.pending:
                continue
            try:
                step = self._sample(lease, row)
            except Exception as error:  # noqa: BLE001 - as in `_queue`
                self._fail_ask(lease, _ours(error))
            else:
                self._resolve(lease, step)

    def _sample(self, lease: Lease, row: int) -> Step:
        """Sample the candidate first and check it; mask it only on failure."""
        logits, sequence = self._context.logits(row), lease.sequence
        signals = self._context.measure(logits, lease.rule.signals)
        parts = forbidden(lease.rule.ban)
        tail = sequence.local_tail(max(map(len, parts), default=0))
        written = sequence.last_written(PENALTY_LAST_TOKENS)
        for _ in range(len(logits)):
            token = lease.sampler.pick(logits, sequence.position, written)
            if self._context.vocab.is_eog(token):
                return Step(token, "", eog=True, signals=signals)
            text = sequence.text_of(token)
            if not parts or not begins(tail, text, parts):
                return Step(token, text, signals=signals)
            logits[token] = float("-inf")
        raise LocalModelError("every token of the vocabulary begins a banned string")

    def _resolve(self, lease: Lease, step: Step) -> None:
        future, lease.future = lease.future, None
        del self._asking[lease]
        if future is not None and future.set_running_or_notify_cancel():
            self._answered.add(lease)
            future.set_result(step)

    def _drop_cancelled(self, lease: Lease) -> None:
        if lease.future is not None and lease.future.cancelled():
            self._asking.pop(lease, None)
            lease.future = None

    def _fail_ask(self, lease: Lease, error: RelayError) -> None:
        future, lease.future = lease.future, None
        if future is not None:
            self._asking.pop(lease, None)
            _fail(future, error)


def _refuse(message: Message, error: RelayError) -> None:
    match message:
        case Open() | Ask():
            _fail(message.future, error)
        case Fed() | Closed() | Stop():
            pass


def _ours(error: Exception) -> RelayError:
    """`error`, or an error of ours that tells of it."""
    if isinstance(error, RelayError):
        return error
    return LocalModelError(f"the local engine failed: {type(error).__name__}: {error}")


def _fail(future: Future[Any], error: RelayError) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(error)


_running: set[Engine] = set()


@atexit.register
def _stop_all() -> None:
    """A thread inside llama.cpp while the process tears down would crash it."""
    for engine in list(_running):
        engine.stop(timeout_s=STOP_S)
