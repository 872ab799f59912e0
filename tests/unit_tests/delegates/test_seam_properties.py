"""Who continues a draft literally, or repeats its end first, gives back the text at any cut."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import assume, event, example, given, settings
from hypothesis import strategies as st

from langchain_relay import RelayChatModel
from langchain_relay.delegates.cleaners import is_cjk
from langchain_relay.delegates.continuation import LITERAL_MODES, Seam
from langchain_relay.engine.values import Attempt, Delta, Mode
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal

LITERAL: list[Mode] = ["prefill", "flag", "completion"]
ASKED: list[Mode] = ["instruct", "handoff"]

ENGLISH = (
    "The sky is blue because the air scatters short waves more.\n\nAt dusk it's red \u2014 why? "
)
CODE = "def area(r: float) -> float:\n    x = 3.14\n\n\treturn x * r ** 2  # m\u00b2\n\n```python\n"
LATEX = (
    r"\begin{align} x_{1,2} &= \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}, \\ e^{i\pi} &= -1 \end{align} "
)
CJK = "天空之所以是蓝色的，是因为空气分子使阳光散射。傍晚の空は赤い。하늘은 파랗다。"
EMOJI = "Fine 👍🏽, she is a 👩‍🚀 with a 👨‍👩‍👧‍👦 and a flag 🏳️‍🌈 🇪🇺! 🙂"
MARKS = "e\u0301te\u0301 nai\u0308ve Z\u0335a\u0353 שָׁלוֹם क्षत्रिय ไทย"
BLANKS = "one \r\ntwo\r\n\r\n\tthree  \u00a0four\u2003five\u3000六 \n \n"
SURROGATES = "half \ud83d pair \ude00 of \ud83d\ude00"
REAL = (ENGLISH, CODE, LATEX, CJK, EMOJI, MARKS, BLANKS)

pieces_of_text = st.one_of(
    st.sampled_from([*REAL, SURROGATES, "Sure, ", "...", "```\n", "(continued) ", "Continuing: "]),
    st.text(alphabet="ab \n\t\r\u3000天🙂\u0301\u200d", max_size=12),
    st.text(st.characters(codec=None), max_size=8),
)
texts = st.lists(pieces_of_text, max_size=5).map("".join)
"""Anything, lone surrogates included: strings are cut between code points."""

sendable = (
    st.lists(
        st.one_of(st.sampled_from(REAL), st.text(st.characters(codec="utf-8"), max_size=12)),
        min_size=1,
        max_size=3,
    )
    .map("".join)
    .filter(bool)
)


def mended(draft: str, reply: str, mode: Mode, cuts: list[int]) -> tuple[str, str]:
    """What is shown of a reply that arrives in pieces, and what was removed."""
    seam = Seam(draft, mode)
    at = sorted({0, len(reply), *(cut % (len(reply) + 1) for cut in cuts)})
    shown = "".join([*(seam.push(reply[a:b]) for a, b in pairwise(at)), seam.flush()])
    assert not seam.restart
    return shown, seam.trimmed


places = st.integers(0, 10_000)
chunkings = st.lists(places, max_size=12)


# --- who continues literally --------------------------------------------------------------------


@pytest.mark.parametrize("mode", LITERAL)
@given(text=texts, at=places, cuts=chunkings)
@example(text=EMOJI, at=19, cuts=list(range(99)))  # within a sequence of joined emoji
@example(text=BLANKS, at=5, cuts=[1])  # between a carriage return and its line feed
@example(text="ends in blanks \n\t ", at=17, cuts=[])
def test_a_literal_continuer_gives_back_the_text(mode: Mode, text: str, at: int, cuts: list[int]):
    draft = text[: at % (len(text) + 1)]
    reply = text[len(draft.rstrip()) :]  # trailing blanks are never sent
    assert mended(draft, reply, mode, cuts) == (text[len(draft) :], "")


@pytest.mark.parametrize("mode", ASKED)
@pytest.mark.parametrize("text", REAL, ids=lambda text: text[:8])
def test_real_text_without_openers_comes_back_from_who_is_asked_too(mode: Mode, text: str):
    for at in range(1, len(text) + 1):
        draft = text[:at]
        reply = text[len(draft.rstrip()) :]
        assert mended(draft, reply, mode, list(range(at))) == (text[at:], "")


# --- who repeats the end of the draft -----------------------------------------------------------


def folded(text: str) -> str:
    """Characters as the seam compares them: case, quotes and blanks do not count."""
    straight = str.maketrans("\u2019\u2018\u201c\u201d", "''\"\"")
    return "".join(char.translate(straight).lower() for char in text if not char.isspace())


def is_an_echo(end: str, draft: str) -> bool:
    """At least 12 characters and 2 words, once in the draft."""
    words = end.split()
    long = len(" ".join(words)) >= 12 and len(words) >= 2
    sent = folded(draft)
    return long and sent.find(folded(end)) == sent.rfind(folded(end))


class Repeating(NamedTuple):
    """A text, where it is cut, and the end of the draft that is repeated."""

    text: str
    at: int
    echo: str

    @property
    def draft(self) -> str:
        return self.text[: self.at]

    @property
    def rest(self) -> str:
        """What a literal continuer writes: the draft's trailing blanks were not sent."""
        return self.text[len(self.draft.rstrip()) :]


@st.composite
def repeating(draw: st.DrawFn) -> Repeating:
    text = draw(texts) + draw(st.sampled_from(REAL)) + draw(texts)
    at = draw(st.integers(0, len(text)))
    sent = text[:at].rstrip()
    ends = [sent[-n:] for n in range(12, min(200, len(sent) + 1))]
    ends = [end for end in ends if is_an_echo(end, text[:at])]
    assume(ends)
    return Repeating(text, at, draw(st.sampled_from(ends)))


