"""What the engine asks of a loaded model. `context.py` does it with llama.cpp, tests without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
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


@dataclass(frozen=True, slots=True)
class Row:
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

    def pick(self, logits: Any, position: int, written: Sequence[int]) -> int:
        """The next token, a function of its arguments and the settings."""
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

    @property
    def vocab(self) -> Vocabulary:
        """The model's vocabulary."""
        ...

    @property
    def thinking(self) -> bool:
        """Whether the chat template knows `<think>` tags."""
        ...

    def prompt(self, turns: Sequence[Turn], *, open_assistant: bool) -> list[int]:
        """Ids of the rendered conversation."""
        ...

    def sampler(self, chosen: Chosen) -> TokenPicker:
        """A sampler for one answer."""
        ...

    def decode(self, rows: Sequence[Row]) -> int:
        """Evaluate `rows`; 0, or an error number."""
        ...

    def logits(self, row: int) -> Any:
        """The scores behind a row of the last decode, one per token, to be changed at will."""
        ...

    def measure(self, logits: Any, signals: Iterable[str]) -> dict[str, float]:
        """The signals of `logits`."""
        ...

    def cut(self, sequence: int, length: int) -> bool:
        """Forget all but the first `length` tokens; `False` if only all can be forgotten."""
        ...

    def last_words(self) -> str:
        """Why the last decode failed, as far as the model says."""
        ...

    def free(self) -> None:
        """Give all memory back."""
        ...
