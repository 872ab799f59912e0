"""Characters out of bytes, and strings that must not be begun."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_relay.local.text import begins, forbidden, whole_chars


@given(st.text(max_size=20), st.data())
def test_any_split_of_the_bytes_gives_the_same_text(text, data):
    raw, out, held = text.encode(), "", b""
    while raw:
        n = data.draw(st.integers(1, len(raw)))
        new, held = whole_chars(held, raw[:n])
        out, raw = out + new, raw[n:]
    assert out == text
    assert held == b""


def test_a_cut_emoji_gives_nothing_and_then_the_whole_character():
    raw = "🙂".encode()
    assert whole_chars(b"", raw[:2]) == ("", raw[:2])
    assert whole_chars(raw[:2], raw[2:]) == ("🙂", b"")


def test_bytes_that_are_no_character_are_replaced_and_do_not_block():
    assert whole_chars(b"\xf0\x9f", b"abc") == ("\ufffdabc", b"")


@pytest.mark.parametrize(
    ("tail", "new", "found"),
    [
        ("it is ", "<call", True),
        ("it is <", "call", True),
        ("it is .<ca", "ll>", True),
        ("it is ", "<", False),
        ("<", "calm", False),
        ("<call>3</call> so ", "yes", False),  # begun before, and not again
        ("<call", ">", True),  # begun before the ban, and not to be completed
    ],
)
def test_a_banned_string_is_begun_where_its_last_character_is_next(tail, new, found):
    assert begins(tail, new, forbidden(("<call>",))) is found


def test_a_ban_of_one_character_forbids_that_character_only():
    parts = forbidden(("#",))
    assert begins("", "a#", parts)
    assert not begins("#", "a", parts)


def test_nothing_banned_forbids_nothing():
    assert forbidden(()) == ()
    assert not begins("", "anything", ())
