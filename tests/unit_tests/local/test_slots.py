"""Which sequence serves a prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_relay.local.slots import COPIED_TOKENS, LOST_TOKENS, Slot, Slots, shared_prefix

SYSTEM = list(range(100, 100 + 2 * COPIED_TOKENS))
IDS = st.lists(st.integers(0, 2), max_size=12)


@given(IDS, IDS)
def test_the_shared_prefix_is_all_and_only_what_is_shared(a, b):
    n = shared_prefix(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


def test_fresh_sequences_are_lent_lowest_first():
    slots = Slots(3)
    assert [slots.take([1, 2]).id for _ in range(3)] == [0, 1, 2]
    assert not slots.free
    slots.give(2, [])
    slots.give(1, [])
    assert slots.take([1, 2]) == Slot(1)


def filled(*lengths):
    """Idle sequences, the first one used the longest ago; each holds its number."""
    slots = Slots(len(lengths))
    for slot in range(len(lengths)):
        assert slots.take([99]).id == slot
    for slot, length in enumerate(lengths):
        slots.give(slot, [slot] * length)
    return slots


def test_a_conversation_that_would_leave_a_gap_changes_places():
    slots = filled(50, 60, 70, 80)
    assert slots.take([0] * 55) == Slot(0, kept=50)
    assert slots.take([3] * 85) == Slot(1, kept=80, exchanged=3)
    assert slots.take([1] * 85) == Slot(2, kept=60, exchanged=3)  # it lies where 3 lay
    assert slots.take([2] * 85) == Slot(3, kept=70)


def test_a_new_one_takes_the_least_recently_used_ones_place_and_nobody_elses():
    slots = filled(50, 60, 70, 80)
    assert slots.take([3] * 85) == Slot(3, kept=80)
    assert slots.take([9] * 20) == Slot(2, kept=0, exchanged=0)  # 0 is forgotten, 2 lies there
    assert slots.take([2] * 75) == Slot(1, kept=70, exchanged=0)
    assert slots.take([1] * 75) == Slot(0, kept=60)


def test_an_empty_neighbour_is_taken_before_one_that_holds_something():
    slots = Slots(4)
    for _ in range(3):
        slots.take([99])
    slots.give(2, [2] * 50)
    slots.give(0, [0] * 50)
    assert slots.take([9] * 20) == Slot(0, exchanged=3)  # both neighbours hold something
    slots = Slots(4)
    assert [slots.take([99]).id for _ in range(3)] == [0, 1, 2]
    slots.give(2, [])
    slots.give(0, [0] * 50)
    assert slots.take([9] * 20) == Slot(2)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=40))
def test_whatever_comes_and_goes_nothing_is_lent_twice_and_what_is_kept_is_there(steps):
    """A model of the KV cache: what a slot says it keeps must be in it."""
    slots = Slots(4)
    cache: dict[int, list[int]] = {n: [] for n in range(4)}
    busy: list[int] = []
    for leave, topic in steps:
        if busy and leave < 2:
            slot = busy.pop(leave % len(busy))
            slots.give(slot, cache[slot])
            continue
        if not slots.free:
            continue
        prompt = [topic] * (40 + 10 * leave) + [7]
        got = slots.take(prompt, [(n, cache[n]) for n in busy])
        assert got.id not in busy
        if got.exchanged is not None:
            assert got.exchanged not in busy
            cache[got.id], cache[got.exchanged] = cache[got.exchanged], cache[got.id]
        if got.donor is not None:
            cache[got.id] = list(cache[got.donor])
        assert cache[got.id][: got.kept] == prompt[: got.kept]
        cache[got.id] = prompt
        busy.append(got.id)


def test_a_conversation_goes_on_in_its_sequence():
    slots = Slots(3)
    slots.give(slots.take([1]).id, [7] * 50)
    slots.give(slots.take([8] * 60).id, [8] * 60)
    assert slots.take([7] * 50 + [1, 2]) == Slot(0, kept=50)


def test_the_prompt_s_last_token_is_always_evaluated():
    slots = Slots(1)
    slots.give(slots.take([1]).id, [7] * 50)
    assert slots.take([7] * 50).kept == 49


def test_of_two_beginnings_the_longer_one_goes_on():
    slots = Slots(3)
    first, second = slots.take([1]).id, slots.take([2]).id
    slots.give(first, [7] * 20)
    slots.give(second, [7] * 30)
    assert slots.take([7] * 40) == Slot(second, kept=30)


def test_a_conversation_whose_end_was_trimmed_goes_on_too():
    slots = Slots(2)
    slots.give(slots.take([1]).id, [7] * 50 + [9] * LOST_TOKENS)
    assert slots.take([7] * 60) == Slot(0, kept=50)


def test_a_question_asked_again_takes_the_place_of_its_answer():
    slots = Slots(2)
    first, other = slots.take([1]).id, slots.take([2]).id
    slots.give(other, [5] * 50)
    slots.give(first, SYSTEM + [1] * 50)
    assert slots.take([*SYSTEM, 1]) == Slot(first, kept=len(SYSTEM))


def test_a_question_asked_again_leaves_its_answer_where_another_sequence_is_empty():
    slots = Slots(2)
    slots.give(slots.take([1]).id, SYSTEM + [1] * 50)
    assert slots.take([*SYSTEM, 1]) == Slot(1, kept=len(SYSTEM), donor=0)


def test_a_question_much_like_another_leaves_it_alone():
    slots = Slots(2)
    slots.give(slots.take([1]).id, SYSTEM + [1] * 50)
    assert slots.take([*SYSTEM, 3, 4]) == Slot(1, kept=len(SYSTEM), donor=0)


def test_another_conversation_with_the_same_beginning_gets_a_copy():
    slots = Slots(2)
    slots.give(slots.take([1]).id, SYSTEM + [1] * 50)
    assert slots.take([*SYSTEM, *[2] * 20]) == Slot(1, kept=len(SYSTEM), donor=0)


def test_what_is_being_written_can_be_copied_too():
    slots = Slots(2)
    busy = slots.take([*SYSTEM, 1])
    slot = slots.take([*SYSTEM, 2], [(busy.id, [*SYSTEM, 1])])
    assert slot == Slot(1, kept=len(SYSTEM), donor=busy.id)


def test_a_short_beginning_is_not_copied():
    slots = Slots(2)
    busy = slots.take([1])
    short = SYSTEM[: COPIED_TOKENS - 1]
    assert slots.take([*short, 2], [(busy.id, [*short, 1])]) == Slot(1)


def test_the_least_recently_used_is_forgotten_first():
    slots = Slots(2)
    first, second = slots.take([1]).id, slots.take([2]).id
    slots.give(second, [7] * 40)
    slots.give(first, [8] * 40)
    assert slots.take([9] * 40) == Slot(second)
    assert slots.take([9] * 40) == Slot(first)


def test_the_only_sequence_keeps_what_fits():
    slots = Slots(1)
    slots.give(slots.take([1]).id, SYSTEM + [1] * 50)
    assert slots.take([*SYSTEM, 2, 2]) == Slot(0, kept=len(SYSTEM))


@pytest.mark.parametrize("extra", [[], [5]])
def test_a_state_that_cannot_be_cut_is_used_whole_or_not_at_all(extra):
    slots = Slots(1, rewinds=False)
    slots.give(slots.take([1]).id, [7] * 50 + extra)
    assert slots.take([7] * 60) == Slot(0, kept=0 if extra else 50)
