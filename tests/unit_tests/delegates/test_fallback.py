"""Several hosted models in one hand-over: who goes on, with what, at whose price."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.rate_limiters import BaseRateLimiter

from langchain_relay.delegates import FallbackDelegate
from langchain_relay.delegates.asks import Abandoned, HandOver, Next, Send
from langchain_relay.delegates.breaker import OPEN_S, OPENS_AFTER, Breakers
from langchain_relay.delegates.handover import hand_over
from langchain_relay.delegates.terms import Member, Terms
from langchain_relay.engine.errors import BudgetExceeded, CircuitOpen, DelegateError
from langchain_relay.engine.ledger import Amount, Ledger, Limit, MemoryLedger, Reservation
from langchain_relay.engine.values import (
    Attempt,
    Delta,
    Opened,
    SpanEnd,
    SpanPiece,
    SpanRequest,
    Usage,
)
from langchain_relay.errors import UnknownDelegate, UsageMistake
from langchain_relay.prices import UserPrice
from langchain_relay.testing import FailingDelegate, ScriptedDelegate
from tests.unit_tests.delegates.test_handover import (
    ACCOUNT,
    BOUND,
    COLOURS,
    WORST_8,
    Item,
    Tape,
    carry_out,
    done,
    text,
)

CHEAP = UserPrice(Decimal("0.1"), Decimal("0.2"))  # 100 and 200 nano-dollars per token
CHEAP_WORST_8 = BOUND * 100 + 8 * 200

FINAL = DelegateError("403", retryable=False, sent=False, answered=True)
CUT = DelegateError("reset", retryable=False)
BUSY = DelegateError("503", retryable=True, sent=False, answered=True, retry_after_s=0.0)
SILENT = DelegateError("refused", retryable=True, sent=False, answered=False, retry_after_s=0.0)


@dataclass
class Hosted(Tape):
    """A tape at a base URL."""

    base_url: str | None = None


def tape(*attempts: list[Item], host: str | None = None, **facts: Any) -> Tape:
    return Hosted(attempts, base_url=host, **facts)


def second(*attempts: list[Item], **facts: Any) -> Member:
    return Member(tape(*attempts, **{"model": "b", **facts}), CHEAP)


def asked(member: Member) -> list[Attempt]:
    assert isinstance(member.delegate, Tape)
    return member.delegate.attempts


# --- the next model goes on ---------------------------------------------------------------------


@COLOURS
def test_the_next_model_goes_on_from_what_arrived_with_what_is_left_of_n(colour: str):
    first, other = tape([*text(" one", " two"), CUT]), second([*text(" three"), done(20, 1)])
    result = carry_out(first, fallbacks=(other,), colour=colour)
    assert (result.text, result.end.why) == (" one two three", "stop")
    assert [(a.draft, a.max_tokens) for a in asked(other)] == [("It is one two", 6)]


@COLOURS
def test_each_attempt_is_booked_at_its_own_models_price_under_its_name(colour: str):
    first, other = tape([*text(" one"), CUT]), second([*text(" two"), done(20, 1)])
    result = carry_out(first, fallbacks=(other,), colour=colour)
    charges = [(c.model, c.attempt, c.cost_nanousd, c.estimated) for c in result.end.charges]
    assert charges == [("m", 1, WORST_8, True), ("b", 2, 20 * 100 + 200, False)]
    assert result.spent == Amount(WORST_8 + 2_200, 8 + 1, 2)
    assert (result.opened, result.end.model) == (Opened("m", 8), "b")


def test_retries_are_used_up_first():
    first, other = tape([BUSY]), second([*text(" x"), done()])
    result = carry_out(first, fallbacks=(other,), max_retries=2)
    assert (len(first.attempts), len(asked(other)), result.text) == (3, 1, " x")


def test_each_model_has_its_own_retries():
    first, other = tape([BUSY]), second([BUSY], [BUSY], [*text(" x"), done()])
    assert carry_out(first, fallbacks=(other,), max_retries=2).text == " x"
    assert (len(first.attempts), len(asked(other))) == (3, 3)


def test_what_is_not_retryable_goes_to_the_next_at_once():
    first, other = tape([FINAL]), second([*text(" x"), done()])
    assert carry_out(first, fallbacks=(other,)).text == " x"
    assert len(first.attempts) == 1


def test_a_wait_that_does_not_fit_the_deadline_goes_to_the_next():
    first, other = tape([replaced(BUSY, retry_after_s=60.0)]), second([*text(" x"), done()])
    assert carry_out(first, fallbacks=(other,), timeout_s=5.0).text == " x"


def replaced(error: DelegateError, **facts: Any) -> DelegateError:
    return DelegateError(str(error), **{**error.__dict__, **facts})


def test_the_last_models_error_is_the_hand_overs():
    last = DelegateError("401", retryable=False, sent=False)
    result = carry_out(tape([FINAL]), fallbacks=(second([last]),))
    assert (result.end.why, result.end.error, result.end.model) == ("failed", last, "b")
    assert [c.released for c in result.end.charges] == [True, True]


def test_who_wrote_is_named_and_not_who_was_asked_in_vain():
    result = carry_out(tape([*text(" one"), CUT]), fallbacks=(second([FINAL]),))
    assert (result.text, result.end.model) == (" one", "m")


def test_nothing_left_of_n_asks_nobody():
    first, other = tape([*text(" one", " two"), CUT]), second([*text(" x"), done()])
    result = carry_out(first, n=2, fallbacks=(other,))
    assert (result.text, result.end.why, asked(other)) == (" one two", "length", [])


def test_an_attempt_that_used_up_the_deadline_leaves_nothing_to_the_next():
    clock = Clock()
    first, other = Late(clock, 5.0), second([*text(" x"), done()])
    result = carry_out(first, fallbacks=(other,), timeout_s=5.0, clock=clock)
    assert (result.end.why, asked(other)) == ("failed", [])
    first = Late(clock, 4.0)
    assert carry_out(first, fallbacks=(other,), timeout_s=5.0, clock=clock).text == " x"


def test_each_model_is_shown_the_draft_in_its_own_mode():
    echo = text("The sky above the sea is blue", " and wide.")
    first = tape([FINAL], mode="prefill")
    other = second([*echo, done()], mode="instruct")
    result = carry_out(first, draft="The sky above the sea is", fallbacks=(other,))
    assert result.text == " blue and wide."
    literal = second([*echo, done()], mode="prefill")
    result = carry_out(first, draft="The sky above the sea is", fallbacks=(literal,))
    assert result.text == "The sky above the sea is blue and wide."


def test_text_that_the_seam_withheld_is_not_lost_with_its_model():
    draft = "The sky above the sea is"
    first = tape([*text("The sky"), CUT], mode="instruct")  # it might have begun an echo
    other = second([*text(" end"), done()])
    result = carry_out(first, draft=draft, fallbacks=(other,))
    assert result.text == "The sky end"
    assert asked(other)[0].draft == f"{draft}The sky"


def test_each_model_waits_for_its_own_rate_limiter():
    mine, its = Counting(), Counting()
    other = replace(second([*text(" x"), done()]), rate_limiters=(its,))
    carry_out(tape([BUSY]), fallbacks=(other,), rate_limiters=(mine,), max_retries=1)
    assert (mine.asked, its.asked) == (2, 1)


# --- money --------------------------------------------------------------------------------------


@COLOURS
def test_a_refusal_in_usd_falls_through_to_the_cheaper_model(colour: str):
    first, other = tape([*text(" x"), done()]), second([*text(" y"), done(20, 1)])
    limits = {"cost_nanousd": WORST_8 - 1}
    result = carry_out(first, fallbacks=(other,), limits=limits, colour=colour)
    assert (result.text, result.opened, first.attempts) == (" y", Opened("b", 8), [])
    assert result.spent.cost_nanousd == 2_200


def test_a_refusal_in_usd_by_all_is_the_cheapest_ones():
    first, other = tape([]), second([])
    result = carry_out(first, fallbacks=(other,), limits={"cost_nanousd": CHEAP_WORST_8 - 1})
    assert (result.end.why, first.attempts, asked(other)) == ("refused", [], [])
    assert isinstance(result.end.error, BudgetExceeded)
    assert result.end.error.needed == CHEAP_WORST_8


@pytest.mark.parametrize("limits", [{"calls": 0}, {"tokens": 0}])
def test_a_refusal_of_calls_or_tokens_does_not(limits: dict[str, int]):
    first, other = tape([*text(" x"), done()]), second([*text(" y"), done()])
    result = carry_out(first, fallbacks=(other,), limits=limits)
    assert (result.end.why, asked(other)) == ("refused", [])


def test_a_refusal_of_the_next_model_keeps_text_and_charges():
    first, other = tape([*text(" one"), CUT]), second([*text(" y"), done()])
    result = carry_out(first, fallbacks=(other,), limits={"calls": 1})
    assert (result.text, result.end.why, len(result.end.charges)) == (" one", "refused", 1)


def test_a_request_that_cannot_be_built_starts_and_fails_and_costs_nothing():
    class Unbuildable(Tape):
        def input_bound(self, attempt: Attempt) -> int:
            raise ValueError("the chat template refuses these messages")

    result = carry_out(Unbuildable([[]]), limits={"calls": 1})
    assert (result.opened, result.end.why, result.spent) == (Opened("m", 8), "failed", Amount())
    assert "refuses these messages" in str(result.end.error)
    other = second([*text(" x"), done()])
    assert carry_out(Unbuildable([[]]), fallbacks=(other,)).text == " x"


# --- the breaker --------------------------------------------------------------------------------

HOST = "http://a/v1"


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class Late(Tape):
    """Fails after some of the clock's seconds."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__([[CUT]])
        self.clock, self.seconds = clock, seconds

    def _play(self, attempt: Attempt) -> Any:
        self.clock.now += self.seconds
        return super()._play(attempt)


