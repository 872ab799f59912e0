"""One answer with two hand-overs where the local model is in process, on a server, on two replicas.

What is timed begins with the first word, so the prompt is apart. A load balancer that keeps a
conversation on one replica is compared with one that does not: there each hand-over meets a replica
that has not evaluated what came before it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count

import httpx

from benchmarks.chat import EndedEarly, fresh_messages, local_model, relay_model, roomy, timed
from benchmarks.measure import Row, Told, interleaved, ratios
from benchmarks.plan import Plan
from benchmarks.server import ModelServer
from benchmarks.waits import SPANS, TOKENS, EveryTokens, Waiting
from benchmarks.worker import Worker
from langchain_relay.engine.values import LocalModel
from langchain_relay.local import CompletionServerModel
from langchain_relay.messages import text_of

WAIT_S = 0.1
CONVERSATION = "X-Conversation"

IN_PROCESS = "in process"
ONE = "one llama_cpp.server"
TOGETHER = "two replicas, a conversation on one of them"
IN_TURNS = "two replicas, requests in turns"

Answer = Callable[[], float]
"""Writes one answer; milliseconds from its first word to its last."""


def measure(plan: Plan, told: Told) -> list[Row]:
    """All set-ups at one length of the prompt."""
    with ExitStack() as opened:
        urls = [opened.enter_context(ModelServer(plan, _n_ctx(plan))).url for _ in range(2)]
        workers = {
            IN_PROCESS: opened.enter_context(Worker(in_process, plan)),
            ONE: opened.enter_context(Worker(on_servers, plan, urls[:1])),
            TOGETHER: opened.enter_context(Worker(on_servers, plan, urls, CONVERSATION)),
            IN_TURNS: opened.enter_context(Worker(on_servers, plan, urls)),
        }
        for worker in workers.values():
            worker()
        ms = interleaved(workers, plan.rounds, told)
    return [
        Row(
            "setups",
            f"{name}, {SPANS} hand-overs behind {plan.prompt_tokens} tokens",
            "ms",
            ms[name],
            against="" if name == IN_PROCESS else IN_PROCESS,
            ratios=() if name == IN_PROCESS else ratios(ms[name], ms[IN_PROCESS]),
            facts={"side": name, "wait_s": WAIT_S, "tokens": TOKENS},
        )
        for name in workers
    ]


def _n_ctx(plan: Plan) -> int:
    return roomy(plan.prompt_tokens + TOKENS)


# --- the sides, each opened in its own process ----------------------------------------------------


@contextmanager
def in_process(plan: Plan) -> Iterator[Answer]:
    """`LlamaCppModel`."""
    with local_model(plan, n_ctx=_n_ctx(plan), max_concurrency=1) as local:
        yield lambda: _answer_ms(plan, local)


@contextmanager
def on_servers(
    plan: Plan, urls: Sequence[str], affinity_header: str | None = None
) -> Iterator[Answer]:
    """`CompletionServerModel` on one server, or behind a load balancer before several."""
    with CompletionServerModel(
        urls[0],
        tokenizer=plan.model,
        n_ctx=_n_ctx(plan),
        affinity_header=affinity_header,
        transport=Balancer(urls),
    ) as local:
        yield lambda: _answer_ms(plan, local)


def _answer_ms(plan: Plan, local: LocalModel) -> float:
    """An answer that does not end before both hand-overs; about every other one does."""
    model = relay_model(local, policy=EveryTokens(), delegate=Waiting(WAIT_S), max_tokens=TOKENS)
    for _ in range(10):
        calls = 0

        def texts() -> Iterator[str]:
            nonlocal calls
            for chunk in model.stream(fresh_messages(plan.prompt_tokens)):
                events = chunk.response_metadata.get("relay", {}).get("events", [])
                calls += sum(event["type"] == "relay.call.finished" for event in events)
                yield text_of(chunk)

        run = timed(texts())
        if calls == SPANS:
            return 1000 * run.writing_s
    raise EndedEarly(f"ten answers ended before hand-over {SPANS}")


class Balancer(httpx.AsyncBaseTransport):
    """Sends a request on to one of several servers: by its conversation, if it names one."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = [httpx.URL(url) for url in urls]
        self._turns = count()
        self._http = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        conversation = request.headers.get(CONVERSATION)
        number = next(self._turns) if conversation is None else zlib.crc32(conversation.encode())
        url = self._urls[number % len(self._urls)]
        request.url = request.url.copy_with(host=url.host, port=url.port)
        return await self._http.handle_async_request(request)

    async def aclose(self) -> None:
        await self._http.aclose()