@pytest.mark.parametrize("mode", ASKED)
@given(case=repeating(), cuts=chunkings)
@example(
    Repeating("Sure, here is the continuation: a b", 33, "Sure, here is the continuation: a"), []
)
@example(Repeating("```\nls -la of all\n```\nand more", 20, "```\nls -la of all\n```"[:20]), [])
@example(Repeating("He said: Sure.\nThen he left. Sure.\n", 29, "Then he left."), [3])
def test_a_repeated_end_is_removed_and_nothing_else(mode: Mode, case: Repeating, cuts: list[int]):
    shown, trimmed = mended(case.draft, case.echo + case.rest, mode, cuts)
    assert case.draft + shown == case.text
    assert trimmed == case.echo


@pytest.mark.parametrize("mode", ASKED)
@given(case=repeating(), cuts=chunkings, data=st.data())
def test_case_and_blanks_of_the_repetition_do_not_count(
    mode: Mode, case: Repeating, cuts: list[int], data: st.DataObject
):
    echo = data.draw(altered(case.echo), label="echo")
    assume(is_an_echo(echo, case.draft))
    event("changed" if echo != case.echo else "the same")
    shown, trimmed = mended(case.draft, echo + case.rest, mode, cuts)
    assert (case.draft + shown, trimmed) == (case.text, echo)


@st.composite
def altered(draw: st.DrawFn, text: str) -> str:
    """The same words with other blanks and other case."""
    out = []
    for char in text:
        blanks = " ", "\n", "  ", " \t", char
        other = char.swapcase()
        same = len(other) == 1 and folded(other) == folded(char)
        choices = blanks if char.isspace() else (char, other) if same else (char,)
        out.append(draw(st.sampled_from(choices)))
    return "".join(out)


@given(
    st.text(alphabet="天地玄黄宇宙洪荒日月盈昃辰宿列张", min_size=10, max_size=40), places, places
)
def test_without_blanks_eight_characters_are_an_echo(text: str, at: int, back: int):
    assert all(map(is_cjk, text))
    draft = text[: 8 + at % (len(text) - 7)]
    echo = draft[-(8 + back % (len(draft) - 7)) :]
    assume(draft.find(echo) == draft.rfind(echo))
    assert mended(draft, echo + text[len(draft) :], "instruct", []) == (text[len(draft) :], echo)


# --- through a whole relay ----------------------------------------------------------------------


class Continuer(ScriptedDelegate):
    """Knows the whole text and goes on with it, behind so many characters of the draft's end."""

    def __init__(self, text: str, mode: Mode, back: int, step: int) -> None:
        super().__init__(mode=mode)
        self._text = text
        self._back = back
        self._step = step

    def stream(self, attempt: Attempt) -> Iterator[Delta]:
        sent = attempt.draft.rstrip()
        assert self._text.startswith(sent)
        reply = self._text[len(sent) - min(self._back, len(sent)) :]
        for at in range(0, len(reply), self._step):
            yield Delta(text=reply[at : at + self._step])
        yield Delta(finish="stop")

    async def astream(self, attempt: Attempt) -> AsyncIterator[Delta]:
        for delta in self.stream(attempt):
            yield delta


def relayed(text: str, at: int, delegate: Any) -> tuple[str, dict[str, Any]]:
    """An answer that begins with the text's first `at` characters, and how its one call ended."""
    local = ScriptedLocal(text[:at], "<call>4000</call>")
    model = RelayChatModel(model=local, delegate=delegate, max_span_tokens=4000, max_tokens=8000)
    message = model.invoke("?")
    events = message.response_metadata["relay"]["events"]
    return str(message.content), events[-1]


@pytest.mark.parametrize("mode", LITERAL)
@settings(max_examples=25)
@given(text=sendable, at=places, step=st.integers(1, 9))
def test_a_relay_gives_back_the_text_at_any_cut(mode: Mode, text: str, at: int, step: int):
    cut = 1 + at % len(text)
    answer, ended = relayed(text, cut, Continuer(text, mode, 0, step))
    assert answer == text
    assert ended["trimmed"] == ""


@pytest.mark.parametrize("mode", ASKED)
@pytest.mark.parametrize("step", [1, 7])
def test_a_relay_removes_a_repeated_end_and_says_so(mode: Mode, step: int):
    for at in range(30, len(ENGLISH)):
        echo = ENGLISH[:at].rstrip()[-20:]
        answer, ended = relayed(ENGLISH, at, Continuer(ENGLISH, mode, 20, step))
        assert answer == ENGLISH
        assert ended["type"] == "relay.call.finished"
        assert ended["trimmed"] == echo


def test_what_an_opener_was_is_in_the_event_and_not_in_the_answer():
    opener = "Sure, here is the continuation:\n"
    delegate = ScriptedDelegate(f"{opener}scattering.", mode="instruct")
    answer, ended = relayed("It is Rayleigh", 14, delegate)
    assert answer == "It is Rayleigh scattering."
    assert ended["trimmed"] == opener


def test_a_restart_is_declined_and_all_of_it_is_in_the_event():
    draft = "The sky is blue because of its light. "
    restart = "The sky is blue because the air"
    answer, ended = relayed(draft, len(draft), ScriptedDelegate(restart, mode="instruct"))
    assert answer == draft
    assert restart.startswith(ended["trimmed"])
    assert len(ended["trimmed"]) > 20
    assert ended["declined"]


def test_the_modes_are_all_there_are():
    assert set(LITERAL) == LITERAL_MODES