class Counting(BaseRateLimiter):
    def __init__(self) -> None:
        self.asked = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.asked += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire()


def opened(host: str = HOST) -> Breakers:
    breakers = Breakers()
    for _ in range(OPENS_AFTER):
        breakers.failed(host, 0.0)
    return breakers


@COLOURS
def test_at_an_open_breaker_a_call_starts_fails_and_reserves_nothing(colour: str):
    first = tape([*text(" x"), done()], host=HOST)
    terms: dict[str, Any] = {"breakers": opened(), "clock": Clock(1.0)}
    # No call is allowed: had anything been reserved, it would have been refused.
    result = carry_out(first, limits={"calls": 0}, colour=colour, **terms)
    assert (result.opened, result.end.why) == (Opened("m", 8), "failed")
    assert (first.attempts, result.end.charges, result.spent) == ([], (), Amount())
    assert isinstance(result.end.error, CircuitOpen)
    assert str(result.end.error).startswith("circuit_open: http://a/v1 gave no response")
    assert "can be asked again in 29.0 s" in str(result.end.error)


@COLOURS
def test_at_an_open_breaker_the_next_model_is_asked_at_once(colour: str):
    first, other = tape([], host=HOST), second([*text(" x"), done()], host="http://b/v1")
    result = carry_out(first, fallbacks=(other,), breakers=opened(), clock=Clock(), colour=colour)
    assert (result.text, result.opened, first.attempts) == (" x", Opened("b", 8), [])
    assert [charge.model for charge in result.end.charges] == ["b"]


