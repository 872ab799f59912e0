"""Evaluated system prompts on disk: which part of a prompt is kept, and how it is put back."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

from langchain_relay.engine.values import Turn
from langchain_relay.local.slots import COPIED_TOKENS, Slot, shared_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence as Items

    from langchain_relay.local.context_types import Context
    from langchain_relay.local.prefix_files import PrefixFiles
    from langchain_relay.local.sequence import Sequence

SAVED_TOKENS = 64
"""A shorter system prompt is not worth a file: evaluating it takes less than half a second."""


class Prefixes:
    """Keeps the state behind a system prompt for other processes, and for later ones.

    Args:
        files: Where.
        context: Whose states.
    """

    def __init__(self, files: PrefixFiles, context: Context) -> None:
        self._files = files
        self._context = context

    def system_tokens(self, turns: Items[Turn], prompt: Items[int]) -> int:
        """How many leading tokens of `prompt` are those of the system prompt; 0 if too few.

        The lesson that a relay puts behind it belongs to it.
        """
        system = list(takewhile(lambda turn: turn.role == "system" or turn.fixed, turns))
        if not system or len(system) == len(turns):
            return 0
        # Another question after the same system prompt: what both have in common is its own.
        other = "b" if turns[len(system)].content.startswith("a") else "a"
        asked = [*system, Turn("user", other)]
        probe = self._context.prompt(asked, open_assistant=False, known={})
        tokens = shared_prefix(prompt, probe)
        return tokens if tokens >= SAVED_TOKENS else 0

    def better(self, slot: Slot, prompt: list[int]) -> Slot:
        """`slot`, its sequence filled from a file if that has clearly more of `prompt`."""
        found = self._files.find(prompt[:-1], longer_than=slot.kept + COPIED_TOKENS)
        if found is None:
            return slot
        self._context.cut(slot.id, 0)
        if self._context.restore(slot.id, found.payload):
            return Slot(slot.id, found.n_ids)
        self._context.cut(slot.id, 0)
        return slot if slot.donor is not None else Slot(slot.id)

    def note_evaluated(self, sequence: Sequence) -> None:
        """Save the state of a sequence that has come to the end of its system prompt."""
        if sequence.pause_at == sequence.evaluated:
            state = self._context.save(sequence.id)
            if state:
                self._files.save(sequence.tokens[: sequence.evaluated], state)
            sequence.pause_at = 0
