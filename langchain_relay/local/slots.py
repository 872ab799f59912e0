"""Which sequence serves a prompt: one that holds much of it already, if nothing is lost by it.

A later turn of a conversation repeats all of it, so the sequence that wrote the last turn needs to
evaluate what is new only. Another conversation with the same system prompt gets a copy of that
part. Nothing here knows llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as Items

COPIED_TOKENS = 32
"""A copy of a shared beginning pays from here on: llama.cpp copies the whole stream of a chat, as
much as evaluating some ten tokens."""

LOST_TOKENS = 8
"""A conversation goes on in its sequence if no more than this is lost of it: the end of an answer
may be trimmed by its reader."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A sequence for a prompt.

    Attributes:
        id: llama.cpp's sequence number.
        kept: Leading tokens of the prompt that are in its KV cache, or will be once copied.
        donor: The sequence to copy them from; `None`: they are its own.
    """

    id: int
    kept: int = 0
    donor: int | None = None


class Slots:
    """The sequences of a context that nobody writes in.

    Args:
        n: How many the context has.
        rewinds: Whether a part of a sequence can be forgotten; recurrent models can't.
    """

    def __init__(self, n: int, *, rewinds: bool = True) -> None:
        self.rewinds = rewinds
        self._fresh = list(range(n))  # lowest first: neighbours decode best
        heapify(self._fresh)
        self._idle: dict[int, list[int]] = {}  # ids in the KV cache, least recently used first

    @property
    def free(self) -> bool:
        """Somebody can be served."""
        return bool(self._fresh or self._idle)

    def take(self, prompt: list[int], busy: Iterable[tuple[int, Items[int]]] = ()) -> Slot:
        """A sequence for `prompt`. At least the prompt's last token stays to be evaluated.

        Args:
            prompt: The ids.
            busy: Sequences that are being written in, with the ids in their KV cache.
        """
        reusable = prompt[:-1]
        shared = {slot: shared_prefix(ids, reusable) for slot, ids in self._idle.items()}
        mine = self._continued(shared)
        if mine is not None:
            del self._idle[mine]
            return Slot(mine, shared[mine])
        slot = self._least_useful()
        if not self.rewinds:
            return Slot(slot)
        kept = shared.get(slot, 0)
        shared |= {other: shared_prefix(ids, reusable) for other, ids in busy}
        donor = max(shared, key=shared.__getitem__, default=slot)
        if donor != slot and shared[donor] >= kept + COPIED_TOKENS:
            return Slot(slot, shared[donor], donor)
        return Slot(slot, kept)

    def give(self, id: int, cached: list[int]) -> None:
        """`id` is free again; its KV cache holds the tokens `cached`."""
        if cached:
            self._idle[id] = cached
        else:
            heappush(self._fresh, id)

    def _continued(self, shared: dict[int, int]) -> int | None:
        """The idle sequence whose conversation the prompt goes on with."""
        lost = LOST_TOKENS if self.rewinds else 0
        whole = [
            slot
            for slot, ids in self._idle.items()
            if shared[slot] > lost and shared[slot] >= len(ids) - lost
        ]
        return max(whole, key=shared.__getitem__, default=None)

    def _least_useful(self) -> int:
        if self._fresh:
            return heappop(self._fresh)
        slot = next(iter(self._idle))
        del self._idle[slot]
        return slot


def shared_prefix(a: Items[int], b: Items[int]) -> int:
    """How many leading items are the same, by bisection over slices, which C compares."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
