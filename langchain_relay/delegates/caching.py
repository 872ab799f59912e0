"""Prompt caches of hosts that want to be told: where breakpoints go, and when they pay.

Most hosts (OpenAI up to GPT-5.5, DeepSeek, Gemini, Groq) find a repeated beginning by themselves;
an answer's requests begin alike, so nothing is to be done. Anthropic caches only up to marked
blocks, and OpenAI from GPT-5.6 on matches whole blocks; both bill what is written to the cache at
1.25 times the price of input and what is read from it at 0.1 times.

**When.** A breakpoint costs 0.25 of what it covers if nobody reads it and saves 0.9 at each
reading, so it pays once a second reading is likelier than 0.25 / 0.9 = 28 %. Of two readings the
write is earned back (1.25 + 0.1 against 2). So breakpoints are set where the policy may hand over
again within this answer (`Attempt.again`), and on the conversation where it has had an earlier
turn; a single hand-over of a first question pays no premium.

**Where.** Behind the conversation, and inside the draft at its last stable cut: a pure function
of the text before it, so a longer draft has all cuts of a shorter one. What is less than
`BLOCK_CHARS` or so behind the last cut is read at the plain price.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from langchain_relay.delegates.hosts import first_fitting

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

__all__ = ["CACHES", "CacheRule", "cache_key", "cache_rule", "marked", "with_breakpoints"]

BLOCK_CHARS = 1_000
"""Least distance of two cuts in a draft; some 250 tokens of English."""

MOST_BREAKPOINTS = 4
"""What Anthropic takes in one request, the user's own included, and what OpenAI writes at once."""

_MOST_READ = 40
"""Blocks of a draft that are marked where every mark is looked up; OpenAI looks at the last 50."""

Content = str | list[Any]


@dataclass(frozen=True, slots=True)
class CacheRule:
    """One row.

    Attributes:
        name: Provider and models.
        source: The page that says so, and when it was read.
        models: Names of models; empty: all.
        classes: Names of LangChain classes, or of their bases.
        addresses: Ends of host names.
        key: What marks a block, and with what.
        min_tokens: Shorter beginnings are not cached.
        marks_assistant: Whether the assistant's messages may be marked.
        options: Fields of the request that go with the marks.
        reads_marks: Only marked blocks are looked up, so those of earlier requests stay marked;
            elsewhere the host looks back over the last 20 blocks itself.
        routed: A key tells the host which requests belong together (`prompt_cache_key`).
    """

    name: str
    source: str
    models: str = ""
    classes: frozenset[str] = frozenset()
    addresses: tuple[str, ...] = ()
    key: tuple[str, Mapping[str, str]] | None = None
    min_tokens: int = 1_024
    marks_assistant: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    reads_marks: bool = False
    routed: bool = False


_CLAUDE_PAGE = (
    "platform.claude.com/docs/en/build-with-claude/prompt-caching, its minima as listed on "
    "docs.litellm.ai/docs/completion/prompt_caching (2026-10-07), read 2026-11-21"
)
_OPENAI_PAGE = "developers.openai.com/api/docs/guides/prompt-caching, read 2026-11-21"
_CLAUDE = frozenset({"ChatAnthropic"})
_EPHEMERAL = ("cache_control", {"type": "ephemeral"})

