"""The engine thread over a context that counts instead of decoding."""

from __future__ import annotations

import threading
from concurrent.futures import wait

import pytest

from langchain_relay.engine.errors import (
    ContextOverflowError,
    LocalModelError,
    ModelNotFound,
    UsageMistake,
)
from langchain_relay.engine.events import Decode, Feed
from langchain_relay.engine.values import Rule, Sampling, Turn
from langchain_relay.local import LlamaCppModel, llamacpp
from langchain_relay.local.engine import Engine
from tests.unit_tests.local.counting import TIMEOUT_S, Counting


@pytest.fixture
def context():
    return Counting()


@pytest.fixture
def run_ahead():
    """Off, so that batches and counts are those of the asks; tests of running ahead set it."""
    return 0


@pytest.fixture
def model(monkeypatch, context, run_ahead):
    def start(settings):
        return Engine(lambda: context, max_concurrency=2, n_batch=8, run_ahead=run_ahead)

    monkeypatch.setattr(llamacpp, "_new_engine", start)
    with LlamaCppModel() as model:
        yield model


def opened(model, text="A"):
    return model.open([Turn("user", text)], Sampling())


def session(model, text="A"):
    return opened(model, text).result(TIMEOUT_S)


def step(session, *append, **ask):
    return session.decode(Decode(append, **ask)).result(TIMEOUT_S)


def write(session, n):
    text = ""
    append: tuple[int, ...] = ()
    for _ in range(n):
        got = step(session, *append)
        text, append = text + got.text, (got.id,)
    return text


def test_tokens_come_one_by_one(model):
    assert write(session(model), 5) == "BCDEF"


def test_an_end_token_has_no_text(model, context):
    context.is_eog = lambda token: token == ord("C")
    answer = session(model)
    step(answer)
    got = step(answer, ord("B"))
    assert (got.eog, got.text) == (True, "")


def test_each_token_is_evaluated_once(model, context):
    answer = session(model, "abc")
    write(answer, 4)
    assert answer.evaluated_tokens == 3 + 3
    assert context.cache[0] == list(b"abcdef")


def test_a_hand_over_evaluates_the_last_token_and_the_span(model):
    answer = session(model, "abc")
    got = step(answer)
    before = answer.evaluated_tokens
    answer.feed(Feed((got.id, "one tw")))
    answer.feed(Feed(("o",)))
    assert step(answer).text == "p"
    assert answer.evaluated_tokens - before == 1 + len("one two")


def test_asking_again_evaluates_the_last_token_again(model):
    answer = session(model)
    assert step(answer) == step(answer)
    assert answer.evaluated_tokens == 2


@pytest.mark.parametrize("forgets_parts", [True, False])
def test_a_rewind_leaves_the_cache_as_though_nothing_had_been(model, context, forgets_parts):
    context.forgets_parts = forgets_parts
    answer = session(model)
    first = write(answer, 3)
    assert step(answer, ord("x"), ord("y")).text == "z"
    assert step(answer, rewind=2).text == first[-1]
    assert context.cache[0] == list(b"ABC")


def test_a_rewind_into_the_prompt_is_refused_and_changes_nothing(model):
    answer = session(model)
    write(answer, 2)
    with pytest.raises(UsageMistake):
        step(answer, rewind=2)
    assert step(answer).text == "C"


def test_a_feed_fails_the_ask_before_it_and_nobody_else(model, context):
    answer, other = session(model), session(model, "a")
    context.gate = threading.Event()
    running = other.decode(Decode())
    asked = answer.decode(Decode(("q",)))
    answer.feed(Feed(("xy",)))
    context.gate.set()
    with pytest.raises(UsageMistake, match="fed while"):
        asked.result(TIMEOUT_S)
    assert running.result(TIMEOUT_S).text == "b"
    assert step(answer).text == "z"


def test_a_grammar_that_was_refused_is_refused_again(model, context):
    def refuse(text):
        raise UsageMistake(f"no grammar: {text}")

    answer, rule = session(model), Rule(grammar="x")
    context.grammar = refuse
    for _ in range(2):
        with pytest.raises(UsageMistake, match="no grammar: x"):
            step(answer, rule=rule)
    assert step(answer).text == "B"


def test_a_wrong_feed_is_reported_by_the_next_decode(model):
    answer = session(model)
    answer.feed(Feed(("x",), rewind=5))
    with pytest.raises(UsageMistake):
        step(answer)
    assert step(answer).text == "B"


