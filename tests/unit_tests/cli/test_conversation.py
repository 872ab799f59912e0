"""What a typed line means, who wrote a piece, and what is told and saved of a chat."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, messages_from_dict

from langchain_relay import Budget, RelayChatModel, relay_report
from langchain_relay.cli.conversation import (
    COMMANDS,
    AnswerReader,
    Blank,
    Conversation,
    Help,
    Mistake,
    New,
    Question,
    Quit,
    Report,
    Save,
    SetDelegation,
    help_text,
    notes,
    one_line,
    parse,
    saved,
    status_line,
    visible,
)
from langchain_relay.policies import Always, FixedLength, Never, SingleHandoff, SwitchCues
from langchain_relay.testing import FailingDelegate, ScriptedDelegate, ScriptedLocal

PIECES = ("It is ", "<call>4</call>", " today, ", "<call>4</call>", " at night.")
PRICES = {"scripted": ("1", "2")}


def relay(*pieces: str, delegate: Any = None, **fields: Any) -> RelayChatModel:
    return RelayChatModel(
        model=ScriptedLocal(*(pieces or PIECES)),
        delegate=delegate or ScriptedDelegate("3 degrees", usage=(30, 2)),
        prices=PRICES,
        **fields,
    )


def words(text: str) -> int:
    return len(text.split())


# --- what was typed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("What is 2+2?\n", Question("What is 2+2?")),
        ("  ", Blank()),
        ("\n", Blank()),
        ("/report", Report()),
        ("/REPORT ", Report()),
        ("/new", New()),
        ("/help", Help()),
        ("/quit\n", Quit()),
        ("/delegation", SetDelegation(None)),
        ("/delegation never", SetDelegation("never")),
        ("/delegation  always", SetDelegation("always")),
        ("/save my talk.md", Save("my talk.md")),
        ("/usr/bin holds what?", Question("/usr/bin holds what?")),
        ("what does /help do?", Question("what does /help do?")),
        ("1/2 of 3?", Question("1/2 of 3?")),
    ],
)
def test_a_line_is_a_question_or_a_command(line, entry):
    assert parse(line) == entry


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/", "/help"),
        ("/repotr", "/report"),
        ("/xyz", "/help"),
        ("/save", "/save talk.md"),
        ("/delegation sometimes", "never, auto or always"),
        ("/quit now", "/quit takes no argument"),
    ],
)
def test_a_mistaken_command_says_what_to_type(line, said):
    entry = parse(line)
    assert isinstance(entry, Mistake)
    assert said in entry.text


@given(st.text())
def test_whatever_does_not_begin_with_a_slash_is_asked_as_it_stands(line):
    if line.strip() and not line.strip().startswith("/"):
        assert parse(line) == Question(line.strip())


def test_help_names_every_command_and_each_is_understood():
    for name, (argument, _) in COMMANDS.items():
        assert f"/{name} {argument}".strip() in help_text()
        assert not isinstance(parse(f"/{name} {argument}".replace("|auto|always", "")), Mistake)


# --- who wrote it -------------------------------------------------------------------------------

TEN_WORDS = "One two three four five six seven eight nine ten"
ANSWERS: dict[str, Callable[[], RelayChatModel]] = {
    "call tokens": relay,
    "hosted first": lambda: relay("<call>4</call>", " outside."),
    "local only": lambda: relay(policy=Never()),
    "hosted only": lambda: relay(policy=Always()),
    "fixed length": lambda: relay(policy=FixedLength(span_tokens=1)),
    "one hand-over": lambda: relay(policy=SingleHandoff()),
    "cues": lambda: relay(
        *("which", " is", " so.", " Then"),
        delegate=ScriptedDelegate(f"{TEN_WORDS} because it is.", "And five. "),
        policy=SwitchCues(cues=("because",), max_span_tokens=12, max_calls=4),
    ),
    "a sentence end shown when the call is open": lambda: relay(
        *("which", " is", " so.", " Then"),
        delegate=ScriptedDelegate(f"{TEN_WORDS} because it is.", " And five. "),
        policy=SwitchCues(cues=("because",), match="substring", max_calls=2),
    ),
    "declined": lambda: relay(delegate=ScriptedDelegate("")),
    "failed": lambda: relay(
        delegate=FailingDelegate(OSError("gone"), times=1, after="2 "), max_retries=0
    ),
    "refused": lambda: relay(budget=Budget(calls=1)),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_pieces_have_the_authors_that_the_report_has(name):
    reader = AnswerReader()
    pieces = [p for chunk in ANSWERS[name]().stream("How cold?") if (p := reader.read(chunk))]
    authors = [
        (author, "".join(piece.text for piece in same))
        for author, same in groupby(pieces, key=lambda piece: piece.author)
    ]
    report = relay_report(reader.message([], words))
    assert authors == [(span.author, span.text) for span in report.spans]


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_cut_at_any_chunk_has_a_report_whose_spans_tile_it(name):
    chunks = list(ANSWERS[name]().stream("How cold?"))
    whole = relay_report(reader_of(chunks).message([], words))
    for n in range(len(chunks)):
        answer = reader_of(chunks[:n]).message([], words)
        report = relay_report(answer)
        assert answer.response_metadata["finish_reason"] == "interrupted"
        assert "".join(span.text for span in report.spans) == answer.text
        assert [s.start for s in report.spans] == [0, *[s.end for s in report.spans[:-1]]][
            : len(report.spans)
        ]
        for cut, full in zip(report.spans, whole.spans, strict=False):
            assert full.text.startswith(cut.text)
            assert (cut.author, cut.start) == (full.author, full.start)


def reader_of(chunks: list[Any]) -> AnswerReader:
    reader = AnswerReader()
    for chunk in chunks:
        reader.read(chunk)
    return reader


def test_what_handlers_heard_too_late_for_a_chunk_is_in_the_report():
    chunks = list(relay().stream("How cold?"))
    events = [e for c in chunks for e in c.response_metadata.get("relay", {}).get("events", [])]
    started = next(i for i, c in enumerate(chunks) if "events" in str(c.response_metadata))
    answer = reader_of(chunks[: started + 1]).message(events[:2], words)
    report = relay_report(answer)
    assert report.calls == 1  # told twice, counted once
    assert report.cost_nanousd == events[1]["cost_nanousd"] > 0


# --- the conversation ---------------------------------------------------------------------------


def answer_of(model: RelayChatModel) -> AIMessage:
    message = model.invoke("How cold?")
    assert isinstance(message, AIMessage)
    return message


def test_later_questions_are_asked_behind_earlier_turns_and_the_system_prompt():
    first = answer_of(relay())
    talk = Conversation("Be brief.").answered("How cold?", first)
    assert talk.asking("And now?") == [
        SystemMessage("Be brief."),
        HumanMessage("How cold?"),
        first,
        HumanMessage("And now?"),
    ]
    assert talk.last is first
    assert talk.anew().asking("And now?") == [SystemMessage("Be brief."), HumanMessage("And now?")]


def test_money_adds_up_over_answers_and_over_a_new_conversation():
    first = answer_of(relay())
    cost = relay_report(first).cost_nanousd
    assert cost
    talk = Conversation().answered("a", first).anew().answered("b", first)
    assert talk.spent_nanousd == 2 * cost


def test_an_unknown_price_makes_the_sum_unknown():
    unpriced = RelayChatModel(model=ScriptedLocal(*PIECES), delegate=ScriptedDelegate("3"))
    talk = Conversation().answered("a", answer_of(unpriced)).answered("b", answer_of(relay()))
    assert talk.spent_nanousd is None
    assert "unknown" in status_line(answer_of(unpriced), talk.spent_nanousd)


def test_an_answer_without_a_word_is_not_kept_but_paid_for():
    chunks = list(relay("<call>4</call>").stream("How cold?"))
    events = [e for c in chunks for e in c.response_metadata.get("relay", {}).get("events", [])]
    nothing = AnswerReader().message(events, words)
    talk = Conversation().answered("How cold?", nothing)
    assert talk.messages == ()
    assert talk.spent_nanousd


# --- what is told -------------------------------------------------------------------------------


def test_the_status_line_has_calls_share_money_and_cached_tokens():
    line = status_line(answer_of(relay()), 10**9)
    assert line.startswith("2 calls · ")
    assert "% delegated · cost 0.000068 USD (1 USD so far) · 0 of " in line
    assert line.endswith(" prompt tokens cached")


def test_the_status_line_says_how_an_answer_ended():
    assert status_line(answer_of(relay(max_tokens=3)), 0).startswith("cut at the limit · ")
    assert status_line(AnswerReader().message([], words), 0).startswith("stopped · 0 calls · ")


def test_refusals_and_failures_are_counted_and_each_reason_is_told_once():
    refused = answer_of(relay(budget=Budget(usd="0.000000001")))
    assert status_line(refused, 0).startswith("0 calls (1 refused) · ")
    (note,) = notes(refused)
    assert "0.000000001 USD of the budget is left" in note
    broken = FailingDelegate(OSError("no\nroute"), times=9)
    failed = answer_of(relay(delegate=broken, max_retries=0))
    assert status_line(failed, 0).startswith("2 calls (2 failed) · ")
    (note,) = notes(failed)
    assert note == "a call to scripted failed: OSError: no route"


def test_an_error_is_one_line_without_control_characters():
    assert one_line(ValueError("a\n b\x1b[31m")) == "a b\ufffd[31m"
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line("x" * 9999)) == 400


@given(st.text())
def test_visible_text_steers_no_terminal(text):
    shown = visible(text)
    assert not {c for c in shown if ord(c) < 32 or 127 <= ord(c) < 160} - {"\t", "\n"}
    assert visible(shown) == shown


# --- what is saved ------------------------------------------------------------------------------


def test_json_gives_the_same_messages_back_with_their_metadata():
    talk = Conversation("Be brief.").answered("How cold?", answer_of(relay()))
    back = messages_from_dict(json.loads(saved(talk, as_json=True)))
    assert back == talk.all_messages


def test_markdown_has_hosted_words_in_brackets():
    talk = Conversation("Be brief.").answered("How cold?", answer_of(relay()))
    text = saved(talk, as_json=False)
    assert "**system:** Be brief.\n\n**you:** How cold?\n\n**relay:** It is [3 degrees]" in text
    assert "_2 calls · " in text
