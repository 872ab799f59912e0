"""Models of one file and the same settings share an engine; each has only its own chats."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from langchain_relay.engine.errors import LocalModelError
from langchain_relay.engine.events import Decode
from langchain_relay.engine.values import Sampling, Turn
from langchain_relay.local import LlamaCppModel, llamacpp
from langchain_relay.local.engine import Engine
from tests.unit_tests.local.counting import TIMEOUT_S, Counting


@pytest.fixture
def contexts(monkeypatch):
    """The contexts of all engines that are started."""
    contexts: list[Any] = []

    def start(settings):
        contexts.append(Counting())
        context = contexts[-1]
        return Engine(lambda: context, max_concurrency=2, n_batch=8, run_ahead=0)

    monkeypatch.setattr(llamacpp, "_new_engine", start)
    return contexts


def session(model, text="A"):
    return model.open([Turn("user", text)], Sampling()).result(TIMEOUT_S)


def step(session, *append):
    return session.decode(Decode(append)).result(TIMEOUT_S).text


def test_the_same_settings_share_one_engine(contexts):
    with LlamaCppModel() as first, LlamaCppModel() as second:
        assert (step(session(first)), step(session(second, "a"))) == ("B", "b")
        assert len(contexts) == 1
        assert first.shares_engine(second)


@pytest.mark.parametrize("other", [{"n_ctx": 77}, {"max_concurrency": 3}, {"share": False}])
def test_other_settings_have_an_engine_of_their_own(contexts, other):
    with LlamaCppModel() as first, LlamaCppModel(**other) as second:
        assert (step(session(first)), step(session(second))) == ("B", "B")
        assert len(contexts) == 2
        assert not first.shares_engine(second)


def test_closing_one_model_leaves_the_other_its_chats(contexts):
    first, second = LlamaCppModel(), LlamaCppModel()
    mine, other = session(first), session(second, "a")
    queued = first.open([Turn("user", "q")], Sampling())
    first.close()
    with pytest.raises(LocalModelError, match="closed"):
        step(mine)
    with pytest.raises(LocalModelError, match="closed"):
        queued.result(TIMEOUT_S)
    with pytest.raises(LocalModelError, match="closed"):
        session(first)
    assert step(other) == "b"
    assert step(session(second, "x")) == "y"  # the sequence came back
    assert not contexts[0].freed
    second.close()
    assert contexts[0].freed == 1


def test_a_model_that_is_collected_leaves(contexts):
    first, second = LlamaCppModel(), LlamaCppModel()
    first.count("x")
    second.count("x")
    del first
    assert step(session(second)) == "B"
    engine = second._runner
    del second
    assert engine is not None
    engine._thread.join(TIMEOUT_S)
    assert contexts[0].freed == 1


def test_after_the_last_one_left_the_next_starts_anew(contexts):
    for _ in range(3):
        with LlamaCppModel() as model:
            assert step(session(model)) == "B"
    assert [context.freed for context in contexts] == [1, 1, 1]


def test_many_models_come_and_go_at_once(contexts):
    def use():
        for _ in range(20):
            with LlamaCppModel() as model:
                answer = session(model)
                assert step(answer) == "B"
                answer.close()
        done.append(True)

    done: list[bool] = []
    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert len(done) == 4
    assert all(context.freed == 1 for context in contexts)
