"""What chat models add to a continuation they were asked for, and how it is taken out.

Three stages, each fed a span piece by piece: an opener, a code fence, a repeated draft. Each looks
at one character at a time, so any chunking of a span gives the same text, and passes text on as
soon as it is sure.
"""

from __future__ import annotations

import re

# --- openers ------------------------------------------------------------------------------------

_YES = r"(?:sure(?:\ thing)?|certainly|of\ course|okay|ok|absolutely|alright|understood|got\ it)"
_HERE = r"(?:here(?:'s|\u2019s|\ is|\ are)|below\ is)"
_TEXT = r"(?:the\ |your\ )?(?:answer|draft|response|sentence|story|text)"
_GOING_ON = (
    r"(?:i(?:'|\u2019)ll\ continue|i\ will\ continue|let\ me\ continue"
    r"|continuing|continuation|continued)"
    rf"(?:\s+(?:from|where|with|directly|seamlessly|here|below|of|{_TEXT})\b[^:\n.]{{0,60}})?"
)
_WHAT_NEXT = (
    r"(?:continu\w+|the\ rest|remain\w+|complet\w+|follow\w+|next\ (?:part|words?|tokens?))"
)

_OPENER = re.compile(
    rf"""
    (?: {_YES}[,.!:]*\s+ {_HERE}\b [^:\n]{{0,40}}?\b{_WHAT_NEXT} [^:\n]{{0,60}} :
      | {_HERE}\b [^:\n]{{0,40}}?\b(?:continu\w+|rest\ of\ {_TEXT}) [^:\n]{{0,60}} :
      | (?:{_YES}[,.!:]*\s+)? \**{_GOING_ON} \s*:\**
      | {_YES}[.!] (?=\s*\n)
      | [(\[] (?:continued|continuing|cont\.?) [)\]] :?
      | (?:好的[\uff0c,。!\uff01]?\s*)?
        以下是[^\uff1a:\n]{{0,20}}[续継接][^\uff1a:\n]{{0,20}}[\uff1a:]
      | (?:好的[\uff0c,。!\uff01]?\s*)? (?:继续|续写|接续)[\uff1a:]
    ) \s*
    """,
    re.VERBOSE | re.IGNORECASE,
)
"""Each says that a continuation comes: "Here are the remaining steps:" is part of an answer."""

_CUT_OPENER = re.compile(
    rf"{_YES}[,.!:]+\s*(?:here(?:'s|\u2019s)?|below|i(?:'|\u2019)ll\ continue|let\ me\ continue)\b"
    r"[^:\n]{0,80}",
    re.IGNORECASE,
)
"""An opener that the length limit cut off."""

_ELLIPSIS = re.compile(r"(?:\.{3,}|…)\s*(?=\w)")

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
    """Removes what chat models say before they do as they were asked."""

    def __init__(self, draft: str) -> None:
        self.trimmed = ""
        self._end = draft[-1:]
        self._in_code = _in_code(draft)
        self._held = ""
        self._open = True

    def push(self, text: str) -> str:
        """Take a piece; returns what is sure to stay."""
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
        """Remove what is an opener; whether the rest can no longer begin with one."""
        while True:
            body = self._held.lstrip()
            if not body:
                return final
            match = _ELLIPSIS.match(body) if not self._in_code else None
            match = match or (_OPENER.match(body) if _is_whole(body) or final else None)
            if match is None and final:
                match = _CUT_OPENER.fullmatch(body.rstrip())
            if match is None or not match.end():
                return final or not self._may_begin(body)
            cut = len(self._held) - len(body) + match.end()
            self.trimmed += self._held[:cut]
            self._held = self._held[cut:]

    def _may_begin(self, body: str) -> bool:
        """Whether more text may turn `body` into an opener."""
        if re.fullmatch(r"\.{1,2}|(?:\.{3,}|…)\s*", body):
            return not self._in_code
        start = body.lower()
        gated = any(gate.startswith(start) or start.startswith(gate) for gate in _GATES)
        return gated and len(body) <= _OPENER_CHARS and not _is_whole(body)

    def _joined(self) -> str:
        """The text behind an opener, with the blank that the opener took along."""
        text, self._held, self._open = self._held, "", False
        if self.trimmed[-1:].isspace() and _words_meet(self._end, text[:1]):
            return " " + text
        return text


