"""What the relay generator yields: asks, which a driver answers, and events, which it passes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from langchain_relay.engine.values import FREE, Author, EndWhy, Rule, SpanEnd, SpanRequest

FinishWhy = Literal["stop", "length", "budget"]
"""Why an answer ended. `budget`: a budget refused and was told to end the answer."""


# --- asks ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decode:
    """Take back `rewind` tokens, append token ids or text, sample one token. Answer: `Step`."""

    append: tuple[int | str, ...] = ()
    rewind: int = 0
    rule: Rule = FREE


@dataclass(frozen=True, slots=True)
class Feed:
    """Put foreign text into the context while it arrives. No answer."""

    append: tuple[int | str, ...]
    rewind: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """Ask the hosted side for a span. Answer: `Opened`, or `SpanEnd("refused")`."""

    request: SpanRequest


@dataclass(frozen=True, slots=True)
class Pull:
    """The next piece of the open span. Answer: `SpanPiece` or `SpanEnd`."""


@dataclass(frozen=True, slots=True)
class Hangup:
    """Close the open span; we have enough. Answer: `SpanEnd`."""

    why: EndWhy


Ask = Decode | Feed | Call | Pull | Hangup


# --- events -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextAdded:
    """Text that is now part of the answer and will not be taken back.

    `tokens` counts the local-vocabulary tokens this text completes. `call_id` and `model` are set
    on delegated text.
    """

    text: str
    author: Author
    tokens: int
    call_id: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class CommandHidden:
    """Local text that stays in the local context but is not part of the answer.

    `offset` is where in the answer it stands, `tokens` its size in the local vocabulary.
    """

    text: str
    offset: int
    tokens: int


@dataclass(frozen=True, slots=True)
class SpanOpened:
    """A hand-over started: money is reserved and the request is about to be sent."""

    request: SpanRequest
    model: str
    n: int


@dataclass(frozen=True, slots=True)
class SpanClosed:
    """A hand-over ended well. `declined`: the hosted side wrote nothing."""

    request: SpanRequest
    model: str
    n: int
    end: SpanEnd
    declined: bool


@dataclass(frozen=True, slots=True)
class CallDenied:
    """A hand-over that did not start: refused by a budget, or a malformed command."""

    call_id: str
    reason: str
    n: int | None = None
    requested_n: int | None = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A hand-over that started and did not end well; text that arrived is kept."""

    request: SpanRequest
    model: str
    n: int
    end: SpanEnd


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete. Always the last event."""

    why: FinishWhy


Event = TextAdded | CommandHidden | SpanOpened | SpanClosed | CallDenied | CallFailed | Finished
