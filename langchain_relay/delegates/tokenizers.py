"""Tokenizers of hosted models that are at hand without a download, and which model has which.

From the user; else from tiktoken, where its file lies in its cache; else from the package
`quicktok-v1` (the extra `tokenizers`), which brings its files along. A model in no row has no
tokenizer here: a wrong one would cut text away.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

from langchain_relay.engine.tokens import input_tokens_bound
from langchain_relay.errors import DelegateError, MissingExtra, UsageMistake

__all__ = [
    "ENCODINGS",
    "TOKENIZERS",
    "Tokenizer",
    "TokenizerRule",
    "Vocabulary",
    "check_tokenizer",
    "texts_bound",
    "vocabulary_of",
]

Tokenizer = Callable[[str], Sequence[int]]
"""Text to token ids without special tokens: `tiktoken.get_encoding(...).encode_ordinary`."""

_READ = date(2026, 11, 21)

UNKNOWN_FRAME_TOKENS = 64
"""What an unknown chat format may add to a request, beside each message's frame."""

logger = logging.getLogger(__name__)


# --- the tables ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenizerRule:
    """One row.

    Attributes:
        name: The models.
        encoding: Their encoding, by tiktoken's and quicktok's name.
        models: Their names, without what stands before a slash.
        frame_tokens: What their chat format adds to a request at most, beside each message's frame:
            a system text of the template's own.
        source: Who says so.
        read: When it was read.
    """

    name: str
    encoding: str
    models: str
    frame_tokens: int
    source: str
    read: date = _READ


TOKENIZERS: tuple[TokenizerRule, ...] = (
    TokenizerRule(
        "gpt-oss",
        "o200k_harmony",
        r"^gpt-oss($|[-:])",
        160,  # harmony's system message: identity, dates, reasoning, channels
        "tiktoken 0.14, model.py; github.com/openai/harmony",
    ),
    TokenizerRule(
        "OpenAI, GPT-4o, GPT-4.1, GPT-4.5, GPT-5 and the o series",
        "o200k_base",
        r"^(chatgpt-4o|gpt-4o|gpt-4\.[15]|gpt-5|o1|o3|o4-mini)($|[-.:])",
        16,
        "tiktoken 0.14, model.py",
    ),
    TokenizerRule(
        "OpenAI, GPT-4 and GPT-3.5",
        "cl100k_base",
        r"^(gpt-4|gpt-3\.5|gpt-35)($|-(?!5)|:)|^(davinci|babbage)-002$",
        16,
        "tiktoken 0.14, model.py",
    ),
    TokenizerRule(
        "Llama 3 to 3.3",
        "llama3",
        r"^(meta-)?llama-?v?3(($|[-:])|[.p][123]($|[-:]))",
        64,  # the template's own system text: two dates
        "quicktok-v1 0.4.0; llama.com/docs/model-cards-and-prompt-formats/llama3_1",
    ),
    TokenizerRule(
        "Qwen 3, open weights",
        "qwen3",
        r"^qwen-?3(-coder|-next|-vl)?[-:](\d+(\.\d+)?b|coder)",
        32,
        "quicktok-v1 0.4.0; huggingface.co/Qwen/Qwen3-8B",
    ),
)
"""The table; the first row that fits decides."""

ENCODINGS = frozenset(rule.encoding for rule in TOKENIZERS)

