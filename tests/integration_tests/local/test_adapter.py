"""A LoRA adapter, made here for SmolLM2: applied, and told apart from none."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest

from langchain_relay import RelayChatModel, errors
from langchain_relay.engine.events import Decode
from langchain_relay.engine.values import Sampling, Turn
from langchain_relay.local import LlamaCppModel
from langchain_relay.testing import ScriptedDelegate

pytestmark = [pytest.mark.gguf, pytest.mark.xdist_group("gguf")]

N_EMBD = 576  # SmolLM2-135M
RANK = 4


def write_adapter(path: Path, scale: float) -> Path:
    """A LoRA over the output projection of every attention layer; `scale=0` changes nothing."""
    random = np.random.default_rng(1)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    for layer in range(30):
        name = f"blk.{layer}.attn_output.weight"
        a = random.standard_normal((RANK, N_EMBD)).astype(np.float32)
        b = (scale * random.standard_normal((N_EMBD, RANK))).astype(np.float32)
        writer.add_tensor(f"{name}.lora_a", a)
        writer.add_tensor(f"{name}.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def greedy(adapter: Path | None) -> list[int]:
    with LlamaCppModel(adapter=adapter, n_ctx=256, n_threads=1, max_concurrency=1) as model:
        session = model.open([Turn("user", "Name three fruits.")], Sampling(temperature=0)).result()
        ids: list[int] = []
        for _ in range(8):
            ids.append(session.decode(Decode(tuple(ids[-1:]))).result().id)
        session.close()
    return ids


def test_an_adapter_changes_what_is_written_and_an_empty_one_does_not(tmp_path: Path) -> None:
    plain = greedy(None)
    assert greedy(write_adapter(tmp_path / "zero.gguf", scale=0.0)) == plain
    assert greedy(write_adapter(tmp_path / "some.gguf", scale=0.5)) != plain


def test_an_adapter_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "some.gguf", scale=0.5)
    assert LlamaCppModel(adapter=adapter).fingerprint != LlamaCppModel().fingerprint


def test_a_model_is_no_adapter(tmp_path: Path) -> None:
    """A GGUF, so construction lets it pass; loading says what is wrong."""
    writer = gguf.GGUFWriter(str(tmp_path / "none.gguf"), "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = RelayChatModel(
        model="smollm2-135m",
        adapter=tmp_path / "none.gguf",
        delegate=ScriptedDelegate("x"),
        n_ctx=256,
        n_threads=1,
    )
    with pytest.raises(errors.LocalModelError, match="adapter"):
        model.invoke("Hi.")
