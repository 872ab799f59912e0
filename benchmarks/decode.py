"""One chat: every way to get tokens out of the same file, against the raw loop.

Tokens per second from the first to the last token, prefill apart; the same prompt ids, sampling
(greedy), threads and batch size for all, flash attention wherever there is a way to turn it on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

from benchmarks.chat import (
    LONG,
    Messages,
    Timed,
    as_turns,
    local_model,
    relay_model,
    relayed,
    roomy,
    timed,
)
from benchmarks.measure import Bound, Row, Told, interleaved, ratios
from benchmarks.plan import Plan
from benchmarks.raw import Raw
from benchmarks.server import ModelServer
from benchmarks.worker import Make, Worker
from langchain_relay.local import models
from langchain_relay.local.context import EXACT_KEYS

RAW = "raw llama_decode loop"
RAW_SAME_KEYS = f"{RAW}, keys as RelayChatModel's"
"""Without it the engine's own cost would hide behind keys that are read faster than the default."""

RELAY = "RelayChatModel.stream"
BOUND = Bound(0.97, failure=0.95)

Path = Callable[[Messages], Timed]
"""One way to write an answer."""

NOTES = {
    RELAY: "its keys are bf16, so that scores do not depend on the batch; near ties may tip",
    f"{RELAY}, max_concurrency=4": "one chat on an engine with room for four",
    "Llama.generate": "flash_attn=True",
    "Llama.create_chat_completion": "flash_attn=True",
    "ChatLlamaCpp.stream": "langchain-community; it has no field for flash attention",
    "ChatOpenAI on llama_cpp.server": "flash_attn=True, own process; timed from the request",
}


def measure(plan: Plan, told: Told) -> Iterator[Row]:
    """Relay against raw at every length, then all others at the first one."""
    for tokens in plan.decode_tokens:
        yield from compare(plan, told, tokens)
    yield from compare(plan, told, plan.decode_tokens[0], others=True)


def compare(
    plan: Plan,
    told: Told,
    tokens: int,
    *,
    others: bool = False,
    n_gpu_layers: int = 0,
    topic: str = "decode",
) -> list[Row]:
    """Rows of one length, every path in a process of its own."""
    missing: list[Row] = []
    with ExitStack() as stack:

        def start(make: Make, *arguments: Any) -> Path:
            return stack.enter_context(Worker(make, plan, tokens, *arguments))

        paths = {RAW: start(raw_path, n_gpu_layers)}
        if not others and n_gpu_layers == 0 and EXACT_KEYS is not None:
            paths[RAW_SAME_KEYS] = start(raw_path, n_gpu_layers, EXACT_KEYS)
        if not others:
            settings = {"max_concurrency": 1, "n_gpu_layers": n_gpu_layers}
            paths[RELAY] = start(relay_path, settings)
        for name, make, *arguments in OTHERS if others else ():
            try:
                paths[name] = start(make, *arguments)
            except (ImportError, OSError) as error:
                why = f"{type(error).__name__}: {error}"
                missing.append(Row(topic, f"{name}, {tokens} tokens", "tokens/s", note=why))
        return [*_rows(plan, told, tokens, paths, topic), *missing]


def _rows(plan: Plan, told: Told, tokens: int, paths: Mapping[str, Path], topic: str) -> list[Row]:
    texts: dict[str, list[str]] = {name: [] for name in paths}

    def side(name: str) -> Callable[[], float]:
        def turn() -> float:
            run = paths[name](LONG)
            texts[name].append(run.text)
            return run.rate(tokens)

        return turn

    for path in paths.values():
        path(LONG)  # loads, and warms up
    judged = RELAY in paths
    repeats = plan.decode_repeats if judged else 1
    rates = interleaved({name: side(name) for name in paths}, plan.rounds, told, repeats=repeats)
    where = "" if judged else ", among the others"
    same = {RAW_SAME_KEYS: ", against the same keys"}

    def row(name: str, against: str) -> Row:
        return Row(
            topic,
            f"{name}, {tokens} tokens{where if name == RAW else same.get(against, '')}",
            "tokens/s",
            rates[name],
            against=against,
            ratios=ratios(rates[name], rates[against]) if against else (),
            bound=BOUND if name == RELAY else None,
            note=NOTES.get(name, ""),
            facts={
                "tokens": tokens,
                "same_text_as_raw_rounds": sum(map(str.__eq__, texts[name], texts[against or RAW])),
            },
        )

    rows = [row(name, "" if name == RAW else RAW) for name in rates]
    return [*rows, row(RELAY, RAW_SAME_KEYS)] if RAW_SAME_KEYS in rates else rows


# --- the paths, each opened in its own process ----------------------------------------------------