def test_what_begins_a_banned_string_is_replaced(model):
    rule = Rule(ban=("BCx",))
    answer = session(model)
    assert step(answer, rule=rule).text == "B"
    assert step(answer, ord("B"), rule=rule).text == "?"
    answer.feed(Feed(("B",)))
    # The same characters in foreign text begin nothing.
    assert step(answer, rule=rule).text == "C"


def test_a_ban_of_everything_fails_that_ask_only(model, context, monkeypatch):
    answer = session(model)
    with monkeypatch.context() as patch, pytest.raises(LocalModelError, match="banned"):
        patch.setattr(context, "logits", lambda row: [0.0] * 128)
        patch.setattr(context, "is_eog", lambda token: False)
        step(answer, rule=Rule(ban=tuple(map(chr, range(128)))))
    assert step(answer).text == "B"


def test_a_rule_that_cannot_be_followed_is_refused(model):
    answer = session(model)
    with pytest.raises(UsageMistake, match="mood"):
        step(answer, rule=Rule(signals=frozenset({"mood"})))
    assert step(answer, rule=Rule(signals=frozenset({"margin"}))).signals == {"margin": 1.0}


# --- many at once -------------------------------------------------------------------------------


def test_active_sequences_share_a_batch_and_waiting_ones_are_left_out(model, context):
    context.gate = threading.Event()
    first, second = session(model, "A"), session(model, "a")
    asks = [first.decode(Decode()), second.decode(Decode())]
    assert context.entered.wait(TIMEOUT_S)
    context.gate.set()
    wait(asks, TIMEOUT_S)
    context.gate.clear()
    context.entered.clear()
    stopper = first.decode(Decode((ord("B"),)))
    assert context.entered.wait(TIMEOUT_S)  # the next asks meet a busy engine
    second_ask = second.decode(Decode((ord("b"),)))
    context.gate.set()
    wait([stopper, second_ask], TIMEOUT_S)
    asks = [first.decode(Decode((ord("C"),))), second.decode(Decode((ord("c"),)))]
    wait(asks, TIMEOUT_S)
    assert [ask.result().text for ask in asks] == ["D", "d"]
    assert write(second, 1) == "d"
    assert context.batches[-1] == {1: 1}


def test_neighbouring_sequences_are_lent_first(model):
    first, second = session(model), session(model)
    second.close()
    first.close()
    assert session(model)._lease.sequence.id == 0


def test_a_batch_is_in_the_order_of_sequences(model, context):
    long, short = session(model, "x" * 20), session(model, "A")
    context.gate = threading.Event()
    running = long.decode(Decode())
    assert context.entered.wait(TIMEOUT_S)
    beside = short.decode(Decode())  # one token, so its row is planned first
    context.gate.set()
    running.result(TIMEOUT_S)
    beside.result(TIMEOUT_S)
    assert [list(batch) for batch in context.batches[:2]] == [[0], [0, 1]]


def test_a_long_prompt_is_evaluated_in_pieces_beside_the_others(model, context):
    short = session(model, "A")
    got = step(short)
    context.gate = threading.Event()
    context.entered.clear()
    other = session(model, "x" * 20)
    long = other.decode(Decode())
    assert context.entered.wait(TIMEOUT_S)
    beside = short.decode(Decode((got.id,)))
    context.gate.set()
    assert beside.result(TIMEOUT_S).text == "C"
    assert long.result(TIMEOUT_S).text == "y"
    pieces = context.batches[1:]
    assert pieces[0] == {1: 8}
    assert pieces[1] == {0: 1, 1: 7}
    assert sum(batch.get(1, 0) for batch in pieces) == 20


def test_opens_beyond_the_sequences_queue_in_order(model):
    holders = [session(model), session(model)]
    queued = [opened(model, f"{i}") for i in range(3)]
    model.count("wait for the engine")
    assert not any(future.done() for future in queued)
    holders[0].close()
    assert write(queued[0].result(TIMEOUT_S), 1) == "1"
    assert not queued[1].done()
    queued[0].result().close()
    assert write(queued[1].result(TIMEOUT_S), 1) == "2"
    assert not queued[2].done()


