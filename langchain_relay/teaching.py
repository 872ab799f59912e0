"""Teaching the call command by prompt: one system sentence and worked examples.

A stock instruct model has never seen `<call>n</call>`. The examples show where a call belongs
(arithmetic, facts), how long it is in tokens, and that plain questions need none. They stand in
front of the conversation, in the local view only: no hosted model ever sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from langchain_relay.engine.values import Turn


@dataclass(frozen=True, slots=True)
class Lesson:
    """A way of teaching the command.

    Attributes:
        instruction: Added to the system prompt, behind the user's own.
        examples: Questions and answers shown as earlier turns.
    """

    instruction: str
    examples: tuple[tuple[str, str], ...]

    def teach(self, turns: Sequence[Turn]) -> list[Turn]:
        """Put the lesson in front of a conversation; the user's own system prompt stays first."""
        own = [turn.content for turn in turns if turn.role == "system"]
        system = Turn("system", "\n\n".join([*own, self.instruction]))
        shown = [
            turn
            for question, answer in self.examples
            for turn in (
                Turn("user", question, fixed=True),
                Turn("assistant", answer, fixed=True),
            )
        ]
        return [system, *shown, *(turn for turn in turns if turn.role != "system")]


FEW_SHOT = Lesson(
    instruction=(
        "Write <call>n</call> before every number and every name: n is its length in tokens."
    ),
    examples=(
        ("Say hello to my friend Ann.", "Hello Ann, it is nice to meet you!"),
        ("What is 14*12?", "14*12 is <call>3</call>168."),
        ("Who wrote Don Quixote?", "Don Quixote was written by <call>5</call>Miguel de Cervantes."),
        ("How much is 930 divided by 6?", "930 divided by 6 is <call>3</call>155."),
        (
            "What is the melting point of gold?",
            "The melting point of gold is <call>6</call>1064 °C.",
        ),
        ("What is 256 + 389?", "256 + 389 is <call>3</call>645."),
        ("When did Napoleon die?", "Napoleon died in <call>4</call>1821."),
    ),
)
"""The lesson that `benchmarks/teaching.py` chose: see `benchmarks/results/`.

The plain example stands first: last, it teaches a 135M model not to call at all.
"""
