"""How a draft is shown to a hosted model so that it is continued, and how the seam is mended.

Nothing here sends anything, or knows a provider. Modes, best first: `prefill` and `flag` (a
trailing assistant message), `completion` (raw text), `instruct` (the request to write only what
follows, and the draft behind it), `handoff` (the same, to the end of the answer). The first
three are literal: the model sees an open text and goes on. The other two are asked for it, so
their seams are cleaned of what chat models add or repeat.

Trailing blanks of the draft are never sent (Anthropic refuses them, tokenizers stumble over
them). They are shown already, so a span that begins with them loses them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_args

from langchain_relay.delegates.cleaners import Reply, Stage, is_restart, marker
from langchain_relay.engine.values import Mode
from langchain_relay.errors import UsageMistake

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

__all__ = [
    "LITERAL_MODES",
    "Characters",
    "Repeated",
    "Seam",
    "check_mode",
    "completion_prompt",
    "continue_messages",
]

LITERAL_MODES: frozenset[str] = frozenset({"prefill", "flag", "completion"})
"""Modes in which a span is taken as it comes."""

PromptBuilder = Callable[[Sequence["BaseMessage"], str], str]
"""Renders (messages, draft) to the raw prompt of a completion endpoint."""


def check_mode(mode: object) -> None:
    """Refuse a mode that nobody knows: it would be taken for `instruct`.

    Raises:
        UsageMistake: `mode` is none of those there are, and not `None`.
    """
    if mode is not None and mode not in get_args(Mode):
        raise UsageMistake(
            f"mode={mode!r}: one of {', '.join(get_args(Mode))}, or None for what is known of the "
            f"host"
        )


# --- what is sent -------------------------------------------------------------------------------

_REQUEST = """\
Below, behind <{tag}>, is the beginning of the answer to the message above; it breaks off. {task} \
Do not repeat any of it and do not introduce your text. If a new word comes next, begin with a \
blank; if the text breaks off within a word, begin with the rest of that word.

<{tag}>{draft}"""
"""Of the requests tried, the one with the largest share of clean seams (docs/seams.md). The draft
is its open end, and what stands before it is the same from call to call, so that provider caches
find it. For that reason the length, which the API limits, is not asked for."""

_TASKS = {
    "instruct": "Write what comes directly after its last character, and nothing else.",
    "handoff": "Finish the answer: write everything that is still missing.",
}


CLIPPED = "[The beginning of the draft is left out here.]\n"
"""Stands in front of a draft of which only the end is sent, where a model is asked in words."""


def continue_messages(
    messages: Sequence[BaseMessage],
    draft: str,
    mode: Mode,
    *,
    clipped: bool = False,
) -> list[BaseMessage]:
    """The conversation a hosted chat model is sent so that it continues `draft`.

    The user's own messages, system prompt included, stay as they are; with an empty draft they
    are all there is. In `flag` mode the provider's flags are put on by the delegate.

    What changes from call to call, such as `max_tokens`, stands behind the draft. So two requests
    of one answer are equal up to the end of the shorter draft, and providers find that in their
    caches. (A draft that contains its own marker is given another one: from there on once more.)

    Args:
        messages: The user's conversation.
        draft: The answer so far.
        mode: Any but `completion`, which has no messages: see `completion_prompt`.
        clipped: `draft` is only the end of it; whoever is asked in words is told so.

    Raises:
        ValueError: `mode` is `completion`.
    """
    from langchain_core.messages import AIMessage

    if mode == "completion":
        raise ValueError("completion mode sends a prompt, not messages: use completion_prompt()")
    shown = draft.rstrip()
    if not shown:
        return list(messages)
    if mode not in _TASKS:
        return [*messages, AIMessage(shown)]
    shown = f"{CLIPPED if clipped else ''}{shown}"
    return _with_request(
        messages, _REQUEST.format(tag=marker(shown), draft=shown, task=_TASKS[mode])
    )


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

    Raises:
        UsageMistake: the template is broken, or refuses the messages.
    """
    if callable(template):
        return template(messages, draft.rstrip())
    if template is not None:
        return _render(template, messages) + draft.rstrip()
    said = [f"{_SPEAKERS.get(m.type, m.type.title())}: {m.text}\n\n" for m in messages]
    return "".join(said) + f"Assistant: {draft.rstrip()}".rstrip()


