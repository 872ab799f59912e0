"""One chat: every way to get tokens out of the same file, against the raw loop.

Tokens per second from the first to the last token, prefill apart; the same prompt ids, sampling
(greedy), threads and batch size for all, flash attention wherever there is a way to turn it on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from typing import Any

from benchmarks.chat import (
    Messages,
    Timed,
    as_turns,
    fresh_messages,
    local_model,
    relay_model,
    relayed,
    roomy,
    timed,
)
from benchmarks.measure import Bound, Row, interleaved, ratios
from benchmarks.plan import Plan
from benchmarks.raw import Raw
from benchmarks.server import ModelServer
from langchain_relay.local import models

RAW = "raw llama_decode loop"
RELAY = "RelayChatModel.stream"
BOUND = Bound(0.97, failure=0.95)

Path = Callable[[Messages], Timed]
"""One way to write an answer."""

NOTES = {
    f"{RELAY}, max_concurrency=4": "one chat on an engine with room for four",
    "Llama.generate": "flash_attn=True",
    "Llama.create_chat_completion": "flash_attn=True",
    "ChatLlamaCpp.stream": "langchain-community; it has no field for flash attention",
    "ChatOpenAI on llama_cpp.server": "flash_attn=True, own process; timed from the request",
}


def measure(plan: Plan) -> list[Row]:
    """All paths at the first length, relay and raw at the others."""
    first, *others = plan.decode_tokens
    rows = compare(plan, first, others=True)
    for tokens in others:
        rows += compare(plan, tokens)
    return rows


def compare(
    plan: Plan, tokens: int, *, others: bool = False, n_gpu_layers: int = 0, topic: str = "decode"
) -> list[Row]:
    """Rows of one length."""
    n_ctx = roomy(tokens)
    missing: list[Row] = []
    with ExitStack() as stack:
        paths = {
            RAW: _raw(plan, tokens, n_ctx, n_gpu_layers, stack),
            RELAY: _relay(plan, tokens, n_ctx, stack, n_gpu_layers=n_gpu_layers),
        }
        if others:
            four = _relay(plan, tokens, n_ctx, stack, max_concurrency=4)
            paths[f"{RELAY}, max_concurrency=4"] = four
            paths |= _other_paths(plan, tokens, n_ctx, stack, missing)
        return [*_rows(plan, tokens, paths, topic), *missing]


def _rows(plan: Plan, tokens: int, paths: Mapping[str, Path], topic: str) -> list[Row]:
    conversations = [fresh_messages() for _ in range(plan.rounds)]
    texts: dict[str, list[str]] = {name: [] for name in paths}

    def side(name: str) -> Callable[[], float]:
        def turn() -> float:
            run = paths[name](conversations[len(texts[name])])
            texts[name].append(run.text)
            return run.rate(tokens)

        return turn

    for path in paths.values():
        path(fresh_messages())  # loads, and warms up
    rates = interleaved({name: side(name) for name in paths}, plan.rounds, plan.told)
    return [
        Row(
            topic,
            f"{name}, {tokens} tokens",
            "tokens/s",
            rate,
            against="" if name == RAW else RAW,
            ratios=() if name == RAW else ratios(rate, rates[RAW]),
            bound=BOUND if name == RELAY else None,
            note=NOTES.get(name, ""),
            facts={
                "tokens": tokens,
                "same_text_as_raw_rounds": sum(map(str.__eq__, texts[name], texts[RAW])),
            },
        )
        for name, rate in rates.items()
    ]


def _raw(plan: Plan, tokens: int, n_ctx: int, n_gpu_layers: int, stack: ExitStack) -> Path:
    raw = stack.enter_context(
        Raw(plan.model, n_ctx=n_ctx, n_threads=plan.threads, n_gpu_layers=n_gpu_layers)
    )

    def path(messages: Messages) -> Timed:
        ids = raw.prompt(as_turns(messages))
        started = time.perf_counter()
        first = raw.prefill(ids)
        wrote_first = time.perf_counter()
        written = raw.generate(first, len(ids), tokens - 1)
        ended = time.perf_counter()
        # The loop tells of no single token: only its ends and their number count.
        times = (wrote_first, *[ended] * (tokens - 1))
        return Timed(raw.text([first, *written]), wrote_first - started, ended - wrote_first, times)

    return path


def _relay(plan: Plan, tokens: int, n_ctx: int, stack: ExitStack, **fields: Any) -> Path:
    local = local_model(plan, n_ctx=n_ctx, **{"max_concurrency": 1, **fields})
    model = relay_model(stack.enter_context(local))
    return lambda messages: relayed(model, messages, tokens)


def _other_paths(
    plan: Plan, tokens: int, n_ctx: int, stack: ExitStack, missing: list[Row]
) -> dict[str, Path]:
    """The ways of others; what cannot be imported or started becomes a row that says why."""
    paths: dict[str, Path] = {}
    llama = _llama(plan, n_ctx)
    stack.callback(llama.close)
    paths["Llama.generate"] = lambda messages: _generate(llama, messages, tokens)
    paths["Llama.create_chat_completion"] = lambda messages: _complete(llama, messages, tokens)
    for name, make in (
        ("ChatLlamaCpp.stream", _community),
        ("ChatOpenAI on llama_cpp.server", _server),
    ):
        try:
            paths[name] = make(plan, tokens, n_ctx, stack)
        except (ImportError, OSError) as error:
            why = f"{type(error).__name__}: {error}"
            missing.append(Row("decode", f"{name}, {tokens} tokens", "tokens/s", note=why))
    return paths


def _llama(plan: Plan, n_ctx: int) -> Any:
    from llama_cpp import Llama  # noqa: PLC0415 - seconds, and only for this

    return Llama(
        str(models.resolve(plan.model)),
        n_ctx=n_ctx,
        n_threads=plan.threads,
        n_threads_batch=plan.threads,
        flash_attn=True,
        verbose=False,
    )


def _generate(llama: Any, messages: Messages, tokens: int) -> Timed:
    text = "".join(f"<|im_start|>{t.role}\n{t.content}<|im_end|>\n" for t in as_turns(messages))
    ids = llama.tokenize(f"{text}<|im_start|>assistant\n".encode(), add_bos=False, special=True)
    written = islice(llama.generate(ids, temp=0.0), tokens)
    return timed(llama.detokenize([token]).decode(errors="replace") for token in written)


def _complete(llama: Any, messages: Messages, tokens: int) -> Timed:
    parts = [{"role": t.role, "content": t.content} for t in as_turns(messages)]
    chunks = llama.create_chat_completion(parts, temperature=0, max_tokens=tokens, stream=True)
    return timed(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def _community(plan: Plan, tokens: int, n_ctx: int, stack: ExitStack) -> Path:
    from langchain_community.chat_models import ChatLlamaCpp  # noqa: PLC0415 - an extra of its own

    model = ChatLlamaCpp(
        model_path=str(models.resolve(plan.model)),
        n_ctx=n_ctx,
        n_threads=plan.threads,
        n_batch=512,  # its default of 8 is about prefill, which is apart
        temperature=0,
        repeat_penalty=1.0,
        rope_freq_base=0.0,  # the model's own; its default changes the text
        max_tokens=tokens,
        verbose=False,
    )
    stack.callback(model.client.close)
    return lambda messages: timed(_texts(model.stream(messages)))


def _server(plan: Plan, tokens: int, n_ctx: int, stack: ExitStack) -> Path:
    server = stack.enter_context(ModelServer(plan, n_ctx))
    one, all_of_them = server.client(1), server.client(tokens)

    def path(messages: Messages) -> Timed:
        """Its first pieces come late and in a bunch, so a clock that starts with them flatters.

        The prompt is evaluated by a request of its own, of which the server keeps the cache, and
        the clock starts with the request.
        """
        one.invoke(messages)
        started = time.perf_counter()
        run = timed(_texts(all_of_them.stream(messages)))
        return replace(run, writing_s=run.first_s + run.writing_s, times=(started, *run.times))

    return path


def _texts(chunks: Any) -> Iterator[str]:
    return (str(chunk.content) for chunk in chunks)
