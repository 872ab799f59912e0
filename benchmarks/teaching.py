"""How often does a stock instruct model call, taught by which prompt?

Sixty questions of three kinds: arithmetic and facts, where a small model is often wrong and a call
is wanted, and plain requests, where none is. For each lesson: the share of answers with a
well-formed call, by kind, and of those with a malformed one. Greedy, first 24 tokens of an answer.

    python benchmarks/teaching.py            # prints the table, writes benchmarks/results/
"""

from __future__ import annotations

import json
import platform
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from langchain_relay import RelayChatModel, per_call, relay_report
from langchain_relay.local import LlamaCppModel
from langchain_relay.teaching import FEW_SHOT, Lesson
from langchain_relay.testing import ScriptedDelegate

ARITHMETIC = [
    "What is 23*17?", "What is 48*12?", "Compute 365*24.", "How much is 144 divided by 9?",
    "What is 987 + 654?", "What is 1001 - 356?", "Calculate 15% of 260.", "What is 19 squared?",
    "What is the square root of 1764?", "How many minutes are in 17 hours?", "What is 75*8?",
    "What is 2 to the power of 13?", "Add 4096 and 1234.", "What is 91*11?", "What is 7*8*9?",
    "How much is 5000 minus 1287?", "A train goes 85 km per hour for 4 hours. How far does it go?",
    "What is 640/16?", "What is the sum of 12, 45 and 78?", "What is 33*34?",
]  # fmt: skip
FACTS = [
    "What is the boiling point of iron?", "Who painted Guernica?",
    "What is the capital of Mongolia?",
    "In which year was the printing press invented?", "Who wrote The Magic Mountain?",
    "What is the chemical symbol of tungsten?", "How high is Mount Elbrus?",
    "Who discovered penicillin?", "When did the Battle of Hastings take place?",
    "What is the population of Iceland?", "Who composed The Rite of Spring?",
    "What is the speed of sound in air?", "Which river flows through Baghdad?",
    "Who was the first woman in space?", "What is the atomic number of silver?",
    "What is the currency of Vietnam?", "Who founded the city of Alexandria?",
    "How long is the Danube?", "Which planet has the most moons?", "Who invented the telephone?",
]  # fmt: skip
PLAIN = [
    "Explain why the sky is blue.", "Write a short poem about autumn.",
    "Say good morning to my team.",
    "Give me a tip for a better sleep.",
    "Rewrite this politely: send me the file now.",
    "Write one sentence about cats.", "How can I stay calm before an exam?",
    "Suggest a name for a small cafe.", "Tell me a story about a dragon.",
    "What should I wear on a rainy day?", "Describe a sunset at the sea.",
    "Thank my neighbor for the soup.",
    "Why is it good to read books?", "Give me an idea for a weekend.",
    "Write an invitation to a party.",
    "How do I make friends in a new city?", "What makes a good teacher?", "Cheer me up, please.",
    "Describe your favorite season.", "Write a slogan for a bakery.",
]  # fmt: skip
KINDS = {"arithmetic": ARITHMETIC, "facts": FACTS, "plain": PLAIN}

_SENTENCE = (
    "When you need a number, a name or a fact, write <call>n</call> in its place, where n is its "
    "length in tokens; it is then filled in for you and you go on."
)
_ARITHMETIC = (
    ("What is 14*12?", "14*12 is <call>3</call>168."),
    ("How much is 930 divided by 6?", "930 divided by 6 is <call>3</call>155."),
    ("What is 256 + 389?", "256 + 389 is <call>3</call>645."),
)
_FACTS = (
    ("Who wrote Don Quixote?", "Don Quixote was written by <call>5</call>Miguel de Cervantes."),
    ("What is the melting point of gold?", "The melting point of gold is <call>6</call>1064 °C."),
    ("When did Napoleon die?", "Napoleon died in <call>4</call>1821."),
)
_PLAIN = (
    ("Say hello to my friend Ann.", "Hello Ann, it is nice to meet you!"),
    ("Give me a tip for my garden.", "Water your plants early in the morning, before it gets hot."),
    ("Write a line about the moon.", "The moon hangs quietly over the sleeping town."),
)


def _in_system(*groups: tuple[tuple[str, str], ...]) -> str:
    """The examples as text of the system prompt instead of earlier turns."""
    lines = [f"Question: {q}\nAnswer: {a}" for group in groups for q, a in group]
    return "\n\n".join(["Examples:", *lines])


_MIXED = tuple(example for pair in zip(_ARITHMETIC, _FACTS, strict=True) for example in pair)

LESSONS = {
    "shipped": FEW_SHOT,
    "sentence only": Lesson(_SENTENCE, ()),
    "1 of each kind, plain last": Lesson(_SENTENCE, (_ARITHMETIC[0], _FACTS[0], _PLAIN[0])),
    "1 of each kind, plain first": Lesson(_SENTENCE, (_PLAIN[0], _ARITHMETIC[0], _FACTS[0])),
    "1 plain, then 3 + 3": Lesson(_SENTENCE, (_PLAIN[0], *_MIXED)),
    "3 + 3, then 1 plain": Lesson(_SENTENCE, (*_MIXED, _PLAIN[0])),
    "examples as text of the system prompt": Lesson(
        f"{_SENTENCE}\n\n{_in_system(_PLAIN[:1], _MIXED)}", ()
    ),
}


def measure(model: RelayChatModel, lesson: Lesson) -> dict[str, dict[str, float]]:
    """Shares of answers with a call and with a malformed command, by kind."""
    per_call.FEW_SHOT = lesson
    shares = {}
    for kind, questions in KINDS.items():
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(model.invoke, questions))
        events = [a.response_metadata["relay"].get("events", []) for a in answers]
        started = [[e for e in own if e["type"] == "relay.call.started"] for own in events]
        shares[kind] = {
            "called": sum(map(bool, started)) / len(questions),
            "malformed": sum(any(e.get("reason") == "malformed" for e in own) for own in events)
            / len(questions),
            "median_n": sorted([e["requested_n"] for own in started for e in own] or [0])[
                sum(map(len, started)) // 2
            ],
        }
        for question, answer in zip(questions[:3], answers[:3], strict=True):
            print(f"    {question} -> {str(relay_report(answer)).splitlines()[0][:90]}")
    return shares


def main() -> None:
    """Measure every lesson whose name contains the first argument."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    local = LlamaCppModel("smollm2-135m", n_ctx=1024, max_concurrency=8)
    delegate = ScriptedDelegate("391")
    model = RelayChatModel(
        model=local, delegate=delegate, temperature=0, max_tokens=24, max_calls=1
    )
    table = {}
    for name, lesson in LESSONS.items():
        if wanted in name:
            started = time.perf_counter()
            table[name] = measure(model, lesson)
            cells = "  ".join(
                f"{kind} {share['called']:4.0%}" for kind, share in table[name].items()
            )
            print(f"{name:36} {cells}  ({time.perf_counter() - started:.0f} s)", flush=True)
    if not wanted:
        out = (
            Path(__file__).parent
            / "results"
            / f"teaching-{datetime.now(tz=UTC).date().isoformat()}.json"
        )
        facts = {"model": local.name, "python": platform.python_version(), "questions": 60}
        out.write_text(json.dumps({**facts, "lessons": table}, indent=2) + "\n")
    local.close()


if __name__ == "__main__":
    main()
