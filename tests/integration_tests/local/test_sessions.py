"""What sessions of both kinds of local model do alike: in this process and over HTTP."""

from __future__ import annotations

import asyncio

import pytest

from langchain_relay.engine.events import Decode, Feed
from langchain_relay.engine.values import Rule, Sampling, Turn
from tests.integration_tests.local.sessions import (
    SERVERS,
    STORY,
    TIMEOUT_S,
    over_http,
    step,
    write,
)

pytestmark = [pytest.mark.gguf, pytest.mark.xdist_group("gguf")]


@pytest.fixture(scope="module", params=["in process", *SERVERS])
def local(request, model, urls):
    if request.param == "in process":
        yield model
    else:
        with over_http(urls(request.param), request.param) as served:
            yield served


def test_a_ban_does_not_look_into_foreign_text(local, begin):
    session = begin(local, "Hello")
    session.feed(Feed((" <",)))
    assert step(session, rule=Rule(ban=("<call>",))).text  # nothing to take back, whatever it says
    session.feed(Feed((" <call>3</call> is text",)))
    assert step(session, rule=Rule(ban=("<call>",))).text


def test_seeds_make_a_difference_and_repeat(local, begin):
    def text(**sampling):
        session = begin(local, STORY, **sampling)
        try:
            return write(session, 12)
        finally:
            session.close()

    hot = {"temperature": 1.5}
    assert text(**hot, seed=1) == text(**hot, seed=1)
    assert len({text(**hot, seed=seed) for seed in (1, 2, 3)}) == 3
    assert text(**hot) != text(**hot)  # a fresh seed for each
    assert text(temperature=1.5, top_k=1, seed=4) == text()  # the likeliest token only


def test_twelve_answers_over_four_places_in_order(local):
    futures = [local.open([Turn("user", f"{n}?")], Sampling(temperature=0)) for n in range(12)]
    cancelled = futures.pop(6)
    assert cancelled.cancel()
    texts = []
    for future in futures:
        session = future.result(TIMEOUT_S)
        texts.append(write(session, 3))
        session.close()
    assert len(texts) == 11
    assert all(texts)


async def test_an_event_loop_runs_more_answers_than_there_are_places(local):
    async def answer(n):
        future = local.open([Turn("user", f"Tell me about {n}.")], Sampling(temperature=0))
        session = await asyncio.wrap_future(future)
        try:
            append: tuple[int, ...] = ()
            text = ""
            for _ in range(4):
                got = await asyncio.wrap_future(session.decode(Decode(append)))
                append, text = (got.id,), text + got.text
            return text
        finally:
            session.close()

    texts = await asyncio.gather(*(answer(n % 2) for n in range(8)))
    assert len(set(texts)) == 2
