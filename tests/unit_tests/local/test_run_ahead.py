"""Decoding before it is asked for: it shows in time, never in text."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_relay.engine.errors import LocalModelError, UsageMistake
from langchain_relay.engine.events import Decode, Feed
from langchain_relay.engine.values import FREE, Rule, Sampling, Step, Turn
from langchain_relay.local import LlamaCppModel
from langchain_relay.local.decoder import PACE_S, RUN_AHEAD, RUN_AHEAD_BESIDE
from langchain_relay.local.engine import Engine
from langchain_relay.local.inbox import Ask
from langchain_relay.local.lease import Ahead, Taken
from tests.unit_tests.local.counting import TIMEOUT_S, Counting

LATE = Rule(ban=("Dx",))


def model_on(context, run_ahead=RUN_AHEAD, n=2):
    """A model whose engine decodes on `context`."""
    model = LlamaCppModel(share=False, max_concurrency=n)
    engine = Engine(lambda: context, max_concurrency=n, n_batch=8, run_ahead=run_ahead)
    model._runner = engine
    engine.start()
    return model


@pytest.fixture
def context():
    return Counting()


@pytest.fixture
def model(context):
    model = model_on(context)
    yield model
    model._runner.stop()


def session(model, text="A"):
    return session_soon(model, text).result(TIMEOUT_S)


def session_soon(model, text):
    return model.open([Turn("user", text)], Sampling())


def step(session, *append, **ask):
    return session.decode(Decode(append, **ask)).result(TIMEOUT_S)


def until(condition):
    """Wait for the engine thread, which nobody can ask whether it rests."""
    for _ in range(100 * TIMEOUT_S):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("the engine did not get there")


def test_the_next_steps_are_decoded_while_nobody_asks(model, context):
    answer = session(model)
    got = step(answer)
    until(lambda: answer.evaluated_tokens == 1 + RUN_AHEAD)
    assert got.text == "B"
    assert context.cache[0] == list(b"ABCDEFGHI")


def test_what_was_guessed_is_there_at_once_and_makes_room(model):
    answer = session(model)
    last = step(answer)
    until(lambda: answer.evaluated_tokens == 1 + RUN_AHEAD)
    text = last.text
    for _ in range(5):
        future = answer.decode(Decode((last.id,)))
        assert future.done()
        last = future.result()
        text += last.text
    assert text == "BCDEFG"
    until(lambda: answer.evaluated_tokens == 1 + RUN_AHEAD + 5)
    assert answer.wasted_tokens == 0


def test_a_guess_that_was_wrong_leaves_no_trace(model, context):
    answer = session(model)
    step(answer)
    until(lambda: answer.evaluated_tokens == 1 + RUN_AHEAD)
    assert step(answer, ord("x")).text == "y"
    assert answer.wasted_tokens == RUN_AHEAD
    assert context.cache[0][:2] == list(b"Ax")
    assert step(answer, rewind=1).text == "B"


def test_another_rule_is_not_answered_with_what_was_decoded_under_the_last(model):
    answer = session(model, "C")
    got = step(answer)
    until(lambda: answer.evaluated_tokens == 1 + RUN_AHEAD)
    assert step(answer, got.id, rule=Rule(ban=("Ex",))).text == "?"


def test_a_feed_comes_between(model):
    answer = session(model)
    got = step(answer)
    until(lambda: answer.evaluated_tokens == 1 + RUN_AHEAD)
    answer.feed(Feed((got.id, "xy")))
    assert step(answer, got.id).text == "C"
    assert bytes(answer._lease.sequence.tokens).startswith(b"ABxyB")


def test_a_chat_that_rests_takes_no_time_from_others_and_goes_on_when_it_is_asked(
    model, context, monkeypatch
):
    monkeypatch.setattr("langchain_relay.local.decoder.PACE_S", 0)  # each step is given at once
    context.gate = threading.Event()
    answer = session_soon(model, "A").result(TIMEOUT_S)
    future = answer.decode(Decode())
    answer.rest()  # before anything was decoded ahead
    context.gate.set()
    got = future.result(TIMEOUT_S)
    assert answer.evaluated_tokens == 1
    context.turnstile = threading.Semaphore(0)
    text = ""
    for _ in range(2 * RUN_AHEAD):
        future = answer.decode(Decode((got.id,)))
        context.turnstile.release()
        got = future.result(TIMEOUT_S)
        text += got.text
        answer.rest()  # the engine may have begun one more
    assert text == "CDEFGHIJKLMNOPQR"
    context.turnstile.release(100)
    threading.Event().wait(0.1)  # long enough for all it would decode ahead
    assert answer.evaluated_tokens <= 1 + len(text) + 1


def test_nothing_is_decoded_behind_an_end(model, context):
    context.is_eog = lambda token: token == ord("D")
    answer = session(model)
    first = step(answer)
    second = step(answer, first.id)
    assert step(answer, second.id).eog
    assert answer.evaluated_tokens == 3
    assert step(answer, rewind=1).text == "C"


def test_nothing_is_decoded_beyond_the_context(model, context):
    answer = session(model, "x" * 46)
    step(answer)
    until(lambda: answer.evaluated_tokens == 50)
    assert len(context.cache[0]) == 50


def test_a_guess_that_cannot_be_decoded_fails_only_if_it_is_asked_for(model, context):
    context.poison = ord("D")
    answer = session(model)
    first = step(answer)
    second = step(answer, first.id)
    third = step(answer, second.id)
    assert third.text == "D"
    with pytest.raises(LocalModelError, match="poison"):
        step(answer, third.id)
    assert step(answer, ord("x"), rewind=1).text == "y"


def test_beside_others_less_is_guessed(context):
    model = model_on(context)
    silent, busy = session(model, "A"), session(model, "a")
    step(silent)
    until(lambda: silent.evaluated_tokens == 1 + RUN_AHEAD)
    step(silent, ord("K"))  # all of it was wrong
    until(lambda: silent.evaluated_tokens == 2 + 2 * RUN_AHEAD)
    silent.close()
    silent = session(model, "Z")
    context.turnstile = threading.Semaphore(0)  # one batch at a time, while `busy` waits for it
    asks = [silent.decode(Decode()), busy.decode(Decode())]
    context.turnstile.release(2)
    last = [ask.result(TIMEOUT_S) for ask in asks][1]
    for _ in range(12):
        ask = busy.decode(Decode((last.id,)))
        if not ask.done():
            context.turnstile.release()
        last = ask.result(TIMEOUT_S)
    assert silent.evaluated_tokens <= 2 + RUN_AHEAD_BESIDE < 1 + RUN_AHEAD
    busy.close()
    context.turnstile.release(100)
    until(lambda: silent.evaluated_tokens == 1 + RUN_AHEAD)
    model._runner.stop()


@pytest.fixture
def unhurried(monkeypatch):
    """A reader of a lone chat is woken when there is no other way."""
    monkeypatch.setattr("langchain_relay.local.decoder.PACE_S", 1e9)


@pytest.mark.usefixtures("unhurried")
def test_a_lone_reader_is_woken_for_several_steps(model, context):
    answer = session(model)
    context.turnstile = threading.Semaphore(1)
    first = step(answer)
    waiting = answer.decode(Decode((first.id,)))
    context.turnstile.release(RUN_AHEAD - 1)
    until(lambda: answer.evaluated_tokens == RUN_AHEAD)
    assert not waiting.done()
    context.turnstile.release()
    got = waiting.result(TIMEOUT_S)
    for _ in range(RUN_AHEAD - 1):
        ready = answer.decode(Decode((got.id,)))
        assert ready.done()
        got = ready.result()
    assert got.text == "J"
    context.turnstile.release(100)


@pytest.mark.usefixtures("unhurried")
def test_what_is_ready_is_given_before_anything_else_is_decoded(model, context):
    answer, other = session(model), session(model, "a")
    other.close()
    context.turnstile = threading.Semaphore(1)
    first = step(answer)
    waiting = answer.decode(Decode((first.id,)))
    context.turnstile.release()
    until(lambda: answer.evaluated_tokens == 2)
    assert not waiting.done()
    late = session_soon(model, "b")
    context.turnstile.release()
    asked = late.result(TIMEOUT_S).decode(Decode())
    context.turnstile.release()
    assert waiting.result(TIMEOUT_S).text == "C"
    context.turnstile.release(100)
    assert asked.result(TIMEOUT_S).text == "c"


def waiting_for_what_is_ready(answer, context):
    """A future whose step is sampled, and others behind it, and which was not given it yet."""
    context.turnstile = threading.Semaphore(1)
    waiting = answer.decode(Decode((step(answer).id,)))
    context.turnstile.release(3)
    until(lambda: answer.evaluated_tokens == 4)
    assert not waiting.done()
    return waiting


@pytest.mark.usefixtures("unhurried")
def test_of_a_wait_that_was_cancelled_only_what_it_asked_for_stays(model, context):
    answer = session(model)
    assert waiting_for_what_is_ready(answer, context).cancel()
    asked = answer.decode(Decode((ord("x"),)))
    context.turnstile.release(100)
    assert asked.result(TIMEOUT_S).text == "y"
    until(lambda: bytes(answer._lease.sequence.tokens).startswith(b"ABxy"))


@pytest.mark.usefixtures("unhurried")
def test_a_feed_during_a_wait_comes_behind_what_that_asked_for(model, context):
    answer = session(model)
    waiting = waiting_for_what_is_ready(answer, context)
    answer.feed(Feed(("xy",)))
    context.turnstile.release(100)
    with pytest.raises(UsageMistake, match="fed while"):
        waiting.result(TIMEOUT_S)
    assert step(answer).text == "z"
    until(lambda: bytes(answer._lease.sequence.tokens).startswith(b"ABxyz"))


def test_who_has_waited_long_enough_is_woken_at_once(model, context, monkeypatch):
    monkeypatch.setattr("langchain_relay.local.decoder.PACE_S", 0)
    answer = session(model)
    context.turnstile = threading.Semaphore(2)
    first = step(answer)
    assert step(answer, first.id).text == "C"
    context.turnstile.release(100)


def test_a_chat_that_is_not_read_stops_nobody(model):
    unread, other = session(model), session(model, "a")
    unread.decode(Decode()).result(TIMEOUT_S)
    last = step(other)
    for _ in range(15):
        last = step(other, last.id)
    assert last.text == "q"


def test_a_forked_child_does_not_take_what_its_parent_decoded(model, monkeypatch):
    answer = session(model)
    got = step(answer)
    until(lambda: answer.evaluated_tokens == 1 + RUN_AHEAD)
    with monkeypatch.context() as patch:
        patch.setattr("langchain_relay.local.engine.os.getpid", lambda: -1)
        with pytest.raises(LocalModelError, match="forked"):
            step(answer, got.id)


def test_steps_are_taken_once_and_in_order():
    ahead = Ahead()
    nobody: Future[Step] = Future()
    ahead.give(Step(1, "a"), FREE, coming=True)
    for number in (2, 3):
        assert ahead.claim(2)
        ahead.push(Step(number, str(number)), coming=False)
    assert not ahead.claim(2)
    assert ahead.ask(Decode((9,)), nobody) is None
    assert ahead.ask(Decode((1,), rewind=1), nobody) is None
    assert ahead.ask(Decode((1,), rule=LATE), nobody) is None
    assert ahead.ask(Decode((1,)), nobody) == Taken(Step(2, "2"), engine_waits=True)
    assert ahead.ask(Decode((1,)), nobody) is None
    assert ahead.drop() == 1
    assert ahead.ask(Decode((2,)), nobody) is None
    assert ahead.drop() == 0


def test_a_step_that_is_coming_is_waited_for_by_one():
    ahead = Ahead()
    first: Future[Step] = Future()
    second: Future[Step] = Future()
    ahead.give(Step(1, "a"), FREE, coming=True)
    assert ahead.claim(1)
    assert ahead.ask(Decode((1,)), first) == Taken(None)
    assert ahead.ask(Decode((1,)), second) is None
    assert ahead.serve() is None
    ahead.push(Step(2, "b"), coming=False)
    assert ahead.serve() == (first, Step(2, "b"))
    assert ahead.serve() is None
    assert ahead.ask(Decode((2,)), second) is None  # nothing comes
    assert ahead.drop() == 0


def test_closing_fails_whoever_waits_for_a_step_that_comes(model, context):
    answer, other = session(model), session(model, "a")
    got = step(answer)
    until(lambda: answer.evaluated_tokens == 1 + RUN_AHEAD)
    context.turnstile = threading.Semaphore(0)
    context.entered.clear()
    running = other.decode(Decode())
    assert context.entered.wait(TIMEOUT_S)  # and in that batch there is no guess
    for _ in range(RUN_AHEAD):
        got = step(answer, got.id)
    waiting = answer.decode(Decode((got.id,)))
    assert not waiting.done()
    assert answer._lease.ahead.awaited is waiting
    second = answer.decode(Decode((got.id,)))
    answer.close()
    context.turnstile.release(100)
    with pytest.raises(UsageMistake, match="one token"):
        second.result(TIMEOUT_S)
    with pytest.raises(LocalModelError, match="closed"):
        waiting.result(TIMEOUT_S)
    running.result(TIMEOUT_S)


ASKS = st.lists(
    st.one_of(
        st.just("go on"),
        st.just("go on"),
        st.just("go on"),
        st.tuples(st.just("rewind"), st.integers(0, 3)),
        st.tuples(st.just("append"), st.sampled_from(["x", "BC", "é", " one two"])),
        st.tuples(st.just("feed"), st.sampled_from(["k", " cat", " a b"])),
        st.just("other rule"),
        st.just("rest"),
        st.just("cancel"),
    ),
    max_size=14,
)


def played(session, asks):
    """What `session` answers to `asks`; each ask is a function of the answers before it."""
    texts: list[str] = []
    last, behind = step(session), 0
    rule = FREE
    for ask in asks:
        append: tuple[int | str, ...] = (last.id,)
        rewind = 0
        match ask:
            case ("rewind", n):
                append, rewind = (), min(n, behind)
            case ("append", text):
                append = (last.id, text)
            case ("feed", text):
                session.feed(Feed((last.id, text)))
                append = ()
                behind += 1 + len(text.encode())
            case "other rule":
                rule = LATE if rule is FREE else FREE
            case "rest":
                session.rest()
            case "cancel":
                session.decode(Decode((last.id,), rule=rule)).cancel()
                behind += 1
                append = (ord("!"),)
        last = step(session, *append, rewind=rewind, rule=rule)
        behind += sum(len(a.encode()) if isinstance(a, str) else 1 for a in append) - rewind
        texts.append(last.text)
    return texts


@given(ASKS)
@settings(max_examples=60, deadline=None)
def test_whatever_is_asked_the_answers_are_those_without_running_ahead(asks):
    answers = []
    for run_ahead, pace_s in ((0, PACE_S), (RUN_AHEAD, 0), (RUN_AHEAD, 1e9), (1, 1e9)):
        context = Counting()
        context.n_ctx = 1000
        model = model_on(context, run_ahead)
        answer = session(model)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("langchain_relay.local.decoder.PACE_S", pace_s)
                answers.append(played(answer, asks))
        finally:
            answer.close()
            model._runner.stop()
    assert answers == [answers[0]] * len(answers)


# --- found by audit -----------------------------------------------------------------------------


def test_a_chat_that_rests_while_a_step_is_waited_for_is_given_that_step(model, context):
    answer = session(model)
    context.gate = threading.Event()
    asked = answer.decode(Decode())
    context.entered.clear()
    context.gate.set()
    got = asked.result(TIMEOUT_S)
    for _ in range(2 * RUN_AHEAD):  # in one of them the step is not there yet
        waiting = answer.decode(Decode((got.id,)))
        answer.rest()
        got = waiting.result(TIMEOUT_S)
    assert got.text == chr(ord("B") + 2 * RUN_AHEAD)


class _CancelledLate(Future[Step]):
    """Cancelled at the moment its step is there, and asked for again at that moment."""

    def __init__(self, ask_again):
        super().__init__()
        self._ask_again = ask_again

    def set_result(self, step):
        self.cancel()
        self._ask_again(step)
        super().set_result(step)  # raises InvalidStateError


def test_whoever_asks_between_a_cancelled_step_and_its_end_is_answered(model):
    answer = session(model)
    again = []
    late = _CancelledLate(lambda got: again.append(answer.decode(Decode((got.id,)))))
    model._runner.submit(Ask(answer._lease, Decode(), late))
    until(lambda: again)
    assert again[0].result(TIMEOUT_S).text == "C"
    assert step(answer, ord("x")).text == "y"
    assert bytes(answer._lease.sequence.tokens).startswith(b"ABxy")