def test_an_open_cancelled_in_the_queue_is_passed_over(model):
    holders = [session(model), session(model)]
    queued = [opened(model, f"{i}") for i in range(2)]
    assert queued[0].cancel()
    holders[0].close()
    assert write(queued[1].result(TIMEOUT_S), 1) == "2"


def test_closing_gives_back_a_sequence_while_it_decodes(model, context):
    context.gate = threading.Event()
    holder, other = session(model), session(model)
    asked = holder.decode(Decode())
    assert context.entered.wait(TIMEOUT_S)
    holder.close()
    holder.close()
    queued = opened(model, "a")
    context.gate.set()
    assert write(queued.result(TIMEOUT_S), 3) == "bcd"
    # The decode that was running may have been in time.
    assert asked.exception(TIMEOUT_S) is None or "closed" in str(asked.exception())
    assert write(other, 2) == "BC"


def test_closing_fails_an_ask_that_is_not_decoded_yet(model, context):
    context.gate = threading.Event()
    busy, holder = session(model), session(model)
    running = busy.decode(Decode())
    assert context.entered.wait(TIMEOUT_S)
    asked = holder.decode(Decode())
    holder.close()
    context.gate.set()
    with pytest.raises(LocalModelError, match="closed"):
        asked.result(TIMEOUT_S)
    assert running.result(TIMEOUT_S).text == "B"


def test_a_session_that_is_forgotten_is_given_back(model):
    holders = [session(model), session(model)]
    queued = opened(model)
    del holders
    assert write(queued.result(TIMEOUT_S), 1) == "B"


def test_a_cancelled_decode_does_not_disturb_the_session(model, context):
    context.gate = threading.Event()
    busy, holder = session(model), session(model)
    running = busy.decode(Decode())
    assert context.entered.wait(TIMEOUT_S)
    asked = holder.decode(Decode((ord("p"),)))
    assert asked.cancel()
    context.gate.set()
    running.result(TIMEOUT_S)
    assert step(holder).text == "q"


def test_a_second_ask_before_the_first_is_answered_is_refused(model, context):
    context.gate = threading.Event()
    answer = session(model)
    first = answer.decode(Decode())
    second = answer.decode(Decode())
    context.gate.set()
    assert first.result(TIMEOUT_S).text == "B"
    with pytest.raises(UsageMistake, match="one token at a time"):
        second.result(TIMEOUT_S)


def test_a_closed_session_decodes_no_more(model):
    answer = session(model)
    answer.close()
    with pytest.raises(LocalModelError, match="closed"):
        step(answer)


# --- failure ------------------------------------------------------------------------------------


def test_a_prompt_that_does_not_fit_says_both_numbers(model):
    with pytest.raises(ContextOverflowError, match=r"60 tokens.*50.*n_ctx") as caught:
        session(model, "x" * 60)
    assert (caught.value.needed_tokens, caught.value.n_ctx) == (61, 50)


def test_an_answer_that_no_longer_fits_says_both_numbers(model):
    answer = session(model, "x" * 45)
    answer.feed(Feed(("y" * 6,)))
    with pytest.raises(ContextOverflowError) as caught:
        step(answer)
    assert (caught.value.needed_tokens, caught.value.n_ctx) == (51, 50)
    assert step(answer, rewind=1).text == "z"


def test_a_failing_decode_fails_only_the_sequence_at_fault(model, context):
    busy, other = session(model, "x" * 20), session(model)
    context.gate = threading.Event()
    context.poison = ord("!")
    running = busy.decode(Decode())
    assert context.entered.wait(TIMEOUT_S)
    poisoned = other.decode(Decode((ord("!"),)))  # shares a batch with the rest of the prompt
    context.gate.set()
    with pytest.raises(LocalModelError, match=r"error -3.*poison"):
        poisoned.result(TIMEOUT_S)
    assert running.result(TIMEOUT_S).text == "y"
    assert step(other, rewind=1).text == "B"
    assert context.cache == {0: [ord("x")] * 20, 1: [ord("A")]}


def test_an_engine_that_fails_fails_everybody_and_the_next_open_starts_anew(model, context):
    holder, other = session(model), session(model)
    queued = opened(model)
    context.crash = True
    with pytest.raises(LocalModelError, match="out of my mind"):
        step(holder)
    for future in (queued, other.decode(Decode())):
        with pytest.raises(LocalModelError):
            future.result(TIMEOUT_S)
    context.crash = False
    context.cache.clear()
    assert write(session(model), 1) == "B"


