"""`CompletionServerModel`: the local model on an inference server. Constructing it sends nothing."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Literal, get_args

import httpx

from langchain_relay.errors import (
    ContextOverflowError,
    LocalModelError,
    RelayError,
    UsageMistake,
)
from langchain_relay.local.sampling import choose
from langchain_relay.local.server.dialect import Dialect, Facts, ServerSettings
from langchain_relay.local.server.gguf_vocab import GgufVocabulary
from langchain_relay.local.server.llama_server import LlamaServer
from langchain_relay.local.server.openai_completions import FLAVOURS, OpenAICompletions
from langchain_relay.local.server.transport import Http, Loop, NoSuchPage
from langchain_relay.local.server.writer import Line, Terms, Writer

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from langchain_relay.engine.events import Decode, Feed
    from langchain_relay.engine.values import LocalSession, Sampling, Step, Turn
    from langchain_relay.local.sampling import Chosen

Protocol = Literal["auto", "llama.cpp", "openai"]

REMEMBERED_COUNTS = 65_536
"""Texts whose token counts are remembered: hosted text is counted word by word."""


class CompletionServerModel:
    """A local model on an inference server, for up to `max_concurrency` answers at once.

    It plays the role of `LlamaCppModel` over HTTP. The server continues a prefix; at a hand-over
    the stream is closed, and a new one continues the prefix plus the hosted span, of which the
    server finds all but the span in its prefix cache. An answer with c hand-overs takes 1 + c
    completions, and a few small requests that tokenize (see docs/local-models.md).

    Two protocols are spoken. llama.cpp's own server (`/completion`) takes and gives token ids, so
    that nothing is tokenized twice; bans, stop strings, the `margin` signal and grammars are exact.
    The OpenAI completions protocol (`/v1/completions`) keeps text: `llama_cpp.server` is tested;
    vLLM and SGLang are written from their documentation and unverified. Such a server takes control
    text such as `<|im_end|>` at its word, so in messages and hosted spans it is broken by a zero
    width space, in what the local model reads only.

    Sampling settings are always sent, so that a server's own defaults never apply. Unlike in
    process, servers apply `repeat_penalty` to the end of the prompt too, and a seed repeats a text
    only if the same asks are made in the same order.

    `count` asks the server for every text it has not seen, and waits: in an event loop that blocks
    for a round trip. Give `tokenizer` where that is too long.

    Args:
        base_url: Where the server is, for example `"http://127.0.0.1:8080"`; a trailing `/v1` is
            dropped.
        protocol: `"auto"` asks the server.
        server: Which server of the OpenAI protocol it is: `"llama_cpp.server"`, `"vllm"` or
            `"sglang"`; `None` asks the server.
        model: The model's name there; `None`: the first one.
        adapter: The name of a LoRA adapter the server has: with llama.cpp's server the file's name,
            with vLLM and SGLang the name it was loaded under.
        template: The chat template, as Jinja text; llama.cpp's server has its own.
        tokenizer: A GGUF with the model's vocabulary and template (alias, path or `hf:` name), for
            counting without asking; its weights are not loaded.
        n_ctx: Tokens of one chat; `None`: what the server says.
        max_concurrency: Answers written at once; more of them queue.
        stop_at: Strings behind which the server stops: nobody needs what follows a command.
        pin_slots: Keep each answer on one slot of llama.cpp's server, if it has enough of them.
            Turn it off where several processes share the server.
        timeout_s: How long the server may be silent.
        api_key: Sent as a bearer token.
        headers: Sent with every request.
        affinity_header: A header that names the conversation, for a load balancer that sends all of
            its requests to one replica, where its cache is.
        extra_body: More fields for every completion, where the ones sent here do not win.
        transport: What httpx sends through; `None`: the network.

    Raises:
        UsageMistake: an argument that cannot be.
        ModelNotFound: `tokenizer` names no GGUF.
    """

    def __init__(
        self,
        base_url: str,
        *,
        protocol: Protocol = "auto",
        server: Literal["llama_cpp.server", "vllm", "sglang"] | None = None,
        model: str | None = None,
        adapter: str | None = None,
        template: str | None = None,
        tokenizer: str | Path | None = None,
        n_ctx: int | None = None,
        max_concurrency: int = 4,
        stop_at: Sequence[str] = ("</call>",),
        pin_slots: bool = True,
        timeout_s: float = 60.0,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        affinity_header: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._base_url = _checked_url(base_url)
        _check_choices(protocol, server)
        _check_numbers(n_ctx=n_ctx, max_concurrency=max_concurrency, timeout_s=timeout_s)
        self._settings = ServerSettings(
            protocol="openai" if server is not None and protocol == "auto" else protocol,
            server=server,
            model=model,
            adapter=adapter,
            template=template,
            tokenizer=None if tokenizer is None else GgufVocabulary(tokenizer),
            n_ctx=n_ctx,
            extra_body=dict(extra_body or {}),
        )
        self._tokenizer_name = None if tokenizer is None else str(tokenizer)
        self._max_concurrency = max_concurrency
        self._stop_at = tuple(stop_at)
        self._pin_slots = pin_slots
        self._timeout_s = timeout_s
        self._headers = {**(headers or {})}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._affinity_header = affinity_header
        self._transport = transport
        self._salt = secrets.token_bytes(16)
        self._lock = threading.Lock()
        self._service: _Service | None = None
        self._closed = False
        self._counts: dict[str, int] = {}

    @property
    def name(self) -> str:
        """The model's name on the server, or where the server is."""
        return self._settings.model or httpx.URL(self._base_url).netloc.decode()

    @property
    def fingerprint(self) -> dict[str, Any]:
        """JSON-able facts that tell this model and its settings from any other, without secrets."""
        settings = self._settings
        template = settings.template
        return {
            "kind": "completion server",
            "base_url": self._base_url,
            "protocol": settings.protocol,
            "server": settings.server,
            "model": settings.model,
            "adapter": settings.adapter,
            "n_ctx": settings.n_ctx,
            "template": template and hashlib.sha256(template.encode()).hexdigest(),
            "tokenizer": self._tokenizer_name,
        }

    @property
    def requests(self) -> int:
        """HTTP requests sent so far."""
        service = self._service
        return 0 if service is None else service.http.requests

    def open(
        self, turns: Sequence[Turn], sampling: Sampling, *, open_assistant: bool = False
    ) -> Future[LocalSession]:
        """Queue for a place on the server; the future resolves once this answer has one.

        A future cancelled while it queues leaves the queue.

        Args:
            turns: The conversation.
            sampling: How to sample; `langchain_relay.local.sampling.Chosen` has the defaults.
            open_assistant: Continue the last turn, which is the assistant's.

        Raises:
            UsageMistake: a sampling value is out of range; through the future: the chat template
                refuses the conversation, or the server lacks something.
            ContextOverflowError: (through the future) the prompt does not fit into `n_ctx`.
            LocalModelError: (through the future) the server failed, or the model was closed.
        """
        chosen = choose(sampling)
        service = self._running_service()
        future: Future[LocalSession] = Future()
        opening = _Opening(
            self, tuple(turns), chosen, open_assistant, self._affinity(turns), future
        )
        if not service.loop.call(service.begin, opening):
            future.set_exception(LocalModelError(f"the local model {self.name!r} was closed"))
        return future

    def count(self, text: str) -> int:
        """Tokens of `text` as the server counts them; asks it, unless it was asked before."""
        if self._settings.tokenizer is not None:
            counted: int = self._settings.tokenizer.count(text)
            return counted
        known = self._counts.get(text)
        if known is None:
            service = self._running_service()
            known = service.loop.result(lambda: service.count(text))
            if len(self._counts) >= REMEMBERED_COUNTS:
                self._counts.clear()
            self._counts[text] = known
        return known

    def close(self) -> None:
        """Close all connections. What is pending fails; later uses raise `LocalModelError`."""
        with self._lock:
            self._closed, service = True, self._service
        if service is not None:
            service.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CompletionServerModel({self._base_url!r})"

    def _affinity(self, turns: Sequence[Turn]) -> dict[str, str]:
        """The header that names the conversation: what it begins with, salted and hashed."""
        if self._affinity_header is None:
            return {}
        roles = [turn.role for turn in turns]
        end = roles.index("assistant") if "assistant" in roles else len(roles)
        begun = "\0".join(f"{turn.role}\0{turn.content}" for turn in turns[: max(end, 1)])
        name = hashlib.blake2b(begun.encode(errors="replace"), key=self._salt, digest_size=12)
        return {self._affinity_header: name.hexdigest()}

    def _running_service(self) -> _Service:
        """The connection; a new one if there is none, or if the last one was forked away."""
        with self._lock:
            if self._closed:
                raise LocalModelError(f"the local model {self.name!r} was closed")
            if self._service is None or not self._service.loop.alive:
                http = Http(
                    self._base_url,
                    headers=self._headers,
                    timeout_s=self._timeout_s,
                    transport=self._transport,
                )
                places = self._max_concurrency
                self._service = _Service(http, self._settings, places, self._stop_at)
                self._service.pin_slots = self._pin_slots
                # The loop's thread holds the service, never the model.
                weakref.finalize(self, self._service.stop)
            return self._service


