"""A chat as pure values: what was typed, what was answered, and the lines that tell of it.

Nothing here reads a terminal, decodes or waits; `chat.py` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any, get_args

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    messages_to_dict,
)
from langchain_core.messages.ai import add_ai_message_chunks
from langchain_core.messages.utils import message_chunk_to_message

from langchain_relay.chat_models import Delegation
from langchain_relay.engine.values import Author, Counter, Span
from langchain_relay.messages import METADATA_KEY
from langchain_relay.report import RelayReport, relay_report, usd
from langchain_relay.schema import (
    CALL_DENIED,
    CALL_FAILED,
    CALL_FINISHED,
    CALL_STARTED,
    SCHEMA_VERSION,
)

INTERRUPTED = "interrupted"
"""`finish_reason` of an answer that was stopped or broke off; what was written of it is kept."""

_ENDINGS = {"length": "cut at the limit", "budget": "out of budget", INTERRUPTED: "stopped"}
_ERROR_CHARS = 400

COMMANDS: Mapping[str, tuple[str, str]] = {
    "report": ("", "who wrote what in the last answer, and what it cost"),
    "delegation": ("never|auto|always", "who writes from now on; alone it says what is set"),
    "save": ("FILE", "the conversation: as messages in a .json, else as Markdown"),
    "new": ("", "begin a new conversation; what was spent is still counted"),
    "help": ("", "this list"),
    "quit": ("", "end the program, as Ctrl-D does"),
}
"""Each command's argument, and what it does."""


# --- what was typed -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """Something for the model."""

    text: str


@dataclass(frozen=True, slots=True)
class Save:
    """`/save`: write the conversation to a file."""

    path: str


@dataclass(frozen=True, slots=True)
class SetDelegation:
    """`/delegation`: `None` asks what is set."""

    value: Delegation | None


@dataclass(frozen=True, slots=True)
class Report:
    """`/report`."""


@dataclass(frozen=True, slots=True)
class New:
    """`/new`."""


@dataclass(frozen=True, slots=True)
class Help:
    """`/help`."""


@dataclass(frozen=True, slots=True)
class Quit:
    """`/quit`."""


@dataclass(frozen=True, slots=True)
class Blank:
    """A line without anything."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """A command nobody knows, or not with this argument; `text` says what to type."""

    text: str


Entry = Question | Save | SetDelegation | Report | New | Help | Quit | Blank | Mistake

_COMMAND = re.compile(r"/([A-Za-z]*)(?:\s+(.*))?", re.DOTALL)
_PLAIN: Mapping[str, Entry] = {"report": Report(), "new": New(), "help": Help(), "quit": Quit()}


def parse(line: str) -> Entry:
    """What a line means. A path such as `/usr/bin` is no command, and so begins a question."""
    text = line.strip()
    if not text:
        return Blank()
    command = _COMMAND.fullmatch(text)
    if command is None:
        return Question(text)
    return _command(command[1].lower(), (command[2] or "").strip())


def _command(name: str, argument: str) -> Entry:
    if name == "save":
        return Save(argument) if argument else Mistake("/save needs a file: /save talk.md")
    if name == "delegation":
        return _delegation(argument)
    if name not in _PLAIN:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists the commands"
        return Mistake(f"there is no command /{name}; {hint}")
    return Mistake(f"/{name} takes no argument") if argument else _PLAIN[name]


def _delegation(argument: str) -> Entry:
    known: tuple[Delegation, ...] = get_args(Delegation)
    chosen = next((value for value in known if value == argument), None)
    if argument and chosen is None:
        return Mistake(f"/delegation is never, auto or always, not {argument!r}")
    return SetDelegation(chosen)


def help_text() -> str:
    """The commands and keys, one in a line."""
    named = [(f"/{name} {argument}".strip(), what) for name, (argument, what) in COMMANDS.items()]
    keys = [
        ("Ctrl-C", "stop the answer; what was written stays. At an empty prompt: end"),
        ("up, down", "what was typed before, in earlier sessions too"),
    ]
    width = max(len(name) for name, _ in named) + 2
    return "\n".join(f"{name:<{width}}{what}" for name, what in [*named, *keys])


# --- what was said ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Conversation:
    """Questions and answers in turn, and what holds for the next one.

    Attributes:
        system: The system prompt.
        delegation: Whether the hosted model takes part.
        messages: Answers keep their metadata: the local model finds its own tokens by it, hidden
            commands included, and evaluates only what is new.
        spent_nanousd: Cost of all answers, of those not kept too; `None` if a price is unknown.
    """

    system: str | None = None
    delegation: Delegation = "auto"
    messages: tuple[BaseMessage, ...] = ()
    spent_nanousd: int | None = 0

    @property
    def all_messages(self) -> list[BaseMessage]:
        """The messages behind the system prompt, if there is one."""
        return [*([SystemMessage(self.system)] if self.system else []), *self.messages]

    @property
    def last(self) -> AIMessage | None:
        """The last answer."""
        return next((m for m in reversed(self.messages) if isinstance(m, AIMessage)), None)

    def asking(self, question: str) -> list[BaseMessage]:
        """What the model is sent."""
        return [*self.all_messages, HumanMessage(question)]

    def answered(self, question: str, answer: AIMessage) -> Conversation:
        """With this turn. An answer without a word is not kept, nor its question; its cost is."""
        cost = relay_report(answer).cost_nanousd
        known = cost is not None and self.spent_nanousd is not None
        spent = (self.spent_nanousd or 0) + (cost or 0) if known else None
        turn = (HumanMessage(question), answer) if answer.text else ()
        return replace(self, messages=(*self.messages, *turn), spent_nanousd=spent)

    def anew(self) -> Conversation:
        """Without what was said."""
        return replace(self, messages=())


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of an answer as it arrives, and who wrote it."""

    text: str
    author: Author


