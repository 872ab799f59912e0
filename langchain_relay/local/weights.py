"""Loaded GGUF files, one copy for all contexts of this process."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import llama_cpp

from langchain_relay.errors import LocalModelError
from langchain_relay.local.llama_log import log
from langchain_relay.local.vocab import Vocab

if TYPE_CHECKING:
    from pathlib import Path

_Key = tuple[str, int, int, int]  # path, size, modification time in ns, layers on a GPU


class Weights:
    """A loaded model and its vocabulary. `acquire` and `release` count who uses it.

    Attributes:
        model: The `llama_model` pointer.
        vocab: Its vocabulary, to be used on any thread.
    """

    def __init__(self, path: Path, n_gpu_layers: int) -> None:
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not model:
            raise LocalModelError(
                f"llama.cpp cannot load {str(path)!r}; the file may be damaged or of a kind this "
                f"version does not know. {log.last_words()}"
            )
        self.model = int(model)
        self.users = 0
        try:
            self.vocab = Vocab(self.model)
        except BaseException:
            llama_cpp.llama_model_free(self.model)
            raise

    def load_adapter(self, path: Path) -> Any:
        """A LoRA adapter onto this model, to be given back to `free_adapter`.

        Raises:
            LocalModelError: llama.cpp cannot load it.
        """
        with _lock:  # llama.cpp keeps a list of them, without a lock
            adapter = llama_cpp.llama_adapter_lora_init(self.model, str(path).encode())
        if not adapter:
            raise LocalModelError(
                f"llama.cpp cannot load the adapter {str(path)!r} onto this model; was it trained "
                f"on it? {log.last_words()}"
            )
        return adapter

    def free_adapter(self, adapter: Any) -> None:
        """Free it, behind the context that used it."""
        with _lock:
            llama_cpp.llama_adapter_lora_free(adapter)

    @property
    def rewinds(self) -> bool:
        """A sequence can be cut anywhere; the state of recurrent layers cannot."""
        recurrent = llama_cpp.llama_model_is_recurrent(self.model)
        return not (recurrent or llama_cpp.llama_model_is_hybrid(self.model))


_lock = threading.Lock()
_loaded: dict[_Key, Weights] = {}


def acquire(path: Path, n_gpu_layers: int) -> Weights:
    """The weights of a file, loaded unless some context has them already.

    A file that was changed since is another file.

    Raises:
        LocalModelError: llama.cpp cannot load it.
    """
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns, n_gpu_layers)
    with _lock:  # held while loading: whoever wants the same file is to wait for it
        weights = _loaded.get(key)
        if weights is None:
            weights = _loaded[key] = Weights(path, n_gpu_layers)
        weights.users += 1
        return weights


def release(weights: Weights) -> None:
    """One context less uses `weights`; the last one frees them. Free the context first."""
    with _lock:
        weights.users -= 1
        if weights.users:
            return
        for key in [key for key, value in _loaded.items() if value is weights]:
            del _loaded[key]
        weights.vocab.free()
        llama_cpp.llama_model_free(weights.model)


def _start_anew() -> None:
    """In a forked child: another thread of the parent may have held the lock."""
    global _lock  # noqa: PLW0603 - a lock cannot be unlocked by a process that does not hold it
    _lock = threading.Lock()
    _loaded.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
