"""RelayGen: the hosted model reasons, the local one finishes the sentences a cue opens.

Training-free: when the hosted model writes a discourse cue ("Thus", "Now", ...), the local model
writes the rest of that sentence, then the hosted model goes on. The answer behind `</think>` is
always local.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from langchain_relay.engine.policy import (
    AnswerContext,
    Cut,
    Finish,
    Handoff,
    Hold,
    Keep,
    Local,
    LocalEnd,
    PieceVerdict,
    StepVerdict,
    Take,
    TurnVerdict,
    Watch,
)
from langchain_relay.engine.values import SpanEnd, Step
from langchain_relay.errors import UsageMistake
from langchain_relay.policies.bounds import check_bounds
from langchain_relay.policies.watch import LocalWatch

QWEN3_32B_TO_1_7B_CUES = (
    "Oh,", "another,", "Thus", "Now", "Alternatively", "alternatively,", "Thus,", "Therefore",
    "similarly", "similarly,", "now", "Again", "specifically,", "Again,", "Similarly,", "Now,",
    "Specifically,", "Hence", "Similarly", "Other", "now,", "hence", "Specifically", "So ",
    "Therefore,", "Wait,", "Also", "So,",
)  # fmt: skip
"""The list the authors selected for Qwen3-32B and Qwen3-1.7B (arXiv 2602.06454, appendix B)."""

MIN_SPAN_TOKENS = 5
"""No cue is seen in the first tokens of a span (`min_tokens` of the published code)."""

THINK_END = "</think>"


@dataclass(frozen=True, slots=True)
class SwitchCues:
    """The runtime rule of RelayGen with a given cue list.

    The hosted model writes first. A cue ends its span, the local model writes to the end of the
    sentence (`.`, `!`, `?` before a blank or the end, or an empty line), and so on. The hosted
    model's `</think>`, or its stop without one, ends the reasoning; the local model writes the
    answer. `</think>` is put into the local context, hidden, where its template has thinking tags.

    Args:
        cues: Cue strings, case-sensitive.
        match: `"word"`: a cue must not be part of a longer word; `"substring"`: as published, so
            that `now` is found in `know`.
        max_span_tokens: Bounds what one span can cost, also where a cue cuts it short.
        max_calls: Bound of hand-overs in one answer.

    Raises:
        UsageMistake: no cues, or an empty one.

    Source: RelayGen, arXiv 2602.06454; its code's `relaygen_chat_completions`.
    """

    cues: tuple[str, ...] = QWEN3_32B_TO_1_7B_CUES
    match: Literal["word", "substring"] = "word"
    max_span_tokens: int | None = 64
    max_calls: int | None = None
    taught: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)
        given: object = self.cues
        if isinstance(given, str) or not self.cues or not all(self.cues):
            raise UsageMistake(
                f"SwitchCues(cues={self.cues!r}): give a tuple of at least one cue and no empty one"
            )
        if self.match not in ("word", "substring"):
            raise UsageMistake(f"SwitchCues(match={self.match!r}): use 'word' or 'substring'")
        object.__setattr__(self, "cues", tuple(self.cues))

    def watch(self, context: AnswerContext) -> Watch:
        """A fresh watch over one answer."""
        return _CueWatch(_cue_pattern(self.cues, word=self.match == "word"), self.match, context)


class _CueWatch(LocalWatch):
    def __init__(self, cues: re.Pattern[str], match: str, context: AnswerContext) -> None:
        self._cues = cues
        self._word = match == "word"
        self._context = context
        self._reasoning = True
        self._span = ""  # hosted text taken in the open span
        self._at_cue = False  # the open span was cut at a cue
        self._sentence = ""  # local text since the cue

    def start(self) -> Local | Handoff:
        return self._hosted()

    # --- the local model finishes a sentence ----------------------------------------------------

    def step(self, step: Step, held: str) -> StepVerdict:
        if not self._reasoning:
            return Keep()
        if (think := held.find(THINK_END)) >= 0:
            self._reasoning = False
            return Local(held="hide", lead=think)
        if _begins(held, THINK_END):
            return Hold()
        if self._sentence_over(step.text):
            # This token opens the next sentence, which is the hosted model's to write.
            return self._hosted(held="drop")
        self._sentence += held
        if "\n\n" in self._sentence or (not self._word and re.search(r"[.!?]", held)):
            return self._hosted()
        return Keep()

    def end(self, why: LocalEnd, held: str) -> TurnVerdict:  # noqa: ARG002 - the text is shown
        if why == "length" or not self._reasoning:
            return Finish()
        return self._hosted() if _ends_sentence(self._sentence) else self._answer()

    def _sentence_over(self, following: str) -> bool:
        """A full stop followed by a blank, so not that of "3.14"."""
        return self._word and following[:1].isspace() and _ends_sentence(self._sentence)

    # --- the hosted model reasons ---------------------------------------------------------------

    def piece(self, pending: str, *, last: bool) -> PieceVerdict:
        text = self._span + pending
        think = text.find(THINK_END)
        if (cue := self._first_cue(text, last=last)) is not None and not 0 <= think < cue:
            self._at_cue = True
            return self._cut(pending, cue)
        if think >= 0:
            return self._cut(pending, think)
        sure = len(text) if last else len(text) - self._undecided(text)
        chars = max(0, sure - len(self._span))
        self._span += pending[:chars]
        return Take(chars)

    def span_end(self, end: SpanEnd) -> TurnVerdict:
        if self._at_cue or end.why in ("failed", "truncated", "refused"):
            return self._finish_sentence()
        if end.why == "length":
            return self._hosted()
        return self._answer()

    def _cut(self, pending: str, at: int) -> Cut:
        chars = max(0, at - len(self._span))
        self._span += pending[:chars]
        return Cut(chars)

    def _first_cue(self, text: str, *, last: bool) -> int | None:
        """Where the earliest cue of the open span ends, early ones not counted."""
        for found in self._cues.finditer(text):
            if self._word and not last and found.end() == len(text) and text[-1:].isalnum():
                return None  # the word may go on
            if self._context.count(text[: found.end()]) > MIN_SPAN_TOKENS:
                return found.end()
        return None

    def _undecided(self, text: str) -> int:
        """Length of the tail that may still become a cue or the end of the thought."""
        # A cue that needs one more character to be sure ends in a word character.
        word = re.search(r"\w+$", text) if self._word else None
        return max(_begins(text, THINK_END), len(word.group()) if word else 0)

    # --- who goes on ----------------------------------------------------------------------------

    def _hosted(self, held: Literal["show", "drop"] = "show") -> Handoff:
        self._span, self._sentence = "", ""
        self._at_cue = False
        return Handoff(None, cause="reasoning", held=held, stop=(THINK_END,))

    def _finish_sentence(self) -> Local:
        self._sentence = ""
        return Local()

    def _answer(self) -> Local:
        self._reasoning = False
        return Local(aside=f"\n{THINK_END}\n\n" if self._context.thinking else "")


def _cue_pattern(cues: tuple[str, ...], *, word: bool) -> re.Pattern[str]:
    """One pattern for all cues; shorter ones first, since the earliest end wins."""
    one_of = "|".join(re.escape(cue) for cue in sorted(set(cues), key=len))
    return re.compile(rf"(?<!\w)(?:{one_of})(?:(?<!\w)|(?!\w))" if word else one_of)


def _ends_sentence(text: str) -> bool:
    return bool(re.search(r"[.!?][\"')\]]*$", text))


def _begins(text: str, tag: str) -> int:
    """Length of the tail of `text` that is a proper beginning of `tag`."""
    sizes = range(min(len(tag) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(tag[:size])), 0)
