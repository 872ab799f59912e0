"""A loaded GGUF with its context. One thread owns it: two threads on one context abort the process.

The low-level API of llama.cpp is used, as llama-cpp-python 0.3.36 has it.
"""

from __future__ import annotations

import ctypes
import logging
import platform
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np

from langchain_relay.errors import LocalModelError
from langchain_relay.local import models, weights
from langchain_relay.local.grammar import Grammar
from langchain_relay.local.llama_log import log
from langchain_relay.local.sampler import Sampler
from langchain_relay.local.signals import Signals
from langchain_relay.local.threads import decode_threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from langchain_relay.engine.values import Turn
    from langchain_relay.local.context_types import LlamaSettings, Row
    from langchain_relay.local.sampler import Logits
    from langchain_relay.local.sampling import Chosen

logger = logging.getLogger(__name__)

DEFAULT_N_CTX = 4096
"""Context of one chat where neither the user nor the model asks for less."""

# Keys of another type than values keep llama.cpp's flash attention on a CPU from two short cuts (a
# lone row, many rows) that add up in another order: with f16 for both, scores beyond 256 tokens
# differed by up to 1.06 between a chat alone, beside others, and with its prompt in pieces; with
# bf16 keys by 0.0, at the same speed. Its bf16 kernel is vectorised for x86 only.
_BF16 = 30  # ggml's own number; llama-cpp-python has no name for it
EXACT_KEYS = _BF16 if platform.machine() in ("x86_64", "AMD64") else None


