"""Who has a sequence and who waits for one, first come first served.

    queue → grant: lent, filled, decoded for → take back: its tokens stay for the next prompt

Used by the engine thread only.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from langchain_relay.errors import LocalModelError, RelayError
from langchain_relay.local.inbox import fail, ours

if TYPE_CHECKING:
    from collections.abc import Hashable

    from langchain_relay.local.context_types import Context
    from langchain_relay.local.decoder import Decoder
    from langchain_relay.local.inbox import Open
    from langchain_relay.local.lease import Lease
    from langchain_relay.local.lender import Lender, Prompt


class Leases:
    """Grants the sequences of one context.

    Args:
        context: Where they are.
        lender: Chooses and fills them.
        decoder: Decodes for those who have one.
    """

    def __init__(self, context: Context, lender: Lender, decoder: Decoder) -> None:
        self._context = context
        self._lender = lender
        self._decoder = decoder
        self._waiting: deque[tuple[Open, Prompt]] = deque()

    def queue(self, asked: Open) -> None:
        """Somebody wants a sequence."""
        try:
            self._waiting.append((asked, self._lender.prompt(asked.opening)))
        except Exception as error:  # noqa: BLE001 - one chat's fault must not end the others
            fail(asked.future, ours(error))

    def grant(self) -> None:
        """Lend free sequences to those who wait."""
        while self._waiting and self._lender.free:
            asked, prompt = self._waiting.popleft()
            if not asked.future.set_running_or_notify_cancel():
                continue  # cancelled while it queued
            try:
                lease = self._lease(asked, prompt)
                session = asked.granted(lease, self._context)
            except Exception as error:
                asked.future.set_exception(ours(error))
                if any(lease.opening is asked.opening for lease in self._decoder.leases):
                    raise  # nobody knows what its sequence holds, as after any decode that raised
            else:
                asked.future.set_result(session)

    def take_back(self, lease: Lease, why: str = "the session was closed while it decoded") -> None:
        """An answer is over; an ask of it fails, and says why."""
        if self._decoder.leave(lease, LocalModelError(why)):
            lease.free()
            self._lender.take_back(lease)

    def dismiss(self, user: Hashable) -> None:
        """Fail what `user` has under way, and take back its sequences."""
        closed = "the local model was closed"
        for asked, _ in self._waiting:
            if asked.opening.user == user:
                fail(asked.future, LocalModelError(closed))
        self._waiting = deque(one for one in self._waiting if one[0].opening.user != user)
        for lease in [lease for lease in self._decoder.leases if lease.opening.user == user]:
            self.take_back(lease, closed)

    def end(self, error: RelayError) -> None:
        """Fail everybody with `error`; nothing is lent any more."""
        for asked, _ in self._waiting:
            fail(asked.future, error)
        self._decoder.end(error)
        for lease in self._decoder.leases:
            lease.free()

    def _lease(self, asked: Open, prompt: Prompt) -> Lease:
        held = self._decoder.leases
        lease, copied = self._lender.lend(asked.opening, asked.chosen, prompt, held)
        self._decoder.join(lease, copied=copied)
        return lease
