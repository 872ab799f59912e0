"""What the drivers see of one answer on a server."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from langchain_relay.errors import LocalModelError

if TYPE_CHECKING:
    from langchain_relay.engine.events import Decode, Feed
    from langchain_relay.engine.values import Step
    from langchain_relay.local.server.model import CompletionServerModel
    from langchain_relay.local.server.writer import Line, Writer


class ServerSession:
    """One answer being written. Its methods never block, but for `count`.

    Attributes:
        prompt_tokens: Tokens of the rendered prompt.
        context_left: Tokens that still fit behind the prompt.
        thinking: Whether the chat template knows `<think>` tags.
    """

    def __init__(
        self,
        model: CompletionServerModel,
        line: Line,
        writer: Writer,
        give_back: Callable[[], object],
    ) -> None:
        self._model = model  # keeps the connection
        self._loop = line.loop
        self._writer = writer
        self.prompt_tokens = writer.history.tokens
        self.context_left = line.facts.n_ctx - self.prompt_tokens
        self.thinking = line.facts.thinking
        self._close = weakref.finalize(self, give_back)
        self._close.atexit = False

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt the server had in its cache; 0 until it has said so."""
        return self._writer.cached_tokens

    @property
    def completions(self) -> int:
        """Completions asked for so far."""
        return self._writer.completions

    def decode(self, ask: Decode) -> Future[Step]:
        """Take back `ask.rewind` tokens, append `ask.append`, sample one token under `ask.rule`.

        Raises:
            ContextOverflowError: (through the future) the tokens no longer fit.
            UsageMistake: (through the future) the ask cannot be done.
            LocalModelError: (through the future) the server failed, or the session was closed.
        """
        future: Future[Step] = Future()
        if not self._loop.call(self._writer.decode, ask, future):
            future.set_exception(LocalModelError("the local model was closed"))
        future.add_done_callback(self._answered)  # so that the future keeps the session open
        return future

    def rest(self) -> None:
        """What the server writes ahead is its own time; the next ask or feed ends it."""

    def feed(self, ask: Feed) -> None:
        """Put foreign text into the context while it arrives; sent with the next decode."""
        self._loop.call(self._writer.feed, ask)

    def _answered(self, future: Future[Step]) -> None:
        """Nothing is to be done; being called is why the session is still there."""

    def count(self, text: str) -> int:
        """Tokens of `text` as the server counts them; see `CompletionServerModel.count`."""
        return self._model.count(text)

    def close(self) -> None:
        """Give the place back. May be called at any time and more than once."""
        self._close()
