"""The parts of a rendered prompt: what is the template's, and what is a message's control text.

Templates run in this process, so that no message can forge a turn whatever the server does with
control text in a prompt. Nothing here tokenizes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_relay.engine.values import Turn
    from langchain_relay.local.template import ChatTemplate

SUSPICIOUS = re.compile(r"[<\[]")
"""Every control token of a chat format known to us has one of these characters."""

_FRAMED = re.compile(
    r"<\|[^<>|]{1,64}\|>|<\uff5c[^<>\uff5c]{1,64}\uff5c>"
)  # DeepSeek: full width bars
_TAG_IN_TEMPLATE = re.compile(r"</?[A-Za-z_][\w.-]*>|\[/?[A-Z_]+\]")
_NEVER_CONTROL = frozenset({"<think>", "</think>"})
_BREAK = "\u200b"  # zero width space: it parts a control text and is not seen


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a prompt; `plain`: control text of a message, which must stay text."""

    text: str
    plain: bool


def parts(
    template: ChatTemplate,
    turns: Sequence[Turn],
    controls: Sequence[str],
    *,
    open_assistant: bool,
) -> list[Part]:
    """The rendered prompt; text of `controls` within a message is a part of its own.

    Raises:
        UsageMistake: the template refuses the conversation, or a role contains control text.
    """
    listing = _Listing(controls)
    return [
        listing.parts[i] for i in template.encode(turns, listing, open_assistant=open_assistant)
    ]


class _Listing:
    """A tokenizer whose tokens are whole parts, so that `ChatTemplate.encode` lists them."""

    def __init__(self, controls: Sequence[str]) -> None:
        self.control_texts = controls
        self.parts: list[Part] = []

    def tokenize(self, text: str, *, special: bool, first: bool) -> list[int]:  # noqa: ARG002 - parts know their place
        has_control = any(control in text for control in self.control_texts if control)
        part = Part(text, plain=has_control and not special)
        if part not in self.parts:
            self.parts.append(part)
        return [self.parts.index(part)]


class Breaker:
    """Makes control text harmless for servers that take all text at its word.

    A zero width space is put behind the first character of every control text, in what the local
    model reads, never in what a user sees.

    Args:
        template: The chat template, whose control texts are known from its source.
        controls: All control texts of the vocabulary, if they are known.
    """

    def __init__(self, template: ChatTemplate, controls: Sequence[str] = ()) -> None:
        found = [*_FRAMED.findall(template.source), *_TAG_IN_TEMPLATE.findall(template.source)]
        known = {*controls, *found, template.bos, template.eos} - _NEVER_CONTROL - {""}
        longest_first = sorted(known, key=len, reverse=True)
        self._known = re.compile("|".join([*map(re.escape, longest_first), _FRAMED.pattern]))

    def found(self, text: str) -> list[str]:
        """The control texts within `text`."""
        return self._known.findall(text)

    def broken(self, text: str) -> str:
        """`text` without control text."""
        return self._known.sub(lambda match: match[0][0] + _BREAK + match[0][1:], text)
