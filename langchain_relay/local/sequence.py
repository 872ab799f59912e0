"""One answer's place in the context: its ids, what of them is evaluated, and what they spell.

Nothing here knows llama.cpp. Ids are kept as they were sampled or tokenized; text that is in the
context is never tokenized again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from langchain_relay.engine.tokens import safe_cut
from langchain_relay.errors import UsageMistake
from langchain_relay.local.text import whole_chars

if TYPE_CHECKING:
    from collections.abc import Sequence as Items


TAIL_CHARS = 64
"""The end of a text that still arrives is tokenized, and may be evaluated, up to this length."""


class Pieces(Protocol):
    """What a sequence needs to know about a vocabulary."""

    def tokenize(self, text: str, *, special: bool, first: bool) -> list[int]:
        """Ids of `text`."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of one token; `UsageMistake` if there is none with this id."""
        ...


class _Written(NamedTuple):
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
        reused_tokens: How many tokens of the prompt were in the KV cache already.
        evaluated_tokens: How many tokens were evaluated for this answer in all, repeats included.
        wasted_tokens: Of these, guesses that were taken back.
        pause_at: Evaluate up to here first, since the state there is wanted; 0: nowhere.
    """

    def __init__(self, id: int, prompt: Items[int], vocab: Pieces, *, reused: int = 0) -> None:
        self.id = id
        self.tokens = list(prompt)
        self.prompt_tokens = len(self.tokens)
        self.evaluated = self.cached = self.reused_tokens = reused
        self.evaluated_tokens = 0
        self.wasted_tokens = 0
        self.pause_at = 0
        self._vocab = vocab
        self._tail = ""  # foreign text whose tokens may still change
        self._tail_tokens = 0  # how many of the last ids spell it for now
        self._written: list[_Written] = []

    @property
    def position(self) -> int:
        """Tokens behind the prompt."""
        return len(self._written)

    @property
    def pending(self) -> int:
        """Tokens that are still to be evaluated."""
        return len(self.tokens) - self.evaluated

    @property
    def next_piece(self) -> int:
        """Of these, tokens that may be evaluated in one go."""
        paused = self.pause_at - self.evaluated
        return min(self.pending, paused) if paused > 0 else self.pending

    @property
    def written(self) -> list[int]:
        """The ids behind the prompt."""
        return self.tokens[self.prompt_tokens :]

    @property
    def written_bytes(self) -> bytes:
        """What they spell."""
        return b"".join(map(self._vocab.piece, self.written))

    def local_since(self, position: int) -> list[int]:
        """Ids written locally from `position` on, without foreign text."""
        written = zip(self.written[position:], self._written[position:], strict=True)
        return [token for token, how in written if how.text is not None]

    def feedable(self, *, rewinds: bool) -> int:
        """Tokens of foreign text that may be evaluated before the next token is asked for.

        The end of the text may still change its tokens: evaluated all the same, unless they cannot
        be taken back.
        """
        end = len(self.tokens) - (0 if rewinds else self._tail_tokens)
        return max(0, min(end - self.evaluated, self.next_piece))

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
            UsageMistake: `rewind` reaches into the prompt, or an id is none; nothing was changed.
        """
        for item in append:
            self._check(item)
        if rewind:
            self._take_back(rewind)
        for item in append:
            if isinstance(item, str):
                self._add_text(item)
            else:
                self.append(item)
        if not more_text:
            self._flush()

    def append(self, token: int) -> None:
        """Append the id of a local token."""
        if self._tail:
            self._flush()
        self.tokens.append(token)
        self._written.append(_Written(*whole_chars(self._held, self._vocab.piece(token))))

    def drop_guesses(self, n: int) -> None:
        """Take back the last `n` tokens, which nobody asked to append."""
        if n:
            before = self.evaluated
            self._truncate(len(self.tokens) - n)
            self.wasted_tokens += before - self.evaluated

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

    def _check(self, item: object) -> None:
        """Refuse what llama.cpp would end the process on."""
        if isinstance(item, int):
            self._vocab.piece(item)
        elif not isinstance(item, str):
            raise UsageMistake(f"{item!r} is neither text nor the id of a token")

    @property
    def _held(self) -> bytes:
        return self._written[-1].held if self._written else b""

    def _take_back(self, rewind: int) -> None:
        self._flush()
        if not 0 <= rewind <= self.position:
            raise UsageMistake(
                f"cannot take back {rewind} tokens: {self.position} stand behind the prompt"
            )
        self._truncate(len(self.tokens) - rewind)

    def _truncate(self, length: int) -> None:
        del self._written[length - self.prompt_tokens :]
        del self.tokens[length:]
        self.evaluated = min(self.evaluated, length)

    def _add_text(self, text: str) -> None:
        # What stood here before had no safe cut, so only its last character can become part of one.
        start = max(0, len(self._tail) - 2)
        self._tail += text
        cut = safe_cut(self._tail[start:])
        settled = self._tail[: start + cut] if cut else ""
        self._tail = self._tail[len(settled) :]
        # A long one would be tokenized again with every piece that makes it longer.
        tail_ids = self._ids(self._tail) if len(self._tail) <= TAIL_CHARS else []
        self._replace_tail([*self._ids(settled), *tail_ids])
        self._tail_tokens = len(tail_ids)

    def _ids(self, text: str) -> list[int]:
        return self._vocab.tokenize(text, special=False, first=False) if text else []

    def _replace_tail(self, ids: list[int]) -> None:
        """Put `ids` in place of the tail's; those that are the same stay evaluated."""
        begin = len(self.tokens) - self._tail_tokens
        same = 0
        for old, new in zip(self.tokens[begin:], ids, strict=False):
            if old != new:
                break
            same += 1
        self._truncate(begin + same)
        self.tokens += ids[same:]
        self._written += [_FOREIGN] * (len(ids) - same)

    def _flush(self) -> None:
        """No more text comes: the tail's tokens are final."""
        if self._tail:
            self._replace_tail(self._ids(self._tail))
        self._tail, self._tail_tokens = "", 0
