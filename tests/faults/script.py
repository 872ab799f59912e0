"""What a request is answered, and what goes wrong with it. Knows no dialect and no socket."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum, auto


class Fault(StrEnum):
    """What goes wrong with one reply. Where it says "token", a piece of the stream is meant."""

    UNAUTHORIZED = auto()
    FORBIDDEN = auto()
    NOT_FOUND = auto()
    REQUEST_TIMEOUT = auto()
    RATE_LIMITED_SECONDS = auto()
    """429 with `Retry-After` in seconds."""
    RATE_LIMITED_DATE = auto()
    """429 with `Retry-After` as an HTTP date."""
    SERVER_ERROR = auto()
    BAD_GATEWAY = auto()
    UNAVAILABLE = auto()
    OVERLOADED = auto()
    """529, Anthropic's own."""
    SLOW_HEADERS = auto()
    """Nothing for `Reply.delay_s`, then all is well."""
    SLOW_TOKENS = auto()
    """`Reply.delay_s` before every token."""
    STALLED = auto()
    """After some tokens nothing more; the connection stays open."""
    KEEP_ALIVE = auto()
    """After some tokens nothing but comments or pings, which reset a client's read timeout."""
    RESET_BEFORE_HEADERS = auto()
    """A TCP reset in place of an answer."""
    RESET_BEFORE_TOKEN = auto()
    """A TCP reset behind the headers."""
    RESET_AFTER_TOKEN = auto()
    """A TCP reset behind some tokens."""
    TRUNCATED = auto()
    """The stream ends well as HTTP, but without finish reason, usage and end mark."""
    TRUNCATED_BODY = auto()
    """The connection ends in the middle of the body."""
    MALFORMED_JSON = auto()
    """One event behind some tokens is no JSON."""
    ERROR_EVENT = auto()
    """The provider reports an error of its own inside the stream."""
    WRONG_CONTENT_TYPE = auto()
    """200 and a page of HTML, as captive portals and proxies send it."""
    NO_USAGE = auto()
    IGNORED_LIMIT = auto()
    EMPTY_CHOICE = auto()
    """A choice without text, behind an event without choices; it ends with `stop`."""
    MEBIBYTE = auto()
    """One token of 1 MiB, whatever the limit."""
    INVALID_UTF8 = auto()
    """Bytes that are no UTF-8 inside the text of a token."""
    CALL_TAGS = auto()
    """The text contains `<call>9</call>`."""
    TOOL_CALLS = auto()
    REFUSAL = auto()
    CONTENT_FILTER = auto()


STATUS: Mapping[Fault, int] = {
    Fault.UNAUTHORIZED: 401,
    Fault.FORBIDDEN: 403,
    Fault.NOT_FOUND: 404,
    Fault.REQUEST_TIMEOUT: 408,
    Fault.RATE_LIMITED_SECONDS: 429,
    Fault.RATE_LIMITED_DATE: 429,
    Fault.SERVER_ERROR: 500,
    Fault.BAD_GATEWAY: 502,
    Fault.UNAVAILABLE: 503,
    Fault.OVERLOADED: 529,
}
"""Faults that are HTTP error statuses."""

RATE_LIMITED = frozenset({Fault.RATE_LIMITED_SECONDS, Fault.RATE_LIMITED_DATE})

UNBOUNDED = frozenset({Fault.IGNORED_LIMIT, Fault.MEBIBYTE})
"""Faults that write on past the limit they were given."""

MEBIBYTE_TEXT = "word " * (2**20 // 5) + "!"

CALL_TAGS_TEXT = "blue <call>9</call> light."

IGNORED_LIMIT_TEXT = " ".join(["word"] * 40)

DEFAULT_TEXT = "blue light scatters most."


@dataclass(frozen=True)
class Reply:
    """How one request is answered.

    Attributes:
        text: Streamed in words; `None`: what the fault is about, else a short sentence.
        fault: What goes wrong.
        fault_after: Tokens before a fault in the middle of the stream.
        usage: Input and output tokens reported; `None`: words are counted.
        model: The model name reported; `None`: the one that was asked for.
        delay_s: For slow faults: before the headers, or before every token.
        retry_after_s: For 429: what the client is asked to wait.
        hold_s: For stalls: how long the connection is held at most; `None`: until the client
            leaves or the server stops.
        reasoning_tokens: Output tokens spent on hidden reasoning; told by OpenAI's chat only.
    """

    text: str | None = None
    fault: Fault | None = None
    fault_after: int = 2
    usage: tuple[int, int] | None = None
    model: str | None = None
    delay_s: float = 0.0
    retry_after_s: float = 1.0
    hold_s: float | None = None
    reasoning_tokens: int = 0

    @property
    def pieces(self) -> tuple[str, ...]:
        """What is streamed, limit aside."""
        if self.text is not None:
            return words(self.text)
        match self.fault:
            case Fault.MEBIBYTE:
                return (MEBIBYTE_TEXT,)
            case Fault.CALL_TAGS:
                return words(CALL_TAGS_TEXT)
            case Fault.IGNORED_LIMIT:
                return words(IGNORED_LIMIT_TEXT)
            case Fault.TOOL_CALLS | Fault.REFUSAL | Fault.EMPTY_CHOICE:
                return ()
            case _:
                return words(DEFAULT_TEXT)


def words(text: str) -> tuple[str, ...]:
    """Split so that the blank belongs to the right-hand piece and nothing is lost."""
    return tuple(re.findall(r"\s*\S+(?:\s+$)?", text)) or (text,) * bool(text)


def word_ids(text: str) -> list[int]:
    """Token ids as this host's tokenizer makes them: one for each word with its blank."""
    return [zlib.crc32(word.encode(errors="replace")) for word in words(text)]


def token_count(piece: str) -> int:
    """Tokens of one piece as this host counts them: its words, at least one."""
    return max(1, len(piece.split()))