class LlamaContext:
    """A model, a context for `max_concurrency` chats, and a batch.

    Raises:
        ModelNotFound: the model or adapter cannot be found or downloaded.
        LocalModelError: llama.cpp cannot load it; its own last words are in the message.
    """

    def __init__(self, settings: LlamaSettings) -> None:
        self._weights: weights.Weights | None = None
        self._ctx: int | None = None
        self._batch: Any = None
        self._adapter: Any = None
        self._n_threads = settings.n_threads
        path = models.resolve(settings.model)
        log.own_this_thread()
        llama_cpp.llama_backend_init()
        decode_threads.join(self._n_threads)
        try:
            self._weights = weights.acquire(path, settings.n_gpu_layers)
            model = self._weights.model
            self.vocab = self._weights.vocab
            self.rewinds = self._weights.rewinds
            self.n_ctx = settings.n_ctx or _default_n_ctx(model)
            self._warn_beyond_training(model)
            self._ctx = _new_context(model, self.n_ctx, settings)
            self._memory = llama_cpp.llama_get_memory(self._ctx)
            if settings.adapter is not None:
                self._adapter = self._weights.load_adapter(settings.adapter)
                _set_adapter(self._ctx, self._adapter, settings.adapter)
            self._batch = batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)
            # Looked up once: each access to a structure's pointer makes a new object.
            self._columns = (batch.token, batch.pos, batch.logits)
            self._sequences = [batch.seq_id[i] for i in range(settings.n_batch)]
            for i in range(settings.n_batch):
                batch.n_seq_id[i] = 1
            self._views: dict[int, Logits] = {}
            self._signals = Signals(self.vocab.n_tokens)
            self._n_embd = llama_cpp.llama_model_n_embd(model)
            self._hidden = False
        except BaseException:
            self.free()
            raise

    @property
    def thinking(self) -> bool:
        """Whether the chat template knows `<think>` tags."""
        return self.vocab.template.thinking

    @property
    def state_format(self) -> str:
        """What must be the same for a saved state to be restored, beside model and adapter."""
        return f"llama-cpp-python {llama_cpp.__version__}, keys {EXACT_KEYS}, flash attention auto"

    def prompt(
        self, turns: Sequence[Turn], *, open_assistant: bool, known: Mapping[int, Sequence[int]]
    ) -> list[int]:
        """Ids of the rendered conversation; of the turns in `known` the ids are given."""
        ids = self.vocab.template.encode(
            turns, self.vocab, open_assistant=open_assistant, known=known
        )
        return self.vocab.with_bos(ids)

    def sampler(self, chosen: Chosen) -> Sampler:
        """A sampler for one answer; to be freed by whoever asked for it."""
        return Sampler(chosen, self.vocab.n_tokens)

    def grammar(self, text: str) -> Grammar:
        """A grammar at its beginning; to be freed by whoever asked for it."""
        return Grammar(text, self.vocab)

    def decode(self, rows: Sequence[Row], *, hidden: bool = False) -> int:
        """Evaluate `rows` (at most `n_batch`); 0, or llama.cpp's error number.

        With a KV stream per chat llama.cpp decodes together only neighbouring sequence numbers in
        rising order: eight chats out of order took 1.9 times as long as in order, and four with
        gaps between them 1.7 times as long as four without.
        """
        token, position, wanted = self._columns
        for i, row in enumerate(rows):
            token[i], position[i], self._sequences[i][0], wanted[i] = row
        self._batch.n_tokens = len(rows)
        if hidden != self._hidden:
            # Not left on: llama.cpp copies a vector for every row that asks for logits.
            llama_cpp.llama_set_embeddings(self._ctx, hidden)
            self._hidden = hidden
        if not decode_threads.crowded:
            return int(llama_cpp.llama_decode(self._ctx, self._batch))
        with decode_threads.turn(self._n_threads):
            return int(llama_cpp.llama_decode(self._ctx, self._batch))

    def logits(self, row: int) -> Logits:
        """The scores behind the `row`-th row of the last decode, valid until the next one."""
        pointer = llama_cpp.llama_get_logits_ith(self._ctx, row)
        address = ctypes.addressof(pointer.contents)
        view = self._views.get(address)
        if view is None:
            # Making a view takes longer than reading it; llama.cpp's buffer seldom moves.
            view = np.ctypeslib.as_array(pointer, shape=(self.vocab.n_tokens,))
            self._views[address] = view
        return view

    def measure(self, logits: Logits, signals: Iterable[str]) -> dict[str, float]:
        """Margin and entropy of the distribution `logits` stand for."""
        return self._signals.measure(logits, frozenset(signals))

    def hidden(self, row: int) -> Logits:
        """The hidden state behind a row of the last decode: a copy of shape (n_embd,)."""
        pointer = llama_cpp.llama_get_embeddings_ith(self._ctx, row)
        return np.ctypeslib.as_array(pointer, shape=(self._n_embd,)).copy()

    def cut(self, sequence: int, length: int) -> bool:
        """Forget all but the first `length` tokens; `False` if this model cannot forget a part."""
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def copy(self, source: int, target: int) -> None:
        """Make the empty sequence `target` hold what `source` holds.

        Between streams llama.cpp copies whole ones, at the next decode.
        """
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def exchange(self, a: int, b: int) -> bool:
        """Exchange what two sequences hold; `False`: it failed and both are empty.

        A round trip through memory of the tokens they hold: 1 ms for 500 of SmolLM2.
        """
        states = self._state(b), self._state(a)
        for sequence in (a, b):
            self.cut(sequence, 0)
        if all(map(self._put, (a, b), states)):
            return True
        for sequence in (a, b):
            self.cut(sequence, 0)
        return False

    def save(self, sequence: int) -> bytes:
        """The state of a sequence; empty if llama.cpp gives none."""
        return bytes(self._state(sequence))

    def restore(self, sequence: int, state: bytes) -> bool:
        """Make an empty sequence hold a saved state; `False` if llama.cpp refuses it."""
        return self._put(sequence, (ctypes.c_uint8 * len(state)).from_buffer_copy(state))

    def _state(self, sequence: int) -> ctypes.Array[ctypes.c_uint8]:
        size = llama_cpp.llama_state_seq_get_size(self._ctx, sequence)
        state = (ctypes.c_uint8 * size)()
        n = llama_cpp.llama_state_seq_get_data(self._ctx, state, size, sequence)
        return state if n == size else (ctypes.c_uint8 * 0)()

    def _put(self, sequence: int, state: ctypes.Array[ctypes.c_uint8]) -> bool:
        return bool(llama_cpp.llama_state_seq_set_data(self._ctx, state, len(state), sequence))

    def free(self) -> None:
        """Give all memory back, the context before the model. May be called more than once."""
        if self._batch is not None:
            llama_cpp.llama_batch_free(self._batch)
        if self._ctx is not None:
            llama_cpp.llama_free(self._ctx)
        if self._weights is not None:
            if self._adapter is not None:
                self._weights.free_adapter(self._adapter)
            weights.release(self._weights)
        log.disown_this_thread()
        decode_threads.leave(self._n_threads)
        self._batch = self._ctx = self._weights = self._adapter = None
        self._n_threads = 0

    def last_words(self) -> str:
        """llama.cpp's last errors of this thread."""
        return log.last_words()

    def _warn_beyond_training(self, model: int) -> None:
        trained = llama_cpp.llama_model_n_ctx_train(model)
        if self.n_ctx > trained:
            logger.warning(
                "n_ctx=%d is more than the %d tokens this model was trained on; "
                "text beyond them may be nonsense",
                self.n_ctx,
                trained,
            )


def _default_n_ctx(model: int) -> int:
    return min(DEFAULT_N_CTX, int(llama_cpp.llama_model_n_ctx_train(model)))


def _new_context(model: int, n_ctx: int, settings: LlamaSettings) -> int:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = n_ctx * settings.max_concurrency
    params.n_seq_max = settings.max_concurrency
    params.n_batch = params.n_ubatch = settings.n_batch
    params.n_threads = params.n_threads_batch = settings.n_threads
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
    # One KV stream per chat: in a unified cache a chat's greedy text changed beside others.
    params.kv_unified = False
    if EXACT_KEYS is not None and settings.n_gpu_layers == 0:
        params.type_k = EXACT_KEYS
    params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE  # hidden states per token
    params.swa_full = True  # else `cut` says yes and the positions are gone (Gemma)
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise LocalModelError(
            f"llama.cpp cannot make a context of {settings.max_concurrency} chats with {n_ctx} "
            f"tokens each; lower n_ctx or max_concurrency. {log.last_words()}"
        )
    return int(context)


def _set_adapter(context: int, adapter: Any, path: Path) -> None:
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(
        ctypes.cast(adapter, llama_cpp.llama_adapter_lora_p_ctypes)
    )
    if llama_cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0)):
        raise LocalModelError(f"llama.cpp refuses the adapter {str(path)!r}. {log.last_words()}")