class _Opening:
    """Somebody wants to write an answer."""

    def __init__(
        self,
        model: CompletionServerModel,
        turns: Sequence[Turn],
        chosen: Chosen,
        open_assistant: bool,  # noqa: FBT001 - a field
        headers: dict[str, str],
        future: Future[LocalSession],
    ) -> None:
        self.model = model
        self.turns = turns
        self.chosen = chosen
        self.open_assistant = open_assistant
        self.headers = headers
        self.future = future


class _Service:
    """The places for answers on one server. Lives on the loop's thread but for `stop`."""

    pin_slots = True

    def __init__(
        self, http: Http, settings: ServerSettings, places: int, stop_at: tuple[str, ...]
    ) -> None:
        self.http = http
        self.loop = Loop()
        self._settings = settings
        self._stop_at = stop_at
        self._places = places
        self._free = list(range(places))
        self._queue: list[_Opening] = []
        self._connecting: asyncio.Task[Line] | None = None
        self._writers: set[Writer] = set()

    def stop(self) -> None:
        """End everything; may be called from any thread and more than once."""
        self.loop.stop(self._end)

    async def count(self, text: str) -> int:
        """Tokens of `text` as a continuation."""
        return await (await self._line()).dialect.count(text)

    def begin(self, opening: _Opening) -> None:
        """Queue `opening`, first come first served."""
        self._queue.append(opening)
        self._grant()

    def give_back(self, writer: Writer, place: int) -> None:
        """An answer is over: its place is free."""
        writer.close()
        if writer in self._writers:
            self._writers.remove(writer)
            self._vacate(place)

    def _vacate(self, place: int) -> None:
        heappush(self._free, place)
        self._grant()

    def _grant(self) -> None:
        while self._free and self._queue:
            opening = self._queue.pop(0)
            if not opening.future.cancelled():
                self.loop.start(self._open(opening, heappop(self._free)))

    async def _open(self, opening: _Opening, place: int) -> None:
        try:
            line = await self._line()
            prompt = await line.dialect.prompt(
                opening.turns, open_assistant=opening.open_assistant
            )
            _check_prompt(sum(item.tokens for item in prompt), line.facts.n_ctx)
        except asyncio.CancelledError:
            _fail(opening.future, LocalModelError("the local model was closed"))
            raise
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of anything
            self._vacate(place)
            _fail(opening.future, _ours(error))
            return
        if not opening.future.set_running_or_notify_cancel():
            self._vacate(place)
            return
        terms = Terms(opening.chosen, self._stop_at, self._slot(line.facts, place), opening.headers)
        writer = Writer(line, prompt, terms)
        self._writers.add(writer)
        opening.future.set_result(ServerSession(opening.model, self, line.facts, writer, place))

    def _slot(self, facts: Facts, place: int) -> int | None:
        enough = facts.slots is not None and self._places <= facts.slots
        return place if self.pin_slots and enough else None

    async def _line(self) -> Line:
        """The connected server; whoever is first connects, and a failure is tried again."""
        task = self._connecting
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._connecting = self.loop.start(self._connect())
        line: Line = await asyncio.shield(task)
        return line

    async def _connect(self) -> Line:
        dialect: Dialect
        if self._settings.protocol != "openai":
            dialect = LlamaServer(self.http, self._settings)
            try:
                return Line(self.loop, self.http, dialect, await dialect.connect())
            except NoSuchPage:
                if self._settings.protocol == "llama.cpp":
                    raise
        dialect = OpenAICompletions(self.http, self._settings)
        return Line(self.loop, self.http, dialect, await dialect.connect())

    async def _end(self) -> None:
        closed = LocalModelError("the local model was closed")
        for writer in self._writers:
            writer.close()
        for opening in self._queue:
            _fail(opening.future, closed)
        self._queue.clear()
        await self.http.close()


