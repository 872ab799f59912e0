"""What the parts of a relay hand to each other: frozen values and the protocols of the two writers.

Nothing here decodes, sends, prices or shows anything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from langchain_relay.engine.events import Decode, Feed

Author = Literal["local", "delegate", "policy"]
"""Who wrote a piece of the answer."""

EndWhy = Literal["stop", "length", "cut", "truncated", "refused", "failed", "tool_calls"]
"""Why a span ended. `cut`: we closed it; `truncated`: the stream ended without a finish reason."""


# --- the local side -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """What the next sampled token must obey and which signals it must carry.

    Attributes:
        ban: Strings that must not be begun by locally written text, for example `"<call>"`.
        grammar: A GBNF grammar the text must follow, or `None`.
        signals: Names of the signals the step must carry (`"margin"`, `"entropy"`, `"hidden"`).
    """

    ban: tuple[str, ...] = ()
    grammar: str | None = None
    signals: frozenset[str] = frozenset()


FREE = Rule()


@dataclass(frozen=True, slots=True)
class Step:
    """One sampled local token. It is not in the context until it is appended.

    Attributes:
        id: Token id in the local vocabulary.
        text: The whole characters this token completes; empty while a UTF-8 character is cut.
        eog: The model ended its turn; such a token is never appended and has no text.
        signals: The values `Rule.signals` asked for, by name.
    """

    id: int
    text: str
    eog: bool = False
    signals: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the local view: a chat-template role and plain text.

    Attributes:
        role: That of the chat template.
        content: The text.
        fixed: It stands in front of every conversation, like a system prompt: worth keeping.
    """

    role: str
    content: str
    fixed: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the local model samples. `None` leaves a value to the model's own default.

    `temperature=0` is greedy. `seed=None` draws a fresh seed for every answer.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None


class LocalSession(Protocol):
    """One answer being written by a local model: a leased sequence with its own sampler.

    Methods never block; `decode` answers through a future.
    """

    prompt_tokens: int
    """Tokens of the rendered prompt."""
    context_left: int
    """Tokens that still fit behind the prompt (`n_ctx - prompt_tokens`)."""
    thinking: bool
    """Whether the chat template knows `<think>` tags."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt whose KV was reused, as far as is known by now."""
        ...

    def decode(self, ask: Decode) -> Future[Step]:
        """Take back `ask.rewind` tokens, append `ask.append`, sample one token under `ask.rule`."""
        ...

    def feed(self, ask: Feed) -> None:
        """Put foreign text into the context while it arrives; evaluated by the next decode."""
        ...

    def rest(self) -> None:
        """No ask comes before somebody else has answered: work on guesses would be in vain."""
        ...

    def count(self, text: str) -> int:
        """Tokens of `text` in the local vocabulary."""
        ...

    def close(self) -> None:
        """Give the sequence back. May be called at any time and more than once."""
        ...


@runtime_checkable
class LocalModel(Protocol):
    """A small local model that can write several answers at once."""

    @property
    def name(self) -> str:
        """What to call this model in spans and traces."""
        ...

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """JSON-able facts that tell this model and its settings from any other."""
        ...

    def open(
        self, turns: Sequence[Turn], sampling: Sampling, *, open_assistant: bool = False
    ) -> Future[LocalSession]:
        """Queue for a sequence; the future resolves once one is leased to this answer.

        A future cancelled while it queues leaves the queue. With `open_assistant` the last turn is
        the assistant's own beginning, which the model continues.

        Raises:
            ContextOverflowError: (through the future) the prompt does not fit into `n_ctx`.
        """
        ...

    def count(self, text: str) -> int:
        """Tokens of `text` in the local vocabulary; loads the vocabulary on first use."""
        ...


# --- the hosted side ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpanRequest:
    """What the relay asks the hosted side for.

    Attributes:
        call_id: Names this hand-over in every event and charge.
        draft: The shown answer so far, without commands; the span continues it.
        max_tokens: The clamped n.
        requested_n: The n the policy asked for; `None` means the rest of the answer.
        stop: Strings at which the caller will cut; a hint, the cut itself is the loop's.
        cause: The policy's word for why it hands over.
    """

    call_id: str
    draft: str
    max_tokens: int
    requested_n: int | None = None
    stop: tuple[str, ...] = ()
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Charge:
    """What one attempt at a hosted model cost.

    Attributes:
        call_id: The hand-over it belongs to.
        attempt: 1 for the first attempt of the hand-over.
        model: The model that was asked, as configured.
        input_tokens: As reported by the provider; `None` if it did not say.
        output_tokens: As reported by the provider; `None` if it did not say.
        cached_input_tokens: Part of `input_tokens` read from the provider's cache.
        reasoning_tokens: Part of `output_tokens` spent on hidden reasoning.
        cache_write_tokens: Part of `input_tokens` written to the provider's cache.
        cost_nanousd: Nano-dollars booked; `None` if no price is known.
        estimated: The booked cost is the reserved worst case, not a reported usage.
        released: Nothing was booked: the provider answered with an error or never connected.
        price_source: Where the price came from; `None` if no price is known.
        overage_nanousd: What the provider reported above the reserved worst case.
        outcome: How the attempt ended (`stop`, `length`, `cut`, `truncated`, or an error's name).
        unbooked: The ledger could not be reached; it is booked when it can.
    """

    call_id: str
    attempt: int
    model: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_tokens: int | None = None
    cost_nanousd: int | None = None
    estimated: bool = False
    released: bool = False
    price_source: str | None = None
    overage_nanousd: int = 0
    outcome: str = ""
    unbooked: bool = False


