"""Every script of examples/ runs from start to end, without a key, and prints what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clock import within_an_hour

EXAMPLES = Path(__file__).parents[2] / "examples"
TIMEOUT_S = 300

DECODES = [pytest.mark.gguf, pytest.mark.xdist_group("gguf")]
CASES = {
    "quickstart": r"^3 hours.*\[.+\].*\nspans: \d+\ncalls: [1-4] .*\n[\s\S]*\ncost: 0\.\d+ USD",
    "streaming_with_provenance": (
        r"^\[.+\].*\n[\s\S]*0-\d+ +delegate smollm2-135m .*\n +\d+-\d+ +local"
    ),
    "budget_that_runs_out": (
        r"relay\.call\.finished: 0\.000100 USD for n=8\n"
        r"relay\.call\.denied: 0\.\d+ USD may be needed, 0\.001900 USD is left\n"
        r"answer: It is 3 degrees in Oslo, so take a coat\.\n"
        r"BudgetExceeded: this hand-over may need"
    ),
    "costs_of_every_model": (
        r"^0\.00\d+ USD for 15 calls, .* 3 calls to llama3\.2 cost, which nobody knows\n"
        r"  gpt-5-mini: calls 6, in 3120 \(2400 cached\), .*, 0\.00\d+ USD, genai-prices .*\n"
        r"  claude-haiku-4-5: .*, 0\.00\d+ USD, .*\n  llama3\.2: .*, unknown, -\n"
        r"  scripted-local: .*, 0 USD, local\n\nwith .*: 0\.000011 USD for 1 call, "
    ),
    "in_a_chain": (
        r"never: .+\n +0 calls[\s\S]*auto: .+\n[\s\S]*always: .+\n +1 call \(1 finished"
    ),
    "in_create_agent": (
        r"The capital of Mongolia is \[Ulaanbaatar\]\.\n"
        r"[\s\S]*assistant: The capital of Mongolia is <call>4</call>Ulaanbaatar\.\n"
        r"[\s\S]*ai: The capital of Mongolia is Ulaanbaatar\.\n"
    ),
    "on_a_server": r"\[.+\][\s\S]*hand-overs: ([1-8])\ncompletions: [2-9]\n",
    "own_hosted_expert": (
        r"^probe: (literal|restart) in completion mode\nalive: [\s\S]*\[.+\][\s\S]*\ndead: [^\[]+\n"
        r"hand-overs: ([1-8]), failed: \2\n"
    ),
    "second_turn": (
        r"turn 1 +\d+ prompt tokens, +0 from the cache\n"
        r"turn 2 +\d+ prompt tokens, +[1-9]\d+ from the cache\n"
        r"turn 3 +\d+ prompt tokens, +[1-9]\d+ from the cache\n"
        r"another conversation +\d+ prompt tokens, +[1-9]\d+ from the cache\n"
    ),
    "one_budget_for_two_processes": (
        r"process 1: \d+ answers with help, \d+ without\n"
        r"process 2: \d+ answers with help, \d+ without\n"
        r"expert: 9 calls, 0\.000900 of 0\.001 USD\n"
    ),
    "agent_that_asks": (
        r"answer: It is 3 degrees in Oslo, so take a coat\.\n"
        r"agent: The budget is used up.*\nhuman: continue\n"
        r"answer: It is 3 degrees in Oslo, so take a coat\.\n"
        r"agent: The budget is used up.*\nhuman: local\n"
        r"answer: It is , so take a coat\."
    ),
    "costs_in_fastapi": (
        r"(ada .*'calls': 1, 'cost_nanousd': 100000\}\n){2}ada .*'calls': 0, 'cost_nanousd': 0\}\n"
        r"bob .*'calls': 1.*\nspending: \{'ada': 200000, 'bob': 100000\}"
    ),
    "async_batch": r"How many minutes .* \[.+\].*\n(.+\n)+Name a color\. +\S+.*\n\n[1-9]\d* calls",
}
"""What the output of each script must contain."""


def source(name: str) -> str:
    return (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")


def has_stand_in(name: str) -> bool:
    return "from expert import" in source(name)


def decodes(name: str) -> bool:
    return has_stand_in(name) or "llama_cpp.server" in source(name)


@pytest.mark.timeout(TIMEOUT_S + 90)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=DECODES if decodes(name) else []) for name in CASES]
)
def test_example_prints_what_it_promises(name: str):
    script = EXAMPLES / f"{name}.py"
    if "window=" in source(name):
        within_an_hour(60)
    ran = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=TIMEOUT_S
    )

    assert ran.returncode == 0, ran.stderr
    assert re.search(CASES[name], ran.stdout), f"{ran.stdout}\n---\n{ran.stderr}"
    assert has_stand_in(name) == ("stands in for a hosted model" in ran.stderr)
    assert "Traceback" not in ran.stderr


def test_every_example_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} - {"expert"} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_example_opens_with_what_to_expect_and_stays_short(name: str):
    text = source(name)

    assert text.startswith('"""')
    assert "Expect " in text.split('"""')[1]
    assert len(text.splitlines()) <= 60