def _is_whole(body: str) -> bool:
    """Whether an opener at the start of `body` is complete, with the first character behind it."""
    return (
        re.match(r"[^:\uff1a\n)\]]*[:\uff1a\n)\]][*:\uff1a)\]]*\s*[^\s*:\uff1a)\]]", body)
        is not None
    )


def _words_meet(left: str, right: str) -> bool:
    """Whether two characters need a blank between them."""
    if _is_cjk(left) or _is_cjk(right):
        return False
    return (left.isalnum() or left in {",", ".", ";", ":", "!", "?", ")"}) and right.isalnum()


# --- code fences --------------------------------------------------------------------------------

_PROSE_FENCES = frozenset({"", "text", "txt", "plaintext", "plain", "markdown", "md"})
"""Info strings of a fence that wraps the reply itself; ```python is part of the answer."""

_FENCE = re.compile(r"\s*```+([^`\n]*)\n")


class Fence:
    """Removes a code fence around the whole reply, and one that opens code that is open already."""

    def __init__(self, draft: str) -> None:
        self.trimmed = ""
        self._end = draft[-1:]
        self._in_code = _in_code(draft)
        self._state = "opening"  # opening | wrapped | done
        self._held = ""
        self._line_start = True
        self._first = True
        self._depth = 0

    def push(self, text: str) -> str:
        """Take a piece; returns what is sure to stay."""
        if self._state == "done":
            return text
        shown = ""
        for at, char in enumerate(text):
            self._held += char
            shown += self._opening() if self._state == "opening" else self._wrapped()
            if self._state == "done":
                return shown + text[at + 1 :]
        return shown

    def flush(self) -> str:
        """The span has ended; returns the rest."""
        if self._state == "wrapped" and not self._depth and self._held.strip() == "```":
            self.trimmed += self._held
            self._held = ""
        return self._release()

    def _opening(self) -> str:
        body = self._held.lstrip()
        if "```".startswith(body) or (body.startswith("```") and "\n" not in body):
            return ""
        match = _FENCE.fullmatch(self._held)
        info = match[1].strip().lower() if match else None
        wraps = info in _PROSE_FENCES and not self._in_code
        if not wraps and not (info and self._in_code):
            self._state = "done"
            return self._release()
        self.trimmed += self._held
        self._held = ""
        self._state = "wrapped" if wraps else "done"
        return ""

    def _wrapped(self) -> str:
        """Hold a line break and a line of backticks until it is known whether they close."""
        line = self._held.removeprefix("\n")
        if line == self._held and not self._line_start:
            return self._release()
        if "```".startswith(line) or (line.startswith("```") and "\n" not in line):
            return ""
        self._line_start = False
        match = _FENCE.fullmatch(line)
        if match and not match[1].strip() and not self._depth:
            self.trimmed += self._held[:-1]
            self._held = "\n"
            self._state = "done"
            return self._release()
        if match:
            self._depth += 1 if match[1].strip() else -1
        if not self._held.endswith("\n"):
            return self._release()
        self._held = self._held[:-1]
        shown = self._release()
        self._held = "\n"
        return shown

    def _release(self) -> str:
        text, self._held = self._held, ""
        if text and self._first and self.trimmed and _words_meet(self._end, text[0]):
            text = " " + text
        self._first = self._first and not text
        return text


def _in_code(draft: str) -> bool:
    """Whether the draft ends inside a code block."""
    return len(re.findall(r"^ {0,3}```", draft, re.MULTILINE)) % 2 == 1


# --- repeated drafts ----------------------------------------------------------------------------

_MIN_OVERLAP_CHARS = 12
_MIN_OVERLAP_WORDS = 2
_MIN_OVERLAP_CJK_CHARS = 8
_MIN_RESTART_CHARS = 20
_MIN_RESTART_WORDS = 3
_MIN_RESTART_CJK_CHARS = 12

