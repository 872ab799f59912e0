"""One answer's place in the context: its ids, what of them is evaluated, and what they spell.

Nothing here knows llama.cpp. Ids are kept as they were sampled or tokenized; text that is in the
context is never tokenized again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from langchain_relay.engine.tokens import safe_cut
from langchain_relay.errors import UsageMistake
from langchain_relay.local.text import whole_chars

if TYPE_CHECKING:
    from collections.abc import Sequence as Items


class Pieces(Protocol):
    """What a sequence needs to know about a vocabulary."""

    def tokenize(self, text: str, *, special: bool, first: bool) -> list[int]:
        """Ids of `text`."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of one token."""
        ...


@dataclass(frozen=True, slots=True)
class _Written:
    """A token behind the prompt.

    Attributes:
        text: The characters it completed; `None` on foreign text.
        held: Bytes of an incomplete character after it.
    """

    text: str | None
    held: bytes = b""


_FOREIGN = _Written(None)


class Sequence:
    """The ids of one answer, in the order of the context.

    Attributes:
        id: llama.cpp's sequence number.
        tokens: Prompt and everything appended to it.
        prompt_tokens: How many of them are the prompt.
        evaluated: How many of them are evaluated and unchanged since.
        cached: How many positions the KV cache holds, outdated ones included.
        evaluated_tokens: How many tokens were evaluated for this answer in all, repeats included.
    """

    def __init__(self, id: int, prompt: Items[int], vocab: Pieces) -> None:
        self.id = id
        self.tokens = list(prompt)
        self.prompt_tokens = len(self.tokens)
        self.evaluated = 0
        self.cached = 0
        self.evaluated_tokens = 0
        self._vocab = vocab
        self._tail = ""  # foreign text whose tokens may still change
        self._written: list[_Written] = []

    @property
    def position(self) -> int:
        """Tokens behind the prompt."""
        return len(self._written)

    @property
    def pending(self) -> int:
        """Tokens that are still to be evaluated."""
        return len(self.tokens) - self.evaluated

    def last_written(self, n: int) -> list[int]:
        """The last `n` ids behind the prompt."""
        return self.tokens[max(self.prompt_tokens, len(self.tokens) - n) :]

    def change(self, append: Items[int | str], rewind: int, *, more_text: bool) -> None:
        """Take back `rewind` tokens, then append ids and text.

        Args:
            append: Ids of local tokens, and foreign text.
            rewind: How many of the last tokens are taken back.
            more_text: More text may follow: keep what its tokens depend on.

        Raises:
            UsageMistake: `rewind` reaches into the prompt; nothing was changed.
        """
        self._take_back(rewind)
        for item in append:
            if isinstance(item, str):
                self._add_text(item)
            else:
                self._flush()
                self._add_token(item)
        if not more_text:
            self._flush()

    def note_evaluated(self, n: int) -> None:
        """The next `n` pending tokens are in the KV cache now."""
        self.evaluated += n
        self.cached = self.evaluated
        self.evaluated_tokens += n

    def text_of(self, token: int) -> str:
        """The characters `token` would complete if it came next."""
        return whole_chars(self._held, self._vocab.piece(token))[0]

    def local_tail(self, chars: int) -> str:
        """At least the last `chars` characters written locally since the last foreign text.

        Fewer if there are not as many.
        """
        tail = ""
        for written in reversed(self._written):
            if written.text is None or len(tail) >= chars:
                break
            tail = written.text + tail
        return tail

    @property
    def _held(self) -> bytes:
        return self._written[-1].held if self._written else b""

    def _take_back(self, rewind: int) -> None:
        if not rewind:
            return
        self._flush()
        if not 0 <= rewind <= self.position:
            raise UsageMistake(
                f"cannot take back {rewind} tokens: {self.position} stand behind the prompt"
            )
        del self.tokens[-rewind:]
        del self._written[-rewind:]
        self.evaluated = min(self.evaluated, len(self.tokens))

    def _add_token(self, token: int) -> None:
        self.tokens.append(token)
        self._written.append(_Written(*whole_chars(self._held, self._vocab.piece(token))))

    def _add_text(self, text: str) -> None:
        # What stood here before had no safe cut, so only its last character can become part of one.
        start = max(0, len(self._tail) - 2)
        self._tail += text
        cut = safe_cut(self._tail[start:])
        if cut:
            self._add_foreign(self._tail[: start + cut])
            self._tail = self._tail[start + cut :]

    def _flush(self) -> None:
        if self._tail:
            self._add_foreign(self._tail)
            self._tail = ""

    def _add_foreign(self, text: str) -> None:
        ids = self._vocab.tokenize(text, special=False, first=False)
        self.tokens += ids
        self._written += [_FOREIGN] * len(ids)
