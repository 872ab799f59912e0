"""What chat models add to a continuation they were asked for, and how it is taken out.

`Reply` puts four stages together, each fed a span piece by piece: the marker that the draft was
shown behind, a repeated draft, an opener, a code fence. Each looks at one character at a time, so
any chunking of a span gives the same text, and passes text on as soon as it is sure.

Losing a word of an answer is worse than showing an opener. So where a draft stops decides what
may be one: within a sentence no answer goes on with "Here is the continuation:"; behind one it may
go on with "Here is the rest of the story:"; behind a colon or an opening quotation mark with
anything. What only may be an opener is taken out if a repeated draft or a fence follows it.
"""

from __future__ import annotations

import re
from typing import Literal, Protocol

# --- where a draft stops ------------------------------------------------------------------------

Place = Literal["inside", "behind", "before"]
"""Within a sentence, behind one, or before words that somebody says or that stand under a mark."""

_SENTENCE_ENDS = frozenset(".!?\u2026\u3002\uff01\uff1f;\uff1b")
_ANNOUNCES = frozenset(":\uff1a([{\u201c\u2018\u00ab\u201e\u300c\u300e\uff08\u2014|>=")
_OPENING_QUOTE = re.compile(r"(?:^|[\s(\[{=,])[\"'`]+\Z")
_CLOSING_QUOTES = "\"'`\u201d\u2019\u00bb\u300d\u300f)*_"
_MARK = re.compile(r"(?:^|\n)[ \t>]*(?:[-*+\u2022]|\d+[.)]|#{1,6})\Z")


def _place(draft: str) -> Place:
    end = draft.rstrip()
    if end[-1:] in _ANNOUNCES or _OPENING_QUOTE.search(end) or _MARK.search(end):
        return "before"
    if "\n" in draft[len(end) :] or end.rstrip(_CLOSING_QUOTES)[-1:] in _SENTENCE_ENDS:
        return "behind"
    return "inside"


_FENCE_LINE = re.compile(r"[ \t]*(`{3,}|~{3,})[ \t]*([^`\n]*)")


def _open_code(draft: str) -> str | None:
    """The info string of the code block that the draft ends in; `None`: it ends in none."""
    mark, info = "", ""
    for line in draft.split("\n"):
        match = _FENCE_LINE.fullmatch(line.rstrip())
        if match is None:
            continue
        if not mark:
            mark, info = match[1], match[2].lower()
        elif match[1].startswith(mark) and not match[2]:
            mark = ""
    return info if mark else None


# --- markers ------------------------------------------------------------------------------------


def marker(draft: str) -> str:
    """A tag that the draft does not contain: nothing in a draft may look like its marker."""
    tag, number = "draft", 1
    while f"{tag}>" in draft:
        number += 1
        tag = f"draft-{number}"
    return tag


class Markers:
    """Removes the marker that a draft was shown behind, where a reply repeats or closes it.

    Attributes:
        trimmed: What was removed.
        opened: The reply begins with the marker, so it may begin with the draft.
    """

    def __init__(self, draft: str) -> None:
        self.trimmed = ""
        self.opened = False
        tag = marker(draft.rstrip())
        self._opening, self._closing = f"<{tag}>", f"</{tag}>"
        self._held = ""
        self._first = True

    def push(self, text: str) -> str:
        """Take a piece; returns what no longer can be a marker."""
        return "".join(map(self._step, text))

    def flush(self) -> str:
        """The span has ended; returns the rest."""
        text, self._held = self._held, ""
        return text

    def _step(self, char: str) -> str:
        self._held += char
        body = self._held.lstrip()
        if self._first and self._opening.startswith(body):
            if body == self._opening:
                self.opened = True
                self._first = False
                self._drop()
            return ""
        self._first = False
        at = self._held.rfind("<")
        if at < 0 or not self._closing.startswith(self._held[at:]):
            return self.flush()
        shown, self._held = self._held[:at], self._held[at:]
        if self._held == self._closing:
            self._drop()
        return shown

    def _drop(self) -> None:
        self.trimmed += self.flush()


