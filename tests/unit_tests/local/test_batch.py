"""Who is in the next batch."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from langchain_relay.local.batch import PIECE_TOKENS, plan
from langchain_relay.local.sequence import Sequence
from tests.unit_tests.local.counting import Counting


@dataclass(eq=False)
class Waiting:
    sequence: Sequence


def waiting(number, pending):
    return Waiting(Sequence(number, [1] * pending, Counting()))


def planned(asking, feeding=(), n_batch=512):
    return {part.lease.sequence.id: part.n for part in plan(asking, feeding, n_batch)}


def test_whoever_decodes_gets_a_row_beside_a_long_prompt():
    chats = [waiting(0, 5000), waiting(1, 1), waiting(2, 1)]
    assert planned(chats) == {0: PIECE_TOKENS, 1: 1, 2: 1}


def test_a_prompt_alone_takes_the_whole_batch():
    assert planned([waiting(0, 5000)]) == {0: 512}


def test_a_short_prompt_passes_a_long_one():
    assert planned([waiting(0, 5000), waiting(1, 30)]) == {0: 482, 1: 30}


def test_prompts_share_equally():
    assert planned([waiting(n, 5000) for n in range(3)], n_batch=90) == {0: 30, 1: 30, 2: 30}


def test_fed_text_takes_one_row_beside_others_and_all_it_can_alone():
    fed = waiting(1, 40)
    assert planned([waiting(0, 1)], [(fed, 39)]) == {0: 1, 1: 1}
    assert planned([], [(fed, 39)]) == {1: 39}


def test_a_prompt_stops_where_its_state_is_wanted():
    chat = waiting(0, 300)
    chat.sequence.pause_at = 120
    assert planned([chat]) == {0: 120}
    chat.sequence.note_evaluated(120)
    assert planned([chat]) == {0: 180}


def test_only_the_last_token_s_logits_are_wanted():
    (part,) = plan([waiting(3, 5)], (), 4)
    assert [(row.position, row.sequence, row.wanted) for row in part.rows()] == [
        (n, 3, False) for n in range(4)
    ]
    (part,) = plan([waiting(3, 2)], (), 4)
    assert [row.wanted for row in part.rows()] == [False, True]


@given(st.lists(st.integers(1, 700), max_size=8), st.lists(st.integers(1, 40), max_size=4))
def test_a_batch_is_in_order_within_its_bound_and_leaves_nobody_out(pending, feeds):
    asking = [waiting(n, tokens) for n, tokens in enumerate(reversed(pending))]
    feeding = [(waiting(20 + n, tokens + 1), tokens) for n, tokens in enumerate(feeds)]
    parts = plan(asking, feeding, 64)
    assert [p.lease.sequence.id for p in parts] == sorted(p.lease.sequence.id for p in parts)
    assert sum(part.n for part in parts) <= 64
    assert all(0 < part.n <= part.lease.sequence.pending for part in parts)
    assert len(parts) == len(pending) + len(feeds)
