"""What a reply to the probe says of its host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest

from langchain_relay.delegates.probe import BEGUN, MAX_TOKENS, Probing, classified
from langchain_relay.engine.values import Attempt, Delta, Mode
from langchain_relay.errors import DelegateError


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("mps over the sleepy dog", "literal"),
        (" mps over", "literal"),
        (f"{BEGUN}mps over the sleepy dog", "echo"),
        ("ggles over the sleepy dog", "literal"),
        ("jumps over the sleepy dog", "restart"),  # only a whole repetition can be dropped
        ("ggles a ball", "restart"),
        ("a fox. over the sleepy dog", "restart"),
        ("The small brown fox jumps over", "restart"),
        ("Sure! The small green fox jumps", "restart"),
    ],
)
def test_a_reply_says_what_the_host_does(reply, verdict):
    assert classified(reply) == verdict


@pytest.mark.parametrize("reply", ["", "  \n"])
def test_an_empty_reply_says_nothing(reply):
    with pytest.raises(DelegateError, match="empty"):
        classified(reply)


class Endless(Probing):
    """A host that knows no limit."""

    model = "endless"
    base_url = None
    mode: Mode = "prefill"
    _mode: Mode = "prefill"

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        return {"model": self.model}

    def stream(self, attempt: Attempt) -> Iterator[Delta]:
        assert attempt.max_tokens == MAX_TOKENS
        while True:
            yield Delta(text="mps over ")

    async def astream(self, attempt: Attempt) -> AsyncIterator[Delta]:
        for delta in self.stream(attempt):
            yield delta


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_no_more_is_read_than_was_asked_for(colour, tmp_path, monkeypatch):
    monkeypatch.setenv("LANGCHAIN_RELAY_CACHE", str(tmp_path))
    host = Endless()
    probed = host.probe() if colour == "sync" else asyncio.run(host.aprobe())
    assert probed.verdict == "literal"
    assert len(probed.reply) < 500
