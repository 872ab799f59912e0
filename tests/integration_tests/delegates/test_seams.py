"""Real texts, cut anywhere, come back whole from hosts that continue a begun answer literally."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import openai
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI

from benchmarks.cuts import KINDS, Cut, passages
from langchain_relay import RelayChatModel
from langchain_relay.delegates import ChatModelDelegate, OpenAIDelegate
from langchain_relay.testing import ScriptedLocal
from tests.faults import FaultServer, Served
from tests.soaks import SOAK, note_soak

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

CUTS = 500 if SOAK else 48
SEED = int(os.environ.get("RELAY_SEED", "5"))
N = 3_000
MODEL = "some-model"


def cuts(n: int) -> list[Cut]:
    """`n` cuts at any character, the same number of each kind of text."""
    random = Random(SEED)
    found = []
    for kind in KINDS:
        for _ in range(n // len(KINDS)):
            passage = random.choice(passages(kind))
            found.append(Cut(passage, random.randrange(1, len(passage.text))))
    return found


def sent(body: Any) -> str:
    """The begun answer as it reached the host."""
    if "prompt" in body:
        return str(body["prompt"]).partition("Assistant: ")[2]
    last = body["messages"][-1]
    assert last["role"] == "assistant"
    content = last["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def literal(served: Served) -> str:
    """Go on with the passage where the begun answer breaks off."""
    asked = str(served.body)
    (passage,) = [p for kind in KINDS for p in passages(kind) if p.question in asked]
    begun = sent(served.body)
    assert passage.text.startswith(begun)
    assert begun == begun.rstrip()
    return passage.text[len(begun) :]


def client(server: FaultServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="test")


def prefill(server: FaultServer) -> Any:
    return OpenAIDelegate(client(server), model=MODEL, mode="prefill")


def prefill_of_a_chat_model(server: FaultServer) -> Any:
    chat = ChatOpenAI(model=MODEL, base_url=f"{server.url}/v1", api_key="test")
    return ChatModelDelegate(chat, mode="prefill")


def prefill_of_anthropic(server: FaultServer) -> Any:
    chat = ChatAnthropic(model="claude-haiku-4-5", base_url=server.url, api_key="test")
    return ChatModelDelegate(chat, mode="prefill")


def flag(server: FaultServer) -> Any:
    return OpenAIDelegate(client(server), model=MODEL, mode="flag")


def prefix_flag_of_a_chat_model(server: FaultServer) -> Any:
    chat = ChatOpenAI(model=MODEL, base_url=f"{server.url}/v1", api_key="test")
    return ChatModelDelegate(chat, mode="flag", flag="prefix")


def completion(server: FaultServer) -> Any:
    return OpenAIDelegate(client(server), model=MODEL, api="completions")


MAKERS = [
    *(prefill, prefill_of_a_chat_model, prefill_of_anthropic),
    *(flag, prefix_flag_of_a_chat_model, completion),
]


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer(literal) as server:
        yield server


@pytest.fixture(scope="module")
def whole() -> Iterator[Counter[str]]:
    """Texts that came back whole, of each way to ask."""
    found: Counter[str] = Counter()
    yield found
    note_soak("seams", {"cuts": CUTS, "seed": SEED, "came_back_whole": found})


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_every_literal_mode_gives_back_real_text_at_any_cut(
    server: FaultServer, make: Any, whole: Counter[str]
):
    delegate = make(server)
    for cut in cuts(CUTS):
        local = ScriptedLocal(cut.draft, f"<call>{N}</call>")
        model = RelayChatModel(
            model=local, delegate=delegate, max_span_tokens=N, max_tokens=2 * N, max_retries=0
        )
        message = model.invoke(cut.passage.question)
        assert message.content == cut.passage.text, cut
        (_, ended) = message.response_metadata["relay"]["events"]
        assert (ended["type"], ended["trimmed"]) == ("relay.call.finished", "")
        whole[make.__name__] += 1