_LONGEST_OVERLAP_CHARS = 2_000
"""How far back in the draft a repeated end may begin; besides, the whole draft may be repeated."""


class Echo:
    """Removes the end of the draft, or all of it, from the start of a reply; tells a restart.

    Letter case and blanks do not count. Every place of the draft at which the reply so far could
    be read off is a candidate; a candidate that reaches the draft's end is an overlap. A reply
    that goes on from the draft's start, or from `start`, where the hosted model saw it begin,
    without reaching its end, is a restart.
    """

    def __init__(self, draft: str, start: int = 0) -> None:
        self.trimmed = ""
        self.restart = False
        self._draft = [_fold(char) for char in draft if not char.isspace()]
        first = max(0, len(self._draft) - _LONGEST_OVERLAP_CHARS)
        self._starts = {0, len("".join(draft[:start].split()))}
        candidates = {*self._starts, *range(first, len(self._draft))}
        self._candidates = sorted(at for at in candidates if at < len(self._draft))
        self._matched = 0  # characters of the reply, blanks aside
        self._held = ""
        self._overlap = 0  # end of the longest overlap, in the held text
        self._from_start = 0  # how far the reply repeats the draft from its start, in the held text
        self._open = True

    def push(self, text: str) -> str:
        """Take a piece; returns what is sure to stay."""
        if self.restart:
            self.trimmed += text
            return ""
        if not self._open:
            return text
        for at, char in enumerate(text):
            self._held += char
            if not char.isspace():
                self._step(_fold(char))
            if not self._candidates:
                return self._settled() + self.push(text[at + 1 :])
        return ""

    def flush(self) -> str:
        """The span has ended; returns the rest."""
        return self._settled() if self._open else ""

    def _step(self, char: str) -> None:
        """Drop the candidates that the next character of the reply contradicts or completes."""
        at, end = self._matched, len(self._draft)
        alive = [i for i in self._candidates if self._draft[i + at] == char]
        self._matched += 1
        if not self._starts.isdisjoint(alive):
            self._from_start = len(self._held)
        if any(i + self._matched == end for i in alive):
            self._overlap = self._counts(len(self._held)) or self._overlap
        self._candidates = [i for i in alive if i + self._matched < end]

    def _counts(self, end: int) -> int:
        """`end`, if the held text up to there is long enough to be a repetition; else 0."""
        return end if _is_long(self._held[:end], *_OVERLAP) else 0

    def _settled(self) -> str:
        self._open = False
        text, self._held = self._held, ""
        if self._from_start > self._overlap and _is_long(text[: self._from_start], *_RESTART):
            self.restart = True
            self.trimmed += text
            return ""
        self.trimmed += text[: self._overlap]
        return text[self._overlap :]


_OVERLAP = (_MIN_OVERLAP_CHARS, _MIN_OVERLAP_WORDS, _MIN_OVERLAP_CJK_CHARS)
_RESTART = (_MIN_RESTART_CHARS, _MIN_RESTART_WORDS, _MIN_RESTART_CJK_CHARS)


def _is_long(text: str, chars: int, words: int, cjk_chars: int) -> bool:
    """Whether `text` is too long to be equal to a part of the draft by chance."""
    parts = text.split()
    length = len(" ".join(parts))
    if sum(map(_is_cjk, text)) * 2 > length:
        return length >= cjk_chars
    return length >= chars and len(parts) >= words


def _fold(char: str) -> str:
    return _STRAIGHT.get(char, char.lower())


_STRAIGHT = dict(zip("\u2019\u2018\u201c\u201d", "''\"\"", strict=True))
"""Models repeat typographic quotes as straight ones."""

_CJK = (
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xAC00, 0xD7AF),  # Hangul
    (0xF900, 0xFAFF),  # Han, compatibility
    (0x20000, 0x323AF),  # Han, extensions B to H
)


def _is_cjk(char: str) -> bool:
    return bool(char) and any(low <= ord(char) <= high for low, high in _CJK)
