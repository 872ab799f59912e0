"""The hosted role played by real servers over a real model: does a span really go on?

`make test` runs them against `llama_cpp.server`; `make test-servers` against llama.cpp's own
server too, with its OpenAI, Responses and Anthropic endpoints.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI

from langchain_relay import Budget, RelayChatModel, relay_report
from langchain_relay.delegates import ChatModelDelegate, OpenAIDelegate
from langchain_relay.delegates.continuation import LITERAL_MODES, Seam
from langchain_relay.engine.ledger import Amount, MemoryLedger, Reservation
from langchain_relay.engine.values import Attempt
from langchain_relay.errors import DelegateError
from langchain_relay.local import LlamaCppModel
from langchain_relay.testing import ScriptedLocal
from tests.integration_tests.delegates.transports import Colour, stream, text
from tests.servers.peers import MODEL, Kind, Peer, peer, template

pytestmark = [
    pytest.mark.gguf,
    pytest.mark.xdist_group("gguf"),
    # Clients are left to the garbage collector, as most programs leave them.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

STORY = [HumanMessage("Write a story about a cat and a lighthouse.")]
CALLING = "What is 23*17?"
DRAFTS = {
    "after a word": "Once upon a time, there was a curious cat",
    "within a word": "Once upon a time, there was a cu",
    "after a blank": "Once upon a time, ",
    "after a line break": "The Cat and the Lighthouse\n\n",
}
PRICES = {MODEL: ("1", "2")}  # 1,000 and 2,000 nano-dollars per token
both_colours = pytest.mark.parametrize("colour", ["sync", "async"])


# --- ways to a peer -----------------------------------------------------------------------------


def raw(peer: Peer, **settings: Any) -> OpenAIDelegate:
    client = openai.OpenAI(base_url=f"{peer.url}/v1", api_key="k")
    return OpenAIDelegate(client, model=MODEL, extra_body={"temperature": 0}, **settings)


def from_async(peer: Peer, **settings: Any) -> OpenAIDelegate:
    client = openai.AsyncOpenAI(base_url=f"{peer.url}/v1", api_key="k")
    return OpenAIDelegate(client, model=MODEL, extra_body={"temperature": 0}, **settings)


def chat_openai(peer: Peer, **settings: Any) -> ChatModelDelegate:
    return ChatModelDelegate(openai_chat(peer), **settings)


def responses(peer: Peer, **settings: Any) -> ChatModelDelegate:
    return ChatModelDelegate(openai_chat(peer, use_responses_api=True), **settings)


def anthropic(peer: Peer, **settings: Any) -> ChatModelDelegate:
    chat = ChatAnthropic(model=MODEL, base_url=peer.url, api_key="k", temperature=0)
    return ChatModelDelegate(chat, **settings)


def openai_chat(peer: Peer, **options: Any) -> ChatOpenAI:
    url = f"{peer.url}/v1"
    return ChatOpenAI(model=MODEL, base_url=url, api_key="k", temperature=0, **options)


@dataclass(frozen=True)
class Way:
    """How a span is asked for, where that goes, and what the peer makes of a begun answer."""

    make: Callable[..., Any]
    settings: dict[str, Any]
    kind: Kind
    verdict: str

    def __str__(self) -> str:
        mode = self.settings.get("mode", "completion")
        return f"{self.kind}-{self.make.__name__}-{mode}"


COMPLETIONS = {"api": "completions", "prompt": template()}
FLAG, PREFILL = {"mode": "flag"}, {"mode": "prefill"}
WAYS = [
    Way(raw, COMPLETIONS, "llama_cpp.server", "literal"),
    Way(from_async, COMPLETIONS, "llama_cpp.server", "literal"),
    Way(raw, PREFILL, "llama_cpp.server", "restart"),
    Way(chat_openai, PREFILL, "llama_cpp.server", "restart"),
    Way(raw, COMPLETIONS, "llama-server", "literal"),
    Way(raw, FLAG, "llama-server", "literal"),
    Way(from_async, FLAG, "llama-server", "literal"),
    Way(chat_openai, FLAG, "llama-server", "literal"),
    Way(responses, FLAG, "llama-server", "literal"),
    Way(raw, PREFILL, "llama-server", "echo"),
    Way(chat_openai, PREFILL, "llama-server", "echo"),
    Way(anthropic, PREFILL, "llama-server", "echo"),
]


def asked_in_words(mode: str) -> list[Way]:
    kinds: tuple[Kind, ...] = ("llama_cpp.server", "llama-server")
    both = [Way(make, {"mode": mode}, kind, "") for kind in kinds for make in (raw, chat_openai)]
    return [*both, Way(anthropic, {"mode": mode}, "llama-server", "")]


def each(ways: list[Way]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("way", [on(way.kind, way) for way in ways])


def on(kind: Kind, value: Any) -> Any:
    marks = [pytest.mark.servers] if kind == "llama-server" else []
    return pytest.param(value, marks=marks, id=str(value))


LITERAL = [way for way in WAYS if way.verdict in {"literal", "echo"}]
KINDS: tuple[Kind, ...] = ("llama_cpp.server", "llama-server")
each_kind = pytest.mark.parametrize("kind", [on(kind, kind) for kind in KINDS])


@pytest.fixture(scope="module")
def peers() -> Iterator[Callable[[Kind], Peer]]:
    """Servers that live as long as this module, each started when it is first asked for."""
    opened: dict[Kind, tuple[Any, Peer]] = {}

    def get(kind: Kind) -> Peer:
        if kind not in opened:
            server = peer(kind)
            opened[kind] = (server, server.__enter__())
        return opened[kind][1]

    yield get
    for server, _ in opened.values():
        server.__exit__(None, None, None)


@pytest.fixture(scope="module")
def local() -> Iterator[LlamaCppModel]:
    with LlamaCppModel(MODEL, n_ctx=1024, n_threads=1, max_concurrency=2) as model:
        yield model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Verdicts of one test."""
    monkeypatch.setenv("LANGCHAIN_RELAY_CACHE", str(tmp_path))
    return tmp_path / "probes"


