"""What chat models put before a continuation, and answers that only look as if they had.

Losing a word of an answer is worse than showing an opener: where the same characters can be both,
they stand under `ANSWERS` or `LEFT`.
"""

from __future__ import annotations

from typing import NamedTuple


class Trimmed(NamedTuple):
    """A reply of which only `new` continues the draft."""

    draft: str
    reply: str
    new: str


class Answer(NamedTuple):
    """A reply that is the continuation itself, from its first character to its last."""

    draft: str
    reply: str


INSIDE = "The sky is blue because of Rayleigh"
BEHIND = "The sky is blue because of Rayleigh scattering. "
CODE = "```python\ndef area(r):\n    pi = 3.14159\n"
ZH = "天空之所以是蓝色的，是因为空气分子"

TRIMMED = [
    # openers within a sentence
    Trimmed(INSIDE, "Sure, here is the continuation:\n\nscattering.", " scattering."),
    Trimmed(INSIDE, "Sure! Here's the rest: scattering.", " scattering."),
    Trimmed(INSIDE, "Certainly! Here is the remaining text:\n\nscattering.", " scattering."),
    Trimmed(INSIDE, "Okay. Here is the completed sentence: scattering.", " scattering."),
    Trimmed(INSIDE, "Continuing: scattering.", " scattering."),
    Trimmed(INSIDE, "Continuation: scattering.", " scattering."),
    Trimmed(INSIDE, "**Continuation:** scattering.", " scattering."),
    Trimmed(INSIDE, "Continuing from where the draft ended: scattering.", " scattering."),
    Trimmed(INSIDE, "Let me continue from where you left off:\nscattering.", " scattering."),
    Trimmed(INSIDE, "(continued) scattering.", " scattering."),
    Trimmed(INSIDE, "[Continued]: scattering.", " scattering."),
    Trimmed(INSIDE, "... scattering.", " scattering."),
    Trimmed(INSIDE, "… scattering.", " scattering."),
    Trimmed("It is inter", "...national law.", "national law."),
    Trimmed(ZH, "好的，以下是续写的内容：\n使阳光散射。", "使阳光散射。"),
    Trimmed(ZH, "以下是后续部分：使阳光散射。", "使阳光散射。"),
    # behind a sentence: what speaks of the answer itself
    Trimmed(BEHIND, "Sure! Here is the continuation:\n\nThe sun is white.", "The sun is white."),
    Trimmed(BEHIND, "Here is the continuation of the answer: The sun.", "The sun."),
    Trimmed(BEHIND, "Here's the rest of your draft:\nThe sun.", "The sun."),
    Trimmed(BEHIND, "Continuing the answer: The sun.", "The sun."),
    Trimmed(BEHIND, "Continuing from where the text breaks off: The sun.", "The sun."),
    Trimmed(BEHIND, "Certainly! Here is the text that follows: The sun.", "The sun."),
    # what only may be an opener, with the draft behind it
    Trimmed(INSIDE, "Sure!\n\nThe sky is blue because of Rayleigh scattering.", " scattering."),
    Trimmed(INSIDE, "Sure, because of Rayleigh scattering.", " scattering."),
    Trimmed(INSIDE, "Okay. ... because of Rayleigh scattering.", " scattering."),
    Trimmed(f"{INSIDE}:", "Sure: the sky is blue because of Rayleigh: it scatters", " it scatters"),
    Trimmed(BEHIND, "Of course.\nblue because of Rayleigh scattering. The sun.", "The sun."),
    Trimmed(INSIDE, "Sure.\n```\nscattering.\n```", " scattering."),
    Trimmed(ZH, "继续：是蓝色的，是因为空气分子使阳光散射。", "使阳光散射。"),
    # the marker of the request
    Trimmed(INSIDE, "<draft> scattering.</draft>", " scattering."),
    Trimmed(INSIDE, " scattering.</draft>", " scattering."),
    Trimmed(INSIDE, "<draft>of Rayleigh scattering.", " scattering."),
    Trimmed("See <draft> and", "<draft-2> so on.</draft-2>", " so on."),
    # fences
    Trimmed(INSIDE, "```\nscattering.\n```", " scattering."),
    Trimmed(INSIDE, "```markdown\n scattering.\n```\n", " scattering.\n"),
    Trimmed(CODE, "```python\n    return pi * r * r\n```", "    return pi * r * r\n```"),
    Trimmed(CODE, "```py\n    return pi * r * r\n", "    return pi * r * r\n"),
    # the draft again
    Trimmed(INSIDE, f"{INSIDE} scattering.", " scattering."),
    Trimmed(INSIDE, "blue because of rayleigh scattering.", " scattering."),
    Trimmed(INSIDE, "is blue  because\nof Rayleigh scattering.", " scattering."),
    Trimmed(INSIDE, "The sky is blue because of Rayleigh... scattering.", "... scattering."),
    Trimmed(CODE, "    pi = 3.14159\n    return pi * r * r", "    return pi * r * r"),
    Trimmed(r"Thus \frac{a}{b} + \frac{c}{d} =", r"\frac{a}{b} + \frac{c}{d} = 1", " 1"),
    Trimmed(ZH, "是因为空气分子使阳光散射。".replace("是因为", "的，是因为"), "使阳光散射。"),
    # the draft begins as openers do
    Trimmed(
        "Sure, here is the continuation: the sky is",
        "Sure, here is the continuation: the sky is blue",
        " blue",
    ),
]

