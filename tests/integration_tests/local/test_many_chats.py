"""Many chats at once on a real model: each gets its own text, and nothing is lost."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_relay.engine.drivers import aleased
from langchain_relay.engine.errors import UsageMistake
from langchain_relay.engine.events import Decode, Feed
from langchain_relay.engine.values import Sampling, Turn
from langchain_relay.local import LlamaCppModel
from tests.soaks import SOAK, note_soak

pytestmark = [pytest.mark.gguf, pytest.mark.xdist_group("gguf")]

ANSWERS = 10_000 if SOAK else 300
SETTLED = 1_000 if SOAK else 100
"""After so many answers every pool and cache has its size."""
CHATS = 16
TOKENS = 6
TIMEOUT_S = 60
SLACK_MIB = 16
QUESTIONS = [f"Say the number {n}." for n in range(10)]


@pytest.fixture(scope="module")
def model():
    with LlamaCppModel(n_threads=2, n_ctx=512, max_concurrency=CHATS) as model:
        yield model


def opened(model, question, **sampling):
    settings = Sampling(**{"temperature": 0.0, **sampling})
    return model.open([Turn("user", question)], settings)


async def written(session, n, cancel_at=None):
    """Ids of up to `n` steps; the step `cancel_at` is not waited for."""
    got: list[int] = []
    while len(got) < n:
        future = session.decode(Decode(tuple(got[-1:])))
        if len(got) == cancel_at:
            future.cancel()
            return got
        step = await asyncio.wrap_future(future)
        if step.eog:
            break
        got.append(step.id)
    return got


async def answered(model, question, n, cancel_at=None, **sampling):
    session = await aleased(opened(model, question, **sampling))
    try:
        return await written(session, n, cancel_at)
    finally:
        session.close()


SAMPLINGS = {"greedy": {}, "seeded": {"temperature": 0.9, "seed": 11}}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
async def test_the_text_of_a_chat_is_the_same_alone_and_among_fifteen_others(model, sampling):
    """Far beyond the 256 tokens of context up to which any batch would do."""
    long = "Write a story about a cat and a lighthouse. " + "The sea was calm. " * 70
    alone = await answered(model, long, 60, **sampling)
    others = [f"{'Count slowly. ' * n}Count to {n}." for n in range(1, CHATS)]
    beside, *_ = await asyncio.gather(
        answered(model, long, 60, **sampling), *(answered(model, q, 40) for q in others)
    )
    assert len(alone) == 60
    assert beside == alone


async def test_a_soak_of_short_answers_a_tenth_of_them_cancelled(model):
    rng = random.Random(7)
    alone = {question: await answered(model, question, TOKENS) for question in QUESTIONS}
    assert len({tuple(ids) for ids in alone.values()}) > 3  # else foreign tokens would not show
    process = psutil.Process()
    settled_mib = 0.0
    done = cancelled = 0

    async def chat():
        nonlocal done, cancelled, settled_mib
        while done < ANSWERS:
            done += 1
            if done == SETTLED:
                gc.collect()
                settled_mib = process.memory_info().rss / 2**20
            question = rng.choice(QUESTIONS)
            cancel_at = rng.randrange(TOKENS) if rng.random() < 0.1 else None
            cancelled += cancel_at is not None
            if rng.random() < 0.02:
                opened(model, question).cancel()
            got = await answered(model, question, TOKENS, cancel_at)
            assert got == alone[question][:cancel_at]

    await asyncio.gather(*(chat() for _ in range(CHATS + 4)))  # some queue
    gc.collect()
    grown_mib = process.memory_info().rss / 2**20 - settled_mib
    assert grown_mib < SLACK_MIB, f"{grown_mib:.1f} MiB more after {done} answers"
    model._runner.leave(object())  # behind the last close(): the engine has taken in all before it
    assert not model._runner._decoder.leases
    facts = {"answers": done, "cancelled": cancelled, "chats": CHATS, "tokens": TOKENS}
    memory = {"settled_mib": settled_mib, "grown_mib": grown_mib}
    note_soak("chats", {**facts, **memory, "model": "smollm2-135m"})


# --- running ahead on real logits ---------------------------------------------------------------


@pytest.fixture(scope="module")
def two_engines(tiny_llama):
    """The same tiny model with and without running ahead."""
    common: dict[str, Any] = {"n_threads": 1, "n_ctx": 512, "max_concurrency": 2}
    with (
        LlamaCppModel(tiny_llama, run_ahead=0, **common) as steady,
        LlamaCppModel(tiny_llama, run_ahead=8, **common) as ahead,
    ):
        yield steady, ahead


ASKS = st.lists(
    st.one_of(
        st.integers(1, 12),  # steps that go on
        st.tuples(st.just("rewind"), st.integers(1, 4)),
        st.tuples(
            st.just("span"), st.sampled_from([" é🙂", " of one cat", "<call>3</call>", "字"])
        ),
    ),
    max_size=8,
)


def played(model, asks, sampling):
    session = opened(model, "What is 2+2?", **sampling).result(TIMEOUT_S)
    got: list[tuple[int, str]] = []
    append: tuple[int, ...] = ()

    def go_on(n, rewind=0):
        nonlocal append
        for _ in range(n):
            step = session.decode(Decode(append, rewind=rewind)).result(TIMEOUT_S)
            rewind = 0
            got.append((step.id, step.text))
            append = () if step.eog else (step.id,)

    try:
        go_on(5)
        for ask in asks:
            match ask:
                case ("rewind", n):
                    append = ()
                    try:
                        go_on(1, rewind=n)
                    except UsageMistake:
                        got.append((-1, "reaches into the prompt"))
                case ("span", text):
                    for piece in text:
                        session.feed(Feed((*append, piece)))
                        append = ()
                    go_on(1)
                case n:
                    go_on(n)
    finally:
        session.close()
    return got


@given(ASKS, st.floats(0, 2), st.integers(0, 2**40), st.sampled_from([1.0, 1.3]))
@settings(max_examples=1000 if SOAK else 60, deadline=None)
def test_for_every_seed_and_temperature_running_ahead_changes_no_token(
    two_engines, asks, temperature, seed, repeat_penalty
):
    sampling = {"temperature": temperature, "seed": seed, "repeat_penalty": repeat_penalty}
    without, ahead = (played(model, asks, sampling) for model in two_engines)
    assert ahead == without