def _render(template: str, messages: Sequence[BaseMessage]) -> str:
    from jinja2 import TemplateError
    from langchain_core.messages import convert_to_openai_messages

    from langchain_relay.local.template import compiled

    try:
        text: str = compiled(template).render(
            messages=convert_to_openai_messages(list(messages)),
            add_generation_prompt=True,
            bos_token="",  # the server puts it in front itself
            eos_token="",
        )
    except TemplateError as error:
        raise UsageMistake(f"the chat template refuses these messages: {error}") from error
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise UsageMistake(f"the chat template fails on these messages: {error}") from error
    return text


# --- the seam -----------------------------------------------------------------------------------


class Seam:
    """Mends where a span joins its draft, while the span arrives.

    Literal modes lose nothing but the blanks that were withheld and are shown already. In the
    others an opener ("Sure, here is the continuation:"), a code fence around the reply and a
    repeated end of the draft are removed, and a reply that starts the answer again is recognised:
    then nothing of it is shown. What may as well be part of the answer stays. Any chunking of a
    span gives the same text.

    Args:
        draft: The text shown so far, trailing blanks included.
        mode: How it was shown to the hosted model.
        start: Where the part of the draft begins that the hosted model was sent.

    Attributes:
        restart: The span starts the answer again instead of continuing it.
    """

    def __init__(self, draft: str, mode: Mode, start: int = 0) -> None:
        blanks = _Blanks(draft[len(draft.rstrip()) :])
        asked = mode not in LITERAL_MODES and bool(draft.strip())
        self._reply = Reply(draft, start) if asked else None
        self._stages: list[Stage] = [self._reply, blanks] if self._reply else [blanks]

    @property
    def restart(self) -> bool:
        """Whether the span starts the answer again."""
        return self._reply is not None and self._reply.restart

    @property
    def trimmed(self) -> str:
        """What was removed of the span so far, withheld blanks aside."""
        return self._reply.trimmed if self._reply else ""

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


_SURROGATE = re.compile("[\ud800-\udfff]")


class Characters:
    """Joins characters that a host cut in two, and replaces halves without another.

    Hosts that think in UTF-16 may send an emoji in two pieces. A half can neither be printed nor
    be sent to the next host.
    """

    def __init__(self) -> None:
        self._half = ""

    def push(self, text: str) -> str:
        """Take a piece; returns its whole characters."""
        text, self._half = self._half + text, ""
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return _whole(text)

    def flush(self) -> str:
        """The span has ended; returns what stands for a half that is left."""
        half, self._half = self._half, ""
        return _whole(half)


def _whole(text: str) -> str:
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class Repeated:
    """Drops the draft from a reply that begins with it, as some hosts' replies do by contract.

    A reply that begins otherwise is left alone. Any chunking gives the same text.

    Args:
        draft: The draft as it was sent; empty: nothing is repeated.
    """

    def __init__(self, draft: str) -> None:
        self._expected = draft.rstrip()
        self._held = ""

    def push(self, text: str) -> str:
        """Take a piece of the reply; returns what of it is new."""
        if not self._expected:
            return text
        self._held += text
        if len(self._held) < len(self._expected) and self._expected.startswith(self._held):
            return ""
        held, expected = self._held, self._expected
        self._held = self._expected = ""
        return held.removeprefix(expected)

    def take(self, text: str, *, ended: bool) -> str:
        """Take a piece that may be the last one; returns what of it is new."""
        return self.push(text) + (self.flush() if ended else "")

    def flush(self) -> str:
        """The reply has ended; returns what was withheld.

        A long beginning of the draft is a repetition that the limit cut off: it is no new text.
        """
        held, self._held, self._expected = self._held, "", ""
        return "" if is_restart(held) else held


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
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