_TIKTOKEN_FILES = {
    "o200k_base": (
        "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    "o200k_harmony": (
        "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    "cl100k_base": (
        "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
}
"""The file in tiktoken's cache (the SHA-1 of its address) and its SHA-256; tiktoken 0.14."""


def rule_for(model: str) -> TokenizerRule | None:
    """The row of a model; `None`: its tokenizer is not known here."""
    name = model.lower().rsplit("/", 1)[-1].removeprefix("ft:")
    return next((rule for rule in TOKENIZERS if re.search(rule.models, name)), None)


# --- a model's vocabulary -----------------------------------------------------------------------


@dataclass(slots=True)
class Vocabulary:
    """The tokenizer of one model; a built-in one is loaded by its first use.

    Attributes:
        frame_tokens: What the model's chat format adds to a request, beside each message's frame.
    """

    _tokenizer: Tokenizer | None
    frame_tokens: int
    _encoding: str | None = field(default=None)

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of `text`.

        Raises:
            DelegateError: the user's tokenizer raised, or returned no sequence.
        """
        tokenizer = self._tokenizer or self.load()
        try:
            ids = tokenizer(text)
            len(ids)
        except Exception as error:
            raise DelegateError(
                f"the tokenizer raised {type(error).__name__}: {error}; it takes a text and "
                f"returns a list of token ids",
                retryable=False,
            ) from error
        return ids

    def count(self, text: str) -> int:
        """Tokens of `text`."""
        return len(self.encode(text))

    @property
    def loaded(self) -> bool:
        """Whether using it takes no time to load it."""
        return self._tokenizer is not None

    def load(self) -> Tokenizer:
        """Load it, which takes up to a second, once per process and encoding.

        Raises:
            DelegateError: the package that has it is broken; from now on it is not at hand.
        """
        if self._tokenizer is None:
            assert self._encoding is not None, "there is one or the other"
            self._tokenizer = _loaded(self._encoding)
        return self._tokenizer


def vocabulary_of(model: str, given: Tokenizer | str | None = None) -> Vocabulary | None:
    """The vocabulary of a model; `None`: it is not at hand.

    Args:
        model: The model's name.
        given: What the user says: a function, or the name of an encoding.
    """
    rule = rule_for(model)
    if callable(given):
        return Vocabulary(given, rule.frame_tokens if rule else UNKNOWN_FRAME_TOKENS)
    if given is not None:
        frame_tokens = max(r.frame_tokens for r in TOKENIZERS if r.encoding == given)
        return _vocabulary(given, frame_tokens)
    return _vocabulary(rule.encoding, rule.frame_tokens) if rule else None


def texts_bound(texts: Iterable[str], vocabulary: Vocabulary | None) -> int:
    """An upper bound of the input tokens of a request of these messages."""
    if vocabulary is None:
        return input_tokens_bound(texts)
    return vocabulary.frame_tokens + input_tokens_bound(texts, vocabulary.count)


def check_tokenizer(given: object) -> None:
    """Refuse a `tokenizer=` that can be none.

    Raises:
        UsageMistake: it is no function and no encoding's name.
        MissingExtra: nothing at hand knows the encoding.
    """
    if given is None or (callable(given) and not isinstance(given, type)):
        return
    if not isinstance(given, str) or given not in ENCODINGS:
        raise UsageMistake(
            f"tokenizer={given!r}: pass a function from a text to token ids, such as "
            f'tiktoken.get_encoding("o200k_base").encode_ordinary, or one of '
            f"{', '.join(sorted(ENCODINGS))}"
        )
    if not _at_hand(given):
        raise MissingExtra(
            f"tokenizer={given!r} is not at hand, and nothing is downloaded: "
            f'pip install "langchain-relay[tokenizers]"'
        )


def _vocabulary(encoding: str, frame_tokens: int) -> Vocabulary | None:
    if (known := _known.get(encoding)) is not None:
        return Vocabulary(known, frame_tokens)
    return Vocabulary(None, frame_tokens, encoding) if _at_hand(encoding) else None


# --- the packages that have them ----------------------------------------------------------------

_known: dict[str, Tokenizer] = {}
_broken: set[str] = set()
_loading = Lock()


def _at_hand(encoding: str) -> bool:
    if encoding in _known:
        return True
    found = _tiktoken_file(encoding) is not None or _has_quicktok()
    return found and encoding not in _broken


def _has_quicktok() -> bool:
    return find_spec("quicktok") is not None


def _loaded(encoding: str) -> Tokenizer:
    with _loading:
        if encoding not in _known:
            try:
                _known[encoding] = _from_a_package(encoding)
            except Exception as error:
                _broken.add(encoding)
                raise DelegateError(
                    f"the tokenizer {encoding} could not be loaded: {type(error).__name__}: {error}"
                ) from error
        return _known[encoding]


def _from_a_package(encoding: str) -> Tokenizer:
    if _tiktoken_file(encoding) is not None:
        import tiktoken

        return tiktoken.get_encoding(encoding).encode_ordinary
    import quicktok

    from_quicktok: Tokenizer = quicktok.get_encoding(encoding).encode_ordinary
    return from_quicktok


def _tiktoken_file(encoding: str) -> Path | None:
    """The file tiktoken would read; `None`: it would download it."""
    if encoding not in _TIKTOKEN_FILES:
        return None
    name, sha256 = _TIKTOKEN_FILES[encoding]
    path = _tiktoken_folder() / name
    try:
        stat = path.stat()
        whole = _sha256(path, stat.st_size, stat.st_mtime_ns) == sha256
    except OSError:
        return None
    return path if whole else None


def _tiktoken_folder() -> Path:
    """Where tiktoken looks; with an empty name it keeps nothing."""
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if (given := os.environ.get(name)) is not None:
            return Path(given) if given else Path(os.devnull)
    return Path(tempfile.gettempdir()) / "data-gym-cache"


@lru_cache(maxsize=16)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:  # noqa: ARG001 - a file that changed is read anew
    return hashlib.sha256(path.read_bytes()).hexdigest()
