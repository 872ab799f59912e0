"""Openers are taken out, and answers that look like them are left whole."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from langchain_relay.delegates.continuation import Seam
from langchain_relay.engine.values import Mode
from tests.unit_tests.delegates.seam_corpus import (
    ANSWERS,
    LEFT,
    RESTARTS,
    SAID_ONCE,
    TRIMMED,
    Answer,
    Trimmed,
)

modes = pytest.mark.parametrize("mode", ["instruct", "handoff"])


def mended(draft: str, *pieces: str, mode: Mode = "instruct") -> tuple[str, str, bool]:
    seam = Seam(draft, mode)
    text = "".join([*map(seam.push, pieces), seam.flush()])
    return text, seam.trimmed, seam.restart


@modes
@pytest.mark.parametrize("case", [*TRIMMED, *SAID_ONCE])
def test_what_is_no_continuation_is_taken_out(case: Trimmed, mode: Mode):
    shown, trimmed, restart = mended(case.draft, case.reply, mode=mode)
    assert (shown, restart) == (case.new, False)
    assert sorted("".join((shown + trimmed).split())) == sorted("".join(case.reply.split()))


@modes
@pytest.mark.parametrize("case", [*ANSWERS, *LEFT])
def test_what_may_be_the_answer_is_left_whole(case: Answer, mode: Mode):
    assert mended(case.draft, case.reply, mode=mode) == (case.reply, "", False)


@modes
@pytest.mark.parametrize(("draft", "reply"), RESTARTS)
def test_a_restart_is_declined(draft: str, reply: str, mode: Mode):
    assert mended(draft, reply, mode=mode) == ("", reply, True)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("draft", "reply"),
    [*((c[0], c[1]) for c in (*TRIMMED, *SAID_ONCE, *ANSWERS, *LEFT)), *RESTARTS],
)
def test_any_chunking_of_these_gives_the_same(draft: str, reply: str, seed: int):
    random = Random(seed)
    marks = random.sample(range(len(reply) + 1), min(4, len(reply))) if seed else range(len(reply))
    at = sorted({0, len(reply), *marks})
    pieces = [reply[a:b] for a, b in pairwise(at)]
    assert mended(draft, *pieces) == mended(draft, reply)