class AnswerReader:
    """Puts one answer together from its chunks, and says who wrote each piece of text.

    A chunk does not name its author. But where the author changes, the first chunk of the next one
    carries the span that ended; and events ride on chunks in their place.
    """

    def __init__(self) -> None:
        self._chunks: list[AIMessageChunk] = []
        self._calling: str | None = None  # the hosted model of the open call
        self._author: Author | None = None
        self._model: str | None = None

    def read(self, chunk: AIMessageChunk) -> Piece | None:
        """The text of `chunk`, if it has any."""
        self._chunks.append(chunk)
        relay = chunk.response_metadata.get(METADATA_KEY, {})
        for event in relay.get("events", []):
            if event["type"] == CALL_STARTED:
                self._calling = event["model"]
            elif event["type"] in (CALL_FINISHED, CALL_FAILED):
                self._calling = None
        if not chunk.text:
            return None
        if self._author is None or relay.get("spans"):
            self._author = "delegate" if self._calling else "local"
            self._model = self._calling
        return Piece(chunk.text, self._author)

    def message(self, told: Sequence[Mapping[str, Any]], count: Counter) -> AIMessage:
        """The answer so far; if it is not complete, with a report all the same.

        Args:
            told: The events that handlers got: those of a call that was open when the answer was
                closed came too late for a chunk, and money may be owed.
            count: Counts tokens in the local vocabulary.
        """
        answer = message_chunk_to_message(
            add_ai_message_chunks(AIMessageChunk(content=""), *self._chunks)
        )
        assert isinstance(answer, AIMessage), "AIMessageChunks add up to one"
        relay = answer.response_metadata.get(METADATA_KEY, {})
        if "schema_version" in relay:
            return answer
        metadata = {
            **answer.response_metadata,
            "finish_reason": INTERRUPTED,
            METADATA_KEY: self._closed(relay, answer.text, told, count),
        }
        return answer.model_copy(update={"response_metadata": metadata})

    def _closed(
        self,
        relay: Mapping[str, Any],
        text: str,
        told: Sequence[Mapping[str, Any]],
        count: Counter,
    ) -> dict[str, Any]:
        """The relay's metadata with the span and the call that were open."""
        spans, events = relay.get("spans", []), relay.get("events", [])
        known = [(event["type"], event.get("call_id")) for event in events]
        late = [e for e in told if "call_id" in e and (e["type"], e["call_id"]) not in known]
        owed = [charge for event in late for charge in event.get("charges", [])]
        return {
            **relay,
            "spans": [*spans, *self._open_span(text, spans[-1]["end"] if spans else 0, count)],
            "events": [*events, *late],
            "charges": [*relay.get("charges", []), *owed],
            "schema_version": SCHEMA_VERSION,
            "delegate_only_cost_nanousd": None,
        }

    def _open_span(self, text: str, start: int, count: Counter) -> list[dict[str, Any]]:
        if self._author is None or start == len(text):
            return []
        rest = text[start:]
        span = Span(rest, self._author, start, len(text), count(rest), self._model)
        return [asdict(span)]


