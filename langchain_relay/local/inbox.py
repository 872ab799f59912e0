"""What sessions and models say to the engine thread, and how it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_relay.errors import LocalModelError, RelayError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from concurrent.futures import Future

    from langchain_relay.engine.events import Decode, Feed
    from langchain_relay.engine.values import Step
    from langchain_relay.local.context_types import Context
    from langchain_relay.local.lease import Lease, Opening
    from langchain_relay.local.sampling import Chosen


@dataclass(frozen=True, slots=True, eq=False)
class Open:
    """Somebody wants a sequence; `granted` makes a session of it, and keeps its model alive."""

    opening: Opening
    chosen: Chosen
    granted: Callable[[Lease, Context], Any]
    future: Future[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """A session wants a token."""

    lease: Lease
    ask: Decode
    future: Future[Step]


@dataclass(frozen=True, slots=True, eq=False)
class Fed:
    """A session puts text into its context."""

    lease: Lease
    ask: Feed


@dataclass(frozen=True, slots=True, eq=False)
class Closed:
    """A session gives its sequence back."""

    lease: Lease


@dataclass(frozen=True, slots=True, eq=False)
class Resumed:
    """A session took a step that was decoded ahead: there is room for another."""


@dataclass(frozen=True, slots=True, eq=False)
class Left:
    """A model uses this engine no more: what it has under way fails."""

    user: Hashable
    done: Future[None]


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """Nobody needs the engine any more."""


Message = Open | Ask | Fed | Closed | Resumed | Left | Stop


def refuse(message: Message, error: RelayError) -> None:
    """Fail whoever waits for an answer to `message`."""
    match message:
        case Open() | Ask():
            fail(message.future, error)
        case Left():
            message.done.set_result(None)
        case Fed() | Closed() | Resumed() | Stop():
            pass


def ours(error: Exception) -> RelayError:
    """`error`, or an error of ours that tells of it."""
    if isinstance(error, RelayError):
        return error
    return LocalModelError(f"the local engine failed: {type(error).__name__}: {error}")


def fail(future: Future[Any], error: RelayError) -> None:
    """Give `future` an error, unless it was cancelled."""
    if future.set_running_or_notify_cancel():
        future.set_exception(error)
