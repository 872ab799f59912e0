"""What a reply to the probe says of its host."""

from __future__ import annotations

import pytest

from langchain_relay.delegates.probe import BEGUN, classified
from langchain_relay.errors import DelegateError


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("mps over the sleepy dog", "literal"),
        (" mps over", "literal"),
        (f"{BEGUN}mps over the sleepy dog", "echo"),
        ("ggles over the sleepy dog", "literal"),
        ("jumps over the sleepy dog", "restart"),  # only a whole repetition can be dropped
        ("ggles a ball", "restart"),
        ("a fox. over the sleepy dog", "restart"),
        ("The small brown fox jumps over", "restart"),
        ("Sure! The small green fox jumps", "restart"),
    ],
)
def test_a_reply_says_what_the_host_does(reply, verdict):
    assert classified(reply) == verdict


@pytest.mark.parametrize("reply", ["", "  \n"])
def test_an_empty_reply_says_nothing(reply):
    with pytest.raises(DelegateError, match="empty"):
        classified(reply)
