"""Three views of one transcript, and the tokens that are still undecided.

The user's view leaves through the screen. The hosted side's view is `draft`: shown text without
commands. The local view is what `pending` and `rewind` tell the session, token by token; sampled
tokens go in as ids and are never tokenized again.
"""

from __future__ import annotations

from langchain_relay.engine.events import CommandHidden, Decode, Event, Feed, TextAdded
from langchain_relay.engine.policy import Held
from langchain_relay.engine.screen import Screen
from langchain_relay.engine.values import Counter, Rule, Step


class Transcript:
    """What has been written so far, by anyone."""

    def __init__(self, stop: tuple[str, ...], count: Counter) -> None:
        self.count = count
        self.screen = Screen(stop)
        self.draft = ""
        self.shown_tokens = 0
        self.context_tokens = 0
        """Tokens behind the prompt in the local context, hidden ones included."""
        self.held: list[Step] = []
        """Sampled tokens that are neither shown, nor hidden, nor dropped yet."""
        self.held_text = ""
        """Their text."""
        self._flushed = 0  # of these, how many the session has in its context
        self._lead_shown = 0  # characters of the held text that are shown already
        self._lead_tokens = 0  # held tokens that were counted with them
        self._textless = 0  # shown tokens that have not completed a character yet
        self._pending: list[int | str] = []
        self.pending_tokens = 0
        """Tokens the next ask will append."""
        self._rewind = 0

    @property
    def visible_tokens(self) -> int:
        """Tokens of the answer, those included that have only begun a character."""
        return self.shown_tokens + self._textless

    @property
    def unshown_text(self) -> str:
        """Held text without the lead that is shown already."""
        return self.held_text[self._lead_shown :]

    # --- the local context ----------------------------------------------------------------------

    def decode(self, rule: Rule) -> Decode:
        """The ask for the next local token."""
        append, rewind = self._flush()
        self._flushed = len(self.held)
        return Decode(append, rewind, rule)

    def feed(self, text: str, tokens: int) -> Feed:
        """The ask that puts hosted `text` into the local context."""
        append, rewind = self._flush()
        self.context_tokens += tokens
        return Feed((*append, text), rewind)

    def rest(self) -> Feed | None:
        """The ask that makes the local context end where the answer does, for the next turn."""
        append, rewind = self._flush()
        return Feed(append, rewind) if append or rewind else None

    def take(self, step: Step) -> None:
        """Hold a sampled token until the policy has said what becomes of it."""
        self.held.append(step)
        self.held_text += step.text

    def hold(self, step: Step) -> None:
        """Withhold a token that the policy has seen; it goes into the context."""
        self._append(step.id)

    def _append(self, item: int | str) -> None:
        self._pending.append(item)
        self.pending_tokens += self.count(item) if isinstance(item, str) else 1

    def _flush(self) -> tuple[tuple[int | str, ...], int]:
        self.context_tokens += self.pending_tokens
        append, rewind = tuple(self._pending), self._rewind
        self._pending, self.pending_tokens, self._rewind = [], 0, 0
        return append, rewind

    # --- the user's view ------------------------------------------------------------------------

    def show(self, added: TextAdded) -> list[Event]:
        """Make text part of the answer; the screen may withhold it for a while."""
        self.draft += added.text
        self.shown_tokens += added.tokens
        return [*self.screen.push(added)]

    def show_lead(self, lead: int) -> list[Event]:
        """Show the ordinary text in front of a command; the rest stays held."""
        text = self.held_text[self._lead_shown : lead]
        if not text:
            return []
        counted, self._lead_tokens = self._lead_tokens, _steps_within(self.held, lead)
        self._lead_shown = lead
        tokens = self._textless + self._lead_tokens - counted
        self._textless = 0
        return self.show(TextAdded(text, "local", tokens))

    def insert(self, insert: str, aside: str = "") -> list[Event]:
        """Add the policy's own text: `insert` is shown, `aside` only the local side sees."""
        events: list[Event] = []
        if insert:
            self._append(insert)
            events += self.show(TextAdded(insert, "policy", self.count(insert)))
        if aside:
            self._append(aside)
            events.append(CommandHidden(aside, len(self.draft), self.count(aside)))
        return events

    def settle_held(self, how: Held, lead: int = 0) -> list[Event]:
        """Show, hide or drop the held tokens, and note what that means for the local context."""
        if not self.held:
            return []
        events = self.show_lead(len(self.held_text) if how == "show" else lead)
        if how == "show":
            self._textless += len(self.held) - self._lead_tokens
        if how == "drop":
            self._take_back(self._lead_shown)
        else:
            known = self._flushed + len(self._pending)
            for step in self.held[known:]:
                self._append(step.id)
        if how == "hide" and self.unshown_text:
            tokens = len(self.held) - self._lead_tokens
            events.append(CommandHidden(self.unshown_text, len(self.draft), tokens))
        self.held, self.held_text = [], ""
        self._flushed = self._lead_shown = self._lead_tokens = 0
        return events

    def _take_back(self, lead: int) -> None:
        """Rewind the held tokens behind `lead`; a token that `lead` cuts comes back as text."""
        kept = _whole_steps(self.held, lead)
        rewind = max(0, self._flushed - kept)
        self._rewind += rewind
        self.context_tokens -= rewind
        self._pending, self.pending_tokens = [], 0
        for step in self.held[self._flushed : kept]:
            self._append(step.id)
        whole = sum(len(step.text) for step in self.held[:kept])
        if rest := self.held_text[whole:lead]:
            self._append(rest)


def _steps_within(steps: list[Step], chars: int) -> int:
    """How many of `steps` it takes to write the first `chars` characters."""
    seen = 0
    for number, step in enumerate(steps):
        if seen >= chars:
            return number
        seen += len(step.text)
    return len(steps)


def _whole_steps(steps: list[Step], chars: int) -> int:
    """How many leading `steps` lie wholly within the first `chars` characters.

    A token without text has only begun a character: it belongs to the token that completes it.
    """
    seen = whole = 0
    for i, step in enumerate(steps, start=1):
        seen += len(step.text)
        if seen > chars:
            break
        if step.text:
            whole = i
    return whole
