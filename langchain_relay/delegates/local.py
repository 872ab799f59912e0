"""A second local model in the hosted role: a larger GGUF as the expert, at no price."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict
from pathlib import Path
from typing import Any

from langchain_relay.engine.drivers import aleased, leased
from langchain_relay.engine.events import Decode
from langchain_relay.engine.tokens import input_tokens_bound
from langchain_relay.engine.values import (
    Attempt,
    Delta,
    LocalModel,
    LocalSession,
    Mode,
    Sampling,
    Step,
    Turn,
    Usage,
)
from langchain_relay.messages import turns


class LocalDelegate:
    """Hands spans to a local model; the draft is continued literally and nothing is billed.

    Args:
        model: An alias, a path, `"hf:org/repo/file.gguf"`, or a `LlamaCppModel` with its own
            settings. It gets an engine of its own, since answers would otherwise wait for
            sequences that they hold themselves.
        sampling: How it samples; greedy by default.
    """

    def __init__(
        self,
        model: str | Path | LocalModel,
        *,
        sampling: Sampling = Sampling(temperature=0.0),  # noqa: B008 - frozen
    ) -> None:
        from langchain_relay.local import LlamaCppModel

        if isinstance(model, str | Path):
            model = LlamaCppModel(model)
        if isinstance(model, LlamaCppModel):
            model.decode_apart()
        self._local = model
        self._sampling = sampling

    @property
    def model(self) -> str:
        """The model's name."""
        return self._local.name

    @property
    def mode(self) -> Mode:
        """The draft is the open end of the assistant's turn."""
        return "prefill"

    @property
    def worst_attempts(self) -> int:
        """There are no retries below us."""
        return 1

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """Tells this model from any other."""
        return {
            "delegate": "local",
            "sampling": asdict(self._sampling),
            **self._local.fingerprint,
        }

    @property
    def base_url(self) -> str | None:
        """Address of the server that decodes; `None`: it is done in this process."""
        return getattr(self._local, "base_url", None)

    @property
    def in_process(self) -> bool:
        """Whether nothing is sent anywhere."""
        return self.base_url is None

    def plays(self, model: LocalModel) -> bool:
        """Whether this delegate decodes on `model` itself, or in one context with it."""
        from langchain_relay.local import LlamaCppModel

        mine = self._local
        if isinstance(mine, LlamaCppModel) and isinstance(model, LlamaCppModel):
            return mine.shares_engine(model)
        return mine is model

    def input_bound(self, attempt: Attempt) -> int:
        """See `Delegate.input_bound`."""
        return input_tokens_bound(turn.content for turn in _turns(attempt))

    def _open(self, attempt: Attempt) -> Future[LocalSession]:
        draft = bool(attempt.draft.strip())
        return self._local.open(_turns(attempt), self._sampling, open_assistant=draft)

    def stream(self, attempt: Attempt) -> Iterator[Delta]:
        """See `Delegate.stream`."""
        session = leased(self._open(attempt))
        try:
            append: tuple[int, ...] = ()
            for written in range(_limit(session, attempt)):
                step = session.decode(Decode(append)).result()
                if step.eog:
                    yield _last(session, written, "stop", self.model)
                    return
                append = (step.id,)
                yield Delta(text=step.text)
            yield _last(session, _limit(session, attempt), "length", self.model)
        finally:
            session.close()

    async def astream(self, attempt: Attempt) -> AsyncIterator[Delta]:
        """Async twin of `stream`."""
        session = await aleased(self._open(attempt))
        try:
            append: tuple[int, ...] = ()
            for written in range(_limit(session, attempt)):
                step: Step = await asyncio.wrap_future(session.decode(Decode(append)))
                if step.eog:
                    yield _last(session, written, "stop", self.model)
                    return
                append = (step.id,)
                yield Delta(text=step.text)
            yield _last(session, _limit(session, attempt), "length", self.model)
        finally:
            session.close()


def _turns(attempt: Attempt) -> list[Turn]:
    draft = attempt.draft.rstrip()
    return [*turns(attempt.messages), *([Turn("assistant", draft)] if draft else [])]


def _limit(session: LocalSession, attempt: Attempt) -> int:
    return min(attempt.max_tokens, session.context_left)


def _last(session: LocalSession, written: int, finish: str, model: str) -> Delta:
    return Delta(usage=Usage(session.prompt_tokens, written), finish=finish, model=model)
