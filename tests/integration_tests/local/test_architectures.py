"""The engine on other kinds of memory than a plain KV cache: what a rewind leaves, and costs."""

from __future__ import annotations

import llama_cpp
import pytest

from langchain_relay.engine.events import Decode, Feed
from langchain_relay.engine.values import Sampling, Turn
from langchain_relay.local import LlamaCppModel
from tests import ggufs

pytestmark = [pytest.mark.gguf, pytest.mark.xdist_group("gguf")]

TIMEOUT_S = 60
SAMPLINGS = {"greedy": Sampling(temperature=0.0), "seeded": Sampling(temperature=0.9, seed=2)}
FORGETS_A_PART = {"tiny_llama": True, "tiny_mamba": False, "tiny_hybrid": False, "tiny_swa": True}


@pytest.fixture(scope="module", params=FORGETS_A_PART)
def name(request):
    return request.param


@pytest.fixture(scope="module", params=[8, 0], ids=["ahead", "steady"])
def run_ahead(request):
    return request.param


@pytest.fixture(scope="module")
def model(request, name, run_ahead):
    path = request.getfixturevalue(name)
    settings = {"n_threads": 1, "n_ctx": 512, "max_concurrency": 4, "run_ahead": run_ahead}
    with LlamaCppModel(path, **settings) as model:
        yield model


@pytest.fixture(params=SAMPLINGS)
def start(request, model):
    opened = []

    def start(question="What is 2+2?"):
        turns = [Turn("user", question)]
        opened.append(model.open(turns, SAMPLINGS[request.param]).result(TIMEOUT_S))
        return opened[-1]

    yield start
    for session in opened:
        session.close()


def step(session, *append, rewind=0):
    return session.decode(Decode(append, rewind=rewind)).result(TIMEOUT_S).id


def steps(session, n, *append, rewind=0):
    """Ids of `n` steps, each appending the one before; the last is not in the context."""
    got = [step(session, *append, rewind=rewind)]
    while len(got) < n:
        got.append(step(session, got[-1]))
    return got


def context(model):
    return model._runner._context


def test_each_stands_for_its_kind_of_memory(start, model, name):
    start()
    loaded = context(model)._weights.model
    assert llama_cpp.llama_model_is_recurrent(loaded) == (name == "tiny_mamba")
    assert llama_cpp.llama_model_is_hybrid(loaded) == (name == "tiny_hybrid")
    assert llama_cpp.llama_model_n_swa(loaded) == (ggufs.SWA_WINDOW if name == "tiny_swa" else 0)


def test_what_was_taken_back_and_put_back_leaves_no_trace(start):
    """Twenty tokens are more than the window of `tiny_swa`."""
    plain = steps(start(), 60)
    session = start()
    assert steps(session, 30) == plain[:30]
    assert step(session, *plain[9:30], rewind=20) == plain[30]
    assert steps(session, 29, plain[30]) == plain[31:]


def test_another_continuation_that_was_taken_back_leaves_no_trace(start):
    plain = steps(start(), 60)
    session = start()
    assert steps(session, 30) == plain[:30]
    session.feed(Feed((" of one cat",)))
    session.feed(Feed((" and two of it, but not the sky",)))
    other = step(session)
    fed = session.count(" of one cat and two of it, but not the sky")
    steps(session, 10, other)
    assert step(session, plain[29], rewind=fed + 10) == plain[30]
    assert steps(session, 29, plain[30]) == plain[31:]


def test_asking_again_gives_the_same_token(start):
    session = start()
    got = steps(session, 20)
    assert step(session) == got[-1]
    assert step(session) == got[-1]


def test_the_same_text_alone_and_beside_two_others(start):
    alone = steps(start(), 40)
    several = [start(), start("Why is the sky blue?"), start("Count.")]
    last = [step(session) for session in several]
    ours = [last[0]]
    for _ in range(39):
        asks = [s.decode(Decode((i,))) for s, i in zip(several, last, strict=True)]
        last = [ask.result(TIMEOUT_S).id for ask in asks]
        ours.append(last[0])
    assert ours == alone


def test_only_a_recurrent_state_is_evaluated_again_after_a_rewind(start, name, run_ahead):
    session = start()
    got = steps(session, 30)
    before = session.evaluated_tokens
    if run_ahead and FORGETS_A_PART[name]:
        pytest.skip("what was decoded ahead is evaluated too")
    assert before == session.prompt_tokens - session.cached_tokens + 29
    step(session, got[28], rewind=1)
    again = session.evaluated_tokens - before
    assert again == (1 if FORGETS_A_PART[name] else session.prompt_tokens + 29)


def test_a_rewind_far_beyond_a_sliding_window_leaves_no_trace(tiny_swa):
    """With a cache of the window's size the cut would say yes, and the positions would be gone."""
    with LlamaCppModel(tiny_swa, n_threads=1, n_ctx=1024, max_concurrency=1, n_batch=32) as model:
        turns = [Turn("user", "Go on.")]
        session = model.open(turns, SAMPLINGS["greedy"]).result(TIMEOUT_S)
        got = steps(session, 601)
        assert steps(session, 40, rewind=500) == got[100:140]
        session.close()
