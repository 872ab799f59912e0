"""Which sequence serves a prompt: one that holds much of it already, if nothing is lost by it.

A later turn of a conversation repeats all of it, so the sequence that wrote the last turn needs to
evaluate what is new only. Another conversation with the same system prompt gets a copy of that
part. Nothing here knows llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
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
        kept: Leading tokens of the prompt that its KV cache holds, once all of this is done.
        exchanged: A sequence to exchange contents with, first; `None`: none.
        donor: A sequence to copy from, then; `None`: what it has is its own.
    """

    id: int
    kept: int = 0
    exchanged: int | None = None
    donor: int | None = None


class Slots:
    """The sequences of a context: what those hold that nobody writes in, and who gets which.

    A conversation goes on with what is left of it. A new one takes the place of the least recently
    used. llama.cpp decodes together only neighbouring sequences, so whoever would leave a gap to
    those that are being written changes places with one that does not.

    Args:
        n: How many the context has.
        rewinds: Whether a part of a sequence can be forgotten; recurrent models can't.
    """

    def __init__(self, n: int, *, rewinds: bool = True) -> None:
        self.rewinds = rewinds
        self._fresh = set(range(n))
        self._idle: dict[int, list[int]] = {}  # ids in the KV cache, least recently used first
        self._busy: set[int] = set()

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
        mine = self._continued(shared, len(reusable))
        chosen = self._least_useful() if mine is None else mine
        kept = shared.get(chosen, 0) if self.rewinds or mine is not None else 0
        slot = self._place(chosen, kept)
        if mine is not None or not self.rewinds:
            return slot
        shared.pop(chosen, None)
        if slot.id in shared:  # its contents change places
            shared[chosen] = shared.pop(slot.id)
        shared |= {other: shared_prefix(ids, reusable) for other, ids in busy}
        donor = max(shared, key=shared.__getitem__, default=None)
        if donor is not None and shared[donor] >= kept + COPIED_TOKENS:
            return replace(slot, kept=shared[donor], donor=donor)
        return slot

    def _place(self, chosen: int, kept: int) -> Slot:
        """`chosen`, or one beside those that are being written, with the contents of `chosen`."""
        contents = self._idle.pop(chosen, None)
        self._fresh.discard(chosen)
        place = chosen if self._leaves_no_gap(chosen) else self._beside()
        self._busy.add(place)
        if place == chosen:
            return Slot(chosen, kept)
        if place in self._idle:
            self._idle = {chosen if n == place else n: ids for n, ids in self._idle.items()}
        else:
            self._fresh.remove(place)
            self._fresh.add(chosen)
            if contents is None:
                return Slot(place)
        return Slot(place, kept, exchanged=chosen)

    def _leaves_no_gap(self, slot: int) -> bool:
        return not self._busy or not self._busy.isdisjoint((slot - 1, slot + 1))

    def _beside(self) -> int:
        """The lowest free neighbour of a sequence that is being written, an empty one first."""
        near = [slot for slot in (*self._fresh, *self._idle) if self._leaves_no_gap(slot)]
        return min(near, key=lambda slot: (slot in self._idle, slot))

    def give(self, slot: int, cached: list[int]) -> None:
        """`slot` is free again; its KV cache holds the tokens `cached`."""
        self._busy.discard(slot)
        if cached:
            self._idle[slot] = cached
        else:
            self._fresh.add(slot)

    def lose(self, slot: int) -> None:
        """The contents of `slot`, which nobody writes in, are gone."""
        if self._idle.pop(slot, None) is not None:
            self._fresh.add(slot)

    def _continued(self, shared: dict[int, int], reusable: int) -> int | None:
        """The idle sequence whose conversation the prompt goes on with.

        Or asks again, if there is no empty one to copy its beginning to.
        """
        lost = LOST_TOKENS if self.rewinds else 0
        again = reusable if self.rewinds and not self._fresh else reusable + 1
        mine = [
            slot
            for slot, ids in self._idle.items()
            if shared[slot] > lost and shared[slot] >= min(len(ids) - lost, again)
        ]
        return max(mine, key=shared.__getitem__, default=None)

    def _least_useful(self) -> int:
        if not self._fresh:
            return next(iter(self._idle))
        return min(self._fresh, key=lambda slot: (not self._leaves_no_gap(slot), slot))


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
