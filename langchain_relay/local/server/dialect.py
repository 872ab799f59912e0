"""What a session and the protocols of servers say to each other: values and one protocol class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from langchain_relay.engine.values import FREE, Rule

if TYPE_CHECKING:
    from langchain_relay.engine.values import Turn
    from langchain_relay.local.sampling import Chosen


@dataclass(frozen=True, slots=True)
class Item:
    """A part of a session's context.

    Attributes:
        text: Its characters; may be unknown (empty) where the ids are known.
        ids: Its token ids, where the server takes ids; else empty.
        tokens: How many tokens it is.
        local: The local model wrote it.
    """

    text: str
    ids: tuple[int, ...]
    tokens: int
    local: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """One completion request, in no server's words.

    Attributes:
        prefix: The whole context.
        limit: Tokens to write, at most.
        chosen: How to sample.
        seed: 32 bits.
        stop: Strings to stop behind.
        banned: Token ids that must not come.
        rule: For its grammar and its signals.
        slot: The slot of the server to use, if it has such.
    """

    prefix: Sequence[Item]
    limit: int
    chosen: Chosen
    seed: int
    stop: tuple[str, ...] = ()
    banned: tuple[int, ...] = ()
    rule: Rule = FREE
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """Text a server wrote, as one or more tokens.

    Attributes:
        text: The characters.
        ids: Token ids; `None` if the server did not tell them.
        tokens: How many tokens it is, as far as one knows.
        signals: Signals of each token, if they were asked for.
    """

    text: str
    ids: tuple[int, ...] | None
    tokens: int = 1
    signals: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """A request ended: the model ended its turn, or there may be `more` behind it."""

    why: Literal["eog", "more"]
    id: int = -1


@dataclass(frozen=True, slots=True)
class Cached:
    """How many tokens of the request's prefix the server had in its cache."""

    tokens: int


class Reader(Protocol):
    """Reads the events of one request."""

    def read(self, event: Any) -> Iterator[Written | Ended | Cached]:
        """What one event says."""
        ...

    def end(self) -> Iterator[Ended]:
        """What the events said that ended without another one."""
        ...


@dataclass(slots=True)
class Facts:
    """What a server says about itself.

    Attributes:
        n_ctx: Tokens of one chat, prompt and answer.
        slots: Chats it decodes at once, if it says so.
        thinking: The chat template knows `<think>` tags.
    """

    n_ctx: int
    slots: int | None = None
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What the user said about a server; see `CompletionServerModel`."""

    protocol: Literal["auto", "llama.cpp", "openai"] = "auto"
    server: str | None = None
    model: str | None = None
    adapter: str | None = None
    template: str | None = None
    tokenizer: Any = None
    n_ctx: int | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)


def whole_at_the_end(ids: Sequence[int], text: str) -> list[str]:
    """All of `text` falls to the last of its tokens."""
    return [""] * (len(ids) - 1) + [text]


class Dialect(Protocol):
    """One protocol of completion servers. Its coroutines run on the thread of the HTTP loop."""

    path: str
    """Where completions are asked for."""
    tells_stop: bool
    """The server says which stop string it met, and gives its text."""

    async def connect(self) -> Facts:
        """Ask what has to be known before the first answer."""
        ...

    async def prompt(self, turns: Sequence[Turn], *, open_assistant: bool) -> list[Item]:
        """The rendered conversation; no message can forge a turn."""
        ...

    async def foreign(self, text: str) -> Item:
        """Text the local model did not write, as a continuation; control text in it is text."""
        ...

    async def count(self, text: str) -> int:
        """Tokens of `text` as a continuation."""
        ...

    async def ids(self, text: str) -> list[int]:
        """Token ids of plain text as a continuation."""
        ...

    async def texts(self, ids: Sequence[int], text: str) -> list[str]:
        """`text` as it falls to the tokens that wrote it."""
        ...

    def item(self, id: int, text: str | None) -> Item:
        """One token of the local model; `text` if this session knows it."""
        ...

    def check(self, rule: Rule) -> None:
        """Refuse what this server cannot do.

        Raises:
            UsageMistake: a signal or a grammar it has not.
        """
        ...

    def body(self, asked: Asked) -> dict[str, Any]:
        """The request's body."""
        ...

    def reader(self) -> Reader:
        """A reader for the events of one request."""
        ...
