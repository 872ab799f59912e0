"""The lowest-level loops: `llama_decode`, argmax over a view of the scores, nothing else.

What the package is compared with. No end token, no text, no rule, no other thread; a batch is
filled through ctypes as the C API wants it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import llama_cpp
import numpy as np
from llama_cpp._logger import set_verbose

from langchain_relay.engine.values import Turn
from langchain_relay.local import models
from langchain_relay.local.vocab import Vocab

N_BATCH = 512


class Raw:
    """A model and a context of its own, on the thread that uses it.

    Args:
        model: Alias or path.
        n_ctx: Tokens of one sequence.
        n_seq: Sequences.
        n_threads: Decode threads.
        n_gpu_layers: Layers on a GPU.
        type_k: ggml's number of the type of the keys in the KV cache; `None`: llama.cpp's default.
    """

    def __init__(
        self,
        model: str,
        *,
        n_ctx: int,
        n_threads: int,
        n_seq: int = 1,
        n_gpu_layers: int = 0,
        type_k: int | None = None,
    ) -> None:
        set_verbose(False)
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        path = str(models.resolve(model))
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        settings = _context_params(n_ctx * n_seq, n_seq, n_threads)
        if type_k is not None:
            settings.type_k = type_k
        self._ctx = llama_cpp.llama_init_from_model(self._model, settings)
        self._memory = llama_cpp.llama_get_memory(self._ctx)
        self._batch = llama_cpp.llama_batch_init(N_BATCH, 0, 1)
        # Only to tokenize, outside of everything that is timed.
        self.vocab = Vocab(self._model)

    def prompt(self, turns: Sequence[Turn]) -> list[int]:
        """The ids that the package makes of `turns`, too."""
        ids = self.vocab.template.encode(turns, self.vocab)
        return self.vocab.with_bos(ids)

    def text(self, ids: Sequence[int]) -> str:
        """What `ids` spell."""
        return b"".join(map(self.vocab.piece, ids)).decode(errors="replace")

    def cut(self, sequence: int, length: int) -> None:
        """Forget all but the first `length` tokens of `sequence`."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, length, -1)

    def prefill(self, ids: Sequence[int], sequence: int = 0) -> int:
        """Forget `sequence`, evaluate `ids` in it; the next token."""
        self.cut(sequence, 0)
        return self.extend(ids, 0, sequence)

    def extend(self, ids: Sequence[int], position: int, sequence: int = 0) -> int:
        """Evaluate `ids` from `position` on; the next token."""
        for start in range(0, len(ids), N_BATCH):
            piece = ids[start : start + N_BATCH]
            last = start + len(piece) == len(ids)
            rows = [
                (token, position + start + i, sequence, last and i == len(piece) - 1)
                for i, token in enumerate(piece)
            ]
            self.decode(rows)
        return self.best(-1)

    def generate(self, token: int, position: int, n: int) -> list[int]:
        """`n` tokens behind `token`, which is evaluated at `position` first."""
        ctx, batch, decode = self._ctx, self._batch, llama_cpp.llama_decode
        batch.n_tokens = 1
        batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 0, True
        ids = []
        for at in range(position, position + n):
            batch.token[0], batch.pos[0] = token, at
            if decode(ctx, batch):
                raise RuntimeError(f"llama_decode failed at position {at}; raise n_ctx")
            token = self.best(-1)
            ids.append(token)
        return ids

    def decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> None:
        """Evaluate (token, position, sequence, wanted) rows in one batch."""
        batch = self._batch
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        batch.n_tokens = len(rows)
        if llama_cpp.llama_decode(self._ctx, batch):
            raise RuntimeError("llama_decode failed; raise n_ctx")

    def best(self, row: int) -> int:
        """The likeliest token behind a row of the last batch."""
        pointer = llama_cpp.llama_get_logits_ith(self._ctx, row)
        return int(np.ctypeslib.as_array(pointer, shape=(self.vocab.n_tokens,)).argmax())

    def free(self) -> None:
        """Give all memory back."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._ctx)
        self.vocab.free()
        llama_cpp.llama_model_free(self._model)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.free()


def _context_params(n_ctx: int, n_seq: int, n_threads: int) -> Any:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_seq_max = n_ctx, n_seq
    params.n_batch = params.n_ubatch = N_BATCH
    params.n_threads = params.n_threads_batch = n_threads
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
    params.kv_unified = False
    params.swa_full = True
    return params


# --- several chats in one batch -----------------------------------------------------------------


@dataclass(slots=True)
class _Chat:
    """One sequence of the batched loop.

    Attributes:
        pending: Ids to evaluate next.
        position: Where the first of them stands.
        parts: Local tokens still to be written before each pause, the last before the end.
        ready_at: When its hosted span is there, on the clock of `time.perf_counter`.
    """

    sequence: int
    pending: list[int]
    parts: list[int]
    position: int
    ready_at: float = 0.0
    written: list[int] = field(default_factory=list)


def batched(
    raw: Raw,
    prompts: Sequence[Sequence[int]],
    parts: Sequence[int],
    *,
    starts: Sequence[int] = (),
    span: Sequence[int] = (),
    wait_s: float = 0.0,
) -> list[list[int]]:
    """Write one answer behind every prompt, all that are ready in one batch.

    Each writes `parts[0]` tokens, waits `wait_s` seconds, has the ids of `span` appended, writes
    `parts[1]` tokens, and so on. `starts` are the positions of the prompts where something stands
    before them already. Returns the sampled ids.
    """
    chats = [
        _Chat(i, list(prompt), list(parts), start)
        for i, (prompt, start) in enumerate(zip(prompts, starts or [0] * len(prompts), strict=True))
    ]
    for chat in chats:
        raw.cut(chat.sequence, chat.position)
    going = list(chats)
    while going:
        ready = _wait_for_some(going)
        for chat, token in zip(ready, _evaluate(raw, ready), strict=True):
            if token is not None:
                _append(chat, token, span, wait_s)
        going = [chat for chat in going if chat.parts]
    return [chat.written for chat in chats]


def _wait_for_some(going: Sequence[_Chat]) -> list[_Chat]:
    """Those whose span is there; sleeps while there is none."""
    earliest = min(chat.ready_at for chat in going)
    if (left_s := earliest - time.perf_counter()) > 0:
        time.sleep(left_s)
    now = max(earliest, time.perf_counter())
    return [chat for chat in going if chat.ready_at <= now]


def _evaluate(raw: Raw, ready: Sequence[_Chat]) -> list[int | None]:
    """One batch; the next token of each chat, or `None` if more of it is pending."""
    rows: list[tuple[int, int, int, bool]] = []
    last_rows: list[int | None] = []
    for chat in ready:
        n = min(len(chat.pending), N_BATCH - len(rows))
        done = n == len(chat.pending)
        rows += [
            (token, chat.position + i, chat.sequence, done and i == n - 1)
            for i, token in enumerate(chat.pending[:n])
        ]
        del chat.pending[:n]
        chat.position += n
        last_rows.append(len(rows) - 1 if done and n else None)
    raw.decode(rows)
    return [None if row is None else raw.best(row) for row in last_rows]


def _append(chat: _Chat, token: int, span: Sequence[int], wait_s: float) -> None:
    chat.written.append(token)
    chat.pending.append(token)
    chat.parts[0] -= 1
    if chat.parts[0]:
        return
    del chat.parts[0]
    if chat.parts:
        chat.pending += span
        chat.ready_at = time.perf_counter() + wait_s
