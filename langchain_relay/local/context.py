"""A loaded GGUF with its context. One thread owns it: two threads on one context abort the process.

The low-level API of llama.cpp is used, as llama-cpp-python 0.3.36 has it.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np

from langchain_relay.errors import LocalModelError
from langchain_relay.local import models
from langchain_relay.local.sampler import Sampler, measure
from langchain_relay.local.vocab import Vocab

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from langchain_relay.engine.values import Turn
    from langchain_relay.local.context_types import LlamaSettings, Row
    from langchain_relay.local.sampler import Logits
    from langchain_relay.local.sampling import Chosen

logger = logging.getLogger(__name__)

DEFAULT_N_CTX = 4096
"""Context of one chat where neither the user nor the model asks for less."""

_LOG_ERROR, _LOG_CONTINUED = 4, 5


class LlamaContext:
    """A model, a context for `max_concurrency` chats, and a batch.

    Raises:
        ModelNotFound: the model or adapter cannot be found or downloaded.
        LocalModelError: llama.cpp cannot load it; its own last words are in the message.
    """

    def __init__(self, settings: LlamaSettings) -> None:
        self._model: int | None = None
        self._ctx: int | None = None
        self._batch: Any = None
        path = models.resolve(settings.model)
        _log.own_this_thread()
        llama_cpp.llama_backend_init()
        try:
            self._model = _load_model(path, settings)
            self.vocab = Vocab(self._model)
            self.n_ctx = settings.n_ctx or _default_n_ctx(self._model)
            self._warn_beyond_training()
            self._ctx = _new_context(self._model, self.n_ctx, settings)
            self._memory = llama_cpp.llama_get_memory(self._ctx)
            if settings.adapter is not None:
                _set_adapter(self._model, self._ctx, settings.adapter)
            self._batch = llama_cpp.llama_batch_init(settings.n_batch, 0, 1)
        except BaseException:
            self.free()
            raise

    @property
    def thinking(self) -> bool:
        """Whether the chat template knows `<think>` tags."""
        return self.vocab.template.thinking

    def prompt(self, turns: Sequence[Turn], *, open_assistant: bool) -> list[int]:
        """Ids of the rendered conversation."""
        ids = self.vocab.template.encode(turns, self.vocab, open_assistant=open_assistant)
        return self.vocab.with_bos(ids)

    def sampler(self, chosen: Chosen) -> Sampler:
        """A sampler for one answer; to be freed by whoever asked for it."""
        return Sampler(chosen, self.vocab.n_tokens)

    def decode(self, rows: Sequence[Row]) -> int:
        """Evaluate `rows` (at most `n_batch`); 0, or llama.cpp's error number.

        With a KV stream per chat llama.cpp decodes together only neighbouring sequence numbers in
        rising order: eight chats out of order took 1.9 times as long as in order, and four with
        gaps between them 1.7 times as long as four without.
        """
        batch = self._batch
        for i, row in enumerate(rows):
            batch.token[i] = row.token
            batch.pos[i] = row.position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = row.sequence
            batch.logits[i] = row.wanted
        batch.n_tokens = len(rows)
        return int(llama_cpp.llama_decode(self._ctx, batch))

    def logits(self, row: int) -> Logits:
        """The scores behind the `row`-th row of the last decode, valid until the next one."""
        pointer = llama_cpp.llama_get_logits_ith(self._ctx, row)
        return np.ctypeslib.as_array(pointer, shape=(self.vocab.n_tokens,))

    def measure(self, logits: Logits, signals: Iterable[str]) -> dict[str, float]:
        """Signals of the distribution `logits` stand for."""
        return measure(logits, signals)

    def cut(self, sequence: int, length: int) -> bool:
        """Forget all but the first `length` tokens; `False` if this model cannot forget a part."""
        return bool(llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1))

    def free(self) -> None:
        """Give all memory back, the context before the model. May be called more than once."""
        if self._batch is not None:
            llama_cpp.llama_batch_free(self._batch)
        if self._ctx is not None:
            llama_cpp.llama_free(self._ctx)
        if self._model is not None:
            if hasattr(self, "vocab"):
                self.vocab.free()
            llama_cpp.llama_model_free(self._model)
        _log.disown_this_thread()
        self._batch = self._ctx = self._model = None

    def last_words(self) -> str:
        """llama.cpp's last errors of this thread."""
        return _log.last_words()

    def _warn_beyond_training(self) -> None:
        trained = llama_cpp.llama_model_n_ctx_train(self._model)
        if self.n_ctx > trained:
            logger.warning(
                "n_ctx=%d is more than the %d tokens this model was trained on; "
                "text beyond them may be nonsense",
                self.n_ctx,
                trained,
            )


