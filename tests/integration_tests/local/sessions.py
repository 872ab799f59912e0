"""Models to open sessions on, and what is asked of a session."""

from __future__ import annotations

import pytest

from langchain_relay.engine.events import Decode
from langchain_relay.engine.values import FREE
from langchain_relay.local import CompletionServerModel
from langchain_relay.local.server.gguf_vocab import GgufVocabulary
from tests.servers import completion_servers as servers

TIMEOUT_S = 60
MODEL = "smollm2-135m"
STORY = "Write a story about a cat and a lighthouse."
SERVERS = ["llama_cpp.server", pytest.param("llama-server", marks=pytest.mark.servers)]


def over_http(url, kind, **options):
    if kind == "llama-server":
        return CompletionServerModel(url, **options)
    given = {"n_ctx": servers.N_CTX, "template": GgufVocabulary(MODEL).template.source}
    return CompletionServerModel(url, **{**given, **options})


def step(session, *append, **ask):
    return session.decode(Decode(append, **ask)).result(TIMEOUT_S)


def steps(session, n, append=(), rule=FREE):
    """Up to `n` steps, each appending the one before."""
    got = []
    for _ in range(n):
        one = step(session, *append, rule=rule)
        if one.eog:
            break
        got.append(one)
        append = (one.id,)
    return got


def write(session, n, append=(), rule=FREE):
    return "".join(one.text for one in steps(session, n, append, rule))