@pytest.fixture
def delegate(peers, folder):
    """Makes a way's delegate; a way that repeats the draft is probed, as its user must."""

    def make(way: Way) -> Any:
        if way.verdict == "echo":
            way.make(peers(way.kind), **way.settings).probe()
        return way.make(peers(way.kind), **way.settings)

    return make


# --- what a host does ---------------------------------------------------------------------------


@each(WAYS)
def test_a_probe_says_what_the_peer_does(peers, folder, way):
    probed = way.make(peers(way.kind), **way.settings).probe()
    assert probed.verdict == way.verdict, probed.reply
    assert probed.base_url.startswith(peers(way.kind).url)
    if "api" not in way.settings and way.settings != FLAG:
        later = way.make(peers(way.kind))
        assert later.mode == ("instruct" if way.verdict == "restart" else probed.mode)


@pytest.mark.servers
def test_a_server_that_is_told_to_take_no_begun_answer_restarts(folder):
    with peer("llama-server", "--no-prefill-assistant") as strict:
        assert raw(strict).probe().verdict == "restart"
        assert raw(strict, mode="flag").probe().verdict == "literal"  # asked for by name
        assert raw(strict).mode == "instruct"


# --- literal modes ------------------------------------------------------------------------------


@both_colours
@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
@each(LITERAL)
def test_a_literal_mode_goes_on_as_the_server_itself_does(
    peers, delegate, way: Way, draft: str, colour: Colour
):
    expected = peers(way.kind).goes_on(STORY, draft, 16)
    deltas = stream(delegate(way), Attempt(tuple(STORY), draft, 16, timeout_s=60), colour)
    assert text(deltas) == expected["text"]
    if usage := next((delta.usage for delta in deltas if delta.usage), None):
        assert usage.output_tokens == expected["usage"]["completion_tokens"] == 16
        assert usage.input_tokens == expected["usage"]["prompt_tokens"]