class ServerSession:
    """One answer being written. Its methods never block, but for `count`.

    Attributes:
        prompt_tokens: Tokens of the rendered prompt.
        cached_tokens: Of these, what the server had in its cache; 0 until it has said so.
        context_left: Tokens that still fit behind the prompt.
        thinking: Whether the chat template knows `<think>` tags.
    """

    def __init__(
        self,
        model: CompletionServerModel,
        service: _Service,
        facts: Facts,
        writer: Writer,
        place: int,
    ) -> None:
        self._model = model  # keeps the connection
        self._loop = service.loop
        self._writer = writer
        self.prompt_tokens = writer.history.tokens
        self.cached_tokens = 0
        self.context_left = facts.n_ctx - self.prompt_tokens
        self.thinking = facts.thinking
        self._close = weakref.finalize(self, service.loop.call, service.give_back, writer, place)
        self._close.atexit = False

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
        self.cached_tokens = self._writer.cached_tokens
        future: Future[Step] = Future()
        if not self._loop.call(self._writer.decode, ask, future):
            future.set_exception(LocalModelError("the local model was closed"))
        return future

    def feed(self, ask: Feed) -> None:
        """Put foreign text into the context while it arrives; sent with the next decode."""
        self._loop.call(self._writer.feed, ask)

    def count(self, text: str) -> int:
        """Tokens of `text` as the server counts them; see `CompletionServerModel.count`."""
        return self._model.count(text)

    def close(self) -> None:
        """Give the place back. May be called at any time and more than once."""
        self.cached_tokens = self._writer.cached_tokens
        self._close()