def _default_n_ctx(model: int) -> int:
    return min(DEFAULT_N_CTX, int(llama_cpp.llama_model_n_ctx_train(model)))


def _load_model(path: Path, settings: LlamaSettings) -> int:
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = settings.n_gpu_layers
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise LocalModelError(
            f"llama.cpp cannot load {str(path)!r}; the file may be damaged or of a kind this "
            f"version does not know. {_log.last_words()}"
        )
    return int(model)


def _new_context(model: int, n_ctx: int, settings: LlamaSettings) -> int:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = n_ctx * settings.max_concurrency
    params.n_seq_max = settings.max_concurrency
    params.n_batch = params.n_ubatch = settings.n_batch
    params.n_threads = params.n_threads_batch = settings.n_threads
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
    # One KV stream per chat: in a unified cache a chat's greedy text changed beside others.
    params.kv_unified = False
    params.swa_full = True  # else `cut` says yes and the positions are gone (Gemma)
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise LocalModelError(
            f"llama.cpp cannot make a context of {settings.max_concurrency} chats with {n_ctx} "
            f"tokens each; lower n_ctx or max_concurrency. {_log.last_words()}"
        )
    return int(context)


def _set_adapter(model: int, context: int, path: Path) -> None:
    # The model frees its adapters.
    adapter = llama_cpp.llama_adapter_lora_init(model, str(path).encode())
    if not adapter:
        raise LocalModelError(
            f"llama.cpp cannot load the adapter {str(path)!r} onto this model; was it trained on "
            f"it? {_log.last_words()}"
        )
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(
        ctypes.cast(adapter, llama_cpp.llama_adapter_lora_p_ctypes)
    )
    if llama_cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0)):
        raise LocalModelError(f"llama.cpp refuses the adapter {str(path)!r}. {_log.last_words()}")


# --- llama.cpp's log ----------------------------------------------------------------------------


class _Log:
    """Keeps what llama.cpp says on our threads; on other threads it is passed on as before."""

    def __init__(self) -> None:
        self._lines: dict[int, deque[tuple[int, str]]] = {}
        self._installing = threading.Lock()
        self._installed: Any = None
        self._previous: Any = llama_cpp.llama_log_callback()  # falsy while it is NULL
        self._previous_data = ctypes.c_void_p()

    def own_this_thread(self) -> None:
        """From now on, what is said on this thread is kept and not printed."""
        self._lines[threading.get_ident()] = deque(maxlen=40)
        # Two engines load at once: the second must not take our own callback for the previous one.
        with self._installing:
            if self._installed is None:
                previous = ctypes.byref(self._previous), ctypes.byref(self._previous_data)
                llama_cpp.llama_log_get(*previous)
                self._installed = llama_cpp.llama_log_callback(self._take)
                llama_cpp.llama_log_set(self._installed, ctypes.c_void_p(0))

    def disown_this_thread(self) -> None:
        """Thread numbers are used again: what the next one says is not ours."""
        self._lines.pop(threading.get_ident(), None)

    def last_words(self) -> str:
        """The last errors of this thread, or a remark that there were none."""
        said = "".join(self._grave()).strip()
        return f"llama.cpp said: {said}" if said else "llama.cpp gave no reason."

    def _grave(self) -> Iterator[str]:
        grave = False
        for level, text in self._lines.get(threading.get_ident(), ()):
            grave = level == _LOG_ERROR if level != _LOG_CONTINUED else grave
            if grave:
                yield text

    def _take(self, level: int, text: bytes, _data: Any) -> None:
        lines = self._lines.get(threading.get_ident())
        if lines is not None:
            lines.append((level, text.decode(errors="replace")))
        elif self._previous:
            self._previous(level, text, self._previous_data)


_log = _Log()
