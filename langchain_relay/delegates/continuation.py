"""How a draft is shown to a hosted model so that it is continued, and how the seam is mended.

Nothing here sends anything, or knows a provider. Modes, best first: `prefill` and `flag` (a
trailing assistant message), `completion` (raw text), `instruct` (the draft between markers and the
request to write only what follows), `handoff` (the same, to the end of the answer). The first
three are literal: the model sees an open text and goes on. The other two are asked for it, so
their seams are cleaned of what chat models add or repeat.

Trailing blanks of the draft are never sent (Anthropic refuses them, tokenizers stumble over
them). They are shown already, so a span that begins with them loses them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from langchain_relay.engine.values import Mode

__all__ = ["LITERAL_MODES", "Seam", "completion_prompt", "continue_messages"]

LITERAL_MODES: frozenset[str] = frozenset({"prefill", "flag", "completion"})
"""Modes in which a span is taken as it comes."""

PromptBuilder = Callable[[Sequence["BaseMessage"], str], str]
"""Renders (messages, draft) to the raw prompt of a completion endpoint."""

# --- what is sent -------------------------------------------------------------------------------

_INSTRUCT = """\
The answer to the message above is already begun. What is written so far stands between \
<{tag}> and </{tag}>:

<{tag}>{draft}</{tag}>

Write only the text that comes directly after it, about {max_tokens} tokens. Your reply is glued \
to the last character of the draft, and someone else goes on from where you stop, so:
- Do not repeat any of the draft, do not start the answer again, do not introduce your text.
- Keep its language, tone and format. You may stop in the middle of a sentence.
- If a new word comes next and the draft does not end in a blank, begin with a blank. If the draft \
ends in the middle of a word, begin with the rest of that word.
- No quotation marks, tags or code fence around your text."""

_HANDOFF = """\
The answer to the message above is already begun. What is written so far stands between \
<{tag}> and </{tag}>:

<{tag}>{draft}</{tag}>

