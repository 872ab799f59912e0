"""The vocabulary of a loaded model: text to ids, ids to bytes."""

from __future__ import annotations

import ctypes
from functools import cached_property

import llama_cpp

from langchain_relay.errors import LocalModelError, UsageMistake
from langchain_relay.local.forks import ForkLock
from langchain_relay.local.template import ChatTemplate

_PIECE_BYTES = 256
_NOTHING_AROUND = False  # `add_special`
_PLAIN = (0, False)  # `lstrip`, and `special`: control tokens have no text
_CONTROL = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN


class Vocab:
    """Tokenizes for every thread as long as the model is loaded.

    Args:
        model: A loaded `llama_model` pointer.
    """

    def __init__(self, model: int) -> None:
        self._vocab = self.pointer = llama_cpp.llama_model_get_vocab(model)
        # Readers are counted in by this lock, so that nobody tokenizes with a freed vocabulary.
        self._lock = ForkLock()
        self._freed = False
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self.n_tokens: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.bos: int = llama_cpp.llama_vocab_bos(self._vocab)
        self.adds_bos: bool = llama_cpp.llama_vocab_get_add_bos(self._vocab)
        self.prefixes_blank = (
            self._tokenize("a", special=False)
            != self._tokenize("\na", special=False)[len(self._tokenize("\n", special=False)) :]
        )
        template = llama_cpp.llama_model_chat_template(model, None)
        self.template = ChatTemplate(
            template.decode(errors="replace") if template else None,
            bos=self._text(self.bos),
            eos=self._text(llama_cpp.llama_vocab_eos(self._vocab)),
        )

    def count(self, text: str) -> int:
        """Tokens of `text` as a continuation."""
        return len(self.tokenize(text, special=False, first=False))

    def tokenize(self, text: str, *, special: bool, first: bool) -> list[int]:
        """Ids of `text`.

        Args:
            text: What to tokenize; nothing is put around it.
            special: Control text becomes control tokens.
            first: The text begins the context, where some vocabularies put a blank before it.
        """
        if not text:
            return []
        if first or not self.prefixes_blank:
            return self._tokenize(text, special=special)
        # A vocabulary that puts a blank before every text puts it before the newline here.
        newline = self._tokenize("\n", special=False)
        ids = self._tokenize("\n" + text, special=special)
        return ids[len(newline) :] if ids[: len(newline)] == newline else ids

    def piece(self, token: int) -> bytes:
        """The bytes of `token`; control tokens have none.

        Raises:
            UsageMistake: there is no such token.
        """
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def is_eog(self, token: int) -> bool:
        """Whether `token` ends a turn."""
        ends = self._ends.get(token)
        if ends is None:
            ends = self._ends[token] = bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))
        return ends

    def with_bos(self, ids: list[int]) -> list[int]:
        """A prompt's `ids`, begun as the vocabulary wants it."""
        if self.adds_bos and self.bos >= 0 and ids[:1] != [self.bos]:
            return [self.bos, *ids]
        return ids

    @cached_property
    def control_texts(self) -> list[str]:
        """The texts that `special=True` turns into tokens no message may contain."""
        attr = llama_cpp.llama_vocab_get_attr
        with self._lock:
            self._check_loaded()
            ids = [i for i in range(self.n_tokens) if attr(self._vocab, i) & _CONTROL]
            return [self._text(i) for i in ids]

    def free(self) -> None:
        """Refuse every later use: the model is about to be freed."""
        with self._lock:
            self._freed = True

    def _check_loaded(self) -> None:
        if self._freed:
            raise LocalModelError("the local model was closed")

    def _tokenize(self, text: str, *, special: bool) -> list[int]:
        data = text.encode(errors="replace")
        # A token is at least one byte; a vocabulary may add a blank of its own.
        size = len(data) + 8
        ids = (llama_cpp.llama_token * size)()
        with self._lock:
            self._check_loaded()
            n = llama_cpp.llama_tokenize(
                self._vocab, data, len(data), ids, size, _NOTHING_AROUND, special
            )
        if n < 0:
            raise LocalModelError(f"llama.cpp made {-n} tokens of {len(data)} bytes of text")
        return list(ids[:n])

    def _read_piece(self, token: int) -> bytes:
        if not 0 <= token < self.n_tokens:
            raise UsageMistake(
                f"token {token} is not in this vocabulary, whose ids are 0 to {self.n_tokens - 1}"
            )
        buffer = ctypes.create_string_buffer(_PIECE_BYTES)
        n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, _PIECE_BYTES, *_PLAIN)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, -n, *_PLAIN)
        return buffer.raw[:n]

    def _text(self, token: int) -> str:
        if token < 0:
            return ""
        text = llama_cpp.llama_vocab_get_text(self._vocab, token)
        return text.decode(errors="replace") if text else ""