CACHES: tuple[CacheRule, ...] = (
    CacheRule(
        "Claude 5 Opus, Fable and Mythos",
        _CLAUDE_PAGE,
        models=r"claude-(opus|fable|mythos)-5",
        classes=_CLAUDE,
        key=_EPHEMERAL,
        min_tokens=512,
    ),
    CacheRule(
        "Claude Haiku 4.5, Opus 4.5 and 4.6",
        _CLAUDE_PAGE,
        models=r"claude-(haiku-4-5|opus-4-[56])",
        classes=_CLAUDE,
        key=_EPHEMERAL,
        min_tokens=4_096,
    ),
    CacheRule(
        "Claude Opus 4.7, Haiku up to 3.5: pages differ between 1,024 and 4,096 for the former",
        _CLAUDE_PAGE,
        models=r"claude-(opus-4-7|3-5-haiku|3-haiku|haiku-3)",
        classes=_CLAUDE,
        key=_EPHEMERAL,
        min_tokens=2_048,
    ),
    CacheRule("Claude, all others", _CLAUDE_PAGE, classes=_CLAUDE, key=_EPHEMERAL),
    CacheRule(
        "OpenAI, GPT-5.6 and later",
        _OPENAI_PAGE,
        models=r"^gpt-(5\.([6-9]|\d\d)|[6-9])",
        addresses=("api.openai.com",),
        key=("prompt_cache_breakpoint", {"mode": "explicit"}),
        marks_assistant=False,
        # Its own breakpoint is behind the request's last words, which no other request has.
        options={"prompt_cache_options": {"mode": "explicit"}},
        reads_marks=True,
        routed=True,
    ),
    CacheRule(
        "OpenAI, others: automatic",
        _OPENAI_PAGE,
        addresses=("api.openai.com",),
        routed=True,
    ),
)
"""The table; the first row that fits decides."""


def cache_rule(
    classes: frozenset[str], address: str, model: str, *, wanted: bool | None = None
) -> CacheRule | None:
    """The first row that fits; `None`: nothing is to be done.

    Args:
        classes: Names of the chat model's class and bases; empty for a client of OpenAI's.
        address: Host and path of its base URL, without the scheme.
        model: Its name.
        wanted: `False`: no row. `True`: also at other addresses that speak OpenAI's API, such as
            a gateway that hands the fields on.
    """
    if wanted is False:
        return None
    if wanted and (not classes or "BaseChatOpenAI" in classes):
        address = "api.openai.com"
    return first_fitting(CACHES, classes, address, model)


def cache_key(messages: Sequence[BaseMessage]) -> str:
    """A key of the conversation, the same for all its turns: a hash of how it begins.

    OpenAI sends requests with one key and beginning to one machine, up to about 15 a minute.
    """
    digest = hashlib.sha256()
    for message in messages:
        digest.update(f"{message.type}\0{message.content!r}\0".encode(errors="replace"))
        if message.type == "human":
            break
    return f"relay-{digest.hexdigest()[:32]}"


# --- where breakpoints go -----------------------------------------------------------------------


def with_breakpoints(
    sent: list[BaseMessage],
    conversation: Sequence[BaseMessage],
    draft: str,
    rule: CacheRule | None,
    *,
    again: bool,
    taken: int = 0,
) -> list[BaseMessage]:
    """The messages with the rule's marks on the conversation and in the draft.

    Args:
        sent: What continues the draft.
        conversation: The user's own messages, with which `sent` begins.
        draft: What of the draft is sent.
        rule: The host's; `None`, or one without marks: nothing is changed.
        again: A later request of this answer is likely.
        taken: Breakpoints that the user has set outside the messages.
    """
    contents = [message.content for message in sent]
    own = [message.content for message in conversation]
    assistant = [message.type == "ai" for message in sent]
    new = marked(contents, own, assistant, draft, rule, again=again, taken=taken)
    return [
        message if before is after else message.model_copy(update={"content": after})
        for message, before, after in zip(sent, contents, new, strict=True)
    ]


def marked(
    contents: Sequence[Content],
    own: Sequence[Content],
    assistant: Sequence[bool],
    draft: str,
    rule: CacheRule | None,
    *,
    again: bool,
    taken: int = 0,
) -> list[Content]:
    """`with_breakpoints` on bare contents; `assistant` says which messages are the assistant's."""
    out = list(contents)
    earlier = any(assistant[: len(own)])
    if rule is None or rule.key is None or not own or not (again or earlier):
        return out
    free = MOST_BREAKPOINTS - taken - _marks(contents, rule.key[0])
    place = _Place(out, own, rule)
    draft_too = again and (rule.marks_assistant or not assistant[-1])
    if free > 0 and draft_too and place.mark_draft(draft):
        free -= 1
    if free > 0 and (rule.marks_assistant or not assistant[len(own) - 1]):
        place.mark_conversation()
    return out