@each([way for way in LITERAL if way.make is not from_async])
def test_at_any_cut_no_word_is_lost_or_doubled(peers, delegate, way):
    server, hosted = peers(way.kind), delegate(way)
    whole = server.goes_on(STORY, "", 40)["text"]
    for cut in range(20, 90, 9):
        draft = whole[:cut]
        span = text(stream(hosted, Attempt(tuple(STORY), draft, 6, timeout_s=60), "sync"))
        seam = Seam(draft, hosted.mode)
        shown = draft + seam.push(span) + seam.flush()
        alone = draft.rstrip() + server.goes_on(STORY, draft, 6)["text"]
        assert shown.split() == alone.split()


# --- bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 5])
@each([*LITERAL, *asked_in_words("instruct"), *asked_in_words("handoff")])
def test_no_more_than_n_tokens_are_written(peers, delegate, way, n):
    hosted = delegate(way)
    deltas = stream(hosted, Attempt(tuple(STORY), DRAFTS["after a word"], n, timeout_s=60), "sync")
    assert 1 <= sum(bool(delta.text) for delta in deltas) <= n
    usage = next((delta.usage for delta in deltas if delta.usage), None)
    if way.kind == "llama-server" and way.make is not anthropic:
        assert usage is not None
        assert usage.output_tokens == n
    else:
        assert usage is None  # one reports none in a stream, the other not the whole of it


@pytest.mark.parametrize("make", [raw, chat_openai, from_async])
@each_kind
def test_a_stream_that_is_cut_stops_the_server(peers, kind, make):
    hosted = make(peers(kind), mode="instruct")
    colour: Colour = "async" if make is from_async else "sync"
    longest = Attempt(tuple(STORY), "", 700, timeout_s=60)  # seconds
    assert text(stream(hosted, longest, colour, until=4))
    assert peers(kind).falls_idle(within_s=2)


# --- the whole relay ----------------------------------------------------------------------------


class NotedLedger(MemoryLedger):
    """Keeps what was settled."""

    def __init__(self) -> None:
        super().__init__()
        self.settled: list[Amount] = []

    def settle(self, reservation: Reservation, actual: Amount, **facts: Any) -> bool:
        self.settled.append(actual)
        return super().settle(reservation, actual, **facts)


def relay(local: Any, hosted: Any, **fields: Any) -> RelayChatModel:
    settings = {"temperature": 0.0, "max_tokens": 40, "prices": PRICES, "n_ctx": 1024, **fields}
    return RelayChatModel(model=local, delegate=hosted, budget=Budget(usd="0.1"), **settings)


@each([*LITERAL, *asked_in_words("instruct")])
def test_an_answer_of_two_real_models_and_its_books(local, peers, delegate, way):
    ledger = NotedLedger()
    message = relay(local, delegate(way), ledger=ledger, max_span_tokens=8).invoke(CALLING)
    report = relay_report(message)
    assert report.calls >= 1
    assert report.failed == 0
    assert "".join(span.text for span in report.spans) == message.text
    for before, span in zip(report.spans, report.spans[1:], strict=False):
        if span.author == "delegate" and delegate(way).mode in LITERAL_MODES:
            draft = message.text[: before.end]
            server = peers(way.kind).goes_on([HumanMessage(CALLING)], draft, 8)["text"]
            assert (draft.rstrip() + server).startswith((draft + span.text).rstrip())
    costs = [charge.cost_nanousd for charge in report.charges]
    assert [amount.cost_nanousd for amount in ledger.settled] == costs
    for charge in report.charges:
        reports = way.kind == "llama-server" and way.make is not anthropic
        assert charge.estimated is not reports
        if reports:
            read, wrote = charge.input_tokens or 0, charge.output_tokens or 0
            assert read > wrote > 0
            assert charge.cost_nanousd == read * 1000 + wrote * 2000


