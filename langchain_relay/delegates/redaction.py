"""The user's `redact=` hook, applied to everything that is shown to a hosted model.

Strings are redacted wherever they stand in a message (content, tool arguments, provider's extras),
but for words of structure: a block's type, a tool's name, an encrypted block that only its provider
can read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from langchain_relay.errors import RedactionFailed

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

__all__ = ["Redact", "Redaction"]

Redact = Callable[[str], str]
"""Text to the same text without what must not leave the machine."""

_STRUCTURE = frozenset(
    {
        *("type", "id", "index", "name", "role", "status", "phase", "mime_type", "cache_control"),
        *("tool_call_id", "call_id", "tool_use_id"),
        # Only the provider can read these, and it refuses them changed.
        *("signature", "thought_signature", "encrypted_content"),
    }
)
"""Keys of a content block or a tool call whose values are no text of the conversation."""

_NESTED = frozenset(
    {"content", "tool_calls", "function", "function_call", "output", "summary", "extras"}
)
"""Keys under which there are blocks and tool calls again; under any other all is the user's."""

_ARGUMENTS = frozenset({"args", "input", "arguments"})
"""Keys of a tool call under which its arguments are, as an object or as JSON."""

_OUR_OWN = "relay"
"""Key of `response_metadata` under which an answer keeps its spans; no provider reads it."""


class Redaction:
    """One answer's redaction: each message goes through the hook once, and so does each draft.

    So the redacted conversation in front of successive drafts is the same, and a provider's cache
    finds it again.

    Args:
        hook: The user's function.
    """

    def __init__(self, hook: Redact) -> None:
        self._hook = hook
        self._messages: dict[int, tuple[BaseMessage, BaseMessage]] = {}
        self._draft = "", ""

    def messages(self, messages: tuple[BaseMessage, ...]) -> tuple[BaseMessage, ...]:
        """The conversation as it may leave.

        Raises:
            RedactionFailed: the hook raised, or returned no string.
        """
        return tuple(map(self._message, messages))

    def draft(self, draft: str) -> str:
        """The draft as it may leave; its trailing blanks stay, since they are shown already.

        Raises:
            RedactionFailed: as above.
        """
        if self._draft[0] != draft:
            blanks = draft[len(draft.rstrip()) :]
            self._draft = draft, self._text(draft).rstrip() + blanks
        return self._draft[1]

    def _message(self, message: BaseMessage) -> BaseMessage:
        if id(message) not in self._messages:
            # The message is kept as well: its id would be free for another otherwise.
            self._messages[id(message)] = message, self._redacted(message)
        return self._messages[id(message)][1]

    def _redacted(self, message: BaseMessage) -> BaseMessage:
        names = ("content", "tool_calls", "invalid_tool_calls", "additional_kwargs")
        update = {n: self._blocks(getattr(message, n)) for n in names if hasattr(message, n)}
        update["response_metadata"] = {
            name: value for name, value in message.response_metadata.items() if name != _OUR_OWN
        }
        if message.type != "tool" and message.name and self._text(message.name) != message.name:
            update["name"] = None  # hosts take names of certain letters only
        if hasattr(message, "artifact"):
            update["artifact"] = None  # never sent
        return message.model_copy(update=update)

    def _blocks(self, value: Any) -> Any:
        """Content or tool calls, with every string redacted that is not structure."""
        if isinstance(value, list | tuple):
            return [self._blocks(item) for item in value]
        if isinstance(value, Mapping):
            return {key: self._field(value, key) for key in value}
        return self._all(value)

    def _field(self, block: Mapping[str, Any], key: str) -> Any:
        value = block[key]
        if key in _STRUCTURE or (key == "data" and block.get("type") == "redacted_thinking"):
            return value
        if key in _ARGUMENTS:
            return self._arguments(value)
        return self._blocks(value) if key in _NESTED else self._all(value)

    def _arguments(self, value: Any) -> Any:
        """What a tool was called with; a model may have put anything into its keys, too."""
        if isinstance(value, Mapping):
            return {self._all(key): self._arguments(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._arguments(item) for item in value]
        return self._all(value)

    def _all(self, value: Any) -> Any:
        """`value` with every string in it redacted, whatever its shape."""
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, Mapping):
            return {key: self._all(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._all(item) for item in value]
        return value

    def _text(self, text: str) -> str:
        if not text:
            return text
        try:
            redacted = self._hook(text)
        except Exception as error:
            raise _failed(f"raised {type(error).__name__}: {error}") from error
        if not isinstance(redacted, str):
            raise _failed(f"returned {type(redacted).__name__} instead of a string")
        return redacted


def _failed(what: str) -> RedactionFailed:
    return RedactionFailed(f"redact= {what}; nothing was sent", retryable=False, sent=False)
