"""The engine thread: it owns one context and decodes all active sequences together.

    inbox → asks and feeds change sequences → leases for who queues → one batch → steps to futures

Sessions talk to it through an inbox and are answered by futures. While a caller looks at a token
the engine decodes the next ones, as though the caller will say "append it"; a caller who says
something else finds the sequence as though nothing had been decoded. A session that waits for a
hosted model keeps its KV and is left out of the batch. Nothing here knows llama.cpp or numpy.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from langchain_relay.engine.values import Rule, Step
from langchain_relay.errors import (
    ContextOverflowError,
    LocalModelError,
    RelayError,
    UsageMistake,
)
from langchain_relay.local.batch import Part, plan
from langchain_relay.local.inbox import (
    Ask,
    Closed,
    Fed,
    Left,
    Message,
    Open,
    Resumed,
    Stop,
    fail,
    ours,
    refuse,
)
from langchain_relay.local.lender import Lender, Prompt
from langchain_relay.local.picking import follow, pick, signals
from langchain_relay.local.sampling import SIGNALS

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from langchain_relay.local.context_types import Context
    from langchain_relay.local.lease import Lease
    from langchain_relay.local.prefix_files import PrefixFiles
    from langchain_relay.local.sequence import Sequence

logger = logging.getLogger(__name__)

RUN_AHEAD = 8
"""Steps decoded before they are asked for, at most."""

RUN_AHEAD_BESIDE = 1
"""The same as long as others wait for tokens: a guess that is thrown away costs them time."""

STRAGGLERS_S = 0.001
"""How long a batch waits for chats that were answered just now and have not asked again."""

PACE_S = 1 / 60
"""A reader of a lone chat is woken no more often than a screen is drawn.

