"""`n_gpu_layers`: relay and raw loop with all layers on a GPU, where there is one."""

from __future__ import annotations

import llama_cpp

from benchmarks.decode import compare
from benchmarks.measure import Row, Told
from benchmarks.plan import Plan


def measure(plan: Plan, told: Told) -> list[Row]:
    """The decode comparison on the GPU, or a row that says why not."""
    if why := _no_gpu():
        return [Row("gpu", "RelayChatModel.stream, n_gpu_layers=-1", "tokens/s", note=why)]
    return compare(plan, told, plan.decode_tokens[0], n_gpu_layers=-1, topic="gpu")


def _no_gpu() -> str:
    """Why nothing can be measured here; empty if it can."""
    if not llama_cpp.llama_supports_gpu_offload():
        return "not run: this llama.cpp was built without GPU support, or sees no GPU"
    return ""
