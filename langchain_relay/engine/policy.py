"""Verdicts, and the protocols of a policy and its watch over one answer.

A policy says who writes next; it never decodes, sends or shows anything itself. The loop asks its
`Watch` and turns each verdict into asks and events (`docs/design.md` has the table).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from langchain_relay.engine.events import FinishWhy
from langchain_relay.engine.values import Counter, Rule, SpanEnd, Step

Held = Literal["show", "hide", "drop"]
"""What becomes of held tokens: shown, kept in the local context only, or taken back."""

LocalEnd = Literal["stop", "length"]
"""Why the local model cannot go on: its end token, or `max_tokens` or the context is reached."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Show every held token, this one included, and sample the next."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Withhold this token too, and sample the next."""


@dataclass(frozen=True, slots=True)
class Local:
    """The local model writes.

    Attributes:
        held: What becomes of the held tokens.
        lead: Leading characters of the held text that are ordinary text, whatever `held` says.
        insert: Text put into the answer in the policy's own name.
        aside: Text put into the local context only, never shown and never sent.
        denied: Reports a hand-over that will not happen, with this reason.
    """

    held: Held = "show"
    lead: int = 0
    insert: str = ""
    aside: str = ""
    denied: str | None = None


@dataclass(frozen=True, slots=True)
class Handoff:
    """The hosted model writes up to `max_tokens` tokens; `None` means the rest of the answer."""

    max_tokens: int | None
    cause: str
    held: Held = "show"
    lead: int = 0
    insert: str = ""
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finish:
    """The answer ends here."""

    held: Held = "show"
    lead: int = 0
    denied: str | None = None
    why: FinishWhy = "stop"


@dataclass(frozen=True, slots=True)
class Take:
    """Show this many characters of the pending hosted text; the rest stays pending."""

    chars: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Show this many characters of the pending hosted text, discard the rest, end the span."""

    chars: int


StepVerdict = Keep | Hold | Local | Handoff | Finish
TurnVerdict = Local | Handoff | Finish
PieceVerdict = Take | Cut


class Watch(Protocol):
    """A policy's view of one answer; made by `Policy.watch`, used by the loop, then thrown away."""

    rule: Rule
    """What the next local token must obey; read before every decode."""
    command: str | None
    """The string with which the local model asks for a call; banned once no call can follow."""

    def start(self) -> Local | Handoff:
        """Who writes first."""
        ...

    def step(self, step: Step, held: str) -> StepVerdict:
        """A token was sampled; `held` is the text since the last that was shown, this included."""
        ...

    def piece(self, pending: str, *, last: bool) -> PieceVerdict:
        """Hosted text arrived; `pending` is all of it not yet taken. `last`: no more will come."""
        ...

    def span_end(self, end: SpanEnd) -> TurnVerdict:
        """The span ended; `end.local_tokens == 0` means that nothing of it was taken."""
        ...

    def end(self, why: LocalEnd, held: str) -> TurnVerdict:
        """The local model cannot go on, with `held` (possibly empty) not yet shown."""
        ...


@dataclass(frozen=True, slots=True)
class AnswerContext:
    """What a policy may know about the answer it will watch.

    Attributes:
        count: Counts tokens in the local vocabulary.
        thinking: The local chat template has `<think>` tags.
        end_on_delegate_stop: A hosted `stop` ends the whole answer.
    """

    count: Counter
    thinking: bool = False
    end_on_delegate_stop: bool = False


@runtime_checkable
class Policy(Protocol):
    """A method of sharing an answer between two writers. Immutable; shared by all answers."""

    @property
    def max_span_tokens(self) -> int | None:
        """The policy's own bound of a span's n; `None`: none."""
        ...

    @property
    def max_calls(self) -> int | None:
        """The policy's own bound of hand-overs in one answer; `None`: none."""
        ...

    @property
    def taught(self) -> bool:
        """Whether the local model must know the call command for this policy to do anything."""
        ...

    def watch(self, context: AnswerContext) -> Watch:
        """A fresh watch over one answer."""
        ...