@COLOURS
def test_a_breaker_that_opens_ends_the_retries(colour: str):
    breakers, first = Breakers(), tape([SILENT], host=HOST)
    result = carry_out(first, max_retries=9, breakers=breakers, clock=Clock(), colour=colour)
    assert (len(first.attempts), result.end.why, result.end.error) == (5, "failed", SILENT)
    assert breakers.left_s(HOST, 0.0) == OPEN_S


@pytest.mark.parametrize(
    "items",
    [
        [BUSY],
        [FINAL],
        [Delta(), SILENT],
        [*text(" x"), SILENT],
        [*text(" x"), done()],
    ],
    ids=["a busy status", "a final status", "a header", "text", "a good answer"],
)
def test_any_response_resets_the_count(items: list[Item]):
    breakers = Breakers()
    for _ in range(OPENS_AFTER - 1):
        breakers.failed(HOST, 0.0)
    carry_out(tape(items, host=HOST), max_retries=0, breakers=breakers, clock=Clock())
    breakers.failed(HOST, 0.0)
    assert breakers.left_s(HOST, 0.0) == 0


def test_errors_that_say_nothing_of_the_host_do_not_count():
    breakers = Breakers()
    for error in (CUT, DelegateError("a bug", sent=False)):
        for _ in range(9):
            carry_out(tape([error], host=HOST), breakers=breakers, clock=Clock())
    assert breakers.left_s(HOST, 0.0) == 0


def test_a_dead_host_costs_one_attempt_in_30_s():
    breakers, clock, first = Breakers(), Clock(), tape([SILENT], host=HOST)
    sent: list[float] = []
    for second_ in range(120):
        clock.now = float(second_)
        before = len(first.attempts)
        carry_out(first, max_retries=0, breakers=breakers, clock=clock)
        sent += [clock.now] * (len(first.attempts) - before)
    assert sent == [0, 1, 2, 3, 4, 34, 64, 94]


