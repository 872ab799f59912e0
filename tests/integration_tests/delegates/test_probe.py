"""Probing a real server: one request, a verdict on disk, and what later delegates make of it."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest
from langchain_openai import ChatOpenAI

from langchain_relay.delegates import ChatModelDelegate, OpenAIDelegate, probe
from langchain_relay.delegates.probe import BEGUN, MAX_TOKENS, Probing
from langchain_relay.delegates.resolve import resolve_delegate
from langchain_relay.engine.values import Attempt
from langchain_relay.errors import DelegateError, DelegateTimeout
from tests.faults import Fault, FaultServer, Reply, script
from tests.integration_tests.delegates.hosted_sides import (
    MISTRAL,
    OLLAMA,
    THROUGH_A_CLIENT,
    THROUGH_LANGCHAIN,
    every_side,
)
from tests.servers.openai_server import OpenAIServer
from tests.servers.openai_server import Reply as Answer

REST = "mps over the sleepy dog beside the quiet river."
HOSTS = [
    (REST, "literal", "prefill"),
    (BEGUN + REST, "echo", "prefill"),
    ("The small brown fox jumps over the sleepy dog.", "restart", "instruct"),
    (Answer(status=400), "reject", "instruct"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LANGCHAIN_RELAY_CACHE", str(tmp_path))
    return tmp_path / "probes"


def raw(server, **settings):
    client = openai.OpenAI(base_url=server.base_url, api_key="k")
    return OpenAIDelegate(client, model="m", **settings)


def chat(server, **settings):
    model = ChatOpenAI(base_url=server.base_url, api_key="k", model="m")
    return ChatModelDelegate(model, **settings)


@pytest.mark.parametrize("make", [raw, chat])
@pytest.mark.parametrize(("reply", "verdict", "mode"), HOSTS)
async def test_the_verdict_decides_the_mode_of_later_delegates(folder, make, reply, verdict, mode):
    with OpenAIServer(reply) as server:
        delegate = make(server)
        assert delegate.mode == "instruct"
        probed = delegate.probe()
        assert probed.verdict == verdict
        assert (await make(server).aprobe()).verdict == verdict
        assert [request.body["messages"][-1]["role"] for request in server.requests] == [
            "assistant",
            "assistant",
        ]
        limits = [
            request.body.get("max_tokens", request.body.get("max_completion_tokens"))
            for request in server.requests
        ]
        assert limits == [MAX_TOKENS, MAX_TOKENS]
        assert make(server).mode == mode
        assert len(server.requests) == 2  # nobody asks unasked
    (file,) = folder.iterdir()
    assert json.loads(file.read_text())["verdict"] == verdict


def test_a_host_that_repeats_the_draft_loses_the_repetition_from_then_on(folder):
    with OpenAIServer(BEGUN + REST, "The sea is salt and blue") as server:
        raw(server).probe()
        attempt = Attempt((), "The sea is ", 8)
        assert "".join(delta.text for delta in raw(server).stream(attempt)) == " salt and blue"


def test_a_mode_that_was_chosen_is_kept(folder):
    with OpenAIServer(REST) as server:
        raw(server).probe()
        client = openai.OpenAI(base_url=server.base_url, api_key="k")
        assert OpenAIDelegate(client, model="m", mode="instruct").mode == "instruct"
        assert OpenAIDelegate(client, model="another").mode == "instruct"


@pytest.mark.parametrize("make", [raw, chat])
def test_a_mode_that_was_chosen_loses_the_repetition_all_the_same(folder, make):
    with OpenAIServer(BEGUN + REST, "The sea is salt and blue") as server:
        make(server, mode="prefill").probe()
        attempt = Attempt((), "The sea is ", 8)
        for mode, shown in (
            ("prefill", " salt and blue"),
            ("instruct", "The sea is salt and blue"),
        ):
            deltas = make(server, mode=mode).stream(attempt)
            assert "".join(delta.text for delta in deltas) == shown


@every_side
async def test_whoever_is_refused_a_begun_answer_is_told_so(folder, make, monkeypatch):
    monkeypatch.setitem(script.STATUS, Fault.NOT_FOUND, 400)
    with FaultServer(Reply(fault=Fault.NOT_FOUND)) as server:
        delegate = resolve_delegate(make(server))
        assert isinstance(delegate, Probing)
        assert delegate.probe().verdict == "reject"
        assert (await delegate.aprobe()).verdict == "reject"


def test_a_verdict_on_one_flag_says_nothing_of_another(folder):
    with OpenAIServer("The small brown fox jumps over the sleepy dog.") as server:
        assert raw(server, mode="flag", flag="prefix").probe().verdict == "restart"
        assert len(list(folder.iterdir())) == 1
        raw(server, mode="flag", flag="partial").probe()
        assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("status", [401, 404, 429, 500])
def test_a_failure_on_the_way_is_no_verdict(folder, status):
    with OpenAIServer(Answer(status=status)) as server:
        with pytest.raises(DelegateError):
            raw(server).probe()
        assert raw(server).mode == "instruct"
    assert not folder.exists()


def damaged(text: str, **wrong: object) -> str:
    return json.dumps({**json.loads(text), **wrong})


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: "{",
        lambda _: "null",
        lambda _: "[" * 100_000,
        lambda _: "\udcff",
        lambda text: damaged(text, verdict=["literal"]),
        lambda text: damaged(text, day=20261121),
        lambda text: damaged(text, mode="bogus"),
        lambda text: damaged(text, mode="completion"),  # it was asked in `prefill`
        lambda text: damaged(text, more="than is known"),
    ],
)
def test_a_damaged_verdict_counts_as_none(folder, damage):
    with OpenAIServer(REST) as server:
        raw(server).probe()
        (file,) = folder.iterdir()
        text = damage(file.read_text(encoding="utf-8"))
        file.write_bytes(text.encode(errors="surrogateescape"))
        assert raw(server).mode == "instruct"
        assert chat(server).mode == "instruct"


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (OLLAMA, Fault.STALLED),  # these have no time limit of their own
        (MISTRAL, Fault.STALLED),
        (THROUGH_A_CLIENT, Fault.KEEP_ALIVE),  # these begin it anew with every byte
        (THROUGH_LANGCHAIN, Fault.KEEP_ALIVE),
    ],
    ids=str,
)
def test_a_host_that_never_ends_is_left(folder, make, fault, colour, monkeypatch):
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.3)
    with FaultServer(Reply(fault=fault, hold_s=5)) as server:
        delegate = resolve_delegate(make(server))
        assert isinstance(delegate, Probing)
        with pytest.raises(DelegateTimeout, match=r"no whole reply within 0\.3 s"):
            delegate.probe() if colour == "sync" else asyncio.run(delegate.aprobe())
        assert server.served[-1].wait()
        assert server.served[-1].hung_up
    assert not folder.exists()


def test_a_verdict_that_cannot_be_kept_is_told_all_the_same(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LANGCHAIN_RELAY_CACHE", str(tmp_path / "file"))
    with OpenAIServer(REST) as server:
        assert raw(server).probe().verdict == "literal"
        assert raw(server).mode == "instruct"
    assert "could not be kept" in caplog.text


def test_a_verdict_that_cannot_be_kept_leaves_nothing_behind(folder):
    with OpenAIServer(REST) as server:
        raw(server).probe()
        (file,) = folder.iterdir()
        file.unlink()
        file.mkdir()
        raw(server).probe()
    assert list(folder.iterdir()) == [file]