class _Place:
    """Puts marks on the contents of one request, which begins with the user's `own`."""

    def __init__(self, contents: list[Content], own: Sequence[Content], rule: CacheRule) -> None:
        assert rule.key is not None, "only rules with marks come here"
        self._contents = contents
        self._own = own
        self._rule = rule
        self._key, value = rule.key
        self._mark = {self._key: dict(value)}

    def mark_draft(self, draft: str) -> bool:
        """Cut the last message inside the draft and mark the cuts; whether one was marked."""
        shown = draft.rstrip()
        if not shown or self._contents == list(self._own):
            return False
        before, text = self._split_off()
        at = text.find(shown)
        pieces = stable_pieces(text, at + len(shown)) if at >= 0 else [text]
        blocks: list[dict[str, Any]] = [{"type": "text", "text": piece} for piece in pieces]
        most = _MOST_READ if self._rule.reads_marks else 1
        read = [*self._contents[:-1], *before]
        for number, piece in enumerate(pieces[:-1]):
            read.append(piece)
            if number >= len(pieces) - 1 - most and self._long(read):
                blocks[number] |= self._mark
        if not any(self._key in block for block in blocks):
            return False
        self._contents[-1] = [*before, *blocks]
        return True

    def _split_off(self) -> tuple[list[Any], str]:
        """The user's part of the last message as blocks, and the text that holds the draft."""
        last, question = self._contents[-1], self._own[-1]
        if not isinstance(last, str):
            return list(last[:-1]), last[-1]["text"]
        if len(self._contents) > len(self._own) or not isinstance(question, str):
            return [], last
        if not question.strip():
            return [], last
        return [{"type": "text", "text": question}], last[len(question) :]

    def mark_conversation(self) -> None:
        """Mark the last block of the user's own messages."""
        at = len(self._own) - 1
        own, content = self._own[at], self._contents[at]
        if not self._long(self._own) or (isinstance(own, str) and not own.strip()):
            return
        if isinstance(content, str):  # the question, and perhaps the request behind it
            assert isinstance(own, str), "a text is not sent where the user gave blocks"
            rest = content[len(own) :]
            content = [{"type": "text", "text": text} for text in (own, rest) if text]
        last = 0 if isinstance(own, str) else len(own) - 1
        block = content[last] if 0 <= last < len(content) else None
        if isinstance(block, dict) and self._key not in block and _may_be_marked(block):
            marked_block = {**block, **self._mark}
            self._contents[at] = [*content[:last], marked_block, *content[last + 1 :]]

    def _long(self, contents: Sequence[Any]) -> bool:
        """Whether it may be long enough: no token is shorter than a byte."""
        return sum(map(_bytes, contents)) >= self._rule.min_tokens


def stable_pieces(text: str, end: int) -> list[str]:
    """`text` in pieces, cut before `end` at places that stay when the text grows behind them.

    Cuts stand before white space, so that no piece ends in it; joined, the pieces are the text.
    """
    cuts = [0, *_stable_cuts(text[:end]), len(text)]
    return [text[a:b] for a, b in pairwise(cuts)]


_CUTS = (re.compile(r"(?<=\S)\n"), re.compile(r"(?<=[.!?])\s"), re.compile(r"(?<=\S)\s"))


def _stable_cuts(text: str) -> Iterator[int]:
    at = 0
    while len(text) - at >= BLOCK_CHARS * 3 // 2:
        low, high = at + BLOCK_CHARS, at + BLOCK_CHARS * 3 // 2
        found = (cut.search(text, low, high) for cut in _CUTS)
        at = next((match.start() for match in found if match), high)
        yield at


def _marks(contents: Sequence[Content], key: str) -> int:
    return sum(
        isinstance(block, dict) and key in block
        for content in contents
        if isinstance(content, list)
        for block in content
    )


def _may_be_marked(block: Mapping[str, Any]) -> bool:
    """Anthropic refuses marks on reasoning and on empty texts."""
    return block.get("type") not in {"thinking", "redacted_thinking"} and (
        block.get("type") != "text" or bool(str(block.get("text", "")).strip())
    )


def _bytes(content: Any) -> int:
    return len((content if isinstance(content, str) else repr(content)).encode(errors="replace"))