RESTARTS = [
    (BEHIND, "The sky is blue because the air scatters light."),
    (BEHIND, "Sure! Here is the continuation:\n\nThe sky is blue because the air"),
    (BEHIND, "Of course.\nThe sky is blue because the air scatters"),
    (INSIDE, "The sky is blue because sunlight is scattered"),
    (INSIDE, "<draft>The sky is"),
    ("There are two rivers here:\n- the Rhine\n- ", "There are two rivers here:\n- the Elbe"),
    ("There are two rivers here:\n1. Rhine\n2. Elbe\n", "There are two rivers here:\n1. Weser"),
]

ANSWERS = [
    # what somebody says
    Answer("He said:", " Sure.\nThen he left."),
    Answer("He said: ", "Sure.\n\nThen he left."),
    Answer('She smiled and said, "', "Of course.\nI will come."),
    Answer("Agent:", " Certainly! Here are the following pages: 3 and 4."),
    Answer("Agent: ", "Sure, here is the continuation of the story: it rained."),
    Answer("The answer is: ", "Okay, here is the rest: 12."),
    Answer("- ", "Continuation: the rest of a computation."),
    Answer("## ", "Continued: part two"),
    Answer("他说：", "好的。我来了。"),
    Answer("“", "Sure. Here is the rest of the answer: no."),
    # behind a sentence
    Answer("Do you want to go? ", "Sure.\nLet us go."),
    Answer("We could wait. ", "Okay, let me continue with the tests."),
    Answer("That was step 1. ", "Continuing with step 2: stir the soup."),
    Answer("That was part 1. ", "I'll continue with the second part: the roof."),
    Answer("The pattern doubles. ", "Here is the continuation of the sequence: 8, 16."),
    Answer("That is only half of it. ", "Here is the rest of the story: he fled."),
    Answer("Do you want it in Python?\n\n", "Sure! Here is the complete code:\nx = 1"),
    Answer("It has poles. ", "Here are the continuous functions: sine and cosine."),
    Answer("It has gaps. ", "Here is the continuously updated list: a, b."),
    Answer("In short, no. ", "Okay, so that is that."),
    Answer("This is CPS. ", "Continuation: a function of the rest."),
    Answer("Read it again. ", "Understood?\nThen go on."),
    Answer("To be continued.\n\n", "(continued)\nThe next day it rained."),
    Answer("你准备好了。", "以下是后续步骤：先烧水。"),
    Answer("先定义接口。", "以下是接口的定义：x"),
    Answer("数学。", "以下是连续函数的例子：正弦。"),
    Answer("点击按钮", "继续：下一页"),
    Answer("她问。", "好的。我们走吧。"),
    # within a sentence
    Answer("I am not", " sure.\nLet me ask."),
    Answer("He is not quite", " certainly. Here is the rest: none."),
    Answer("He told me that all is", " okay. Here is the rest of the text: none."),
    Answer("Table 3 ", "(continued) shows the sums."),
    Answer("Chapter IV", " (cont.): the storm"),
    Answer("The state is", " continuing: it never stops."),
    Answer("They make", " sure here is where it ends."),
    # markers that are not ours
    Answer("See <draft> and", " <draft>, too.</draft>"),
    Answer(INSIDE, " <draf and </draft"),
    Answer("if a", " < b <dr and c </ d"),
    # ellipses
    Answer("He paused... and", "... then he left."),
    Answer("The terms are 1, 2, ", "... and so on."),
    Answer("1 + 2 + ", "... + n"),
    Answer("Well. ", "... or so I thought."),
    Answer("x[", "..., 0]"),
    Answer("def f(self) -> int:", " ..."),
    Answer("```python\ndef f() -> int:\n    ", "...\n"),
    Answer("```python\nclass A(Protocol):\n    def f(self) -> int: ", "...\n\ndef g(): ..."),
    Answer("Tuple[int", ", ...]"),
    Answer("And then", "..."),
    # fences
    Answer("Run this:\n\n", "```\nls -la\n```\nIt lists files."),
    Answer("Run this:", "\n\n```\nls -la\n```\nIt lists files."),
    Answer("Run this: ", "```\nls\n```"),
    Answer("Run this.\n\n", "```text\na\nb\n```"),
    Answer("This is the file.\n\n", "```markdown\n# Title\n```\n"),
    Answer("We do this", "\n\n```\nls\n```\nat last."),
    Answer("Say:\n\n", "```python\nprint(1)\n```\n\n```\n1\n```\nDone."),
    Answer("```python\nx = 1\n", "```\n\n```text\n1\n```\n"),
    Answer("```python\nprint(1)\n", "```text\n1\n```"),
    Answer("````markdown\nAn example:\n\n", "```python\nx = 1\n```\n````"),
    Answer("```markdown\n# Title\n\n", "```python\nx = 1\n"),
    Answer("~~~\nx\n", "```python\n~~~\n"),
    # what the draft says as well
    Answer("Merrily, merrily on. Merrily, merrily on.", " Merrily, merrily on. Life is a dream."),
    Answer("    total = f(x)\n    total = f(x)\n", "    total = f(x)\n    return total"),
    Answer("No. No. No. No. No. No. No. ", "No. No. No. No. Yes, it is."),
    Answer("la la la la la la la la", " la la la la la!"),
    Answer("0 & 0 & 0 & 0 & 0 & 0 & 0", " & 0 & 0 & 0 & 0 \\\\ 1"),
    Answer("- very nice\n- very nice\n", "- very nice\n- bad"),
    Answer("O let it rise on me,\nO let it rise on you,\n", "O let it rise on all of us."),
    Answer("| a | b | c |\n|---|---|---|\n| 1 | 0 | 0 |\n| 1 | 0 | 0 |\n", "| 1 | 0 | 0 |\n"),
    Answer("INSERT INTO t VALUES (1, 'a');\n", "INSERT INTO t VALUES (2, 'b');\n"),
    Answer("- [ ] Check the value of x\n", "- [ ] Check the value of y\n"),
    Answer("self.assertEqual(f(1), 1)\nself.assertEqual(f(2), 4)\n", "self.assertEqual(f(3), 9)\n"),
    Answer(
        "I have a dream that one day it rains.\nIt will.\n\n",
        "I have a dream that one day it snows.",
    ),
    Answer(
        "I have a dream that one day it rains. I have a dream that one day it snows. ",
        "I have a dream that one day it thaws.",
    ),
    Answer("She said no, no", ", no, never"),
    Answer("The capital of France is Paris. ", "The capital of Spain is Madrid."),
    Answer("天空是蓝色的是因为", "蓝色的是因为瑞利"),
    Answer("一二三四五六七八九十。一二三四五六七八九十。", "一二三四五六七八九十。完"),
]

LEFT = [
    Answer(INSIDE, "Sure.\n\nscattering."),
    Answer(BEHIND, "Continuing:\nThe sun is white."),
    Answer(BEHIND, "... The sun is white."),
    Answer(BEHIND, "```\nThe sun is white.\n```"),
    Answer(BEHIND, "Sure, here is the"),
    Answer(f"{INSIDE}:", "Sure, here is the continuation: scattering."),
]
"""Openers and fences that stay, because answers begin so too."""

SAID_ONCE = [
    Trimmed("la la la la la la la la", " la la la la la la la la!", "!"),
    Trimmed("Merrily, merrily,", " merrily, merrily, life is a dream.", " life is a dream."),
    Trimmed("    print()\n    foo(bar, baz)\n", "    foo(bar, baz)\n    done()", "    done()"),
]
"""The price: what stands once in the draft counts as repeated, though answers may say it twice."""