@pytest.mark.servers
def test_the_ledger_equals_the_server_s_own_count(local):
    with peer("llama-server", "--metrics") as counting:
        ledger = NotedLedger()
        model = relay(local, chat_openai(counting, mode="flag"), ledger=ledger)
        messages = [model.invoke(CALLING) for _ in range(2)]
        wrote = tokens_predicted(counting)
    charges = [charge for message in messages for charge in relay_report(message).charges]
    assert sum(charge.output_tokens or 0 for charge in charges) == wrote
    assert sum(amount.tokens for amount in ledger.settled) == wrote > 0


def tokens_predicted(peer: Peer) -> int:
    lines = httpx.get(f"{peer.url}/metrics").text.splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("llamacpp:tokens_pred")))


@each([LITERAL[0], *asked_in_words("instruct")[:2], *[w for w in LITERAL if w.make is anthropic]])
def test_every_path_gives_the_same_answer(local, delegate, way):
    model = relay(local, delegate(way), max_tokens=24, max_span_tokens=8)

    async def run_async() -> list[str]:
        streamed = [chunk.text async for chunk in model.astream(CALLING)]
        return [(await model.ainvoke(CALLING)).text, "".join(streamed)]

    texts = [model.invoke(CALLING).text, "".join(c.text for c in model.stream(CALLING))]
    texts += asyncio.run(run_async())
    assert texts == [texts[0]] * 4
    assert texts[0]


# --- a peer that dies ---------------------------------------------------------------------------


@each_kind
def test_a_server_killed_within_a_span_leaves_a_whole_answer(local, kind):
    ledger = NotedLedger()
    with peer(kind) as dying:
        process = dying.process
        hosted = raw(dying, mode="instruct")
        model = relay(local, hosted, max_retries=1, ledger=ledger, max_tokens=160)
        whole = None
        for chunk in model.stream(STORY, delegation="always"):
            whole = chunk if whole is None else whole + chunk
            if chunk.text and process.is_running():  # the first word, and so the hosted one's
                process.kill()
                process.wait(10)
    assert whole is not None
    report = relay_report(whole)
    assert (report.calls, report.failed) == (1, 1)
    kept = next(span for span in report.spans if span.author == "delegate")
    assert 0 < kept.tokens < 100
    assert report.spans[-1].author == "local"  # and went on behind what was kept
    assert len(report.spans[-1].text) > 10
    assert "rror" not in whole.text
    first, *others = report.charges
    assert (first.estimated, first.released) == (True, False)
    assert (first.cost_nanousd or 0) > 160 * 2000  # the worst case: all of n, and the input
    assert others
    assert all(charge.released and charge.cost_nanousd == 0 for charge in others)
    assert sum(amount.cost_nanousd for amount in ledger.settled) == first.cost_nanousd


def test_the_port_of_a_dead_server_opens_its_breaker():
    with peer("llama_cpp.server") as dead:
        hosted = chat_openai(dead, mode="instruct")
    model = relay(ScriptedLocal("It is ", "<call>8</call>", "so."), hosted, max_retries=0)
    failures = []
    for _ in range(7):
        message = model.invoke("?")
        assert message.text == "It is so."
        events = message.response_metadata["relay"]["events"]
        failures += [e["error_type"] for e in events if e["type"] == "relay.call.failed"]
    assert failures == ["DelegateError"] * 5 + ["CircuitOpen"] * 2


def test_a_probe_of_a_dead_server_is_no_verdict(folder):
    with peer("llama_cpp.server") as dead:
        hosted = raw(dead)
    with pytest.raises(DelegateError, match=MODEL):
        hosted.probe()
    assert not folder.exists()