Until then it gets no step that is ready but one more, and finds the others when it wakes. Waking a
thread while llama.cpp decodes takes a core from it: with each token of SmolLM2-135M 2 % of its
speed. Models slower than this are read token by token.
"""

STOP_S = 10.0
"""How long the end of the process waits for the decode that is running."""


class Engine:
    """Loads on its own thread, then serves until it is stopped or fails.

    Args:
        load: Makes the context; called on the engine thread.
        max_concurrency: Sequences of the context.
        n_batch: Tokens in one batch, at least `max_concurrency`.
        run_ahead: Steps decoded before they are asked for; 0 is off.
        files: Where system prompts are kept for other processes; `None`: nowhere.
    """

    def __init__(
        self,
        load: Callable[[], Context],
        *,
        max_concurrency: int,
        n_batch: int,
        run_ahead: int = RUN_AHEAD,
        files: Callable[[Context], PrefixFiles] | None = None,
    ) -> None:
        self.loaded: Future[Context] = Future()
        self._load = load
        self._n_batch = n_batch
        self._run_ahead = min(run_ahead, RUN_AHEAD)
        self._max_concurrency = max_concurrency
        self._files = files
        self._opened: Context | None = None
        self._waiting: deque[tuple[Open, Prompt]] = deque()
        self._leases: dict[Lease, None] = {}
        self._asking: dict[Lease, None] = {}  # in the order of their asks
        self._answered: set[Lease] = set()  # since the last batch, and silent since
        self._stopping = False
        self._warned = False
        # SimpleQueue.put may be called from a garbage collection that runs inside put.
        self._inbox: SimpleQueue[Message] = SimpleQueue()
        self._ended: RelayError | None = None
        self._pid = os.getpid()
        self._starting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="langchain-relay", daemon=True)

    # --- called from any thread -----------------------------------------------------------------

    def start(self) -> None:
        """Start the thread, which loads the model, unless it was started."""
        with self._starting:
            if self._thread.ident is None:
                _running.add(self)
                self._thread.start()

    @property
    def alive(self) -> bool:
        """Messages are still answered."""
        return self._ended is None and self._pid == os.getpid()

    def submit(self, message: Message) -> None:
        """Send a message; if the engine has ended, its future fails at once."""
        if self._pid != os.getpid():
            refuse(message, LocalModelError("this session belongs to the process that forked"))
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

    def leave(self, user: Hashable) -> None:
        """Fail what `user` has under way, and wait until nothing of it is decoded any more."""
        left = Left(user, Future())
        self.submit(left)
        if threading.current_thread() is not self._thread:
            left.done.result()

    def _refuse_inbox(self, error: RelayError) -> None:
        while True:
            try:
                refuse(self._inbox.get_nowait(), error)
            except Empty:
                return

    # --- the engine thread ----------------------------------------------------------------------

    def _run(self) -> None:
        error: RelayError = LocalModelError("the local model was closed")
        try:
            self._context = self._opened = self._load()
            if not self._context.rewinds:
                self._run_ahead = 0
            files = None if self._files is None else self._files(self._context)
            self._lender = Lender(self._context, self._max_concurrency, files)
            self.loaded.set_result(self._context)
            rests = True
            while True:
                self._receive(wait=rests)
                if self._stopping:
                    break
                if self._waiting:
                    self._grant()
                rests = not self._step()
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
        for asked, *_ in self._waiting:
            fail(asked.future, error)
        for lease in self._leases:
            lease.drop_guesses()  # from now on everybody has to ask us, and is refused
            self._fail_ask(lease, error)
        for lease in self._leases:
            lease.free()
        if self._opened is not None:
            self._opened.free()
        if not self.loaded.done():
            self.loaded.set_exception(error)
        _running.discard(self)

    def _receive(self, *, wait: bool) -> None:
        """Take in what was sent; `wait`: there is nothing to decode until something is."""
        if wait:
            self._handle(self._inbox.get())
        self._take_all()
        if self._asking and self._answered:
            self._await_stragglers()

    def _take_all(self) -> None:
        while not self._inbox.empty() and not self._stopping:
            self._handle(self._inbox.get_nowait())

    def _await_stragglers(self) -> None:
        deadline = time.monotonic() + STRAGGLERS_S
        while self._asking and self._answered and not self._stopping:
            try:
                self._handle(self._inbox.get(timeout=max(0, deadline - time.monotonic())))
            except Empty:
                self._answered.clear()
            self._take_all()

    def _handle(self, message: Message) -> None:
        match message:
            case Ask():
                self._answered.discard(message.lease)
                self._take_ask(message)
            case Resumed():
                pass  # it woke us
            case Fed():
                self._answered.discard(message.lease)
                self._take_feed(message)
            case Open():
                self._queue(message)
            case Closed():
                self._answered.discard(message.lease)
                self._take_back(message.lease)
            case Left():
                try:
                    self._dismiss(message.user)
                finally:
                    message.done.set_result(None)
            case Stop():
                self._stopping = True

    # --- leases ---------------------------------------------------------------------------------

    def _queue(self, asked: Open) -> None:
        try:
            self._waiting.append((asked, self._lender.prompt(asked.opening)))
        except Exception as error:  # noqa: BLE001 - one chat's fault must not end the others
            fail(asked.future, ours(error))

    def _grant(self) -> None:
        """Lend free sequences to those who wait, first come first served."""
        while self._lender.free and self._waiting:
            asked, prompt = self._waiting.popleft()
            if not asked.future.set_running_or_notify_cancel():
                continue  # cancelled while it queued
            try:
                lease = self._lease(asked, prompt)
                session = asked.granted(lease, self._context)
            except Exception as error:
                asked.future.set_exception(ours(error))
                if any(lease.opening is asked.opening for lease in self._leases):
                    raise  # nobody knows what its sequence holds, as after any decode that raised
            else:
                asked.future.set_result(session)

    def _lease(self, asked: Open, prompt: Prompt) -> Lease:
        lease, copied = self._lender.lend(asked.opening, asked.chosen, prompt, self._leases)
        self._leases[lease] = None
        if copied:
            # llama.cpp copies at the next decode: until then nobody may move what is copied from.
            lease.feeding = True  # its scores are kept in case that was the prompt's last token
            self._evaluate([Part(lease, 1)])
        return lease

    def _take_back(
        self, lease: Lease, why: str = "the session was closed while it decoded"
    ) -> None:
        lease.drop_guesses()  # from now on nobody can wait for one of them
        with suppress(LocalModelError):
            lease.sequence.change((), 0, more_text=False)
        self._fail_ask(lease, LocalModelError(why))
        if lease in self._leases:
            del self._leases[lease]
            self._asking.pop(lease, None)
            lease.free()
            self._lender.take_back(lease)

    def _dismiss(self, user: Hashable) -> None:
        closed = "the local model was closed"
        for asked, *_ in self._waiting:
            if asked.opening.user == user:
                fail(asked.future, LocalModelError(closed))
        self._waiting = deque(one for one in self._waiting if one[0].opening.user != user)
        for lease in [lease for lease in self._leases if lease.opening.user == user]:
            self._take_back(lease, closed)

    # --- asks -----------------------------------------------------------------------------------

    def _take_feed(self, fed: Fed) -> None:
        lease = fed.lease
        if lease not in self._leases:
            return
        if lease.future is not None or lease.ahead.awaited is not None:
            self._fail_ask(lease, UsageMistake("text was fed while a token was being decoded"))
        try:
            lease.drop_guesses()
            lease.sequence.change(fed.ask.append, fed.ask.rewind, more_text=True)
        except Exception as error:  # noqa: BLE001 - as in `_queue`
            lease.error = ours(error)
        lease.feeding, lease.scores = True, None
        self._tidy(lease.sequence)

    def _take_ask(self, message: Ask) -> None:
        lease, ask = message.lease, message.ask
        try:
            self._check_ask(lease, ask.rule)
            lease.drop_guesses()
            lease.sequence.change(ask.append, ask.rewind, more_text=False)
            self._check_room(lease.sequence)
            follow(self._context, lease, ask.rule)
        except Exception as error:  # noqa: BLE001 - as in `_queue`
            fail(message.future, ours(error))
            return
        scores, lease.scores = lease.scores, None
        lease.feeding, lease.future = False, message.future
        if not lease.sequence.pending:
            if scores is not None and not ask.rewind and "hidden" not in ask.rule.signals:
                self._answer_lease(lease, None, scores)
                return
            # Nothing new to evaluate: the logits behind the last token are asked for again.
            lease.sequence.evaluated -= 1
        self._tidy(lease.sequence)
        self._asking[lease] = None

    def _check_ask(self, lease: Lease, rule: Rule) -> None:
        if lease not in self._leases:
            raise LocalModelError("the session is closed")
        self._drop_cancelled(lease)
        if lease.future is not None or lease.ahead.awaited is not None:
            raise UsageMistake("a session decodes one token at a time; await the last one first")
        if lease.error is not None:
            error, lease.error = lease.error, None
            raise error
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
        """Make the KV cache end where the evaluated tokens end."""
        if sequence.cached <= sequence.evaluated:
            return
        kept = sequence.evaluated
        self._cut_back(sequence)
        if sequence.evaluated < kept:
            self._say_once(kept)

    def _cut_back(self, sequence: Sequence) -> None:
        """Forget all behind the evaluated tokens."""
        if not self._context.cut(sequence.id, sequence.evaluated):
            # A recurrent model cannot forget a part: start over.
            self._context.cut(sequence.id, 0)
            sequence.evaluated = 0
        sequence.cached = sequence.evaluated

    def _say_once(self, tokens: int) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "this model's state cannot be taken back in part (it is recurrent): whatever "
                "replaces text evaluates the whole chat again, %d tokens this time",
                tokens,
            )

    # --- decoding -------------------------------------------------------------------------------

    def _step(self) -> bool:
        """One batch: evaluate, then answer every ask whose tokens are all evaluated.

        Returns:
            Whether there was anything to do.
        """
        for lease in list(self._asking):
            self._drop_cancelled(lease)
        feeding = [
            (lease, n) for lease in self._leases if lease.feeding and (n := self._feedable(lease))
        ]
        parts = plan([*self._asking, *self._guessing()], feeding, self._n_batch)
        served = False
        for lease in self._leases:
            if len(parts) != 1 or parts[0].lease is not lease:
                served |= self._serve(lease)  # who knows when its next step comes
        if parts:
            self._evaluate(parts)
        return bool(parts) or served

    def _guessing(self) -> list[Lease]:
        """Leases for which the last token is appended before the caller says so."""
        leases = [
            lease
            for lease in self._leases
            if lease.guess is not None and lease.ahead.claim(self._depth(lease))
        ]
        for lease in leases:
            lease.append_guess()
        return leases

    def _depth(self, lease: Lease) -> int:
        """How many steps may wait to be asked for."""
        if len(self._leases) > 1 and any(
            other is not lease and self._keeps_up(other) for other in self._leases
        ):
            return min(self._run_ahead, RUN_AHEAD_BESIDE)
        return self._run_ahead

    def _keeps_up(self, lease: Lease) -> bool:
        """Somebody waits for this chat's next token, or will before it is decoded."""
        return lease.future is not None or (lease.guess is not None and lease.ahead.keeps_up)

    def _feedable(self, lease: Lease) -> int:
        if len(lease.sequence.tokens) > self._context.n_ctx:
            return 0
        return lease.sequence.feedable(rewinds=self._context.rewinds)

    def _evaluate(self, parts: list[Part]) -> None:
        rows, hidden = [], False
        for part in parts:
            rows += part.rows()
            hidden = hidden or "hidden" in part.lease.rule.signals
        rc = self._context.decode(rows, hidden=hidden)
        if rc == 0:
            self._answer(parts)
        elif len(parts) > 1:
            # Find whose fault it is: each alone, from where it stood.
            for part in parts:
                self._cut_back(part.lease.sequence)
                self._evaluate([part])
        else:
            self._cut_back(parts[0].lease.sequence)
            said = self._context.last_words()
            self._fail_step(
                parts[0].lease, LocalModelError(f"llama.cpp could not decode (error {rc}). {said}")
            )

    def _answer(self, parts: list[Part]) -> None:
        row = -1
        for part in parts:
            row += part.n
            lease = part.lease
            lease.sequence.note_evaluated(part.n)
            self._lender.note_evaluated(lease.sequence)
            if lease.sequence.pending:
                continue
            if lease.feeding:
                lease.scores = self._context.logits(row).copy()  # whoever asks next may be late
            else:
                self._answer_lease(lease, row)

    def _answer_lease(self, lease: Lease, row: int | None, scores: Any = None) -> None:
        """Sample from a row of the last decode, or from scores that were kept."""
        try:
            logits = scores if row is None else self._context.logits(row)
            found = signals(self._context, lease.rule, logits, row) if lease.rule.signals else {}
            step = pick(self._context, lease, logits, found)
        except Exception as error:  # noqa: BLE001 - as in `_queue`
            self._fail_step(lease, ours(error))
        else:
            self._deliver(lease, step)

    def _deliver(self, lease: Lease, step: Step) -> None:
        """Hand `step` to whoever waits for it, or keep it for when it is asked for."""
        asked, lease.future = lease.future, None
        room = len(lease.sequence.tokens) < self._context.n_ctx
        coming = bool(self._run_ahead) and room and not step.eog
        if coming:
            lease.guess = step.id
        else:
            self._answered.add(lease)
        if asked is not None:
            self._asking.pop(lease, None)
            lease.ahead.give(step, lease.rule, coming=coming)
            self._wake(lease, asked, step)
            return
        lease.ahead.push(step, coming=coming)
        soon = coming and len(self._leases) == 1
        if not soon or time.monotonic() - lease.served_s >= PACE_S:
            self._serve(lease)

    def _serve(self, lease: Lease) -> bool:
        """Give whoever waits the step that is ready; whether there were both."""
        served = lease.ahead.serve()
        if served is None:
            return False
        self._wake(lease, *served)
        return True

    def _wake(self, lease: Lease, waiting: Future[Step], step: Step) -> None:
        lease.served_s = time.monotonic()
        try:
            waiting.set_result(step)
        except InvalidStateError:  # cancelled
            lease.ahead.hold()
            if lease.ahead.awaited is None:  # else somebody asked again between the two
                lease.guess = None
            self._answered.discard(lease)

    def _drop_cancelled(self, lease: Lease) -> None:
        if lease.future is not None and lease.future.cancelled():
            self._asking.pop(lease, None)
            lease.future = None
        awaited = lease.ahead.awaited
        if awaited is not None and awaited.cancelled():
            self._keep_guess(lease)

    def _keep_guess(self, lease: Lease) -> Future[Step] | None:
        """What was guessed was asked for: it stays. Returns who asked."""
        future, appended = lease.ahead.withdraw()
        if future is not None and not appended:  # else the last guess is that of a later step
            lease.append_guess()
        return future

    def _fail_step(self, lease: Lease, error: RelayError) -> None:
        """The ask fails. A guess is only taken back: if it is asked for, it fails then."""
        self._serve(lease)
        lease.ahead.hold()  # from now on nobody can begin to wait for a guess
        if lease.future is None and lease.ahead.awaited is None:
            lease.feeding = False  # else it would be tried again at once, for ever
            lease.drop_guesses()
            self._tidy(lease.sequence)
        self._fail_ask(lease, error)

    def _fail_ask(self, lease: Lease, error: RelayError) -> None:
        future, lease.future = lease.future or self._keep_guess(lease), None
        if future is not None:
            self._asking.pop(lease, None)
            fail(future, error)


_running: set[Engine] = set()


@atexit.register
def _stop_all() -> None:
    """A thread inside llama.cpp while the process tears down would crash it."""
    for engine in list(_running):
        engine.stop(timeout_s=STOP_S)
