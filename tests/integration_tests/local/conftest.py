"""One SmolLM2 for all tests of this folder."""

from __future__ import annotations

import pytest

from langchain_relay.engine.values import Sampling, Turn
from langchain_relay.local import LlamaCppModel

TIMEOUT_S = 60


@pytest.fixture(scope="session")
def model():
    with LlamaCppModel(n_threads=1, n_ctx=1024, max_concurrency=4) as model:
        yield model


@pytest.fixture(scope="session")
def steady():
    """The same without running ahead: the context holds what was asked for, and nothing else."""
    with LlamaCppModel(n_threads=1, n_ctx=1024, max_concurrency=4, run_ahead=0) as model:
        yield model


@pytest.fixture
def start(model):
    """Opens sessions on the shared model and closes them at the end of the test."""
    opened = []

    def start(question, *, on=model, **sampling):
        turns = [Turn("user", question)] if isinstance(question, str) else question
        settings = {"temperature": 0.0, **sampling}
        session = on.open(turns, Sampling(**settings)).result(TIMEOUT_S)
        opened.append(session)
        return session

    yield start
    for session in opened:
        session.close()
