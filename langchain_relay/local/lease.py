"""One sequence lent to one answer, as the engine sees it, and what may be decoded ahead for it."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_relay.engine.values import FREE, Rule, Step

if TYPE_CHECKING:
    from collections.abc import Hashable
    from concurrent.futures import Future

    from langchain_relay.engine.events import Decode
    from langchain_relay.engine.values import Turn
    from langchain_relay.errors import RelayError
    from langchain_relay.local.context_types import TextGrammar, TokenPicker
    from langchain_relay.local.sequence import Sequence


class Ahead:
    """Steps sampled before they were asked for, as though each were appended and the rule stayed.

    The engine puts them in; the session takes them out on its caller's thread, or leaves its future
    for the one that comes next, which saves the round trip. Nothing in here is the answer yet:
    `drop` says how much of the sequence it was.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: deque[Step] = deque()
        self._given: tuple[int, ...] | None = None  # what the next ask appends, if we guess right
        self._rule = FREE
        self._coming = False  # the engine is about to sample behind that
        self._waiter: Future[Step] | None = None
        self._guessed = 0
        self._stalled = False
        self._resting = False

    # --- called on any thread -------------------------------------------------------------------

    def ask(self, ask: Decode, future: Future[Step]) -> Taken | None:
        """Answer `ask` if it was guessed, now or when its step is sampled; `None`: it was not."""
        with self._lock:
            self._resting = False
            if ask.append != self._given or ask.rewind or self._waiter is not None:
                return None
            if ask.rule is not self._rule and ask.rule != self._rule:
                return None
            if not self._steps and not self._coming:
                return None
            stalled, self._stalled = self._stalled, False
            if not self._steps:
                self._waiter = future
                return Taken(None, stalled)
            step = self._steps.popleft()
            self._pass(step)
            return Taken(step, stalled)

    def rest(self) -> None:
        """Nobody asks soon: nothing more is decoded ahead until somebody does."""
        with self._lock:
            self._resting = True

    def hold(self) -> None:
        """The caller changes the context: nothing in here fits any more."""
        with self._lock:
            self._given = None

    # --- called on the engine thread ------------------------------------------------------------

    def give(self, step: Step, rule: Rule, *, coming: bool) -> None:
        """An ask under `rule` is answered with `step`; `coming`: what follows will be sampled."""
        with self._lock:
            self._given = None if step.eog else (step.id,)
            self._rule = rule
            self._coming = coming

    def push(self, step: Step, *, coming: bool) -> None:
        """Add what was sampled behind a guess."""
        with self._lock:
            self._coming = coming
            self._steps.append(step)

    def serve(self) -> tuple[Future[Step], Step] | None:
        """Who waits for a step, with that step; `None`: nobody waits, or there is none."""
        with self._lock:
            if self._waiter is None or not self._steps:
                return None
            future, self._waiter = self._waiter, None
            step = self._steps.popleft()
            self._pass(step)
            return future, step

    def withdraw(self) -> tuple[Future[Step] | None, bool]:
        """Who waits, and will be answered otherwise; what was asked for is a guess no more.

        The flag: it is in the sequence already.
        """
        with self._lock:
            future, self._waiter = self._waiter, None
            self._coming = False
            appended = bool(self._guessed)
            if future is not None and appended:
                self._guessed -= 1
            return future, appended

    def claim(self, depth: int) -> bool:
        """Note that a token is appended which nobody asked to append.

        `False` if `depth` steps are there already, or nobody asks soon; then whoever takes one
        says so. Whoever waits is not left without a step, even if nobody is to ask behind it.
        """
        with self._lock:
            unasked = self._waiter is None or bool(self._steps)
            self._stalled = (self._resting and unasked) or len(self._steps) >= depth
            self._guessed += not self._stalled
            return not self._stalled

    @property
    def keeps_up(self) -> bool:
        """Whoever reads has all there is, or waits to be given it."""
        return not self._steps or self._waiter is not None

    @property
    def awaited(self) -> Future[Step] | None:
        """Who waits for the next step."""
        return self._waiter

    def drop(self) -> int:
        """Forget all guesses; how many tokens of the sequence they are."""
        with self._lock:
            guessed, self._guessed = self._guessed, 0
            self._steps.clear()
            self._given, self._coming = None, False
            return guessed

    def _pass(self, step: Step) -> None:
        """The caller has `step`: what it was sampled behind was asked for."""
        self._guessed -= 1
        self._given = None if step.eog else (step.id,)


@dataclass(frozen=True, slots=True)
class Taken:
    """An ask that was guessed.

    Attributes:
        step: Its answer; `None`: the future will get it.
        engine_waits: The engine rests until it hears that there is room for another step.
    """

    step: Step | None
    engine_waits: bool = False


@dataclass(frozen=True, slots=True)
class Opening:
    """What a lease was opened with.

    Attributes:
        user: Whose it is; an engine may serve several models with the same settings.
        turns: The conversation.
        open_assistant: The last turn is the answer's own beginning.
    """

    user: Hashable
    turns: tuple[Turn, ...]
    open_assistant: bool


class Lease:
    """One sequence lent to one answer.

    Attributes:
        opening: What it was opened with.
        sequence: Its ids.
        sampler: Its sampler.
        rule: That of the last ask; guesses follow it too.
        banned: Strings that must not come about under it.
        grammar: The grammar of that rule, and the position where it began.
        future: Whoever waits for the next token.
        ahead: Steps nobody has asked for yet.
        guess: The last sampled token, to be appended as a guess.
        served_s: When a caller who waited was last given a step, on the monotonic clock.
        feeding: Foreign text may be evaluated before the next ask.
        scores: The logits behind fed text that is evaluated already.
        error: A mistake in a feed, which has no answer; the next decode reports it.
    """

    def __init__(self, opening: Opening, sequence: Sequence, sampler: TokenPicker) -> None:
        self.opening = opening
        self.sequence = sequence
        self.sampler = sampler
        self.rule: Rule = FREE
        self.banned: tuple[str, ...] = ()
        self.grammar: TextGrammar | None = None
        self.grammar_start = 0
        self.future: Future[Step] | None = None
        self.ahead = Ahead()
        self.guess: int | None = None
        self.served_s = 0.0
        self.feeding = False
        self.scores: Any = None
        self.error: RelayError | None = None

    @property
    def keeps_up(self) -> bool:
        """Somebody waits for this chat's next token, or will before it is decoded."""
        return self.future is not None or (self.guess is not None and self.ahead.keeps_up)

    def append_guess(self) -> None:
        """Put the last sampled token into the sequence, if it is not there yet."""
        if self.guess is not None:
            self.sequence.append(self.guess)
            self.guess = None

    def keep_guess(self) -> Future[Step] | None:
        """What was guessed was asked for: it stays. Returns who asked."""
        future, appended = self.ahead.withdraw()
        if future is not None and not appended:  # else the last guess is that of a later step
            self.append_guess()
        return future

    def drop_guesses(self) -> None:
        """Take back all that was appended without being asked for."""
        self.guess = None
        self.sequence.drop_guesses(self.ahead.drop())

    def free(self) -> None:
        """Free sampler and grammar; the lease is over."""
        self.sampler.free()
        if self.grammar is not None:
            self.grammar.free()
            self.grammar = None
