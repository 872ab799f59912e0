"""One hand-over: what is reserved, sent, kept, retried and settled; sync and async alike."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest

from langchain_relay.budget import Allowance, Budget
from langchain_relay.delegates.handover import DRAIN_PIECES
from langchain_relay.delegates.terms import Terms
from langchain_relay.delegates.wire import HostedSide
from langchain_relay.engine.errors import BudgetExceeded, DelegateError, DelegateTruncated
from langchain_relay.engine.ledger import Account, Amount, MemoryLedger
from langchain_relay.engine.values import (
    Attempt,
    Delta,
    Mode,
    Opened,
    SpanEnd,
    SpanPiece,
    SpanRequest,
    Usage,
)
from langchain_relay.prices import UserPrice

ACCOUNT = Account("run", "r")
PRICE = UserPrice(Decimal(1), Decimal(2))  # 1,000 and 2,000 nano-dollars per token
BOUND = 100  # input tokens at most
WORST_8 = BOUND * 1000 + 8 * 2000

Item = Delta | Exception


@dataclass
class Tape:
    """A delegate that plays one list of deltas and errors for each attempt."""

    attempts_to_play: Sequence[Sequence[Item]]
    mode: Mode = "prefill"
    model: str = "m"
    worst_attempts: int = 1
    attempts: list[Attempt] = field(default_factory=list)
    read: int = 0
    closed: int = 0
    fingerprint: dict[str, Any] = field(default_factory=dict)

    def input_bound(self, attempt: Attempt) -> int:
        return BOUND

    def stream(self, attempt: Attempt) -> Iterator[Delta]:
        try:
            yield from self._play(attempt)
        finally:
            self.closed += 1

    async def astream(self, attempt: Attempt) -> AsyncIterator[Delta]:
        try:
            for delta in self._play(attempt):
                yield delta
        finally:
            self.closed += 1

    def _play(self, attempt: Attempt) -> Iterator[Delta]:
        items = self.attempts_to_play[min(len(self.attempts), len(self.attempts_to_play) - 1)]
        self.attempts.append(attempt)
        for item in items:
            if isinstance(item, Exception):
                raise item
            self.read += 1
            yield item


@dataclass
class Result:
    pieces: list[str]
    end: SpanEnd
    opened: Opened | None
    ledger: MemoryLedger

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def spent(self) -> Amount:
        return self.ledger.spent(ACCOUNT, now=0)


Hang = Callable[[str], str | None]


def limited(
    cost_nanousd: int | None = None, warn_at: float | None = None, **counts: int
) -> tuple[Allowance, ...]:
    usd = None if cost_nanousd is None else Decimal(cost_nanousd) / 10**9
    return (Allowance(Budget(usd=usd, warn_at=warn_at, **counts), ACCOUNT.key),)  # type: ignore[arg-type]


def carry_out(
    tape: Tape,
    *,
    n: int = 8,
    draft: str = "It is",
    hang: Hang = lambda text: None,
    limits: dict[str, int] | None = None,
    colour: str = "sync",
    **terms: Any,
) -> Result:
    """One hand-over; `hang` is shown the text so far and may say why to hang up."""
    ledger = MemoryLedger()
    settings: dict[str, Any] = {
        "price": PRICE,
        "timeout_s": 20.0,
        "max_retries": 2,
        "allowances": limited(**(limits or {"calls": 99})),
        **terms,
    }
    side = HostedSide(
        Terms(
            delegate=tape,
            messages=(),
            model=None,
            ledger=ledger,
            count=lambda text: len(text.split()),
            now=lambda: 0.0,
            **settings,
        ),
        parent=None,
    )
    request = SpanRequest("c", draft, n, n)
    run = _sync if colour == "sync" else lambda *a: asyncio.run(_async(*a))
    pieces, end, opened = run(side, request, hang)
    return Result(pieces, end, opened, ledger)


def _sync(side: HostedSide, request: SpanRequest, hang: Hang) -> Any:
    opened = side.open(request)
    if isinstance(opened, SpanEnd):
        return [], opened, None
    pieces: list[str] = []
    while isinstance(got := side.pull(), SpanPiece):
        pieces.append(got.text)
        if why := hang("".join(pieces)):
            return pieces, side.hangup(why), opened  # type: ignore[arg-type]  # a test's shorthand
    return pieces, got, opened


async def _async(side: HostedSide, request: SpanRequest, hang: Hang) -> Any:
    opened = await side.aopen(request)
    if isinstance(opened, SpanEnd):
        return [], opened, None
    pieces: list[str] = []
    while isinstance(got := await side.apull(), SpanPiece):
        pieces.append(got.text)
        if why := hang("".join(pieces)):
            return pieces, await side.ahangup(why), opened  # type: ignore[arg-type]  # as above
    return pieces, got, opened


def text(*words: str) -> list[Item]:
    return [Delta(text=word) for word in words]


def done(
    input_tokens: int = 10, output_tokens: int = 2, finish: str = "stop", **facts: Any
) -> Delta:
    return Delta(usage=Usage(input_tokens, output_tokens), finish=finish, **facts)


COLOURS = pytest.mark.parametrize("colour", ["sync", "async"])


@COLOURS
def test_usage_with_a_finish_reason_is_what_is_booked(colour: str) -> None:
    tape = Tape([[*text(" sky", " blue"), done()]])
    result = carry_out(tape, colour=colour)
    assert (result.text, result.end.why) == (" sky blue", "stop")
    assert result.spent == Amount(10 * 1000 + 2 * 2000, 2, 1)
    (charge,) = result.end.charges
    assert (charge.cost_nanousd, charge.estimated, charge.outcome) == (14_000, False, "stop")
    assert tape.closed == 1


@COLOURS
@pytest.mark.parametrize(
    "items",
    [
        [*text(" sky"), Delta(finish="stop")],
        [*text(" sky"), Delta(usage=Usage(10, 2)), DelegateError("cut", retryable=False)],
    ],
    ids=["no usage", "usage but no finish reason"],
)
def test_anything_else_is_booked_at_its_worst_case(items: list[Item], colour: str) -> None:
    result = carry_out(Tape([items]), colour=colour)
    assert result.spent == Amount(WORST_8, 8, 1)
    (charge,) = result.end.charges
    assert (charge.cost_nanousd, charge.estimated) == (WORST_8, True)


@COLOURS
def test_an_attempt_answered_by_an_error_is_released(colour: str) -> None:
    error = DelegateError("401", retryable=False, sent=False)
    result = carry_out(Tape([[error]]), colour=colour)
    assert (result.end.why, result.spent) == ("failed", Amount())
    assert result.end.charges[0].released
    assert result.end.error is error


@COLOURS
def test_a_retry_goes_on_from_what_arrived_with_what_is_left_of_n(colour: str) -> None:
    cut = DelegateError("reset", retryable=True)
    tape = Tape([[*text(" one", " two"), cut], [*text(" three"), done()]])
    result = carry_out(tape, colour=colour)
    assert (result.text, result.end.why) == (" one two three", "stop")
    assert [(a.draft, a.max_tokens) for a in tape.attempts] == [
        ("It is", 8),
        ("It is one two", 6),
    ]
    assert [c.estimated for c in result.end.charges] == [True, False]
    assert result.spent == Amount(WORST_8 + 14_000, 8 + 2, 2)


def test_nothing_left_of_n_ends_the_span() -> None:
    tape = Tape([[*text(" one", " two"), DelegateError("reset", retryable=True)]])
    result = carry_out(tape, n=2)
    assert (result.text, result.end.why, len(tape.attempts)) == (" one two", "length", 1)


@COLOURS
def test_a_stream_without_a_finish_reason_is_truncated(colour: str) -> None:
    result = carry_out(Tape([text(" one")]), max_retries=0, colour=colour)
    assert (result.text, result.end.why) == (" one", "truncated")
    assert isinstance(result.end.error, DelegateTruncated)
    assert result.end.charges[0].estimated


def test_max_retries_counts_further_attempts() -> None:
    tape = Tape([[DelegateError("503", retryable=True, sent=False)]])
    assert carry_out(tape, max_retries=2).end.why == "failed"
    assert len(tape.attempts) == 3


def test_what_is_not_retryable_is_not_retried() -> None:
    tape = Tape([[DelegateError("403", retryable=False, sent=False)]])
    carry_out(tape)
    assert len(tape.attempts) == 1


def test_a_wait_beyond_the_deadline_is_not_waited() -> None:
    tape = Tape([[DelegateError("429", retryable=True, sent=False, retry_after_s=60)]])
    result = carry_out(tape, timeout_s=5.0)
    assert (result.end.why, len(tape.attempts)) == ("failed", 1)


def test_retry_after_is_honoured() -> None:
    ticks = itertools.count()
    tape = Tape(
        [
            [DelegateError("429", retryable=True, sent=False, retry_after_s=0.2)],
            [*text("x"), done()],
        ]
    )
    assert next(ticks) == 0
    import time

    before = time.monotonic()
    assert carry_out(tape).text == "x"
    assert time.monotonic() - before >= 0.2


# --- limits -------------------------------------------------------------------------------------


@COLOURS
def test_a_refusal_sends_nothing(colour: str) -> None:
    tape = Tape([[*text("x"), done()]])
    result = carry_out(tape, limits={"cost_nanousd": WORST_8 - 1}, colour=colour)
    assert (result.end.why, tape.attempts, result.spent) == ("refused", [], Amount())
    assert isinstance(result.end.error, BudgetExceeded)
    assert result.end.error.needed == WORST_8


def test_the_worst_case_exactly_fits() -> None:
    result = carry_out(Tape([[*text("x"), done()]]), limits={"cost_nanousd": WORST_8})
    assert result.end.why == "stop"


def test_clients_that_retry_on_their_own_reserve_every_request() -> None:
    tape = Tape([[*text("x"), done()]], worst_attempts=3)
    refused = carry_out(tape, limits={"cost_nanousd": 3 * WORST_8 - 1})
    assert refused.end.why == "refused"
    assert carry_out(tape, limits={"cost_nanousd": 3 * WORST_8}).end.why == "stop"


def test_a_refusal_between_attempts_keeps_the_text_and_the_charges() -> None:
    tape = Tape([[*text(" one"), DelegateError("reset", retryable=True)]])
    result = carry_out(tape, limits={"calls": 1})
    assert (result.text, result.end.why) == (" one", "refused")
    assert isinstance(result.end.error, BudgetExceeded)
    assert len(result.end.charges) == 1


def test_a_token_limit_makes_n_smaller() -> None:
    tape = Tape([[*text("x"), done()]])
    result = carry_out(tape, limits={"tokens": 3})
    assert tape.attempts[0].max_tokens == 3
    assert result.opened == Opened("m", 3)


def test_overage_that_a_provider_reports_is_booked_and_named() -> None:
    result = carry_out(Tape([[*text("x"), done(input_tokens=500)]]))
    (charge,) = result.end.charges
    assert charge.cost_nanousd == 500 * 1000 + 2 * 2000
    assert charge.overage_nanousd == charge.cost_nanousd - WORST_8
    assert result.spent.cost_nanousd == charge.cost_nanousd


def test_a_cost_the_provider_reports_is_the_truth() -> None:
    result = carry_out(Tape([[*text("x"), done(cost_usd="0.0000001")]]))
    (charge,) = result.end.charges
    assert (charge.cost_nanousd, charge.price_source) == (100, "provider")


def test_a_cost_that_comes_without_counts_is_booked_and_may_pass_the_limit() -> None:
    result = carry_out(Tape([[*text("x"), Delta(finish="stop", cost_usd="0.5")]]))
    (charge,) = result.end.charges
    assert (charge.cost_nanousd, charge.price_source) == (500_000_000, "provider")
    assert (charge.estimated, charge.overage_nanousd) == (False, 500_000_000 - WORST_8)
    assert result.spent == Amount(500_000_000, 8, 1)  # its tokens are unknown


@pytest.mark.parametrize(
    "counts", [Usage(0, 0), Usage(0, 2), Usage(-10, 2), Usage(10, -2), Usage(10, -(10**9))]
)
def test_counts_that_cannot_be_are_none(counts: Usage) -> None:
    result = carry_out(Tape([[*text("x"), Delta(finish="stop", usage=counts)]]))
    (charge,) = result.end.charges
    assert (charge.cost_nanousd, charge.estimated) == (WORST_8, True)
    assert (charge.input_tokens, charge.output_tokens) == (None, None)
    assert result.spent == Amount(WORST_8, 8, 1)


def test_parts_of_the_counts_that_cannot_be_are_left_out() -> None:
    counts = Usage(10, 2, cached_input_tokens=-4, reasoning_tokens=-1)
    result = carry_out(Tape([[*text("x"), Delta(finish="stop", usage=counts)]]))
    (charge,) = result.end.charges
    assert (charge.cost_nanousd, charge.output_tokens) == (10 * 1000 + 2 * 2000, 2)
    assert (charge.cached_input_tokens, charge.reasoning_tokens) == (None, None)


def test_without_a_price_the_cost_is_unknown() -> None:
    result = carry_out(Tape([[*text("x"), done()]]), price=None)
    assert result.end.charges[0].cost_nanousd is None


def test_a_warning_comes_once_per_limit() -> None:
    tape = Tape([[*text("x"), done()]])
    ledger, warned = MemoryLedger(), set[Any]()
    warnings = []
    for i in range(5):
        side = HostedSide(
            Terms(
                delegate=tape,
                messages=(),
                model=None,
                price=PRICE,
                allowances=limited(calls=5, warn_at=0.8),
                ledger=ledger,
                timeout_s=5,
                max_retries=0,
                count=len,
                warned=warned,
                now=lambda: 0.0,
            ),
            parent=None,
        )
        _, end, _ = _sync(side, SpanRequest(f"c{i}", "", 8), lambda text: None)
        warnings.append([(w.unit, w.spent, w.limit) for w in end.warnings])
    assert warnings == [[], [], [], [("calls", 4, 5)], []]


# --- cuts ---------------------------------------------------------------------------------------


@COLOURS
def test_a_cut_closes_at_once_and_books_the_worst_case(colour: str) -> None:
    tape = Tape([[*text(*"abcdefgh"), done()]])
    result = carry_out(tape, hang=lambda text: "cut" if "b" in text else None, colour=colour)
    assert (result.text, result.end.why) == ("ab", "cut")
    assert result.end.charges[0].estimated
    assert result.spent.cost_nanousd == WORST_8


@COLOURS
def test_a_length_cut_reads_on_for_the_usage(colour: str) -> None:
    tape = Tape([[*text(*"abcdefgh"), done(finish="length")]])
    result = carry_out(tape, hang=lambda text: "length" if "b" in text else None, colour=colour)
    assert (result.text, result.end.why) == ("ab", "length")
    assert not result.end.charges[0].estimated
    assert result.spent.cost_nanousd == 14_000


def test_reading_on_has_an_end() -> None:
    tape = Tape([[*text(*["x"] * 500), done()]])
    result = carry_out(tape, hang=lambda text: "length", colour="async")
    assert result.end.charges[0].estimated
    assert tape.read <= 2 + DRAIN_PIECES


@COLOURS
def test_a_host_that_ignores_its_limit_is_cut_at_eight_bytes_a_token(colour: str) -> None:
    tape = Tape([[*text("日" * 4, "é" * 4, "z" * 50), done()]])
    result = carry_out(tape, n=4, colour=colour)
    assert result.end.why == "length"
    assert result.text == "日" * 4 + "é" * 4 + "z" * 12
    assert len(result.text.encode()) == 32


def test_a_cut_inside_a_character_loses_the_character_and_not_its_sense() -> None:
    result = carry_out(Tape([[*text("😀😀😀"), done()]]), n=1, draft="")
    assert result.text == "😀😀"


# --- closing ------------------------------------------------------------------------------------


def plain_terms(tape: Tape, ledger: MemoryLedger) -> Terms:
    return Terms(
        delegate=tape, messages=(), model=None, price=PRICE, allowances=limited(calls=9),
        ledger=ledger, timeout_s=5, max_retries=0, count=len, now=lambda: 0.0,
    )  # fmt: skip


def test_closing_an_open_span_settles_it() -> None:
    ledger = MemoryLedger()
    tape = Tape([[*text("a", "b"), done()]])
    terms = plain_terms(tape, ledger)
    side = HostedSide(terms, parent=None)
    side.open(SpanRequest("c", "", 8))
    side.pull()
    end = side.close()
    assert end is not None
    assert (end.why, len(end.charges)) == ("cut", 1)
    assert ledger.spent(ACCOUNT, now=0) == Amount(WORST_8, 8, 1)
    assert side.abandoned is end
    assert HostedSide(terms, parent=None).close() is None


def test_closing_before_anything_was_sent_releases() -> None:
    ledger = MemoryLedger()
    tape = Tape([[*text("a"), done()]])
    terms = plain_terms(tape, ledger)
    side = HostedSide(terms, parent=None)
    side.open(SpanRequest("c", "", 8))
    side.close()
    assert tape.attempts == []
    assert ledger.spent(ACCOUNT, now=0) == Amount()


@COLOURS
def test_an_error_nobody_expects_is_a_failure_not_a_crash(colour: str) -> None:
    result = carry_out(Tape([[KeyError("oops")]]), colour=colour)
    assert result.end.why == "failed"
    assert "KeyError" in str(result.end.error)
