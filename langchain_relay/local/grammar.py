"""A GBNF grammar that checks one candidate at a time: a mask of the vocabulary costs a decode."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import llama_cpp
import numpy as np

from langchain_relay.errors import UsageMistake
from langchain_relay.local.llama_log import log
from langchain_relay.local.sampler import CANDIDATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from langchain_relay.local.sampler import Logits
    from langchain_relay.local.vocab import Vocab

_ROOT = b"root"


class Grammar:
    """A grammar and the text that has followed it so far.

    Args:
        text: GBNF source with a rule `root`.
        vocab: Whose tokens spell the text.

    Raises:
        UsageMistake: llama.cpp does not understand the source.
    """

    def __init__(self, text: str, vocab: Vocab) -> None:
        self.text = text
        self._followed: list[int] = []
        self._sampler = llama_cpp.llama_sampler_init_grammar(vocab.pointer, text.encode(), _ROOT)
        if not self._sampler:
            raise UsageMistake(
                f"the grammar cannot be parsed; it must be GBNF with a rule 'root'. "
                f"{log.last_words()}"
            )
        self._one = np.zeros(1, dtype=CANDIDATE)
        self._all = np.zeros(vocab.n_tokens, dtype=CANDIDATE)
        self._ids = np.arange(vocab.n_tokens, dtype=np.int32)

    def follow(self, written: Sequence[int]) -> None:
        """The text so far is `written`; what a rewind took back is forgotten."""
        known = len(self._followed)
        if list(written[:known]) != self._followed:
            llama_cpp.llama_sampler_reset(self._sampler)
            known, self._followed = 0, []
        for token in written[known:]:
            # llama.cpp ends the process on anything else.
            if not self.allows(token):
                raise UsageMistake(
                    "the text behind the place where the grammar began does not follow it: append "
                    "the steps that were sampled, or change the rule"
                )
            llama_cpp.llama_sampler_accept(self._sampler, token)
            self._followed.append(token)

    def allows(self, token: int) -> bool:
        """Whether the text may go on with `token`."""
        self._one["id"], self._one["logit"] = token, 0
        self._apply(self._one)
        return bool(np.isfinite(self._one["logit"][0]))

    def mask(self, logits: Logits) -> None:
        """Set to -inf what may not follow."""
        self._all["id"], self._all["logit"] = self._ids, logits
        self._apply(self._all)
        np.copyto(logits, self._all["logit"])

    def free(self) -> None:
        """Free it; it is not used again."""
        llama_cpp.llama_sampler_free(self._sampler)

    def _apply(self, candidates: np.ndarray[tuple[int], np.dtype[np.void]]) -> None:
        array = llama_cpp.llama_token_data_array(
            data=candidates.ctypes.data_as(llama_cpp.llama_token_data_p),
            size=len(candidates),
            selected=-1,
            sorted=False,
        )
        llama_cpp.llama_sampler_apply(self._sampler, ctypes.byref(array))
