"""Who is in the next batch, and with how many tokens. Pure functions of the leases."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from langchain_relay.local.context_types import Row

if TYPE_CHECKING:
    from collections.abc import Iterable

    from langchain_relay.local.lease import Lease

PIECE_TOKENS = 64
"""What may be evaluated of prompts and spans in one step while other chats write.

A smaller piece costs the prompt time, since weights are read once per step; a larger one makes the
others wait: 64 tokens take about as long as 20 steps of a lone chat.
"""


class Part(NamedTuple):
    """What one sequence contributes to a batch: its next `n` pending tokens."""

    lease: Lease
    n: int

    def rows(self) -> list[Row]:
        """Its rows; the logits behind the very last token are wanted."""
        sequence = self.lease.sequence
        tokens, begin = sequence.tokens, sequence.evaluated
        last = len(tokens) - 1
        return [Row(tokens[i], i, sequence.id, i == last) for i in range(begin, begin + self.n)]


def plan(asking: Iterable[Lease], feeding: Iterable[tuple[Lease, int]], n_batch: int) -> list[Part]:
    """A row for every sequence that decodes, then pieces of prompts and spans.

    Nobody starves: whoever has one token left gets its row whatever else is to be evaluated, and
    prompts share what is left in equal pieces, so that a short one passes a long one. Text that
    is fed while nobody waits for it takes one row beside others and as many as it can alone.

    Args:
        asking: Leases that wait for a token, or guess one.
        feeding: Leases whose foreign text may be evaluated now, with how many tokens of it.
        n_batch: Tokens of one batch.

    Returns:
        Parts in the order of sequence numbers, which `Context.decode` needs to be fast.
    """
    parts, prompts = [], []
    for lease in asking:
        if lease.sequence.pending == 1:
            parts.append(Part(lease, 1))
        else:
            prompts.append((lease, lease.sequence.next_piece))
    fed = list(feeding)
    if prompts or fed:
        parts += _pieces(prompts, fed, n_batch, beside=len(parts))
    if len(parts) > 1:
        parts.sort(key=lambda part: part.lease.sequence.id)
    return parts


def _pieces(
    prompts: list[tuple[Lease, int]], fed: list[tuple[Lease, int]], n_batch: int, *, beside: int
) -> list[Part]:
    """What of prompts and spans goes into a batch with `beside` rows of chats that decode."""
    if beside or prompts:
        fed = [(lease, 1) for lease, _ in fed]
    left = n_batch - beside
    pieces = _shared(fed, left)
    left -= sum(part.n for part in pieces)
    return pieces + _shared(prompts, min(left, PIECE_TOKENS) if beside else left)


def _shared(wanted: list[tuple[Lease, int]], left: int) -> list[Part]:
    """Equal shares of `left`; what the short ones do not need goes to the long ones."""
    parts = []
    ascending = sorted(wanted, key=lambda item: item[1])
    for i, (lease, tokens) in enumerate(ascending):
        # Rounded up, so that the last ones go short and not the first of many.
        share = -(-left // (len(ascending) - i))
        n = min(tokens, share)
        if n:
            parts.append(Part(lease, n))
            left -= n
    return parts
