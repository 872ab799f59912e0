r"""Chat templates: from turns to text, and from text to ids that nobody's message can forge.

Nothing here knows llama.cpp; whoever tokenizes is passed in.

A GGUF without a template gets the transcript of `PLAIN`: one line `role: text` per message and an
open `assistant:` at the end. Such a model knows no end of turn; end its answers with `max_tokens`
or with a stop string such as `"\nuser:"`.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from functools import cached_property
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from langchain_relay.engine.values import Turn
from langchain_relay.errors import UsageMistake

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PLAIN = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)

_MARK = "\ue0c0{}\ue0c1"
_MARKED = re.compile("\ue0c0([0-9]+)\ue0c1")


class Tokenizer(Protocol):
    """What a template needs to know about a vocabulary."""

    @property
    def control_texts(self) -> Sequence[str]:
        """The texts of all control tokens."""
        ...

    def tokenize(self, text: str, *, special: bool, first: bool) -> list[int]:
        """Ids of `text`; `special`: control text becomes control tokens.

        `first`: the text begins the context, so the vocabulary may put a blank in front of it.
        """
        ...


class ChatTemplate:
    """The chat template of one model.

    Args:
        source: Jinja text as the GGUF has it; `None` or empty: the transcript of `PLAIN`.
        bos: Text of the token that begins a sequence; empty if there is none.
        eos: Text of the token that ends one.
    """

    def __init__(self, source: str | None, *, bos: str = "", eos: str = "") -> None:
        self.source = source or PLAIN
        self.bos = bos
        self.eos = eos

    @property
    def thinking(self) -> bool:
        """The template knows `<think>` tags; it is rendered with thinking turned off."""
        return "<think>" in self.source

    def render(self, turns: Sequence[Turn], *, open_assistant: bool = False) -> str:
        """The prompt as text, ending where the assistant writes.

        A template that refuses a system role gets its text in front of the first user turn; one
        that refuses two turns of one role in a row gets them joined.

        Args:
            turns: The conversation.
            open_assistant: Leave the last turn, the assistant's, open: it is to be continued.

        Raises:
            UsageMistake: the template refuses the conversation, or the last turn is not the
                assistant's.
        """
        turns, opening = _split_opening(turns, open_assistant=open_assistant)
        refusal: TemplateError | None = None
        for attempt in _milder(turns):
            try:
                return self._rendered(attempt) + opening
            except TemplateError as error:
                refusal = refusal or error
            except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
                raise UsageMistake(f"the model's chat template fails: {error}") from error
        raise UsageMistake(f"the model's chat template refuses this conversation: {refusal}")

    def encode(
        self,
        turns: Sequence[Turn],
        tokenizer: Tokenizer,
        *,
        open_assistant: bool = False,
        known: Mapping[int, Sequence[int]] = MappingProxyType({}),
    ) -> list[int]:
        """The prompt as ids. Control text within a message stays text.

        Without such text the ids are those of the whole rendered prompt.

        Args:
            turns: The conversation.
            tokenizer: Whose ids.
            open_assistant: As in `render`.
            known: By their number in `turns`, the ids of messages that need no tokenizing: the
                model wrote them. A template that changes such a message gets it as text.

        Raises:
            UsageMistake: as `render`, or a role contains control text.
        """
        guard = _Guard(tokenizer, turns)
        text = self.render(guard.turns, open_assistant=open_assistant)
        if known:
            marked = self.render(guard.with_ids(known), open_assistant=open_assistant)
            if guard.as_text(marked) == text:
                text = marked
        return list(guard.ids(text))

    def _rendered(self, turns: Sequence[Turn]) -> str:
        text: str = self._compiled.render(
            messages=[{"role": turn.role, "content": turn.content} for turn in turns],
            add_generation_prompt=True,
            enable_thinking=False,
            bos_token=self.bos,
            eos_token=self.eos,
        )
        return text

    @cached_property
    def _compiled(self) -> Any:
        return compiled(self.source)


def compiled(source: str) -> Any:
    """A template with the options and names of transformers' `apply_chat_template`.

    Raises:
        UsageMistake: it is no Jinja template.
    """
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = _tojson
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = _strftime_now
    try:
        return env.from_string(source)
    except TemplateError as error:
        raise UsageMistake(f"the model's chat template is broken: {error}") from error


def _split_opening(turns: Sequence[Turn], *, open_assistant: bool) -> tuple[Sequence[Turn], str]:
    if not open_assistant:
        return turns, ""
    if not turns or turns[-1].role != "assistant":
        role = turns[-1].role if turns else "nobody"
        raise UsageMistake(f"only an assistant turn can be continued; the last one is {role}'s")
    return turns[:-1], turns[-1].content


def _milder(turns: Sequence[Turn]) -> Iterator[Sequence[Turn]]:
    """The conversation as it is, then with less that a template may refuse."""
    yield turns
    folded = _fold_system(turns)
    yield folded
    yield [
        Turn(role, "\n\n".join(turn.content for turn in same))
        for role, same in groupby(folded, key=lambda turn: turn.role)
    ]


def _fold_system(turns: Sequence[Turn]) -> list[Turn]:
    """System texts in front of the first user turn, or as one if there is none."""
    system = [turn.content for turn in turns if turn.role == "system"]
    rest = [turn for turn in turns if turn.role != "system"]
    if not system:
        return rest
    first = next((i for i, turn in enumerate(rest) if turn.role == "user"), None)
    if first is None:
        return [Turn("user", "\n\n".join(system)), *rest]
    rest[first] = Turn("user", "\n\n".join([*system, rest[first].content]))
    return rest


class _Guard:
    """Keeps control text of messages out of the template's reach.

    Each piece of control text is replaced by a mark of private-use characters before the template
    runs, so whatever the template does to a message (trim, cut, quote) it does to the rest of it,
    and is put back as plain tokens afterwards.
    """

    def __init__(self, tokenizer: Tokenizer, turns: Sequence[Turn]) -> None:
        self._tokenizer = tokenizer
        self._hidden: list[str] = []
        self._known: dict[int, tuple[str, Sequence[int]]] = {}  # by mark: text and ids
        for turn in turns:
            if self._has_control(turn.role):
                raise UsageMistake(f"the role {turn.role!r} contains a control token")
        self.turns = [Turn(turn.role, self._mark(turn.content)) for turn in turns]

    def with_ids(self, known: Mapping[int, Sequence[int]]) -> list[Turn]:
        """The turns, those of which the ids are known as one mark each."""
        turns = list(self.turns)
        for number, ids in known.items():
            self._hidden.append("")
            mark = len(self._hidden) - 1
            self._known[mark] = (turns[number].content, ids)
            turns[number] = Turn(turns[number].role, _MARK.format(mark))
        return turns

    def as_text(self, marked: str) -> str:
        """What was rendered of `with_ids`, with the messages' text in place of their marks."""

        def text(match: re.Match[str]) -> str:
            return self._known.get(int(match.group(1)), (match.group(), ()))[0]

        return _MARKED.sub(text, marked)

    def ids(self, rendered: str) -> Iterator[int]:
        """Ids of the rendered prompt, the marks replaced by plain tokens of what they stand for."""
        tokenize = self._tokenizer.tokenize
        # An odd-numbered part is the number that `_MARKED` captured.
        for i, part in enumerate(_MARKED.split(rendered)):
            if i % 2 and int(part) in self._known:
                yield from self._known[int(part)][1]
            elif i % 2:
                yield from tokenize(self._hidden[int(part)], special=False, first=False)
            elif part:
                yield from tokenize(part, special=True, first=i == 0)

    def _has_control(self, text: str) -> bool:
        tokenize = self._tokenizer.tokenize
        return tokenize(text, special=True, first=False) != tokenize(
            text, special=False, first=False
        )

    def _mark(self, content: str) -> str:
        if _MARKED.search(content):
            # A mark forged by the message: as hidden text it comes back as it is.
            content = _MARKED.sub(self._hide, content)
        elif not self._has_control(content):
            return content
        return self._control.sub(self._hide, content) if self._control.pattern else content

    def _hide(self, match: re.Match[str]) -> str:
        self._hidden.append(match.group())
        return _MARK.format(len(self._hidden) - 1)

    @cached_property
    def _control(self) -> re.Pattern[str]:
        longest_first = sorted(filter(None, self._tokenizer.control_texts), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))


# --- what templates call ------------------------------------------------------------------------


def _tojson(value: object, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().astimezone().strftime(format)
