"""`LlamaCppModel`: a GGUF in this process for many chats at once. Constructing it loads nothing."""

from __future__ import annotations

import json
import weakref
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_relay.errors import UsageMistake
from langchain_relay.local import models, sharing
from langchain_relay.local.context_types import LlamaSettings
from langchain_relay.local.decoder import RUN_AHEAD
from langchain_relay.local.engine import Engine
from langchain_relay.local.inbox import Ask, Closed, Fed, Open, Resumed
from langchain_relay.local.lease import Lease, Opening
from langchain_relay.local.prefix_files import PrefixFiles
from langchain_relay.local.running import RunningModel
from langchain_relay.local.sampling import choose
from langchain_relay.local.threads import usable_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import ClassVar

    from langchain_relay.engine.events import Decode, Feed
    from langchain_relay.engine.values import LocalSession, Sampling, Step, Turn
    from langchain_relay.local.context_types import Context


class LlamaCppModel(RunningModel[Engine]):
    """A local model that writes up to `max_concurrency` answers at once, in one llama.cpp context.

    The file is loaded at the first `open` or `count`, by the one thread that then decodes for
    everybody. Use it from any number of threads and event loops; `close()` it, or leave that to
    garbage collection and the end of the process.

    Models with the same file and settings share one engine, and so do their sequences; with other
    settings they share the weights. While a caller looks at a token the next ones are decoded
    already. A later turn of a conversation evaluates only what is new, and a shared beginning, such
    as a system prompt, is copied.

    With a given seed the text behind given tokens does not depend on what else is decoded, when, or
    in which pieces. That was measured for Q4_1 weights on x86; on a GPU or on another kind of CPU
    scores differ a little, and where two tokens are nearly as likely the other one may be chosen.
    A later turn goes on behind the tokens of its answers as they were written, as long as they are
    remembered; after that their text is tokenized anew, which rarely gives others. A model with
    recurrent layers cannot take text back: it evaluates the chat again, and says so once.

    Args:
        model: An alias (`"smollm2-135m"`), a path to a `.gguf` file, or `"hf:org/repo/file.gguf"`.
        adapter: A LoRA adapter as a GGUF file.
        n_ctx: Tokens of one chat, prompt and answer; the context has `max_concurrency` times as
            many. `None`: 4096, or what the model was trained on if that is less.
        n_threads: Decode threads; `None`: the cores this process may use. Engines of one process
            take turns if they have more threads than there are cores; processes do not, so all of
            a machine together should not have more.
        n_gpu_layers: Layers to keep on a GPU; -1 means all.
        max_concurrency: Answers written at once; more of them queue.
        n_batch: Tokens evaluated in one step, at most. A long prompt is evaluated in such pieces,
            and in smaller ones while other chats write.
        run_ahead: Steps decoded before they are asked for, 0 to 8. It changes no text.
        share: Share an engine with models of the same settings.
        state_dir: A folder that keeps evaluated system prompts for the next process; `None`: none.
        state_max_bytes: What it may hold; the least recently used go first.

    Raises:
        ModelNotFound: no such alias or file, or a file that is no GGUF.
        MissingExtra: a `hf:` name needs `langchain-relay[hub]`.
        UsageMistake: a number that cannot be.
    """

    _ends_with_process: ClassVar = False  # the engine stops itself then

    def __init__(
        self,
        model: str | Path = "smollm2-135m",
        *,
        adapter: str | Path | None = None,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
        max_concurrency: int = 4,
        n_batch: int = 512,
        run_ahead: int = RUN_AHEAD,
        share: bool = True,
        state_dir: str | Path | None = None,
        state_max_bytes: int = 2**30,
    ) -> None:
        super().__init__()
        models.check(model)
        if not 0 <= run_ahead <= RUN_AHEAD:
            raise UsageMistake(
                f"run_ahead={run_ahead!r} is out of range; it must be 0 to {RUN_AHEAD}"
            )
        self._settings = LlamaSettings(
            model=models.absolute(model),
            adapter=None if adapter is None else models.check_gguf(adapter, what="adapter"),
            n_ctx=None if n_ctx is None else _at_least_one("n_ctx", n_ctx),
            n_threads=_at_least_one("n_threads", n_threads)
            if n_threads is not None
            else usable_cores(),
            n_gpu_layers=n_gpu_layers,
            max_concurrency=_at_least_one("max_concurrency", max_concurrency),
            n_batch=max(_at_least_one("n_batch", n_batch), max_concurrency),
            run_ahead=run_ahead,
            state_dir=None if state_dir is None else Path(state_dir).expanduser().absolute(),
            state_max_bytes=_at_least_one("state_max_bytes", state_max_bytes),
        )
        self._share = share

    @property
    def name(self) -> str:
        """The alias, or the file name without its suffix."""
        return models.display_name(self._settings.model)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON-able facts that tell this model and its settings from any other."""
        adapter = self._settings.adapter
        return {
            "kind": "llama.cpp",
            "model": models.fingerprint(self._settings.model),
            "adapter": None if adapter is None else models.fingerprint(adapter),
            "n_ctx": self._settings.n_ctx,
        }

    @property
    def loaded(self) -> bool:
        """Whether the file is in memory."""
        engine = self._runner
        if engine is None or not engine.alive or not engine.loaded.done():
            return False
        return engine.loaded.exception() is None

    def open(
        self, turns: Sequence[Turn], sampling: Sampling, *, open_assistant: bool = False
    ) -> Future[LocalSession]:
        """Queue for a sequence; the future resolves once one is leased to this answer.

        A future cancelled while it queues leaves the queue.

        Args:
            turns: The conversation.
            sampling: How to sample; `langchain_relay.local.sampling.Chosen` has the defaults.
            open_assistant: Continue the last turn, which is the assistant's.

        Raises:
            UsageMistake: a sampling value is out of range; through the future: the chat template
                refuses the conversation.
            ContextOverflowError: (through the future) the prompt does not fit into `n_ctx`.
            LocalModelError: (through the future) loading failed, or the model was closed.
        """
        chosen = choose(sampling)
        engine = self._running()
        future: Future[LocalSession] = Future()

        def granted(lease: Lease, context: Context) -> LlamaCppSession:
            return LlamaCppSession(self, engine, lease, context)

        opening = Opening(id(self), tuple(turns), open_assistant)
        engine.submit(Open(opening, chosen, granted, future))
        return future

    def count(self, text: str) -> int:
        """Tokens of `text`; loads the model on first use, and waits for that."""
        return self._running().loaded.result().vocab.count(text)

    def decode_apart(self) -> None:
        """Have an engine of its own, unless it has joined one already."""
        with self._lock:
            if self._runner is None:
                self._share = False

    def shares_engine(self, other: LlamaCppModel) -> bool:
        """Whether both decode in one context, where one's chats may wait for the other's."""
        return self is other or self._engine_key == other._engine_key

    def __repr__(self) -> str:
        return f"LlamaCppModel({str(self._settings.model)!r})"

    @property
    def _engine_key(self) -> tuple[object, ...]:
        facts = json.dumps(self.fingerprint, sort_keys=True)
        return (self._settings, facts, None if self._share else id(self))

    def _start(self) -> tuple[Engine, Callable[[], None]]:
        new = partial(_new_engine, self._settings)
        engine = sharing.join(self._engine_key, id(self), new)
        return engine, partial(sharing.leave, engine, id(self))

    def _stop(self, runner: Engine) -> None:
        sharing.leave(runner, id(self), wait=True)


class LlamaCppSession:
    """One answer being written. Its methods never block.

    Attributes:
        prompt_tokens: Tokens of the rendered prompt.
        cached_tokens: Of these, tokens whose KV was reused.
        context_left: Tokens that still fit behind the prompt.
        thinking: Whether the chat template knows `<think>` tags.
    """

    def __init__(
        self, model: LlamaCppModel, engine: Engine, lease: Lease, context: Context
    ) -> None:
        self._model = model  # keeps the engine running
        self._engine = engine
        self._lease = lease
        self._vocab = context.vocab
        self.prompt_tokens = lease.sequence.prompt_tokens
        self.cached_tokens = lease.sequence.reused_tokens
        self.context_left = context.n_ctx - self.prompt_tokens
        self.thinking = context.thinking
        self._close = weakref.finalize(self, engine.submit, Closed(lease))
        self._close.atexit = False

    @property
    def evaluated_tokens(self) -> int:
        """Tokens evaluated for this answer so far: of the prompt, of the answer, and ahead."""
        return self._lease.sequence.evaluated_tokens

    @property
    def wasted_tokens(self) -> int:
        """Of these, tokens that were evaluated ahead and taken back."""
        return self._lease.sequence.wasted_tokens

    def decode(self, ask: Decode) -> Future[Step]:
        """Take back `ask.rewind` tokens, append `ask.append`, sample one token under `ask.rule`.

        Raises:
            ContextOverflowError: (through the future) the tokens no longer fit.
            UsageMistake: (through the future) the ask cannot be done.
            LocalModelError: (through the future) the session or the model was closed.
        """
        future: Future[Step] = Future()
        # In a forked child the lock in there may be held by a thread that is not there.
        taken = self._lease.ahead.ask(ask, future) if self._engine.alive else None
        if taken is None:
            self._engine.submit(Ask(self._lease, ask, future))
        if taken is None or taken.step is None:
            future.add_done_callback(self._answered)  # so that the future keeps the session open
        elif taken.step is not None:
            future.set_result(taken.step)
        if taken is not None and taken.engine_waits:
            self._engine.submit(Resumed())
        return future

    def rest(self) -> None:
        """Decode nothing ahead: it would take the cores from who waits for a hosted model."""
        if self._engine.alive:
            self._lease.ahead.rest()

    def feed(self, ask: Feed) -> None:
        """Put foreign text into the context; it is evaluated while it arrives."""
        if self._engine.alive:
            self._lease.ahead.hold()
        self._engine.submit(Fed(self._lease, ask))

    def _answered(self, future: Future[Step]) -> None:
        """Nothing is to be done; being called is why the session is still there."""

    def count(self, text: str) -> int:
        """Tokens of `text` in the local vocabulary."""
        return self._vocab.count(text)

    def close(self) -> None:
        """Give the sequence back. May be called at any time and more than once."""
        self._close()


def _new_engine(settings: LlamaSettings) -> Engine:
    def load() -> Context:
        from langchain_relay.local.context import LlamaContext

        return LlamaContext(settings)

    return Engine(
        load,
        max_concurrency=settings.max_concurrency,
        n_batch=settings.n_batch,
        run_ahead=settings.run_ahead,
        files=None if settings.state_dir is None else partial(_prefix_files, settings),
    )


def _prefix_files(settings: LlamaSettings, context: Context) -> PrefixFiles:
    assert settings.state_dir is not None, "only then are there files"
    adapter = settings.adapter
    facts = {
        "model": models.fingerprint(settings.model),
        "adapter": None if adapter is None else models.fingerprint(adapter),
        "n_gpu_layers": settings.n_gpu_layers,
        "state": context.state_format,
    }
    return PrefixFiles(settings.state_dir, max_bytes=settings.state_max_bytes, key=facts)


def _at_least_one(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageMistake(f"{name}={value!r}: a whole number is needed")
    if value < 1:
        raise UsageMistake(f"{name}={value!r} is out of range; it must be at least 1")
    return value
