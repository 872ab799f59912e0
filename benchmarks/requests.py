"""Ways to ask a chat model to continue a draft; the shipped one is among them.

`python -m benchmarks.seams` measures them all.
"""

from __future__ import annotations

from dataclasses import dataclass

from langchain_relay.delegates import continuation


@dataclass(frozen=True, slots=True)
class Request:
    """A request and its task, as `continuation.py` puts them together."""

    request: str
    task: str


_TASK = (
    "Write only the text that comes directly after it, about {max_tokens} tokens. Someone "
    "else goes on from where you stop; you may stop in the middle of a sentence."
)

RULES_BEHIND = Request(
    """\
The answer to the message above is already begun. What is written so far stands between \
<{tag}> and </{tag}>:

<{tag}>{draft}</{tag}>

{task} Your reply is glued to the last character of the draft, so:
- Do not repeat any of the draft, do not start the answer again, do not introduce your text.
- Keep its language, tone and format.
- If a new word comes next and the draft does not end in a blank, begin with a blank. If the draft \
ends in the middle of a word, begin with the rest of that word.
- No quotation marks, tags or code fence around your text.""",
    _TASK,
)

RULES_BEFORE = Request(
    """\
The answer to the message above is already begun. What is written so far stands between <{tag}> \
and </{tag}>. {task} Your reply is glued to the last character of the draft, so:
- Do not repeat any of the draft, do not start the answer again, do not introduce your text.
- Keep its language, tone and format.
- If a new word comes next and the draft does not end in a blank, begin with a blank. If the draft \
ends in the middle of a word, begin with the rest of that word.
- No quotation marks, tags or code fence around your text.

<{tag}>{draft}</{tag}>""",
    _TASK,
)

SHORT = Request(
    """\
<{tag}>{draft}</{tag}>

This is the beginning of your answer. {task}""",
    "Go on exactly where it stops, for about {max_tokens} tokens, without repeating any of it.",
)

_OPEN_END = """\
Below, behind <{tag}>, is the beginning of the answer to the message above; it breaks off. {task} \
Do not repeat any of it and do not introduce your text. If a new word comes next, begin with a \
blank; if the text breaks off within a word, begin with the rest of that word.

<{tag}>{draft}"""

OPEN_END = Request(
    _OPEN_END, "Write what comes directly after its last character, and nothing else."
)

OPEN_END_AND_LENGTH = Request(
    _OPEN_END,
    "Write what comes directly after its last character, about {max_tokens} tokens, and nothing "
    "else.",
)

EXAMPLES = Request(
    """\
The answer to the message above is already begun; the part between <{tag}> and </{tag}> is \
written. {task} Your reply is joined to its last character, so begin with a blank if a new word \
comes next.
Examples:
<{tag}>The capital of France is</{tag}> -> " Paris, on the Seine."
<{tag}>It was an inter</{tag}> -> "national treaty."
<{tag}>for i in range(</{tag}> -> "10):"
Write no quotation marks, and repeat nothing.

<{tag}>{draft}</{tag}>""",
    "Write only what comes directly after it, about {max_tokens} tokens.",
)

COPIED = Request(
    """\
The answer to the message above is already begun. What is written so far stands between <{tag}> \
and </{tag}>:

<{tag}>{draft}</{tag}>

{task} Do not introduce your text.""",
    "Copy its last five words exactly and go on from there in the same line, about {max_tokens} "
    "tokens.",
)

REQUESTS = {
    "shipped": Request(continuation._REQUEST, continuation._TASKS["instruct"]),  # noqa: SLF001
    "rules behind the draft": RULES_BEHIND,
    "rules before the draft": RULES_BEFORE,
    "short": SHORT,
    "open end": OPEN_END,
    "open end, with the length": OPEN_END_AND_LENGTH,
    "examples": EXAMPLES,
    "last words copied": COPIED,
}
"""By name. With `last words copied` the copy takes a part of the limit; the seam removes it."""