@dataclass(frozen=True, slots=True)
class BudgetWarning:
    """A limit that is nearly used up: `spent` of `limit`, in nano-dollars, tokens or calls."""

    unit: str
    spent: int
    limit: int
    scope: str
    window: str | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A hand-over that is reserved and about to be sent.

    `max_tokens` is the n that will be asked for; a token budget may have made it smaller than
    the request's.
    """

    model: str
    max_tokens: int


@dataclass(frozen=True, slots=True)
class SpanPiece:
    """A piece of hosted text, seam already mended.

    `model` is who wrote it; `None`: who was asked first.
    """

    text: str
    model: str | None = None


@dataclass(frozen=True, slots=True)
class SpanEnd:
    """How a hand-over ended.

    Attributes:
        why: See `EndWhy`.
        charges: One entry per attempt.
        local_tokens: Tokens of the span in the local vocabulary; 0 means nothing was taken.
        trimmed: Text the hosted side repeated and the seam removed.
        error: The error behind `refused`, `failed` or `truncated`.
        warnings: Limits that this hand-over brought past their warning share.
        model: Who wrote last, or was asked last; `None`: who was asked first.
    """

    why: EndWhy
    charges: tuple[Charge, ...] = ()
    local_tokens: int = 0
    trimmed: str = ""
    error: Exception | None = None
    warnings: tuple[BudgetWarning, ...] = ()
    model: str | None = None


class SpanSource(Protocol):
    """The hosted side of one answer, as the drivers see it. At most one span is open at a time."""

    def open(self, request: SpanRequest) -> Opened | SpanEnd:
        """Reserve and prepare; `SpanEnd("refused")` means that nothing was sent."""
        ...

    def pull(self) -> SpanPiece | SpanEnd:
        """The next piece of the open span, or its end."""
        ...

    def hangup(self, why: EndWhy) -> SpanEnd:
        """Close the open span because we have enough."""
        ...

    def close(self) -> SpanEnd | None:
        """Settle and close whatever is still open; its end, or `None` if nothing was."""
        ...

    async def aopen(self, request: SpanRequest) -> Opened | SpanEnd:
        """Async twin of `open`."""
        ...

    async def apull(self) -> SpanPiece | SpanEnd:
        """Async twin of `pull`."""
        ...

    async def ahangup(self, why: EndWhy) -> SpanEnd:
        """Async twin of `hangup`."""
        ...

    async def aclose(self) -> SpanEnd | None:
        """Async twin of `close`."""
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as a provider reported them; the first two include all others.

    `cache_write_1h_tokens` (Anthropic's longer cache) are among `cache_write_tokens`.
    """

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    cache_write_1h_tokens: int | None = None
    input_audio_tokens: int | None = None
    output_audio_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """One piece of what a hosted model streams.

    Attributes:
        text: New text, possibly empty.
        usage: Counts of the whole attempt, on the piece that carries them.
        finish: The provider's finish reason, normalised: `stop`, `length`, or the provider's word.
        model: The model name the provider reports.
        cost_usd: Cost the provider itself reports, as a decimal string.
    """

    text: str = ""
    usage: Usage | None = None
    finish: str | None = None
    model: str | None = None
    cost_usd: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request to a hosted model.

    Attributes:
        messages: The user's conversation (LangChain messages), never the teaching prompt.
        draft: The shown answer so far, to be continued; may be empty.
        max_tokens: The limit to send, exactly.
        stop: Stop strings the caller cuts at; a delegate may ignore them.
        timeout_s: Seconds left for this attempt.
        model: Per-call override of the delegate's model name.
        run_manager: The child run to report into, or `None`.
        clipped: Earlier text of the answer is left out of `draft`.
        again: A later request is likely to begin with the same text, within minutes.
    """

    messages: tuple[Any, ...]
    draft: str
    max_tokens: int
    stop: tuple[str, ...] = ()
    timeout_s: float | None = None
    model: str | None = None
    run_manager: Any = None
    clipped: bool = False
    again: bool = True


Mode = Literal["prefill", "flag", "completion", "instruct", "handoff"]
"""How a draft is shown to a hosted model so that it is continued."""


@runtime_checkable
class Delegate(Protocol):
    """A hosted model: sends one attempt and streams what comes back.

    Reserving, retrying, deadlines, tracing and seams are the caller's. A delegate may have more:
    `base_url` (its host, for breaker and offline switch), `rate_limiter`, `in_process` (nothing is
    sent anywhere) and `vocabulary(model)` (its tokenizer).
    """

    @property
    def model(self) -> str:
        """The configured model name; also the first key for prices."""
        ...

    @property
    def mode(self) -> Mode:
        """How this delegate shows a draft. Literal modes are never trimmed at the seam."""
        ...

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """JSON-able facts that tell this delegate from any other, without secrets."""
        ...

    @property
    def worst_attempts(self) -> int | None:
        """Requests that one attempt may send in the worst case.

        1 where the client's own retries are off; `None` where nobody can say: then a budget
        cannot hold and is refused.
        """
        ...

    def input_bound(self, attempt: Attempt) -> int:
        """An upper bound of the input tokens `attempt` will be billed for."""
        ...

    def stream(self, attempt: Attempt) -> Iterator[Delta]:
        """Send `attempt` once, without retries of its own, and yield what arrives."""
        ...

    def astream(self, attempt: Attempt) -> AsyncIterator[Delta]:
        """Async twin of `stream`."""
        ...


# --- the answer ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """A run of the answer by one author; spans tile the answer's text.

    Attributes:
        text: The characters.
        author: Who wrote them.
        start: Offset of the first character in the answer.
        end: Offset behind the last one.
        tokens: Tokens in the local vocabulary.
        model: The model that wrote it; `None` for text a policy inserted.
    """

    text: str
    author: Author
    start: int
    end: int
    tokens: int
    model: str | None


Counter = Callable[[str], int]
"""Counts tokens of a text in the local vocabulary."""