Finish the answer: write everything that is still missing, in at most about {max_tokens} tokens. \
Your reply is glued to the last character of the draft, so:
- Do not repeat any of the draft, do not start the answer again, do not introduce your text.
- Keep its language, tone and format.
- If a new word comes next and the draft does not end in a blank, begin with a blank. If the draft \
ends in the middle of a word, begin with the rest of that word.
- No quotation marks, tags or code fence around your text."""

_REQUESTS = {"instruct": _INSTRUCT, "handoff": _HANDOFF}


def continue_messages(
    messages: Sequence[BaseMessage], draft: str, mode: Mode, max_tokens: int
) -> list[BaseMessage]:
    """The conversation a hosted chat model is sent so that it continues `draft`.

    The user's own messages, system prompt included, stay as they are; with an empty draft they
    are all there is. In `flag` mode the provider's flags are put on by the delegate.

    Args:
        messages: The user's conversation.
        draft: The answer so far.
        mode: Any but `completion`, which has no messages: see `completion_prompt`.
        max_tokens: The length that is asked for in words; the limit itself is the API's.

    Raises:
        ValueError: `mode` is `completion`.
    """
    from langchain_core.messages import AIMessage

    if mode == "completion":
        raise ValueError("completion mode sends a prompt, not messages: use completion_prompt()")
    shown = draft.rstrip()
    if not shown:
        return list(messages)
    if mode not in _REQUESTS:
        return [*messages, AIMessage(shown)]
    request = _REQUESTS[mode].format(tag=_tag(shown), draft=shown, max_tokens=max_tokens)
    return _with_request(messages, request)


def _tag(draft: str) -> str:
    """A marker that the draft does not contain: nothing in a draft may close it."""
    tag, number = "draft", 1
    while tag in draft:
        number += 1
        tag = f"draft-{number}"
    return tag


def _with_request(messages: Sequence[BaseMessage], request: str) -> list[BaseMessage]:
    """Put the request into the last user message: some providers refuse two in a row."""
    from langchain_core.messages import HumanMessage

    if not messages or not isinstance(messages[-1], HumanMessage):
        return [*messages, HumanMessage(request)]
    last = messages[-1]
    content: str | list[Any]
    if isinstance(last.content, str):
        content = f"{last.content}\n\n{request}"
    else:
        content = [*last.content, {"type": "text", "text": request}]
    return [*messages[:-1], last.model_copy(update={"content": content})]


_SPEAKERS = {"system": "System", "human": "User", "ai": "Assistant", "tool": "Tool"}


def completion_prompt(
    messages: Sequence[BaseMessage],
    draft: str,
    template: PromptBuilder | str | None = None,
) -> str:
    """The raw prompt of a completion endpoint; it ends in the draft without trailing blanks.

    Args:
        messages: The user's conversation.
        draft: The answer so far.
        template: A function of (messages, draft), or the model's Jinja chat template. `None`: a
            plain transcript, for base models.
    """
    if callable(template):
        return template(messages, draft.rstrip())
    if template is not None:
        return _render(template, messages) + draft.rstrip()
    said = [f"{_SPEAKERS.get(m.type, m.type.title())}: {m.text}\n\n" for m in messages]
    return "".join(said) + f"Assistant: {draft.rstrip()}".rstrip()


def _render(template: str, messages: Sequence[BaseMessage]) -> str:
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from langchain_core.messages import convert_to_openai_messages

    # The whitespace rules of Hugging Face's apply_chat_template, which templates are written for.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(template).render(
        messages=convert_to_openai_messages(list(messages)),
        add_generation_prompt=True,
        bos_token="",  # noqa: S106 - a token of a vocabulary; the server puts it in front itself
        eos_token="",  # noqa: S106
    )


def _raise_exception(message: str) -> None:
    raise ValueError(f"the chat template refuses these messages: {message}")


# --- the seam -----------------------------------------------------------------------------------


class Seam:
    """Mends where a span joins its draft, while the span arrives.

    Literal modes lose nothing but the blanks that were withheld and are shown already. In the
    others an opener ("Sure, here is the continuation:"), a code fence around the reply and a
    repeated end of the draft are removed, and a reply that starts the answer again is recognised:
    then nothing of it is shown. Any chunking of a span gives the same text.

    Args:
        draft: The text shown so far, trailing blanks included.
        mode: How it was shown to the hosted model.

    Attributes:
        restart: The span starts the answer again instead of continuing it.
    """

    def __init__(self, draft: str, mode: Mode) -> None:
        blanks = _Blanks(draft[len(draft.rstrip()) :])
        self._echo: _Echo | None = None
        self._cleaners: list[_Cleaner] = []
        self._stages: list[_Stage] = [blanks]
        if mode not in LITERAL_MODES and draft.strip():
            self._echo = _Echo(draft)
            self._cleaners = [_Openers(draft), _Fence(draft), self._echo]
            self._stages = [*self._cleaners, blanks]

    @property
    def restart(self) -> bool:
        """Whether the span starts the answer again."""
        return self._echo is not None and self._echo.restart

    @property
    def trimmed(self) -> str:
        """What was removed of the span so far, withheld blanks aside."""
        return "".join(cleaner.trimmed for cleaner in self._cleaners)

    def push(self, text: str) -> str:
        """Take a piece of the span; returns what is now sure to be shown."""
        for stage in self._stages:
            text = stage.push(text)
        return text

    def flush(self) -> str:
        """The span has ended; returns the rest of what is to be shown."""
        text = ""
        for stage in self._stages:
            text = stage.push(text) + stage.flush()
        return text


class _Stage(Protocol):
    def push(self, text: str) -> str: ...
    def flush(self) -> str: ...


class _Cleaner(_Stage, Protocol):
    trimmed: str


class _Blanks:
    """Does not show the draft's withheld trailing blanks a second time."""

    def __init__(self, withheld: str) -> None:
        self._withheld = withheld
        self._open = bool(withheld)
        self._lead = ""

    def push(self, text: str) -> str:
        if not self._open:
            return text
        self._lead += text
        if not self._lead.strip():
            return ""
        return self.flush()

    def flush(self) -> str:
        text, self._lead, self._open = self._lead, "", False
        if not self._withheld:
            return text
        body = text.lstrip()
        lead = text[: len(text) - len(body)]
        self._withheld, withheld = "", self._withheld
        shared = _shared_prefix(withheld, lead)
        if not shared and lead == " ":
            return body  # the model parts words with its blank where the draft has a line break
        return lead[shared:] + body


