"""One sequence lent to one answer, as the engine sees it, and what may be decoded ahead for it."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

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

    The engine puts them in; the session takes them out on its caller's thread, which saves the
    round trip. Nothing in here is the answer yet: `drop` says how much of the sequence it was.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: deque[Step] = deque()
        self._given: tuple[int, ...] | None = None  # what the next ask appends, if we guess right
        self._rule = FREE
        self._guessed = 0
        self._stalled = False

    def take(self, ask: Decode) -> tuple[Step | None, bool]:
        """The answer to `ask` if it was guessed, and whether the engine waits for room.

        Called on any thread.
        """
        with self._lock:
            if not self._steps or ask.rewind or ask.append != self._given:
                return None, False
            if ask.rule is not self._rule and ask.rule != self._rule:
                return None, False
            step = self._steps.popleft()
            self._guessed -= 1
            self._given = None if step.eog else (step.id,)
            stalled, self._stalled = self._stalled, False
            return step, stalled

    def hold(self) -> None:
        """The caller changes the context: nothing in here fits any more. Called on any thread."""
        with self._lock:
            self._given = None

    # --- called on the engine thread ------------------------------------------------------------

    def give(self, step: Step, rule: Rule) -> None:
        """An ask under `rule` is answered with `step`."""
        with self._lock:
            self._given = None if step.eog else (step.id,)
            self._rule = rule

    def guess(self) -> None:
        """A token that nobody asked to append was appended."""
        with self._lock:
            self._guessed += 1

    def push(self, step: Step) -> None:
        """What was sampled behind a guess."""
        with self._lock:
            self._steps.append(step)

    def wanted(self, depth: int) -> bool:
        """Whether there is room for a further step; else whoever takes one says so."""
        with self._lock:
            self._stalled = len(self._steps) >= depth
            return not self._stalled

    @property
    def empty(self) -> bool:
        """Whoever reads keeps up with whoever decodes."""
        return not self._steps

    def drop(self) -> int:
        """Forget all guesses; how many tokens of the sequence they are."""
        with self._lock:
            guessed, self._guessed = self._guessed, 0
            self._steps.clear()
            self._given = None
            return guessed


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
        grammar: The grammar of that rule, and the position where it began.
        future: Whoever waits for the next token.
        ahead: Steps nobody has asked for yet.
        guess: The last sampled token, to be appended as a guess.
        feeding: Foreign text may be evaluated before the next ask.
        error: A mistake in a feed, which has no answer; the next decode reports it.
    """

    def __init__(self, opening: Opening, sequence: Sequence, sampler: TokenPicker) -> None:
        self.opening = opening
        self.sequence = sequence
        self.sampler = sampler
        self.rule: Rule = FREE
        self.grammar: TextGrammar | None = None
        self.grammar_start = 0
        self.future: Future[Step] | None = None
        self.ahead = Ahead()
        self.guess: int | None = None
        self.feeding = False
        self.error: RelayError | None = None

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
