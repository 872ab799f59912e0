"""The local model on an inference server: the same relay over HTTP, in `1 + calls` completions.

Starts a `llama_cpp.server` with SmolLM2 on this machine, if `SERVER_URL` names none that runs; a
llama-server of llama.cpp needs no more than its URL. Expect an answer with hosted words in
brackets, the number of its hand-overs, and one completion more than that.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import httpx
from expert import expert

from langchain_relay import RelayChatModel, relay_report
from langchain_relay.local import CompletionServerModel
from langchain_relay.local.models import resolve


def start() -> tuple[subprocess.Popen[bytes], str]:
    """A server that ends with this process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = {"model": resolve("smollm2-135m"), "port": port, "n_ctx": 1024, "n_threads": 1}
    options |= {"n_threads_batch": 1, "interrupt_requests": False, "flash_attn": True}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-m", "llama_cpp.server", *flags], **quiet)
    url = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        try:
            httpx.get(f"{url}/v1/models")
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            break
    return process, url


server, url = None, os.environ.get("SERVER_URL")
if url is None:
    server, url = start()
try:
    # The GGUF gives the chat template and counts tokens; its weights stay on the server.
    local = CompletionServerModel(url, tokenizer="smollm2-135m", n_ctx=1024)
    model = RelayChatModel(model=local, **expert(), temperature=0, max_tokens=32)
    report = relay_report(model.invoke("How many minutes are in 3 hours?"))
    print(str(report).splitlines()[0])
    print(f"hand-overs: {report.calls}")
    print(f"completions: {local.completions}")
finally:
    if server is not None:
        server.terminate()
