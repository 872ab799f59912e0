"""The context of one session, as a server gets it: changed at once, tokenized when it is sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from langchain_relay.errors import UsageMistake
from langchain_relay.local.server.dialect import Item

if TYPE_CHECKING:
    from langchain_relay.local.server.dialect import Dialect


@dataclass(frozen=True, slots=True)
class _Rewind:
    tokens: int


class History:
    """Everything in a session's context, and the changes that are not made yet.

    Foreign text is tokenized as a whole, whatever pieces it came in.

    Attributes:
        items: The context; nothing of it is pending.
        prompt_items: How many of them are the prompt.
        texts: The text of each local token the session knows, by its id.
    """

    def __init__(self, prompt: Sequence[Item], dialect: Dialect) -> None:
        self.items = list(prompt)
        self.prompt_items = len(self.items)
        self.texts: dict[int, str] = {}
        self._dialect = dialect
        self._pending: list[Item | str | _Rewind] = []

    @property
    def tokens(self) -> int:
        """Tokens of the whole context."""
        return sum(item.tokens for item in self.items)

    @property
    def position(self) -> int:
        """Tokens behind the prompt."""
        return sum(item.tokens for item in self.items[self.prompt_items :])

    @property
    def settled(self) -> bool:
        """No change is pending."""
        return not self._pending

    def change(self, append: Iterable[int | str], rewind: int) -> None:
        """Note what is to be taken back, then appended; made by `settle`.

        Raises:
            UsageMistake: an id that is not this session's; `rewind` below 0.
        """
        if rewind < 0:
            raise UsageMistake(f"cannot take back {rewind} tokens")
        if rewind:
            self._pending.append(_Rewind(rewind))
        for item in append:
            self._append(item)

    def add(self, item: Item) -> None:
        """Append an item that needs no settling."""
        self.items.append(item)

    async def settle(self) -> None:
        """Make the pending changes; one that is broken off or fails at the server stays pending.

        Raises:
            UsageMistake: a rewind reaches into the prompt, or into text whose tokens the server
                does not tell.
        """
        while self._pending:
            match self._pending[0]:
                case Item() as item:
                    self.items.append(item)
                case str() as text:
                    self.items.append(await self._dialect.foreign(text))
                case _Rewind(tokens):
                    try:
                        self._take_back(tokens)
                    except UsageMistake:
                        self._pending.clear()  # else every ask from now on would fail
                        raise
            del self._pending[0]

    def _append(self, item: int | str) -> None:
        if isinstance(item, int):
            self._pending.append(self._dialect.item(item, self.texts.get(item)))
        elif self._pending and isinstance(self._pending[-1], str):
            self._pending[-1] += item
        elif item:
            self._pending.append(item)

    def _take_back(self, tokens: int) -> None:
        if tokens > self.position:
            raise UsageMistake(
                f"cannot take back {tokens} tokens: {self.position} stand behind the prompt"
            )
        kept = list(self.items)
        while tokens:
            last = kept.pop()
            if last.tokens > tokens:
                kept.append(_shortened(last, tokens))
            tokens = max(0, tokens - last.tokens)
        self.items = kept  # not before all of it could be taken back


def _shortened(item: Item, tokens: int) -> Item:
    if not item.ids:
        raise UsageMistake(
            f"cannot take back {tokens} of the {item.tokens} tokens of a text: the server does not "
            f"tell where they lie; take back all of it"
        )
    return Item("", item.ids[:-tokens], item.tokens - tokens, item.local)


def local_tail(items: Sequence[Item], chars: int) -> str:
    """At least the last `chars` characters written locally since the last foreign text."""
    tail = ""
    for item in reversed(items):
        if not item.local or len(tail) >= chars:
            break
        tail = item.text + tail
    return tail
