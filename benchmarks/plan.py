"""How much is measured: the full counts, and the smallest ones that still run every line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Plan:
    """The size of a run; a topic takes from it what it needs.

    Attributes:
        model: Alias or path of the GGUF.
        threads: Decode threads of whichever side is at work.
        rounds: Interleaved rounds.
        decode_tokens: Lengths of the decode comparison.
        decode_repeats: Turns of each side within one of its rounds.
        prompt_tokens: Roughly, for the time to the first token.
        contexts: Context sizes of the resume comparison, in tokens.
        spans: Span lengths of it.
        resumes: Resumes in one turn, of which the median counts.
        chats: Numbers of chats at once.
        chat_tokens: Tokens of each of them.
        waits_s: How long a hosted model lets wait.
        first_turn_tokens: Size of the conversation before its second turn, roughly.
        overhead_tokens: Tokens of one turn of the overhead measurement.
        attempts: Reservations in one turn of a ledger, of which the median counts.
        cuts: Places at which real texts are cut, of four kinds of text together.
        added_calls: Hand-overs in one turn whose added time is measured.
        draft_tokens: Length of the answer whose prompts are priced, in words.
        draft_calls: Numbers of hand-overs of it.
    """

    model: str = "smollm2-135m"
    threads: int = 2
    rounds: int = 7
    decode_tokens: tuple[int, ...] = (200, 1500)
    decode_repeats: int = 2
    prompt_tokens: int = 500
    contexts: tuple[int, ...] = (500, 1000, 2000, 4000)
    spans: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    resumes: int = 3
    chats: tuple[int, ...] = (1, 2, 4, 8, 16)
    chat_tokens: int = 96
    waits_s: tuple[float, ...] = (0.1, 0.3)
    first_turn_tokens: int = 1500
    overhead_tokens: int = 2000
    attempts: int = 300
    cuts: int = 500
    added_calls: int = 10
    draft_tokens: int = 2000
    draft_calls: tuple[int, ...] = (1, 4, 16)


QUICK: dict[str, Any] = {
    "rounds": 1,
    "decode_tokens": (24,),
    "decode_repeats": 1,
    "prompt_tokens": 100,
    "contexts": (150,),
    "spans": (1, 8),
    "resumes": 2,
    "chats": (1, 8),
    "chat_tokens": 32,  # with fewer the first chat may end before the last has begun
    "waits_s": (0.3,),
    "first_turn_tokens": 300,
    "overhead_tokens": 200,
    "attempts": 5,
    "cuts": 8,
    "added_calls": 2,
    "draft_tokens": 2400,
    "draft_calls": (2,),
}
"""What `--quick` changes: seconds per topic, numbers that mean nothing."""