def test_a_model_that_does_not_load_says_why_to_everybody_who_waits(monkeypatch):
    def start(settings):
        return Engine(load, max_concurrency=1, n_batch=8)

    def load():
        assert gate.wait(TIMEOUT_S)
        raise ModelNotFound("gone")

    gate = threading.Event()
    monkeypatch.setattr(llamacpp, "_new_engine", start)
    with LlamaCppModel() as model:
        futures = [opened(model), opened(model)]
        gate.set()
        for future in futures:
            with pytest.raises(ModelNotFound, match="gone"):
                future.result(TIMEOUT_S)
        assert not model.loaded
        with pytest.raises(ModelNotFound, match="gone"):
            model.count("and again at the next try")


def test_closing_the_model_fails_what_is_pending_and_frees_once(model, context):
    holder = session(model)
    session_two = session(model)
    queued = opened(model)
    model.close()
    model.close()
    for future in (queued, holder.decode(Decode())):
        with pytest.raises(LocalModelError, match="closed"):
            future.result(TIMEOUT_S)
    with pytest.raises(LocalModelError, match="closed"):
        opened(model)
    session_two.close()
    assert context.freed == 1


def test_a_model_that_is_forgotten_is_freed_and_its_open_session_is_not_broken(
    monkeypatch, context
):
    engine = Engine(lambda: context, max_concurrency=2, n_batch=8)
    engine.start()
    monkeypatch.setattr(llamacpp, "_new_engine", lambda settings: engine)
    answer = session(LlamaCppModel())
    assert write(answer, 3) == "BCD"
    del answer
    engine._thread.join(TIMEOUT_S)
    assert not engine._thread.is_alive()
    assert context.freed == 1