def test_for_a_host_whose_breaker_opens_nobody_waits():
    before = time.monotonic()
    slow = replaced(SILENT, retry_after_s=3.0)
    carry_out(tape([slow], host=HOST), breakers=opened(), clock=Clock(OPEN_S))
    assert time.monotonic() - before < 2


def test_a_probing_attempt_is_not_retried():
    breakers, first = opened(), tape([SILENT], host=HOST)
    carry_out(first, max_retries=9, breakers=breakers, clock=Clock(OPEN_S))
    assert len(first.attempts) == 1


def test_a_budget_that_refuses_does_not_take_the_turn_of_the_probing_attempt():
    breakers = opened()
    terms: dict[str, Any] = {"breakers": breakers, "clock": Clock(OPEN_S)}
    refused = carry_out(tape([], host=HOST), limits={"calls": 0}, **terms)
    assert refused.end.why == "refused"
    assert carry_out(tape([*text(" x"), done()], host=HOST), **terms).text == " x"


@COLOURS
def test_who_loses_the_race_for_the_probing_attempt_gives_the_money_back(colour: str):
    breakers = opened()

    class Overtakes(Counting):
        def acquire(self, *, blocking: bool = True) -> bool:
            return breakers.send(HOST, OPEN_S) == 0

    first = tape([*text(" x"), done()], host=HOST)
    result = carry_out(
        first, breakers=breakers, clock=Clock(OPEN_S), rate_limiters=(Overtakes(),), colour=colour
    )
    assert (first.attempts, result.end.why, result.spent) == ([], "failed", Amount())
    assert isinstance(result.end.error, CircuitOpen)
    assert not result.ledger._open


# --- the delegate -------------------------------------------------------------------------------


def test_it_is_a_delegate_named_after_its_first_model():
    a, b = ScriptedDelegate("x", model="a"), ScriptedDelegate("y", model="b", mode="instruct")
    both = FallbackDelegate(a, b)
    assert (both.model, both.mode, both.worst_attempts) == ("a", "prefill", 1)
    assert both.fingerprint["members"] == [a.fingerprint, b.fingerprint]
    attempt = Attempt((), "It is", 4)
    assert both.input_bound(attempt) == a.input_bound(attempt)
    assert [delta.text for delta in both.stream(attempt)] == ["x", ""]


def test_a_nested_one_stands_for_its_members():
    a, b, c = (ScriptedDelegate(model=name) for name in "abc")
    assert FallbackDelegate(FallbackDelegate(a, b), c).members == (a, b, c)
    assert FallbackDelegate(a, FallbackDelegate(b, c)).members == (a, b, c)


def test_one_model_is_nothing_to_fall_back_on():
    with pytest.raises(UsageMistake, match="nobody to fall back on"):
        FallbackDelegate(ScriptedDelegate())


def test_one_model_twice_is_refused():
    a, b = ScriptedDelegate(model="a"), ScriptedDelegate(model="b")
    for given_ in ((a, a), (a, b, a), (FallbackDelegate(a, b), b)):
        with pytest.raises(UsageMistake, match="twice"):
            FallbackDelegate(*given_)
    with pytest.raises(UsageMistake, match="'openai:gpt-5-mini' twice"):
        FallbackDelegate("openai:gpt-5-mini", "openai:gpt-5-mini")


def test_what_cannot_be_a_delegate_cannot_be_a_member():
    with pytest.raises(UnknownDelegate):
        FallbackDelegate(ScriptedDelegate(), 7)


def test_requests_nobody_can_count_stay_unknown():
    class Unknown(ScriptedDelegate):
        worst_attempts = None  # type: ignore[assignment]

    class Three(ScriptedDelegate):
        worst_attempts = 3

    assert FallbackDelegate(Three(), ScriptedDelegate()).worst_attempts == 3
    assert FallbackDelegate(ScriptedDelegate(), Unknown()).worst_attempts is None


# --- any sequence of failures -------------------------------------------------------------------

Ending = str  # of an attempt: "done", "cut", "final", "silent"
Script = list[tuple[int, Ending]]  # words that an attempt has to say, and how it ends

ERRORS: dict[Ending, DelegateError] = {
    "cut": DelegateError("cut", retryable=True, retry_after_s=0.0),
    "final": DelegateError("final", retryable=False),
    "silent": DelegateError("silent", retryable=True, sent=False, answered=False),
}


