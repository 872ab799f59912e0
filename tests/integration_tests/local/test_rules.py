"""Grammars, bans and signals on a real vocabulary."""

from __future__ import annotations

import re

import numpy as np
import pytest

from langchain_relay.engine.errors import LocalModelError, UsageMistake
from langchain_relay.engine.events import Feed
from langchain_relay.engine.values import Rule
from tests.integration_tests.local.sessions import step, steps

pytestmark = [pytest.mark.gguf, pytest.mark.xdist_group("gguf")]

STORY = "Write a story about a cat and a lighthouse."
DIGITS = Rule(grammar='root ::= "Code " [0-9] [0-9] [0-9] "-" [a-f]+ "."')
SAMPLINGS = [{}, {"temperature": 1.0, "seed": 3}]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "seeded"])
def test_text_follows_a_grammar_and_ends_where_it_ends(start, sampling):
    text = "".join(one.text for one in steps(start(STORY, **sampling), 40, rule=DIGITS))
    assert re.fullmatch(r"Code \d\d\d-[a-f]+\.", text) or len(text) >= 30
    assert re.match(r"Code \d\d\d-[a-f]", text)


def test_the_grammar_begins_where_the_rule_does_and_foreign_text_is_not_its_business(start):
    session = start(STORY)
    free = step(session)
    session.feed(Feed((free.id, " said Ines. ")))
    got = steps(session, 3, rule=DIGITS)
    session.feed(Feed((got[-1].id, " (no code) ")))
    rest = steps(session, 30, rule=DIGITS)
    assert re.match(r"Code \d\d\d-[a-f]", "".join(one.text for one in [*got, *rest]))


def test_a_rewind_takes_the_grammar_back(start):
    straight = [one.text for one in steps(start(STORY), 12, rule=DIGITS)]
    session = start(STORY)
    got = steps(session, 6, rule=DIGITS)
    again = step(session, rewind=2, rule=DIGITS)
    assert again.text == straight[3]
    rest = steps(session, 8, (again.id,), rule=DIGITS)
    assert [one.text for one in [*got[:3], again, *rest]] == straight[: 4 + len(rest)]


def test_another_grammar_begins_anew(start):
    session = start(STORY)
    got = steps(session, 4, rule=DIGITS)
    yes = Rule(grammar='root ::= "yes" | "no"')
    rest = steps(session, 5, (got[-1].id,), rule=yes)
    assert "".join(one.text for one in rest) in {"yes", "no"}


def test_a_grammar_that_cannot_be_read_is_refused_and_harms_nobody(start):
    session = start(STORY)
    with pytest.raises(UsageMistake, match="GBNF"):
        step(session, rule=Rule(grammar='root ::= "unclosed'))
    assert step(session).text


def test_a_ban_and_a_grammar_that_leave_nothing_are_explained(start):
    session = start(STORY)
    with pytest.raises(LocalModelError, match="outside the grammar"):
        step(session, rule=Rule(grammar='root ::= "abc"', ban=("ab", "a", "abc")))
    assert step(session).text


def test_checking_the_candidate_gives_what_masking_first_gives(start, steady):
    """Greedy: the best token the grammar allows, wherever the best of all stands."""
    session = start(STORY, on=steady)
    got = step(session, rule=DIGITS)
    context = steady._runner._context
    grammar = context.grammar(DIGITS.grammar)
    again = step(session)  # the last decode, with untouched logits
    logits = context.logits(-1).copy()
    grammar.mask(logits)
    grammar.free()
    assert again.id != got.id  # else this test shows nothing
    assert got.id == int(np.argmax(logits))


def test_the_hidden_state_comes_with_its_step(start):
    session = start(STORY)
    rule = Rule(signals=frozenset({"hidden", "entropy"}))
    first, second = steps(session, 2, rule=rule)
    for one in (first, second):
        assert one.signals["hidden"].shape == (576,)
        assert np.isfinite(one.signals["hidden"]).all()
        assert one.signals["entropy"] > 0
    assert not np.allclose(first.signals["hidden"], second.signals["hidden"])
    again = start(STORY)
    same = step(again, rule=rule)
    np.testing.assert_allclose(same.signals["hidden"], first.signals["hidden"], rtol=1e-5)


def test_asking_for_the_hidden_state_changes_no_text(start):
    plain = [one.id for one in steps(start(STORY), 12, rule=Rule())]
    hidden = Rule(signals=frozenset({"hidden"}))
    assert [one.id for one in steps(start(STORY), 12, rule=hidden)] == plain
    session = start(STORY)
    got = steps(session, 6, rule=Rule())
    rest = steps(session, 6, (got[-1].id,), rule=hidden)
    assert [one.id for one in [*got, *rest]] == plain


def test_redraws_after_a_ban_have_the_probabilities_of_what_is_left(start):
    """With the draw that chose the banned token, what is left is not drawn by its probability."""
    session = start("Say one colour.", temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=1)
    banned = step(session).text
    rule = Rule(ban=(banned,))
    drawn = set()
    for seed in range(12):
        other = start("Say one colour.", temperature=1.0, seed=seed)
        drawn.add(step(other, rule=rule).text)
        other.close()
    assert banned not in drawn
    assert len(drawn) > 1