# --- what is told of it -------------------------------------------------------------------------


def status_line(answer: AIMessage, spent_nanousd: int | None) -> str:
    """Calls, share, money and cached tokens of an answer, and the money so far."""
    report = relay_report(answer)
    ending = _ENDINGS.get(answer.response_metadata.get("finish_reason", ""))
    parts = [
        *([ending] if ending else []),
        _calls(report),
        f"{report.delegated_share:.1%} delegated",
        _money(report, spent_nanousd),
        *_prompt(answer),
    ]
    return " · ".join(parts)


def _calls(report: RelayReport) -> str:
    counts = [(report.denied, "refused"), (report.failed, "failed")]
    bad = ", ".join(f"{n} {what}" for n, what in counts if n)
    calls = f"{report.calls} call" + ("" if report.calls == 1 else "s")
    return f"{calls} ({bad})" if bad else calls


def _money(report: RelayReport, spent_nanousd: int | None) -> str:
    cost = usd(report.cost_nanousd) + (" at most" if report.estimated else "")
    if spent_nanousd == report.cost_nanousd:
        return f"cost {cost}"
    return f"cost {cost} ({usd(spent_nanousd)} so far)"


def _prompt(answer: AIMessage) -> list[str]:
    usage = answer.usage_metadata
    if usage is None:  # it was stopped: the last chunk would have had it
        return []
    cached = usage.get("input_token_details", {}).get("cache_read", 0)
    return [f"{cached} of {usage['input_tokens']} prompt tokens cached"]


def notes(answer: AIMessage) -> list[str]:
    """Why calls failed or were refused, each reason once."""
    if answer.response_metadata.get("finish_reason") == INTERRUPTED:
        return []
    events = answer.response_metadata[METADATA_KEY].get("events", [])
    return list(dict.fromkeys(note for event in events if (note := _note(event))))


def _note(event: Mapping[str, Any]) -> str | None:
    if event["type"] == CALL_FAILED:
        return f"a call to {event['model']} failed: {one_line(event['error'])}"
    if event["type"] != CALL_DENIED:
        return None
    if event["unit"] == "usd":
        need, left = usd(event["needed"]), usd(event["left"])
        return f"a call was refused: it may cost {need}, and {left} of the budget is left"
    return f"a call was refused: {event['reason']}"


def one_line(said: object) -> str:
    """An error in one line that a terminal can show."""
    text = " ".join(str(said).split()) or type(said).__name__
    return visible(text if len(text) <= _ERROR_CHARS else text[: _ERROR_CHARS - 1] + "…")


_CONTROL = [*range(9), *range(11, 32), *range(127, 160)]
_INVISIBLE: dict[int, str | None] = {**dict.fromkeys(_CONTROL, "\ufffd"), ord("\r"): None}


def visible(text: str) -> str:
    """`text` without control characters: a model's words must not steer the terminal."""
    return text.translate(_INVISIBLE)


def shown(report: RelayReport) -> RelayReport:
    """`report` with text that a terminal can show."""
    spans = tuple(replace(span, text=visible(span.text)) for span in report.spans)
    return replace(report, spans=spans)


# --- what is saved ------------------------------------------------------------------------------


def saved(conversation: Conversation, *, as_json: bool) -> str:
    """The conversation as a file: JSON for `messages_from_dict`, or Markdown."""
    messages = conversation.all_messages
    if as_json:
        return json.dumps(messages_to_dict(messages), ensure_ascii=False, indent=1) + "\n"
    return "\n\n".join(["# langchain-relay chat", *map(_paragraph, messages)]) + "\n"


def _paragraph(message: BaseMessage) -> str:
    if not isinstance(message, AIMessage):
        return f"**{'you' if message.type == 'human' else message.type}:** {message.text}"
    report = relay_report(message)
    marked = "".join(f"[{s.text}]" if s.author == "delegate" else s.text for s in report.spans)
    return f"**relay:** {marked}\n\n_{status_line(message, report.cost_nanousd)}_"