@dataclass
class Player:
    """Says its words one by one, keeps to the limit of an attempt, and then ends as told."""

    name: str
    script: Script
    said: list[str] = field(default_factory=list)
    mode: str = "prefill"
    worst_attempts: int = 1
    fingerprint: dict[str, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return self.name

    def input_bound(self, attempt: Attempt) -> int:
        return BOUND

    def play(self, attempt: Attempt) -> list[Item]:
        words, ending = self.script.pop(0) if self.script else (0, "final")
        if ending == "silent":
            return [ERRORS[ending]]
        said = [f" {self.name}{len(self.said) + i}" for i in range(min(words, attempt.max_tokens))]
        self.said += said
        if words > attempt.max_tokens:
            return [*text(*said), Delta(usage=Usage(10, len(said)), finish="length")]
        end = done(10, len(said)) if ending == "done" else ERRORS[ending]
        return [*text(*said), end]


class Counted:
    """A ledger that counts what is set aside."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.set_aside = Amount()

    def reserve(self, limits: Any, amount: Amount, **facts: Any) -> Reservation:
        self.set_aside += amount
        return self.ledger.reserve(limits, amount, **facts)

    def settle(self, reservation: Reservation, actual: Amount, *, now: float) -> None:
        self.set_aside -= reservation.amount
        self.ledger.settle(reservation, actual, now=now)

    def release(self, reservation: Reservation, *, now: float) -> None:
        self.set_aside -= reservation.amount
        self.ledger.release(reservation, now=now)

    def spent(self, account: Any, *, now: float) -> Amount:
        return self.ledger.spent(account, now=now)


def perform(flow: HandOver, leave_at: int | None) -> tuple[list[SpanPiece], SpanEnd, list[str]]:
    """Perform a hand-over without threads or loops; from ask `leave_at` on nobody waits for it."""
    pieces: list[SpanPiece] = []
    played: list[str] = []
    items: list[Item] = []
    answer: Any = None
    for step in range(10_000):
        left = leave_at is not None and step >= leave_at
        try:
            out: Any = flow.throw(answer) if isinstance(answer, Exception) else flow.send(answer)
        except StopIteration:
            pytest.fail("it ended without saying so")
        answer = None
        match out:
            case SpanEnd():
                return pieces, out, played
            case Send(attempt, delegate):
                assert isinstance(delegate, Player)
                items = delegate.play(attempt)
            case Next():
                answer = items.pop(0) if items else None
                if isinstance(answer, Delta):
                    played.append(answer.text)
            case SpanPiece():
                pieces.append(out)
        if left and isinstance(out, Opened | SpanPiece):
            answer, leave_at = Abandoned(), None
    raise AssertionError("it does not end")


scripts = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["done", "cut", "final", "silent"])), max_size=4
)


@given(
    st.lists(scripts, min_size=1, max_size=3),
    st.integers(1, 9),
    st.integers(0, 2),
    st.none() | st.integers(0, 20),
)
def test_no_text_is_lost_and_no_money_stays_aside(
    told: list[Script], n: int, max_retries: int, leave_at: int | None
):
    players = [Player(name, list(script)) for name, script in zip("abc", told, strict=False)]
    ledger = Counted(MemoryLedger())
    first, *others = [Member(player, CHEAP) for player in players]  # type: ignore[arg-type]  # a double
    terms = Terms(
        delegate=first.delegate,
        messages=(),
        model=None,
        price=CHEAP,
        limits=(Limit(ACCOUNT, calls=99),),
        ledger=ledger,  # type: ignore[arg-type]  # all but `close`
        timeout_s=None,
        max_retries=max_retries,
        count=lambda text: len(text.split()),
        fallbacks=tuple(others),
        breakers=Breakers(),
        now=lambda: 0.0,
    )
    pieces, end, played = perform(hand_over(terms, SpanRequest("c", "It is", n, n)), leave_at)

    shown = "".join(piece.text for piece in pieces)
    assert shown == "".join(played)
    assert len(shown.split()) <= n
    if leave_at is None:
        assert shown == "".join(word for player in players for word in player.said)
        _check_who_was_asked(players, end, shown, n)
    for player in players:
        mine = [piece.text for piece in pieces if piece.model == player.name]
        assert mine == player.said[: len(mine)]

    assert ledger.set_aside == Amount()
    booked = [charge for charge in end.charges if not charge.released]
    spent = ledger.spent(ACCOUNT, now=0.0)
    assert spent.calls == len(booked)
    assert spent.cost_nanousd == sum(charge.cost_nanousd or 0 for charge in booked)
    assert [charge.attempt for charge in end.charges] == list(range(1, len(end.charges) + 1))


def _check_who_was_asked(players: list[Player], end: SpanEnd, shown: str, n: int) -> None:
    """It ends well where somebody came to an end, and fails only when all were asked in vain."""
    if end.why in {"stop", "length"}:
        assert end.why == "stop" or len(shown.split()) == n
        return
    assert end.why == "failed"
    assert {charge.model for charge in end.charges} == {player.name for player in players}


# --- in an answer -------------------------------------------------------------------------------


def test_spans_and_events_name_who_wrote():
    from langchain_relay import RelayChatModel, relay_report
    from langchain_relay.testing import ScriptedLocal

    error = DelegateError("reset", retryable=False)
    model = RelayChatModel(
        model=ScriptedLocal("It is ", "<call>8</call>", " so."),
        delegate=FallbackDelegate(
            FailingDelegate(error, times=1, after="blue ", model="a", usage=(12, 2)),
            ScriptedDelegate("and wide", model="b", usage=(12, 2)),
        ),
        prices={"a": (1, 2), "b": (1, 2)},
    )
    answer = model.invoke("How is the sky?")
    report = relay_report(answer)
    spans = [(span.text, span.author, span.model) for span in report.spans]
    assert spans == [
        ("It is ", "local", "scripted-local"),
        ("blue ", "delegate", "a"),
        ("and wide", "delegate", "b"),
        (" so.", "local", "scripted-local"),
    ]
    started, finished = answer.response_metadata["relay"]["events"]
    assert (started["model"], finished["model"], finished["attempts"]) == ("a", "b", 2)
    assert [charge.model for charge in report.charges] == ["a", "b"]


def test_every_model_needs_a_price_under_a_budget_in_usd():
    from langchain_relay import Budget, RelayChatModel
    from langchain_relay.errors import PriceUnknown
    from langchain_relay.testing import ScriptedLocal

    def relay(prices: dict[str, Any]) -> RelayChatModel:
        return RelayChatModel(
            model=ScriptedLocal("x"),
            delegate=FallbackDelegate(
                ScriptedDelegate(model="nobody-a"), ScriptedDelegate(model="nobody-b")
            ),
            budget=Budget(usd=1),
            prices=prices,
        )

    with pytest.raises(PriceUnknown, match="'nobody-b'"):
        relay({"nobody-a": (1, 2)})
    relay({"nobody-a": (1, 2), "nobody-b": (1, 2)})


def test_a_call_renames_the_first_model_only():
    from langchain_relay import RelayChatModel, relay_report
    from langchain_relay.testing import ScriptedLocal

    model = RelayChatModel(
        model=ScriptedLocal("It is ", "<call>8</call>"),
        delegate=FallbackDelegate(
            FailingDelegate(DelegateError("401"), model="a"), ScriptedDelegate("b", model="b")
        ),
    )
    report = relay_report(model.invoke("Well?", delegate_model="c"))
    assert [charge.model for charge in report.charges] == ["c", "b"]


@pytest.mark.parametrize("mode", ["prefill", "completion"])
def test_a_stop_ends_the_answer_only_where_every_model_goes_on_with_raw_text(mode: Any):
    from langchain_relay import RelayChatModel
    from langchain_relay.testing import ScriptedLocal

    model = RelayChatModel(
        model=ScriptedLocal("It is ", "<call>8</call>", "so."),
        delegate=FallbackDelegate(
            ScriptedDelegate("blue ", mode="completion"), ScriptedDelegate(mode=mode)
        ),
    )
    ended = model.invoke("How is the sky?").text == "It is blue "
    assert ended == (mode == "completion")


def test_text_that_the_policy_withholds_keeps_its_writer():
    from langchain_relay import RelayChatModel, relay_report
    from langchain_relay.policies import SwitchCues
    from langchain_relay.testing import ScriptedLocal

    model = RelayChatModel(
        model=ScriptedLocal(" it", " is", "."),
        delegate=FallbackDelegate(
            FailingDelegate(DelegateError("reset"), after="It is blue be", model="a"),
            ScriptedDelegate("cause", model="b"),
        ),
        policy=SwitchCues(cues=("because",)),
        max_calls=1,
    )
    spans = relay_report(model.invoke("How is the sky?")).spans
    assert [(s.text, s.model) for s in spans if s.author == "delegate"] == [
        ("It is blue be", "a"),
        ("cause", "b"),
    ]