def test_many_threads_get_their_own_answers(model):
    def answer(letter):
        got = session(model, letter)
        try:
            texts[letter] = write(got, 10)
        finally:
            got.close()

    texts: dict[str, str] = {}
    threads = [threading.Thread(target=answer, args=(chr(65 + i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert texts == {chr(65 + i): "".join(chr(66 + i + j) for j in range(10)) for i in range(8)}


# --- what is in the cache already ---------------------------------------------------------------

SYSTEM = "You are a guide to an old city, "  # 32 bytes, as much as is worth a copy


@pytest.fixture
def roomy(monkeypatch, context):
    """Four sequences with room for long prompts."""
    context.n_ctx = 1000

    def start(settings):
        return Engine(lambda: context, max_concurrency=4, n_batch=64, run_ahead=0)

    monkeypatch.setattr(llamacpp, "_new_engine", start)
    with LlamaCppModel() as model:
        yield model


def test_a_later_turn_evaluates_what_is_new(roomy, context):
    answer = session(roomy, "a long question")
    text = write(answer, 3)
    answer.feed(Feed((ord(text[-1]),)))
    answer.close()
    turns = [Turn("user", "a long question"), Turn("assistant", text), Turn("user", "more")]
    later = roomy.open(turns, Sampling()).result(TIMEOUT_S)
    step(later)
    assert later.cached_tokens >= len("a long question") + 2
    assert later.evaluated_tokens == later.prompt_tokens - later.cached_tokens
    assert bytes(context.cache[0]) == b"a long question" + text.encode() + b"more"


def test_a_shared_beginning_is_copied_before_anything_can_move_it(roomy, context):
    """Four chats come at once: two share a beginning, two change places with idle ones."""
    idle = [session(roomy, f"{number} idle chat with a text of its own") for number in range(4)]
    for one in idle:
        step(one)
    for one in idle:
        one.close()
    holder = session(roomy, SYSTEM + "first")
    step(holder)
    futures = [
        opened(roomy, text)
        for text in (SYSTEM + "second question", "3 idle chat with a text of its own, and more")
    ]
    sessions = [future.result(TIMEOUT_S) for future in futures]
    assert sessions[0].cached_tokens >= 32
    for one, text in zip(sessions, ("o", "f"), strict=True):
        assert step(one).text == text


def test_a_copy_that_leaves_one_token_keeps_the_scores_behind_it(roomy):
    holder = session(roomy, SYSTEM + "x")
    step(holder)
    other = session(roomy, SYSTEM + "x")
    before = other.evaluated_tokens
    assert step(other).text == "y"
    assert (before, other.evaluated_tokens) == (1, 1)


def test_an_exchange_that_fails_costs_the_cache_and_nothing_else(roomy, context):
    context.exchanges = False
    first = session(roomy, "first chat")
    step(first)
    third = [session(roomy, f"{n} chat") for n in range(3)]
    for one in third:
        step(one)
    for one in (first, *third[:2]):
        one.close()
    assert write(session(roomy, "first chat, later"), 3) == "stu"


# --- found by review ----------------------------------------------------------------------------


def test_scores_kept_behind_fed_text_are_not_those_of_a_shorter_text(model, context):
    answer = session(model)
    step(answer)
    answer.feed(Feed((ord("B"), "xy")))
    while len(context.cache[0]) < 4:
        threading.Event().wait(0.001)
    assert step(answer, rewind=1).text == "y"


@pytest.mark.parametrize("part", ["copy", "exchange", "cut"])
def test_whoever_is_given_a_sequence_hears_of_anything(roomy, context, monkeypatch, part):
    idle = [session(roomy, f"{number} idle chat with a text of its own") for number in range(3)]
    for one in idle:
        step(one)
    for one in idle:
        one.close()
    holder = session(roomy, SYSTEM + "first")
    step(holder)

    def broken(*args):
        raise MemoryError("none left")

    with monkeypatch.context() as patch:
        patch.setattr(context, part, broken)
        text = SYSTEM + "second" if part == "copy" else "0 idle chat with a text of its own, too"
        try:
            session(roomy, text).close()
        except LocalModelError as error:
            assert "none left" in str(error)  # noqa: PT017 - it may also not be needed
    assert write(session(roomy, "after that"), 2) == "uv"


def test_closing_does_not_hang_when_the_engine_fails_over_it(roomy, monkeypatch):
    other = LlamaCppModel()
    other.count("x")
    session(other)

    def broken(lease, why):
        raise MemoryError("none left")

    assert roomy._runner is None or roomy.shares_engine(other)
    roomy.count("x")
    assert other._runner is not None
    monkeypatch.setattr(other._runner._leases, "take_back", broken)
    other.close()
    with pytest.raises(LocalModelError, match="none left"):
        session(roomy)._engine.loaded.result(TIMEOUT_S)
        raise LocalModelError("none left")


def test_fed_text_that_cannot_be_decoded_is_tried_once(model, context):
    answer = session(model)
    step(answer)
    context.poison = ord("!")
    before = len(context.tried)
    answer.feed(Feed((ord("B"), "no!")))
    while len(context.tried) == before:
        threading.Event().wait(0.001)
    before = len(context.tried)
    threading.Event().wait(0.05)
    assert len(context.tried) == before
    with pytest.raises(LocalModelError, match="poison"):
        step(answer)


def test_a_context_is_freed_though_the_engine_fails_to_start(context):
    def broken(context):
        raise ModelNotFound("renamed")

    engine = Engine(lambda: context, max_concurrency=2, n_batch=8, files=broken)
    engine.start()
    with pytest.raises(ModelNotFound, match="renamed"):
        engine.loaded.result(TIMEOUT_S)
    engine._thread.join(TIMEOUT_S)
    assert context.freed == 1


def test_an_answer_that_ends_with_a_long_word_is_remembered_whole(roomy):
    answer = session(roomy, "a question")
    got = step(answer)
    answer.feed(Feed((got.id, "字" * 70)))
    answer.close()
    turns = [Turn("user", "a question"), Turn("assistant", got.text + "字" * 70)]
    assert roomy.open(turns, Sampling()).result(TIMEOUT_S).prompt_tokens
    assert roomy._runner._leases._lender._answers.find(turns)


def test_a_copy_whose_decode_raises_ends_the_engine_and_loses_no_sequence(roomy, context):
    holder = session(roomy, SYSTEM + "first")
    step(holder)

    def broken_once(rows, **how):
        del context.decode
        raise MemoryError("none left")

    context.decode = broken_once
    with pytest.raises(LocalModelError, match="none left"):
        session(roomy, SYSTEM + "second")
    roomy._runner._thread.join(TIMEOUT_S)
    with pytest.raises(LocalModelError, match="none left"):
        step(holder)
    others = [session(roomy, f"{number}") for number in range(4)]
    assert [step(one).text for one in others] == ["1", "2", "3", "4"]
