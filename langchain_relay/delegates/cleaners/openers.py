"""What chat models say before they do as they were asked: "Sure, here is the rest:"."""

from __future__ import annotations

import re

from langchain_relay.delegates.cleaners.place import open_code, place
from langchain_relay.delegates.cleaners.scripts import words_meet

_YES = r"(?:sure(?:\ thing)?|certainly|of\ course|okay|ok|absolutely|alright|understood|got\ it)"
_HERE = r"(?:here(?:'s|\u2019s|\ is|\ are)|below\ is)"
_SELF = r"(?:the\ |your\ |this\ )?(?:answer|draft|response|reply|sentence|text)"
_GOING_ON = (
    r"(?:i(?:'|\u2019)ll\ continue|i\ will\ continue|let\ me\ continue"
    r"|continuing|continuation|continued)"
)
_WHERE = (
    rf"\s+(?:(?:(?:from|of|with)\s+)?{_SELF}\b[^:\n.]{{0,40}}"
    r"|(?:from\s+)?where\b[^:\n.]{0,40}\b(?:left|stop|end|br[eo]ak|broke|cut)\w*[^:\n.]{0,20})"
)
_WHAT_NEXT = r"(?:continuation|the\ rest|remain\w+|complet\w+|follow\w+|next\ (?:part|words?))"
_CJK_OPENER = (
    r"(?:好的[\uff0c,。!\uff01]?\s*)?以下是[^\uff1a:\n]{0,6}?"
    r"(?:续写|续文|接续|后续(?:内容|部分|文字)|(?:剩余|其余|余下)(?:内容|部分))"
    r"[^\uff1a:\n]{0,6}[\uff1a:]"
)