def _shared_prefix(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# --- openers ------------------------------------------------------------------------------------

_YES = r"(?:sure(?: thing)?|certainly|of course|okay|ok|absolutely|alright|understood|got it)"
_HERE = r"(?:here(?:'s|’s| is| are)|below is)"
_GOING_ON = r"(?:i(?:'|’)ll continue|i will continue|let me continue|continuing|continuation|continued)"
_WHAT = r"(?:continu\w+|the rest|remain\w+|complet\w+|follow\w+|next (?:part|words?|tokens?|text))"

_OPENER = re.compile(
    rf"""
    (?: (?:{_YES}[,.!:]*\s+)? {_HERE}\b [^:\n]{{0,40}}?\b{_WHAT} [^:\n]{{0,60}} :
      | (?:{_YES}[,.!:]*\s+)? \**{_GOING_ON}\b [^:\n.]{{0,60}} :\**
      | {_YES}[.!] (?=\s*\n)
      | [(\[] (?:continued|continuing|cont\.?) [)\]] :?
      | (?:好的[，,。!！]?\s*)? 以下是[^：:\n]{{0,20}}[续继接][^：:\n]{{0,20}}[：:]
      | (?:好的[，,。!！]?\s*)? (?:继续|续写|接续)[：:]
    ) \s*
    """,
    re.VERBOSE | re.IGNORECASE,
)

_CUT_OPENER = re.compile(
    rf"{_YES}[,.!:]+\s*(?:{_HERE}?[^:\n]{{0,80}}|{_GOING_ON}[^:\n]{{0,60}})", re.IGNORECASE
)
"""An opener that the length limit cut off. It needs the comma: "Sure" may begin a sentence."""

_ELLIPSIS = re.compile(r"(?:\.{3,}|…)\s*(?=\w)")

_GATES = (
    *("sure", "certainly", "of course", "okay", "ok", "absolutely", "alright", "understood"),
    *("got it", "here's", "here’s", "here is", "here are", "below is", "continu", "**continu"),
    *("i'll continue", "i’ll continue", "i will continue", "let me continue"),
    *("(cont", "[cont", "好的", "以下是", "继续", "续写", "接续"),
)
"""How every opener begins: a span that begins otherwise is passed on at once."""

_OPENER_CHARS = 140
"""The longest opener; a line that is longer is text."""


class _Openers:
    """Removes what chat models say before they do as they were asked."""

    def __init__(self, draft: str) -> None:
        self.trimmed = ""
        self._end = draft[-1:]
        self._in_code = _in_code(draft)
        self._held = ""
        self._open = True

    def push(self, text: str) -> str:
        if not self._open:
            return text
        for at, char in enumerate(text):
            self._held += char
            if self._decided(final=False):
                return self._joined() + text[at + 1 :]
        return ""

    def flush(self) -> str:
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
    return re.match(r"[^:：\n)\]]*[:：\n)\]][*:：)\]]*\s*[^\s*:：)\]]", body) is not None


def _words_meet(left: str, right: str) -> bool:
    """Whether two characters need a blank between them."""
    if _is_cjk(left) or _is_cjk(right):
        return False
    return (left.isalnum() or left in {",", ".", ";", ":", "!", "?", ")"}) and right.isalnum()


# --- code fences --------------------------------------------------------------------------------

_PROSE_FENCES = frozenset({"", "text", "txt", "plaintext", "plain", "markdown", "md"})
"""Info strings of a fence that wraps the reply itself; ```python is part of the answer."""

_FENCE = re.compile(r"\s*(```+)([^`\n]*)\n")


class _Fence:
    """Removes a code fence around the whole reply, and one that opens code that is open already."""

    def __init__(self, draft: str) -> None:
        self.trimmed = ""
        self._in_code = _in_code(draft)
        self._state = "start"  # start | wrapped | done
        self._held = ""
        self._depth = 0

    def push(self, text: str) -> str:
        if self._state == "done":
            return text
        shown = ""
        for at, char in enumerate(text):
            self._held += char
            if self._state == "start":
                shown += self._opening()
            else:
                shown += self._line()
            if self._state == "done":
                return shown + text[at + 1 :]
        return shown

    def flush(self) -> str:
        if self._state == "wrapped" and self._depth == 0 and self._held.strip() == "```":
            self.trimmed += self._held
            self._held = ""
        return self._release()

    def _release(self) -> str:
        text, self._held = self._held, ""
        return text

    def _opening(self) -> str:
        body = self._held.lstrip()
        if not body or "```".startswith(body) or (body.startswith("```") and "\n" not in body):
            return ""
        match = _FENCE.fullmatch(self._held)
        info = match[2].strip().lower() if match else None
        wraps = info in _PROSE_FENCES and not self._in_code
        if info is None or not (wraps or (self._in_code and info)):
            self._state = "done"
            return self._release()
        self.trimmed += self._held
        self._held = ""
        self._state = "wrapped" if wraps else "done"
        return ""

    def _line(self) -> str:
        """Hold a line break with the backticks behind it until it is no closing fence."""
        if self._held in {"\n", "```", "\n```"} or "\n```".startswith(self._held):
            return ""
        if "```".startswith(self._held) and not self.trimmed.strip("`\n "):
            return ""
        fence = re.fullmatch(r"(\n?```+)([^`\n]*)(\n?)", self._held)
        if fence is None:
            return self._release()
        if not fence[3]:
            return ""
        if fence[2].strip():
            self._depth += 1
        elif self._depth:
            self._depth -= 1
        else:
            self.trimmed += fence[1]
            self._held = fence[3]
            self._state = "done"
            return self._release()
        # The line break at its end may be the one before the closing fence.
        shown, self._held = self._held[:-1], "\n"
        return shown


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


class _Echo:
    """Removes the end of the draft, or all of it, from the start of a reply; tells a restart.

    Letter case and blanks do not count. Every place of the draft at which the reply so far could
    be read off is a candidate; a candidate that reaches the draft's end is an overlap.
    """

    def __init__(self, draft: str) -> None:
        self.trimmed = ""
        self.restart = False
        self._draft = [_fold(char) for char in draft if not char.isspace()]
        first = max(0, len(self._draft) - _LONGEST_OVERLAP_CHARS)
        self._candidates = [0, *range(max(1, first), len(self._draft))]
        self._matched = 0  # characters of the reply, blanks aside
        self._held = ""
        self._overlap = 0  # end of the longest overlap, in the held text
        self._from_start = 0  # how far the reply repeats the draft from its start, in the held text
        self._open = True

    def push(self, text: str) -> str:
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
        return self._settled() if self._open else ""

    def _step(self, char: str) -> None:
        """Drop the candidates that the next character of the reply contradicts or completes."""
        at, end = self._matched, len(self._draft)
        alive = [i for i in self._candidates if self._draft[i + at] == char]
        self._matched += 1
        if alive and alive[0] == 0:
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


_STRAIGHT = {"’": "'", "‘": "'", "“": '"', "”": '"'}
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
