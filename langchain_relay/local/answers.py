"""The ids of finished answers, found again by the conversation that ends with them.

Text that is tokenized anew does not always give the ids that were sampled, and from the first
difference on the KV cache is useless. LangChain sends text; so the ids are kept here.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_relay.engine.values import Turn

KEPT_TOKENS = 1_000_000
"""Of all kept answers together: some tens of megabytes."""

_EACH = 16
"""What an entry takes beside its ids, in ids."""


class FinishedAnswers:
    """Remembers the latest answers, up to `max_tokens` in all."""

    def __init__(self, max_tokens: int = KEPT_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._tokens = 0
        self._answers: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()

    def remember(self, turns: Sequence[Turn], text: str, ids: Sequence[int]) -> None:
        """`text`, the local view of an answer to `turns`, has these ids."""
        size = len(ids) + _EACH
        if not text or size > self._max_tokens:
            return
        *_, (_, before) = _digests(turns)
        key = _extended(before, "assistant", text).digest()
        if (known := self._answers.pop(key, None)) is not None:
            self._tokens -= len(known) + _EACH
        self._answers[key] = tuple(ids)
        self._tokens += size
        while self._tokens > self._max_tokens:
            _, oldest = self._answers.popitem(last=False)
            self._tokens -= len(oldest) + _EACH

    def find(self, turns: Sequence[Turn]) -> Mapping[int, Sequence[int]]:
        """The ids of those of `turns` that are remembered answers, by the turn's number."""
        found = {}
        for number, (turn, digest) in enumerate(zip(turns, list(_digests(turns))[1:], strict=True)):
            key = digest[1].digest()
            if turn.role == "assistant" and key in self._answers:
                self._answers.move_to_end(key)
                found[number] = self._answers[key]
        return found


def _digests(turns: Sequence[Turn]) -> Iterator[tuple[int, hashlib._Hash]]:
    """The digest of the first n turns, for every n from 0."""
    digest = hashlib.sha256()
    yield 0, digest
    for n, turn in enumerate(turns, start=1):
        digest = _extended(digest, turn.role, turn.content)
        yield n, digest


def _extended(digest: hashlib._Hash, role: str, content: str) -> hashlib._Hash:
    longer = digest.copy()
    for text in (role, content):
        data = text.encode(errors="surrogatepass")
        longer.update(len(data).to_bytes(8) + data)  # the length, so that no two turns look alike
    return longer