def _check_prompt(tokens: int, n_ctx: int) -> None:
    if not tokens:
        raise UsageMistake("the prompt is empty; give at least one message")
    if tokens >= n_ctx:
        raise ContextOverflowError(
            f"the prompt has {tokens} tokens and the context of one chat holds {n_ctx}; shorten "
            f"the conversation or start the server with a larger context",
            needed_tokens=tokens + 1,
            n_ctx=n_ctx,
        )


def _checked_url(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise UsageMistake(f"base_url={base_url!r} is no URL: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise UsageMistake(f"base_url={base_url!r}: give one such as 'http://127.0.0.1:8080'")
    if url.userinfo or url.query:
        raise UsageMistake("base_url must carry no secrets; give api_key= or headers=")
    return str(url).rstrip("/").removesuffix("/v1")


def _check_choices(protocol: str, server: str | None) -> None:
    if protocol not in get_args(Protocol):
        raise UsageMistake(f"protocol={protocol!r}; there are {list(get_args(Protocol))}")
    if server is not None and server not in FLAVOURS:
        raise UsageMistake(f"server={server!r}; there are {list(FLAVOURS)}, or None")
    if server is not None and protocol == "llama.cpp":
        raise UsageMistake("server= is for the OpenAI protocol; leave it out for llama.cpp's own")


def _check_numbers(**given: float | None) -> None:
    for name, value in given.items():
        if value is not None and not (value > 0 if name == "timeout_s" else value >= 1):
            raise UsageMistake(f"{name}={value!r} is out of range; it must be at least 1")


def _ours(error: Exception) -> RelayError:
    if isinstance(error, RelayError):
        return error
    failure = LocalModelError(f"the server could not be used: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _fail(future: Future[Any], error: RelayError) -> None:
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)