_INSIDE = re.compile(
    rf"""
    (?: {_YES}[,.!:]*\s+ {_HERE}\b [^:\n]{{0,40}}?\b{_WHAT_NEXT}\b [^:\n]{{0,60}} :
      | {_HERE}\b [^:\n]{{0,40}}?\b(?:continuation|rest\ of\ {_SELF}) \b[^:\n]{{0,60}} :
      | (?:{_YES}[,.!:]*\s+)? \**{_GOING_ON}(?:{_WHERE}|\s+(?:directly|here|below))?\s*:\**
      | [(\[] (?:continued|continuing|cont\.?) [)\]] :?
      | {_CJK_OPENER}
    ) \s*
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Each says that a continuation comes: "Here are the remaining steps:" is part of an answer."""

_BEHIND = re.compile(
    rf"""
    (?: (?:{_YES}[,.!:]*\s+)? {_HERE}\ (?:the|a|my|your)\ (?:direct\ |seamless\ )?
        (?:continuation(?:\ of\ {_SELF})?|rest\ of\ {_SELF}) \s*:
      | {_YES}[,.!:]*\s+ {_HERE}\ the\ (?:rest|text\ that\ (?:follows|comes\ next)) \s*:
      | (?:{_YES}[,.!:]*\s+)? \**{_GOING_ON}{_WHERE}\s*:\**
      | {_CJK_OPENER}
    ) \s*
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Those that speak of the answer itself."""

_MERE_YES = re.compile(
    rf"(?:{_YES}[,.!:]*\s+|好的[\uff0c,。!\uff01]\s*|(?:继续|续写|接续)[\uff1a:]\s*)(?=\S)",
    re.IGNORECASE,
)

_CUT_OPENER = re.compile(
    rf"{_YES}[,.!:]+\s*(?:here(?:'s|\u2019s)?|below|i(?:'|\u2019)ll\ continue|let\ me\ continue)\b"
    r"[^:\n]{0,80}(?<![.!?])",
    re.IGNORECASE,
)
"""An opener that the length limit cut off."""

_ELLIPSIS = re.compile(r"(?:\.{3,}|\u2026)\s*(?=\w)")

_LABELLED = re.compile(
    r"(?:table|fig(?:ure|\.)?|chapter|section|part|appendix|listing|step|example|page|act|scene)"
    r"\s+\S{1,6}\Z",
    re.IGNORECASE,
)
"""What is really continued: `Table 3 (continued)`."""

_GATES = (
    *("sure", "certainly", "of course", "okay", "ok", "absolutely", "alright", "understood"),
    *("got it", "here's", "here\u2019s", "here is", "here are", "below is", "continu", "**continu"),
    *("i'll continue", "i\u2019ll continue", "i will continue", "let me continue"),
    *("(cont", "[cont", "好的", "以下是", "继续", "续写", "接续"),
)
"""How every opener begins: a span that begins otherwise is passed on at once."""

_OPENER_CHARS = 140
"""The longest opener; a line that is longer is text."""


class Openers:
    """Removes what chat models say before they do as they were asked.

    Attributes:
        trimmed: What was removed.
        doubtful: What stands between that and the text passed on, and may be an opener or text.
    """

    def __init__(self, draft: str) -> None:
        self.trimmed = ""
        self.doubtful = ""
        self._end = draft[-1:]
        self._last = draft.rstrip()[-1:]
        self._place = place(draft)
        self._labelled = _LABELLED.search(draft.rstrip()) is not None
        self._in_code = open_code(draft) is not None
        self._has_ellipsis = "..." in draft or "\u2026" in draft
        self._held = ""
        self._open = True

    def push(self, text: str) -> str:
        """Take a piece; returns what no longer can be an opener."""
        if not self._open:
            return text
        for at, char in enumerate(text):
            self._held += char
            if self._decided(final=False):
                return self._joined() + text[at + 1 :]
        return ""

    def flush(self) -> str:
        """The span has ended; returns the rest."""
        if not self._open:
            return ""
        self._decided(final=True)
        return self._joined()

    def _decided(self, *, final: bool) -> bool:
        """Take out what is or may be an opener; whether the rest cannot begin with one."""
        while True:
            body = self._held.lstrip()
            if not body:
                return final
            if end := self._sure(body, final=final):
                self.trimmed += self.doubtful + self._cut(body, end)
                self.doubtful = ""
            elif end := self._maybe(body, final=final):
                self.doubtful += self._cut(body, end)
            else:
                return final or not self._may_begin(body)

    def _cut(self, body: str, end: int) -> str:
        """Take `end` characters of `body`, which `_held` ends in, and all before it."""
        at = len(self._held) - len(body) + end
        piece, self._held = self._held[:at], self._held[at:]
        return piece

    def _sure(self, body: str, *, final: bool) -> int:
        """Where an opener ends that cannot be the draft's own text."""
        if self._place == "before":
            return 0
        match = None
        if self._place == "inside" and self._ellipsis_is_odd():
            match = _ELLIPSIS.match(body)
        if match is None and (final or _is_whole(body)):
            match = self._pattern(body)
        if match is None and final and self._place == "inside" and body[0].isupper():
            match = _CUT_OPENER.fullmatch(body.rstrip())
        return match.end() if match else 0

    def _pattern(self, body: str) -> re.Match[str] | None:
        if self._place == "behind":
            return _BEHIND.match(body)
        # Within a sentence its own words are small.
        if body[0].islower() or (self._labelled and body[0] in "(["):
            return None
        return _INSIDE.match(body)

    def _maybe(self, body: str, *, final: bool) -> int:
        """Where something ends that is an opener if a repeated draft or a fence follows it."""
        match = None if self._in_code else _ELLIPSIS.match(body)
        if match is None and (final or _is_whole(body)):
            match = _INSIDE.match(body)
        if match is None and (final or not self._may_begin(body)):
            match = _MERE_YES.match(body)
        return match.end() if match else 0

    def _ellipsis_is_odd(self) -> bool:
        """Whether the draft is prose that does not use it, and stops behind a letter."""
        return not (self._in_code or self._has_ellipsis) and self._last.isalpha()

    def _may_begin(self, body: str) -> bool:
        """Whether more text may turn `body` into an opener."""
        if re.fullmatch(r"\.{1,2}|(?:\.{3,}|\u2026)\s*", body):
            return not self._in_code
        if len(body) > _OPENER_CHARS or _is_whole(body) or not _is_gated(body):
            return False
        yes = _MERE_YES.match(body)
        return yes is None or _is_gated(body[yes.end() :], "thing")

    def _joined(self) -> str:
        """The text behind an opener, with the blank that the opener took along."""
        text, self._held, self._open = self._held, "", False
        shown = self.doubtful + text
        if not (self.trimmed[-1:].isspace() and words_meet(self._end, shown[:1])):
            return text
        if self.doubtful:
            self.doubtful = " " + self.doubtful
            return text
        return " " + text


def _is_gated(body: str, *more: str) -> bool:
    """Whether `body` begins as openers do, as far as it goes."""
    start = body.lower()
    return any(gate.startswith(start) or start.startswith(gate) for gate in (*_GATES, *more))


def _is_whole(body: str) -> bool:
    """Whether an opener at the start of `body` is complete, with the first character behind it."""
    return (
        re.match(r"[^:\uff1a\n)\]]*[:\uff1a\n)\]][*:\uff1a)\]]*\s*[^\s*:\uff1a)\]]", body)
        is not None
    )