@contextmanager
def raw_path(
    plan: Plan, tokens: int, n_gpu_layers: int, type_k: int | None = None
) -> Iterator[Path]:
    """The lowest-level loop."""
    settings = {"n_threads": plan.threads, "n_gpu_layers": n_gpu_layers, "type_k": type_k}
    with Raw(plan.model, n_ctx=roomy(tokens), **settings) as raw:

        def path(messages: Messages) -> Timed:
            ids = raw.prompt(as_turns(messages))
            started = time.perf_counter()
            first = raw.prefill(ids)
            wrote_first = time.perf_counter()
            written = raw.generate(first, len(ids), tokens - 1)
            ended = time.perf_counter()
            # The loop tells of no single token: only its ends and their number count.
            times = (wrote_first, *[ended] * (tokens - 1))
            text = raw.text([first, *written])
            return Timed(text, wrote_first - started, ended - wrote_first, times)

        yield path


@contextmanager
def relay_path(plan: Plan, tokens: int, settings: dict[str, Any]) -> Iterator[Path]:
    """`RelayChatModel.stream` without hand-overs."""
    with local_model(plan, n_ctx=roomy(tokens), **settings) as local:
        model = relay_model(local)
        yield lambda messages: relayed(model, messages, tokens)


@contextmanager
def generate_path(plan: Plan, tokens: int) -> Iterator[Path]:
    """`Llama.generate`, its tokens turned into text one by one."""
    llama = _llama(plan, tokens)

    def path(messages: Messages) -> Timed:
        turns = as_turns(messages)
        text = "".join(f"<|im_start|>{t.role}\n{t.content}<|im_end|>\n" for t in turns)
        prompt = f"{text}<|im_start|>assistant\n".encode()
        ids = llama.tokenize(prompt, add_bos=False, special=True)
        written = islice(llama.generate(ids, temp=0.0), tokens)
        return timed(llama.detokenize([token]).decode(errors="replace") for token in written)

    with closing(llama):
        yield path


@contextmanager
def completion_path(plan: Plan, tokens: int) -> Iterator[Path]:
    """`Llama.create_chat_completion`, streamed."""
    llama = _llama(plan, tokens)

    def path(messages: Messages) -> Timed:
        parts = [{"role": t.role, "content": t.content} for t in as_turns(messages)]
        chunks = llama.create_chat_completion(parts, temperature=0, max_tokens=tokens, stream=True)
        return timed(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)

    with closing(llama):
        yield path


def _llama(plan: Plan, tokens: int) -> Any:
    from llama_cpp import Llama  # noqa: PLC0415 - only for these two

    return Llama(
        str(models.resolve(plan.model)),
        n_ctx=roomy(tokens),
        n_threads=plan.threads,
        n_threads_batch=plan.threads,
        flash_attn=True,
        verbose=False,
    )


@contextmanager
def community_path(plan: Plan, tokens: int) -> Iterator[Path]:
    """`ChatLlamaCpp.stream` of langchain-community."""
    from langchain_community.chat_models import ChatLlamaCpp  # noqa: PLC0415 - a group of its own

    model = ChatLlamaCpp(
        model_path=str(models.resolve(plan.model)),
        n_ctx=roomy(tokens),
        n_threads=plan.threads,
        n_batch=512,  # its default of 8 is about prefill, which is apart
        temperature=0,
        repeat_penalty=1.0,
        rope_freq_base=0.0,  # the model's own; its default changes the text
        max_tokens=tokens,
        verbose=False,
    )
    with closing(model.client):
        yield lambda messages: timed(_texts(model.stream(messages)))


@contextmanager
def server_path(plan: Plan, tokens: int) -> Iterator[Path]:
    """`ChatOpenAI.stream` on `llama_cpp.server`.

    Its first pieces come late and in a bunch, so a clock that starts with them flatters. So the
    prompt is evaluated by a request of its own, of which the server keeps the cache, and the clock
    starts with the second request.
    """
    with ModelServer(plan, roomy(tokens)) as server:
        one, all_of_them = server.client(1), server.client(tokens)

        def path(messages: Messages) -> Timed:
            one.invoke(messages)
            started = time.perf_counter()
            run = timed(_texts(all_of_them.stream(messages)))
            return replace(run, writing_s=run.first_s + run.writing_s, times=(started, *run.times))

        yield path


def _texts(chunks: Any) -> Iterator[str]:
    return (str(chunk.content) for chunk in chunks)


OTHERS: list[tuple[Any, ...]] = [
    (f"{RELAY}, max_concurrency=4", relay_path, {"max_concurrency": 4}),
    ("Llama.generate", generate_path),
    ("Llama.create_chat_completion", completion_path),
    ("ChatLlamaCpp.stream", community_path),
    ("ChatOpenAI on llama_cpp.server", server_path),
]
