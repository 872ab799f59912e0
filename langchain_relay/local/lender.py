"""Lends sequences to answers and takes them back, with what is in them.

    prompt → the sequence that has most of it → filled from a neighbour or from disk → lease → slot

Used by the engine thread only; nothing here decodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from langchain_relay.errors import ContextOverflowError, UsageMistake
from langchain_relay.local.answers import FinishedAnswers
from langchain_relay.local.lease import Lease
from langchain_relay.local.prefixes import Prefixes
from langchain_relay.local.sequence import Sequence
from langchain_relay.local.slots import Slot, Slots

if TYPE_CHECKING:
    from collections.abc import Iterable

    from langchain_relay.local.context_types import Context
    from langchain_relay.local.lease import Opening
    from langchain_relay.local.prefix_files import PrefixFiles
    from langchain_relay.local.sampling import Chosen


class Prompt(NamedTuple):
    """A rendered conversation.

    Attributes:
        ids: Its tokens.
        system_tokens: How many of the first ones are a system prompt worth a file; 0: none.
    """

    ids: list[int]
    system_tokens: int


class Lender:
    """The sequences of one context.

    Args:
        context: Where they are.
        max_concurrency: How many there are.
        files: Where system prompts are kept for other processes; `None`: nowhere.
    """

    def __init__(self, context: Context, max_concurrency: int, files: PrefixFiles | None) -> None:
        self._context = context
        self._slots = Slots(max_concurrency, rewinds=context.rewinds)
        self._answers = FinishedAnswers()
        self._prefixes = None if files is None else Prefixes(files, context)

    @property
    def free(self) -> bool:
        """There is a sequence to lend."""
        return bool(self._slots.free)

    def prompt(self, opening: Opening) -> Prompt:
        """The conversation in tokens, known answers as they were written.

        Raises:
            ContextOverflowError: it does not fit.
            UsageMistake: it is empty.
        """
        ids = self._context.prompt(
            opening.turns,
            open_assistant=opening.open_assistant,
            known=self._answers.find(opening.turns),
        )
        self._check(ids)
        prefixes = self._prefixes
        return Prompt(ids, prefixes.system_tokens(opening.turns, ids) if prefixes else 0)

    def lend(
        self, opening: Opening, chosen: Chosen, prompt: Prompt, leased: Iterable[Lease]
    ) -> tuple[Lease, bool]:
        """A lease of the sequence that serves `prompt` best.

        Returns:
            The lease, and whether it is a copy that llama.cpp will make at the next decode.
        """
        sampler = self._context.sampler(chosen)
        others = (lease.sequence for lease in leased)
        slot = self._slots.take(prompt.ids, ((s.id, s.tokens[: s.evaluated]) for s in others))
        try:
            slot = self._filled(slot, prompt.ids)
        except BaseException:
            sampler.free()
            self._empty(slot)
            raise
        sequence = Sequence(slot.id, prompt.ids, self._context.vocab, reused=slot.kept)
        sequence.pause_at = prompt.system_tokens if prompt.system_tokens > slot.kept else 0
        return Lease(opening, sequence, sampler), slot.donor is not None

    def note_evaluated(self, sequence: Sequence) -> None:
        """Save the state of a sequence that has come to the end of its system prompt."""
        if self._prefixes is not None:
            self._prefixes.note_evaluated(sequence)

    def take_back(self, lease: Lease) -> None:
        """The answer is over: its tokens stay in the cache until the room is needed."""
        self._remember(lease)
        sequence = lease.sequence
        if not self._context.rewinds and sequence.cached != sequence.evaluated:
            sequence.evaluated = 0
        cached = sequence.tokens[: sequence.evaluated]
        self._context.cut(sequence.id, len(cached))
        self._slots.give(sequence.id, cached)

    def _check(self, ids: list[int]) -> None:
        n_ctx = self._context.n_ctx
        if not ids:
            raise UsageMistake("the prompt is empty; give at least one message")
        if len(ids) >= n_ctx:
            raise ContextOverflowError(
                f"the prompt has {len(ids)} tokens, system prompt and lesson included, and the "
                f"context of one chat holds {n_ctx}; shorten the conversation or raise n_ctx",
                needed_tokens=len(ids) + 1,
                n_ctx=n_ctx,
            )

    def _filled(self, slot: Slot, prompt: list[int]) -> Slot:
        """Put into the sequence what can be had of `prompt` without evaluating it."""
        context = self._context
        if slot.exchanged is not None and not context.exchange(slot.id, slot.exchanged):
            self._slots.lose(slot.exchanged)
            slot = Slot(slot.id)
        if self._prefixes is not None:
            slot = self._prefixes.better(slot, prompt)
        if slot.donor is not None:
            context.cut(slot.id, 0)
            context.copy(slot.donor, slot.id)
        context.cut(slot.id, slot.kept)
        return slot

    def _empty(self, slot: Slot) -> None:
        """Nobody knows what it holds after an error."""
        for sequence in {slot.id, slot.id if slot.exchanged is None else slot.exchanged}:
            self._context.cut(sequence, 0)
            self._slots.lose(sequence)
        self._slots.give(slot.id, [])

    def _remember(self, lease: Lease) -> None:
        """Keep the ids of the answer for the conversation's next turn."""
        opening, sequence = lease.opening, lease.sequence
        if opening.open_assistant:
            return
        try:
            text = sequence.written_bytes.decode()
        except UnicodeDecodeError:
            return  # it ends within a character, which nobody was shown
        self._answers.remember(opening.turns, text, sequence.written)
