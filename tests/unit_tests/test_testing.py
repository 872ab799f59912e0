"""The public test doubles do what their documentation says."""

from __future__ import annotations

import asyncio

import pytest

from langchain_relay.engine.errors import ContextOverflowError, DelegateError
from langchain_relay.engine.events import Decode, Feed
from langchain_relay.engine.values import (
    Attempt,
    Delegate,
    Delta,
    LocalModel,
    LocalSession,
    Rule,
    Sampling,
    Turn,
    Usage,
)
from langchain_relay.testing import FailingDelegate, ScriptedDelegate, ScriptedLocal

BAN = Rule(ban=("<call>",))


def session(*pieces: str) -> LocalSession:
    return ScriptedLocal(*pieces).open([Turn("user", "a b")], Sampling()).result()


def tape(session: LocalSession, rule: Rule = Rule()) -> list[str]:  # noqa: B008 - frozen
    texts = []
    while not (step := session.decode(Decode(rule=rule)).result()).eog:
        texts.append(step.text)
    return texts


def attempt(n: int = 9) -> Attempt:
    return Attempt((), "", n)


def test_they_are_accepted_where_the_real_ones_are() -> None:
    assert isinstance(ScriptedLocal(), LocalModel)
    assert isinstance(ScriptedDelegate(), Delegate)


def test_pieces_are_tokens_and_then_the_tape_ends() -> None:
    assert tape(session("It is ", "so.")) == ["It is ", "so."]


def test_rewinding_does_not_wind_the_tape_back() -> None:
    local = ScriptedLocal("a", "b", "c")
    own = local.open([Turn("user", "?")], Sampling()).result()
    first = own.decode(Decode()).result()
    second = own.decode(Decode((first.id,))).result()
    third = own.decode(Decode((second.id, "x"), rewind=1)).result()
    assert third.text == "c"
    assert local.contexts == ["bx"]


@pytest.mark.parametrize(
    ("pieces", "left"),
    [
        (("a", "<call>8</call>", "b"), ["a", "b"]),
        (("a", "<ca", "ll>8", "</call>", "b"), ["a", "b"]),
        (("a", "b <", "call>8</call>", "c"), ["a", "c"]),
        (("a <", " b"), ["a <", " b"]),
        (("<call>1</call>", "<call>2</call>", "b"), ["b"]),
        (("<call>x</call>", "b"), ["b"]),
        (("a", "<call>7"), ["a"]),
    ],
)
def test_under_a_ban_pieces_through_the_end_of_the_command_are_skipped(
    pieces: tuple[str, ...], left: list[str]
) -> None:
    assert tape(session(*pieces), BAN) == left


def test_foreign_text_counts_one_token_per_word() -> None:
    own = session("a")
    own.feed(Feed(("two words",)))
    assert own.count("two words here") == 3
    assert (own.prompt_tokens, own.context_left) == (2, 4094)


def test_a_prompt_that_does_not_fit() -> None:
    lease = ScriptedLocal("a", n_ctx=2).open([Turn("user", "one two three")], Sampling())
    with pytest.raises(ContextOverflowError):
        lease.result()


def test_replies_come_call_after_call_and_the_last_repeats() -> None:
    delegate = ScriptedDelegate("one", "two", usage=(12, 3))
    texts = ["".join(d.text for d in delegate.stream(attempt())) for _ in range(3)]
    assert texts == ["one", "two", "two"]
    assert len(delegate.attempts) == 3


def test_a_reply_streams_by_words_with_usage_at_the_end() -> None:
    deltas = list(ScriptedDelegate("one two ", usage=(12, 3)).stream(attempt()))
    assert [d.text for d in deltas] == ["one", " two ", ""]
    assert deltas[-1] == Delta(usage=Usage(12, 3), finish="stop", model="scripted")


def test_a_reply_longer_than_its_limit_is_cut() -> None:
    deltas = list(ScriptedDelegate("one two three").stream(attempt(2)))
    assert "".join(d.text for d in deltas) == "one two"
    assert deltas[-1].finish == "length"


def test_async_plays_the_same() -> None:
    async def play() -> list[Delta]:
        return [d async for d in ScriptedDelegate("one two").astream(attempt())]

    assert asyncio.run(play()) == list(ScriptedDelegate("one two").stream(attempt()))


def test_a_failing_delegate_fails_and_then_answers() -> None:
    delegate = FailingDelegate(TimeoutError("slow"), times=2, then="text")
    for _ in range(2):
        with pytest.raises(DelegateError, match="TimeoutError: slow") as failed:
            list(delegate.stream(attempt()))
        assert failed.value.retryable
    assert next(d.text for d in delegate.stream(attempt())) == "text"


def test_an_error_of_ours_is_raised_as_it_is() -> None:
    error = DelegateError("no", retryable=False)
    with pytest.raises(DelegateError) as failed:
        list(FailingDelegate(error).stream(attempt()))
    assert failed.value is error
