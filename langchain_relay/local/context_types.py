"""What the engine asks of a loaded model. `context.py` does it with llama.cpp, tests without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from langchain_relay.engine.values import Turn
    from langchain_relay.local.sampling import Chosen


@dataclass(frozen=True, slots=True)
class LlamaSettings:
    """How to load a model; `LlamaCppModel` documents the fields."""

    model: str | Path
    adapter: Path | None
    n_ctx: int | None
    n_threads: int
    n_gpu_layers: int
    max_concurrency: int
    n_batch: int
    run_ahead: int
    state_dir: Path | None
    state_max_bytes: int


class Row(NamedTuple):
    """One token to evaluate.

    Attributes:
        token: Its id.
        position: Its place in its sequence, the prompt included.
        sequence: The sequence's number.
        wanted: The logits behind it are wanted.
    """

    token: int
    position: int
    sequence: int
    wanted: bool


class TokenPicker(Protocol):
    """The sampler of one answer."""

    def pick(
        self, logits: Any, position: int, recent: Callable[[int], Sequence[int]], attempt: int
    ) -> int:
        """The next token, a function of its arguments and the settings.

        `recent` gives the last ids of the answer, as many as it is asked for; `attempt` counts the
        candidates that were refused at this place.
        """
        ...

    def free(self) -> None:
        """Give its memory back."""
        ...


class TextGrammar(Protocol):
    """A grammar and how far a text has come in it."""

    text: str
    """Its GBNF source."""

    def follow(self, written: Sequence[int]) -> None:
        """The text so far is `written`."""
        ...

    def allows(self, token: int) -> bool:
        """Whether the text may go on with `token`."""
        ...

    def mask(self, logits: Any) -> None:
        """Set to -inf what may not follow."""
        ...

    def free(self) -> None:
        """Give its memory back."""
        ...


class Vocabulary(Protocol):
    """Text to ids, ids to bytes; may be used on every thread."""

    def tokenize(self, text: str, *, special: bool, first: bool) -> list[int]:
        """Ids of `text`."""
        ...

    def count(self, text: str) -> int:
        """Tokens of `text`."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes of one token."""
        ...

    def is_eog(self, token: int) -> bool:
        """Whether `token` ends a turn."""
        ...


class Context(Protocol):
    """A loaded model with a context; used by the engine thread only, but for its vocabulary."""

    n_ctx: int
    """Tokens of one chat."""

    rewinds: bool
    """A part of a sequence can be forgotten; a recurrent model's cannot."""

    @property
    def vocab(self) -> Vocabulary:
        """The model's vocabulary."""
        ...

    @property
    def thinking(self) -> bool:
        """Whether the chat template knows `<think>` tags."""
        ...

    @property
    def state_format(self) -> str:
        """What must be the same for a saved state to be restored, beside model and adapter."""
        ...

    def prompt(
        self, turns: Sequence[Turn], *, open_assistant: bool, known: Mapping[int, Sequence[int]]
    ) -> list[int]:
        """Ids of the rendered conversation; of the turns in `known` the ids are given."""
        ...

    def sampler(self, chosen: Chosen) -> TokenPicker:
        """A sampler for one answer."""
        ...

    def grammar(self, text: str) -> TextGrammar:
        """A grammar at its beginning."""
        ...

    def decode(self, rows: Sequence[Row], *, hidden: bool = False) -> int:
        """Evaluate `rows`; 0, or an error number. `hidden`: hidden states are wanted too."""
        ...

    def logits(self, row: int) -> Any:
        """The scores behind a row of the last decode, one per token, to be changed at will.

        They have a method `copy`, whose result outlasts the next decode.
        """
        ...

    def measure(self, logits: Any, signals: Iterable[str]) -> dict[str, float]:
        """Margin and entropy of `logits`, as far as `signals` names them."""
        ...

    def hidden(self, row: int) -> Any:
        """The hidden state behind a row of the last decode, which was asked to have them."""
        ...

    def cut(self, sequence: int, length: int) -> bool:
        """Forget all but the first `length` tokens; `False` if only all can be forgotten."""
        ...

    def copy(self, source: int, target: int) -> None:
        """Make the empty sequence `target` hold what `source` holds."""
        ...

    def exchange(self, a: int, b: int) -> bool:
        """Exchange what two sequences hold; `False`: it failed and both are empty."""
        ...

    def save(self, sequence: int) -> bytes:
        """The state of a sequence, to be put back by `restore`."""
        ...

    def restore(self, sequence: int, state: bytes) -> bool:
        """Make an empty sequence hold a saved state; `False` if it is none of this model."""
        ...

    def last_words(self) -> str:
        """Why the last decode failed, as far as the model says."""
        ...

    def free(self) -> None:
        """Give all memory back."""
        ...
