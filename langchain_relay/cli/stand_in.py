"""A stand-in for a hosted model: an OpenAI-compatible server on loopback over a local GGUF.

    python -m langchain_relay.cli.stand_in --temperature 0.7 --seed 7

It prints its base URL and serves `/v1/chat/completions`, streamed with usage, until its standard
input closes. A trailing assistant message is continued, as by vLLM and llama.cpp's server. It is
for demos and tests on one machine: no keys, no limits, loopback only.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import IO, Any

from langchain_core.messages.utils import convert_to_messages

from langchain_relay.delegates.local import LocalDelegate
from langchain_relay.engine.values import Attempt, Delta, Sampling
from langchain_relay.errors import LocalModelError
from langchain_relay.local import LlamaCppModel

STARTED_WITHIN_S = 60.0
DEFAULT_MAX_TOKENS = 256


def handler(delegate: LocalDelegate) -> type[BaseHTTPRequestHandler]:
    """The request handler class of a server over `delegate`."""

    class ChatCompletions(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            # Small SSE pieces would wait 40 ms each for Nagle's algorithm.
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self.path.endswith("/chat/completions"):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for delta in delegate.stream(_attempt(body)):
                self._send(_chunk(delta, body))
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

        def _send(self, chunk: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())

        def log_message(self, *args: object) -> None:
            """Say nothing: the demo's output is the demo."""

    return ChatCompletions


def _attempt(body: dict[str, Any]) -> Attempt:
    messages = convert_to_messages(body["messages"])
    draft = ""
    if messages[-1].type == "ai":
        draft = str(messages.pop().content)
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or DEFAULT_MAX_TOKENS
    return Attempt(tuple(messages), draft, int(limit))


def _chunk(delta: Delta, body: dict[str, Any]) -> dict[str, Any]:
    chunk: dict[str, Any] = {
        "id": "chatcmpl-stand-in",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": body.get("model", "stand-in"),
        "choices": [{"index": 0, "delta": {"content": delta.text}, "finish_reason": delta.finish}],
    }
    if delta.usage:
        chunk["usage"] = {
            "prompt_tokens": delta.usage.input_tokens,
            "completion_tokens": delta.usage.output_tokens,
            "total_tokens": delta.usage.input_tokens + delta.usage.output_tokens,
        }
    return chunk


@contextmanager
def stand_in(*, seed: int, temperature: float, n_threads: int = 1) -> Iterator[str]:
    """Run the server in a process of its own; yields its base URL.

    Raises:
        LocalModelError: it did not start.
    """
    command = [sys.executable, "-m", __name__, "--seed", str(seed)]
    command += ["--temperature", str(temperature), "--n-threads", str(n_threads)]
    with (
        tempfile.TemporaryFile("w+") as said,  # a pipe that nobody reads would fill up
        subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,  # Ctrl-C in a terminal goes to all of its processes
        ) as server,
    ):
        try:
            yield _base_url(server, said)
        finally:
            server.terminate()


def _base_url(server: subprocess.Popen[str], said: IO[str]) -> str:
    assert server.stdout is not None, "it was opened with a pipe"
    timer = threading.Timer(STARTED_WITHIN_S, server.kill)
    timer.start()
    line = server.stdout.readline()
    timer.cancel()
    if not line.startswith("http"):
        said.seek(0)
        raise LocalModelError(f"the stand-in server did not start: {said.read()[-2000:]}")
    return line.strip()


def serve(arguments: list[str] | None = None) -> None:
    """Serve until standard input closes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="alias or path of a GGUF")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--n-threads", type=int, default=1)
    parser.add_argument("--n-ctx", type=int, default=2048)
    asked = parser.parse_args(arguments)
    local = LlamaCppModel(asked.model, n_ctx=asked.n_ctx, n_threads=asked.n_threads)
    local.count("load now, not at the first request")
    sampling = Sampling(temperature=asked.temperature, seed=asked.seed)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(LocalDelegate(local, sampling=sampling)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    sys.stdin.read()
    server.shutdown()
    local.close()


if __name__ == "__main__":
    serve()
