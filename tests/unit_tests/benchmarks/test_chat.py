"""How a stream is timed: prefill apart, and never shorter than was planned."""

from __future__ import annotations

import pytest

from benchmarks.chat import EndedEarly, Timed, fresh_messages, roomy, timed
from benchmarks.chats import together


def written(*times: float) -> Timed:
    return Timed("", times[0], times[-1] - times[0], times)


def test_the_rate_counts_from_the_first_token_to_the_last():
    assert written(10, 11, 12, 13).rate(4) == 1.0


def test_an_answer_that_ended_early_has_no_rate():
    with pytest.raises(EndedEarly, match="3 pieces of text instead of 4 tokens"):
        written(10, 11, 12).rate(4)


def test_empty_pieces_are_no_tokens():
    run = timed(["", "a", "", "b", ""])

    assert (run.text, len(run.times)) == ("ab", 2)


def test_a_stream_without_text_is_no_answer():
    with pytest.raises(EndedEarly):
        timed(["", ""])


def test_chats_count_only_while_all_of_them_write():
    # Between 2 and 4 seconds: tokens at 3 and 4 of one, at 3 and 4 of the other.
    assert together([written(1, 2, 3, 4), written(2, 3, 4, 5)], 4) == 2.0


def test_chats_that_never_write_at_once_have_no_common_rate():
    with pytest.raises(EndedEarly):
        together([written(1, 2), written(2, 3)], 2)


def test_no_two_conversations_begin_alike():
    assert fresh_messages()[0].content != fresh_messages()[0].content


def test_context_is_rounded_as_llama_cpp_rounds_it():
    assert [roomy(100), roomy(192), roomy(193)] == [256, 256, 512]
