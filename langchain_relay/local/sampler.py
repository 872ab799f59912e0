"""llama.cpp's sampler chain as a function of the text: what it draws depends on nothing else."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import llama_cpp
import numpy as np

from langchain_relay.local.sampling import PENALTY_LAST_TOKENS, Chosen, draw_seed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    Logits = NDArray[np.float32]  # (n_vocab,)

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Sampler:
    """Picks the next token of one answer.

    It holds no state of the text: the penalty reads the last written ids at each pick, and the
    random draw is seeded by the position. So picking twice at one place gives the same token.
    """

    def __init__(self, chosen: Chosen, n_vocab: int) -> None:
        self._chosen = chosen
        self._likeliest = chosen.greedy and not chosen.penalized
        self._ids = np.arange(n_vocab, dtype=np.int32)
        self._candidates = np.empty(n_vocab, dtype=CANDIDATE)
        params = llama_cpp.llama_sampler_chain_default_params()
        self._chain = llama_cpp.llama_sampler_chain_init(params)
        for sampler in _links(chosen, n_vocab):
            llama_cpp.llama_sampler_chain_add(self._chain, sampler)

    def pick(
        self, logits: Logits, position: int, recent: Callable[[int], Sequence[int]], attempt: int
    ) -> int:
        """The next token's id.

        Args:
            logits: One score per vocabulary item; -inf forbids one.
            position: Tokens behind the prompt so far.
            recent: Gives the last ids of the answer, as many as it is asked for.
            attempt: Candidates refused at this place. Each has a draw of its own: with the same
                one, what is left would not be drawn by its probability.
        """
        if self._likeliest:
            return int(logits.argmax())
        array = self._array(logits)
        if self._chosen.penalized:
            llama_cpp.llama_sampler_reset(self._chain)
            for token in recent(PENALTY_LAST_TOKENS):
                llama_cpp.llama_sampler_accept(self._chain, token)
        llama_cpp.llama_sampler_apply(self._chain, ctypes.byref(array))
        last = self._last_link(position, attempt)
        llama_cpp.llama_sampler_apply(last, ctypes.byref(array))
        llama_cpp.llama_sampler_free(last)
        return int(array.data[array.selected].id)

    def free(self) -> None:
        """Free the chain; the sampler is not used again."""
        llama_cpp.llama_sampler_free(self._chain)

    def _last_link(self, position: int, attempt: int) -> int:
        if self._chosen.greedy:
            return llama_cpp.llama_sampler_init_greedy()  # type: ignore[no-any-return]  # a ctypes function
        return llama_cpp.llama_sampler_init_dist(  # type: ignore[no-any-return]  # a ctypes function
            draw_seed(self._chosen.seed, position, attempt)
        )

    def _array(self, logits: Logits) -> llama_cpp.llama_token_data_array:
        self._candidates["id"] = self._ids
        self._candidates["logit"] = logits
        self._candidates["p"] = 0
        return llama_cpp.llama_token_data_array(
            data=self._candidates.ctypes.data_as(llama_cpp.llama_token_data_p),
            size=len(self._candidates),
            selected=-1,
            sorted=False,
        )


def _links(chosen: Chosen, n_vocab: int) -> Iterable[int]:
    """The chain before the draw, in llama.cpp's own order."""
    if chosen.penalized:
        yield llama_cpp.llama_sampler_init_penalties(
            n_vocab, PENALTY_LAST_TOKENS, chosen.repeat_penalty, 0.0, 0.0
        )
    if chosen.greedy:
        return
    if chosen.top_k > 0:
        yield llama_cpp.llama_sampler_init_top_k(chosen.top_k)
    if chosen.top_p < 1:
        yield llama_cpp.llama_sampler_init_top_p(chosen.top_p, 1)
    if chosen.min_p > 0:
        yield llama_cpp.llama_sampler_init_min_p(chosen.min_p, 1)
    yield llama_cpp.llama_sampler_init_temp(chosen.temperature)