# --- openers ------------------------------------------------------------------------------------

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
        self._place = _place(draft)
        self._labelled = _LABELLED.search(draft.rstrip()) is not None
        self._in_code = _open_code(draft) is not None
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
        if not (self.trimmed[-1:].isspace() and _words_meet(self._end, shown[:1])):
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


def _words_meet(left: str, right: str) -> bool:
    """Whether two characters need a blank between them."""
    if is_cjk(left) or is_cjk(right):
        return False
    return (left.isalnum() or left in {",", ".", ";", ":", "!", "?", ")"}) and right.isalnum()


# --- code fences --------------------------------------------------------------------------------

_PROSE_FENCES = frozenset({"", "text", "txt", "plaintext", "plain", "markdown", "md"})
"""Info strings of a fence that wraps the reply itself; ```python is part of the answer."""

_MARKDOWN = frozenset({"markdown", "md"})
"""Info strings of code that may contain fences itself."""

_FENCE = re.compile(r"\s*```+([^`\n]*)\n")


class Fence:
    """Removes a code fence around the whole reply, and one that opens code that is open already.

    No block of code begins within a sentence; anywhere else a fence may be the answer's own.
    """

    def __init__(self, draft: str) -> None:
        self.trimmed = ""
        self._end = draft[-1:]
        self._inside = _place(draft) == "inside"
        self._open_code = _open_code(draft)
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
        wraps = info in _PROSE_FENCES and self._may_wrap(self._held[: -len(body)])
        if not wraps and not self._is_open(info):
            self._state = "done"
            return self._release()
        self.trimmed += self._held
        self._held = ""
        self._state = "wrapped" if wraps else "done"
        return ""

    def _may_wrap(self, blanks: str) -> bool:
        return self._inside and self._open_code is None and "\n" not in blanks

    def _is_open(self, info: str | None) -> bool:
        """Whether the draft ends in code that such a fence opened."""
        opened = self._open_code
        if not info or not opened or opened in _MARKDOWN:
            return False
        return opened.startswith(info) or info.startswith(opened)

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
    be read off is a candidate; a candidate that reaches the draft's end is an overlap. What the
    draft says twice may be said a third time, and is no overlap. A reply that goes on from the
    draft's start, or from `start`, where the hosted model saw it begin, without reaching its end,
    is a restart.
    """

    def __init__(self, draft: str, start: int = 0) -> None:
        self.trimmed = ""
        self.restart = False
        self.expected = False  # little is enough behind a marker
        self._text = draft
        self._draft = _folded(draft)
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
        least = _EXPECTED if self.expected else _OVERLAP
        return end if _is_long(self._held[:end], *least) else 0

    def _settled(self) -> str:
        self._open = False
        text, self._held = self._held, ""
        if self._overlap and self._recurs(text[: self._overlap]):
            self._overlap = 0
        if self._from_start > self._overlap and self._restarts(text[: self._from_start]):
            self.restart = True
            self.trimmed += text
            return ""
        self.trimmed += text[: self._overlap]
        return text[self._overlap :]

    def _recurs(self, text: str) -> bool:
        """Whether the draft has `text` in more than one place."""
        draft, wanted = "".join(self._draft), "".join(_folded(text))
        return draft.find(wanted) != draft.rfind(wanted)

    def _restarts(self, text: str) -> bool:
        """Whether a reply that begins with `text`, as the draft does, starts the answer again."""
        if not _is_long(text, *(_EXPECTED if self.expected else _RESTART)):
            return False
        if self.expected or not (_is_in_lines(self._text) or self._recurs(text)):
            return True
        # Lines of code, lists and poems begin alike, and so does what was said twice.
        return len(_folded(text)) > len(_folded(_first_part(self._text)))


_FIRST_PART = re.compile(r"\s*(?:[^\n]*?[.!?](?=\s)|[^\n]*?[\u3002\uff01\uff1f]|[^\n]*)")


def _first_part(draft: str) -> str:
    """The first line of lines, else the first sentence."""
    if _is_in_lines(draft):
        return draft.lstrip().partition("\n")[0]
    match = _FIRST_PART.match(draft)
    return match[0] if match else ""


def _is_in_lines(draft: str) -> bool:
    """Whether the draft stops at the start of a line and is written in lines, not paragraphs."""
    body = draft.rstrip()
    breaks = draft[len(body) :].count("\n")
    return breaks == 1 or (breaks > 1 and re.search(r"\S[ \t]*\n[ \t]*\S", body) is not None)


def _folded(text: str) -> list[str]:
    return [_fold(char) for char in text if not char.isspace()]


_OVERLAP = (_MIN_OVERLAP_CHARS, _MIN_OVERLAP_WORDS, _MIN_OVERLAP_CJK_CHARS)
_EXPECTED = (4, 1, 2)
_RESTART = (_MIN_RESTART_CHARS, _MIN_RESTART_WORDS, _MIN_RESTART_CJK_CHARS)


def _is_long(text: str, chars: int, words: int, cjk_chars: int) -> bool:
    """Whether `text` is too long to be equal to a part of the draft by chance."""
    parts = text.split()
    length = len(" ".join(parts))
    if sum(map(is_cjk, text)) * 2 > length:
        return length >= cjk_chars
    return length >= chars and len(parts) >= words


def is_restart(text: str) -> bool:
    """Whether `text`, with which the draft begins, is too long to begin a reply by chance."""
    return _is_long(text, *_RESTART)


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


def is_cjk(char: str) -> bool:
    """Whether it is of a script without blanks between words."""
    return bool(char) and any(low <= ord(char) <= high for low, high in _CJK)


# --- all together -------------------------------------------------------------------------------


class Reply:
    """Removes from a reply what is no continuation of the draft.

    Args:
        draft: The text shown so far.
        start: Where in it the hosted model saw it begin.

    Attributes:
        restart: The reply starts the answer again.
    """

    def __init__(self, draft: str, start: int = 0) -> None:
        self._draft = draft
        self._start = start
        self._markers = Markers(draft)
        self._echo = Echo(draft, start)
        self._openers = Openers(draft)
        self._fence = Fence(draft)
        self._second: Echo | None = None  # looks for the draft behind an opener or a fence
        self._settled = False

    @property
    def restart(self) -> bool:
        """Whether the reply starts the answer again."""
        return self._echo.restart or (self._second is not None and self._second.restart)

    @property
    def trimmed(self) -> str:
        """What was removed so far."""
        second = self._second.trimmed if self._second else ""
        doubtful = self._openers.doubtful if self._fence.trimmed or second else ""
        stages = self._markers, self._echo, self._openers, self._fence
        first, echo, openers, fence = (stage.trimmed for stage in stages)
        return first + echo + openers + doubtful + fence + second

    def push(self, text: str) -> str:
        """Take a piece; returns what is sure to stay."""
        return self._through(text, final=False)

    def flush(self) -> str:
        """The reply has ended; returns the rest."""
        return self._through("", final=True)

    def _through(self, text: str, *, final: bool) -> str:
        text = _passed(self._markers, text, final=final)
        self._echo.expected = self._markers.opened
        text = _passed(self._echo, text, final=final)
        if self._echo.trimmed:
            return text  # who has repeated the draft goes on with it
        for stage in (self._openers, self._fence):
            text = _passed(stage, text, final=final)
        if self._settled:
            return text
        return self._behind_them(text, final=final)

    def _behind_them(self, text: str, *, final: bool) -> str:
        """Look for the draft behind what was taken out, and decide what was doubtful."""
        openers, fence = self._openers, self._fence
        if openers.trimmed or openers.doubtful or fence.trimmed:
            self._second = self._second or Echo(self._draft, self._start)
            text = _passed(self._second, text, final=final)
        if self.restart or not (text or final):
            return ""
        self._settled = True
        found = fence.trimmed or (self._second and self._second.trimmed)
        return text if found else openers.doubtful + text


class Stage(Protocol):
    """Sees a reply piece by piece, and says what of it is to be shown."""

    def push(self, text: str) -> str:
        """Take a piece; returns what is sure to be shown."""
        ...

    def flush(self) -> str:
        """The reply has ended; returns the rest."""
        ...


def _passed(stage: Stage, text: str, *, final: bool) -> str:
    return stage.push(text) + (stage.flush() if final else "")
