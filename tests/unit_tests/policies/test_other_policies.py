"""The other policies: steps in, events out."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_relay.engine.errors import UsageMistake
from langchain_relay.engine.policy import Policy
from langchain_relay.policies import Always, FixedLength, Never, SingleHandoff, SwitchCues
from tests.unit_tests.engine.rig import play

CUES = SwitchCues(cues=("Thus", "Thus,", "now", "So "), max_span_tokens=20)
FIVE = "one two three four five "

# name: (policy, local pieces, hosted spans, options, log)
GOLDEN: dict[str, tuple[Policy, list[str], list[Any], dict[str, Any], list[str]]] = {
    "never": (Never(), ["a ", "<call>8</call>", "b"], [], {}, ["local:a b", "finished stop"]),
    "always": (
        Always(), ["unused"], [["x ", "y", "stop"]], {},
        ["opened n=1000 draft=''", "delegate:x y", "closed stop", "finished stop"],
    ),
    "always, again after a length": (
        Always(), ["unused"], [["x ", "length"], ["y", "stop"]], {"max_span_tokens": 1},
        ["opened n=1 draft=''", "delegate:x ", "closed length", "opened n=1 draft='x '",
         "delegate:y", "closed stop", "finished stop"],
    ),
    "always, refused: the local model writes": (
        Always(), ["a ", "<call>8</call>", "b"], ["refused"], {},
        ["denied budget", "local:a b", "finished stop"],
    ),
    "always, failed: the local model writes": (
        Always(), ["a"], [["failed"]], {},
        ["opened n=1000 draft=''", "failed failed", "local:a", "finished stop"],
    ),
    "always, nothing for ever: no second try": (
        Always(), ["a"], [["length"]], {},
        ["opened n=1000 draft=''", "closed length declined", "local:a", "finished stop"],
    ),
    "fixed length": (
        FixedLength(20), ["<call>3</call>", "b"], [["x", "stop"]], {},
        ["opened n=20 draft=''", "hidden@0:<call>3</call>", "delegate:x", "closed stop",
         "local:b", "finished stop"],
    ),
    "single hand-off": (
        SingleHandoff(), ["a ", "<call>3</call>", "b"], [["x", "stop"]], {},
        ["local:a ", "opened n=999 draft='a '", "hidden@2:<call>3</call>", "delegate:x",
         "closed stop", "finished stop"],
    ),
    "single hand-off, again after a length": (
        SingleHandoff(), ["a ", "<call>3</call>", "b"], [["x ", "length"], ["y", "stop"]],
        {"max_span_tokens": 1},
        ["local:a ", "opened n=1 draft='a '", "hidden@2:<call>3</call>", "delegate:x ",
         "closed length", "opened n=1 draft='a x '", "delegate:y", "closed stop", "finished stop"],
    ),
    "single hand-off, failed": (
        SingleHandoff(), ["a ", "<call>3</call>", "b"], [["failed"]], {},
        ["local:a ", "opened n=999 draft='a '", "failed failed", "hidden@2:<call>3</call>",
         "local:b", "finished stop"],
    ),
    "cues: hosted first, a cue, the local rest of the sentence, hosted again, local answer": (
        CUES, [" it", " is", ".", " dropped", "answer"],
        [[FIVE, "Thus and so on", "stop"], [" more", "stop"]], {},
        ["opened n=20 draft=''", f"delegate:{FIVE}Thus", "closed cut", "local: it is.",
         f"opened n=20 draft='{FIVE}Thus it is.'", "delegate: more", "closed stop",
         "local:answer", "finished stop"],
    ),
    "cues: none within the first five tokens of a span": (
        CUES, ["answer"], [["one Thus two three four five six", "stop"]], {},
        ["opened n=20 draft=''", "delegate:one Thus two three four five six", "closed stop",
         "local:answer", "finished stop"],
    ),
    "cues: not inside a word": (
        CUES, ["answer"], [[FIVE, "kn", "ow ", "no", "where ", "Thusly", "stop"]], {},
        ["opened n=20 draft=''", f"delegate:{FIVE}know nowhere Thusly", "closed stop",
         "local:answer", "finished stop"],
    ),
    "cues: a cue cut in two, decided by the next character": (
        CUES, [" x", ".", " y", "answer"], [[FIVE, "no", "w", " then", "stop"], ["stop"]], {},
        ["opened n=20 draft=''", f"delegate:{FIVE}now", "closed cut", "local: x.",
         f"opened n=20 draft='{FIVE}now x.'", "closed stop declined", "local: yanswer",
         "finished stop"],
    ),
    "cues: a full stop inside a number does not end the sentence": (
        CUES, [" pi is 3.", "14", "!", "\n", "answer"],
        [[FIVE, "So we", "stop"], ["z", "stop"]], {},
        ["opened n=20 draft=''", f"delegate:{FIVE}So ", "closed cut", "local: pi is 3.14!",
         f"opened n=20 draft='{FIVE}So  pi is 3.14!'", "delegate:z", "closed stop",
         "local:answer", "finished stop"],
    ),
    "cues: an empty line ends the sentence": (
        CUES, [" x", "\n\n", "answer"], [[FIVE, "So we", "stop"], ["z", "stop"]], {},
        ["opened n=20 draft=''", f"delegate:{FIVE}So ", "closed cut", "local: x",
         f"opened n=20 draft='{FIVE}So  x\\n\\n'", "local:\n\n", "delegate:z", "closed stop",
         "local:answer", "finished stop"],
    ),
    "cues: length hands over again": (
        CUES, ["answer"], [["one ", "length"], ["two", "stop"]], {},
        ["opened n=20 draft=''", "delegate:one ", "closed length", "opened n=20 draft='one '",
         "delegate:two", "closed stop", "local:answer", "finished stop"],
    ),
    "cues: the hosted end of thought is not shown; hidden where the template thinks": (
        CUES, ["answer"], [["I see", "</th", "ink> never", "stop"]], {"thinking": True},
        ["opened n=20 draft=''", "delegate:I see", "closed cut", "hidden@5:\n</think>\n\n",
         "local:answer", "finished stop"],
    ),
    "cues: without thinking tags nothing is inserted": (
        CUES, ["answer"], [["I see", "</think>", "stop"]], {},
        ["opened n=20 draft=''", "delegate:I see", "closed cut", "local:answer", "finished stop"],
    ),
    "cues: the local end of thought": (
        CUES, [" x", "</thi", "nk>", "answer", " Thus"], [[FIVE, "So we", "stop"]], {},
        ["opened n=20 draft=''", f"delegate:{FIVE}So ", "closed cut", "local: x",
         f"hidden@{len(FIVE) + 5}:</think>", "local:answer Thus", "finished stop"],
    ),
    "cues: refused: the local model writes all": (
        CUES, ["a.", " b.", " c"], ["refused"], {},
        ["denied budget", "local:a. b. c", "finished stop"],
    ),
    "cues: failed: the local model finishes a sentence, then the hosted one is asked again": (
        CUES, ["a.", " b", "answer"], [["failed"], ["x", "stop"]], {},
        ["opened n=20 draft=''", "failed failed", "local:a.", "opened n=20 draft='a.'",
         "delegate:x", "closed stop", "local:answer", "finished stop"],
    ),
    "cues as published: substrings": (
        SwitchCues(cues=("now",), match="substring", max_span_tokens=20), [" 3.", "answer"],
        [[FIVE, "kn", "owing", "stop"], ["z", "stop"]], {},
        ["opened n=20 draft=''", f"delegate:{FIVE}know", "closed cut",
         f"opened n=20 draft='{FIVE}know 3.'", "local: 3.", "delegate:z", "closed stop",
         "local:answer", "finished stop"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GOLDEN)
def test_golden(case: str) -> None:
    policy, pieces, spans, options, log = GOLDEN[case]
    played = play(policy, pieces, spans, **options)
    assert played.log == log
    assert played.source.closed == 1
    assert played.local.open_sessions == 0


def test_the_end_of_thought_is_in_the_local_context_only() -> None:
    played = play(CUES, ["answer"], [["I see", "</think>", "stop"]], thinking=True)
    assert played.context == "I see\n</think>\n\nanswer"
    assert played.text == "I seeanswer"


@pytest.mark.parametrize("cues", [(), ("Thus", "")])
def test_a_cue_list_needs_cues(cues: tuple[str, ...]) -> None:
    with pytest.raises(UsageMistake, match="at least one cue"):
        SwitchCues(cues=cues)


def test_a_fixed_length_is_at_least_one() -> None:
    with pytest.raises(UsageMistake, match="at least 1 token"):
        FixedLength(0)
