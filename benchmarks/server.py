"""`llama_cpp.server` in a process of its own, and a `ChatOpenAI` that talks to it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from typing import Any, Self

import httpx

from benchmarks.plan import Plan
from langchain_relay.local import models

START_S = 60


class ModelServer:
    """A server on a free loopback port; idle unless it is asked, so its threads are free.

    Raises:
        OSError: it does not answer within a minute; its last words are in the message.
    """

    def __init__(self, plan: Plan, n_ctx: int) -> None:
        self.url = f"http://127.0.0.1:{_free_port()}"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "llama_cpp.server"),
                *("--model", str(models.resolve(plan.model))),
                *("--host", "127.0.0.1", "--port", self.url.rpartition(":")[2]),
                *("--n_ctx", str(n_ctx), "--flash_attn", "true"),
                *("--n_threads", str(plan.threads), "--n_threads_batch", str(plan.threads)),
                *("--interrupt_requests", "false", "--verbose", "false"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._http = httpx.Client(trust_env=False)  # no proxy on the loopback
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def client(self, max_tokens: int) -> Any:
        """A greedy chat model."""
        from langchain_openai import ChatOpenAI  # noqa: PLC0415 - a second, and only for this

        return ChatOpenAI(
            model="local",
            base_url=f"{self.url}/v1",
            api_key="none",
            temperature=0,
            http_client=self._http,
            # It does not know `max_completion_tokens`.
            extra_body={"max_tokens": max_tokens, "repeat_penalty": 1.0},
        )

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                assert self._process.stderr is not None
                said = self._process.stderr.read().decode(errors="replace").strip()
                raise OSError(f"llama_cpp.server ended: {said.splitlines()[-1:] or 'silently'}")
            try:
                self._http.get(f"{self.url}/v1/models").raise_for_status()
            except httpx.HTTPError:
                time.sleep(0.1)
            else:
                return
        raise OSError(f"llama_cpp.server did not answer within {START_S} s")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
