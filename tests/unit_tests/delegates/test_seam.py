"""Where a hosted span joins the draft."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_relay.delegates.continuation import Seam
from langchain_relay.engine.values import Mode

LITERAL: list[Mode] = ["prefill", "flag", "completion"]
ASKED: list[Mode] = ["instruct", "handoff"]

DRAFT = "The sky is blue because of Rayleigh"


class Mended(NamedTuple):
    shown: str
    trimmed: str
    restart: bool


def mend(draft: str, *pieces: str, mode: Mode = "instruct") -> Mended:
    seam = Seam(draft, mode)
    text = "".join([*map(seam.push, pieces), seam.flush()])
    return Mended(text, seam.trimmed, seam.restart)


def shown(draft: str, *pieces: str, mode: Mode = "instruct") -> str:
    return mend(draft, *pieces, mode=mode).shown


# --- literal modes ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", LITERAL)
@given(text=st.text(alphabet="ab \n\t\u3000天", max_size=30), at=st.integers(0, 30))
def test_a_literal_continuer_gives_back_the_text_at_any_cut(mode: Mode, text: str, at: int):
    draft = text[:at]
    sent = draft.rstrip()
    assert draft + shown(draft, *text[len(sent) :], mode=mode) == text


@pytest.mark.parametrize(
    ("draft", "span", "joined"),
    [
        ("It is ", " blue", "It is blue"),
        ("It is ", "blue", "It is blue"),
        ("It is", " blue", "It is blue"),
        ("It is", "n't", "It isn't"),
        ("One.\n\n", "\n\nTwo.", "One.\n\nTwo."),
        ("One.\n\n", "Two.", "One.\n\nTwo."),
        ("One.\n", "\n\nTwo.", "One.\n\nTwo."),
        ("One.\n\n", "\nTwo.", "One.\n\nTwo."),
        ("One.\n", " Two.", "One.\nTwo."),
        ("def f():\n", "\n    return 1", "def f():\n    return 1"),
        ("def f():\n", "    return 1", "def f():\n    return 1"),
        ("It is ", "  ", "It is  "),
        ("It is  ", " ", "It is  "),
    ],
)
@pytest.mark.parametrize("mode", [*LITERAL, *ASKED])
def test_withheld_blanks_are_shown_once(draft: str, span: str, joined: str, mode: Mode):
    assert draft + shown(draft, span, mode=mode) == joined


@pytest.mark.parametrize("mode", LITERAL)
@pytest.mark.parametrize(
    "span", [f"{DRAFT} scattering", "Sure, here is the continuation: x", "```\nx\n```", "... x"]
)
def test_literal_modes_trim_nothing(mode: Mode, span: str):
    assert mend(DRAFT, span, mode=mode) == (span, "", False)


@pytest.mark.parametrize("mode", [*LITERAL, *ASKED])
def test_without_a_draft_the_span_is_an_answer_of_its_own(mode: Mode):
    answer = "Sure, here is the continuation:\n```\nx\n```"
    assert shown("", answer, mode=mode) == answer


# --- repeated drafts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("draft", "span", "new"),
    [
        (DRAFT, f"{DRAFT} scattering.", " scattering."),
        (DRAFT, "because of Rayleigh scattering.", " scattering."),
        (DRAFT, "Because  of\nRAYLEIGH scattering.", " scattering."),
        (DRAFT, "\n\nbecause of Rayleigh scattering.", " scattering."),
        (f"{DRAFT} ", f"{DRAFT} scattering.", "scattering."),
        ("It\u2019s \u201cvery\u201d blue", 'It\'s "very" blue today', " today"),
        ("the sky is inter", "The sky is international", "national"),
        ("天空之所以是蓝色的是因为", "空之所以是蓝色的是因为瑞利散射", "瑞利散射"),
    ],
)
def test_a_repeated_end_is_removed(draft: str, span: str, new: str):
    seam = mend(draft, span)
    assert seam.shown == new
    assert seam.trimmed.strip() == span[: len(span) - len(new.lstrip())].strip()
    assert not seam.restart


@pytest.mark.parametrize(
    ("draft", "span"),
    [
        ("She said no, no", "no, no, never"),  # 6 characters
        ("x = internationalization", "internationalization + 1"),  # one word
        ("天空是蓝色的是因为", "蓝色的是因为瑞利"),  # 6 characters
        (DRAFT, "The sky appears to be blue"),  # 8 characters, then something else
        ("The capital of France is Paris. ", "The capital of Spain is Madrid."),  # a parallel
    ],
)
def test_a_short_repetition_is_text(draft: str, span: str):
    assert mend(draft, span) == (span, "", False)


def test_the_longest_overlap_wins():
    draft = "one two three. one two three."
    assert shown(draft, "one two three. one two three. four") == " four"


def test_a_repetition_is_passed_on_as_soon_as_it_is_none():
    seam = Seam("A long draft about the colour of the sky", "instruct")
    assert seam.push("because it") == "because it"


def test_a_whole_draft_longer_than_the_window_is_found():
    draft = " ".join(f"word{i}" for i in range(1_000))
    assert shown(draft, f"{draft} and more") == " and more"


@pytest.mark.parametrize(
    "span",
    [
        "The sky is blue because the air scatters light.",
        "the sky is  blue because the air",
        "Sure! Here is the continuation:\n\nThe sky is blue because the air",
        "The sky is blue because",  # cut by the limit while it repeats
    ],
)
def test_a_restart_shows_nothing(span: str):
    seam = mend(f"{DRAFT} scattering. ", span)
    assert (seam.shown, seam.restart) == ("", True)


def test_nothing_after_a_restart_is_shown():
    seam = Seam(f"{DRAFT} scattering. ", "instruct")
    assert seam.push("The sky is blue because the") == ""
    assert seam.restart
    assert seam.push(" air scatters") + seam.flush() == ""
    assert seam.trimmed == "The sky is blue because the air scatters"


# --- openers and fences -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opener",
    [
        "Sure, here is the continuation:\n\n",
        "Sure! Here's the rest:\n",
        "Certainly! Here\u2019s the text that follows directly: ",
        "Here is the continuation of the answer:\n",
        "Of course.\nContinuing: ",
        "Continuing from where the draft stopped:\n",
        "Continuation:\n",
        "**Continuing:** ",
        "I'll continue:\n",
        "(continued) ",
        "[continued]: ",
        "... ",
        "\u2026 ",
        "Sure, here is the continuation:\n\n... ",
    ],
)
def test_openers_are_removed_and_the_words_keep_their_blank(opener: str):
    seam = mend(DRAFT, f"{opener}scattering.")
    assert (seam.shown, seam.trimmed) == (" scattering.", opener)
    assert shown(f"{DRAFT} ", f"{opener}scattering.") == "scattering."


@pytest.mark.parametrize(
    "text",
    [
        "Sure, the sky is blue.",
        "Okay.",
        "Here are the remaining steps: first, wait.",
        "Here is the complete code:\nx = 1",
        "Continued fractions: an introduction",
        "Continuing education is useful: it pays.",
        "I will continue to study: every day.",
        "..",
        "...",
        ".",
        ": 12",
        "",
    ],
)
def test_what_only_looks_like_an_opener_stays(text: str):
    assert shown("So it goes ", text) == text


def test_half_a_word_behind_an_ellipsis_keeps_no_blank():
    assert shown("It is inter", "...national") == "national"


def test_an_opener_cut_by_the_limit_is_not_shown():
    assert shown(DRAFT, "Sure, here is the") == ""


def test_cjk_openers_are_removed_without_adding_a_blank():
    assert shown("天空是", "好的，以下是续写的内容：\n蓝色的") == "蓝色的"
    assert shown("天空之所以是蓝色的是因为", "继续：天空之所以是蓝色的是因为瑞利散射") == "瑞利散射"


@pytest.mark.parametrize(
    ("draft", "span", "new"),
    [
        (DRAFT, "```\n scattering.\n```", " scattering."),
        (DRAFT, "```text\nscattering.\n```\n", " scattering.\n"),
        (
            DRAFT,
            "```markdown\nscattering:\n```python\nx\n```\ndone\n```",
            " scattering:\n```python\nx\n```\ndone",
        ),
        (DRAFT, "```\n scattering.", " scattering."),  # cut by the limit
        ("Run this:\n\n", "```python\nprint(1)\n```", "```python\nprint(1)\n```"),
        ("```python\ndef f():\n", "```python\n    return 1\n```", "    return 1\n```"),
        ("```python\nx = 1\n", "```\nThat sets x.", "```\nThat sets x."),
        (DRAFT, "`scattering`", "`scattering`"),
    ],
)
def test_only_a_fence_around_the_reply_is_removed(draft: str, span: str, new: str):
    assert shown(draft, span) == new


# --- any chunking -------------------------------------------------------------------------------

SPANS = st.one_of(
    st.text(alphabet="ab .`\n:", max_size=20),
    st.lists(
        st.sampled_from(
            [
                *("Sure, ", "here is the continuation:", "\n", "...", "```", "```text\n", " "),
                *(DRAFT, "because of Rayleigh", "The sky is blue because", "scattering", "天空"),
                *("Continuing:", "**", "Okay.", "Here is", "(continued)", "I'll continue", "`"),
            ]
        ),
        max_size=6,
    ).map("".join),
)
DRAFTS = st.sampled_from(
    [
        DRAFT,
        f"{DRAFT} ",
        f"{DRAFT}\n\n",
        "",
        " ",
        "a",
        "aaaaaaa aaaaaaa aaaaaaa",
        "```py\nx\n",
        "天空",
    ]
)


@given(
    draft=DRAFTS,
    span=SPANS,
    cuts=st.lists(st.integers(0, 200), max_size=8),
    mode=st.sampled_from([*LITERAL, *ASKED]),
)
def test_any_chunking_gives_the_same(draft: str, span: str, cuts: list[int], mode: Mode):
    at = sorted({0, len(span), *(cut for cut in cuts if cut < len(span))})
    pieces = [span[a:b] for a, b in pairwise(at)]
    assert mend(draft, *pieces, mode=mode) == mend(draft, span, mode=mode)


@given(draft=DRAFTS, span=SPANS)
def test_what_is_shown_or_trimmed_is_all_of_the_span(draft: str, span: str):
    seam = mend(draft, span)
    together = sorted((seam.shown + seam.trimmed).replace(" ", "").replace("\n", ""))
    assert together == sorted(span.replace(" ", "").replace("\n", ""))
