"""A GGUF's vocabulary and chat template without its weights, where a server does not tell its."""

from __future__ import annotations

import weakref
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_relay.errors import LocalModelError
from langchain_relay.local import models

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_relay.local.template import ChatTemplate
    from langchain_relay.local.vocab import Vocab


class GgufVocabulary:
    """Reads the file at first use, and frees it with this object.

    Args:
        model: An alias, a path to a `.gguf` file, or `"hf:org/repo/file.gguf"`.

    Raises:
        ModelNotFound: no such alias or file, or a file that is no GGUF.
    """

    def __init__(self, model: str | Path) -> None:
        models.check(model)
        self._model = model

    @property
    def template(self) -> ChatTemplate:
        """The chat template."""
        return self._vocab.template

    @property
    def control_texts(self) -> Sequence[str]:
        """The texts of all control tokens."""
        return self._vocab.control_texts

    def tokenize(self, text: str) -> list[int]:
        """Ids of a whole prompt: control text becomes control tokens."""
        return self._vocab.with_bos(self._vocab.tokenize(text, special=True, first=True))

    def count(self, text: str) -> int:
        """Tokens of plain `text` as a continuation."""
        return self._vocab.count(text)

    @cached_property
    def _vocab(self) -> Vocab:
        import llama_cpp

        from langchain_relay.local.llama_log import log
        from langchain_relay.local.vocab import Vocab

        path = models.resolve(self._model)
        log.own_this_thread()  # else llama.cpp tells the terminal all it reads
        try:
            llama_cpp.llama_backend_init()
            params = llama_cpp.llama_model_default_params()
            params.vocab_only = True
            model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
            if not model:
                raise LocalModelError(
                    f"llama.cpp cannot read the vocabulary of {str(path)!r}. {log.last_words()}"
                )
        finally:
            log.disown_this_thread()
        vocab = Vocab(int(model))
        weakref.finalize(self, _free, vocab, model)
        return vocab


def _free(vocab: Vocab, model: int) -> None:
    import llama_cpp

    vocab.free()
    llama_cpp.llama_model_free(model)
